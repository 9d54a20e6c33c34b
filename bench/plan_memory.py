"""The memory that `cai plan` predicts against the peak that is measured, each case in a process of its own.

    python -m bench.plan_memory [--quick]

Resident memory on the CPU, the embedded model and one made from a configuration (wider, fewer layers, untied). Prints one line a case.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cai.core.manifest import peak_memory_bytes
from cai.pipeline.memory import Dimensions, generation_bytes, read_dimensions, training_bytes
from cai.recipe import LoraSpec, ModelSpec, PolicyConfig, RewardConfig, SFTConfig

PROMPT, COMPLETION, BATCH = 64, 128, 8
CASES: tuple[dict[str, Any], ...] = (
    {"kind": "sft"},
    {"kind": "sft", "gradient_checkpointing": True},
    {"kind": "sft", "precision": "float32", "layers": 10},
    {"kind": "reward"},
    {"kind": "dpo"},
    {"kind": "dpo", "precision": "nf4", "optimizer": "paged_adamw_8bit", "gradient_checkpointing": True},
    {"kind": "generate"},
    {"kind": "generate", "precision": "nf4"},
)
QUICK = (0, 1, 4, 6)


def config_of(case: dict[str, Any]) -> Any:
    kinds = {"sft": SFTConfig, "reward": RewardConfig, "dpo": PolicyConfig}
    changes = {k: v for k, v in case.items() if k not in ("kind", "layers")}
    changes.setdefault("precision", "auto")
    return kinds[case["kind"]](batch_size=BATCH, max_length=512, lora=LoraSpec(layers=case.get("layers")), **changes)


def predicted(case: dict[str, Any], d: Dimensions, model: str) -> float:
    if case["kind"] == "generate":
        spec = ModelSpec(path=model, precision=case.get("precision", "auto"), batch_size=32)
        return generation_bytes(d, spec, PROMPT + COMPLETION, "cpu")
    pairs = 1 if case["kind"] == "sft" else 2
    tokens = BATCH * (PROMPT + pairs * COMPLETION)
    scored = 0 if case["kind"] == "reward" else BATCH * pairs * COMPLETION
    return training_bytes(d, config_of(case), tokens, scored, "cpu", 2 if case["kind"] == "dpo" else 1)


def measure(case: dict[str, Any], model: str) -> int:
    """Do the case in this process and return its peak."""
    import logging

    from cai.models.local.loading import load_tokenizer
    from cai.records import Message, Preference, Prompt, Provenance, SFTExample

    logging.disable(logging.WARNING)
    spec = ModelSpec(path=model, precision=case.get("precision", "auto"), batch_size=32)
    tokenizer = load_tokenizer(spec)

    def text(tokens: int, word: int) -> str:
        return str(tokenizer.decode([word] * tokens))

    def prompt(i: int) -> Prompt:
        return Prompt(f"p{i}", "other", (Message("user", f"{i} " + text(PROMPT - 30, 300 + i)),), "bench")

    by, count = Provenance("bench"), BATCH  # one step: Adam has its moments by its end
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if case["kind"] == "sft":
            from cai.train.sft import train_sft

            train_sft(config_of(case), spec, [SFTExample(prompt(i), text(COMPLETION, 400 + i), (), "b", by) for i in range(count)], out, 0)
        elif case["kind"] == "generate":
            _generate(spec, [prompt(i) for i in range(64)])
        else:
            from cai.train.dpo import train_dpo
            from cai.train.reward.train import train_reward

            pairs = [
                Preference(prompt(i), text(COMPLETION, 400 + i), text(COMPLETION, 500 + i), 0.9, 1.0, "b", (), by) for i in range(count)
            ]
            if case["kind"] == "reward":
                train_reward(config_of(case), spec, pairs, [], out, 0)
            else:
                train_dpo(config_of(case), spec, None, pairs, out, 0)
    return peak_memory_bytes()


def _generate(spec: ModelSpec, prompts: list[Any]) -> None:
    import asyncio

    from cai.models.opening import open_engine
    from cai.models.requests import CompleteRequest, Sampling

    async def ask() -> None:
        engine = await open_engine(spec)
        asked = [CompleteRequest(p.messages, Sampling(COMPLETION, 1.0, 1.0), i) for i, p in enumerate(prompts)]
        await asyncio.gather(*(engine.submit(r) for r in asked))
        await engine.close()

    asyncio.run(ask())


def synthetic_model(folder: Path) -> str:
    """Save a model of another shape: wide, six layers, head and embedding apart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cai.models.local.loading import load_tokenizer

    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    load_tokenizer(ModelSpec()).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", type=int, nargs="+", help="by number, from 0")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        sys.stdout.write(json.dumps(measure(CASES[arguments.case], arguments.model)) + "\n")
        return
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("embedded", "embedded"), ("wide", synthetic_model(Path(folder) / "wide"))):
            d = read_dimensions(ModelSpec(path=model))
            assert d is not None
            for number, case in enumerate(CASES):
                if number not in (arguments.cases or (QUICK if arguments.quick else range(len(CASES)))):
                    continue
                command = [sys.executable, "-m", "bench.plan_memory", "--case", str(number), "--model", model]
                shown = ", ".join(f"{k}={v}" for k, v in case.items())
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    failed += 1
                    print(f"{name:9} {shown:90} exit {done.returncode}: {(done.stderr.splitlines() or ['killed'])[-1]}", flush=True)
                    continue
                peak, guess = int(done.stdout.splitlines()[-1]), predicted(case, d, model)
                print(f"{name:9} {shown:90} predicted {guess / 2**30:5.2f}  measured {peak / 2**30:5.2f} GiB  {guess / peak - 1:+5.0%}")
                sys.stdout.flush()
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
