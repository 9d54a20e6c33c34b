"""The commands of `cai human`: import and export of labels, agreement, and the queue of pairs to label next."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cai.core.jsonl import first_record, read_existing, read_records, refuse_overwriting, refuse_replacing, write_records
from cai.core.workspace import PAIR_FILES, RunDirectory, find_run
from cai.data.export_formats.label_studio import TASK_FILES, label_tasks, refuse_foreign_tasks, write_tasks
from cai.data.filters import normalise, sides_by_hash, texts_key
from cai.data.rows import source_files
from cai.errors import DataError, RecipeError
from cai.labels.agreement import gold_accuracy, group_agreement, people_agreement
from cai.labels.answers import Choices
from cai.labels.load import LoadedLabels, load_label_files, load_pairs, local_sources
from cai.labels.people import described, load_people
from cai.labels.pooling import consensus, pair_key
from cai.labels.queue import Queued, choose_pairs
from cai.recipe import Pooling, load_recipe
from cai.records import EvalResult, Failure, HumanLabel, Judgment, Preference, PromptKind, ResponsePair, ScoredPair

OutFormat = Literal["label-studio", "preferences"]
QueueBy = Literal["uncertainty", "disagreement", "conflict"]
PREFERENCES = ("preferences", "preferences_heldout")


@dataclass(frozen=True)
class Imported:
    """Result of an import."""

    out: str
    labels: int
    pairs: int
    annotators: int
    rows: int
    formats: tuple[str, ...]
    rejected: dict[str, int]
    """Reason to number of rejected rows."""
    rejects: str | None
    """File that lists every rejected row; None without any."""
    doubts: dict[str, int]
    """Missing information in an export, to the number of labels that were imported without it."""
    undescribed: tuple[str, ...]
    """Annotators that are missing in `people`."""
    unused: tuple[str, ...]
    """Columns of the files that no label holds."""


def import_labels(
    files: Sequence[Path],
    out: Path,
    format: str,
    kind: PromptKind | None,
    columns: Mapping[str, str],
    people: Path | None = None,
    choices: Choices | None = None,
) -> tuple[Imported, tuple[Failure, ...]]:
    """Convert human labels from files of any known format into one file of `HumanLabel` records.

    Args:
        files: published label files, or exports of a labelling tool.
        out: JSONL file to write. Unusable rows are written to `NAME.rejected.jsonl` in the same folder.
        format: format of all files; `auto` detects it per file.
        kind: kind of the prompts whose row names none.
        columns: `cai`'s column name to the file's column name.
        people: table of annotators with their attributes, for exports without attributes.
        choices: what the answers mean; None: see `cai.labels.answers`.

    Raises:
        DataError: a file can't be read (lists all of them), `out` is one of the files, or `people` has none of the annotators.
        StoreError: `out` can't be written.
    """
    rejects = out.with_name(out.name.removesuffix(".jsonl") + ".rejected.jsonl")
    refuse_overwriting([out, rejects], [*files, *([people] if people else [])])
    refuse_replacing(out, first_record(HumanLabel))
    refuse_replacing(rejects, first_record(Failure))
    labels, failures, loaded = read_label_files(files, format, kind, columns, choices)
    undescribed: tuple[str, ...] = ()
    if people is not None:
        labels, undescribed = described(labels, load_people(people), people)
    write_records(out, labels)
    if failures:
        write_records(rejects, failures)
    else:
        rejects.unlink(missing_ok=True)
    return Imported(
        str(out),
        len(labels),
        len({pair_key(label) for label in labels}),
        len({label.annotator for label in labels if label.annotator}),
        sum(part.rows for part in loaded),
        tuple(part.format for part in loaded),
        dict(Counter(f.reason for f in failures)),
        str(rejects) if failures else None,
        dict(sum((Counter(part.doubts) for part in loaded), Counter[str]())),
        undescribed,
        tuple(dict.fromkeys(name for part in loaded for name in part.unused)),
    ), failures


def read_label_files(
    files: Sequence[Path],
    format: str = "auto",
    kind: PromptKind | None = None,
    columns: Mapping[str, str] | None = None,
    choices: Choices | None = None,
) -> tuple[tuple[HumanLabel, ...], tuple[Failure, ...], tuple[LoadedLabels, ...]]:
    """Read labels from several files. Raises `DataError` listing every file that can't be read."""
    loaded = load_label_files(files, format, kind, columns, choices)
    labels = tuple(label for part in loaded for label in part.labels)
    return labels, tuple(f for part in loaded for f in part.failures), loaded


