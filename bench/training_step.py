"""Seconds per optimizer step of the three trainings, on the embedded model.

    python bench/training_step.py [--kinds sft,reward,policy] [--batch 8] [--tokens 200] [--steps 4] [--layers N] [--precision bfloat16]

Prints one JSON object. The texts are the shipped prompts joined to the wanted length: their content is without effect on the time.
The first step (which allocates) is not counted.
"""

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

from cai.models.loading import load_tokenizer
from cai.recipe import LoraSpec, ModelSpec, PolicyConfig, RewardConfig, SFTConfig
from cai.records import Message, Preference, Prompt, Provenance, SFTExample
from cai.train.dpo import train_dpo
from cai.train.reward import train_reward
from cai.train.sft import train_sft

BY = Provenance("bench")


def texts(tokenizer: object, tokens: int, count: int) -> list[str]:
    """Return `count` different texts of `tokens` tokens."""
    words: list[str] = []
    for file in sorted((Path(__file__).parent.parent / "prompts").glob("*.jsonl")):
        words += [word for line in file.read_text(encoding="utf-8").splitlines() for word in line.split()]
    ids = tokenizer(" ".join(words * (1 + tokens * (count + 1) // len(words))), add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    return [tokenizer.decode(ids[i * tokens : (i + 1) * tokens]) for i in range(count)]  # type: ignore[attr-defined]


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="sft,reward,policy")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200, help="prompt and completion together")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--model", default="embedded")
    given = parser.parse_args()
    model = ModelSpec(path=given.model)
    tokenizer = load_tokenizer(model)
    count = given.batch * (given.steps + 1)
    prompts = [Prompt(f"p{i}", "other", (Message("user", t),), "bench") for i, t in enumerate(texts(tokenizer, given.tokens // 3, count))]
    answers = texts(tokenizer, given.tokens - given.tokens // 3 - 40, 2 * count)
    common = {
        "batch_size": given.batch,
        "precision": given.precision,
        "lora": LoraSpec(layers=given.layers, rank=given.rank),
        "max_length": 2 * given.tokens + 100,
        "save_steps": 10_000,
    }
    pairs = [Preference(p, answers[i], answers[count + i], 0.9, 1.0, "bench", (), BY) for i, p in enumerate(prompts)]
    report: dict[str, object] = {**vars(given)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds.split(","):
            times: list[float] = []

            def note(step: int, total: int, metrics: dict[str, float], times: list[float] = times) -> None:
                times.append(time.monotonic())

            started, out = time.monotonic(), Path(folder) / kind
            if kind == "sft":
                examples = [SFTExample(p, a, (), "bench", BY) for p, a in zip(prompts, answers, strict=False)]
                train_sft(SFTConfig(**common), model, examples, out, 0, note)
            elif kind == "reward":
                train_reward(RewardConfig(**common), model, pairs, (), out, 0, note)
            else:
                sft = Path(folder) / "sft"
                train_dpo(PolicyConfig(**common), model, sft if sft.exists() else None, pairs, out, 0, note)
            report[kind] = {
                "seconds_per_step": round(statistics.median(b - a for a, b in itertools.pairwise(times)), 3),
                "seconds_all": round(time.monotonic() - started, 1),
            }
    report["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
