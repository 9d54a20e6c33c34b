"""Loads human labels of pairs from published and exported formats, as labels or pooled into `Preference`s.

Used by `cai human import`, `cai judge bench --pairs`, human labels in a mixture, and to read back exports. Files are read by
`cai.labels.files`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cai.data.filters import pooled, preference_key, softened
from cai.data.rows import HUB, Row, dataset_rows, read_rows, source_files
from cai.errors import DataError
from cai.ids import at_most
from cai.labels.answers import Choices
from cai.labels.columns import COLUMNS, is_column
from cai.labels.files import STAGE, nothing_usable, read_file, settle_answers
from cai.labels.formats import pair_formats
from cai.labels.pooling import counted_once, pool_rows
from cai.labels.readings import PairRow
from cai.recipe import HumanSource, Pooling, PromptSource
from cai.records import Failure, HumanLabel, Preference, PromptKind

NOT_IN_LABELS = ("weight", "principle_ids")
"""Columns of preferences that a `HumanLabel` doesn't hold."""


def load_pairs(
    path: Path,
    format: str = "auto",
    kind: PromptKind | None = None,
    limit: int | None = None,
    seed: int = 0,
    pooling: Pooling = "votes",
    smoothing: float = 0.0,
) -> "LoadedPairs":
    """Load labelled pairs from a file.

    All labels of the same two texts are pooled into one soft preference. Ties, identical responses and pairs with different prompts are
    counted as failures.

    Args:
        path: JSONL, JSON array, CSV or Parquet, plain or `.gz`.
        format: name of a pair format (`cai.labels.formats`), or `auto`.
        kind: kind of the prompts whose row names none; None: `other`.
        limit: maximum number of pairs, chosen by a hash of the seed and the pair's id; raising it only adds pairs.
        seed: see `limit`.
        pooling: how several labels of one pair are pooled.
        smoothing: see `pool_rows`.

    Raises:
        DataError: the file can't be read, its format isn't recognised, or it has no usable pair.
    """
    (file,) = files = [read_file(read_rows(path), path.name, str(path), format, kind, {})]
    settle_answers(files, None)
    failures, preferences = _decide(_pool(file.readings, pooling, smoothing))
    failures = [*file.failures, *failures]
    if not preferences:
        raise nothing_usable("pair", file, failures)
    return LoadedPairs(limited(preferences, limit, seed), tuple(failures), file.format, file.unused)


def load_label_files(
    paths: Sequence[Path],
    format: str = "auto",
    kind: PromptKind | None = None,
    columns: Mapping[str, str] | None = None,
    choices: Choices | None = None,
) -> tuple["LoadedLabels", ...]:
    """Load all human labels from several files, ties included. What an answer means is decided by the column of all files together.

    Args:
        paths: as for `load_pairs`.
        format: as for `load_pairs`.
        kind: as for `load_pairs`.
        columns: `cai`'s column name to the file's column name.
        choices: what the answers mean; None: see `cai.labels.answers`.

    Raises:
        DataError: a file can't be read, its format isn't recognised, it has no human label, a column is unknown or missing, or the answers
            can't be read; lists all of them.
    """
    if unknown := [ours for ours in columns or () if not is_column(ours)]:
        raise DataError(f"no format has a column {', '.join(map(repr, unknown))} that could be read from another; there are: {COLUMNS}")
    files, problems = [], []
    for path in paths:
        try:
            files.append(read_file(read_rows(path), path.name, str(path), format, kind, columns or {}))
        except DataError as e:
            problems.append(str(e))
    if not problems:
        settle_answers(files, choices)
    loaded = []
    for file in files:
        labels = []
        for where, one in file.readings:
            if one.by_person:
                labels.append(one.label)
            else:
                file.failures.append(Failure(STAGE, where, "not_human", f"its source is {one.preference.source}: not a person's label"))
        if not labels and not problems:
            problems.append(str(nothing_usable("label", file, file.failures)))
        doubts = Counter(one.doubt for _, one in file.readings if one.doubt)
        lost = [c for c in NOT_IN_LABELS if c in file.columns and c not in file.unused and not pair_formats()[file.format].own]
        loaded.append(LoadedLabels(tuple(labels), tuple(file.failures), file.format, file.rows, doubts, (*file.unused, *lost)))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(loaded)


