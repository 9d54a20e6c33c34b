"""Critique and revision (Bai et al. 2022, §3): an initial response, its critique under one principle, and a revision.

Departures from the paper:
1. Principles are assigned by rendezvous hashing of the prompt's id, so editing one principle doesn't change other prompts' principles.
2. Each round shows the model the prompt, the current text and one critique request, not the whole history, which confuses small models.
   The default revision template puts text and critique into the system turn, and the model responds to the prompt again. The rules then
   dropped 4 of 48 revisions by a 135M model; with a request for a revision in a new turn, they dropped 16 of 30.
3. Requests are zero-shot chat turns, without few-shot examples.
4. A revision is not assumed to be better: it must pass named rules and, if there is one, a judge. A trace with a revision that fails is
   left out as a whole. Where the revision changed nothing, or breaks a check that the text before it followed, that text is trained on:
   left out, the data would lose just those responses that needed no revision, such as refusals of harmful prompts.
5. A sampled response to a helpful prompt, which is trained on as it is, must not be a refusal.

As in the paper, the SFT data are the revisions of every round, and sampled responses to helpful prompts (§3.1, §3.2).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from msgspec import UNSET

from cai.core.text.checks import check_share, follows
from cai.core.text.endings import whole_sentences
from cai.core.text.refusals import is_refusal
from cai.errors import ConstitutionError, ReplyError
from cai.generate.filters import drop_rule, unchanged, without_heading
from cai.ids import combine_hashes, derive_seed, rendezvous_order
from cai.models.base import TextModel
from cai.models.requests import Completion, Sampling
from cai.models.templates import Rendered, Templates
from cai.recipe import CritiqueConfig, SamplingSpec
from cai.records import (
    Constitution,
    Critique,
    Judgment,
    Principle,
    Prompt,
    Provenance,
    Response,
    ResponsePair,
    Revision,
    RevisionTrace,
    Round,
    SFTExample,
)
from cai.records.responses import STANDING

AskJudge = Callable[[ResponsePair], Awaitable[Judgment]]


@dataclass(frozen=True, slots=True)
class Writer:
    """A model with its prompt templates and the seed that its samples derive from."""

    model: TextModel
    templates: Templates
    run_seed: int
    recipe_hash: str = ""
    """Recipe hash for the provenance of records."""

    async def complete(self, asked: Rendered, sampling: SamplingSpec, seed: int) -> Completion:
        """Return the model's completion of a rendered template."""
        return await self.model.complete(asked.messages, as_sampling(sampling), seed, asked.prefill)

    async def text(self, asked: Rendered, sampling: SamplingSpec, seed: int) -> Completion:
        """Return a completion whose text has its prefill, cut to whole sentences if truncated. Raises `ReplyError` if empty."""
        completion = await self.complete(asked, sampling, seed)
        return replace(completion, text=kept_text(completion, asked.prefill))


async def respond(prompt: Prompt, writer: Writer, sampling: SamplingSpec) -> Response:
    """Sample a model's response to a prompt. A truncated response ends with its last whole sentence."""
    template = writer.templates.respond
    seed = derive_seed(writer.run_seed, prompt.id, "respond", 0)
    asked = template.render({"conversation": prompt.messages})
    said = await writer.text(asked, sampling, seed)
    provenance = Provenance(writer.model.fingerprint, (), template.hash, seed, writer.recipe_hash)
    return Response(prompt, said.text, said.truncated, provenance, said.reasoning)


async def critique_and_revise(
    response: Response, constitution: Constitution, writer: Writer, config: CritiqueConfig, judge: AskJudge | None = None
) -> RevisionTrace:
    """Critique and revise a response `config.rounds` times, each round under another principle.

    Prompts whose kind isn't in `config.kinds` get no rounds: the initial response is kept. The rounds stop at the first revision that
    breaks a rule; the trace names the rule. A revision that breaks its principle's check where the text before it followed the check is
    `worse_by_check`.

    Args:
        constitution: principles are drawn from those that apply to the prompt's kind, and repeat if there are more rounds than principles.
        judge: compares the response with the final revision; None skips the comparison.
    """
    prompt = response.prompt
    wanted = principles_in_turn(prompt, constitution, writer.run_seed, config.rounds) if prompt.kind in config.kinds else []
    rounds: list[Round] = []
    dropped: str | None = None
    text = response.text
    for number, principle in enumerate(wanted):
        critique = await _critique(prompt, text, principle, number, writer, config)
        revision, too_short = await _revise(prompt, text, principle, critique.text, number, writer, config)
        rounds.append(Round(critique, revision))
        broken = drop_rule(revision.text, critique.text, response.text, prompt.kind, config.drop_refusals)
        dropped = broken or ("truncated" if too_short else None)
        if dropped is None and follows(principle, prompt.kind, revision.text) is False:
            dropped = "worse_by_check" if follows(principle, prompt.kind, text) else "breaks_check"
        if dropped is not None:
            break
        text = revision.text
    if wanted and dropped is None and unchanged(text, response.text):
        dropped = "unchanged"
    if dropped is None or dropped in STANDING:
        unrevised = dropped == "unchanged" or text == response.text
        if unrevised and config.drop_refusals and prompt.kind in ("borderline", "helpful") and is_refusal(text):
            dropped = "over_refusal"
        elif config.min_share and (share := check_share(constitution, prompt.kind, text)) is not None and share < config.min_share:
            dropped = "breaks_check"
    provenance = Provenance(
        writer.model.fingerprint,
        tuple(dict.fromkeys(r.critique.principle_id for r in rounds)),
        combine_hashes([writer.templates.critique.hash, writer.templates.revise.hash]),
        writer.run_seed,
        writer.recipe_hash,
    )
    trace = RevisionTrace(prompt, response.text, tuple(rounds), dropped, None, provenance, response.truncated, response.reasoning)
    if judge is None or dropped is not None or not rounds:
        return trace
    return _judged(trace, await judge(trace.pair), config)


