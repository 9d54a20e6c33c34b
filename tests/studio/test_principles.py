"""The page of one principle: what is shown of it out of runs and earlier versions."""

from dataclasses import replace
from pathlib import Path

import pytest

from cai.core.workspace import RunDirectory, Workspace
from cai.errors import DataError
from cai.studio.drafts import Drafts
from cai.studio.principle import PrinciplePage, principle_page
from tests.studio.principle_runs import MINE, SHORT, add_run
from tests.studio.serving import Served


@pytest.fixture
def drafts(workspace: Workspace) -> Drafts:
    (workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    return Drafts(workspace)


def page_of(drafts: Drafts, *runs: RunDirectory, id: str = "short", chosen: str = "") -> PrinciplePage:
    return principle_page(drafts, "mine", id, runs, chosen)


def test_each_run_that_used_it_is_a_row_with_its_verdict(drafts: Drafts, workspace: Workspace) -> None:
    runs = [
        add_run(workspace, "new"),
        add_run(workspace, "old", replace(SHORT, statement="Be brief.")),
        add_run(workspace, "other", constitution="others"),
    ]
    page = page_of(drafts, *runs)
    assert [(m.run, m.reworded) for m in page.measured] == [("new", False), ("old", True)]
    row = page.measured[0].row
    assert row is not None and row.rates == ("10%", "50%", "60%", "80%") and row.interval == "+55 to +80" and row.verdict == "learned"
    assert page_of(drafts, *runs, id="kind").measured[0].row is None, "it was measured as a control only"
    assert page.run == "new" and page_of(drafts, *runs, chosen="old").run == "old"


def test_prompts_that_draw_it_are_counted_by_kind(drafts: Drafts, workspace: Workspace) -> None:
    kinds = {k.kind: k for k in page_of(drafts, add_run(workspace, "r")).kinds}
    assert {k: (row.share, row.prompts, row.drew) for k, row in kinds.items()} == {
        "harmful": (0.0, 1, 1),  # a label used it
        "borderline": (0.0, 0, 0),
        "helpful": (0.75, 3, 2),
    }
    assert [p.id for p in kinds["helpful"].examples] == ["a", "b"]
    assert [k.share for k in page_of(drafts).kinds] == [0.0, 0.0, 0.75], "without a run, too"


def test_best_and_worst_answers_are_those_of_the_check(drafts: Drafts, workspace: Workspace) -> None:
    run = add_run(workspace, "r")
    found = page_of(drafts, run).examples
    assert found is not None and (found.model, found.followed, found.decided) == ("policy", 2, 3)
    assert [c.sample.prompt.id for c in found.best] == ["z", "x"], "by falling reward"
    assert [c.sample.prompt.id for c in found.worst] == ["y"]
    assert found.best[1].columns == (("base", "One two three four.", False), ("policy", "Yes.", True))
    now = drafts.open("mine")
    drafts.write("mine", now.text.replace("max_words: 3", "max_words: 1"), now.version)
    found = page_of(drafts, run).examples
    assert found is not None and (found.followed, found.decided) == (1, 3), "by the check in the editor"


def test_without_a_check_the_judges_surest_pairs_are_shown(drafts: Drafts, workspace: Workspace) -> None:
    found = page_of(drafts, add_run(workspace, "r"), id="kind").examples
    assert found is not None and [(p.response_a, p.response_b, round(v, 2)) for p, v in found.pairs] == [
        ("One 1.", "Two 1.", 0.9),
        ("Two 0.", "One 0.", 0.7),
    ]


def test_a_change_is_measured_from_the_last_version_that_differs(drafts: Drafts) -> None:
    assert page_of(drafts).change is None
    now = drafts.open("mine")
    for old, new in (("Be short.", "Be brief."), ("Be kind.", "Be fair.")):
        kept = drafts.write("mine", drafts.open("mine").text.replace(old, new), now.version)
        now = drafts.save("mine", kept.version)
    short, kind = page_of(drafts), page_of(drafts, id="kind")
    assert short.change is not None and [(f.before, f.after) for f in short.change.fields] == [("Be short.", "Be brief.")]
    assert kind.change is not None and [(f.before, f.after) for f in kind.change.fields] == [("Be kind.", "Be fair.")]
    assert short.since == f"the version until {drafts.history('mine')[1].saved}"
    drafts.write("mine", now.text.replace("weight: 3", "weight: 2"), now.version)
    page = page_of(drafts)
    assert page.since == "the saved file" and page.change is not None and [f.field for f in page.change.fields] == ["weight"]


def test_a_broken_run_costs_its_row_only(drafts: Drafts, workspace: Workspace) -> None:
    good, bad = add_run(workspace, "good"), add_run(workspace, "bad")
    bad.data("evaluation").write_text("{\n")
    page = page_of(drafts, bad, good)
    assert [m.run for m in page.measured] == ["good"] and len(page.problems) == 1 and page.problems[0].startswith("bad: ")
    good.data("samples").write_text("{\n")
    assert page_of(drafts, good).measured and page_of(drafts, good).problems
    with pytest.raises(DataError, match="no principle 'tall'"):
        page_of(drafts, good, id="tall")


@pytest.mark.enable_socket
def test_the_page_shows_all_of_it_and_obeys_none(served: Served) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    add_run(served.workspace, "r1")
    add_run(served.workspace, "r2")
    client = served.enter()
    html = client.get("/constitutions/mine/principles/short?run=r1").text
    assert "<script>" not in html and "&lt;script&gt;" in html
    for text in ("Be short.", "max_words: 3", "2 of 3 answers", "+55 to +80", "learned", "Asked by a"):
        assert text in html
    assert "<option selected>r1</option>" in html
    assert "sure" in client.get("/constitutions/mine/principles/kind").text
    assert client.get("/constitutions/mine/principles/tall", headers={"accept": "text/html"}).status_code == 400
    assert Path(served.workspace.root / "constitution" / "mine.yaml").read_text() == MINE


@pytest.mark.enable_socket
def test_a_principle_that_no_run_has_used_leads_to_a_run_with_its_constitution(served: Served) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    assert 'href="/runs?constitution=mine"' in served.enter().get("/constitutions/mine/principles/short").text
    assert "<option selected>mine</option>" in served.client.get("/runs?constitution=mine").text
    with served.visit("eva", "edit") as eva:
        assert "/runs?constitution" not in eva.client.get("/constitutions/mine/principles/short").text
