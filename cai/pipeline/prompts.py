"""Loads a run's training and evaluation prompts, and removes near-duplicates."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from cai.core.jsonl import read_records, write_records
from cai.core.workspace import file_hash
from cai.data.prompts import SkippedRows, load_all, stream_prompts, warn_of_columns, without_evaluated, without_near_repeats
from cai.errors import DataError, RecipeError
from cai.ids import content_hash
from cai.pipeline.context import Context
from cai.pipeline.methods import is_watched
from cai.recipe import PromptSource
from cai.records import Failure, Prompt


@dataclass(frozen=True)
class _Written:
    """Counts and failures of a run's prompts, kept until `respond` is done: the search for near-duplicates may take minutes."""

    of: str
    """Hash of everything that the prompts depend on, and of their files."""
    counts: dict[str, int]
    failures: tuple[Failure, ...]


def write_prompts(c: Context) -> dict[str, int]:
    """Write the training and evaluation prompts, unless an interrupted run of this stage wrote them already. Returns counts."""
    kept = c.run.unfinished / "prompts.jsonl"
    train_path, evaluate_path = paths = c.run.data("prompts"), c.run.data("eval_prompts")

    def written() -> str:
        return content_hash((c.fingerprint, [file_hash(path) for path in paths if path.exists()]))

    with contextlib.suppress(DataError):
        before = next(read_records(kept, _Written), None)
        if before and before.of == written():
            c.failures += before.failures
            return before.counts
    sources, root, seed = c.recipe.prompts, c.root, c.recipe.seed
    evaluate = load_all(sources.evaluate, root, seed)
    if is_watched(c.recipe) and len(evaluate.prompts) < 2:
        raise RecipeError(
            f"prompts.evaluate: {len(evaluate.prompts)} held-out prompts, and a watched policy needs two: one to choose it by, and another "
            "to measure it on. Add some, or set policy.watch.action: off"
        )
    left_out, leaked, near = SkippedRows(), list[Failure](), list[Failure]()
    train = without_evaluated(stream_prompts(sources.train, root, seed, left_out), evaluate.prompts, leaked)
    train = without_near_repeats(train, evaluate.prompts, sources.near_duplicates, near, c.reporter.warn)
    counts = {"prompts": write_records(train_path, train), "evaluation_prompts": write_records(evaluate_path, evaluate.prompts)}
    for skipped in (left_out, evaluate):
        warn_of_columns(skipped.columns, c.reporter.warn)
    if near:
        counts["near_duplicates"] = len(near)
    c.failures += [*left_out.failures, *leaked, *near, *evaluate.failures]
    write_records(kept, [_Written(written(), counts, tuple(c.failures))])
    return counts


def further_prompts(c: Context, sources: Sequence[PromptSource], *seen: str) -> list[Prompt]:
    """Return prompts without those that repeat one of the run's (`prompts`, `eval_prompts`), which are counted as failures."""
    loaded = load_all(sources, c.root, c.recipe.seed)
    warn_of_columns(loaded.columns, c.reporter.warn)
    c.failures += loaded.failures
    others = chain.from_iterable(c.read(name, Prompt) for name in seen)
    similarity = c.recipe.prompts.near_duplicates or 1.0
    return list(without_near_repeats(loaded.prompts, others, similarity, c.failures, c.reporter.warn, "prompt"))
