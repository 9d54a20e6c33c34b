"""A Bradley–Terry reward model (Bai et al. 2022, §4.1): a LoRA adapter and a scalar head over the last token, on soft labels.

TRL's `RewardTrainer` does the training. Departures from the paper: labels may come from people too, and have weights; conversations
that are too long lose their beginning rather than the pair; the score is taken at the end-of-turn token, so padding is another token.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from cai.core.jsonl import write_text
from cai.ids import derive_seed
from cai.models.opening import release_memory
from cai.recipe import ModelSpec, RewardConfig
from cai.records import Preference
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, preference_sources, write_card
from cai.train.checkpoints import TrainResult, checkpoint_folder, finished_result
from cai.train.encode import reward_rows
from cai.train.reward.balance import balance_lengths
from cai.train.reward.ensemble import (
    CENTRE,
    RewardEnsemble,
    choose_centre_pairs,
    load_ensemble,
    load_scorer,
    score_pairs,
    scoring_tokenizer,
    write_centre,
)
from cai.train.reward.metrics import HeldOutMetrics, measure_margins
from cai.train.reward.slices import slice_preferences
from cai.train.running import (
    OnLog,
    finish,
    float_trained_weights,
    forget,
    is_first_process,
    prepare,
    quiet_training,
    train_and_save,
    training_fingerprint,
)

METRICS = "metrics.json"
OnMemberLog = Callable[[str, int, int, dict[str, float]], None]
"""As `OnLog`, with the member's name first."""


def train_members(
    config: RewardConfig,
    model: ModelSpec,
    preferences: Sequence[Preference],
    held_out: Sequence[Preference],
    models: Path,
    seed: int,
    on_log: OnMemberLog | None = None,
) -> dict[str, TrainResult]:
    """Train every member of the ensemble, each on its slice, one after the other. Finished members are not trained again.

    The first member has the run's own seed, so that an ensemble of one on all pairs is the single reward model; another member more
    leaves the others as they are, unless the slices hang on their number.

    Args:
        config: the recipe's `reward` block.
        model: as in `train_reward`.
        preferences: what there is to train on; each member sees its slice.
        held_out: as in `train_reward`; the same for all.
        models: each member's folder is made in it, under the member's name.
        seed: the run's.
        on_log: called after each step.

    Returns:
        Name to result, in order.

    Raises:
        TrainingError: the slices can't be cut, or as in `train_reward`.
        ModelError: the model can't be loaded.
    """
    centre_on = choose_centre_pairs(preferences)
    slices = slice_preferences(preferences, config.members, config.slices, seed)
    results = {}
    for i, (name, part) in enumerate(zip(config.member_names, slices, strict=True)):
        log = None if on_log is None else partial(on_log, name)
        member_seed = seed if i == 0 else derive_seed(seed, "reward", i)
        about = MemberSetup(part.description if config.members > 1 else "", centre_on)
        results[name] = train_reward(config, model, part.preferences, held_out, models / name, member_seed, log, about)
    return results


@dataclass(frozen=True)
class MemberSetup:
    """What a reward model has from the ensemble that it is trained for."""

    data_slice: str = ""
    """What of the training pairs it sees, for its card."""
    centre_on: Sequence[Preference] | None = None
    """Its scores are counted from their mean over these pairs' responses; None takes some of its own pairs."""