def export_human(what: str, out: Path, format: OutFormat, pooling: Pooling, smoothing: float) -> tuple[int, tuple[str, ...]]:
    """Write tasks for annotators, or human labels as soft preferences.

    Args:
        what: a file of labels or pairs; for tasks also a run, whose preferences become tasks.
        out: folder for tasks, or JSONL file for preferences.
        format: `label-studio` or `preferences`.
        pooling: how several labels of a pair are pooled.
        smoothing: see `pool_labels`.

    Returns:
        The number of tasks or preferences, and the files written.

    Raises:
        DataError: there is nothing to write, or `out` is the input file.
    """
    if format == "preferences":
        refuse_overwriting([out], [Path(what)])
        refuse_replacing(out, first_record(Preference))
        pairs = load_pairs(Path(what), pooling=pooling, smoothing=smoothing).preferences
        return write_records(out, pairs), (str(out),)
    written = [out / name for name in TASK_FILES]
    refuse_overwriting(written, [Path(what)])
    refuse_foreign_tasks(*written)
    tasks = label_tasks(_pairs_of(what))
    if not tasks:
        raise DataError(f"{what}: no pair to make a task of")
    write_tasks(tasks, written[0])
    return len(tasks), tuple(map(str, written))


def _pairs_of(what: str) -> list[ResponsePair]:
    if Path(what).is_file():
        labels, _, _ = read_label_files([Path(what)])
        return [label.pair for label in labels]
    try:
        run = find_run(what)
    except (DataError, RecipeError) as e:
        raise DataError(f"{what}: no such file, and no run either ({e})") from e
    if not any(run.data(name).exists() for name in PREFERENCES):
        raise DataError(f"{what}: the run has no preferences yet. `cai run RECIPE` makes them.")
    return [p.pair for p in _preferences(run)]


def _preferences(run: RunDirectory) -> Iterator[Preference]:
    return (p for name in PREFERENCES for p in read_existing(run.data(name), Preference))


def measure_people(labels: Sequence[HumanLabel], gold: Path | None, seed: int) -> list[EvalResult]:
    """Return the agreement among annotators, overall and by group, and their accuracy on gold questions if a gold file is given.

    Raises:
        DataError: the gold file can't be read, or shares no pair with the labels.
    """
    results = [*people_agreement(labels, seed), *group_agreement(labels, seed)]
    if gold is not None:
        answers = gold_answers(gold)
        right = gold_accuracy(labels, answers)
        if not right:
            raise DataError(f"{gold}: none of its {len(answers)} pairs was labelled by a person with a name")
        results += right
    return results


def gold_answers(path: Path) -> dict[str, float]:
    """Return the right answers to gold questions: pair to the probability that the first response, in hashed order, is better."""
    answers = {}
    for p in load_pairs(path).preferences:
        first, _ = sides_by_hash(p.prompt, p.chosen, p.rejected)
        answers[texts_key(p.prompt, p.chosen, p.rejected)] = p.p_chosen if first == p.chosen else 1.0 - p.p_chosen
    return answers


