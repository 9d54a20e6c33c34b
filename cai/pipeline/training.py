"""The stages that train: the SFT policy, the reward models, and the policy by its method (`cai.pipeline.methods`).

They read and write like the others (`cai.pipeline.stages`). Where several processes were started, those that join the first run these
functions too: what is written here is written by the first alone.
"""

import contextlib
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from cai.core.jsonl import append_record, read_records
from cai.core.manifest import TEXTS, TRUNCATED
from cai.core.workspace import replace_stage_rows
from cai.errors import CaiError
from cai.pipeline.context import Context
from cai.pipeline.methods import METHODS, is_watched
from cai.pipeline.policy_method import SAMPLES
from cai.pipeline.reward_models import train_gold, train_rewards
from cai.recipe import GOLD, SFTData
from cai.records import Preference, SFTExample
from cai.train.checkpoints import TrainResult
from cai.train.held_out import read_points
from cai.train.monitor import FRONTIER
from cai.train.rl.online_method import OnlineMethod
from cai.train.running import HISTORY, OnLog, PolicyJob, is_first_process

EXAMPLES_OF: dict[SFTData, str] = {"critique": "sft", "distill": "distilled"}
"""Source of SFT data to the file of its examples."""


def sft_stage(c: Context) -> dict[str, int]:
    """Fine-tune the model on revisions, which gives the SL-CAI policy [§3.2], or on the responses of `distill`."""
    from cai.train.sft import train_sft

    out = c.run.model("sft")
    examples = [e for name in c.recipe.sft.data for e in c.read(EXAMPLES_OF[name], SFTExample)]
    config = c.recipe.sft if c.recipe.trains_its_writer else replace(c.recipe.sft, soft_targets=False)
    start, counts, begun = None, {}, config.beginnings
    if begun is not UNSET:
        config, start = replace(config, beginnings=UNSET), c.run.model("beginnings")
        first = replace(config, epochs=begun.epochs, batch_size=begun.batch_size)
        beginnings = list(c.read("beginnings", SFTExample))
        on_log = partial(_show_step, c, member="beginnings")
        result = train_sft(first, c.recipe.trained, beginnings, start, c.recipe.seed, on_log)
        counts = {"beginnings": result.examples, "beginning_steps": result.steps}
        counts |= {f"dropped_beginnings_{k}": n for k, n in result.dropped.items()}
    return counts | trained(c, train_sft(config, c.recipe.trained, examples, out, c.recipe.seed, progress_of(c), start), out)


def reward_stage(c: Context) -> dict[str, int]:
    """Train the reward models (the preference model of the paper) on soft labels [§4.1], and measure them on held-out rows."""
    train, held_out = (list(c.read(name, Preference)) for name in ("preferences", "preferences_heldout"))

    def on_log(member: str, step: int, total: int, metrics: dict[str, float]) -> None:
        _show_step(c, step, total, metrics, member)

    counts, steps = train_rewards(c.recipe, c.run, train, held_out, on_log)
    if steps:  # the first process alone has any
        replace_stage_rows(c.run.metrics, c.stage, [{"stage": c.stage, **row} for row in steps])
    if c.recipe.gold is not None:
        counts |= train_gold(c.recipe, c.recipe.gold, c.run, partial(on_log, GOLD))
    return counts


def policy_stage(c: Context) -> Awaitable[dict[str, int]] | dict[str, int]:
    """Train the policy from the SFT adapter by the recipe's method."""
    method = METHODS.get(c.recipe.policy.method)
    if not method.rounds:
        remove_rounds(c.run.model("policy"), beyond=0)
    if not method.samples and is_first_process():
        shutil.rmtree(c.run.model("policy") / SAMPLES, ignore_errors=True)
    if not is_watched(c.recipe) and is_first_process():
        (c.run.model("policy") / FRONTIER).unlink(missing_ok=True)  # of an earlier policy, that was watched
    return method.run(c)


def remove_rounds(out: Path, beyond: int) -> None:
    """Remove the folders of rounds above a number, left by an earlier recipe."""
    if not is_first_process():
        return
    for folder in out.glob("round-*"):
        if not folder.name[6:].isdigit() or int(folder.name[6:]) > beyond:
            shutil.rmtree(folder)


