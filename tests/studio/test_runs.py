"""Runs in the studio: started, watched, stopped and resumed; their texts browsed; their reports opened and compared."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.core.jsonl import append_record, write_records
from cai.core.manifest import read_manifest, write_manifest
from cai.core.workspace import Workspace
from cai.records import Critique, Preference, Revision, RevisionTrace, Round, Sample
from cai.report.collect import read_curves
from cai.studio.browsing import PER_PAGE, Query, browse, views_of
from cai.studio.running import Runs
from tests.models.serving import servers
from tests.studio.principle_runs import BY, add_run, prompt
from tests.studio.serving import Served
from tests.workspaces import run_data

pytestmark = pytest.mark.enable_socket
BASE = "/constitutions/general"
EVIL = "<script>alert(1)</script>"


def until(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(served: Served, name: str) -> dict[str, object]:
    """Wait for a run's end, as its page does, and return what the page shows then."""
    until(lambda: not served.client.get(f"/runs/{name}/stages").json()["alive"])
    found: dict[str, object] = served.client.get(f"/runs/{name}/stages").json()
    return found


def test_a_run_is_started_stopped_and_resumed_and_pays_for_nothing_twice(served: Served) -> None:
    client, runs = served.enter(), served.workspace.root / "runs"
    assert "s.yaml" in client.get("/runs").text
    planned = served.post("/plan", recipe="s.yaml", name="mine", settings=["respond.limit=4"])["html"]
    assert "What mine takes at most" in planned and "respond" in planned
    with servers(1, seconds=0.3) as (server,):
        body: dict[str, Any] = {"recipe": "s.yaml", "name": "mine", "model": server.url, "constitution": "general"}
        body |= {"only": "respond,critique", "settings": ["respond.limit=4", "model.concurrency=1"]}
        assert served.post("/runs", **body) == {"page": "/runs/mine"}
        assert client.get("/runs/mine").status_code == 200, "at once, before its first stage"
        again = served.post("/runs", status=400, **body)["error"]
        assert "mine: is running already" in again
        until(lambda: "status running" in (now := client.get("/runs/mine/stages").json())["html"] or now["failed"])
        served.post("/runs/mine/stop")
        stopped = ended(served, "mine")
        assert not stopped["failed"] and stopped["can_resume"] and "Run the same command again to resume" in str(stopped["log"])
        assert "constitution/general.yaml" in (runs / "mine" / "recipe.yaml").read_text()
        assert served.post("/runs/mine/stop", status=400)["error"] == "mine: no process is running it."
        served.post("/runs/mine/resume")
        until(lambda: served.workspace.run("mine").holder())
        served.post("/runs/mine/stop")
        ended(served, "mine")
        assert "stopped" in client.get("/").text


def test_a_training_under_way_shows_its_curve_so_far(served: Served) -> None:
    run_data(served.workspace, only=("respond",))
    run = served.workspace.run("s")
    append_record(run.metrics, {"stage": "sft", "step": 1, "loss": 9.0})  # of an earlier training
    for step, loss in ((1, 3.0), (2, 2.5), (2, 2.0)):  # killed after step 2 and resumed from step 1
        append_record(run.live, {"stage": "sft", "member": "", "step": step, "loss": loss})
    [curve] = [c for c in read_curves(run.path) if c.stage == "sft"]
    assert curve.points == ((1.0, 3.0), (2.0, 2.0))
    assert "Loss, sft" in served.enter().get("/runs/s/stages").json()["html"]


def test_what_is_left_of_a_run_goes_on(served: Served) -> None:
    served.enter()
    run_data(served.workspace, only=("respond", "critique"))
    run, runs = served.workspace.run("s"), Runs(served.workspace)
    assert runs.left(run) == () and not served.client.get("/runs/s/stages").json()["can_resume"]
    manifest = read_manifest(run.manifest)
    assert manifest is not None and manifest.chosen == ("respond", "critique")
    write_manifest(run.manifest, replace(manifest, chosen=()))
    assert "distill" not in runs.left(run) and "sft" in runs.left(run), "of an earlier version: the stages of its recipe"
    write_manifest(run.manifest, replace(manifest, stages=manifest.stages[:1]))
    assert runs.left(run) == ("respond", "critique")
    served.post("/runs/s/resume")
    assert not ended(served, "s")["failed"] and runs.left(run) == ()
    assert "nothing is left to run" in served.post("/runs/s/resume", status=400)["error"]


