"""Runs lm-eval benchmarks (the `lm-eval` extra) to measure the alignment tax.

lm-eval provides the tasks, their data (from the Hub, unless a task names files) and the scoring. This module turns its items into results
with confidence intervals and, against another model, McNemar's test on the same items. The benchmarks need log-probabilities, so they run
on local weights only.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.errors import ModelError, RecipeError
from cai.evaluate.paired import change_result, rate, shared_ids, unpaired_note
from cai.evaluate.policies import AGAINST, corrected
from cai.models.naming import spec_from_name
from cai.records import EvalResult

Items = Mapping[str, Mapping[str, bool]]
"""Task and metric, to item, to whether it was right."""


def benchmark_models(
    names: Mapping[str, str], tasks: Sequence[str], limit: int | None = None, folder: Path | None = None, batch_size: int = 8
) -> Sequence[EvalResult]:
    """Measure models on lm-eval tasks, and compare each with the one labelled `base`, if there is one.

    Args:
        names: label to model name, as `spec_from_name` takes it.
        tasks: lm-eval's names of tasks or groups. Only metrics that are right or wrong per item are used.
        limit: maximum number of items per task; None takes all.
        folder: folder of your own task files, used instead of lm-eval's tasks.
        batch_size: sequences per batch.

    Raises:
        RecipeError: lm-eval is not installed, a task is unknown, no metric is right or wrong per item, or a model is a server.
        ModelError: a model can't be loaded, or the tasks' data can't be downloaded.
    """
    check_benchmarks(names)
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    unknown = [t for t in tasks if t not in manager.all_tasks]
    if unknown or not tasks:
        raise RecipeError(f"--lm-eval: no task {', '.join(unknown) or 'is named'}. `lm_eval ls tasks` lists the tasks of lm-eval")
    items = {label: _right(name, tasks, limit, manager, batch_size) for label, name in names.items()}
    results: list[EvalResult] = []
    for label, mine in items.items():
        base = None if label == AGAINST else items.get(AGAINST)
        for key, right in mine.items():
            results.append(rate(key, label, list(right.values())))
            theirs = (base or {}).get(key, {})
            if ids := shared_ids(theirs, right):
                before, after = [theirs[i] for i in ids], [right[i] for i in ids]
                results.append(change_result(f"{key}_change", label, before, after, unpaired_note(theirs, right)))
    return corrected(results)


def check_benchmarks(names: Mapping[str, str]) -> None:
    """Raise `RecipeError` if lm-eval is not installed or a model is a server. Loads nothing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError("--lm-eval: lm-eval is not installed. Install it: pip install 'cai[lm-eval]'")
    servers = [name for name in names.values() if spec_from_name(name).is_server]
    if servers:
        raise RecipeError(
            f"--lm-eval: {', '.join(servers)} is a server, but the benchmarks need local weights. Name a folder or a Hub id instead"
        )


def _right(name: str, tasks: Sequence[str], limit: int | None, manager: Any, batch_size: int) -> dict[str, dict[str, bool]]:
    """Return whether one model got each item right, by task and metric."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from cai.models.local.loading import load_causal_lm, load_tokenizer

    spec = spec_from_name(name)
    model = HFLM(pretrained=load_causal_lm(spec), tokenizer=load_tokenizer(spec), batch_size=batch_size)
    try:
        found = simple_evaluate(model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0)
    except (OSError, ConnectionError) as e:
        raise ModelError(f"--lm-eval {','.join(tasks)}: can't load the tasks' data ({e})") from e
    items: dict[str, dict[str, bool]] = {}
    for task, samples in ((found or {}).get("samples") or {}).items():
        for sample in samples:
            _note(items, task, sample)
    if not items:
        raise RecipeError(f"--lm-eval {','.join(tasks)}: no metric of these tasks is right or wrong per item, so there is nothing to count")
    return items


def _note(items: dict[str, dict[str, bool]], task: str, sample: Mapping[str, Any]) -> None:
    """Record one item's binary metrics. The document hash is part of the key, so that items are matched by content."""
    by = "" if sample["filter"] == "none" else f":{sample['filter']}"
    for metric in sample["metrics"]:
        if sample[metric] in (0, 1):
            items.setdefault(f"{task}:{metric}{by}", {})[f"{sample['doc_id']}:{sample['doc_hash']}"] = bool(sample[metric])
