"""The judge: a protocol, a model and the principles that it judges by.

`judgment = await judge(pair)` returns a `Judgment` with a named failure if the pair can't be judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.core.flow import together
from cai.errors import ConstitutionError, RecipeError, ReplyError
from cai.ids import combine_hashes, content_hash, rendezvous_order
from cai.judge.calibration import Calibration, calibrated, check_fits
from cai.judge.probe import Probe, check_probe
from cai.judge.protocol import Opinion, ProtocolContext, pool, probability
from cai.judge.protocols import PROTOCOLS
from cai.models.base import TextModel
from cai.models.templates import Templates
from cai.recipe import FeedbackConfig
from cai.records import Constitution, Judgment, Principle, Provenance, ResponsePair


@dataclass(frozen=True)
class Judge:
    """Judges pairs by a constitution.

    Args:
        config: protocol and choice of principles.
        constitution: the principles. `ensemble` uses all that apply to the prompt's kind; `sample` draws `per_label` of them by a hash of
            the prompt and the two texts, independent of their order.
        model: the model that judges.
        templates: prompt templates.
        run_seed: seed of the draw and of sampled reasoning.
        recipe_hash: recipe hash for the provenance of judgments.
        calibration: calibration of the log-odds; None leaves them as they are.
        probe: for a protocol that reads hidden states.

    Raises:
        RecipeError: the calibration or the probe was fitted for another judge, or the protocol finds something wrong with its settings.
    """

    config: FeedbackConfig
    constitution: Constitution
    model: TextModel
    templates: Templates
    run_seed: int
    recipe_hash: str = ""
    calibration: Calibration | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        if self.probe is not None:
            check_probe(self.probe, self.model.fingerprint)
        if self.calibration is not None:
            check_fits(self.calibration, self.config, self.model.fingerprint, "" if self.probe is None else self.probe.hash)
        if problems := PROTOCOLS.get(self.config.protocol).problems(self.config):
            raise RecipeError("\n".join(problems))

    @property
    def label(self) -> str:
        """Its protocol, and whether instructions that its templates have in a system turn are in the user's turn."""
        moved = any(t.in_user_turn for t in PROTOCOLS.get(self.config.protocol).templates(self.templates))
        return f"{self.config.protocol} (user turn)" if moved else self.config.protocol

    async def __call__(self, pair: ResponsePair) -> Judgment:
        """Judge a pair.

        Raises:
            ConstitutionError: no principle applies to the prompt's kind.
            ModelError: the model fails.
        """
        principles = self.principles(pair)
        try:
            opinions = await self.opinions(pair, principles)
        except ReplyError as e:
            return self._judgment(pair, principles, Opinion(0.0, detail=e.detail), e.reason)
        return self._judgment(pair, principles, self.pooled(pair, principles, opinions), None)

    async def opinions(self, pair: ResponsePair, principles: Sequence[Principle]) -> list[Opinion]:
        """Return the judge's opinion of a pair under each of its `principles`, in their order.

        Raises:
            ReplyError: an answer can't be parsed. Averaging only the others would bias the label.
        """
        protocol = PROTOCOLS.get(self.config.protocol)
        return await together(protocol.ask(pair, principle, self._context) for principle in principles)

    def pooled(self, pair: ResponsePair, principles: Sequence[Principle], opinions: Sequence[Opinion]) -> Opinion:
        """Pool the opinions: by the calibration if there is one, else by the principles' weights.

        Drawn principles count equally, because their weights are already in the draw; see `principles`.
        """
        weights = [1.0 if self.config.principles == "sample" else p.weight for p in principles]
        plain = pool(opinions, weights)
        return plain if self.calibration is None else calibrated(self.calibration, pair, principles, opinions, plain)

    def principles(self, pair: ResponsePair) -> tuple[Principle, ...]:
        """Return the principles that this pair is judged by: one of them where the protocol reads nothing of a principle.

        Raises:
            ConstitutionError: none applies.
        """
        kind, protocol = pair.prompt.kind, PROTOCOLS.get(self.config.protocol)
        applying = tuple(p for p in self.constitution.for_kind(kind) if protocol.applies(p, kind))
        if not applying:
            which = f"that {protocol.name} can judge by " if self.constitution.for_kind(kind) else ""
            raise ConstitutionError(
                f"constitution {self.constitution.id}: no principle {which}applies to {kind} prompts such as {pair.prompt.id}"
            )
        if not protocol.asks:
            return applying[:1]
        if self.config.principles == "ensemble":
            return applying
        unordered = content_hash((pair.prompt.id, sorted((pair.response_a, pair.response_b))))
        order = rendezvous_order(unordered, [(p.id, p.weight) for p in applying], self.run_seed)
        return tuple(self.constitution.principle(i) for i in order[: self.config.per_label])

    @property
    def fitted(self) -> tuple[Calibration | Probe, ...]:
        """What of it was fitted to human labels, which must not measure it."""
        return tuple(found for found in (self.calibration, self.probe) if found is not None)

    @property
    def calibration_hash(self) -> str:
        """Content hash of the calibration, for provenance; empty without one."""
        return "" if self.calibration is None else self.calibration.hash

    @property
    def _context(self) -> ProtocolContext:
        return ProtocolContext(self.model, self.templates, self.config, self.run_seed, self.probe)

    def _judgment(self, pair: ResponsePair, principles: Sequence[Principle], opinion: Opinion, failure: str | None) -> Judgment:
        protocol = PROTOCOLS.get(self.config.protocol)
        ids = tuple(p.id for p in principles) if protocol.asks else ()
        read_by = [] if self.probe is None else [self.probe.hash]
        template_hash = combine_hashes([*(t.hash for t in protocol.templates(self.templates)), *read_by])
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
            None if failure else opinion.mass,
        )
