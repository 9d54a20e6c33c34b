"""One prompt through the loop: response, critique and revision round by round, and what the judge says of the result."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from cai.errors import ConstitutionError, RecipeError
from cai.generate.critique import principles_in_turn
from cai.judge.calibration import Calibration, calibration_of, check_fits
from cai.judge.judge import Judge
from cai.records import Constitution, Judgment, Principle, PromptKind, RevisionTrace
from cai.session import Session, as_prompt


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


def chosen(constitution: Constitution, ids: Sequence[str]) -> Constitution:
    """Return a constitution with only these of its principles; with all of them where none are named.

    Raises:
        ConstitutionError: one isn't there.
    """
    known = [p.id for p in constitution.principles]
    if unknown := [i for i in ids if i not in known]:
        raise ConstitutionError(f"constitution {constitution.id} has no principle {', '.join(unknown)}; it has: {' '.join(known)}")
    return replace(constitution, principles=tuple(p for p in constitution.principles if p.id in ids)) if ids else constitution


async def steps(
    text: str, constitution: Constitution, session: Session, *, kind: PromptKind = "other", rounds: int = 1
) -> AsyncIterator[Step]:
    """Put one prompt through the loop, and yield each step as soon as it is there. Earlier rounds come from the call store.

    Args:
        text: the prompt.
        constitution: its principles are drawn, and judged by.
        session: is open.
        kind: which principles apply; `other` takes them all.
        rounds: critiques and revisions.

    Raises:
        DataError: the prompt is empty.
        ReplyError: the model gave no usable answer.
        ConstitutionError: no principle applies to the prompt's kind.
    """
    prompt = as_prompt(text, kind)
    principles = principles_in_turn(prompt, constitution, session.recipe.seed, rounds)
    response = await session.respond(prompt)
    yield Answered(response.text)
    for number, principle in enumerate(principles, 1):
        trace = await session.critique_and_revise(response, constitution, rounds=number)
        last = trace.rounds[-1]
        yield Revised(principle, last.critique.text, last.revision.text, trace.dropped)
        if trace.dropped is not None and trace.dropped != "unchanged":
            break
    yield await _judged(trace, constitution, session)


async def _judged(trace: RevisionTrace, constitution: Constitution, session: Session) -> JudgedRevision:
    config = msgspec.structs.replace(session.recipe.feedback, principles="ensemble")
    pair, model, seed = trace.pair, session.judge_model, session.recipe.seed
    principles = constitution.for_kind(trace.prompt.kind)

    async def judge(by: Sequence[Principle], weighed: Calibration | None = None) -> Judgment:
        asked = replace(constitution, principles=tuple(by))
        return await Judge(config, asked, model, session.templates, seed, calibration=weighed)(pair)

    calibration, said = calibration_of(config, session.workspace.root), ""
    if calibration is not None:
        try:
            check_fits(calibration, config, model.fingerprint)
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
