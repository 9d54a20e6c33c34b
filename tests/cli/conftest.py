"""Fixtures of the tests in this folder."""

import pytest

from cai.core.workspace import Workspace
from tests.cli.calling import Called
from tests.workspaces import make_workspace, run_data


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a run of the data stages; tests must leave it as it is."""
    workspace = make_workspace(tmp_path_factory.mktemp("commands") / "w")
    run_data(workspace)
    return workspace


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Called:
    return Called(capsys, monkeypatch)
