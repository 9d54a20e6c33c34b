"""`PairRow`, the common result of all readers of labelled pairs, and helpers to parse the parts of a row."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from cai.data.conversations import RowFault, as_prompt, is_transcript, messages_of, split_last_turn, with_system
from cai.data.filters import conversation_key, normalise, sides_by_hash
from cai.ids import content_hash
from cai.labels.answers import Choices
from cai.records import PROMPT_KINDS, HumanLabel, Message, Preference, Prompt, PromptKind, Provenance

Side = tuple[tuple[Message, ...], str]
"""A prompt and its response."""
BY_PEOPLE = Provenance(model="")
ANNOTATOR = ("annotator", "annotator_id", "completed_by", "rater", "rater_id", "worker_id", "user_id", "labeler")
_TIME = ("time", "timestamp", "updated_at", "created_at", "submitted_at")
_ATTRIBUTES = ("attributes", "annotator_attributes", "rater_attributes")
ATTRIBUTE_PREFIXES = ("attributes.", "attribute_", "rater_")
NOTE = "note"
WHO = (*ANNOTATOR, *_TIME, *_ATTRIBUTES, NOTE)
"""Columns about the annotator and the remark."""
PROMPTS = ("messages", "prompt", "instruction", "question", "input")
"""Columns with the prompt."""


class Columns(dict[str, Any]):
    """A row that notes which of its columns are read.

    Args:
        row: the columns.
        read: collects the names of the columns that are read.
        renamed: the name that a column has in the file, where the user gave it ours.
    """

    def __init__(self, row: Mapping[str, Any], read: set[str], renamed: Mapping[str, str]) -> None:
        super().__init__(row)
        self.read = read
        self.renamed = renamed

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, absent: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, absent)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer whose meaning depends on the rest of its column."""

    answers: tuple[tuple[str, Any], ...]
    """Columns that may hold the answer, in order of preference, with their values."""
    names: tuple[str, str]
    """Names of the columns with the two responses."""
    choices: Choices | None = None
    """What the values mean, where the format says it."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """One label of a row. `preference.p_chosen` is the probability that the first response in the row is better; it may be ½."""

    preference: Preference
    as_shown: bool = False
    """Whether `chosen` is the response that the annotator saw as A, instead of the chosen one."""
    annotator: str = ""
    time: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    said: Said | None = None
    """The answer as long as it isn't read; `preference.p_chosen` is ½ until then."""
    note: str = ""
    both_bad: bool = False
    doubt: str = ""
    """Information that the source lacks and that may affect whether the label is valid; empty if none is missing."""

    @property
    def by_person(self) -> bool:
        """Whether the label is human. AI labels stay AI labels when they are read back from an export."""
        return self.preference.source.startswith("human:")

    @property
    def label(self) -> HumanLabel:
        """The label with its responses as shown, or in hashed order if the row only says which one was chosen."""
        p = self.preference
        pair = replace(p.pair, source="human", provenance=BY_PEOPLE)
        label = HumanLabel(pair, self.annotator, p.p_chosen, p.source, self.time, self.attributes, self.note, self.both_bad)
        if self.as_shown or sides_by_hash(p.prompt, p.chosen, p.rejected) == (p.chosen, p.rejected):
            return label
        return HumanLabel(pair.swapped(), self.annotator, 1.0 - p.p_chosen, p.source, self.time, self.attributes, self.note, self.both_bad)


@dataclass(frozen=True, slots=True)
class PairFormat:
    """A way to write labelled pairs down."""

    name: str
    """As in `--format`."""
    recognise: Callable[[dict[str, Any]], bool]
    """Whether a row's columns are this format's. A file has the first format that recognises its first row."""
    read: Callable[[dict[str, Any], str, PromptKind | None], Iterator[PairRow | RowFault]]
    """Yields a row's labels, given the row, whose labels they are where it doesn't say, and the kind of prompts that don't say theirs. One
    that can't be used is a `RowFault`, yielded or, where it is the whole row, raised."""
    answer: str | None = None
    """The column with the answer, where the format has only one."""
    own: bool = False
    """Whether rows are `cai`'s own records."""
    chooses: bool = False
    """Whether a row may have several columns with answers, of which the file's first in `CHOICES` is read."""


@dataclass(frozen=True, slots=True)
class PairFormats:
    """Formats that belong together."""

    name: str
    formats: tuple[PairFormat, ...]
    """In the order in which they are tried: the more special first."""
    expected: str = ""
    """What their rows have, for the message about a file that isn't recognised."""
    rank: int = 0
    """Families of a lower rank are tried first. 0: other formats don't have their columns."""


