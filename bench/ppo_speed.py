"""Seconds of a PPO step (sample, score, update): every role on one base, against a whole model for each role, in one process, in turn.

    python -m bench.ppo_speed [--batch 8] [--micro 2] [--tokens 48] [--members 1] [--steps 4] [--precision float32]

`separate` is `bench.ppo_separate`: what one would write otherwise. Both start from the same weights and, after each has sampled for its
own time, train on the same responses, so their losses must be the same up to rounding, and are compared. The first step is not
timed. Prints one JSON object: processor seconds of each part of the median step, ratios with their least and greatest, and how far
losses and gradient norms were apart.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.ppo_memory import TEMPERATURE, make_adapters, member_folders, read_prompts, step_config

PARTS = ("sample", "score", "update")


class Clock:
    """Processor seconds of named parts, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def time(self, part: str, work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Do some work and add its time to the running step."""
        started = time.process_time()
        done = work(*arguments, **more)
        self.steps[-1][part] = time.process_time() - started
        return done


def main() -> None:
    """Take steps, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="counted ones")
    given = parser.parse_args()
    given.checkpointing = False
    with tempfile.TemporaryDirectory() as folder:
        make_adapters(given.model, given.precision, Path(folder), given.members)
        clocks, losses = compare(given, Path(folder))
    ours, theirs = (clock.steps[1:] for clock in clocks)
    whole = [sum(b.values()) / sum(a.values()) for a, b in zip(ours, theirs, strict=True)]
    report = {
        "seconds": {
            name: {part: round(median(step[part] for step in steps), 2) for part in PARTS}
            for name, steps in (("shared", ours), ("separate", theirs))
        },
        "separate_of_shared": {
            "step": [round(x, 2) for x in (median(whole), min(whole), max(whole))],
            **{part: round(median(b[part] / a[part] for a, b in zip(ours, theirs, strict=True)), 2) for part in PARTS},
        },
        "largest_difference": {name: max(abs(a[name] - b[name]) for a, b in losses) for name in losses[0][1]},
        "largest": {name: max(abs(b[name]) for _, b in losses) for name in losses[0][1]},
        "settings": {k: v for k, v in vars(given).items() if k != "checkpointing"},
    }
    print(json.dumps(report))


def compare(given: argparse.Namespace, folder: Path) -> tuple[tuple[Clock, Clock], list[tuple[dict[str, float], dict[str, float]]]]:
    """Take the steps. Returns how long each part took, shared and separate, and what both say of their losses."""
    import torch

    from bench.ppo_separate import load_separate
    from cai.models.local.encoding import Encoder
    from cai.models.local.engine import stop_ids
    from cai.models.local.loading import load_tokenizer
    from cai.recipe import LoraSpec, ModelSpec, RewardConfig
    from cai.train.rl.ppo_update import ADAM_EPSILON, World, make_batch, make_optimizer, update
    from cai.train.rl.rollout import evaluate_responses, sample, tasks
    from cai.train.rl.shared_base import load_shared_base
    from cai.train.running import quiet_training

    torch.set_num_threads(1)
    spec, config = ModelSpec(path=given.model, precision=given.precision), step_config(given)
    with quiet_training():
        tokenizer = load_tokenizer(spec)
        members = member_folders(given, folder)
        shared = load_shared_base(spec, given.precision, folder / "sft", members, LoraSpec())
        separate = load_separate(spec, folder / "sft", members, tokenizer, checkpointing=False, lean=False)
    prompts = read_prompts(tokenizer, given.batch)
    ends = stop_ids(shared.causal, Encoder(tokenizer))
    optimizers = (
        make_optimizer(config, shared),
        torch.optim.AdamW(separate.trained(), lr=config.learning_rate, eps=ADAM_EPSILON, weight_decay=0.0),
    )
    ours, theirs, losses = Clock(), Clock(), []
    for step in range(1 + given.steps):
        todo = tasks(prompts, 0, step * given.batch, given.batch)
        for clock in (ours, theirs):
            clock.steps.append({})
        settings = {"temperature": TEMPERATURE, "at_once": given.batch}
        responses = ours.time("sample", sample, shared, todo, ends, max_tokens=given.tokens, **settings)
        theirs.time("sample", separate.sample, [t.prompt_ids for t in todo], given.tokens, TEMPERATURE, ends)
        settings["at_once"] = given.micro
        said = (
            ours.time("score", evaluate_responses, shared, todo, responses, encoder=Encoder(tokenizer), **settings),
            theirs.time("score", separate.describe, todo, responses, given.micro, TEMPERATURE),
        )
        batches = [make_batch(episodes, config.ppo, RewardConfig(), "cpu") for episodes in said]
        world = World(0, 1, step * config.ppo.num_ppo_epochs, 10**9)  # so that the learning rate stays
        mine = ours.time("update", update, shared, optimizers[0], batches[0], config, step + 1, 0, world)
        losses.append((mine, theirs.time("update", separate.update, optimizers[1], batches[1], config)))
    return (ours, theirs), losses


if __name__ == "__main__":
    main()
