"""Context distillation (Askell et al. 2021, arXiv 2112.00861, §2.2): responses under principles in context, to be imitated without them.

The model answers each prompt several times with the principles of the prompt's kind in its context. Responses that break a floor (cut off,
looping, needless refusals, the rules repeated) are left out, and of the others the one that follows most checks is kept (best of n). SFT
on it, without the principles in the prompt, carries the principles into the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cai.core.flow import together
from cai.core.text.checks import can_be_added, check_share, follows
from cai.errors import ConstitutionError
from cai.generate.critique import Writer, as_sampling, kept_text
from cai.generate.filters import drop_rule, unchanged
from cai.ids import derive_seed, rendezvous_order
from cai.models.base import TextModel
from cai.models.requests import Completion, Sampling
from cai.models.templates import Rendered, Template, Templates
from cai.recipe import DistillConfig, Placement
from cai.records import Constitution, Message, Principle, Prompt, Provenance, Response, ResponsePair, SFTExample, ToldPart

SOURCE = "distilled"
"""`source` of distilled examples and pairs."""
BEGINNING = "beginning"
"""`source` of examples that are the beginning of a response."""
BEGINNING_TOKENS = 5
"""Tokens that tell whether a response refuses, warns or answers."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """The outcome for one prompt."""

    prompt: Prompt
    untold: Response | None
    """The response without principles in context, if there is one."""
    told: str | None
    """The best response with the principles in context; None if no sample was good enough."""
    share: float | None
    """Share of the applicable checks that `told` follows, by weight; None if there are none."""
    principle_ids: tuple[str, ...]
    dropped: tuple[str, ...]
    """For each sample that was left out, the rule that it broke."""
    provenance: Provenance
    parts: tuple[ToldPart, ...] = ()
    """Parts of `told`, with the conversations under which they were written."""
    reasoning: str = ""
    """What the model thought before `told`, if it did."""
    followed: tuple[tuple[str, bool], ...] = ()
    """For each whole sample and each principle with a check: the principle's id, and whether the sample follows it."""

    @property
    def id(self) -> str:
        """Id of the prompt."""
        return self.prompt.id

    @property
    def example(self) -> SFTExample | None:
        """The SFT example: the prompt without principles, and the response that was written with them."""
        if self.told is None:
            return None
        return SFTExample(self.prompt, self.told, self.principle_ids, SOURCE, self.provenance, False, self.parts, self.reasoning)

    @property
    def pair(self) -> ResponsePair | None:
        """Told (A) against untold (B), to be judged; None without the latter, or if they are nearly equal, because DPO on such pairs lowers
        the probability of both (arXiv 2410.08847)."""
        if self.told is None or self.untold is None or unchanged(self.told, self.untold.text):
            return None
        cut = (False, self.untold.truncated)
        return ResponsePair(self.prompt, self.told, self.untold.text, SOURCE, self.provenance, None, *cut)


async def distill(prompt: Prompt, untold: Response | None, constitution: Constitution, writer: Writer, config: DistillConfig) -> Distilled:
    """Answer a prompt under the principles of its kind, and keep the best sample.

    Args:
        untold: the model's response without principles, if there is one.
        writer: the model that answers: the one to train, or a stronger one.
        config: number of samples, placement of the principles, and what a sample must fulfil.

    Raises:
        ReplyError: no sample could be had (`empty`, `truncated`, …), or a check ran out of time.
    """
    principles = principles_in_context(prompt, constitution, writer.run_seed, config.per_prompt)
    ask = Told(writer.model, writer.templates, config.placement, as_sampling(config.sampling), begins=True)
    seeds = [derive_seed(writer.run_seed, prompt.id, "distill", number) for number in range(config.samples)]
    answers = await together(ask(prompt, principles, seed, untold) for seed in seeds)
    words = " ".join(p.statement for p in principles)
    kept: list[tuple[float, Completion, tuple[ToldPart, ...]]] = []
    dropped: list[str] = []
    followed: list[tuple[str, bool]] = []
    for completion, parts in answers:
        text = completion.text
        if not completion.truncated:
            followed += [(p.id, yes) for p in principles if (yes := follows(p, prompt.kind, text)) is not None]
        rule = "truncated" if completion.truncated else drop_rule(text, words, "", prompt.kind, config.drop_refusals)
        share = check_share(constitution, prompt.kind, text)
        if rule is None and share is not None and share < config.min_share:
            rule = "breaks_check"
        if rule is None:
            kept.append((1.0 if share is None else share, completion, parts))
        else:
            dropped.append(rule)
    provenance = Provenance(writer.model.fingerprint, tuple(p.id for p in principles), ask.template.hash, seeds[0], writer.recipe_hash)
    if not kept:
        return Distilled(prompt, untold, None, None, provenance.principle_ids, tuple(dropped), provenance, followed=tuple(followed))
    _, best, parts = max(kept, key=lambda found: found[0])
    share = check_share(constitution, prompt.kind, best.text)
    told = (best.text, share, provenance.principle_ids, tuple(dropped), provenance, parts, best.reasoning, tuple(followed))
    return Distilled(prompt, untold, *told)


