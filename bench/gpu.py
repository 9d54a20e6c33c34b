"""Measures `cai` on a GPU in ten minutes and without a network: each part alone, logged, and resumed where it stopped.

    python -m bench.gpu [--out FOLDER] [--parts NAME ...] [--small]

The models have random weights of an 8B and of a 1B shape, made on the spot, and the embedded model's tokenizer. Each part runs in a process
of its own with a time limit, and nothing that it started outlives it. Its result is a line of FOLDER/results.jsonl, its output is in
FOLDER/PART.log. A part that has a result without an error is not run again, and none begins after ten minutes: call it once more for the
rest. `--small` is the rehearsal: tiny shapes, on whatever there is.

| part | what is measured |
|---|---|
| weights | seconds to make and save both models |
| logits | bfloat16 and NF4 against float32, 1B: largest and mean difference, equal likeliest tokens |
| sft, reward, dpo, grpo | QLoRA steps of the 8B: tokens a second after the first step, peak memory against `cai plan` |
| generate | the local engine at 1, 8 and 32 sequences, 1B in bfloat16 and 8B in NF4 |
| vllm | the same through vLLM's server, where it is installed |
| quickstart | the whole quickstart with the embedded model |
| nccl | the smoke recipe's SFT in two processes, where there are two GPUs |
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from bench.plan_memory import BATCH, COMPLETION, PROMPT, predicted
from cai.pipeline.memory import read_dimensions
from cai.recipe import LoraSpec, ModelSpec, PolicyConfig, RewardConfig, SFTConfig

ROOT = Path(__file__).parents[1]
SHAPES = {
    "big": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    "one": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
STEPS = 4
Result = dict[str, Any]


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def settings(small: bool) -> dict[str, Any]:
    """Return what QLoRA trains with on a GPU; the rehearsal uses its precision only where bitsandbytes can."""
    optimizer = "adamw_torch" if small else "paged_adamw_8bit"
    return {"precision": "nf4", "optimizer": optimizer, "gradient_checkpointing": True, "max_length": 512, "lora": LoraSpec()}


def weights(folder: Path, small: bool) -> Result:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cai.models.local.loading import load_tokenizer

    found: Result = {}
    for name, shape in SHAPES.items():
        started = time.perf_counter()
        config = LlamaConfig(vocab_size=49_152, tie_word_embeddings=False, pad_token_id=2, **(SMALL if small else shape))
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device()):
            model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder / name, max_shard_size="4GB")
        load_tokenizer(ModelSpec()).save_pretrained(folder / name)
        found[name] = {"parameters": sum(p.numel() for p in model.parameters()), "seconds": time.perf_counter() - started}
        del model
    return found


def logits(folder: Path, small: bool) -> Result:
    import torch

    from cai.models.local.loading import load_causal_lm

    ids = torch.randint(49_152, (2, 64), generator=torch.Generator().manual_seed(0))
    seen = {}
    for precision in ("float32", "bfloat16", "nf4"):
        model = load_causal_lm(ModelSpec(path=str(folder / "one"), precision=precision))  # type: ignore[arg-type]
        with torch.inference_mode():
            seen[precision] = model(input_ids=ids.to(model.device)).logits.float().cpu()
        del model
    exact = seen.pop("float32")
    return {
        name: {
            "largest": float((found - exact).abs().max()),
            "mean": float((found - exact).abs().mean()),
            "scale": float(exact.abs().mean()),
            "same_likeliest": float((found.argmax(-1) == exact.argmax(-1)).float().mean()),
        }
        for name, found in seen.items()
    }


def trained(folder: Path, kind: str, small: bool) -> Result:
    """Train a few steps; the first, which allocates, is not counted in the rate."""
    import tempfile

    from cai.core.manifest import peak_memory_bytes
    from cai.models.local.loading import load_tokenizer
    from cai.records import Message, Preference, Prompt, Provenance, SFTExample

    spec = ModelSpec(path=str(folder / "big"), precision="nf4")
    tokenizer, by = load_tokenizer(spec), Provenance("bench")
    times: list[float] = []

    def text(tokens: int, word: int) -> str:
        return str(tokenizer.decode([word] * tokens))

    def prompt(i: int) -> Prompt:
        return Prompt(f"p{i}", "other", (Message("user", f"{i} " + text(PROMPT - 30, 300 + i)),), "bench")

    def on_log(step: int, total: int, metrics: dict[str, float]) -> None:
        times.append(time.perf_counter())

    count, sides = BATCH * STEPS, 1 if kind == "sft" else 2
    common = settings(small)
    with tempfile.TemporaryDirectory() as out:
        if kind == "sft":
            from cai.train.sft import train_sft

            rows = [SFTExample(prompt(i), text(COMPLETION, 400 + i), (), "b", by) for i in range(count)]
            train_sft(SFTConfig(batch_size=BATCH, epochs=1, **common), spec, rows, Path(out), 0, on_log)
        elif kind == "grpo":
            from cai.pipeline.methods.grpo import GRPO
            from cai.recipe import RewardTerm
            from cai.train.rl.grpo import train_online
            from cai.train.rl.rewards import RewardFunction
            from cai.train.running import PolicyJob

            config = PolicyConfig(method="grpo", batch_size=BATCH, epochs=1, **common)
            sides = 1
            load = lambda: RewardFunction((RewardTerm(term="length", words=4),))  # noqa: E731
            train_online(GRPO, PolicyJob(config, spec, None, Path(out), 0, on_log), [prompt(i) for i in range(count)], load, "length")
        else:
            from cai.train.dpo import train_dpo
            from cai.train.reward.train import train_reward

            pairs = [
                Preference(prompt(i), text(COMPLETION, 400 + i), text(COMPLETION, 500 + i), 0.9, 1.0, "b", (), by) for i in range(count)
            ]
            if kind == "reward":
                train_reward(RewardConfig(batch_size=BATCH, epochs=1, **common), spec, pairs, [], Path(out), 0, on_log)
            else:
                train_dpo(PolicyConfig(batch_size=BATCH, epochs=1, **common), spec, None, pairs, Path(out), 0, on_log)
    seconds = (times[-1] - times[0]) / max(1, len(times) - 1)
    found: Result = {"steps": len(times), "seconds_a_step": seconds, "peak_bytes": peak_memory_bytes()}
    found["tokens_a_second"] = BATCH * (PROMPT + sides * COMPLETION) / seconds if seconds else 0.0
    shape = read_dimensions(spec)
    if shape is not None and kind != "grpo":
        found["planned_bytes"] = predicted(
            {"kind": kind, **{k: v for k, v in common.items() if k not in ("max_length", "lora")}}, shape, spec.path
        )
    return found


def generate(folder: Path, small: bool) -> Result:
    import asyncio

    from bench.generation import answered, real_prompts
    from cai.models.local.engine import LocalEngine

    found: Result = {}
    for name, precision in (("one", "bfloat16"), ("big", "nf4")):
        engine = LocalEngine.load(ModelSpec(path=str(folder / name), precision=precision, batch_size=32))  # type: ignore[arg-type]

        async def rates(engine: LocalEngine = engine, name: str = name) -> None:
            await answered(engine, real_prompts(2), 4, 0)
            for size in (1, 8, 32):
                started = time.perf_counter()
                done = await answered(engine, real_prompts(size), 16 if small else 128, size)
                found[f"{name} {size}"] = sum(c.completion_tokens for c in done) / (time.perf_counter() - started)
            await engine.close()

        asyncio.run(rates())
    return found


def vllm(folder: Path, small: bool) -> Result:
    import importlib.util
    import urllib.request

    from bench.generation import rate, real_prompts, with_server

    if importlib.util.find_spec("vllm") is None:
        return {"skipped": "vLLM is not installed"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "one"), "--port", "18555"]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--max-model-len", "2048"], stdout=sys.stderr)
    try:
        while True:  # until it serves, ends or the part's time is over
            time.sleep(1)
            if server.poll() is not None:
                raise RuntimeError(f"vLLM ended with {server.returncode}")
            try:
                urllib.request.urlopen("http://127.0.0.1:18555/health", timeout=1)
                break
            except OSError:
                continue
        url = "http://127.0.0.1:18555/v1"
        with_server(url, real_prompts(2), 4, 0)
        return {f"one {size}": rate(lambda size=size: with_server(url, real_prompts(size), 128, size)) for size in (1, 8, 32)}  # type: ignore[misc]
    finally:
        server.terminate()
        server.wait(30)


def quickstart(folder: Path, small: bool) -> Result:
    recipe, name = ("smoke.yaml", "gpu-smoke") if small else ("quickstart.yaml", "gpu-quickstart")
    return _run(folder, [sys.executable, "-m", "cai", "run", f"runs/{recipe}", "--name", name])


def nccl(folder: Path, small: bool) -> Result:
    import torch

    if torch.cuda.device_count() < 2 and not small:
        return {"skipped": f"{torch.cuda.device_count()} GPU"}
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "cai", "run", "runs/smoke.yaml"]
    return _run(folder, [*start, "--name", "gpu-two", "--only", "respond,critique,sft"])


def _run(folder: Path, command: list[str]) -> Result:
    from cai.core.workspace import init_workspace

    workspace = folder / "workspace"
    if not workspace.exists():
        init_workspace(workspace)
    started = time.perf_counter()
    subprocess.run(command, cwd=workspace, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return {"seconds": time.perf_counter() - started}


PARTS: dict[str, tuple[Any, int]] = {
    "weights": (weights, 180),
    "logits": (logits, 90),
    **{kind: (lambda folder, small, kind=kind: trained(folder, kind, small), 120) for kind in ("sft", "reward", "dpo", "grpo")},
    "generate": (generate, 120),
    "vllm": (vllm, 180),
    "quickstart": (quickstart, 240),
    "nccl": (nccl, 120),
}
"""What measures each part, and its time limit in seconds on a GPU. The rehearsal has ten times that."""
ALL_SECONDS = 600.0
"""No part begins later on a GPU."""


def within(command: list[str], log: IO[str], seconds: float) -> str:
    """Return what a command prints, with all else in a log. Raises `RuntimeError` where it fails; whatever it started ends with it."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    try:
        said, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {seconds:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        raise RuntimeError(f"exit {child.returncode}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-bench"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--one", choices=list(PARTS), help=argparse.SUPPRESS)
    a = parser.parse_args()
    out = a.out.resolve()
    if a.one:
        print(json.dumps({"device": device(), "found": PARTS[a.one][0](out, a.small)}))
        return
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {row["part"] for row in rows if "error" not in row and row["small"] == a.small}
    failed, began = False, time.perf_counter()
    for part in (p for p in a.parts if p not in done):
        started = time.perf_counter()
        if not a.small and started - began > ALL_SECONDS:
            sys.exit(f"ten minutes are over; call it again for {part} and what follows")
        command = [sys.executable, "-m", "bench.gpu", "--one", part, "--out", str(out), *(["--small"] if a.small else [])]
        row: Result = {"part": part, "small": a.small}
        with (out / f"{part}.log").open("w") as log:
            try:
                row |= json.loads(within(command, log, PARTS[part][1] * (10 if a.small else 1)).splitlines()[-1])
            except (RuntimeError, IndexError, ValueError) as e:
                row["error"] = str(e)
        row["seconds"] = round(time.perf_counter() - started, 1)
        with results.open("a") as f:
            f.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        failed = failed or "error" in row
    sys.exit(failed)


if __name__ == "__main__":
    main()
