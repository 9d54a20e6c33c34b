"""Formats with a chosen and a rejected response: TRL, hh-rlhf, HHH, UltraFeedback, RewardBench."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cai.data.benchmarks import REWARDBENCH_COLUMNS, rewardbench_kind
from cai.data.conversations import RowFault, is_transcript, messages_of, parse_transcript, refuse_other_transcript, split_last_turn
from cai.labels.readings import PairFormat, PairFormats, PairRow, Side, asked, column, number, reading, side
from cai.records import PromptKind

Row = dict[str, Any]


def read_hh(row: Row, source: str, kind: PromptKind | None) -> Iterator[PairRow]:
    """Read hh-rlhf: `chosen` and `rejected` are whole transcripts."""
    yield reading(_transcript(row, "chosen"), _transcript(row, "rejected"), _p_chosen(row), row, source, kind)


def read_hhh(row: Row, source: str, kind: PromptKind | None) -> Iterator[PairRow]:
    """Read HHH: `text_correct` and `text_incorrect` are whole transcripts."""
    yield reading(_transcript(row, "text_correct"), _transcript(row, "text_incorrect"), _p_chosen(row), row, source, kind)


def read_trl(row: Row, source: str, kind: PromptKind | None) -> Iterator[PairRow]:
    """Read TRL: `chosen`, `rejected`, and `prompt` (or `instruction`, `question`) unless it is implicit."""
    chosen, rejected = column(row, "chosen"), column(row, "rejected")
    _refuse_contradiction(row)
    prompt = asked(row, ("prompt", "instruction", "question"))
    if prompt is None and not isinstance(chosen, str) and len(messages_of(chosen)) == 1:
        prompt = row.get("conversations")
        if prompt is None:
            raise RowFault("no_prompt", "`chosen` is one turn, and there is no `prompt` column; name it with --column prompt=…")
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str) and not is_transcript(chosen):
        prompt, chosen, rejected = _shared_prefix(chosen, rejected)
    yield reading(side(prompt, chosen), side(prompt, rejected), _p_chosen(row), row, source, kind)


def read_ultrafeedback(row: Row, source: str, kind: PromptKind | None) -> Iterator[PairRow]:
    """Read UltraFeedback: conversations with scores, which must agree with the label."""
    high, low = row.get("score_chosen"), row.get("score_rejected")
    if _score(high) is None or _score(low) is None:
        raise RowFault("no_score", f"score_chosen and score_rejected must be numbers, found {high!r} and {low!r}")
    yield from read_trl(row, source, kind)


def read_rewardbench(row: Row, source: str, kind: PromptKind | None) -> Iterator[PairRow]:
    """Read RewardBench: TRL's columns, and a `subset` that gives the prompt's kind."""
    subset = column(row, "subset")
    (found,) = read_trl(row, source, kind or rewardbench_kind(subset))
    p = found.preference
    yield replace(found, preference=replace(p, prompt=replace(p.prompt, category=subset if isinstance(subset, str) else None)))


def _p_chosen(row: Row) -> float:
    return number(row, "p_chosen", 1.0, high=1.0)


_SCORES = tuple((name, name.replace("chosen", "rejected")) for name in ("score_chosen", "chosen-rating", "chosen_rating", "rating_chosen"))
"""Columns with the scores that a label was made from."""


def _refuse_contradiction(row: Row) -> None:
    """Raise `RowFault` if the row's scores say that neither response is better, or that the rejected one is."""
    for names in _SCORES:
        if set(names) <= row.keys():
            high, low = (_score(row.get(name)) for name in names)
            if high is not None and high == low:
                raise RowFault("tie", f"both responses have the score {high:g}")
            if high is not None and low is not None and high < low:
                raise RowFault("contradiction", f"the chosen response has the lower score: {high:g} against {low:g}")


def _score(value: Any) -> float | None:
    """Return a score; a cell of a CSV holds it as a text. None if it isn't a number."""
    try:
        found = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _transcript(row: Row, name: str) -> Side:
    text = column(row, name)
    if not isinstance(text, str):
        raise RowFault("not_a_transcript", f"{name} must be a text, found {type(text).__name__}")
    return split_last_turn(parse_transcript(text))


def _shared_prefix(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts after their longest common prefix of whole words: TRL's implicit prompt."""
    refuse_other_transcript(chosen)
    end = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise RowFault("no_prompt", "no `prompt` column, and the texts share no beginning that could be the prompt")
    return chosen[:end].strip(), chosen[end:], rejected[end:]


def _has(row: Row, *columns: str) -> bool:
    return set(columns) <= row.keys()


FORMATS = PairFormats(
    "chosen-rejected",
    (
        PairFormat("hhh", lambda row: _has(row, "text_correct", "text_incorrect"), read_hhh),
        PairFormat("ultrafeedback", lambda row: _has(row, "chosen", "rejected", "score_chosen", "score_rejected"), read_ultrafeedback),
        PairFormat("rewardbench", lambda row: _has(row, "chosen", "rejected", *REWARDBENCH_COLUMNS), read_rewardbench),
        PairFormat(
            "hh",
            lambda row: (
                _has(row, "chosen", "rejected")
                and row.get("prompt") is None
                and isinstance(row["chosen"], str)
                and is_transcript(row["chosen"])
            ),
            read_hh,
        ),
        PairFormat("trl", lambda row: _has(row, "chosen", "rejected"), read_trl),
    ),
    "`chosen` and `rejected` (TRL, hh-rlhf, UltraFeedback-binarized), `text_correct` and `text_incorrect` (HHH)",
    rank=3,
)
