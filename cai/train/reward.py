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
from cai.records import Message, Preference
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, preference_sources, write_card
from cai.train.checkpoints import TrainResult, checkpoint_folder, finished_result
from cai.train.encode import encode_turn, reward_rows
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
NO_LIMIT = 10**9
SCORE_TOKENS = 16_384
"""Padded tokens that `RewardModel` runs at once; bounds memory."""


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
        metrics = measure_reward(load_reward_model(out, base), held_out)
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

    from cai.train.trainers import SoftRewardCollator, SoftRewardRun

    set_seed(seed)  # the head's and the adapter's initial weights
    scorer = load_scorer(base, tokenizer.pad_token_id)
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
        data_collator=SoftRewardCollator(pad_token_id=tokenizer.pad_token_id),
    )
    float_trained_weights(trainer.model)
    return trainer


def scoring_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer set for scoring: its own idea of padding is often the end token, which would hide the end from the head.

    The head reads the last token that isn't padding.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        others = (t for t in (tokenizer.unk_token, tokenizer.bos_token) if t is not None and t != tokenizer.eos_token)
        tokenizer.pad_token = next(others, tokenizer.eos_token)
    tokenizer.truncation_side = "left"
    tokenizer.padding_side = "right"
    return tokenizer


def load_scorer(spec: ModelSpec, pad_token_id: int) -> Any:
    """Return the base model with a new scalar head in place of the language-model head. Raises `ModelError`."""
    import torch
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    from cai.models.loading import quiet_transformers, resolve_model_path

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if spec.precision == "float32" else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "attn_implementation": "sdpa", "num_labels": 1}
    if spec.precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["score"],
        )
        options["device_map"] = {"": device}
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            resolve_model_path(spec), trust_remote_code=spec.trust_remote_code, **options
        )
    model.config.get_text_config().pad_token_id = pad_token_id
    return model if spec.precision == "nf4" else model.to(device)


@dataclass
class RewardModel:
    """Scores responses. Higher is better; only differences between responses to the same prompt mean anything."""

    model: Any
    tokenizer: Any
    max_length: int
    """Tokens; a longer conversation loses its beginning."""

    def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """Return one score for each conversation and response, in order. Runs in length-sorted batches.

        Args:
            items: the conversation up to the response, and the response.
        """
        ids = []
        for messages, response in items:
            prompt_ids, response_ids = encode_turn(self.tokenizer, messages, response)
            ids.append((prompt_ids + response_ids)[-self.max_length :])
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        scores = [0.0] * len(ids)
        while order:
            size = max(1, SCORE_TOKENS // len(ids[order[0]]))
            batch, order = order[:size], order[size:]
            for i, score in zip(batch, self._score_batch([ids[i] for i in batch]), strict=True):
                scores[i] = score
        return scores

    def _score_batch(self, ids: list[list[int]]) -> list[float]:
        import torch

        width = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        tokens_BT = torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=self.model.device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=self.model.device)
        with torch.inference_mode():
            logits_B1 = self.model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).logits
        return [float(x) for x in logits_B1.squeeze(-1).float()]


def load_reward_model(folder: Path, base: ModelSpec | None = None) -> RewardModel:
    """Load what `train_reward` saved.

    Args:
        folder: its output folder.
        base: how to load the base model; None takes the path that the adapter names, in bfloat16.

    Raises:
        ModelError: the folder holds no adapter, or the base can't be loaded.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from cai.models.loading import adapter_base, quiet_transformers

    spec = ModelSpec(path=adapter_base(folder)) if base is None else replace(base, adapter=None)
    with quiet_training(), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
        merge = spec.precision != "nf4"
        model = load_scorer(replace(spec, precision="float32") if merge else spec, tokenizer.pad_token_id)
        model = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        if merge:
            model = model.merge_and_unload()
            model = model.to(torch.float32 if spec.precision == "float32" else torch.bfloat16)
    score = model.score if merge else model.base_model.model.score
    score.float().register_forward_pre_hook(lambda module, inputs: tuple(x.float() for x in inputs))  # 8 bits are few for a score
    max_length, tokenizer.model_max_length = tokenizer.model_max_length, NO_LIMIT  # we cut, and need no advice
    return RewardModel(model.eval(), tokenizer, max_length)


def measure_reward(model: RewardModel, preferences: Sequence[Preference]) -> HeldOutMetrics:
    """Return how well a reward model predicts labels. Pairs labelled exactly ½ favour no side and are left out.

    Raises:
        TrainingError: no pair favours a side.
    """
    from scipy.special import expit
    from scipy.stats import binomtest

    sided = [p for p in preferences if p.p_chosen != 0.5]
    if not sided:
        raise TrainingError(f"nothing to measure on: none of {len(preferences)} held-out pairs has a label that favours a side")
    scores = model.score([(p.prompt.messages, text) for p in sided for text in (p.chosen, p.rejected)])
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
