"""Worked examples out of a run: only what its judge found better, the surest first, each with where it comes from."""

from pathlib import Path

import pytest

from cai.constitution.load import load_constitution
from cai.core.jsonl import write_records
from cai.core.workspace import RunDirectory
from cai.errors import ConstitutionError, DataError
from cai.records import Critique, Judgment, Message, Prompt, Provenance, ResponsePair, Revision, RevisionTrace, Round
from cai.workbench.examples import run_examples, write_guidelines
from tests.workspaces import ROOT, make_workspace, run_data

NOBODY = Provenance("m")


def prompt(i: int) -> Prompt:
    return Prompt(f"p{i}", "helpful", (Message("user", f"Question {i}?"),), "test")


def trace(i: int, p_revised: float | None, dropped: str | None = None, ids: tuple[str, ...] = ("kind",)) -> RevisionTrace:
    rounds = tuple(Round(Critique(name, f"Critique {i}."), Revision(name, f"Revision {i}.")) for name in ids)
    return RevisionTrace(prompt(i), f"Response {i}.", rounds, dropped, p_revised, NOBODY)


def judged(i: int, p_a: float | None, ids: tuple[str, ...] = ("true",)) -> tuple[ResponsePair, Judgment]:
    pair = ResponsePair(prompt(i), f"First {i}.", f"Second {i}.", "sampled", NOBODY)
    return pair, Judgment(pair.id, ids, "pairwise", p_a, None, None, None if p_a is not None else "empty", NOBODY)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "r")
    traces = [trace(0, 0.6), trace(1, 0.9), trace(2, 0.8), trace(3, 0.3), trace(4, None), trace(5, 0.99, "repetitive")]
    write_records(run.data("traces"), [*traces, trace(6, 0.99, ids=("kind", "true"))])
    both = [judged(10, 0.2), judged(11, 0.7), judged(12, 0.5), judged(13, None), judged(14, 0.99, ("true", "kind"))]
    write_records(run.data("pairs"), [p for p, _ in both])
    write_records(run.data("judgments"), [j for _, j in both])
    return run


def test_the_surest_come_first_and_only_what_was_found_better(run: RunDirectory) -> None:
    found = run_examples(run)
    assert [(e.principle, e.better, e.worse) for e in found] == [
        ("kind", "Revision 1.", "Response 1."),
        ("kind", "Revision 2.", "Response 2."),
        ("true", "Second 10.", "First 10."),
        ("true", "First 11.", "Second 11."),
    ]
    assert found[0].why == "Critique 1." and "run r; 90% better, says its judge" in found[0].source
    assert "80% better, says its judge (pairwise)" in found[2].source
    assert "nobody has judged it" in run_examples(run, 9)[3].source


def test_a_run_without_texts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no traces and no judgements"):
        run_examples(RunDirectory(tmp_path))


def test_guidelines_are_written_in_the_form_of_the_files_ending(tmp_path: Path) -> None:
    general = load_constitution(ROOT / "constitution" / "general.yaml")
    page = write_guidelines(general, ROOT / "constitution", tmp_path / "g.html", None)
    assert (tmp_path / "g.html").read_text() == page.text and page.text.startswith("<!doctype html>")
    assert (page.principles, page.examples, page.without_example) == (27, 27, ())
    bare = write_guidelines(general, tmp_path, tmp_path / "g.md", None)
    assert (tmp_path / "g.md").read_text().startswith("# General assistant: guidelines") and len(bare.without_example) == 27
    with pytest.raises(ConstitutionError, match=r"\.md or \.html"):
        write_guidelines(general, tmp_path, tmp_path / "g.pdf", None)


def test_a_real_runs_examples(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    general = load_constitution(ROOT / "constitution" / "general.yaml")
    made = write_guidelines(general, ROOT / "constitution", None, workspace.run("s"))
    assert made.examples > 5 and "says its judge" in made.text
