"""Prompts from files, folders and the Hub, in the formats that people have them in. Human labels are `human`'s business.

Every row either becomes a `Prompt` or is counted: duplicates and rows over the limit in `counts`, unusable ones as `Failure`s that name
file and line. Prompts stream: what finds repeats among them keeps hashes on disk, and only who asks for a tuple holds them all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

from cai.data.benchmarks import benchmark_kind
from cai.data.conversations import RowFault, as_prompt, messages_of, prompt_part
from cai.data.filters import prompt_key
from cai.data.repeats import NearRepeats, Seen
from cai.data.rows import HUB, FileKind, Row, dataset_rows, read_rows, source_files
from cai.errors import DataError
from cai.ids import content_hash, split_fraction
from cai.recipe import PromptSource
from cai.records import PROMPT_KINDS, Failure, Prompt, PromptKind

STAGE = "prompts"
MANY_COMPARISONS = 10_000_000
"""Some ten seconds of comparing prompts with one another."""
_FILE_KINDS: dict[str, FileKind] = {"cai": "json", "csv": "csv", "text": "text"}


def load_prompts(source: PromptSource, root: Path, seed: int) -> "LoadedPrompts":
    """Load one source of a recipe.

    `auto` takes each row for what it is: the `field`, else `messages`, else the prompt of an hh-rlhf or TRL preference (`chosen`). A
    conversation that ends with an assistant's turn is cut before it.

    Args:
        source: path, format and limit.
        root: the workspace that relative paths start from.
        seed: the run's seed; with the prompt's id it decides which prompts a limit keeps.

    Raises:
        DataError: the source isn't there, can't be read, or has no usable prompt at all.
    """
    left_out = SkippedRows()
    prompts = tuple(_source_prompts(source, root, seed, left_out))
    return LoadedPrompts(prompts, tuple(left_out.failures), left_out.counts)


def load_all(sources: Sequence[PromptSource], root: Path, seed: int) -> "LoadedPrompts":
    """Load several sources whole. As `stream_prompts`, for what is small or needed twice."""
    left_out = SkippedRows()
    prompts = tuple(stream_prompts(sources, root, seed, left_out))
    return LoadedPrompts(prompts, tuple(left_out.failures), left_out.counts)


def stream_prompts(sources: Sequence[PromptSource], root: Path, seed: int, left_out: "SkippedRows") -> Iterator[Prompt]:
    """Yield the prompts of several sources; one that repeats one of an earlier source is left out and counted.

    Args:
        sources: in order of preference.
        root: the workspace that relative paths start from.
        seed: the run's.
        left_out: gets what is no prompt; complete when the last prompt has come.

    Raises:
        DataError: at the end, listing every source that can't be loaded.
    """
    across: list[Failure] = []
    problems: list[str] = []
    keys, ids = Seen(), Seen()
    for source in sources:
        try:
            for prompt in _source_prompts(source, root, seed, left_out):
                if (key := prompt_key(prompt)) in keys:
                    left_out.duplicates += 1
                elif not ids.add(prompt.id):
                    across.append(_repeated_id(prompt, prompt.source))
                else:
                    keys.add(key)
                    yield prompt
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems))
    left_out.failures += across


def without_evaluated(train: Iterable[Prompt], evaluate: Sequence[Prompt], failures: list[Failure]) -> Iterator[Prompt]:
    """Make training prompts disjoint from evaluation prompts: yield those that `evaluate` hasn't, by id and by text.

    Args:
        train: training prompts.
        evaluate: evaluation prompts.
        failures: gets one for each that was left out.
    """
    keys = {prompt_key(p) for p in evaluate}
    ids = {p.id for p in evaluate}
    for p in train:
        if p.id in ids or prompt_key(p) in keys:
            failures.append(Failure(STAGE, p.id, "in_evaluate", f"{p.source}: also an evaluation prompt"))
        else:
            yield p


def without_near_repeats(
    train: Iterable[Prompt],
    evaluate: Sequence[Prompt],
    similarity: float | None,
    failures: list[Failure],
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[Prompt]:
    """Yield training prompts that don't say almost what an evaluation prompt or an earlier training prompt says.

    Args:
        train: training prompts.
        evaluate: prompts that training must not come near.
        similarity: Jaccard similarity of five-word runs, in (0, 1], from which two prompts are near-duplicates; None leaves nothing out.
        failures: gets one, naming the twin, for each that was left out.
        warn: told once if the prompts share so much wording that the search takes long.
    """
    if similarity is None:
        yield from train
        return
    warned = False
    with NearRepeats(similarity) as met:
        for p in evaluate:
            met.twin(_text(p), f"evaluation prompt {p.id} of {p.source}")
        for number, p in enumerate(train, 1):
            twin = met.twin(_text(p), f"prompt {p.id} of {p.source}")
            if met.comparisons > MANY_COMPARISONS and not warned:
                warned = True
                warn(
                    f"prompts.near_duplicates: {met.comparisons} comparisons for the first {number} prompts, because many share "
                    "some wording without being repeats. That grows with the square of their number; null leaves the search out, and drops "
                    "exact repeats only."
                )
            if twin is None:
                yield p
            else:
                failures.append(Failure(STAGE, p.id, "near_duplicate", f"{p.source}: repeats {twin}"))


def _text(prompt: Prompt) -> str:
    return "\n".join(m.content for m in prompt.messages)


def split_monitored(prompts: Sequence[Prompt], count: int, seed: int) -> "tuple[list[Prompt], list[Prompt]]":
    """Part evaluation prompts into those that a policy in training is watched on, and those that are left to measure it on.

    Weights that are chosen because they did well on some prompts do well on them by luck too, so what chooses must not be what measures.

    Args:
        prompts: all that are held out.
        count: how many to watch; never more than half of them, and one that is watched stays so when `count` grows.
        seed: the run's.

    Returns:
        The watched ones, sorted by id, and the rest, in the order they came in.
    """
    by_hash = sorted(prompts, key=lambda p: (split_fraction(p.id, f"watch:{seed}"), p.id))
    watched = {p.id: p for p in by_hash[: min(count, len(prompts) // 2)]}
    return [watched[i] for i in sorted(watched)], [p for p in prompts if p.id not in watched]


def is_hub(source: PromptSource, root: Path) -> bool:
    """Whether a source is a dataset on the Hub, not files here."""
    return source.path.startswith(HUB) or (source.format == "hub" and not (root / source.path).is_dir())


def _rows(source: PromptSource, root: Path) -> Iterator[tuple[Row, str]]:
    """Yield each row of a source with the name to put into its prompt's `source`."""
    if is_hub(source, root):
        yield from ((row, source.path) for row in dataset_rows(source.path.removeprefix(HUB), source.split, source.path))
        return
    for path in source_files(source.path, root):
        shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        if path.is_dir():
            yield from ((row, shown) for row in dataset_rows(str(path), source.split, source.path))
        else:
            yield from ((row, shown) for row in read_rows(path, _FILE_KINDS.get(source.format)))


