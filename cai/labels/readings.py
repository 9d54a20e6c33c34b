"""What every format of labelled pairs is read into, a `PairRow`, and the parts of a row that formats share.

A reading keeps what the row says: which side was better by how much, who said so and when. Whether it counts, alone or pooled with
others, is decided by `human` and `pooling`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cai.data.conversations import RowFault, as_prompt, is_transcript, messages_of, split_last_turn
from cai.data.filters import conversation_key, normalise, sides_by_hash
from cai.ids import content_hash
from cai.records import PROMPT_KINDS, HumanLabel, Message, Preference, Prompt, PromptKind, Provenance, ResponsePair

Side = tuple[tuple[Message, ...], str]
"""A prompt and the response to it."""
BY_PEOPLE = Provenance(model="")
ANNOTATOR = ("annotator", "annotator_id", "completed_by", "rater", "rater_id", "worker_id", "user_id", "labeler")
_TIME = ("time", "timestamp", "updated_at", "created_at", "submitted_at")
_ATTRIBUTES = ("attributes", "annotator_attributes", "rater_attributes")
ATTRIBUTE_PREFIXES = ("attributes.", "attribute_", "rater_")
WHO = (*ANNOTATOR, *_TIME, *_ATTRIBUTES)
"""Columns about the person."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """One label as its row tells it. `preference.p_chosen` is the probability that the side written first is better; it may be ½."""

    preference: Preference
    as_shown: bool = False
    """`chosen` is what the person saw as A, not what they chose."""
    annotator: str = ""
    time: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    doubt: str = ""
    """What the source leaves unsaid that bears on whether the label counts."""

    @property
    def by_person(self) -> bool:
        """Whether a person gave the label: an AI's that comes back from an export doesn't turn into one."""
        return self.preference.source.startswith("human:")

    @property
    def label(self) -> HumanLabel:
        """The label with its sides as they were shown, or drawn by hash where the row only says which one was chosen."""
        p = self.preference
        pair = ResponsePair(p.prompt, p.chosen, p.rejected, "human", BY_PEOPLE)
        label = HumanLabel(pair, self.annotator, p.p_chosen, p.source, self.time, self.attributes)
        if self.as_shown or sides_by_hash(p.prompt, p.chosen, p.rejected) == (p.chosen, p.rejected):
            return label
        return HumanLabel(pair.swapped(), self.annotator, 1.0 - p.p_chosen, p.source, self.time, self.attributes)


@dataclass(frozen=True, slots=True)
class PairFormat:
    """A way to write labelled pairs down."""

    name: str
    """As in `--format`."""
    recognise: Callable[[dict[str, Any]], bool]
    """Whether a row's columns are this format's. A file has the first format, in the order of `FORMATS`, that recognises its first row."""
    read: Callable[[dict[str, Any], str, PromptKind | None], Iterator[PairRow | RowFault]]
    """Yields a row's labels, given the row, whose labels they are where it doesn't say, and the kind of prompts that don't say theirs. One
    that can't be used is a `RowFault`, yielded or, where it is the whole row, raised."""


def reading(
    first: Side,
    second: Side,
    p_first: float,
    row: Mapping[str, Any],
    source: str,
    kind: PromptKind | None,
    *,
    as_shown: bool = False,
    who: Mapping[str, Any] | None = None,
) -> PairRow:
    """Join both sides of a row with its label, and with the weight and source that an export of `cai` put there.

    Args:
        first: prompt and response of one side.
        second: of the other.
        p_first: probability that the first is better.
        row: kind, category, weight, source and principle ids are read from it.
        source: whose label it is where the row doesn't say.
        kind: for rows that don't say it themselves.
        as_shown: the sides stand as the person saw them.
        who: where annotator, time and attributes are; the row if None.

    Raises:
        RowFault: a response is empty, both are the same, or they answer different prompts.
    """
    messages = as_prompt(first[0])
    if conversation_key(messages) != conversation_key(second[0]):
        raise RowFault("prompt_mismatch", "the two responses answer different prompts")
    row_kind, category, said_by = row.get("kind"), row.get("category"), row.get("source")
    prompt = Prompt(
        id=content_hash(messages),
        kind=row_kind if row_kind in PROMPT_KINDS else kind or "other",
        messages=messages,
        source=source,
        category=category if isinstance(category, str) and category else None,
    )
    preference = Preference(
        prompt=prompt,
        chosen=first[1],
        rejected=second[1],
        p_chosen=p_first,
        weight=number(row, "weight", 1.0),
        source=said_by if isinstance(said_by, str) and _is_own_source(said_by) else source,
        principle_ids=tuple(i for i in ids if isinstance(i, str)) if isinstance(ids := row.get("principle_ids"), list | tuple) else (),
        provenance=BY_PEOPLE,
    )
    return checked(with_person(preference, row if who is None else who, as_shown))