def test_a_run_that_fails_shows_what_it_printed(served: Served) -> None:
    served.enter()
    served.post("/runs", recipe="s.yaml", name="bad", model="http://127.0.0.1:1/v1", only="respond")
    found = ended(served, "bad")
    assert found["failed"] and "127.0.0.1:1" in str(found["log"]) and "Traceback" not in str(found["log"])


@pytest.mark.attack
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"recipe": "../s.yaml"}, "no recipe"),
        ({"recipe": "nothing.yaml"}, "there are: "),
        ({"recipe": "s.yaml", "name": "../x"}, "name: '../x'"),
        ({"recipe": "s.yaml", "settings": ["critque.rounds=2"]}, "critique.rounds"),
        ({"recipe": "s.yaml", "constitution": "../general"}, "no constitution"),
        ({"recipe": "s.yaml", "settings": ["--json"]}, "--json"),
    ],
)
def test_a_run_that_can_not_be_starts_no_process(served: Served, asked: dict[str, object], said: str) -> None:
    client = served.enter()
    answer = client.post("/runs", json=asked)
    assert answer.status_code == 400 and said in answer.json()["error"]
    assert not (served.workspace.root / "runs" / ".studio" / "logs").exists()


@pytest.mark.attack
def test_no_module_of_the_workspace_is_imported(served: Served) -> None:
    for name in ("cai", "torch"):
        package = served.workspace.root / name
        package.mkdir()
        (package / "__init__.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    served.enter()
    served.post("/runs", recipe="s.yaml", name="bad", model="http://127.0.0.1:1/v1", only="respond")
    assert ended(served, "bad")["failed"] and not (served.workspace.root / "ran").exists()


def test_a_run_is_watched_and_its_report_opened(served: Served) -> None:
    run_data(served.workspace)
    run = served.workspace.run("s")
    client = served.enter()
    page = client.get("/runs/s").text
    assert "respond" in page and "not run" in page and "Open the report" not in page
    assert client.get("/runs/s/report").status_code == 404
    with run.locked():
        assert client.get("/runs/s/stages").json()["alive"]
    assert not client.get("/runs/s/stages").json()["alive"]
    run.report.write_text("<!doctype html><script>alert(1)</script>")
    answer = client.get("/runs/s/report")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and policy.endswith("sandbox")
    assert "Open the report" in client.get("/runs/s").text and 'href="/runs/s/report"' in client.get("/").text
    for name in ("..", "%2e%2e", "..%2fs", "calls.sqlite", ".studio"):
        assert client.get(f"/runs/{name}/report").status_code == 404


def test_runs_are_compared_side_by_side_with_the_oldest_as_the_baseline(served: Served) -> None:
    run_data(served.workspace, only=("respond",), name="old")
    assert "Compare side by side" not in served.enter().get("/").text, "one run alone"
    run_data(served.workspace, "respond.sampling.max_tokens=17", only=("respond",), name="new")
    old = served.workspace.run("old").path
    os.utime(old, (time.time() - 60,) * 2)
    client = served.client
    assert "Compare side by side" in client.get("/").text
    answer = client.get("/compare?run=new&run=old")
    assert answer.status_code == 200 and "respond.sampling.max_tokens" in answer.text
    assert answer.text.index("old") < answer.text.index("new") and answer.headers["content-security-policy"].endswith("sandbox")
    for asked in ("run=new", "run=new&run=new", ""):
        refused = client.get(f"/compare?{asked}", headers={"accept": "text/html"})
        assert refused.status_code == 400 and "two or more different runs" in refused.text
    assert client.get("/compare?run=new&run=..").status_code == 404


def test_failures_and_a_killed_stage_show(served: Served) -> None:
    run_data(served.workspace, only=("respond",))
    manifest = served.workspace.run("s").manifest
    manifest.write_text(manifest.read_text().replace('"status": "done"', '"status": "running"'))
    assert "respond stopped" in served.enter().get("/").text


def revised(index: int, first: str, last: str, p: float | None) -> RevisionTrace:
    rounds = (Round(Critique("short", f"Too long {index}."), Revision("short", last)),)
    return RevisionTrace(prompt(f"t{index}", "harmful"), first, rounds, None, p, BY)


@pytest.fixture
def browsed(workspace: Workspace) -> Workspace:
    run = add_run(workspace, "r")
    traces = [revised(0, "a b c d", "a b c d", 0.5), revised(1, "a b c d", "x y z w", 0.9), revised(2, "a b c d", "a b c e", 0.1)]
    write_records(run.data("traces"), traces)
    kept = [Preference(prompt("t1", "harmful"), "good", "bad", 0.8, 1.0, "ai:check", ("short",), BY)]
    write_records(run.data("preferences"), kept)
    return workspace


def test_texts_are_sorted_searched_and_filtered(browsed: Workspace) -> None:
    run = browsed.run("r")

    def ids(**query: object) -> list[str]:
        return [row.prompt.id for row in browse(run, Query("revisions", **query)).rows]  # type: ignore[arg-type]

    assert views_of(run) == ["revisions", "distilled", "labels", "answers"]
    assert ids() == ["t0", "t1", "t2"]
    assert ids(order="worst") == ["t2", "t0", "t1"]
    assert ids(order="change") == ["t1", "t2", "t0"]
    assert ids(order="disagreement")[0] == "t0"
    assert ids(search="X Y") == ["t1"] and ids(kind="helpful") == [] and ids(principle="kind") == []
    assert ids(principle="short") == ["t0", "t1", "t2"]
    answers = browse(run, Query("answers", principle="short", order="worst"))
    assert answers.rows[0].follows[1] is False and answers.rows[-1].follows[1] is True
    assert browse(run, Query("labels")).rows[0].names == ("rejected", "chosen")


def test_all_about_a_prompt_is_in_the_order_of_the_pipeline(browsed: Workspace) -> None:
    found = browse(browsed.run("r"), Query(prompt="t1"))
    assert [row.what for row in found.rows] == ["revisions", "labels"] and found.total == 2


def test_pages_of_texts_do_not_overlap(browsed: Workspace) -> None:
    run = browsed.run("r")
    n = 2 * PER_PAGE + 3
    samples = [Sample(prompt(f"s{i:03}"), {"base": "no", "policy": "yes"}, {"base": 0.0, "policy": i / n}) for i in reversed(range(n))]
    write_records(run.data("samples"), samples)
    pages = [browse(run, Query("answers", order="worst", page=page)) for page in range(4)]
    assert [row.prompt.id for page in pages for row in page.rows] == [f"s{i:03}" for i in range(n)]
    assert [page.total for page in pages] == [n] * 4


@pytest.mark.attack
def test_texts_are_shown_as_texts_whatever_they_say(served: Served) -> None:
    run = add_run(served.workspace, "r")
    write_records(run.data("traces"), [revised(0, EVIL, f"{EVIL} more", 0.5)])
    client = served.enter()
    page = client.get("/runs/r/texts").text
    assert "&lt;script&gt;" in page and EVIL not in page and "<ins> more</ins>" in page
    for query in ("what=nothing&order=x&page=-1", "page=99999999999", f"search={EVIL}", "prompt=none", "kind=%22%3E", "page=9"):
        answer = client.get(f"/runs/r/texts?{query}")
        assert answer.status_code == 200 and EVIL not in answer.text, query
    assert "Nothing matches" in client.get("/runs/r/texts?search=nowhere").text
    assert client.get("/runs/none/texts").status_code == 404
    run.data("traces").write_text("{")
    assert client.get("/runs/r/texts").status_code == 400


@pytest.mark.attack
def test_odd_names_are_left_out_and_named_and_the_rest_works(served: Served) -> None:
    run_data(served.workspace, only=("respond",))
    root = served.workspace.root
    shutil.copytree(root / "runs" / "s", root / "runs" / "s (copy)")
    (root / "runs" / "calls.sqlite-wal.d").mkdir()
    (root / "runs" / "calls.sqlite-wal.d" / "recipe.yaml").touch()
    for odd in (b"odd\xff", b"line\nbreak", b"\x1b[31m"):
        shutil.copyfile(root / "constitution" / "general.yaml", os.fsencode(root / "constitution") + b"/" + odd + b".yaml")
        queue = Path(os.fsdecode(os.fsencode(root / "labels" / "queues") + b"/" + odd + b".jsonl"))
        queue.parent.mkdir(parents=True, exist_ok=True)
        queue.write_text("{}\n")
    served.enter()
    for path in ("/", "/label", f"{BASE}", "/runs/s"):
        assert served.client.get(path).status_code == 200, path
    home = served.client.get("/").text
    assert "/runs/s%20" not in home and "/constitutions/general" in home
    for named in ("runs/s (copy)", r"constitution/odd\udcff.yaml", r"labels/queues/\x1b[31m.jsonl", "runs/calls.sqlite-wal.d"):
        assert f"<code>{named}</code>" in home
