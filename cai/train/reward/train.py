"""Train a Bradley–Terry reward model (Bai et al. 2022, §4.1) on soft labels: a LoRA adapter and a scalar head over the last token.

Uses TRL's `RewardTrainer`. Departures from the paper:

1. Labels may also come from people, and have weights.
2. Conversations that are too long are truncated on the left, and counted; the pair is kept.
3. The score is taken at the end-of-turn token, so the padding token is a different one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.core.jsonl import write_json
from cai.data.splits import SIMILARITY
from cai.ids import derive_seed
from cai.models.opening import release_memory
from cai.recipe import ModelSpec, RewardConfig
from cai.records import Preference
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, sources_of
from cai.train.checkpoints import TrainResult, checkpoint_folder
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
    begin,
    finish,
    float_trained_weights,
    is_first_process,
    quiet_training,
    train_and_save,
    training_fingerprint,
)

METRICS = "metrics.json"
OnMemberLog = Callable[[str, int, int, dict[str, float]], None]
"""Like `OnLog`, with the member's name as the first argument."""


def train_members(
    config: RewardConfig,
    model: ModelSpec,
    preferences: Sequence[Preference],
    held_out: Sequence[Preference],
    models: Path,
    seed: int,
    on_log: OnMemberLog | None = None,
    similarity: float | None = SIMILARITY,
) -> dict[str, TrainResult]:
    """Train all members of the ensemble in turn, each on its slice. Finished members are not trained again.

    The first member has the run's seed, so that an ensemble of one on all pairs equals the single reward model. Adding a member does not
    change the others, unless the slices depend on the number of members.

    Args:
        preferences: all training pairs; each member is trained on its slice.
        models: parent of the members' folders, which have the members' names.
        similarity: see `slice_preferences`.

    Returns:
        Results by member name, in order.
    """
    centre_on = choose_centre_pairs(preferences)
    slices = slice_preferences(preferences, config.members, config.slices, seed, similarity)
    results = {}
    for i, (name, part) in enumerate(zip(config.member_names, slices, strict=True)):
        log = None if on_log is None else partial(on_log, name)
        member_seed = seed if i == 0 else derive_seed(seed, "reward", i)
        about = MemberSetup(part.description if config.members > 1 else "", centre_on)
        results[name] = train_reward(config, model, part.preferences, held_out, models / name, member_seed, log, about)
    return results


@dataclass(frozen=True)
class MemberSetup:
    """Settings of an ensemble's member that depend on the ensemble."""

    data_slice: str = ""
    """Description of its training data, for its card."""
    centre_on: Sequence[Preference] | None = None
    """Pairs on which its scores are centred; None takes some of its own pairs."""


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
    """Train a reward model, evaluate it on held-out pairs, and save it in `out` with tokenizer, model card, `metrics.json` and log.

    Resumes after a kill, and returns the result of a finished training, as `train_sft` does.

    Args:
        config: the recipe's `reward` block. Its settings of the ensemble have no effect here.
        model: the base model. Its own adapter, if any, is not used.
        preferences: judged pairs to train on; at least one.
        held_out: judged pairs to evaluate on; may be empty.
        out: folder for the adapter and head.
        seed: decides the order, and the initial weights of head and adapter.
        on_log: called after each step, with `accuracy`, `margin`, `mean_reward`, `loss`.
        member: settings from the ensemble, if it is a member of one.

    Raises:
        TrainingError: no pair is left, or training diverges.
        ModelError: the model can't be loaded.
    """
    from cai.models.local.loading import load_tokenizer

    config = config.member
    base = replace(model, adapter=None, precision=config.precision)
    tokenizer = scoring_tokenizer(load_tokenizer(base))
    weighted = balance_lengths(preferences) if config.balance_length else preferences
    rows, dropped, truncated = reward_rows(tokenizer, weighted, config.max_length, config.margin)
    centre_on = choose_centre_pairs(preferences) if member.centre_on is None else member.centre_on
    measured_on = ([(p.id, p.p_chosen) for p in held_out], [p.id for p in centre_on])
    fingerprint = training_fingerprint("reward", config, base, rows, seed, measured_on)
    if (done := begin(out, fingerprint)) is not None:
        return done
    with quiet_training():
        trainer = reward_trainer(config, base, tokenizer, rows, out, seed)
    tokenizer.model_max_length = config.max_length  # saved with the tokenizer, so that scoring truncates as training did
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=on_log, dropped=dropped)
    result = dataclasses.replace(result, truncated=truncated)
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
            write_json(out / METRICS, metrics)
            measured = _as_text(metrics)
            result = _with_metrics(result, metrics)
        del scorer
        release_memory()
    sources = sources_of(preferences)
    facts = CardFacts("reward", model.path, "with a scalar head", sources, config, result, seed, measured, member.data_slice)
    finish(out, fingerprint, facts)
    return result


def reward_trainer(config: RewardConfig, base: ModelSpec, tokenizer: Any, rows: list[dict[str, Any]], out: Path, seed: int) -> Any:
    """Return TRL's trainer with model, adapter, head and rows, ready to train."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig as RewardArguments

    from cai.train.packing import share_prompts
    from cai.train.trainers import SoftRewardCollator, SoftRewardRun, collate_packed_reward, score_ends

    set_seed(seed)  # initial weights of head and adapter
    scorer = load_scorer(base, tokenizer.pad_token_id)
    packed = share_prompts(scorer, config.share_prompt, max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")))
    if packed:
        score_ends(scorer)
    arguments = RewardArguments(
        **training_arguments(config, len(rows), checkpoint_folder(out), seed),
        center_rewards_coefficient=config.center or None,
        disable_dropout=config.lora.dropout == 0.0,
        max_length=None,  # rows are truncated already
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
    """Measure how well reward models predict labels. Pairs labelled exactly ½ favour no side and are left out."""
    pairs = score_pairs(ensemble, [p for p in preferences if p.p_chosen != 0.5], held_out=True)
    return measure_margins([p.margin for p in pairs], [p.p_chosen for p in pairs], [p.cluster for p in pairs])


def _as_text(metrics: HeldOutMetrics) -> dict[str, str]:
    low, high = metrics.overconfidence_low, metrics.overconfidence_high
    return {
        "accuracy": f"{metrics.accuracy:.1%} (95 % confidence interval {metrics.low:.1%} to {metrics.high:.1%}, n = {metrics.n})",
        "calibration error": f"{metrics.calibration_error:.3f}",
        "overconfidence": f"{metrics.overconfidence:+.3f} (95 % confidence interval {low:+.3f} to {high:+.3f})",
        "mean margin": f"{metrics.mean_margin:.3f}",
    }


def _with_metrics(result: TrainResult, metrics: HeldOutMetrics) -> TrainResult:
    numbers = {f"held_out_{k}": float(v) for k, v in asdict(metrics).items() if k != "reliability"}
    return dataclasses.replace(result, metrics={**result.metrics, **numbers})
