"""The files in docs/serving: shell parses them, and with a stand-in for vLLM and Slurm the scripts do what they say."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workspaces import ROOT

FOLDER = ROOT / "docs" / "serving"
SCRIPTS = ("one-node.sh", "slurm.sbatch")
VLLM = f"""#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $*" >> "$LOG"
while [ $# -gt 0 ]; do [ "$1" = --port ] && port=$2; shift; done
cd {ROOT} && exec {sys.executable} -m tests.models.serving "$port" 0
"""
CAI = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$LOG"
for word in "$@"; do case $word in model.path=*) url=${word#model.path=};; esac; done
curl -sf "$url/models" >> "$LOG"
"""
SRUN = """#!/usr/bin/env bash
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH on which vllm, vllm-router, cai, srun and scontrol are stand-ins; what they were told is in the file LOG names."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"vllm": VLLM, "vllm-router": VLLM, "cai": CAI, "srun": SRUN, "scontrol": "#!/bin/sh\necho 127.0.0.1\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "LOG": str(log),
        "START_SECONDS": "100",
        "CUDA_VISIBLE_DEVICES": "",
    }


def free_ports(count: int) -> int:
    """The first of some adjacent ports that nobody uses now."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def run(script: str, *args: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(FOLDER / script), *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_each_file_is_known() -> None:
    assert {p.name for p in FOLDER.iterdir()} == {*SCRIPTS, "kubernetes.yaml"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_shell_parses_it(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(FOLDER / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="the scripts wait with curl")


@needs_curl
@pytest.mark.enable_socket
def test_the_gpus_of_a_machine_serve_a_command_at_one_address_and_are_free_after_it(tmp_path: Path, environment: dict[str, str]) -> None:
    port = free_ports(1)
    settings = environment | {"REPLICAS": "2", "TENSOR_PARALLEL": "2", "PORT": str(port), "VLLM_FLAGS": "--max-model-len 99"}
    done = run("one-node.sh", "org/model", "sh", "-c", 'cai run r.yaml --set "model.path=$CAI_SERVER"; exit 7', cwd=tmp_path, **settings)
    assert done.returncode == 7, done.stderr
    log = Path(environment["LOG"]).read_text()
    flags = "--data-parallel-size 2 --tensor-parallel-size 2 --max-model-len 99"
    assert f"vllm serve org/model --host 127.0.0.1 --port {port} {flags}" in log
    assert f"model.path=http://127.0.0.1:{port}/v1" in log
    assert log.count('"id":"toy"') == 1
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@needs_curl
@pytest.mark.enable_socket
def test_a_server_that_ends_at_once_is_told(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "bin" / "vllm").write_text("#!/bin/sh\necho no memory; exit 1\n")
    done = run("one-node.sh", "org/model", "cai", cwd=tmp_path, PORT=str(free_ports(1)), **environment)
    assert done.returncode == 1
    assert "ended; see vllm-" in done.stderr
    assert Path(environment["LOG"]).read_text() == ""


@needs_curl
@pytest.mark.enable_socket
def test_the_slurm_job_serves_on_its_nodes_behind_a_router_and_runs_one_client(tmp_path: Path, environment: dict[str, str]) -> None:
    port = free_ports(2)
    settings = environment | {"SLURM_JOB_NODELIST": "n[1-1]", "SLURM_JOB_NUM_NODES": "1", "PORT": str(port), "ROUTER_PORT": str(port + 1)}
    done = run("slurm.sbatch", "org/model", "r.yaml", "--only", "respond", cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    log = Path(environment["LOG"]).read_text()
    assert f"vllm serve org/model --host 0.0.0.0 --port {port} --tensor-parallel-size 8" in log
    assert f"vllm-router --worker-urls http://127.0.0.1:{port} --policy cache_aware --host 127.0.0.1 --port {port + 1} " in log
    asked = f"--set model.path=http://127.0.0.1:{port + 1}/v1 --set model.concurrency=64 --set window=128"
    assert f"run r.yaml {asked} --only respond" in log and log.count('"id":"toy"') == 1


def test_the_manifest_says_when_a_replica_is_ready_and_how_it_is_found() -> None:
    documents: list[Any] = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
    by_name = {(d["kind"], d["metadata"]["name"]): d["spec"] for d in documents}
    pods = by_name["StatefulSet", "vllm"]
    (container,) = pods["template"]["spec"]["containers"]
    labels = pods["template"]["metadata"]["labels"]
    assert pods["selector"]["matchLabels"] == labels
    assert by_name["Service", "vllm"]["selector"] == labels
    assert by_name["Service", pods["serviceName"]]["clusterIP"] == "None"
    router = by_name["Deployment", "vllm-router"]
    assert by_name["Service", "vllm-router"]["selector"] == router["selector"]["matchLabels"] == router["template"]["metadata"]["labels"]
    (front,) = router["template"]["spec"]["containers"]
    workers = [word for word in front["args"] if word.startswith("http://")]
    assert workers == [f"http://vllm-{i}.{pods['serviceName']}:8000" for i in range(pods["replicas"])]
    assert front["startupProbe"]["httpGet"] == front["readinessProbe"]["httpGet"] == {"path": "/health", "port": front["ports"][0]["name"]}
    probed = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {p["port"] for p in probed.values()} == {"http"} == {p["name"] for p in container["ports"]}
    assert probed["readinessProbe"]["path"] == "/health"
    mounted = {m["name"] for m in container["volumeMounts"]}
    assert mounted == {v["name"] for v in pods["template"]["spec"]["volumes"]} | {
        c["metadata"]["name"] for c in pods["volumeClaimTemplates"]
    }
