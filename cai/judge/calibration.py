"""Calibration of a judge to human labels: `cai judge calibrate` fits it, and `feedback.calibration` applies it.

    log-odds(A) = scale · pooled  +  Σ weight_k · signal(log-odds_k) / number of principles  +  length · Δ

with Δ = log(words of A + 1) − log(words of B + 1), and `signal` bounded, so that no principle outvotes all others. `scale` is an inverse
temperature, and `length` corrects length bias. There is no intercept: it would favour one position, and swapping a pair would no longer
give exactly the opposite label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from cai.core.jsonl import NOT_JSON, read_file, write_json
from cai.core.text.words import word_count
from cai.errors import DataError, RecipeError
from cai.ids import content_hash
from cai.judge.protocol import MAX_LOG_ODDS, Opinion, signal
from cai.recipe import FeedbackConfig
from cai.records import EvalResult, Message, Principle, Prompt, ResponsePair

POOLING = "probabilities"
"""How principles are averaged; see `cai.judge.protocol`."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The contents of a calibration file."""

    protocol: str
    principles: str
    """`sample` or `ensemble`, the judge's setting when the calibration was fitted."""
    per_label: int
    model: str
    """Fingerprint of the judge."""
    constitution: str
    """Hash of the constitution whose principles the weights refer to."""
    scale: float
    """Inverse temperature of the pooled log-odds."""
    weights: dict[str, float] = field(default_factory=dict)
    """Principle id to its weight in addition to the scale; missing principles have weight 0."""
    length: float = 0.0
    """Coefficient of the length difference Δ."""
    method: str = ""
    """Model chosen by cross-validation: `temperature`, or `principles` with the strength of its regularisation."""
    pairs: str = ""
    """Files of the human labels."""
    fitted_on: tuple[str, ...] = ()
    """`texts_key` of every pair that it was fitted on. The judge must not be measured on these pairs."""
    fitted_prompts: tuple[tuple[Message, ...], ...] = ()
    """The prompts of these pairs. Neither the judge nor a reward model may be measured on them or on near-copies."""
    measured: tuple[EvalResult, ...] = ()
    """Cross-validated measures of the calibrated judge, the uncalibrated judge and trivial rules on the same pairs."""
    warnings: tuple[str, ...] = ()
    pooling: str = "log-odds"
    """How principles were averaged when it was fitted. Files without this field averaged log-odds."""
    probe: str = ""
    """Hash of the judge's probe; empty without one."""

    @property
    def hash(self) -> str:
        """Content hash for the provenance of records. Calibrations from before a field was added keep theirs."""
        fields = msgspec.to_builtins(self)
        for added in ("fitted_prompts", "probe"):
            if not fields[added]:
                del fields[added]
        return content_hash(fields)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """`fitted_prompts` as records."""
        return tuple(Prompt(content_hash(messages), "other", messages, "calibration") for messages in self.fitted_prompts)


def calibrated(
    calibration: Calibration, pair: ResponsePair, principles: Sequence[Principle], opinions: Sequence[Opinion], plain: Opinion
) -> Opinion:
    """Return the calibrated opinion about a pair.

    Args:
        pair: the judged pair, for the lengths of its responses.
        principles: the principles that it was judged by.
        opinions: one opinion per principle, in the same order.
        plain: the pooled opinion without calibration.
    """
    by_length = calibration.length * length_difference(pair)
    weights = [calibration.weights.get(p.id, 0.0) / len(principles) for p in principles]

    def weigh(pooled: float | None, each: Sequence[float | None]) -> float | None:
        if pooled is None or any(x is None for x in each):
            return None
        by_principle = math.fsum(w * signal(x) for w, x in zip(weights, each, strict=True) if x is not None)
        total = calibration.scale * pooled + by_principle + by_length
        return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, total))

    log_odds = weigh(plain.log_odds, [o.log_odds for o in opinions])
    assert log_odds is not None
    first, second = weigh(plain.first, [o.first for o in opinions]), weigh(plain.second, [o.second for o in opinions])
    return replace(plain, log_odds=log_odds, first=first, second=second)


def length_difference(pair: ResponsePair) -> float:
    """Return the log-ratio of the responses' word counts (plus one); above 0 if A is longer."""
    a, b = (math.log(word_count(text) + 1) for text in (pair.response_a, pair.response_b))
    return a - b


def check_fits(calibration: Calibration, config: FeedbackConfig, model: str, probe: str = "") -> None:
    """Check that a calibration was fitted for this protocol, model, choice of principles and probe.

    Args:
        config: the judge's settings.
        model: the judge's fingerprint.
        probe: hash of the judge's probe; empty without one.

    Raises:
        RecipeError: it was not; lists all differences.
    """
    per_label = config.per_label if config.principles == "sample" else calibration.per_label
    pairs = (
        ("protocol", calibration.protocol, config.protocol),
        ("principles", calibration.principles, config.principles),
        ("per_label", calibration.per_label, per_label),
        ("model", calibration.model, model),
        ("pooling", calibration.pooling, POOLING),
        ("probe", calibration.probe or "none", probe or "none"),
    )
    wrong = [f"{name}: fitted for {theirs}, this judge has {mine}" for name, theirs, mine in pairs if theirs != mine]
    if wrong:
        raise RecipeError("feedback.calibration was fitted for another judge; fit it again: cai judge calibrate\n- " + "\n- ".join(wrong))


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file. Raises `DataError`."""
    try:
        return msgspec.json.decode(read_file(path), type=Calibration)
    except FileNotFoundError:
        raise DataError(f"{path}: no such calibration. Make one with: cai judge calibrate --pairs FILE -o {path}") from None
    except (OSError, ValueError, *NOT_JSON) as e:
        raise DataError(f"{path}: not a calibration ({e})") from e


def calibration_of(config: FeedbackConfig, root: Path) -> Calibration | None:
    """Read the calibration that a recipe names, relative to the workspace; None if it names none. Raises `DataError`."""
    return read_calibration(root / config.calibration) if config.calibration is not None else None


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration file. Raises `StoreError`."""
    write_json(path, calibration, indent=1)