def load_texts(path: Path) -> tuple[tuple[Preference, ...], tuple[Failure, ...]]:
    """Load the pairs of a labelled file to label them again, including ties and AI labels.

    Returns:
        The pairs, of which only the texts are used, and the unusable rows.

    Raises:
        DataError: the file can't be read, or its format isn't recognised.
    """
    file = read_file(read_rows(path), path.name, str(path), "auto", None, {})
    return tuple(one.preference for _, one in file.readings), tuple(file.failures)


def load_human(
    sources: Sequence[HumanSource], root: Path, seed: int, say: Callable[[str], None] = lambda text: None
) -> tuple[tuple[Preference, ...], tuple[Failure, ...]]:
    """Load the human labels of a recipe, with each source's weight, temperature and noise applied.

    The files of a source are one source: their labels are pooled together, and then limited. Labels of the same two texts in several
    sources are pooled too, by their number times the source's weight. An annotator who answered a pair in several sources has one vote, as
    `counted_once` says.

    Args:
        sources: the recipe's sources.
        root: workspace folder that relative paths start from.
        seed: the run's seed.
        say: called with the columns of each source that are not used, and with the number of answers that another source replaces.

    Returns:
        The preferences and the unusable rows.

    Raises:
        DataError: a source can't be loaded; lists all of them.
    """
    found: list[_Source] = []
    failures: list[Failure] = []
    problems: list[str] = []
    for source in sources:
        try:
            files = [read_file(rows, name, where, "auto", source.kind, {}) for rows, name, where in _source_rows(source, root)]
            settle_answers(files, None)
            readings = [reading for file in files for reading in file.readings]
            pairs = _pool(readings, source.pooling, source.smoothing)
            if empty := [file for file in files if not file.readings]:
                raise nothing_usable("pair", empty[0], empty[0].failures)
            if unused := sorted({name for file in files for name in file.unused}):
                say(f"{source.path}: columns not used: {', '.join(unused)}")
        except DataError as e:
            problems.append(str(e))
            continue
        failures += [f for file in files for f in file.failures]
        kept = {id(p) for p in limited([p.preference for p in pairs if p.preference.p_chosen != 0.5], source.limit, seed)}
        found.append(_Source(source, readings, [p for p in pairs if p.preference.p_chosen == 0.5 or id(p.preference) in kept]))
    if problems:
        raise DataError("\n".join(problems))
    undecided, preferences = _decide(_across(_each_once(found, say)))
    return tuple(preferences), (*failures, *undecided)


def limited(preferences: Sequence[Preference], limit: int | None, seed: int) -> tuple[Preference, ...]:
    """Keep at most `limit` preferences, chosen by a hash of the seed and their ids, in their order. Raising the limit only adds some."""
    return at_most(preferences, limit, f"limit:{seed}")


def local_sources(sources: Sequence[HumanSource | PromptSource]) -> list[str]:
    """Return the paths and globs of labels or prompts that are not named as datasets of the Hub."""
    return [s.path for s in sources if not s.path.startswith(HUB)]


def _source_rows(source: HumanSource, root: Path) -> Iterator[tuple[Iterable[Row], str, str]]:
    if source.path.startswith(HUB):
        yield dataset_rows(source.path.removeprefix(HUB), source.split, source.path), source.path, source.path
        return
    for path in source_files(source.path, root):
        rows = dataset_rows(str(path), source.split, source.path) if path.is_dir() else read_rows(path)
        yield rows, path.name, str(path)


@dataclass(frozen=True, slots=True)
class _Pooled:
    """The pooled labels of one pair."""

    where: str
    """Where the first of them is."""
    preference: Preference
    votes: int


@dataclass(frozen=True, slots=True)
class _Source:
    """What was read of one source."""

    config: HumanSource
    readings: list[tuple[str, PairRow]]
    pairs: list[_Pooled]
    """Within its limit."""