def train_on_pairs(c: Context, train: Callable[..., Any]) -> dict[str, int]:
    """Train the policy on the run's preferences; watched, where there is a gold reward model."""
    from cai.pipeline.rewarding import watching

    preferences, held_out = (list(c.read(name, Preference)) for name in ("preferences", "preferences_heldout"))
    sft, out = c.run.model("sft"), c.run.model("policy")
    more = {"monitor_spec": watching(c), "held_out": held_out}
    result = train(c.recipe.policy, c.recipe.trained, sft, preferences, out, c.recipe.seed, progress_of(c), **more)
    if is_first_process():
        for point in read_points(out):
            c.tracking.log(c.stage, {f"held_out/{name}": getattr(point, name) for name in ("loss", "margin", "accuracy")}, point.step)
        if "held_out_loss" in result.metrics:
            loss, margin, accuracy, n, step = (result.metrics[f"held_out_{name}"] for name in ("loss", "margin", "accuracy", "n", "step"))
            c.reporter.say(
                f"  policy: step {step:.0f}, {n:.0f} held-out rows: loss {loss:.3f}, margin {margin:.3f}, accuracy {accuracy:.1%}"
            )
    return trained(c, result, out)


def train_on_rewards(c: Context, method: OnlineMethod) -> dict[str, int]:
    """Train the policy on its own samples by what the recipe rewards; watched, where there is a gold reward model."""
    from cai.pipeline.rewarding import train_rewarded

    return trained(c, train_rewarded(c, method, policy_job(c)), c.run.model("policy"))


def policy_job(c: Context) -> PolicyJob:
    """Return the training of the run's policy, which shows its steps and warnings."""
    recipe = c.recipe
    return PolicyJob(recipe.policy, recipe.trained, c.run.model("sft"), c.run.model("policy"), recipe.seed, progress_of(c), c.reporter.warn)


def progress_of(c: Context) -> OnLog:
    """Return a callback that shows training steps, and sends their numbers to the tracker."""
    return partial(_show_step, c)


def _show_step(c: Context, step: int, total: int, metrics: dict[str, float], member: str = "") -> None:
    """Show a training step, send its numbers to the tracker, and keep them in a file that a page reads while the stage runs."""
    if is_first_process():
        with contextlib.suppress(OSError, CaiError):  # nothing depends on it
            append_record(c.run.live, {"stage": c.stage, "member": member, "step": step, **metrics})
    of_member = f" of {'the gold reward model' if member == GOLD else member}" if member else ""
    c.reporter.progress(step, total, f"steps{of_member}")
    c.tracking.log(member or c.stage, {f"train/{name}": value for name, value in metrics.items()}, step)


def trained(c: Context, result: TrainResult, out: Path) -> dict[str, int]:
    """Return a training's counts, and put its log into metrics.jsonl: the one in its folder, which a training that was killed has whole."""
    counts = {"examples": result.examples, "steps": result.steps, **{f"dropped_{k}": v for k, v in result.dropped.items()}}
    if is_first_process():
        steps = list(read_records(out / HISTORY, dict[str, Any]))
        points = {p.step: p for p in read_points(out)}
        apart = {step: {f"held_out/{name}": getattr(p, name) for name in ("loss", "margin", "accuracy", "n")} for step, p in points.items()}
        replace_stage_rows(c.run.metrics, c.stage, [{"stage": c.stage, **row, **apart.get(row.get("step", 0), {})} for row in steps])
        if shares := [float(share) for row in steps if (share := _truncated_share(row)) is not None]:
            samples = result.examples * (c.recipe.policy.online.num_generations if "frac_reward_zero_std" in steps[0] else 1)
            counts |= {TEXTS: samples, TRUNCATED: round(fmean(shares) * samples)}
    return counts


def _truncated_share(row: dict[str, Any]) -> float | None:
    """Return the share of a step's samples that were cut at the token limit; None if the method samples nothing."""
    if "response/eos_rate" in row:
        return 1.0 - float(row["response/eos_rate"])
    return row.get("completions/clipped_ratio")
