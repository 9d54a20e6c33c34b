"""Peak memory of one PPO step (sample, score, update): every role on one base, against a whole model for each role.

    python -m bench.ppo_memory [--model embedded] [--precision bfloat16] [--batch 16] [--micro 2] [--tokens 48] [--members 1,3]
                               [--variants shared,separate,lean] [--checkpointing]

Each figure comes from a process of its own, with the same prompts, seed, LoRA shapes, optimizer, batch, micro-batch and precision of the
bases (`bfloat16` is under autocast, with what trains in float32; some processors only imitate it, and are several times slower at it):

    shared      this project: one base, the roles are adapters on it
    separate    what one would write otherwise: policy, reference, value and each reward member a whole model with its adapter, as TRL's
                PPO trainer had them, its logits over all of the response's positions included
    lean        the same four or more models, but with this project's log-probabilities, which never make whole logits: what is left
                between it and `shared` is the sharing of the base

Peak memory is the highest resident size of the process less what it held when the libraries were loaded and no weights were: those take
the same whatever is trained. glibc is told to give blocks above 128 KiB back when they are freed, in every variant: otherwise up to a
third of the peak is what it keeps, and not what a step needs. `total_gib` is the whole peak. Weights, adapters, gradients, optimizer
state, key-value memory and activations are all in it. Prints one JSON object.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.recipe import PolicyConfig, PPOSpec, Precision

GIB = 2**30
TEMPERATURE = 0.7
GIVEN_BACK = 128 * 1024
"""Bytes from which glibc gives a block back as soon as it is freed."""
EPOCHS = 2
"""Passes over the batch: enough for the optimizer's state to be there while a micro-batch is differentiated."""


def resident() -> int:
    """Return this process's resident bytes now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


class Peak:
    """The highest resident size while a block runs, looked at every two milliseconds."""

    def __enter__(self) -> "Peak":
        gc.collect()
        self.before = self.highest = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def make_adapters(model: str, precision: Precision, folder: Path, members: int) -> None:
    """Write an SFT adapter and reward members with random weights: memory doesn't depend on their values."""
    import torch

    from cai.models.local.loading import load_causal_lm, load_tokenizer
    from cai.recipe import LoraSpec, ModelSpec
    from cai.train.arguments import with_new_adapter
    from cai.train.reward.ensemble import load_scorer, scoring_tokenizer
    from cai.train.running import quiet_training

    spec = ModelSpec(path=model, precision=precision)
    for i, name in enumerate(["sft", *[f"reward-{i}" for i in range(members)]]):
        torch.manual_seed(i)
        with quiet_training():
            tokenizer = load_tokenizer(spec)
            if name == "sft":
                made = with_new_adapter(load_causal_lm(spec, trainable=True), LoraSpec())
            else:
                made = with_new_adapter(load_scorer(spec, scoring_tokenizer(tokenizer).pad_token_id), LoraSpec(), scorer=True)
            for parameter_name, parameter in made.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.01)
            made.save_pretrained(folder / name)
            tokenizer.model_max_length = 512
            tokenizer.save_pretrained(folder / name)
        del made
        gc.collect()


def read_prompts(tokenizer: Any, count: int) -> list[tuple[str, list[int]]]:
    """Return the first shipped prompts, as ids and token ids."""
    from cai.records import Message
    from cai.train.encode import encode_turn

    file = Path(__file__).parent.parent / "prompts" / "helpful.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]
    texts = [row["messages"][0]["content"] for row in rows]
    return [(str(i), encode_turn(tokenizer, [Message("user", text)], "")[0]) for i, text in enumerate(texts)]


def step_config(given: argparse.Namespace) -> PolicyConfig:
    """Return the settings of a step, the same in every variant."""
    return PolicyConfig(
        method="ppo",
        precision=given.precision,
        batch_size=given.micro,
        gradient_accumulation=given.batch // given.micro,
        warmup_fraction=0.0,
        ppo=PPOSpec(
            response_length=given.tokens, num_ppo_epochs=EPOCHS, local_rollout_forward_batch_size=given.micro, temperature=TEMPERATURE
        ),
    )


def step_shared(given: argparse.Namespace, folder: Path, prompts: list[tuple[str, list[int]]], tokenizer: Any) -> None:
    """One step of `cai.train.rl.ppo`, without its bookkeeping."""
    from cai.models.local.encoding import Encoder
    from cai.models.local.engine import stop_ids
    from cai.recipe import LoraSpec, ModelSpec, RewardConfig
    from cai.train.rl.ppo_update import World, make_batch, make_optimizer, update
    from cai.train.rl.rollout import evaluate_responses, sample, tasks
    from cai.train.rl.shared_base import load_shared_base

    spec = ModelSpec(path=given.model, precision=given.precision)
    config = step_config(given)
    ppo = config.ppo
    shared = load_shared_base(
        spec, given.precision, folder / "sft", member_folders(given, folder), LoraSpec(), gradient_checkpointing=given.checkpointing
    )
    todo = tasks(prompts, 0, 0, given.batch)
    ends = stop_ids(shared.causal, Encoder(tokenizer))
    responses = sample(shared, todo, ends, max_tokens=given.tokens, temperature=TEMPERATURE, at_once=given.batch)
    episodes = evaluate_responses(shared, todo, responses, encoder=Encoder(tokenizer), temperature=TEMPERATURE, at_once=given.micro)
    batch = make_batch(episodes, ppo, RewardConfig(), shared.device)
    update(shared, make_optimizer(config, shared), batch, config, 1, 0, World(0, 1, 0, 8))


