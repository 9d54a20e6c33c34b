"""Drills with a real server and real clients: nothing that was answered is lost or asked twice, and the outputs are a calm run's."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.drills.drilling import (
    CONCURRENCY,
    PROMPTS,
    ask_at,
    drill_workspace,
    kept,
    model_server,
    run_to_end,
    start_run,
    start_server,
    wait_until,
)
from tests.workspaces import ROOT, cai, data_bytes, start_cai

pytestmark = pytest.mark.attack

PASSING = "busy,error,overloaded,cut,half,html,empty,deep,miscounted,reset,none"


def undisturbed(folder: Path, prompts: int = PROMPTS) -> tuple[Counter[str], dict[str, bytes]]:
    """What a run that nobody disturbs is answered, and what it writes."""
    with model_server(folder / "log") as server:
        outputs = run_to_end(drill_workspace(folder / "w", server.port, prompts=prompts))
        answered = server.answered()
    assert set(answered.values()) == {1} and len(answered) > 4 * prompts
    assert len(set(outputs["traces.jsonl"].splitlines())) == prompts
    assert len(set(outputs["sft.jsonl"].splitlines())) > 0.9 * prompts, "the rules drop few of these revisions"
    return answered, outputs


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[str], dict[str, bytes]]:
    return undisturbed(tmp_path_factory.mktemp("calm"))


def test_a_misbehaving_server_is_waited_out(tmp_path: Path, calm: tuple[Counter[str], dict[str, bytes]]) -> None:
    with model_server(tmp_path / "log", PASSING) as server:
        assert run_to_end(drill_workspace(tmp_path / "w", server.port)) == calm[1]
    faults = Counter(what for what, _ in server.lines())
    assert server.answered() == calm[0], "each was answered once, after its fault"
    assert len(faults) >= 8 and faults.total() - faults["answered"] > 2 * PROMPTS, faults


@pytest.mark.slow
def test_replies_that_never_end_are_given_up_and_asked_again(tmp_path: Path, calm: tuple[Counter[str], dict[str, bytes]]) -> None:
    with model_server(tmp_path / "log", "hang,dribble,none") as server:
        workspace = drill_workspace(tmp_path / "w", server.port, timeout=4)
        done = cai(workspace.root, "run", "runs/s.yaml", "--only", "respond", timeout=120)
        assert done.returncode == 0, done.stderr
        assert data_bytes(workspace.run("s"))["responses.jsonl"] == calm[1]["responses.jsonl"]
    assert {"hang", "dribble"} <= {what for what, _ in server.lines()}


JUMPING = """\
import os, random, time
_real, _draw, _log = time.time, random.Random(0), os.open(os.environ["JUMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _jumping():
    os.write(_log, b".")
    return _real() + _draw.choice((-3e8, -3600.0, 0.0, 3600.0, 3e8))


time.time = _jumping
"""


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, calm: tuple[Counter[str], dict[str, bytes]]) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "JUMPS": str(tmp_path / "jumps")}
    with model_server(tmp_path / "log", "until,busy,none,none") as server:
        workspace = drill_workspace(tmp_path / "w", server.port)
        run = start_run(workspace, environment=environment)
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
    assert data_bytes(workspace.run("s")) == calm[1] and server.answered() == calm[0]
    assert (tmp_path / "jumps").stat().st_size > 0, "the jumping clock was not in use"


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_costs_only_time(tmp_path: Path, calm: tuple[Counter[str], dict[str, bytes]]) -> None:
    server = start_server(tmp_path / "log", seconds=0.1)
    try:
        workspace = drill_workspace(tmp_path / "w", server.port)
        run = start_run(workspace)
        for wanted in (PROMPTS // 2, 3 * PROMPTS):
            wait_until(lambda log=server, wanted=wanted: log.answered().total() >= wanted, run)
            server.kill()
            server = start_server(server.log, seconds=0.1, port=server.port)
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
    finally:
        server.kill()
    assert data_bytes(workspace.run("s")) == calm[1]
    assert server.answered().keys() == calm[0].keys()
    assert server.answered().total() <= calm[0].total() + 2 * CONCURRENCY, "at most what was on its way when the server died"


@pytest.mark.parametrize(
    ("kills", "prompts", "concurrency"), [(1, PROMPTS, CONCURRENCY), pytest.param(100, 200, 4, marks=pytest.mark.slow)]
)
def test_a_killed_client_loses_nothing_that_was_kept(
    tmp_path: Path, kills: int, prompts: int, concurrency: int, calm: tuple[Counter[str], dict[str, bytes]]
) -> None:
    (tmp_path / "calm").mkdir()
    wanted, outputs = calm if prompts == PROMPTS else undisturbed(tmp_path / "calm", prompts)
    draw = random.Random(kills)
    with model_server(tmp_path / "log", seconds=0.05) as server:
        workspace = drill_workspace(tmp_path / "w", server.port, prompts=prompts, concurrency=concurrency)
        for number in range(kills):
            had, seen = kept(workspace), len(server.lines())
            run = start_run(workspace)
            ahead = seen + draw.randrange(1, 6)
            wait_until(lambda ahead=ahead: len(server.lines()) >= ahead, run)
            run.kill()
            run.communicate()
            assert run.returncode == -signal.SIGKILL
            assert not had & {key for _, key in server.lines()[seen:]}, f"kill {number}: a kept answer was asked for again"
            assert had <= kept(workspace), f"kill {number}: a kept answer was lost"
        had, seen = kept(workspace), len(server.lines())
        assert len(had) < len(wanted), "every kill came in the middle"
        assert run_to_end(workspace) == outputs
        assert not had & {key for _, key in server.lines()[seen:]}
    assert server.answered().keys() == wanted.keys() == kept(workspace)
    assert server.answered().total() <= wanted.total() + concurrency * kills, "at most what was on its way was answered twice"


def test_ctrl_c_waits_for_what_is_paid_for_and_keeps_it(tmp_path: Path, calm: tuple[Counter[str], dict[str, bytes]]) -> None:
    with model_server(tmp_path / "log", seconds=1.0) as server:
        workspace = drill_workspace(tmp_path / "w", server.port)
        run = start_run(workspace)
        wait_until(lambda: server.answered().total() > PROMPTS, run)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
        assert run.returncode == 130
        assert "Press Ctrl-C again to stop now" in err and "Run the same command again to resume" in err and "Traceback" not in err
        assert set(server.answered()) == kept(workspace) != set(calm[0]), "all that was answered is kept, and it did stop"
    with model_server(tmp_path / "log") as server:
        ask_at(workspace, server.port)
        assert run_to_end(workspace) == calm[1]
    assert server.answered() == calm[0], "nothing was answered twice"


def test_ctrl_c_keeps_what_other_commands_paid_for_too(tmp_path: Path) -> None:
    with model_server(tmp_path / "log", seconds=1.0) as server:
        workspace = drill_workspace(tmp_path / "w", server.port)
        constitutions = ("constitution/general.yaml", "constitution/helpful-only.yaml")
        command = start_cai(
            workspace.root, "constitution", "diff", *constitutions, "--recipe", "runs/s.yaml", "--prompts", "prompts/drill.jsonl"
        )
        wait_until(lambda: server.answered().total() > 0, command)
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
        assert command.returncode == 130 and "Press Ctrl-C again to stop now" in err and "Traceback" not in err
        assert set(server.answered()) == kept(workspace) and len(kept(workspace)) >= PROMPTS


def test_a_second_ctrl_c_waits_for_nothing(tmp_path: Path) -> None:
    with model_server(tmp_path / "log", "hang") as server:
        workspace = drill_workspace(tmp_path / "w", server.port, timeout=500)
        run = start_run(workspace, stderr=os.open(tmp_path / "err", os.O_WRONLY | os.O_CREAT))
        wait_until(lambda: len(server.lines()) == PROMPTS, run)
        run.send_signal(signal.SIGINT)
        wait_until(lambda: "Press Ctrl-C again to stop now" in (tmp_path / "err").read_text(), run)
        assert run.poll() is None, "the first one waits"
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)  # far less than the server takes
        err = (tmp_path / "err").read_text()
        assert run.returncode == 130 and "Run the same command again to resume" in err and "Traceback" not in err


@pytest.mark.slow
def test_two_clients_share_one_store(tmp_path: Path, calm: tuple[Counter[str], dict[str, bytes]]) -> None:
    with model_server(tmp_path / "log", seconds=0.02) as server:
        workspace = drill_workspace(tmp_path / "w", server.port)
        with server.held():  # until both are about to ask
            runs = [start_run(workspace), start_run(workspace, "--name", "other")]
            for name, run in zip(("s", "other"), runs, strict=True):
                wait_until(workspace.run(name).manifest.exists, run)
            time.sleep(1.0)
        for run in runs:
            _, err = run.communicate(timeout=120)
            assert run.returncode == 0, err
        assert data_bytes(workspace.run("s")) == data_bytes(workspace.run("other")) == calm[1]
        assert kept(workspace) == set(calm[0])
        before = server.answered()
        assert before == calm[0], "no call was paid for twice"
        assert run_to_end(workspace, "--name", "third") and server.answered() == before
