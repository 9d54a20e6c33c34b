"""Previews and comparisons, as jobs."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from cai.constitution.load import load_constitution
from cai.core.jsonl import read_records
from cai.models.requests import Completion, Reply, Request
from cai.models.scripted import default_script
from cai.records import Judgment
from cai.studio.jobs import KEPT, Job, Jobs
from tests.studio.serving import Served
from tests.workspaces import run_data, script

pytestmark = pytest.mark.enable_socket
BASE = "/constitutions/general"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def finished(served: Served, job: dict[str, Any]) -> dict[str, Any]:
    """Look at a job, as the page does, until it is over."""
    while not job["over"]:
        time.sleep(0.05)
        job = served.client.get(f"/jobs/{job['id']}").json()
    return job


def edit(served: Served, old: str, new: str) -> None:
    """Edit the draft."""
    now = served.client.get(f"{BASE}/text").json()
    assert now["text"].count(old) == 1
    served.post(f"{BASE}/draft", text=now["text"].replace(old, new), version=now["version"])


def hostile(request: Request) -> Reply:
    said = default_script(request)
    return Completion(f"{said.text} {EVIL}", False, 10, 10) if isinstance(said, Completion) else said


@pytest.fixture
def scripted(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The served workspace with a run, whose model says what a page must not run."""
    script(monkeypatch, hostile)
    run_data(served.workspace)
    served.enter()
    return served


def test_a_draft_is_tried_on_a_prompt_and_model_text_is_never_markup(scripted: Served) -> None:
    served = scripted
    edit(served, "id: no-help-with-violence", "id: no-violence-at-all")
    job = served.post(f"{BASE}/preview", prompt="How do I hurt someone?", kind="harmful", principle="no-violence-at-all")
    done = finished(served, job)
    assert done["state"] == "done", done["html"]
    for part in ("Response", "Critique", "no-violence-at-all", "Revision", "Judge"):
        assert part in done["html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in done["html"] and "<script" not in done["html"] and "<img" not in done["html"]
    assert served.post(f"{BASE}/preview", status=400, prompt="x", kind="harmful", principle="no-help-with-violence")["error"].startswith(
        "constit"
    )
    empty = finished(served, served.post(f"{BASE}/preview", prompt="  ", kind="harmful", principle=""))
    assert empty["state"] == "failed" and "prompt is empty" in empty["html"]


def test_a_german_constitution_is_tried_with_german_templates(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def listening(request: Request) -> Reply:
        asked.append("\n".join(message.content for message in request.messages))
        return default_script(request)

    script(monkeypatch, listening)
    served.enter()
    principle = "principles: [{ id: kurz, statement: Antworte kurz. }]\n"
    file = served.workspace.root / "constitution" / "kurz.yaml"
    file.write_text(f"id: kurz\nname: Kurz\ndescription: Ein Grundsatz.\nlanguage: de\n{principle}")
    job = served.post("/constitutions/kurz/preview", prompt="Wie backe ich Brot?", kind="helpful", principle="")
    assert finished(served, job)["state"] == "done"
    assert any("Grundsatz: Antworte kurz." in text for text in asked) and not any("Principle:" in text for text in asked)


def test_an_edited_principle_shows_the_labels_that_it_changes(scripted: Served) -> None:
    served = scripted
    nothing = served.post(f"{BASE}/compare", status=400, run="s", sample=20)
    assert nothing["error"].startswith("Nothing to compare")
    judged = next(iter(read_records(served.workspace.run("s").data("judgments"), Judgment))).principle_ids[0]
    asked = load_constitution(served.workspace.root / "constitution" / "general.yaml").principle(judged).ask_positive
    edit(served, asked, "Is the response NEW?")
    done = finished(served, served.post(f"{BASE}/compare", run="s", sample=20))
    assert done["state"] == "done", done["html"]
    html = done["html"]
    assert f"<b>{judged}</b>" in html and "<ins>NEW</ins>" in html, "the edit, word by word"
    assert "ask_positive" in html and "Flipped (95 % interval)" in html and 'class="trail"' in html
    assert "<script" not in html and "<img" not in html
    assert "before 0 made" in html.replace("\n", ""), "the run's own calls are in the store"
    saved = served.client.get(f"{BASE}/text").json()
    served.post(f"{BASE}/save", version=saved["version"])
    again = finished(served, served.post(f"{BASE}/compare", run="s", sample=20))
    assert again["state"] == "done" and "<ins>NEW</ins>" in again["html"], "once saved, the run's own constitution is the old side"
    assert "after 0 made" in again["html"]
    served.post(f"{BASE}/compare", status=404, run="../s", sample=20)
    served.post(f"{BASE}/compare", status=400, run="s", sample=0)


def test_a_constitution_that_can_not_be_read_is_not_tried(scripted: Served) -> None:
    edit(scripted, "name: General assistant", "nome: General assistant")
    assert "not a valid constitution" in scripted.post(f"{BASE}/preview", status=400, prompt="x", kind="other", principle="")["error"]


def test_a_job_can_be_stopped_while_it_works_and_while_it_waits() -> None:
    jobs, begun = Jobs(), threading.Event()

    async def forever(job: Job) -> None:
        begun.set()
        await asyncio.Event().wait()

    first, second = jobs.start("steps", forever), jobs.start("steps", forever)
    assert begun.wait(20) and second.state == "waiting"
    second.stop()
    first.stop()
    jobs.close()
    assert (first.state, second.state) == ("stopped", "stopped")


def test_a_stop_that_comes_as_a_job_ends_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = asyncio.run

    def late(main: Coroutine[Any, Any, None]) -> None:
        try:
            run(main)
        finally:
            job.stop()

    async def nothing(job: Job) -> None:
        pass

    monkeypatch.setattr("asyncio.run", late)
    job = Job("steps")
    job.run(nothing)
    assert (job.state, job.error) == ("done", "")


def test_only_the_latest_jobs_are_kept_and_a_bug_is_said() -> None:
    jobs = Jobs()

    async def wrong(job: Job) -> None:
        raise KeyError("x")

    made = [jobs.start("steps", wrong) for _ in range(KEPT + 5)]
    while not made[-1].is_over:
        time.sleep(0.01)
    last = jobs.start("steps", wrong)
    jobs.close()
    assert jobs.get(last.id) is last and jobs.get(made[0].id) is None
    assert made[-1].state == "failed" and "KeyError" in made[-1].error and "bug" in made[-1].error
    assert jobs.get(made[-1].id) is made[-1] and jobs.get("nothing") is None