def step_separate(given: argparse.Namespace, folder: Path, prompts: list[tuple[str, list[int]]], tokenizer: Any, lean: bool) -> None:
    """One step with a whole model for each role."""
    import torch

    from bench.ppo_separate import load_separate
    from cai.models.local.encoding import Encoder
    from cai.models.local.engine import stop_ids
    from cai.recipe import ModelSpec, RewardConfig
    from cai.train.rl.ppo_update import ADAM_EPSILON, make_batch
    from cai.train.rl.rollout import tasks

    spec, config = ModelSpec(path=given.model, precision=given.precision), step_config(given)
    models = load_separate(spec, folder / "sft", member_folders(given, folder), tokenizer, checkpointing=given.checkpointing, lean=lean)
    todo = tasks(prompts, 0, 0, given.batch)
    ends = stop_ids(models.policy.get_base_model(), Encoder(tokenizer))
    torch.manual_seed(0)
    responses = models.sample([t.prompt_ids for t in todo], given.tokens, TEMPERATURE, ends)
    episodes = models.describe(todo, [(ids, ids[-1] in ends) for ids in responses], given.micro, TEMPERATURE)
    batch = make_batch(episodes, config.ppo, RewardConfig(), "cpu")
    models.update(torch.optim.AdamW(models.trained(), lr=config.learning_rate, eps=ADAM_EPSILON, weight_decay=0.0), batch, config)


def member_folders(given: argparse.Namespace, folder: Path) -> list[Path]:
    """Return the folders of as many reward members as were asked for."""
    return [folder / f"reward-{i}" for i in range(int(given.members))]


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Take one step in this process and return its peak."""
    import bitsandbytes  # noqa: F401
    import peft.tuners.lora  # noqa: F401
    import torch
    import trl  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    from cai.models.local.loading import load_tokenizer
    from cai.recipe import ModelSpec
    from cai.train.running import quiet_training

    torch.set_num_threads(1)
    with quiet_training():
        tokenizer = load_tokenizer(ModelSpec(path=given.model))
        prompts = read_prompts(tokenizer, given.batch)
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # what is loaded at first use
        started = time.monotonic()
        with Peak() as peak:
            if given.variant == "shared":
                step_shared(given, Path(given.folder), prompts, tokenizer)
            else:
                step_separate(given, Path(given.folder), prompts, tokenizer, given.variant == "lean")
    return {
        "peak_gib": round((peak.highest - peak.before) / GIB, 3),
        "total_gib": round(peak.highest / GIB, 3),
        "seconds": round(time.monotonic() - started, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure each variant in its own process, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=16, help="responses in the step")
    parser.add_argument("--micro", type=int, default=2, help="responses in a forward and backward pass")
    parser.add_argument("--checkpointing", action="store_true", help="make activations again in the backward pass, in every variant")
    parser.add_argument("--tokens", type=int, default=48, help="longest response")
    parser.add_argument("--members", default="1,3", help="reward members")
    parser.add_argument("--variants", default="shared,separate,lean")
    parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.variant:
        print(json.dumps(measure(given)))
        return
    report: dict[str, Any] = {k: getattr(given, k) for k in ("model", "precision", "batch", "micro", "tokens")}
    same = [f"--{k}={v}" for k, v in report.items()] + ["--checkpointing"] * given.checkpointing
    report["checkpointing"] = given.checkpointing
    with tempfile.TemporaryDirectory() as folder:
        counts = given.members.split(",")
        make_adapters(given.model, given.precision, Path(folder), max(map(int, counts)))
        for members in counts:
            found: dict[str, Any] = {}
            for variant in given.variants.split(","):
                command = [sys.executable, "-m", "bench.ppo_memory", *same, "--members", members, "--variant", variant, "--folder", folder]
                environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(GIVEN_BACK)}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                found[variant] = json.loads(done.stdout.splitlines()[-1])
            for other in set(found) - {"shared"} if "shared" in found else ():
                found[f"shared_of_{other}"] = round(found["shared"]["peak_gib"] / found[other]["peak_gib"], 3)
            report[f"members_{members}"] = found
            print(json.dumps({members: found}), file=sys.stderr, flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