def _pool(readings: Sequence[tuple[str, PairRow]], pooling: Pooling, smoothing: float) -> list[_Pooled]:
    """Pool the labels of people by the texts of their pairs. Labels of others are left as they are."""
    made = pool_rows([one for _, one in readings if one.by_person], pooling, smoothing)
    by_key = {preference_key(p): (p, votes) for p, votes in made}
    found = []
    for where, one in readings:
        if not one.by_person:
            p = one.preference
            found.append(_Pooled(where, p if p.p_chosen >= 0.5 else p.swapped(), 1))
        elif mine := by_key.pop(preference_key(one.preference), None):
            found.append(_Pooled(where, *mine))
    return found


def _each_once(sources: Sequence[_Source], say: Callable[[str], None]) -> list[_Pooled]:
    """Return the pairs of all sources, softened, pooled again where answers are replaced by another source's."""
    replaced = 0
    if sum(any(one.annotator for _, one in source.readings) for source in sources) > 1:
        sources, replaced = _without_replaced(sources)
    if replaced:
        say(
            f"{replaced} human labels don't count: their annotator answered the same pair in another source, later or, without times, in "
            "one that is listed later; or the pair was adjudicated there"
        )
    return [replace(p, preference=softened(p.preference, source.config)) for source in sources for p in source.pairs]


def _without_replaced(sources: Sequence[_Source]) -> tuple[list[_Source], int]:
    """Pool each source's answers again without those that another source replaces; return the sources, and how many these are."""
    keys = [{preference_key(p.preference) for p in source.pairs} for source in sources]
    within = [[r for r in source.readings if preference_key(r[1].preference) in mine] for source, mine in zip(sources, keys, strict=True)]
    counts = counted_once([[one for _, one in readings if one.by_person] for readings in within])
    found, replaced = [], 0
    for number, (source, readings, mine) in enumerate(zip(sources, within, keys, strict=True)):
        out = {id(one) for _, one in readings if one.by_person and not counts(number, one)}
        if out:
            left = _pool([r for r in source.readings if id(r[1]) not in out], source.config.pooling, source.config.smoothing)
            source = replace(source, pairs=[p for p in left if preference_key(p.preference) in mine])
        found.append(source)
        replaced += len(out)
    return found, replaced


def _across(found: Sequence[_Pooled]) -> list[_Pooled]:
    """Pool what several sources say about the same two texts. Labels that aren't people's are left as they are."""
    groups: dict[str, list[_Pooled]] = {}
    for number, one in enumerate(found):
        by_person = one.preference.source.startswith("human:")
        groups.setdefault(preference_key(one.preference) if by_person else str(number), []).append(one)
    return [
        group[0]
        if len(group) == 1
        else _Pooled(group[0].where, pooled([p.preference for p in group], [p.votes for p in group]), sum(p.votes for p in group))
        for group in groups.values()
    ]


def _decide(found: Sequence[_Pooled]) -> tuple[list[Failure], list[Preference]]:
    """Return a failure for every tie, and the other preferences."""
    ties = [Failure(STAGE, p.where, "tie", "neither response is preferred") for p in found if p.preference.p_chosen == 0.5]
    return ties, [p.preference for p in found if p.preference.p_chosen != 0.5]


@dataclass(frozen=True)
class LoadedPairs:
    """Labelled pairs and the unusable rows."""

    preferences: tuple[Preference, ...]
    failures: tuple[Failure, ...]
    """Unusable rows; `item_id` is FILE:LINE, or FILE for a pair whose pooled labels tie."""
    format: str
    unused: tuple[str, ...] = ()
    """Columns that were not used."""


@dataclass(frozen=True)
class LoadedLabels:
    """Human labels and the unusable rows."""

    labels: tuple[HumanLabel, ...]
    failures: tuple[Failure, ...]
    """`item_id` is FILE:LINE."""
    format: str
    rows: int
    doubts: Mapping[str, int]
    """`PairRow.doubt` to its number of labels."""
    unused: tuple[str, ...] = ()
    """Columns that were not used."""
