"""A served workspace, and a client that has the address but has not entered."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from cai.core.jsonl import write_records
from cai.core.workspace import Workspace
from cai.studio.access import Links
from cai.studio.app import make_app, studio_for
from cai.studio.labelling import Labelling, Queue
from cai.studio.serving import listening, origins
from cai.studio.trials import TrialRequest
from tests.browser import open_browser
from tests.studio.queues import pair
from tests.studio.serving import Served
from tests.workspaces import make_workspace


@contextlib.contextmanager
def serving(workspace: Workspace, port: int = 0, url: str | None = None) -> Iterator[int]:
    """Serve a workspace in a thread of this process, on a free port if none is given."""
    studio = studio_for(workspace, asking=TrialRequest("scripted"))
    with listening(port) as listener:
        port = listener.getsockname()[1]
        app = make_app(studio, port, Links(workspace), origins(port, url=url))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()
            studio.jobs.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with the shipped files, and a recipe of a scripted model."""
    return make_workspace(tmp_path / "w")


@pytest.fixture
def served(workspace: Workspace) -> Iterator[Served]:
    """A workspace of the test's own, served."""
    with serving(workspace) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
        yield Served(client, port, workspace)


@pytest.fixture(scope="module")
def shared_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, int]]:
    """A workspace that the module's tests leave as it is, and where it is served."""
    workspace = make_workspace(tmp_path_factory.mktemp("shared") / "w")
    with serving(workspace) as port:
        yield workspace, port


@pytest.fixture
def shared(shared_port: tuple[Workspace, int]) -> Iterator[Served]:
    """The module's workspace, with a client of the test's own."""
    workspace, port = shared_port
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
        yield Served(client, port, workspace)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def tab(browser: Any, served: Served) -> Iterator[Any]:
    """A tab that has entered the studio. Errors of its scripts, and what its policy forbids, fail the test."""
    context = browser.new_context(base_url=served.origin)
    context.set_default_timeout(20_000)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: said.type == "error" and "Failed to load resource" not in said.text and errors.append(said.text))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"/enter?token={served.token}")
    page.wait_for_url("**/")
    page.wait_for_selector("#constitutions")
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def queue_file(workspace: Workspace) -> Path:
    path = workspace.root / "labels" / "queues" / "q.jsonl"
    write_records(path, [{"pair": pair(i), "score": 0.5, "reason": "the judge says 0.123 for A"} for i in range(12)])
    return path


@pytest.fixture
def labelling(workspace: Workspace, queue_file: Path) -> Labelling:
    return Labelling(workspace)


@pytest.fixture
def queue(labelling: Labelling) -> Queue:
    return labelling.queue("q-jsonl")