def reading(
    first: Side,
    second: Side,
    p_first: float | Said,
    row: Mapping[str, Any],
    source: str,
    kind: PromptKind | None,
    *,
    as_shown: bool = False,
    who: Mapping[str, Any] | None = None,
) -> PairRow:
    """Build a `PairRow` from both sides of a row and its label.

    Args:
        first: prompt and response of the first side.
        second: prompt and response of the second side.
        p_first: probability that the first response is better, or the answer that says it.
        row: columns with kind, category, weight, source and principle ids, and which responses were cut off.
        source: source of the label if the row has none.
        kind: kind of the prompt if the row has none.
        as_shown: whether the responses are in the order that the annotator saw.
        who: columns with annotator, time and attributes; None: `row`.

    Raises:
        RowFault: a response is empty, both are the same, or they answer different prompts.
    """
    messages = as_prompt(first[0])
    if conversation_key(messages) != conversation_key(second[0]):
        raise RowFault("prompt_mismatch", "the two responses answer different prompts")
    messages = with_system(messages, row)
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
        p_chosen=0.5 if isinstance(p_first, Said) else p_first,
        weight=number(row, "weight", 1.0),
        source=said_by if isinstance(said_by, str) and _is_own_source(said_by) else source,
        principle_ids=tuple(i for i in ids if isinstance(i, str)) if isinstance(ids := row.get("principle_ids"), list | tuple) else (),
        provenance=BY_PEOPLE,
        chosen_truncated=_flag(row, "chosen_truncated", "truncated_a"),
        rejected_truncated=_flag(row, "rejected_truncated", "truncated_b"),
    )
    found = checked(with_person(preference, row if who is None else who, as_shown))
    return replace(found, said=p_first) if isinstance(p_first, Said) else found


def _flag(row: Mapping[str, Any], *names: str) -> bool:
    return any(str(row.get(name)).lower() == "true" for name in names)


def checked(found: PairRow) -> PairRow:
    """Return the row if it has two different, non-empty responses. Raises `RowFault` otherwise."""
    p = found.preference
    if not p.chosen.strip() or not p.rejected.strip():
        raise RowFault("empty", f"the {'second' if p.chosen.strip() else 'first'} response is empty")
    if normalise(p.chosen) == normalise(p.rejected):
        raise RowFault("identical", "both responses are the same text")
    return found


def with_person(preference: Preference, who: Mapping[str, Any], as_shown: bool) -> PairRow:
    """Add annotator, time, attributes and note to a label, as far as the mapping has them."""
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
    note = who.get(NOTE)
    return PairRow(preference, as_shown, annotator, time, attributes, note=note.strip() if isinstance(note, str) else "")


def side(prompt: Any, answer: Any) -> Side:
    """Return the prompt and response of one side. `answer` is the response to `prompt`, or a conversation that contains both.

    Raises:
        RowFault: it is neither, or the conversation has another prompt.
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


def asked(row: Mapping[str, Any], columns: tuple[str, ...] = PROMPTS) -> Any:
    """Return a row's prompt from the first of these columns that has one; `input` is added to an `instruction`. None without a prompt."""
    name = next((c for c in columns if row.get(c) not in (None, "")), None)
    if name is None:
        return None
    extra = row.get("input") if name == "instruction" else None
    if isinstance(row[name], str) and isinstance(extra, str) and extra.strip():
        return f"{row[name].strip()}\n\n{extra.strip()}"
    return row[name]


def record_fields(row: Mapping[str, Any], record: "type[Preference | HumanLabel]") -> None:
    """Note that a row is read as a whole record."""
    for one in fields(record):
        row.get(one.name)


NOT_PROBABILITY = "not_a_probability"


def number(row: Mapping[str, Any], name: str, absent: float, high: float = float("inf")) -> float:
    """Return a number from a row, `absent` if it has none. Raises `RowFault` unless the number is in [0, `high`]."""
    value = row.get(name)
    if value is None or value == "":
        return absent
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (0.0 <= found <= high and math.isfinite(found)):
        reason = "bad_number" if high > 1 else NOT_PROBABILITY
        raise RowFault(reason, f"{name} is {value!r}; expected a number of at least 0{f' and at most {high:g}' if high < 2 else ''}")
    return found


def column(row: Mapping[str, Any], name: str) -> Any:
    """Return a required column. Raises `RowFault` if it is missing."""
    value = row.get(name)
    if value is None:
        raise RowFault("no_column", f"expected column {name!r}, found {', '.join(map(str, row))}")
    return value


def name_of(value: Any) -> str:
    """Return an annotator's name. Label Studio exports a number, or a mapping with id and email."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id") or ""
    return str(value).strip()


def _time(value: Any) -> str:
    """Convert Unix seconds to ISO 8601; texts are kept as they are."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, UTC).isoformat()
        except (OverflowError, OSError, ValueError):
            raise RowFault("bad_time", f"{value!r} is no time in seconds since 1970") from None
    return str(value).strip()


def _is_own_source(source: str) -> bool:
    return source == "contrast" or source.startswith(("ai:", "revision:", "human:"))
