"""Pairs that people have labelled, in the formats that they are published in, as `Preference`s.

Serves `cai judge bench --pairs`, human labels in a mixture, and reading back what `export` wrote. The format is recognised from the
first row that can be read, then every row is held to it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from cai.data.benchmarks import REWARDBENCH_COLUMNS, rewardbench_kind
from cai.data.conversations import RowFault, as_prompt, is_transcript, messages_of, parse_transcript, split_last_turn
from cai.data.filters import conversation_key, normalise
from cai.data.rows import Row, read_rows, source_files
from cai.errors import DataError
from cai.ids import content_hash, split_fraction
from cai.recipe import HumanSource
from cai.records import PROMPT_KINDS, Failure, Message, Preference, Prompt, PromptKind, Provenance

PairFormat = Literal["cai", "trl", "hh", "hhh", "ultrafeedback", "label-studio", "rewardbench"]
STAGE = "human"
_HUMAN = Provenance(model="")


def load_pairs(
    path: Path, format: PairFormat | Literal["auto"] = "auto", kind: PromptKind | None = None, limit: int | None = None, seed: int = 0
) -> "LoadedPairs":
    """Load labelled pairs from a file.

    Rows without a direction (a tie, the same text twice, prompts that differ) are counted failures: nothing is guessed.

    Args:
        path: JSONL, JSON array, CSV or Parquet, plain or `.gz`.
        format: `trl` (`chosen`, `rejected`, and `prompt` unless both share it), `hh` (transcripts), `hhh` (`text_correct`,
            `text_incorrect`), `ultrafeedback` (conversations with `score_chosen`, `score_rejected`), `label-studio` (its JSON export of
            tasks made by `cai export`), `rewardbench` (`subset` says what a prompt asks for), `cai` (its own records), or `auto`.
        kind: for rows that don't say it themselves; otherwise `other`.
        limit: keep this many, chosen by hash of the seed and the pair's id; a higher limit only adds.
        seed: see `limit`.

    Raises:
        DataError: the file can't be read, its format isn't recognised, or it has no usable pair.
    """
    if format != "auto" and format not in _READERS:
        raise DataError(f"{path}: unknown pair format {format!r}; expected auto, {', '.join(_READERS)}")
    found: PairFormat | None = None if format == "auto" else format
    preferences: list[Preference] = []
    failures: list[Failure] = []
    rows = 0
    for row in read_rows(path):
        rows += 1
        try:
            value = _mapping(row)
            found = found or _recognise(value, row.where)
            preferences.extend(_READERS[found](value, f"human:{path.name}", kind))
        except RowFault as e:
            failures.append(Failure(STAGE, row.where, e.reason, e.detail))
    if found is None or not preferences:
        first = "".join(f"\n  {f.item_id}: {f.reason}: {f.detail}" for f in failures[:5])
        raise DataError(f"{path}: no usable pair in {rows} rows{f' read as {found}' if found else ''}{first}")
    if limit is not None and limit < len(preferences):
        order = sorted(range(len(preferences)), key=lambda i: (split_fraction(preferences[i].id, f"limit:{seed}"), i))
        preferences = [preferences[i] for i in sorted(order[:limit])]
    return LoadedPairs(tuple(preferences), tuple(failures), found)


def load_human(sources: Sequence[HumanSource], root: Path, seed: int) -> tuple[tuple[Preference, ...], tuple[Failure, ...]]:
    """Load the human labels of a recipe, each source's weight put on its preferences.

    Returns:
        The preferences and the rows that are none.

    Raises:
        DataError: listing every source that can't be loaded.
    """
    preferences: list[Preference] = []
    failures: list[Failure] = []
    problems: list[str] = []
    for source in sources:
        try:
            for path in source_files(source.path, root):
                loaded = load_pairs(path, kind=source.kind, limit=source.limit, seed=seed)
                preferences.extend(replace(p, weight=p.weight * source.weight) for p in loaded.preferences)
                failures.extend(loaded.failures)
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(preferences), tuple(failures)


def _mapping(row: Row) -> dict[str, Any]:
    if row.fault:
        raise RowFault("unreadable", row.fault)
    if not isinstance(row.value, dict):
        raise RowFault("not_a_row", f"expected a mapping, found {type(row.value).__name__}")
    return row.value


def _recognise(row: dict[str, Any], where: str) -> PairFormat:
    """Tell a file's format from a row's columns.

    Raises:
        DataError: none fits.
    """
    if {"text_correct", "text_incorrect"} <= row.keys():
        return "hhh"
    if isinstance(row.get("data"), dict) and "annotations" in row:
        return "label-studio"
    if {"chosen", "rejected"} <= row.keys():
        if isinstance(row.get("prompt"), dict) and "p_chosen" in row:
            return "cai"
        if {"score_chosen", "score_rejected"} <= row.keys():
            return "ultrafeedback"
        if row.keys() >= REWARDBENCH_COLUMNS:
            return "rewardbench"
        if row.get("prompt") is None and isinstance(row["chosen"], str) and is_transcript(row["chosen"]):
            return "hh"
        return "trl"
    raise DataError(
        f"{where}: not recognised as labelled pairs; found columns {', '.join(row) or 'none'}. Expected `chosen` and `rejected` "
        "(TRL, hh-rlhf, UltraFeedback-binarized, cai), `text_correct` and `text_incorrect` (HHH), or a Label Studio export."
    )


def _read_hh(row: dict[str, Any], source: str, kind: PromptKind | None) -> Iterable[Preference]:
    return [_pair(_transcript(row, "chosen"), _transcript(row, "rejected"), row, source, kind)]


def _read_hhh(row: dict[str, Any], source: str, kind: PromptKind | None) -> Iterable[Preference]:
    return [_pair(_transcript(row, "text_correct"), _transcript(row, "text_incorrect"), row, source, kind)]


def _read_trl(row: dict[str, Any], source: str, kind: PromptKind | None) -> Iterable[Preference]:
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    prompt = row.get("prompt")
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str) and not is_transcript(chosen):
        prompt, chosen, rejected = _shared_prefix(chosen, rejected)
    return [_pair(_side(prompt, chosen), _side(prompt, rejected), row, source, kind)]


def _read_ultrafeedback(row: dict[str, Any], source: str, kind: PromptKind | None) -> Iterable[Preference]:
    scores = row.get("score_chosen"), row.get("score_rejected")
    high, low = scores
    if not isinstance(high, int | float) or not isinstance(low, int | float):
        raise RowFault("no_score", f"score_chosen and score_rejected must be numbers, found {high!r} and {low!r}")
    if high == low:
        raise RowFault("tie", f"both responses have the score {high}")
    if high < low:
        raise RowFault("contradiction", f"the chosen response has the lower score: {high} against {low}")
    return _read_trl(row, source, kind)


def _read_cai(row: dict[str, Any], source: str, kind: PromptKind | None) -> Iterable[Preference]:
    try:
        p = msgspec.convert(row, Preference)
    except msgspec.ValidationError as e:
        raise RowFault("not_a_preference", str(e)) from e
    if p.prompt.kind == "other" and kind:
        p = replace(p, prompt=replace(p.prompt, kind=kind))
    return [_directed(p)]


def _read_label_studio(row: dict[str, Any], source: str, kind: PromptKind | None) -> Iterable[Preference]:
    """Read every annotator's choice of an annotated task as one preference; skipped tasks are failures."""
    data = row["data"] if isinstance(row.get("data"), dict) else {}
    texts = {"left": data.get("response_a"), "right": data.get("response_b")}
    picks: list[str] = []
    for annotation in row.get("annotations") or ():
        if not annotation.get("was_cancelled"):
            picks += [r.get("value", {}).get("selected") for r in annotation.get("result", ()) if r.get("type") == "pairwise"]
    if not picks:
        raise RowFault("not_labelled", "no annotation of this task has a pairwise choice")
    if not set(picks) <= texts.keys():
        raise RowFault("tie", f"a choice is neither left nor right: {picks}")
    prompt = data.get("messages") or data.get("prompt")
    sides = {name: _side(prompt, text) for name, text in texts.items()}
    other = {"left": "right", "right": "left"}
    return [_pair(sides[pick], sides[other[pick]], {"kind": data.get("kind")}, source, kind) for pick in picks]


