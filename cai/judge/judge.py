"""The judge: a protocol, a model and the principles it judges by, put together from a recipe.

`judgment = await judge(pair)` never raises for one pair's sake: what can't be judged is a `Judgment` that names its failure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.core.flow import together
from cai.errors import ConstitutionError, RecipeError, ReplyError
from cai.ids import combine_hashes, content_hash, rendezvous_order
from cai.judge.calibration import Calibration, calibrated, check_fits
from cai.judge.likelihood import ask_likelihood, likelihood_work
from cai.judge.pairwise import ask_pairwise, ask_pairwise_cot, pairwise_cot_work, pairwise_work
from cai.judge.pointwise import ask_pointwise, ask_pointwise_contrast, pointwise_contrast_work, pointwise_work
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, pool, probability
from cai.models.base import TextModel
from cai.models.templates import Templates
from cai.recipe import FeedbackConfig, ProtocolName
from cai.records import Constitution, Judgment, Principle, Provenance, ResponsePair

PROTOCOLS: dict[ProtocolName, Protocol] = {
    "pairwise": Protocol("pairwise", ask_pairwise, lambda t: (t.judge_pairwise,), pairwise_work),
    "pairwise-cot": Protocol("pairwise-cot", ask_pairwise_cot, lambda t: (t.judge_pairwise_cot,), pairwise_cot_work),
    "pointwise": Protocol("pointwise", ask_pointwise, lambda t: (t.judge_pointwise,), pointwise_work),
    "pointwise-contrast": Protocol("pointwise-contrast", ask_pointwise_contrast, lambda t: (t.judge_pointwise,), pointwise_contrast_work),
    "likelihood": Protocol("likelihood", ask_likelihood, lambda t: (t.likelihood_good, t.likelihood_bad), likelihood_work),
}


@dataclass(frozen=True)
class Judge:
    """Judges pairs by a constitution.

    Args:
        config: protocol, and which principles.
        constitution: principles that apply to a prompt's kind are asked; every one for an ensemble, or `per_label` drawn by a hash of the
            prompt and the two texts, whatever their order.
        model: answers the questions.
        templates: how they are put.
        run_seed: of the draw and of reasoning.
        recipe_hash: for the provenance.
        calibration: how people's labels say that the answers are to be weighed; None: as they are.

    Raises:
        RecipeError: the calibration was fitted for another judge, or `cot_clamp` isn't symmetric around ½, so that swapping a pair would
            change its label.
    """

    config: FeedbackConfig
    constitution: Constitution
    model: TextModel
    templates: Templates
    run_seed: int
    recipe_hash: str = ""
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.calibration is not None:
            check_fits(self.calibration, self.config, self.model.fingerprint)
        clamp = self.config.cot_clamp
        if clamp is not None and (abs(clamp[0] + clamp[1] - 1) > 1e-9 or clamp[0] > clamp[1]):
            raise RecipeError(
                f"feedback.cot_clamp: {list(clamp)} is not symmetric around 0.5, so swapping two responses would change their label; "
                f"for example [{clamp[0]:g}, {1 - clamp[0]:g}], or null for none"
            )

    async def __call__(self, pair: ResponsePair) -> Judgment:
        """Judge a pair.

        Raises:
            ConstitutionError: no principle applies to the prompt's kind.
            ModelError: the model can't go on.
        """
        principles = self.principles(pair)
        try:
            opinions = await self.opinions(pair, principles)
        except ReplyError as e:
            return self._judgment(pair, principles, Opinion(0.0, detail=e.detail), e.reason)
        return self._judgment(pair, principles, self.pooled(pair, principles, opinions), None)

    async def opinions(self, pair: ResponsePair, principles: Sequence[Principle]) -> list[Opinion]:
        """Return what the judge says of a pair under each of its `principles`, in their order.

        Raises:
            ReplyError: an answer can't be read; a label from only the readable ones would lean to whatever made them readable.
        """
        protocol = PROTOCOLS[self.config.protocol]
        return await together(protocol.ask(pair, principle, self._context) for principle in principles)

    def pooled(self, pair: ResponsePair, principles: Sequence[Principle], opinions: Sequence[Opinion]) -> Opinion:
        """Join the opinions, one for each principle: by the calibration where there is one, else by the principles' weights.

        Drawn principles have had their weight in the draw, so they count equally; see `principles`.
        """
        weights = [1.0 if self.config.principles == "sample" else p.weight for p in principles]
        plain = pool(opinions, weights)
        return plain if self.calibration is None else calibrated(self.calibration, pair, principles, opinions, plain)

    def principles(self, pair: ResponsePair) -> tuple[Principle, ...]:
        """Return the principles that this pair is judged by. Raises `ConstitutionError` where none applies."""
        applying = self.constitution.for_kind(pair.prompt.kind)
        if not applying:
            raise ConstitutionError(
                f"constitution {self.constitution.id}: no principle applies to {pair.prompt.kind} prompts such as {pair.prompt.id}"
            )
        if self.config.principles == "ensemble":
            return applying
        unordered = content_hash((pair.prompt.id, sorted((pair.response_a, pair.response_b))))
        order = rendezvous_order(unordered, [(p.id, p.weight) for p in applying], self.run_seed)
        return tuple(self.constitution.principle(i) for i in order[: self.config.per_label])

    @property
    def calibration_hash(self) -> str:
        """For the provenance; empty without a calibration."""
        return "" if self.calibration is None else self.calibration.hash

    @property
    def _context(self) -> ProtocolContext:
        return ProtocolContext(self.model, self.templates, self.config, self.run_seed)

    def _judgment(self, pair: ResponsePair, principles: Sequence[Principle], opinion: Opinion, failure: str | None) -> Judgment:
        ids = tuple(p.id for p in principles)
        template_hash = combine_hashes([t.hash for t in PROTOCOLS[self.config.protocol].templates(self.templates)])
        return Judgment(
            pair.id,
            ids,
            self.config.protocol,
            None if failure else probability(opinion.log_odds),
            None if failure or opinion.first is None else probability(opinion.first),
            None if failure or opinion.second is None else probability(opinion.second),
            failure,
            Provenance(self.model.fingerprint, ids, template_hash, self.run_seed, self.recipe_hash, self.calibration_hash),
            opinion.detail,
        )
