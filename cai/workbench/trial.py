"""Try a constitution on one prompt: response, critiques and revisions, and the judge's comparison."""

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
    """First response of the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Revised:
    """One round of critique and revision under one principle."""

    principle: Principle
    critique: str
    revision: str
    dropped: str | None
    """Rule that keeps this revision out of the training data and ends the rounds; None if there is none."""


@dataclass(frozen=True, slots=True)
class PrincipleOpinion:
    """Probability that the revision is better than the response, under one principle."""

    principle_id: str
    p_revised: float


@dataclass(frozen=True, slots=True)
class JudgedRevision:
    """The judge's comparison of response and final revision: its label, and its opinion under each principle, most confident first."""

    protocol: str
    p_revised: float | None
    failure: str | None
    """Why there is no verdict, with the server's own words; None if there is one."""
    opinions: tuple[PrincipleOpinion, ...]
    """Opinions per principle, uncalibrated: a calibration applies to all principles together."""
    calibration: str = ""
    """Whether `p_revised` is calibrated, or why not; empty if the settings name no calibration."""


Step = Answered | Revised | JudgedRevision


def chosen(constitution: Constitution, ids: Sequence[str]) -> Constitution:
    """Return a constitution with only the named principles; with all of them if `ids` is empty."""
    known = [p.id for p in constitution.principles]
    if unknown := [i for i in ids if i not in known]:
        raise ConstitutionError(f"constitution {constitution.id} has no principle {', '.join(unknown)}; it has: {' '.join(known)}")
    return replace(constitution, principles=tuple(p for p in constitution.principles if p.id in ids)) if ids else constitution


async def steps(
    text: str, constitution: Constitution, session: Session, *, kind: PromptKind = "other", rounds: int = 1
) -> AsyncIterator[Step]:
    """Respond to one prompt, critique, revise and judge; yield each step when it is done. Earlier rounds come from the call store.

    Args:
        kind: kind of prompt, which decides the principles that apply; `other` uses all.
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
        return await Judge(config, asked, model, session.judge_templates, seed, calibration=weighed, probe=probe)(pair)

    probe = session.probe_for(config)
    calibration, said = calibration_of(config, session.workspace.root), ""
    if calibration is not None:
        try:
            check_fits(calibration, config, model.fingerprint, "" if probe is None else probe.hash)
            said = "weighed by feedback.calibration"
        except RecipeError as e:  # the calibration does not fit: show the uncalibrated label, and say so
            calibration, said = None, "uncalibrated: " + "; ".join(line.lstrip("- ") for line in str(e).splitlines()[1:])

    label, *single = await asyncio.gather(judge(principles, calibration), *(judge([p]) for p in principles))
    opinions = [PrincipleOpinion(p.id, 1 - j.p_a) for p, j in zip(principles, single, strict=True) if j.p_a is not None]
    return JudgedRevision(
        config.protocol,
        None if label.p_a is None else 1 - label.p_a,
        None if label.failed is None else ": ".join(filter(None, label.failed)),
        tuple(sorted(opinions, key=lambda o: -abs(o.p_revised - 0.5))),
        said,
    )
