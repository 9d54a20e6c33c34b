"""Context distillation (Askell et al. 2021, arXiv 2112.00861, §2.2): responses under principles in context, to be imitated without them.

The model answers each prompt several times with the principles of the prompt's kind in its context. Responses that break a floor (cut off,
looping, needless refusals, the rules repeated) are left out, and of the others the one that follows most checks is kept (best of n). SFT
on it, without the principles in the prompt, carries the principles into the weights.
"""

from dataclasses import dataclass

from cai.core.flow import together
from cai.core.text.checks import check_share
from cai.errors import ConstitutionError
from cai.generate.critique import Writer
from cai.generate.filters import drop_rule, unchanged
from cai.ids import derive_seed, rendezvous_order
from cai.models.templates import Rendered, Template, Templates
from cai.recipe import DistillConfig, Placement
from cai.records import Constitution, Principle, Prompt, Provenance, Response, ResponsePair, SFTExample

SOURCE = "distilled"
"""`source` of distilled examples and pairs."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """The outcome for one prompt."""

    untold: Response
    """The response without principles in context."""
    told: str | None
    """The best response with the principles in context; None if no sample was good enough."""
    share: float | None
    """Share of the applicable checks that `told` follows, by weight; None if there are none."""
    principle_ids: tuple[str, ...]
    dropped: tuple[str, ...]
    """For each sample that was left out, the rule that it broke."""
    provenance: Provenance

    @property
    def id(self) -> str:
        """Id of the prompt."""
        return self.untold.prompt.id

    @property
    def example(self) -> SFTExample | None:
        """The SFT example: the prompt without principles, and the response that was written with them."""
        if self.told is None:
            return None
        return SFTExample(self.untold.prompt, self.told, self.principle_ids, SOURCE, self.provenance)

    @property
    def pair(self) -> ResponsePair | None:
        """Told (A) against untold (B), to be judged; None if they are nearly equal, because DPO on such pairs lowers the probability of
        both (arXiv 2410.08847)."""
        if self.told is None or unchanged(self.told, self.untold.text):
            return None
        cut = (False, self.untold.truncated)
        return ResponsePair(self.untold.prompt, self.told, self.untold.text, SOURCE, self.provenance, None, *cut)


async def distill(response: Response, constitution: Constitution, writer: Writer, config: DistillConfig) -> Distilled:
    """Answer a prompt under the principles of its kind, and keep the best sample.

    Args:
        response: the model's response without principles.
        constitution: the principles.
        writer: the model that answers: the one to train, or a stronger one.
        config: number of samples, placement of the principles, and what a sample must fulfil.

    Raises:
        ReplyError: no sample could be had (`empty`, `truncated`, …), or a check ran out of time.
        ConstitutionError: no principle applies to the prompt's kind.
    """
    prompt = response.prompt
    principles = principles_in_context(prompt, constitution, writer.run_seed, config.per_prompt)
    template = told_template(writer.templates, config.placement)
    asked = told(template, prompt, principles)
    seeds = [derive_seed(writer.run_seed, prompt.id, "distill", number) for number in range(config.samples)]
    completions = await together(writer.complete(asked, config.sampling, seed) for seed in seeds)
    words = " ".join(p.statement for p in principles)
    kept: list[tuple[float, str]] = []
    dropped: list[str] = []
    for completion in completions:
        text = f"{asked.prefill} {completion.text.strip()}".strip()
        rule = "truncated" if completion.truncated else drop_rule(text, words, "", prompt.kind, config.drop_refusals)
        share = check_share(constitution, prompt.kind, text)
        if rule is None and share is not None and share < config.min_share:
            rule = "breaks_check"
        if rule is None:
            kept.append((1.0 if share is None else share, text))
        else:
            dropped.append(rule)
    provenance = Provenance(writer.model.fingerprint, tuple(p.id for p in principles), template.hash, seeds[0], writer.recipe_hash)
    best = max(kept, key=lambda found: found[0], default=None)
    share = None if best is None else check_share(constitution, prompt.kind, best[1])
    return Distilled(response, best and best[1], share, provenance.principle_ids, tuple(dropped), provenance)


def principles_in_context(prompt: Prompt, constitution: Constitution, run_seed: int, per_prompt: int | None) -> tuple[Principle, ...]:
    """Return the principles for a prompt's context: all that apply to its kind, in the constitution's order, or `per_prompt` drawn ones.

    Raises:
        ConstitutionError: none applies.
    """
    applying = constitution.for_kind(prompt.kind)
    if not applying:
        raise ConstitutionError(
            f"constitution {constitution.id}: no principle applies to {prompt.kind} prompts such as {prompt.id}. "
            f"Add {prompt.kind} to a principle's applies_to, or leave it out of distill.kinds."
        )
    if per_prompt is None:
        return applying
    drawn = rendezvous_order(prompt.id, [(p.id, p.weight) for p in applying], run_seed)[:per_prompt]
    return tuple(p for p in applying if p.id in drawn)


def told_template(templates: Templates, placement: Placement) -> Template:
    """Return the template that puts principles into the system turn or into the user's turn."""
    return templates.told_system if placement == "system" else templates.told_user


def told(template: Template, prompt: Prompt, principles: tuple[Principle, ...]) -> Rendered:
    """Return a prompt with principles in its context."""
    *earlier, last = prompt.messages
    return template.render({"earlier": tuple(earlier), "question": last.content, "principles": " ".join(p.statement for p in principles)})
