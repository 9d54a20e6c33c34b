"""Loads prompts from files, folders and the Hub, in the formats of `cai.data.prompt_formats`.

Each row either becomes a `Prompt` or is counted: duplicates and rows over the limit in `counts`, unusable rows as `Failure`s with file and
line. Prompts are streamed; what is kept of each is the hashes that detect duplicates.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path

from cai.core.console import printable
from cai.data.benchmarks import benchmark_kind
from cai.data.conversations import SYSTEM, RowFault
from cai.data.filters import prompt_key
from cai.data.kept import Kept, refuse_many
from cai.data.prompt_formats import PROMPT_FORMATS
from cai.data.repeats import NearRepeats, Seen
from cai.data.rows import HUB, Row, dataset_rows, read_rows, source_files
from cai.data.splits import MANY_COMPARISONS, NEEDLESS, compared_texts, conversation_id, split_groups, whole_text
from cai.errors import DataError
from cai.ids import split_fraction
from cai.recipe import PromptSource
from cai.records import Failure, Prompt

STAGE = "prompts"
_READ = {*SYSTEM, "id", "kind", "category", "messages", "chosen", "rejected"}
_BENCHMARK = {"type", "focus", "label", "note"}
_SHOWN_COLUMNS = 20


def load_prompts(source: PromptSource, root: Path, seed: int) -> "LoadedPrompts":
    """Load one source of a recipe.

    Format `auto` reads the column `field`, else `messages`, else the prompt of an hh-rlhf or TRL preference (`chosen`), row by row. A final
    assistant turn is removed.

    Args:
        source: path, format and limit.
        root: workspace folder that relative paths start from.
        seed: the run's seed; with the prompt's id it decides which prompts a limit keeps.

    Raises:
        DataError: the source doesn't exist, can't be read, or has no usable prompt.
    """
    left_out = SkippedRows()
    prompts = tuple(_kept(_source_prompts(source, root, seed, left_out), source.path))
    return LoadedPrompts(prompts, tuple(left_out.failures), left_out.counts, left_out.columns)


def load_all(sources: Sequence[PromptSource], root: Path, seed: int) -> "LoadedPrompts":
    """Load several sources into memory. See `stream_prompts`."""
    left_out = SkippedRows()
    prompts = tuple(_kept(stream_prompts(sources, root, seed, left_out), ", ".join(source.path for source in sources)))
    return LoadedPrompts(prompts, tuple(left_out.failures), left_out.counts, left_out.columns)


def _kept(prompts: Iterable[Prompt], where: str) -> Iterator[Prompt]:
    kept = Kept(where)
    for prompt in prompts:
        kept.add(prompt.category or "", *(m.content for m in prompt.messages))
        yield prompt


def stream_prompts(sources: Sequence[PromptSource], root: Path, seed: int, left_out: "SkippedRows") -> Iterator[Prompt]:
    """Yield the prompts of several sources. Duplicates of a prompt from an earlier source are left out and counted.

    Args:
        sources: in order of preference.
        root: workspace folder that relative paths start from.
        seed: the run's seed.
        left_out: collects skipped rows; complete after the last prompt.

    Raises:
        DataError: after the last prompt, listing every source that can't be loaded.
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


def warn_of_columns(columns: Mapping[str, Iterable[str]], say: Callable[[str], None]) -> None:
    """Name each source's unused columns, once."""
    for path, names in columns.items():
        if shown := sorted(names):
            say(f"{path}: columns not used: {', '.join(shown)}")


def without_evaluated(train: Iterable[Prompt], evaluate: Sequence[Prompt], failures: list[Failure]) -> Iterator[Prompt]:
    """Yield the training prompts that are not evaluation prompts, by id, by text, or by the first user turn of the conversation.

    Args:
        train: training prompts.
        evaluate: evaluation prompts.
        failures: collects one failure per prompt left out.
    """
    keys = {prompt_key(p) for p in evaluate}
    ids = {p.id for p in evaluate}
    conversations = {conversation_id(p): p.id for p in evaluate}
    for p in train:
        if p.id in ids or prompt_key(p) in keys:
            failures.append(Failure(STAGE, p.id, "in_evaluate", f"{p.source}: also an evaluation prompt"))
        elif twin := conversations.get(conversation_id(p)):
            failures.append(Failure(STAGE, p.id, "in_evaluate", f"{p.source}: opens like evaluation prompt {twin}"))
        else:
            yield p


def without_near_repeats(
    prompts: Iterable[Prompt],
    others: Iterable[Prompt],
    similarity: float | None,
    failures: list[Failure],
    warn: Callable[[str], None] = lambda text: None,
    called: str = "evaluation prompt",
) -> Iterator[Prompt]:
    """Yield prompts that are not near-duplicates of one of the others or of an earlier one of their own.

    The others are also compared by their first user turn: a conversation that opens like one with an edit is left out too.

    Args:
        prompts: to choose from.
        others: such as the evaluation prompts.
        similarity: Jaccard similarity of five-word n-grams, in (0, 1], from which two prompts are near-duplicates; None keeps all prompts.
        failures: collects one failure, naming the duplicated prompt, per prompt left out.
        warn: called once if the prompts share so much wording that the search takes long.
        called: what the others are, for the failures.
    """
    if similarity is None:
        yield from prompts
        return
    warned = False
    with NearRepeats(similarity) as theirs, NearRepeats(similarity) as met:
        for p in others:
            for text in compared_texts(p):
                theirs.keep(text, f"{called} {p.id} of {p.source}")
        for number, p in enumerate(prompts, 1):
            twin = next((t for text in compared_texts(p) for t in theirs.twins(text)), None)
            twin = twin or met.twin(whole_text(p), f"prompt {p.id} of {p.source}")
            if (comparisons := theirs.comparisons + met.comparisons) > MANY_COMPARISONS and not warned:
                warned = True
                warn(f"prompts.near_duplicates: {comparisons} comparisons for the first {number} prompts: {NEEDLESS}")
            if twin is None:
                yield p
            else:
                failures.append(Failure(STAGE, p.id, "near_duplicate", f"{p.source}: repeats {twin}"))


