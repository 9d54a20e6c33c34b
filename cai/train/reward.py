"""A Bradley–Terry reward model (Bai et al. 2022, §4.1): a LoRA adapter and a scalar head over the last token, on soft labels.

TRL's `RewardTrainer` does the training. Departures from the paper: labels may come from people too, and have weights; conversations
that are too long lose their beginning rather than the pair; the score is taken at the end-of-turn token, so padding is another token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from cai.errors import TrainingError
from cai.jsonl import write_text
from cai.recipe import ModelSpec, RewardConfig
from cai.records import Preference
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, preference_sources, write_card
from cai.train.checkpoints import TrainResult, checkpoint_folder, finished_result
from cai.train.encode import reward_rows
from cai.train.ensemble import RewardEnsemble, load_ensemble, load_scorer, scoring_tokenizer
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
CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs that the model was about equally sure of."""

    predicted: float
    """Mean probability that it gave to the side it favours, in [0.5, 1]."""
    observed: float
    """Mean label of that side, in [0, 1]."""
    n: int


@dataclass(frozen=True, slots=True)
class HeldOutMetrics:
    """How a reward model did on pairs that it was not trained on."""

    accuracy: float
    """Fraction of pairs where the side that the label favours scores higher; equal scores count as wrong."""
    n: int
    """Pairs whose label favours a side."""
    low: float
    high: float
    """95 % Wilson interval of the accuracy."""
    calibration_error: float
    """Expected calibration error of σ(|score difference|), the probability that the model gives to the side it favours: mean
    |predicted − observed| over equal bins of it, weighted by their counts. Observed is the label of that side."""
    mean_margin: float
    """Mean of chosen minus rejected score."""
    reliability: tuple[ReliabilityBin, ...] = ()
    """The bins that hold any pair, in order."""


def train_reward(
    config: RewardConfig,
    model: ModelSpec,
    preferences: Sequence[Preference],
    held_out: Sequence[Preference],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
) -> TrainResult:
    """Train a reward model, measure it on held-out pairs, and save it in `out` with tokenizer, model card, `metrics.json` and log.

    Resumes and repeats as `train_sft` does.

    Args:
        config: the recipe's `reward` block.
        model: the base model; its own adapter, if any, is not used.
        preferences: judged pairs to train on; at least one.
        held_out: judged pairs to measure on; may be empty.
        out: folder for the adapter and head.
        seed: decides the head's and the adapter's initial weights, and the order.
        on_log: called after each step, with `accuracy`, `margin`, `mean_reward`, `loss`.

    Raises:
        TrainingError: no pair is left, or training diverges.
        ModelError: the model can't be loaded.
    """
    from cai.models.loading import load_tokenizer

    base = replace(model, adapter=None, precision=config.precision)
    tokenizer = scoring_tokenizer(load_tokenizer(base))
    rows, dropped = reward_rows(tokenizer, preferences, config.max_length)
    fingerprint = training_fingerprint("reward", config, base, rows, seed, [(p.id, p.p_chosen) for p in held_out])
    if (done := finished_result(out, fingerprint)) is not None:
        forget(out)
        return done
    prepare(out)
    with quiet_training():
        trainer = reward_trainer(config, base, tokenizer, rows, out, seed)
    tokenizer.model_max_length = config.max_length  # saved with it, so that scoring cuts where training did
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=on_log, dropped=dropped)
    del trainer
    measured = {}
    if any(p.p_chosen != 0.5 for p in held_out) and is_first_process():
        metrics = measure_reward(load_ensemble([out], base), held_out)
        write_text(out / METRICS, msgspec.json.format(msgspec.json.encode(metrics), indent=2).decode() + "\n")
        measured = _as_text(metrics)
        result = _with_metrics(result, metrics)
    facts = CardFacts("reward", model.path, "with a scalar head", preference_sources(preferences), config, result, seed, measured)
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


def measure_reward(model: RewardEnsemble, preferences: Sequence[Preference]) -> HeldOutMetrics:
    """Return how well reward models predict labels. Pairs labelled exactly ½ favour no side and are left out.

    Raises:
        TrainingError: no pair favours a side.
    """
    from scipy.special import expit
    from scipy.stats import binomtest

    sided = [p for p in preferences if p.p_chosen != 0.5]
    if not sided:
        raise TrainingError(f"nothing to measure on: none of {len(preferences)} held-out pairs has a label that favours a side")
    scores = [s.value for s in model.score([(p.prompt.messages, text) for p in sided for text in (p.chosen, p.rejected)])]
    margins = [c - r for c, r in zip(scores[::2], scores[1::2], strict=True)]
    right = sum((m > 0) if p.p_chosen > 0.5 else (m < 0) for m, p in zip(margins, sided, strict=True))
    interval = binomtest(right, len(sided)).proportion_ci(0.95, method="wilson")
    favoured = [p.p_chosen if m >= 0 else 1 - p.p_chosen for m, p in zip(margins, sided, strict=True)]
    bins = reliability_bins([float(expit(abs(m))) for m in margins], favoured)
    return HeldOutMetrics(
        right / len(sided),
        len(sided),
        float(interval.low),
        float(interval.high),
        calibration_error(bins),
        sum(margins) / len(margins),
        bins,
    )


def reliability_bins(predicted: Sequence[float], labels: Sequence[float]) -> tuple[ReliabilityBin, ...]:
    """Group predictions into `CALIBRATION_BINS` equal bins of [0.5, 1], and compare each with its labels.

    A pair is looked at from the side that the model favours: all pairs told from the chosen side would have the label 1, and calm
    predictions would look wrong however right they are.

    Args:
        predicted: probability of the favoured side, in [0.5, 1].
        labels: label of that side, in [0, 1].
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for p, y in zip(predicted, labels, strict=True):
        bins.setdefault(min(int((2 * p - 1) * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append((p, y))
    return tuple(ReliabilityBin(sum(p for p, _ in b) / len(b), sum(y for _, y in b) / len(b), len(b)) for _, b in sorted(bins.items()))


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error: the bins' mean |predicted − observed|, weighted by their counts (Guo et al. 2017).

    >>> calibration_error(reliability_bins([0.75, 0.75, 0.75, 0.75], [1.0, 1.0, 1.0, 0.0]))
    0.0
    """
    return sum(b.n * abs(b.predicted - b.observed) for b in bins) / max(1, sum(b.n for b in bins))


def _as_text(metrics: HeldOutMetrics) -> dict[str, str]:
    return {
        "accuracy": f"{metrics.accuracy:.1%} (95 % interval {metrics.low:.1%} to {metrics.high:.1%}, n = {metrics.n})",
        "calibration error": f"{metrics.calibration_error:.3f}",
        "mean margin": f"{metrics.mean_margin:.3f}",
    }


def _with_metrics(result: TrainResult, metrics: HeldOutMetrics) -> TrainResult:
    from dataclasses import asdict, replace

    numbers = {f"held_out_{k}": float(v) for k, v in asdict(metrics).items() if k != "reliability"}
    return replace(result, metrics={**result.metrics, **numbers})
