"""One prompt through the loop: response, critique and revision round by round, and what the judge says of the result."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from cai.core.console import Reporter
from cai.core.interrupt import run_interruptible
from cai.core.workspace import Workspace
from cai.errors import ConstitutionError, DataError, RecipeError
from cai.generate.critique import critique_and_revise, principles_in_turn, respond, revision_pair
from cai.ids import content_hash
from cai.judge.calibration import Calibration, check_fits
from cai.judge.judge import Judge
from cai.records import Constitution, Judgment, Message, Principle, Prompt, PromptKind, RevisionTrace
from cai.workbench.sample import Bench, open_bench, recipe_for, with_protocol


@dataclass(frozen=True, slots=True)
class Answered:
    """The model's first response."""

    text: str


@dataclass(frozen=True, slots=True)
class Revised:
    """One round under one principle."""

    principle: Principle
    critique: str
    revision: str
    dropped: str | None
    """The rule that keeps this revision out of training data, and ends the rounds."""


@dataclass(frozen=True, slots=True)
class PrincipleOpinion:
    """Probability that the revision is better than the response, under one principle."""

    principle_id: str
    p_revised: float


@dataclass(frozen=True, slots=True)
class JudgedRevision:
    """The judge on response and final revision: its label, and what it says under each of its principles, most telling first."""

    protocol: str
    p_revised: float | None
    failure: str | None
    opinions: tuple[PrincipleOpinion, ...]
    """Never calibrated: a calibration weighs principles together."""
    calibration: str = ""
    """How `p_revised` was weighed, where the settings name a calibration; empty where they name none."""


Step = Answered | Revised | JudgedRevision


def as_prompt(text: str, kind: PromptKind) -> Prompt:
    """Return a text as a prompt; the same text always gets the same principles."""
    return Prompt(content_hash(text), kind, (Message("user", text),), "try")


def chosen(constitution: Constitution, ids: Sequence[str]) -> Constitution:
    """Return a constitution with only these of its principles; with all of them where none are named.

    Raises:
        ConstitutionError: one isn't there.
    """
    known = [p.id for p in constitution.principles]
    if unknown := [i for i in ids if i not in known]:
        raise ConstitutionError(f"constitution {constitution.id} has no principle {', '.join(unknown)}; it has: {' '.join(known)}")
    return replace(constitution, principles=tuple(p for p in constitution.principles if p.id in ids)) if ids else constitution


async def steps(prompt: Prompt, constitution: Constitution, bench: Bench, rounds: int) -> AsyncIterator[Step]:
    """Yield each step of the loop as soon as it is there. Earlier rounds come from the call store.

    Raises:
        ReplyError: the model gave no usable answer.
        ConstitutionError: no principle applies to the prompt's kind.
    """
    recipe = bench.recipe
    config = msgspec.structs.replace(recipe.critique, kinds=(*recipe.critique.kinds, prompt.kind))
    principles = principles_in_turn(prompt, constitution, recipe.seed, rounds)
    response = await respond(prompt, bench.model, bench.templates, recipe.respond.sampling, recipe.seed)
    yield Answered(response.text)
    for number, principle in enumerate(principles, 1):
        trace = await critique_and_revise(
            response, constitution, bench.model, bench.templates, msgspec.structs.replace(config, rounds=number), recipe.seed
        )
        last = trace.rounds[-1]
        yield Revised(principle, last.critique.text, last.revision.text, trace.dropped)
        if trace.dropped is not None and trace.dropped != "unchanged":
            break
    yield await _judged(trace, constitution, bench)


def try_prompt(
    text: str,
    constitution: Constitution,
    workspace: Workspace,
    reporter: Reporter,
    on_step: Callable[[Step], None],
    *,
    kind: PromptKind = "other",
    rounds: int = 1,
    model: str | None = None,
    recipe: Path | None = None,
    protocol: str | None = None,
    seed: int = 0,
) -> tuple[Step, ...]:
    """Put one prompt through the loop.

    Args:
        text: the prompt.
        constitution: its principles are drawn, and judged by.
        workspace: has the call store and the templates.
        reporter: shows that something moves.
        on_step: told of each step as it comes.
        kind: which principles apply; `other` takes them all.
        rounds: critiques and revisions.
        model: its name; None: the recipe's, or the embedded one.
        recipe: a recipe's file with the settings; None: the defaults.
        protocol: how to judge; None: the settings'.
        seed: of sampling and of the draw, where there is no recipe.

    Raises:
        CaiError: the prompt is empty; the model can't be loaded or gave no usable answer; no principle applies.
    """

    async def go() -> tuple[Step, ...]:
        found: list[Step] = []
        tried = trying(
            text, constitution, workspace, reporter, kind=kind, rounds=rounds, model=model, recipe=recipe, protocol=protocol, seed=seed
        )
        async for step in tried:
            on_step(step)
            found.append(step)
        return tuple(found)

    with reporter.stage("try"):
        return run_interruptible(go(), reporter)


async def trying(
    text: str,
    constitution: Constitution,
    workspace: Workspace,
    reporter: Reporter,
    *,
    kind: PromptKind = "other",
    rounds: int = 1,
    model: str | None = None,
    recipe: Path | None = None,
    protocol: str | None = None,
    seed: int = 0,
) -> AsyncIterator[Step]:
    """Yield each step as `try_prompt` tells it, in a running event loop."""
    if not text.strip():
        raise DataError("the prompt is empty; give it the text that a user would write")
    settings = with_protocol(recipe_for(model, seed, recipe=recipe), protocol)
    async with open_bench(settings, workspace, reporter) as bench:
        async for step in steps(as_prompt(text, kind), constitution, bench, rounds):
            yield step


async def _judged(trace: RevisionTrace, constitution: Constitution, bench: Bench) -> JudgedRevision:
    config = msgspec.structs.replace(bench.recipe.feedback, principles="ensemble")
    pair = revision_pair(trace)
    principles = constitution.for_kind(trace.prompt.kind)

    async def judge(by: Sequence[Principle], weighed: Calibration | None = None) -> Judgment:
        asked = replace(constitution, principles=tuple(by))
        return await Judge(config, asked, bench.judge, bench.templates, bench.recipe.seed, calibration=weighed)(pair)

    calibration, said = bench.calibration, ""
    if calibration is not None:
        try:
            check_fits(calibration, config, bench.judge.fingerprint)
            said = "weighed by feedback.calibration"
        except RecipeError as e:  # another protocol, drawn principles: shown as it is, and said
            calibration, said = None, "uncalibrated: " + "; ".join(line.lstrip("- ") for line in str(e).splitlines()[1:])

    label, *single = await asyncio.gather(judge(principles, calibration), *(judge([p]) for p in principles))
    opinions = [PrincipleOpinion(p.id, 1 - j.p_a) for p, j in zip(principles, single, strict=True) if j.p_a is not None]
    return JudgedRevision(
        config.protocol,
        None if label.p_a is None else 1 - label.p_a,
        label.failure,
        tuple(sorted(opinions, key=lambda o: -abs(o.p_revised - 0.5))),
        said,
    )