def label_queue(run: RunDirectory, root: Path, by: QueueBy, n: int, out: Path | None, labels: Sequence[Path]) -> list[Queued]:
    """Return the pairs of a run that annotators should label next, most informative first, and write them to `out`.

    Args:
        root: folder of its workspace, where the recipe's human labels are.
        by: `uncertainty`: the judge's probability is near ½. `disagreement`: the reward models disagree. `conflict`: annotators and the
            judge prefer different responses, so another annotator should decide.
        n: maximum number of pairs.
        out: `.jsonl` for pairs with score and reason, any other name for Label Studio tasks. None writes nothing.
        labels: files of human labels, in addition to the recipe's. Pairs in them are skipped, except with `conflict`.

    Raises:
        DataError: the run lacks the data for `by`, or no pair is left to label.
    """
    recipe = load_recipe(run.path / "recipe.yaml")
    files = [*labels, *(path for source in local_sources(recipe.preferences.human) for path in source_files(source, root))]
    config = None if out is None or out.suffix == ".jsonl" else out.with_name(TASK_FILES[1])
    refuse_overwriting([out, config], [*files, run.path / "recipe.yaml", run.path / "data"])
    if out is not None and config is not None:
        refuse_foreign_tasks(out, config)
    else:
        refuse_replacing(out, first_record(Queued))
    people = consensus(read_label_files(files)[0]) if files else {}
    candidates = {"uncertainty": _uncertain, "disagreement": _disputed, "conflict": _conflicting}[by](run, people)
    chosen = choose_pairs(candidates, n, frozenset() if by == "conflict" else frozenset(people))
    if not chosen:
        raise DataError(f"{run.path}: no pair to ask people about by {by}{'' if candidates else ': there are no candidates'}")
    if out is not None and out.suffix == ".jsonl":
        write_records(out, chosen)
    elif out is not None:
        write_tasks(label_tasks(c.pair for c in chosen), out)
    return chosen


def _judged_pairs(run: RunDirectory) -> list[tuple[ResponsePair, float]]:
    if not run.data("judgments").exists():
        raise DataError(f"{run.path}: has no judgments yet. Run its feedback stage: cai label {run.path.name}")
    judged = {j.pair_id: j.p_a for j in read_records(run.data("judgments"), Judgment) if j.p_a is not None}
    pairs = (p for name in PAIR_FILES for p in read_existing(run.data(name), ResponsePair))
    return [(p, judged[p.id]) for p in pairs if p.id in judged]


def _uncertain(run: RunDirectory, people: Mapping[str, HumanLabel]) -> list[Queued]:
    return [Queued(p, 0.5 - abs(p_a - 0.5), f"the judge says {p_a:.3f} for A") for p, p_a in _judged_pairs(run)]


def _disputed(run: RunDirectory, people: Mapping[str, HumanLabel]) -> list[Queued]:
    scored = list(read_existing(run.data("reward_scores"), ScoredPair))
    if not any(len(s.chosen.members) > 1 for s in scored):
        raise DataError(
            f"{run.path}: no scores of a reward ensemble, whose members could disagree. Train one (--set reward.members=4) and run the "
            "reward stage, or ask by uncertainty"
        )
    margins = "the members' margins have a standard deviation of"
    spread = {s.pair_id: s.disagreement for s in scored if not s.source.startswith("human:")}
    return [Queued(p.pair, spread[p.id], f"{margins} {spread[p.id]:.3f}") for p in _preferences(run) if p.id in spread]


def _conflicting(run: RunDirectory, people: Mapping[str, HumanLabel]) -> list[Queued]:
    found, shared = [], 0
    for pair, p_a in _judged_pairs(run):
        label = people.get(texts_key(pair.prompt, pair.response_a, pair.response_b))
        if label is None or label.p_a == 0.5:
            continue
        shared += 1
        said = label.p_a if normalise(label.pair.response_a) == normalise(pair.response_a) else 1.0 - label.p_a
        if (said - 0.5) * (p_a - 0.5) < 0:
            found.append(Queued(pair, abs(said - p_a), f"people say {said:.3f} for A, the judge {p_a:.3f}"))
    if not shared:
        raise DataError(
            f"{run.path}: people have labelled none of the pairs that the judge has. Choose some (cai human queue --by "
            "uncertainty), have them labelled, and name the file with --labels"
        )
    return found
