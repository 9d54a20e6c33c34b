"""What `cai human` does: labels in and out, agreement among people and of judges with them, and what people should label next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from cai.data.export import label_tasks, write_tasks
from cai.data.filters import sides_by_hash, texts_key
from cai.data.human import LoadedLabels, PairFormat, load_labels, load_pairs
from cai.data.pooling import pair_key
from cai.errors import DataError
from cai.evaluate.agreement import gold_accuracy, group_agreement, people_agreement
from cai.jsonl import read_records, write_records
from cai.recipe import Pooling
from cai.records import EvalResult, Failure, HumanLabel, Preference, Prompt, PromptKind
from cai.workspace import find_run

OutFormat = Literal["label-studio", "preferences"]


@dataclass(frozen=True)
class Imported:
    """What an import read and wrote."""

    out: str
    labels: int
    pairs: int
    annotators: int
    rows: int
    formats: tuple[str, ...]
    rejected: dict[str, int]
    """Reason to count."""
    rejects: str | None
    """File that names every rejected row; None where there is none."""


def import_labels(
    files: Sequence[Path], out: Path, format: str, kind: PromptKind | None, columns: Mapping[str, str]
) -> tuple[Imported, tuple[Failure, ...]]:
    """Read people's labels from files of any known format into one file of `HumanLabel` records.

    Args:
        files: what people published or a labelling tool exported.
        out: JSONL file to write; rows that can't be used go to `NAME.rejected.jsonl` beside it.
        format: of all files; `auto` recognises each.
        kind: for prompts that don't say it themselves.
        columns: our name of a column to theirs.

    Raises:
        DataError: listing every file that can't be read.
        StoreError: `out` can't be written.
    """
    labels, failures, loaded = read_label_files(files, format, kind, columns)
    write_records(out, labels)
    rejects = out.with_name(out.name.removesuffix(".jsonl") + ".rejected.jsonl")
    if failures:
        write_records(rejects, failures)
    else:
        rejects.unlink(missing_ok=True)
    reasons: dict[str, int] = {}
    for f in failures:
        reasons[f.reason] = reasons.get(f.reason, 0) + 1
    return Imported(
        str(out),
        len(labels),
        len({pair_key(label) for label in labels}),
        len({label.annotator for label in labels if label.annotator}),
        sum(part.rows for part in loaded),
        tuple(part.format for part in loaded),
        reasons,
        str(rejects) if failures else None,
    ), failures


def read_label_files(
    files: Sequence[Path], format: str = "auto", kind: PromptKind | None = None, columns: Mapping[str, str] | None = None
) -> tuple[tuple[HumanLabel, ...], tuple[Failure, ...], tuple[LoadedLabels, ...]]:
    """Read labels from several files. Raises `DataError` listing every file that can't be read."""
    loaded: list[LoadedLabels] = []
    problems: list[str] = []
    for path in files:
        try:
            loaded.append(load_labels(path, cast(PairFormat, format), kind, columns))
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems))
    labels = tuple(label for part in loaded for label in part.labels)
    return labels, tuple(f for part in loaded for f in part.failures), tuple(loaded)


def export_human(what: str, out: Path, format: OutFormat, pooling: Pooling, smoothing: float) -> tuple[int, tuple[str, ...]]:
    """Write tasks for people, or people's labels as soft preferences.

    Args:
        what: a file of labels or pairs; or, for tasks, a run, whose preferences become tasks.
        out: a folder for tasks, a JSONL file for preferences.
        format: `label-studio` or `preferences`.
        pooling: how several labels of a pair become one.
        smoothing: see `pool_labels`.

    Returns:
        How many, and the files written.

    Raises:
        DataError: there is nothing to write.
    """
    if format == "preferences":
        pairs = load_pairs(Path(what), pooling=pooling, smoothing=smoothing).preferences
        return write_records(out, pairs), (str(out),)
    tasks = label_tasks(_pairs_of(what))
    if not tasks:
        raise DataError(f"{what}: no pair to make a task of")
    write_tasks(tasks, out / "tasks.json")
    return len(tasks), (str(out / "tasks.json"), str(out / "labeling_config.xml"))


def _pairs_of(what: str) -> list[tuple[Prompt, str, str]]:
    if Path(what).is_file():
        labels, _, _ = read_label_files([Path(what)])
        return [(label.pair.prompt, label.pair.response_a, label.pair.response_b) for label in labels]
    run = find_run(what)
    paths = [run.data(name) for name in ("preferences", "preferences_heldout") if run.data(name).exists()]
    if not paths:
        raise DataError(f"{what}: neither a file of labels nor a run that has preferences. `cai run RECIPE` makes them.")
    return [(p.prompt, p.chosen, p.rejected) for path in paths for p in read_records(path, Preference)]


def measure_people(labels: Sequence[HumanLabel], gold: Path | None, seed: int) -> list[EvalResult]:
    """Return agreement among people, by group where attributes are known, and against gold questions where they are given.

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
    """Return the right answers to gold questions: pair to the probability that the first side, in hashed order, is better."""
    answers = {}
    for p in load_pairs(path).preferences:
        first, _ = sides_by_hash(p.prompt, p.chosen, p.rejected)
        answers[texts_key(p.prompt, p.chosen, p.rejected)] = p.p_chosen if first == p.chosen else 1.0 - p.p_chosen
    return answers
