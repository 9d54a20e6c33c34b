"""Read which of two or more choices a judge would write, and how much probability the choices hold together.

A choice can be written in several forms: "A" and " A" are different tokens, and some models write "(A" or "**A**". Which one a model writes
depends on what stands before it: after "Answer:", SmolLM2-135M gives the letters with a space 0.82 of the probability, and those without
one 0.0005. The log-odds of words that a model would not write tell little, so where the first form holds little, the others are asked too,
one after another until they hold enough, and all are added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai.errors import ReplyError
from cai.judge.protocol import difference
from cai.models.base import TextModel
from cai.models.templates import OPENINGS, Templates
from cai.records import Message, Prompt

SMALL_MASS = 0.25
"""Probability below which the choices are asked in another form too, and below which a judge's labels are warned about."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A judge's choice between two options."""

    log_odds: float
    """Of the first option against the second."""
    mass: float | None
    """Probability of both together, in [0, 1]; None if it was not measured."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A judge's choice among several options."""

    probabilities: tuple[float, ...]
    """Of each option, in their order; they add up to 1."""
    mass: float | None
    """Probability of all together, in [0, 1]; None if it was not measured."""


async def read_choices(
    model: TextModel, messages: Sequence[Message], options: tuple[str, str], prefill: str = "", *, spaced: bool = False
) -> Reading:
    """Return which of two options the model would write next.

    Args:
        model: the judge.
        messages: the question.
        options: the two options, without spaces around them.
        prefill: start of the answer.
        spaced: whether the form with a space before it is asked first.

    Raises:
        ReplyError: both options have probability 0, or the reply is unusable.
        NoLogprobsError: the server gives no log-probabilities.
    """
    logprobs, mass = await _read(model, messages, options, prefill, spaced)
    return Reading(difference(logprobs), mass)


async def read_distribution(model: TextModel, messages: Sequence[Message], options: Sequence[str], prefill: str = "") -> Distribution:
    """Return the probabilities with which the model would write each of several options next. Arguments as in `read_choices`.

    Raises:
        ReplyError: all options have probability 0, or the reply is unusable.
        NoLogprobsError: the server gives no log-probabilities.
    """
    logprobs, mass = await _read(model, messages, tuple(options), prefill, False)
    most = max(logprobs)
    if not math.isfinite(most):
        raise ReplyError("no_probability", "the model gave no probability to any choice")
    parts = [math.exp(x - most) for x in logprobs]
    return Distribution(tuple(part / math.fsum(parts) for part in parts), mass)


async def yes_log_odds(prompt: Prompt, text: str, question: str, statement: str, model: TextModel, templates: Templates) -> float:
    """Return the log-odds of Yes against No for a question about one response. Raises `ReplyError` if both have probability 0."""
    return (await read_yes(prompt, text, question, statement, model, templates)).log_odds


async def read_yes(prompt: Prompt, text: str, question: str, statement: str, model: TextModel, templates: Templates) -> Reading:
    """Return `yes_log_odds`, and the probability of Yes and No together."""
    asked = templates.judge_pointwise.render(
        {"conversation": prompt.messages, "response": text, "question": question, "statement": statement}
    )
    return await read_choices(model, asked.messages, templates.judge_pointwise.choices, asked.prefill)


async def _read(
    model: TextModel, messages: Sequence[Message], options: tuple[str, ...], prefill: str, spaced: bool
) -> tuple[list[float], float]:
    """Return the log-probabilities of some options, and their probability together."""
    leads = (" ", "") if spaced else ("", " ")
    reply = await model.choices(messages, _written(options, leads[0]), prefill)
    logprobs = list(reply.logprobs)
    if not reply.every_form and _mass(logprobs) < SMALL_MASS:
        other = await model.choices(messages, _written(options, leads[1]), prefill)
        lead = leads[_mass(other.logprobs) > _mass(logprobs)]
        logprobs = _added(logprobs, other.logprobs)
        for opening in () if prefill.endswith(OPENINGS) else OPENINGS:
            if _mass(logprobs) >= SMALL_MASS:
                break
            other = await model.choices(messages, _written(options, lead + opening), prefill)
            logprobs = _added(logprobs, other.logprobs)
    mass = min(1.0, _mass(logprobs))
    model.choice_mass.add(mass)
    return logprobs, mass


def mean_mass(readings: Sequence[Reading | Distribution]) -> float | None:
    """Return the mean probability that some readings' options hold; None if none was measured."""
    known = [r.mass for r in readings if r.mass is not None]
    return math.fsum(known) / len(known) if known else None


def mass_warning(mass: float | None, who: str) -> str:
    """Return a warning if a judge gave its choices little probability; empty otherwise.

    Args:
        mass: mean probability of the choices, in [0, 1]; None if it was not measured.
        who: the judge or protocol.
    """
    if mass is None or mass >= SMALL_MASS:
        return ""
    return (
        f"{who}: the judge gives its choices only {mass:.2%} of the probability, so its labels are read from words that it would hardly "
        "write. It may reason first, or open its answer with other words: set a feedback.protocol that reads a written verdict "
        "(docs/guides/judging.md), switch its reasoning off, or end the template in prompts/templates with a [[prefill]] that leads to "
        "the choice"
    )


def _mass(logprobs: Sequence[float]) -> float:
    return math.fsum(math.exp(x) for x in logprobs)


def _written(options: tuple[str, ...], opening: str) -> tuple[str, ...]:
    return tuple(opening + option for option in options)


def _added(some: Sequence[float], others: Sequence[float]) -> list[float]:
    return [_sum(pair) for pair in zip(some, others, strict=True)]


def _sum(logprobs: Sequence[float]) -> float:
    most = max(logprobs)
    return most if math.isinf(most) else most + math.log(math.fsum(math.exp(x - most) for x in logprobs))
