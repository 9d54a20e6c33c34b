"""Starting, waiting for and stopping a server, with stand-ins for vLLM: nothing is left running, however it ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vllm_server import ServerError, free_port, running, signals_held
from tests.workspaces import ROOT

pytestmark = pytest.mark.enable_socket
SCRIPT = """
import sys
from pathlib import Path
from tests import vllm_server as v
v.VENV = Path(sys.argv[1])
v.install = lambda: Path(sys.executable)
v.write_adapter = lambda folder: None
v.free_port = lambda: int(sys.argv[2])
v.vllm_command = lambda python, adapter, port, dtype: [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
sys.exit(v.main(sys.argv[3:], "float32"))
"""


def stand_in(port: int, folder: Path) -> list[str]:
    """A server whose /health answers, with a child that ignores SIGTERM and whose id is in the file `child`."""
    (folder / "health").touch()
    child = "import os, signal, time; signal.signal(15, signal.SIG_IGN); open('child', 'w').write(str(os.getpid())); time.sleep(300)"
    return ["sh", "-c", f'{sys.executable} -c "{child}" & exec {sys.executable} -m http.server {port} --bind 127.0.0.1']


def listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def gone(pid: int) -> bool:
    """Whether a process is dead, or waits only for its new parent to notice."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_nothing_of_the_server_is_left_when_the_block_fails(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ZeroDivisionError), running(stand_in(port, tmp_path), f"http://127.0.0.1:{port}/health", tmp_path / "log", {}, 60):
        assert listens(port)
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            time.sleep(0.05)
        raise ZeroDivisionError
    assert not listens(port)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if gone(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the server's child lives on")


def test_a_server_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = ["sh", "-c", 'for i in $(seq 100); do echo "line $i, $REASON"; done; exit 3']
    with pytest.raises(ServerError) as error, running(command, "http://127.0.0.1:9/health", tmp_path / "log", {"REASON": "no memory"}, 60):
        pass
    assert f"ended with code 3; the end of {tmp_path / 'log'}" in str(error.value)
    assert "line 100, no memory" in str(error.value)
    assert "line 60," not in str(error.value)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"isn't healthy after 0\.1 s"),
        running(["sleep", "300"], "http://127.0.0.1:9/health", tmp_path / "log", {}, 0.1),
    ):
        pass


def test_an_interruption_waits_until_a_starting_process_is_known() -> None:
    known = False
    with pytest.raises(KeyboardInterrupt), signals_held():
        signal.raise_signal(signal.SIGINT)
        known = True
    assert known
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def start(folder: Path, port: int, *command: str) -> "subprocess.Popen[str]":
    (folder / "health").touch()
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(port), *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_gets_the_address_and_gives_the_exit_code(tmp_path: Path) -> None:
    port = free_port()
    out, error = (script := start(tmp_path, port, "sh", "-c", 'echo "asks $CAI_TEST_SERVER"; exit 5')).communicate(timeout=300)
    assert script.returncode == 5, error
    assert f"asks http://127.0.0.1:{port}/v1" in out
    assert not listens(port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_script_stops_command_and_server(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    script = start(tmp_path, port, "sh", "-c", "echo; echo under way; exec sleep 300")
    assert script.stdout is not None
    for line in script.stdout:
        if "under way" in line:
            break
    assert listens(port)
    script.send_signal(number)
    script.communicate(timeout=300)  # returns when nobody holds its pipes any more, the command neither
    assert script.returncode == 128 + number
    assert not listens(port)
