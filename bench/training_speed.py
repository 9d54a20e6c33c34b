"""Optimizer steps of DPO and reward training, here and in plain TRL: rate, losses, peak memory.

    python -m bench.training_speed [--kinds dpo,reward] [--pairs FILE] [--steps 6] [--batch 8] [--precision auto] [--trl-float32]

Both sides train one model (`--model`, or the embedded one) on the same pairs in the same order with the same LoRA weights, optimizer and
learning rate, and hand over to each other after every step, so that whatever else the machine does slows both. TRL runs its own trainers,
collators and losses as they are, on the token ids that `cai` makes (it would tokenize the same text a little differently, and the losses
could not be compared), with the base in the same precision (where that is bfloat16, its own default of float32 weights under autocast is
slower: `--trl-float32`). The first step, which allocates, is not counted. The ratio is of CPU seconds, which a busy machine changes less
than `wall_ratio`; its spread is that of the steps' own ratios. Peak memory is that of a process that trains alone.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench.table import Row
from cai.labels.load import load_pairs
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.recipe import LoraSpec, ModelSpec, PolicyConfig, RewardConfig
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.dpo import dpo_trainer
from cai.train.encode import dpo_rows, reward_rows
from cai.train.reward.ensemble import load_scorer, scoring_tokenizer
from cai.train.reward.train import reward_trainer
from cai.train.running import PolicyJob, float_trained_weights, quiet_training

PROBES = Path(__file__).parent.parent / "prompts" / "probe_pairs.jsonl"


def rows_of(kind: str, a: argparse.Namespace) -> tuple[Any, list[dict[str, Any]]]:
    """Return the tokenizer and as many rows as the steps need, with certain labels."""
    tokenizer = load_tokenizer(ModelSpec(path=a.model))
    wanted = a.batch * a.steps
    pairs = [p for p in load_pairs(a.pairs).preferences if p.p_chosen == 1.0 and p.weight == 1.0]
    encode = dpo_rows
    if kind == "reward":
        tokenizer, encode = scoring_tokenizer(tokenizer), reward_rows
    rows, _ = encode(tokenizer, pairs, a.max_length)
    if len(rows) < wanted:
        sys.exit(f"{a.pairs}: {len(rows)} usable pairs, but {a.steps} steps of {a.batch} need {wanted}. Lower --steps or --batch.")
    return tokenizer, rows[:wanted]


def ours(kind: str, a: argparse.Namespace, out: Path, share: str = "auto") -> Any:
    """Return our trainer."""
    tokenizer, rows = rows_of(kind, a)
    common: dict[str, Any] = {"batch_size": a.batch, "precision": a.precision, "lora": LoraSpec(layers=a.layers), "share_prompt": share}
    if kind == "dpo":
        return dpo_trainer(PolicyJob(PolicyConfig(**common), ModelSpec(path=a.model), None, out, 0), tokenizer, rows)
    return reward_trainer(RewardConfig(**common, center=0.0), ModelSpec(path=a.model, precision=a.precision), tokenizer, rows, out, 0)


def theirs(kind: str, a: argparse.Namespace, out: Path) -> Any:
    """Return TRL's own trainer on the same rows and weights."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer, RewardTrainer
    from trl import RewardConfig as RewardArguments

    class OnTokenIds(DPOTrainer):  # type: ignore[misc]
        """TRL's DPO, which has no way to be given token ids; its reward trainer has."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    tokenizer, rows = rows_of(kind, a)
    data = Dataset.from_list([{k: v for k, v in row.items() if k.endswith("_ids")} for row in rows])
    config = PolicyConfig if kind == "dpo" else RewardConfig
    arguments = training_arguments(config(batch_size=a.batch, precision=a.precision), len(rows), out, 0)
    base = ModelSpec(path=a.model, precision="float32" if a.trl_float32 else a.precision)
    set_seed(0)
    if kind == "dpo":
        model = with_new_adapter(load_causal_lm(base, trainable=True), LoraSpec(layers=a.layers))
        made = OnTokenIds(
            model=model, args=DPOConfig(**arguments, max_length=None, beta=0.1), train_dataset=data, processing_class=tokenizer
        )
    else:
        model = with_new_adapter(load_scorer(base, tokenizer.pad_token_id), LoraSpec(layers=a.layers), scorer=True)
        made = RewardTrainer(
            model=model, args=RewardArguments(**arguments, max_length=None), train_dataset=data, processing_class=tokenizer
        )
    float_trained_weights(made.model)
    return made


class Baton:
    """Lets several trainings, each in its thread, make one step in turn."""

    def __init__(self, runners: int) -> None:
        self.turn, self.runners, self.changed = 0, runners, threading.Condition()

    def wait(self, runner: int) -> None:
        """Wait for one's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.turn == runner)

    def pass_on(self) -> None:
        """Hand over to the next."""
        with self.changed:
            self.turn = (self.turn + 1) % self.runners
            self.changed.notify_all()