async def begin(prompt: Prompt, constitution: Constitution, writer: Writer, config: DistillConfig) -> SFTExample:
    """Return how a response begins under the principles of the prompt's kind: with their opening, else as the model begins it.

    Raises:
        ReplyError: the model says nothing.
    """
    principles = principles_in_context(prompt, constitution, writer.run_seed, config.per_prompt)
    seed = derive_seed(writer.run_seed, prompt.id, BEGINNING)
    ask = Told(
        writer.model, writer.templates, config.placement, replace(as_sampling(config.sampling), max_tokens=BEGINNING_TOKENS), begins=True
    )
    part = await ask.beginning(prompt, principles, seed)
    of = Provenance(writer.model.fingerprint, tuple(p.id for p in principles), ask.template.hash, seed, writer.recipe_hash)
    return SFTExample(prompt, part.text, of.principle_ids, BEGINNING, of, truncated=True, parts=(part,))


@dataclass(frozen=True, slots=True)
class Told:
    """A model that answers with principles in its context.

    In `turns`, the answer is first given under the principles that concern the whole of it. Then the model is told each other principle
    that the answer doesn't follow yet, as the person's next turn, and its reply is added to the answer: a small model follows one request
    at a time.
    """

    model: TextModel
    templates: Templates
    placement: Placement
    sampling: Sampling
    begins: bool = False
    """Whether answers begin with an opening of their principles. A measure of what the model does when it is told leaves them out."""

    @property
    def template(self) -> Template:
        """The template that puts principles into the system turn or into the user's turn."""
        return template_of(self.templates, self.placement)

    async def __call__(
        self, prompt: Prompt, principles: Sequence[Principle], seed: int, untold: Response | None = None
    ) -> tuple[Completion, tuple[ToldPart, ...]]:
        """Answer a prompt under principles. Returns the answer, and its parts: one, or in `turns` one for each turn.

        Args:
            principles: at least one.
            untold: the model's response without principles, to which sentences are added in `turns`; None lets it write one.
        """
        later = [p for p in principles if self.placement == "turns" and can_be_added(p, prompt.kind)]
        first = [p for p in principles if p not in later]
        if first or untold is None:
            said, part = await self._first(prompt, first, seed)
        else:
            said, part = Completion(untold.text, untold.truncated, 0, 0), ToldPart(prompt.messages, "", untold.text)
        parts = [part]
        for principle in later:
            if not said.text or follows(principle, prompt.kind, said.text):
                continue
            turns = (*prompt.messages, Message("assistant", said.text), Message("user", principle.statement))
            opening = self._opening(prompt, [principle])
            added = await self.model.complete(turns, self.sampling, seed, opening)
            said = replace(said, truncated=said.truncated or added.truncated)
            if text := _begun(added, opening):
                parts.append(ToldPart(turns, opening, ("\n\n" if "\n" in said.text else " ") + text))
                said = replace(said, text=said.text + parts[-1].text)
        return said, tuple(parts)

    async def beginning(self, prompt: Prompt, principles: Sequence[Principle], seed: int) -> ToldPart:
        """Return an opening of the principles, for which nothing is asked, or else the beginning of an answer, in one part."""
        if opening := self._opening(prompt, principles):
            return ToldPart(under_principles(prompt, principles, self.template).messages, opening, opening)
        _, part = await self._first(prompt, principles, seed)
        return part

    async def _first(self, prompt: Prompt, principles: Sequence[Principle], seed: int) -> tuple[Completion, ToldPart]:
        if principles:
            asked = under_principles(prompt, principles, self.template)
        else:
            asked = self.templates.respond.render({"conversation": prompt.messages})
        opening = self._opening(prompt, principles) or asked.prefill
        said = await self.model.complete(asked.messages, self.sampling, seed, opening)
        text = _begun(said, opening)
        return replace(said, text=text), ToldPart(asked.messages, opening, text)

    def _opening(self, prompt: Prompt, principles: Sequence[Principle]) -> str:
        """Return an opening of the principles, drawn by hash of the prompt; empty if they have none, or the answer isn't begun."""
        openings = [(opening, 1.0) for p in principles for opening in p.openings if self.begins]
        return rendezvous_order(prompt.id, openings)[0] if openings else ""


def template_of(templates: Templates, placement: Placement) -> Template:
    """Return the template that puts principles into the system turn, or into the user's."""
    return templates.told_system if placement == "system" else templates.told_user


def under_principles(prompt: Prompt, principles: Sequence[Principle], template: Template) -> Rendered:
    """Return a prompt's conversation with principles in its context, where the template puts them."""
    *earlier, last = prompt.messages
    return template.render({"earlier": tuple(earlier), "question": last.content, "principles": " ".join(p.statement for p in principles)})


def _begun(said: Completion, opening: str) -> str:
    """Return an answer's text with its opening, which may be all of it: a refusal may end there."""
    return kept_text(said, opening) if said.text.strip() else opening


def principles_in_context(prompt: Prompt, constitution: Constitution, run_seed: int, per_prompt: int | None) -> tuple[Principle, ...]:
    """Return the principles for a prompt's context: all that apply to its kind, in the constitution's order, or `per_prompt` drawn ones."""
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