def split_monitored(prompts: Sequence[Prompt], count: int, seed: int) -> "tuple[list[Prompt], list[Prompt]]":
    """Split evaluation prompts into those of the over-optimization monitor and those to evaluate on.

    The monitor selects the policy's weights, so its prompts would give a biased evaluation. Prompts of one conversation and near-copies are
    on the same side, unless all prompts belong together.

    Args:
        prompts: all held-out prompts.
        count: maximum number of monitor prompts, at most half of all. Raising it only adds monitor prompts.
        seed: the run's seed.

    Returns:
        The monitor prompts, sorted by id, and the others, in their order.
    """
    by_hash = sorted(prompts, key=lambda p: (split_fraction(p.id, f"watch:{seed}"), p.id))
    most = min(count, len(prompts) // 2)
    group_of = split_groups(prompts)
    together: dict[str, list[Prompt]] = {}
    for p in by_hash:
        together.setdefault(group_of(p), []).append(p)
    watched: dict[str, Prompt] = {}
    for group in together.values():
        if len(watched) + len(group) > most:
            break
        watched |= {p.id: p for p in group}
    watched = watched or {p.id: p for p in by_hash[:most]}
    return [watched[i] for i in sorted(watched)], [p for p in prompts if p.id not in watched]


def is_hub(source: PromptSource, root: Path) -> bool:
    """Whether a source is a dataset on the Hub."""
    return source.path.startswith(HUB) or (PROMPT_FORMATS.get(source.format).on_hub and not (root / source.path).is_dir())


def _rows(source: PromptSource, root: Path) -> Iterator[tuple[Row, str]]:
    """Yield each row of a source with the name to put into its prompt's `source`."""
    if is_hub(source, root):
        yield from ((row, source.path) for row in dataset_rows(source.path.removeprefix(HUB), source.split, source.path))
        return
    for path in source_files(source.path, root):
        shown = printable(str(path.relative_to(root)) if path.is_relative_to(root) else str(path))
        if path.is_dir():
            yield from ((row, shown) for row in dataset_rows(str(path), source.split, source.path))
        else:
            yield from ((row, shown) for row in read_rows(path, PROMPT_FORMATS.get(source.format).file_kind))


def _read(item: tuple[Row, str], source: PromptSource, unused: dict[str, None]) -> Iterator[tuple[Prompt | Failure, str]]:
    row, name = item
    try:
        if row.fault:
            raise RowFault("unreadable", row.fault)
        prompt = PROMPT_FORMATS.get(source.format).read(row.value, name, source)
        if isinstance(row.value, dict) and len(unused) < _SHOWN_COLUMNS:
            read = {*_READ, source.field, *(() if benchmark_kind(row.value, name) is None else _BENCHMARK)}
            unused.update(dict.fromkeys(str(column)[:60] for column in row.value if column not in read))
        yield prompt, row.where
    except RowFault as e:
        yield Failure(STAGE, row.where, e.reason, e.detail), row.where
    except RecursionError:
        yield Failure(STAGE, row.where, "unreadable", "nested too deeply"), row.where


def _source_prompts(source: PromptSource, root: Path, seed: int, left_out: "SkippedRows") -> Iterator[Prompt]:
    """Yield the prompts of one source, in the order of its rows. With a limit, the rows are read twice: the first pass chooses the prompts.

    Raises:
        DataError: the source doesn't exist, can't be read, or has no usable prompt.
    """

    def rank(prompt: Prompt) -> tuple[float, str]:
        return split_fraction(prompt.id, f"limit:{seed}"), prompt.id

    def distinct(left_out: SkippedRows) -> Iterator[Prompt]:
        unused = left_out.columns.setdefault(source.path, {})
        return _distinct((item for row in _rows(source, root) for item in _read(row, source, unused)), left_out)

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
        refuse_many(left_out.failures)


def _repeated_id(prompt: Prompt, where: str) -> Failure:
    return Failure(STAGE, where, "repeated_id", f"id {prompt.id!r} already belongs to another prompt; give this one a unique id")


@dataclass
class SkippedRows:
    """Counts of rows, and the rows that were skipped."""

    rows: int = 0
    duplicates: int = 0
    over_limit: int = 0
    failures: list[Failure] = field(default_factory=list)
    """Unusable rows; `item_id` is FILE:LINE."""
    columns: dict[str, dict[str, None]] = field(default_factory=dict)
    """Columns that no prompt holds, by source."""

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
    """Loaded prompts, failures and counts."""

    prompts: tuple[Prompt, ...]
    failures: tuple[Failure, ...]
    counts: dict[str, int]
    """As in `SkippedRows`."""
    columns: Mapping[str, Iterable[str]] = field(default_factory=dict)
    """As in `SkippedRows`."""
