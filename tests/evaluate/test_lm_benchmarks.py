"""lm-eval's items as results: on a task of the test's own where the extra is installed, and refusals."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cai.errors import RecipeError
from cai.evaluate.lm_benchmarks import _note, benchmark_models
from cai.recipe import ModelSpec

TASK = """\
task: own_letters
dataset_path: json
dataset_kwargs: {{ data_files: {{ test: {data} }} }}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{ metric: acc, aggregation: mean, higher_is_better: true }}]
"""


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RecipeError, match=r"pip install 'cai\[lm-eval\]'"):
        benchmark_models({"model": "embedded"}, ["arc_easy"])


def test_a_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(RecipeError, match="is a server"):
        benchmark_models({"model": "http://127.0.0.1:1/v1#m"}, ["arc_easy"])


def test_only_yes_or_no_is_counted_and_filters_stay_apart() -> None:
    items: dict[str, dict[str, bool]] = {}
    sample = {"doc_id": 3, "doc_hash": "h", "filter": "none", "metrics": ["acc", "bpb"], "acc": 1.0, "bpb": 0.7}
    _note(items, "t", sample)
    _note(items, "t", {**sample, "filter": "strict", "metrics": ["acc"], "acc": 0.0})
    assert items == {"t:acc": {"3:h": True}, "t:acc:strict": {"3:h": False}}


@pytest.mark.filterwarnings("default")  # lm-eval's own
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the lm-eval extra is not installed")
def test_a_task_is_scored_item_by_item_and_compared(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"{i} is", "choices": [" a", " bb"], "label": i % 2} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "own.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    monkeypatch.setattr("cai.evaluate.lm_benchmarks.spec_from_name", lambda name: ModelSpec(path=name, precision="float32"))
    names = {"base": str(tiny_model_dir), "model": str(tiny_model_dir)}
    found = {(r.name, r.model): r for r in benchmark_models(names, ["own_letters"], limit=10, folder=tmp_path)}
    assert set(found) == {("own_letters:acc", "base"), ("own_letters:acc", "model"), ("own_letters:acc_change", "model")}
    changed = found["own_letters:acc_change", "model"]
    assert (changed.value, changed.n, changed.p, changed.p_adjusted) == (0, 10, 1.0, 1.0)
    assert 0 <= found["own_letters:acc", "base"].value <= 1
    with pytest.raises(RecipeError, match="no task nonsense"):
        benchmark_models(names, ["nonsense"], folder=tmp_path)
