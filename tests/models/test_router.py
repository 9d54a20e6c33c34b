"""Two real vLLM servers behind a real vllm-router: `cai` asks one URL, and a server that is killed in mid-run costs only time."""

import os
import signal
from pathlib import Path

import pytest

from cai.core.console import Reporter
from cai.models.store import CallStore
from tests.vllm_server import ENVIRONMENT, MODEL, START_SECONDS, VENV, free_port, install, running, vllm_command
from tests.workspaces import data_bytes, make_workspace, run_data

pytestmark = [
    pytest.mark.server,
    pytest.mark.enable_socket,
    pytest.mark.skipif(not (VENV / ".installed").is_file(), reason="no vLLM and router here: `make test-server` installs them"),
]
RECIPE = f"""\
model: {{ path: PATH, name: {MODEL}, concurrency: 8 }}
prompts:
  train: [{{ path: prompts/harmful.jsonl, limit: 8 }}]
  evaluate: [{{ path: prompts/eval_harmful.jsonl, limit: 2 }}]
critique: {{ rounds: 1, min_p_revised: 0.0 }}
"""
STAGES = ("respond", "critique")
ONE_THREAD = ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def test_a_server_that_dies_behind_a_router_costs_only_time(tmp_path: Path) -> None:
    python, ports, front = install(), (free_port(), free_port()), free_port()
    commands = [vllm_command(python, None, port, "float32") for port in ports]
    health = [f"http://127.0.0.1:{port}/health" for port in (*ports, front)]
    logs = [tmp_path / f"{name}.log" for name in ("one", "two", "router")]
    router = [
        *(str(python.with_name("vllm-router")), "--worker-urls", *(f"http://127.0.0.1:{port}" for port in ports)),
        *("--policy", "cache_aware", "--host", "127.0.0.1", "--port", str(front), "--prometheus-port", str(free_port())),
        *("--worker-startup-timeout-secs", "600", "--worker-startup-check-interval", "5", "--health-check-interval-secs", "5"),
    ]
    recipe = RECIPE.replace("PATH", f"http://127.0.0.1:{front}/v1")
    with (
        running(commands[0], health[0], logs[0], ONE_THREAD, START_SECONDS),
        running(commands[1], health[1], logs[1], ONE_THREAD, START_SECONDS) as victim,
        running(router, health[2], logs[2], {}, 60),
    ):
        calm = make_workspace(tmp_path / "calm", recipe)
        calls = sum(s.calls_made for s in run_data(calm, only=STAGES).stages)

        class Killer(Reporter):
            calls = 0

            def call(self) -> None:
                self.calls += 1
                if self.calls == calls // 3:
                    os.killpg(victim.pid, signal.SIGKILL)

        disturbed = make_workspace(tmp_path / "disturbed", recipe)
        made = sum(s.calls_made for s in run_data(disturbed, only=STAGES, reporter=Killer()).stages)
        assert victim.poll() is not None, "it was killed"
    assert all("POST /v1/chat/completions" in log.read_text() for log in logs[:2]), "the router asked both"
    assert made == calls >= 3 * 8
    assert not (disturbed.run("s").path / "failures.jsonl").exists() or not (disturbed.run("s").path / "failures.jsonl").read_text()
    with CallStore(calm.store_path) as one, CallStore(disturbed.store_path) as two:
        assert len(one) == len(two) == calls
    assert data_bytes(disturbed.run("s")) == data_bytes(calm.run("s"))