def _read(item: tuple[Row, str], source: PromptSource) -> Iterator[tuple[Prompt | Failure, str]]:
    row, name = item
    try:
        yield _prompt(row, name, source), row.where
    except RowFault as e:
        yield Failure(STAGE, row.where, e.reason, e.detail), row.where
    except RecursionError:
        yield Failure(STAGE, row.where, "unreadable", "nested too deeply"), row.where


def _prompt(row: Row, name: str, source: PromptSource) -> Prompt:
    if row.fault:
        raise RowFault("unreadable", row.fault)
    value = row.value
    is_cai = source.format == "cai" or (source.format == "auto" and isinstance(value, dict) and {"id", "messages"} <= value.keys())
    if is_cai:
        return _cai_prompt(value, name, source)
    messages = prompt_part(messages_of(_conversation(value, source)))
    fields = value if isinstance(value, dict) else {}
    published = benchmark_kind(fields, name)
    kind, category = published or (fields.get("kind"), fields.get("category"))
    return Prompt(
        id=content_hash(messages),
        kind=kind if kind in PROMPT_KINDS else source.kind or "other",
        messages=messages,
        source=name,
        category=category if isinstance(category, str) and category else None,
    )


def _conversation(value: Any, source: PromptSource) -> Any:
    """Return the part of a row that holds the conversation."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if source.format == "text" else value
    if not isinstance(value, dict):
        raise RowFault("not_a_row", f"expected a mapping or a text, found {type(value).__name__}")
    wanted = ("chosen",) if source.format == "hh" else (source.field, "messages", "chosen")
    for column in wanted:
        if value.get(column) is not None:
            return value[column]
    raise RowFault("no_prompt_column", f"expected column {' or '.join(map(repr, wanted))}, found {', '.join(map(str, value)) or 'none'}")


def _cai_prompt(value: Any, name: str, source: PromptSource) -> Prompt:
    """Read cai's own format strictly: a misspelt kind is a fault, not `other`."""
    if not isinstance(value, dict):
        raise RowFault("not_a_row", f"expected a mapping with id, kind and messages, found {type(value).__name__}")
    identity = value.get("id")
    if not isinstance(identity, str | int) or identity == "":
        raise RowFault("no_id", "`id` must be a non-empty text or a number")
    kind: PromptKind = value.get("kind") or source.kind or "other"
    if kind not in PROMPT_KINDS:
        raise RowFault("unknown_kind", f"kind {kind!r}; expected {', '.join(PROMPT_KINDS)}")
    category = value.get("category")
    if category is not None and not isinstance(category, str):
        raise RowFault("bad_category", "`category` must be a text")
    return Prompt(str(identity), kind, as_prompt(messages_of(value.get("messages"))), name, category)