def _read_rewardbench(row: dict[str, Any], source: str, kind: PromptKind | None) -> Iterable[Preference]:
    subset = _column(row, "subset")
    return _read_trl({**row, "kind": kind or rewardbench_kind(subset), "category": subset}, source, kind)


_READERS: dict[PairFormat, Callable[[dict[str, Any], str, PromptKind | None], Iterable[Preference]]] = {
    "cai": _read_cai,
    "trl": _read_trl,
    "hh": _read_hh,
    "hhh": _read_hhh,
    "ultrafeedback": _read_ultrafeedback,
    "label-studio": _read_label_studio,
    "rewardbench": _read_rewardbench,
}
assert tuple(_READERS) == get_args(PairFormat)


def _column(row: dict[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        raise RowFault("no_column", f"expected column {name!r}, found {', '.join(row)}")
    return value


def _transcript(row: dict[str, Any], name: str) -> tuple[tuple[Message, ...], str]:
    text = _column(row, name)
    if not isinstance(text, str):
        raise RowFault("not_a_transcript", f"{name} must be a text, found {type(text).__name__}")
    return split_last_turn(parse_transcript(text))


def _side(prompt: Any, answer: Any) -> tuple[tuple[Message, ...], str]:
    """Return the prompt and response of one side: the response alone beside a `prompt`, or a conversation that holds both."""
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


def _shared_prefix(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts after the whole words that they begin with alike: TRL's implicit prompt."""
    end = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise RowFault("no_prompt", "no `prompt` column, and the texts share no beginning that could be the prompt")
    return chosen[:end].strip(), chosen[end:], rejected[end:]


def _pair(
    chosen: tuple[tuple[Message, ...], str],
    rejected: tuple[tuple[Message, ...], str],
    row: dict[str, Any],
    source: str,
    kind: PromptKind | None,
) -> Preference:
    """Make a preference of both sides, with the label, weight and source that an export of `cai` put into the row."""
    messages = as_prompt(chosen[0])
    if conversation_key(messages) != conversation_key(rejected[0]):
        raise RowFault("prompt_mismatch", "chosen and rejected answer different prompts")
    row_kind = row.get("kind")
    category = row.get("category")
    prompt = Prompt(
        id=content_hash(messages),
        kind=row_kind if row_kind in PROMPT_KINDS else kind or "other",
        messages=messages,
        source=source,
        category=category if isinstance(category, str) else None,
    )
    said_by = row.get("source")
    return _directed(
        Preference(
            prompt=prompt,
            chosen=chosen[1],
            rejected=rejected[1],
            p_chosen=_number(row, "p_chosen", 1.0, high=1.0),
            weight=_number(row, "weight", 1.0),
            # An AI label that comes back from an export must not turn into a person's.
            source=said_by if isinstance(said_by, str) and _is_own_source(said_by) else source,
            principle_ids=tuple(row.get("principle_ids") or ()),
            provenance=_HUMAN,
        )
    )


def _directed(preference: Preference) -> Preference:
    """Return the preference with the better response as `chosen`."""
    if not preference.chosen.strip() or not preference.rejected.strip():
        raise RowFault("empty", f"the {'rejected' if preference.chosen.strip() else 'chosen'} response is empty")
    if normalise(preference.chosen) == normalise(preference.rejected):
        raise RowFault("identical", "both responses are the same text")
    if preference.p_chosen == 0.5:
        raise RowFault("tie", "p_chosen is 0.5")
    return preference if preference.p_chosen > 0.5 else preference.swapped()


def _number(row: dict[str, Any], name: str, absent: float, high: float = float("inf")) -> float:
    value = row.get(name)
    if value is None:
        return absent
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number <= high:
        raise RowFault("bad_number", f"{name} is {value!r}; expected a number of at least 0{f' and at most {high:g}' if high < 2 else ''}")
    return number


def _is_own_source(source: str) -> bool:
    return source == "contrast" or source.startswith(("ai:", "revision:", "human:"))


@dataclass(frozen=True)
class LoadedPairs:
    """Labelled pairs and the rows that are none."""

    preferences: tuple[Preference, ...]
    failures: tuple[Failure, ...]
    """`item_id` is FILE:LINE."""
    format: PairFormat