def alternate(trainers: list[Any]) -> list[list[tuple[float, float]]]:
    """Train all, a step each in turn, and return the wall and CPU seconds of each one's steps."""
    from transformers import PrinterCallback, TrainerCallback

    baton, seconds = Baton(len(trainers)), [[] for _ in trainers]

    class Turns(TrainerCallback):  # type: ignore[misc]
        def __init__(self, number: int) -> None:
            self.number = number

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            baton.wait(self.number)
            self.started = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wall, cpu = self.started
            seconds[self.number].append((time.perf_counter() - wall, time.process_time() - cpu))
            baton.pass_on()

    for number, trainer in enumerate(trainers):
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Turns(number))
    threads = ThreadPoolExecutor(len(trainers))
    running = [threads.submit(trainer.train) for trainer in trainers]
    for training in as_completed(running):
        if training.exception() is not None:  # the others would wait for its turn for ever
            traceback.print_exception(training.exception())
            os._exit(1)
    return seconds


def peak_gib(kind: str, side: str, given: list[str]) -> float:
    """Return the peak memory of a process that makes two steps on one side only."""
    command = [sys.executable, "-m", "bench.training_speed", *given, "--kinds", kind, "--steps", "2", "--alone", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(kind: str, a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of one kind of training."""
    with quiet_training():
        trainers = [ours(kind, a, folder / "ours"), theirs(kind, a, folder / "theirs")]
        mine, other = alternate(trainers)
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in trainers]
    wall, cpu = ([[step[k] for step in side[1:]] for side in (mine, other)] for k in (0, 1))
    ratios = [y / x for x, y in zip(*cpu, strict=True)]
    return {
        "ratio": round(sum(cpu[1]) / sum(cpu[0]), 2),
        "ratio_low_high": [round(min(ratios), 2), round(max(ratios), 2)],
        "wall_ratio": round(sum(wall[1]) / sum(wall[0]), 2),
        "steps": len(ratios),
        "cpu_seconds_per_step": dict(zip(("cai", "trl"), (round(statistics.median(side), 2) for side in cpu), strict=True)),
        "first_and_last_loss": {"cai": [losses[0][0], losses[0][-1]], "trl": [losses[1][0], losses[1][-1]]},
        "largest_loss_difference": max(abs(x - y) for x, y in zip(*losses, strict=True)),
    }


def rows(quick: bool) -> list[Row]:
    """Return the ratio of step rates of both kinds."""
    a = arguments(["--steps", "3", "--batch", "2", "--layers", "4"] if quick else [])
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: compare(kind, a, Path(folder) / kind) for kind in a.kinds.split(",")}
    return [
        Row(
            "training_speed",
            f"{kind} steps of {a.batch} pairs, processor time",
            "plain TRL, same rows, weights and precision",
            f["ratio"],
            *f["ratio_low_high"],
            f["steps"],
            note=f"losses differ by at most {f['largest_loss_difference']:.1g}",
        )
        for kind, f in found.items()
    ]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="dpo,reward")
    parser.add_argument("--pairs", type=Path, default=PROBES)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--trl-float32", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--alone", choices=["cai", "trl"])
    return parser.parse_args(given)


def main() -> None:
    """Measure, and print one JSON object a kind."""
    a = arguments()
    with tempfile.TemporaryDirectory() as folder:
        for kind in a.kinds.split(","):
            if a.alone:
                with quiet_training():
                    alternate([(ours if a.alone == "cai" else theirs)(kind, a, Path(folder))])
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
                continue
            report = {"kind": kind, **compare(kind, a, Path(folder) / kind)}
            if not a.no_memory:
                report["peak_gib"] = {side: round(peak_gib(kind, side, sys.argv[1:]), 2) for side in ("cai", "trl")}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