def _source_prompts(source: PromptSource, root: Path, seed: int, left_out: "SkippedRows") -> Iterator[Prompt]:
    """Yield the prompts of one source, in the order of its rows. Where it has a limit, the rows are read twice: first to see which to keep.

    Raises:
        DataError: it isn't there, can't be read, or has no usable prompt at all.
    """

    def rank(prompt: Prompt) -> tuple[float, str]:
        return split_fraction(prompt.id, f"limit:{seed}"), prompt.id

    def distinct(left_out: SkippedRows) -> Iterator[Prompt]:
        return _distinct((item for row in _rows(source, root) for item in _read(row, source)), left_out)

    last = None if source.limit is None else max(nsmallest(source.limit, map(rank, distinct(SkippedRows()))), default=None)
    rows, failed, usable = left_out.rows, len(left_out.failures), False
    for prompt in distinct(left_out):
        usable = True
        if last is None or rank(prompt) <= last:
            yield prompt
        else:
            left_out.over_limit += 1
    if not usable:
        first = "".join(f"\n  {f.item_id}: {f.detail}" for f in left_out.failures[failed:][:5])
        raise DataError(f"{source.path}: no usable prompt in {left_out.rows - rows} rows{first}")


def _distinct(items: Iterable[tuple[Prompt | Failure, str]], left_out: "SkippedRows") -> Iterator[Prompt]:
    """Yield the prompts that weren't there before."""
    keys, ids = Seen(), Seen()
    for item, where in items:
        left_out.rows += 1
        if isinstance(item, Failure):
            left_out.failures.append(item)
        elif (key := prompt_key(item)) in keys:
            left_out.duplicates += 1
        elif not ids.add(item.id):
            left_out.failures.append(_repeated_id(item, where))
        else:
            keys.add(key)
            yield item


def _repeated_id(prompt: Prompt, where: str) -> Failure:
    return Failure(STAGE, where, "repeated_id", f"id {prompt.id!r} already belongs to another prompt; give this one its own")


@dataclass
class SkippedRows:
    """What was met on the way to the prompts and is none."""

    rows: int = 0
    duplicates: int = 0
    over_limit: int = 0
    failures: list[Failure] = field(default_factory=list)
    """Rows that are no prompt; `item_id` is FILE:LINE."""

    @property
    def counts(self) -> dict[str, int]:
        """`rows` read, `duplicates`, `failed` (of which `empty`), `over_limit`; prompts = rows - duplicates - failed - over_limit."""
        empty = sum(f.reason == "empty" for f in self.failures)
        return {
            "rows": self.rows,
            "duplicates": self.duplicates,
            "empty": empty,
            "failed": len(self.failures),
            "over_limit": self.over_limit,
        }


@dataclass(frozen=True)
class LoadedPrompts:
    """Prompts and what was left out of them."""

    prompts: tuple[Prompt, ...]
    failures: tuple[Failure, ...]
    counts: dict[str, int]
    """As in `SkippedRows`."""
