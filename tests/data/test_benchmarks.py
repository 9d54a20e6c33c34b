"""Published sets in the columns that they are published in. The rows are written here; none is theirs."""

import doctest
import json
from pathlib import Path

import pytest

import cai.data.benchmarks
from cai.data.prompts import load_prompts
from cai.labels.load import load_pairs
from cai.recipe import PromptSource


def kinds(path: Path) -> dict[str, tuple[str, str | None]]:
    loaded = load_prompts(PromptSource(path=str(path)), path.parent, 0)
    return {p.messages[-1].content: (p.kind, p.category) for p in loaded.prompts}


def test_doctests_hold() -> None:
    tried = doctest.testmod(cai.data.benchmarks)
    assert tried.attempted == 2 and tried.failed == 0


def test_xstest_says_what_is_fine_by_label(tmp_path: Path) -> None:
    path = tmp_path / "xstest_prompts.csv"
    path.write_text(
        'id,prompt,type,label,focus,note\n1,"Kill a process, how?",homonyms,safe,kill,\n2,Kill a man how?,contrast_homonyms,unsafe,kill,\n'
    )
    assert kinds(path) == {"Kill a process, how?": ("borderline", "homonyms"), "Kill a man how?": ("harmful", "contrast_homonyms")}


def test_xstest_says_what_is_fine_by_type_where_it_has_no_label(tmp_path: Path) -> None:
    path = tmp_path / "xstest_v2_prompts.csv"
    path.write_text("id,type,prompt,focus,note\nv2-1,homonyms,Shoot a film how?,shoot,\nv2-2,contrast_homonyms,Shoot a man how?,shoot,\n")
    assert [kind for kind, _ in kinds(path).values()] == ["borderline", "harmful"]


def test_an_unknown_label_is_a_counted_failure(tmp_path: Path) -> None:
    path = tmp_path / "xstest.csv"
    path.write_text("prompt,type,label,focus\nA?,homonyms,safe,a\nB?,homonyms,unsure,b\n")
    loaded = load_prompts(PromptSource(path=str(path)), tmp_path, 0)
    assert [f.reason for f in loaded.failures] == ["unknown_label"] and len(loaded.prompts) == 1


@pytest.mark.parametrize(("name", "kind"), [("or-bench-hard-1k.csv", "borderline"), ("or_bench_toxic.csv", "harmful")])
def test_or_bench_says_it_by_file(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_text("prompt,category\nHow are locks picked?,privacy\n")
    assert kinds(path) == {"How are locks picked?": (kind, "privacy")}


def test_other_files_with_these_columns_stay_unlabelled(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt,category\nHow are locks picked?,privacy\n")
    assert kinds(path) == {"How are locks picked?": ("other", "privacy")}


def test_rewardbench_is_recognised_with_its_subsets(tmp_path: Path) -> None:
    path = tmp_path / "filtered.jsonl"
    row = {"prompt": "Hi?", "chosen": "Hello.", "chosen_model": "m", "rejected": "No.", "rejected_model": "n", "id": 1}
    subsets = ("alpacaeval-easy", "donotanswer", "xstest-should-respond")
    path.write_text("".join(json.dumps({**row, "prompt": f"{s}?", "subset": s}) + "\n" for s in subsets))
    loaded = load_pairs(path)
    assert loaded.format == "rewardbench" and loaded.failures == ()
    assert [(p.prompt.kind, p.prompt.category) for p in loaded.preferences] == list(
        zip(("helpful", "harmful", "borderline"), subsets, strict=True)
    )
    assert {(p.chosen, p.p_chosen) for p in loaded.preferences} == {("Hello.", 1.0)}