def checked(found: PairRow) -> PairRow:
    """Return a reading of two different texts. Raises `RowFault` for any other."""
    p = found.preference
    if not p.chosen.strip() or not p.rejected.strip():
        raise RowFault("empty", f"the {'second' if p.chosen.strip() else 'first'} response is empty")
    if normalise(p.chosen) == normalise(p.rejected):
        raise RowFault("identical", "both responses are the same text")
    return found


def with_person(preference: Preference, who: Mapping[str, Any], as_shown: bool) -> PairRow:
    """Add who gave a label and when, as far as the mapping says."""
    annotator = next((name_of(who[key]) for key in ANNOTATOR if who.get(key) not in (None, "")), "")
    time = next((_time(who[key]) for key in _TIME if who.get(key) not in (None, "")), "")
    nested: Mapping[str, Any] = next((who[key] for key in _ATTRIBUTES if isinstance(who.get(key), dict)), {})
    flat = {
        key.removeprefix(prefix): value
        for key, value in who.items()
        for prefix in ATTRIBUTE_PREFIXES
        if key.startswith(prefix) and key not in (*ANNOTATOR, *_ATTRIBUTES)
    }
    attributes = {str(k): str(v) for k, v in {**flat, **nested}.items() if v not in (None, "") and not isinstance(v, dict | list)}
    return PairRow(preference, as_shown, annotator, time, attributes)


def side(prompt: Any, answer: Any) -> Side:
    """Return the prompt and response of one side: the response alone beside a `prompt`, or a conversation that holds both.

    Raises:
        RowFault: neither, or the conversation answers another prompt.
    """
    context = as_prompt(messages_of(prompt)) if prompt is not None else ()
    if isinstance(answer, str) and not is_transcript(answer):
        return context, answer.strip()
    inner, response = split_last_turn(messages_of(answer))
    if not inner:
        return context, response
    if isinstance(prompt, str) and not is_transcript(prompt):
        # UltraFeedback repeats the prompt as a text beside whole conversations, which may add a system turn.
        if not any(m.role == "user" and normalise(m.content) == normalise(prompt) for m in inner):
            raise RowFault("prompt_mismatch", "the conversation doesn't hold the prompt")
    elif context and conversation_key(context) != conversation_key(inner):
        raise RowFault("prompt_mismatch", "the conversation doesn't begin with the prompt")
    return inner, response


def number(row: Mapping[str, Any], name: str, absent: float, high: float = float("inf")) -> float:
    """Return a number of a row, `absent` where it has none. Raises `RowFault` unless it is at least 0 and at most `high`."""
    value = row.get(name)
    if value is None or value == "":
        return absent
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (0.0 <= found <= high and math.isfinite(found)):
        raise RowFault("bad_number", f"{name} is {value!r}; expected a number of at least 0{f' and at most {high:g}' if high < 2 else ''}")
    return found


def column(row: Mapping[str, Any], name: str) -> Any:
    """Return a column that must be there. Raises `RowFault`."""
    value = row.get(name)
    if value is None:
        raise RowFault("no_column", f"expected column {name!r}, found {', '.join(map(str, row))}")
    return value


def name_of(value: Any) -> str:
    """Return how a person is called: Label Studio gives a number, or a mapping with id and email."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id") or ""
    return str(value).strip()


def _time(value: Any) -> str:
    """Seconds since 1970 become ISO 8601; a text stays as it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, UTC).isoformat()
        except (OverflowError, OSError, ValueError):
            raise RowFault("bad_time", f"{value!r} is no time in seconds since 1970") from None
    return str(value).strip()


def _is_own_source(source: str) -> bool:
    return source == "contrast" or source.startswith(("ai:", "revision:", "human:"))