def principles_in_turn(prompt: Prompt, constitution: Constitution, run_seed: int, rounds: int) -> list[Principle]:
    """Return one principle per round, by the prompt's rendezvous ranking of the principles that apply to its kind."""
    weights = [(p.id, p.weight) for p in constitution.for_kind(prompt.kind)]
    order = rendezvous_order(prompt.id, weights, run_seed)
    if not order:
        raise ConstitutionError(
            f"constitution {constitution.id}: no principle applies to {prompt.kind} prompts such as {prompt.id}. "
            f"Add {prompt.kind} to a principle's applies_to, or leave it out of critique.kinds."
        )
    return [constitution.principle(order[i % len(order)]) for i in range(rounds)]


def sft_examples(trace: RevisionTrace, config: CritiqueConfig) -> list[SFTExample]:
    """Return the SFT examples of a trace: none if it was dropped, else all revisions or the final one (`config.train_on`).

    A revision that is the same as the one before is not repeated. Where the revision changed nothing or was worse by check, the text
    before it stands: without it, the data would lose just those responses that needed no revision.
    `principle_ids` are those of all critiques up to the revision. Without rounds, the example is the response itself.
    """
    if trace.dropped is not None and not trace.stands:
        return []
    revisions = [r.revision for r in (trace.rounds if trace.dropped is None else trace.rounds[:-1])]
    if not revisions or trace.dropped == "unchanged":
        said, cut = trace.response, trace.response_truncated
        return [SFTExample(trace.prompt, said, (), "response", trace.provenance, cut, reasoning=trace.response_reasoning)]
    ids = [revision.principle_id for revision in revisions]
    texts = [trace.response, *(revision.text for revision in revisions)]
    steps = [i for i in range(len(ids)) if not unchanged(texts[i + 1], texts[i])] if config.train_on == "every" else [len(ids) - 1]
    return [
        SFTExample(
            trace.prompt,
            revisions[i].text,
            tuple(dict.fromkeys(ids[: i + 1])),
            "revision",
            trace.provenance,
            revisions[i].truncated,
            reasoning=revisions[i].reasoning,
        )
        for i in steps
    ]


def kept_text(completion: Completion, prefill: str = "") -> str:
    """Return a completion's text with its prefill, cut to whole sentences if truncated. Raises `ReplyError` if it is empty."""
    text = completion.text.strip()
    if completion.truncated:
        text = whole_sentences(text) or text
    if not text:
        raise ReplyError("empty", "the model's answer has no text")
    return f"{prefill}{' ' if prefill and text[0].isalnum() else ''}{text}"


def as_sampling(spec: SamplingSpec) -> Sampling:
    """Convert a recipe's sampling parameters into a model's."""
    return Sampling(spec.max_tokens, spec.temperature, spec.top_p, spec.thinking_tokens or UNSET)


async def _critique(prompt: Prompt, text: str, principle: Principle, number: int, writer: Writer, config: CritiqueConfig) -> Critique:
    asked = writer.templates.critique.render(
        {
            "conversation": prompt.messages,
            "response": text,
            "critique_request": principle.critique,
            "statement": principle.statement,
        }
    )
    said = await writer.text(asked, config.sampling, derive_seed(writer.run_seed, prompt.id, "critique", number))
    return Critique(principle.id, said.text, said.reasoning)


async def _revise(
    prompt: Prompt, text: str, principle: Principle, critique: str, number: int, writer: Writer, config: CritiqueConfig
) -> tuple[Revision, bool]:
    """Return the revision, and whether it was truncated too early to cut it to whole sentences. A rule drops empty revisions later."""
    asked = writer.templates.revise.render(
        {
            "conversation": prompt.messages,
            "response": text,
            "critique": critique,
            "critique_request": principle.critique,
            "revision_request": principle.revision,
            "statement": principle.statement,
        }
    )
    completion = await writer.complete(asked, config.sampling, derive_seed(writer.run_seed, prompt.id, "revise", number))
    whole = whole_sentences(completion.text) if completion.truncated else completion.text
    text = without_heading(completion.text if whole is None else whole)
    return Revision(principle.id, text, completion.truncated, completion.reasoning), whole is None


def _judged(trace: RevisionTrace, judgment: Judgment, config: CritiqueConfig) -> RevisionTrace:
    if judgment.p_a is None:
        raise ReplyError("unjudged", judgment.failure or "")
    p_revised = 1.0 - judgment.p_a
    return replace(trace, p_revised=p_revised, dropped="worse_by_judge" if p_revised < config.min_p_revised else None)
