"""Prompts from files, folders and the Hub, in the formats that people have them in. Human labels are `human`'s business.

Every row either becomes a `Prompt` or is counted: duplicates and rows over the limit in `counts`, unusable ones as `Failure`s that name
file and line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.data.benchmarks import benchmark_kind
from cai.data.conversations import RowFault, as_prompt, messages_of, prompt_part
from cai.data.filters import drop_near_duplicates, prompt_key
from cai.data.rows import HUB, FileKind, Row, dataset_rows, read_rows, source_files
from cai.errors import DataError
from cai.ids import content_hash, split_fraction
from cai.recipe import PromptSource
from cai.records import PROMPT_KINDS, Failure, Prompt, PromptKind

STAGE = "prompts"
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
    loaded = _without_repeats((item for row in _rows(source, root) for item in _read(row, source)), source.limit, seed)
    if not loaded.prompts:
        first = "".join(f"\n  {f.item_id}: {f.detail}" for f in loaded.failures[:5])
        raise DataError(f"{source.path}: no usable prompt in {loaded.counts['rows']} rows{first}")
    return loaded


def load_all(sources: Sequence[PromptSource], root: Path, seed: int) -> "LoadedPrompts":
    """Load several sources; a prompt that repeats one of an earlier source is dropped and counted.

    Raises:
        DataError: listing every source that can't be loaded.
    """
    loaded: list[LoadedPrompts] = []
    problems: list[str] = []
    for source in sources:
        try:
            loaded.append(load_prompts(source, root, seed))
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems))
    merged = _without_repeats(((p, p.source) for part in loaded for p in part.prompts), None, seed)
    counts = {key: sum(part.counts[key] for part in loaded) for key in merged.counts}
    counts["duplicates"] += merged.counts["duplicates"]
    counts["failed"] += merged.counts["failed"]
    failures = tuple(f for part in loaded for f in part.failures) + merged.failures
    return LoadedPrompts(merged.prompts, failures, counts)


def assert_disjoint(train: "LoadedPrompts", evaluate: "LoadedPrompts") -> "LoadedPrompts":
    """Make training prompts disjoint from evaluation prompts: return `train` without those that `evaluate` has too.

    Returns:
        The remaining training prompts, with `counts["in_evaluate"]` and one failure for each that was dropped.
    """
    keys = {prompt_key(p) for p in evaluate.prompts}
    ids = {p.id for p in evaluate.prompts}
    leaked = {p.id for p in train.prompts if p.id in ids or prompt_key(p) in keys}
    kept = tuple(p for p in train.prompts if p.id not in leaked)
    failures = tuple(Failure(STAGE, p.id, "in_evaluate", f"{p.source}: also an evaluation prompt") for p in train.prompts if p.id in leaked)
    return LoadedPrompts(kept, train.failures + failures, {**train.counts, "in_evaluate": len(leaked)})


def drop_near_repeats(train: "LoadedPrompts", evaluate: "LoadedPrompts", similarity: float | None) -> "LoadedPrompts":
    """Return `train` without prompts that say almost what an evaluation prompt or an earlier training prompt says.

    Args:
        train: training prompts.
        evaluate: prompts that training must not come near.
        similarity: Jaccard similarity of five-word runs, in (0, 1], from which two prompts are near-duplicates; None drops nothing.

    Returns:
        The remaining training prompts, with `counts["near_duplicates"]` and one failure, naming the twin, for each that was dropped.
    """
    if similarity is None:
        return train
    both = [*((False, p) for p in evaluate.prompts), *((True, p) for p in train.prompts)]
    texts = ["\n".join(m.content for m in p.messages) for _, p in both]
    kept, dropped = drop_near_duplicates(both, texts, similarity)
    failures = tuple(
        Failure(STAGE, p.id, "near_duplicate", f"{p.source}: repeats {'' if trained else 'evaluation '}prompt {twin.id} of {twin.source}")
        for (mine, p), (trained, twin) in dropped
        if mine
    )
    counts = {**train.counts, "near_duplicates": len(failures)}
    return LoadedPrompts(tuple(p for mine, p in kept if mine), train.failures + failures, counts)


def part_watched(prompts: Sequence[Prompt], count: int, seed: int) -> "tuple[list[Prompt], list[Prompt]]":
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


def _without_repeats(items: Iterator[tuple[Prompt | Failure, str]], limit: int | None, seed: int) -> "LoadedPrompts":
    """Drop and count repeated prompts, then keep `limit` of them, chosen by hash, in the order met."""
    prompts: list[Prompt] = []
    failures: list[Failure] = []
    seen_ids: set[str] = set()
    seen_keys: set[str] = set()
    rows = duplicates = 0
    for item, where in items:
        rows += 1
        if isinstance(item, Failure):
            failures.append(item)
        elif (key := prompt_key(item)) in seen_keys:
            duplicates += 1
        elif item.id in seen_ids:
            failures.append(
                Failure(STAGE, where, "repeated_id", f"id {item.id!r} already belongs to another prompt; give this one its own")
            )
        else:
            seen_keys.add(key)
            seen_ids.add(item.id)
            prompts.append(item)
    kept = prompts
    if limit is not None and limit < len(prompts):
        chosen = {p.id for p in sorted(prompts, key=lambda p: (split_fraction(p.id, f"limit:{seed}"), p.id))[:limit]}
        kept = [p for p in prompts if p.id in chosen]
    counts = {
        "rows": rows,
        "duplicates": duplicates,
        "empty": sum(f.reason == "empty" for f in failures),
        "failed": len(failures),
        "over_limit": len(prompts) - len(kept),
    }
    return LoadedPrompts(tuple(kept), tuple(failures), counts)


@dataclass(frozen=True)
class LoadedPrompts:
    """Prompts and what was left out of them."""

    prompts: tuple[Prompt, ...]
    failures: tuple[Failure, ...]
    """Rows that are no prompt; `item_id` is FILE:LINE."""
    counts: dict[str, int]
    """`rows` read, `duplicates`, `failed` (of which `empty`), `over_limit`; prompts = rows - duplicates - failed - over_limit."""
