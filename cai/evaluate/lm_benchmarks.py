"""Likelihood benchmarks by lm-eval (the `lm-eval` extra), on the models that `cai` trains: what alignment cost them.

lm-eval brings the tasks, their data (from the Hub, unless a task names files) and the scoring; here its items become results with n,
intervals and, against another model, McNemar's test on the same items. Only local weights have the log-probabilities that it needs.
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
"""Task and metric to item to whether it was right."""


def benchmark_models(
    names: Mapping[str, str], tasks: Sequence[str], limit: int | None = None, folder: Path | None = None, batch_size: int = 8
) -> Sequence[EvalResult]:
    """Measure models on lm-eval tasks, each against the one called `base`, if there is one.

    Args:
        names: what to call each model, and which it is, as `spec_from_name` takes it.
        tasks: lm-eval's names, groups too. Metrics that are not right or wrong item by item are left out.
        limit: items per task; None takes all.
        folder: of task files of one's own, in place of lm-eval's.
        batch_size: sequences at once.

    Raises:
        RecipeError: lm-eval is not installed, knows no such task, or none of its metrics can be counted; or a model is a server.
        ModelError: a model can't be loaded, or the tasks' data can't be had.
    """
    check_benchmarks(names)
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    unknown = [t for t in tasks if t not in manager.all_tasks]
    if unknown or not tasks:
        raise RecipeError(f"--lm-eval: no task {', '.join(unknown) or 'is named'}. `lm_eval ls tasks` lists lm-eval's own")
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
    """Raise `RecipeError` where lm-eval is not installed, or a model is a server. Nothing is loaded."""
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError("--lm-eval: lm-eval is not installed. Install it: pip install 'cai[lm-eval]'")
    servers = [name for name in names.values() if spec_from_name(name).is_server]
    if servers:
        raise RecipeError(f"--lm-eval: {', '.join(servers)} is a server, whose log-probabilities can't be asked for. Name the weights")


def _right(name: str, tasks: Sequence[str], limit: int | None, manager: Any, batch_size: int) -> dict[str, dict[str, bool]]:
    """Return which items of which task and metric one model got right."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from cai.models.local.loading import load_causal_lm, load_tokenizer

    spec = spec_from_name(name)
    model = HFLM(pretrained=load_causal_lm(spec), tokenizer=load_tokenizer(spec), batch_size=batch_size)
    try:
        found = simple_evaluate(model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0)
    except (OSError, ConnectionError) as e:
        raise ModelError(f"--lm-eval {','.join(tasks)}: the tasks' data can't be had ({e})") from e
    items: dict[str, dict[str, bool]] = {}
    for task, samples in ((found or {}).get("samples") or {}).items():
        for sample in samples:
            _note(items, task, sample)
    if not items:
        raise RecipeError(f"--lm-eval {','.join(tasks)}: no metric is right or wrong item by item, so there is nothing to count")
    return items


def _note(items: dict[str, dict[str, bool]], task: str, sample: Mapping[str, Any]) -> None:
    """Put one item's yes-or-no metrics where they belong; its hash names it, so that items are matched by what they are."""
    by = "" if sample["filter"] == "none" else f":{sample['filter']}"
    for metric in sample["metrics"]:
        if sample[metric] in (0, 1):
            items.setdefault(f"{task}:{metric}{by}", {})[f"{sample['doc_id']}:{sample['doc_hash']}"] = bool(sample[metric])
