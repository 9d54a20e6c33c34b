"""A workspace whose recipe trains the tiny model, for tests of whole runs."""

import json
from pathlib import Path

from cai.core.workspace import Workspace
from tests.workspaces import make_workspace

TINY = """\
model: {{ path: {model}, batch_size: 8, max_length: 512 }}
prompts:
  train: [{{ path: prompts/harmful.jsonl, limit: 8 }}, {{ path: prompts/helpful.jsonl, limit: 4 }}]
  evaluate: [{{ path: prompts/eval_harmful.jsonl, limit: 3 }}, {{ path: prompts/eval_borderline.jsonl, limit: 3 }}]
constitution: constitution/short.yaml
respond: {{ sampling: {{ max_tokens: 12 }} }}
critique: {{ sampling: {{ max_tokens: 12 }}, min_p_revised: 0.0, kinds: [harmful] }}
sft: {{ max_length: 512, batch_size: 4, lora: {{ rank: 4 }} }}
pairs: {{ sampling: {{ max_tokens: 12 }}, contrast: true }}
feedback: {{ principles: sample, bench_pairs: prompts/short.jsonl }}
preferences: {{ held_out_fraction: 0.2 }}
reward: {{ max_length: 512, batch_size: 8, lora: {{ rank: 4 }}, members: 2, slices: parts, aggregate: uncertainty }}
policy: {{ max_length: 512, batch_size: 8, lora: {{ rank: 4 }} }}
evaluate: {{ sampling: {{ max_tokens: 12 }}, knowledge: 2 }}
max_failure_fraction: 1.0
"""
CONSTITUTION = """\
id: short
name: Short
description: One token is one byte to the tiny model, so everything is short.
principles:
  - id: kind
    statement: Be kind.
    critique: What is unkind?
    revision: Make it kind.
    ask_positive: Is the response kind?
    ask_negative: Is the response unkind?
    compare: Which response is kinder?
  - id: brief
    statement: Be brief.
    critique: What is long?
    revision: Make it brief.
    ask_positive: Is the response brief?
    ask_negative: Is the response too long?
    compare: Which response is briefer?
"""
ROUNDS = (
    "policy.method=online-dpo",
    "policy.rounds.count=2",
    "policy.precision=float32",
    "policy.learning_rate=0.01",
    "policy.batch_size=4",
)
"""Changes to the recipe: DPO in two rounds."""


def tiny_workspace(folder: Path, model: Path, adapters: bool = False) -> Workspace:
    """A workspace with `TINY` as runs/s.yaml, for the model in a folder, and prompts that are short enough for it."""
    workspace = make_workspace(folder, TINY.format(model=model), adapters)
    (folder / "constitution" / "short.yaml").write_text(CONSTITUTION)
    with (folder / "prompts" / "short.jsonl").open("w") as f:
        for i in range(6):
            sides = {side: [{"role": "assistant", "content": f"{side} {i}."}] for side in ("chosen", "rejected")}
            f.write(json.dumps({"prompt": [{"role": "user", "content": f"Question {i}?"}], **sides}) + "\n")
    with (folder / "prompts" / "audit" / "passages.jsonl").open("w") as f:
        for i in range(3):
            f.write(json.dumps({"id": f"passage-{i}", "category": "short", "prompt": "Go on.", "text": f"Good prose, {i}."}) + "\n")
    for name in ("harmful", "helpful", "eval_harmful", "eval_borderline"):
        kind = name.removeprefix("eval_")
        with (folder / "prompts" / f"{name}.jsonl").open("w") as f:
            for i in range(8):
                messages = [{"role": "user", "content": f"A {name} question, {'very ' * (i % 3)}short: {i}?"}]
                f.write(json.dumps({"id": f"{name}-{i}", "kind": kind, "messages": messages}) + "\n")
    return workspace