def train_reward(
    config: RewardConfig,
    model: ModelSpec,
    preferences: Sequence[Preference],
    held_out: Sequence[Preference],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
    member: MemberSetup = MemberSetup(),
) -> TrainResult:
    """Train a reward model, measure it on held-out pairs, and save it in `out` with tokenizer, model card, `metrics.json` and log.

    Resumes and repeats as `train_sft` does.

    Args:
        config: the recipe's `reward` block. What it says of the ensemble is without effect here.
        model: the base model; its own adapter, if any, is not used.
        preferences: judged pairs to train on; at least one.
        held_out: judged pairs to measure on; may be empty.
        out: folder for the adapter and head.
        seed: decides the head's and the adapter's initial weights, and the order.
        on_log: called after each step, with `accuracy`, `margin`, `mean_reward`, `loss`.
        member: what it has from its ensemble, if it is one of several.

    Raises:
        TrainingError: no pair is left, or training diverges.
        ModelError: the model can't be loaded.
    """
    from cai.models.local.loading import load_tokenizer

    config = config.member
    base = replace(model, adapter=None, precision=config.precision)
    tokenizer = scoring_tokenizer(load_tokenizer(base))
    weighted = balance_lengths(preferences) if config.balance_length else preferences
    rows, dropped = reward_rows(tokenizer, weighted, config.max_length, config.margin)
    centre_on = choose_centre_pairs(preferences) if member.centre_on is None else member.centre_on
    measured_on = ([(p.id, p.p_chosen) for p in held_out], [p.id for p in centre_on])
    fingerprint = training_fingerprint("reward", config, base, rows, seed, measured_on)
    if (done := finished_result(out, fingerprint)) is not None:
        forget(out)
        return done
    prepare(out)
    with quiet_training():
        trainer = reward_trainer(config, base, tokenizer, rows, out, seed)
    tokenizer.model_max_length = config.max_length  # saved with it, so that scoring cuts where training did
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=on_log, dropped=dropped)
    del trainer
    release_memory()
    measured = {}
    if is_first_process():
        for stale in (CENTRE, METRICS):
            (out / stale).unlink(missing_ok=True)
        scorer = load_ensemble([out], base)
        write_centre(out, [s.value for pair in score_pairs(scorer, centre_on, held_out=False) for s in (pair.chosen, pair.rejected)])
        if any(p.p_chosen != 0.5 for p in held_out):
            metrics = measure_reward(scorer, held_out)
            write_text(out / METRICS, msgspec.json.format(msgspec.json.encode(metrics), indent=2).decode() + "\n")
            measured = _as_text(metrics)
            result = _with_metrics(result, metrics)
        del scorer
        release_memory()
    sources = preference_sources(preferences)
    facts = CardFacts("reward", model.path, "with a scalar head", sources, config, result, seed, measured, member.data_slice)
    write_card(out, facts)
    finish(out, fingerprint, result)
    return result


def reward_trainer(config: RewardConfig, base: ModelSpec, tokenizer: Any, rows: list[dict[str, Any]], out: Path, seed: int) -> Any:
    """Return TRL's trainer with model, adapter, head and rows in place, ready to train."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig as RewardArguments

    from cai.train.packing import share_prompts
    from cai.train.trainers import SoftRewardCollator, SoftRewardRun, collate_packed_reward, score_ends

    set_seed(seed)  # the head's and the adapter's initial weights
    scorer = load_scorer(base, tokenizer.pad_token_id)
    packed = share_prompts(scorer, config.share_prompt, max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")))
    if packed:
        score_ends(scorer)
    arguments = RewardArguments(
        **training_arguments(config, len(rows), checkpoint_folder(out), seed),
        center_rewards_coefficient=config.center or None,
        disable_dropout=config.lora.dropout == 0.0,
        max_length=None,  # cut already
    )
    trainer = SoftRewardRun(
        model=with_new_adapter(scorer, config.lora, scorer=True),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=collate_packed_reward if packed else SoftRewardCollator(pad_token_id=tokenizer.pad_token_id),
    )
    float_trained_weights(trainer.model)
    return trainer


def measure_reward(ensemble: RewardEnsemble, preferences: Sequence[Preference]) -> HeldOutMetrics:
    """Return how well reward models predict labels. Pairs labelled exactly ½ favour no side and are left out.

    Raises:
        TrainingError: no pair favours a side.
    """
    pairs = score_pairs(ensemble, [p for p in preferences if p.p_chosen != 0.5], held_out=True)
    return measure_margins([p.margin for p in pairs], [p.p_chosen for p in pairs])


def _as_text(metrics: HeldOutMetrics) -> dict[str, str]:
    low, high = metrics.overconfidence_low, metrics.overconfidence_high
    return {
        "accuracy": f"{metrics.accuracy:.1%} (95 % interval {metrics.low:.1%} to {metrics.high:.1%}, n = {metrics.n})",
        "calibration error": f"{metrics.calibration_error:.3f}",
        "overconfidence": f"{metrics.overconfidence:+.3f} (95 % interval {low:+.3f} to {high:+.3f})",
        "mean margin": f"{metrics.mean_margin:.3f}",
    }


def _with_metrics(result: TrainResult, metrics: HeldOutMetrics) -> TrainResult:
    numbers = {f"held_out_{k}": float(v) for k, v in asdict(metrics).items() if k != "reliability"}
    return dataclasses.replace(result, metrics={**result.metrics, **numbers})
