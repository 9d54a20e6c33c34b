"""Fits a linear probe to human labels, and measures it by nested cross-validation grouped by prompt: `cai judge fit`.

Layer, pooling and strength of the L2 regularisation are chosen by log loss inside each training fold. All pairs of a prompt, of its
conversation and of its near-copies are in the same fold, so each measure comes from pairs that neither the fit nor the choice has seen.
The final probe is chosen and fitted on all pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cai.core.console import Reporter
from cai.core.flow import in_words, together
from cai.data.filters import prompt_key
from cai.data.splits import split_groups
from cai.judge.calibrating import read_each
from cai.judge.calibration import length_difference
from cai.judge.fitting import COIN, folds, log_loss, logistic_weights, measured_answers
from cai.judge.probe import POOLINGS, Pooling, Probe, ProbeFacts, weights_hash
from cai.models.base import TextModel
from cai.recipe import Precision
from cai.records import EvalResult, HumanLabel

if TYPE_CHECKING:
    import numpy as np

DEPTHS = (0.4, 0.5, 0.6, 0.7)
"""Layers to choose from, as fractions of the model's depth. Later ones knew no more (docs/log.md), and layers above the last one asked for
are not run."""
STRENGTHS = (0.1, 0.3, 1.0, 3.0)
"""Candidate prior variances of the log-odds. Each weight has this variance over the size of the state, for standardised states; smaller
values regularise more."""


@dataclass(frozen=True, slots=True)
class StatePair:
    """One pair with the difference of its responses' hidden states, and the human label. A is the first response in hashed order."""

    key: str
    group: str
    """Group of the prompt (`split_groups`). All pairs of a group are in the same fold."""
    length: float
    """`length_difference` of the pair."""
    people: float
    """Probability that A is better, by human labels."""
    difference: Mapping[tuple[int, Pooling], "np.ndarray[Any, Any]"]
    """State of A minus state of B, `[hidden]`, by layer and pooling."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate of the cross-validation."""

    layer: int
    pooling: Pooling
    strength: float


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """Weights, the choice by which they were fitted, and cross-validated measures."""

    choice: Choice
    weights: tuple[float, ...]
    measured: tuple[EvalResult, ...]
    warnings: tuple[str, ...]


def layers_to_try(layers: int) -> tuple[int, ...]:
    """Return the layers at `DEPTHS` of a model.

    >>> layers_to_try(30), layers_to_try(2)
    ((12, 15, 18, 21), (1,))
    """
    return tuple(sorted({max(1, round(depth * layers)) for depth in DEPTHS}))


async def read_states(people: Mapping[str, HumanLabel], model: TextModel, window: int, reporter: Reporter) -> list[StatePair]:
    """Read the hidden states of both responses of every pair.

    Args:
        people: pairs with a majority of annotators, by their key.
        model: the model to probe.
        window: maximum number of pairs in progress.
        reporter: shows progress, and warns about pairs that could not be read.

    Raises:
        ModelError: the model gives no hidden states, no pair could be read, or the model fails.
    """
    import numpy as np

    layers = layers_to_try(model.layers)
    group_of = split_groups(label.pair.prompt for label in people.values())

    async def work(item: tuple[str, HumanLabel]) -> StatePair:
        key, label = item
        pair = label.pair
        asked = [(text, layer) for text in (pair.response_a, pair.response_b) for layer in layers]
        found = await together(model.hidden_state(pair.prompt.messages, text, layer) for text, layer in asked)
        a, b = found[: len(layers)], found[len(layers) :]
        difference = {
            (layer, pooling): np.frombuffer(getattr(of_a, pooling), "<f4") - np.frombuffer(getattr(of_b, pooling), "<f4")
            for layer, of_a, of_b in zip(layers, a, b, strict=True)
            for pooling in POOLINGS
        }
        return StatePair(key, group_of(pair.prompt), length_difference(pair), label.p_a, difference)

    pairs, failed = await read_each(people, work, window, reporter, "pairs read")
    if failed:
        reporter.warn(f"{len(failed)} pairs could not be read and are left out: {in_words(failed)}")
    return pairs


def fit_probe(pairs: Sequence[StatePair], seed: int) -> FittedProbe:
    """Fit on all pairs, and measure by nested cross-validation.

    Args:
        pairs: hidden states and human labels; enough of them, see `check_enough`.
        seed: seed of the folds and the bootstrap.
    """
    import numpy as np

    people, groups = np.array([p.people for p in pairs]), [p.group for p in pairs]
    columns = {where: np.stack([p.difference[where] for p in pairs]).astype(np.float64) for where in pairs[0].difference}
    held_out = np.zeros(len(pairs))
    for train, test in folds(groups, seed):
        choice = _choose(columns, people, groups, train, seed + 1)
        x = columns[choice.layer, choice.pooling]
        held_out[test] = x[test] @ _weights(x[train], people[train], choice.strength)
    choice = _choose(columns, people, groups, range(len(pairs)), seed + 1)
    weights = _weights(columns[choice.layer, choice.pooling], people, choice.strength)
    measured = measured_answers(pairs, "probe", held_out.tolist(), {}, seed)
    return FittedProbe(choice, tuple(float(w) for w in weights.astype(np.float32)), measured, _warnings(measured))


def as_probe(
    fitted: FittedProbe, people: Mapping[str, HumanLabel], keys: Sequence[str], model: TextModel, precision: Precision, pairs: str
) -> Probe:
    """Return a fitted probe with all that is known of it.

    Args:
        fitted: the fit.
        people: human labels by the pairs' keys.
        keys: the pairs that it was fitted on.
        model: the model whose states were read.
        precision: in which it was loaded.
        pairs: files of the labels.
    """
    prompts = {prompt_key(people[key].pair.prompt): people[key].pair.prompt.messages for key in keys}
    facts = ProbeFacts(
        model=model.fingerprint,
        model_name=model.engine.name,
        precision=precision,
        layer=fitted.choice.layer,
        layers=model.layers,
        pooling=fitted.choice.pooling,
        strength=fitted.choice.strength,
        n=len(keys),
        pairs=pairs,
        weights_hash=weights_hash(fitted.weights),
        fitted_on=tuple(sorted(keys)),
        fitted_prompts=tuple(prompts.values()),
        measured=fitted.measured,
        warnings=fitted.warnings,
    )
    return Probe(facts, fitted.weights)


def _choose(
    columns: Mapping[tuple[int, Pooling], "np.ndarray[Any, Any]"],
    people: "np.ndarray[Any, Any]",
    groups: Sequence[str],
    train: Sequence[int],
    seed: int,
) -> Choice:
    """Return the candidate with the lowest cross-validated log loss on the training items."""
    inner = [([train[i] for i in a], [train[i] for i in b]) for a, b in folds([groups[i] for i in train], seed)]
    losses: dict[Choice, float] = {}
    for (layer, pooling), x in columns.items():
        for strength in STRENGTHS:
            said = [(x[b] @ _weights(x[a], people[a], strength), people[b]) for a, b in inner]
            losses[Choice(layer, pooling, strength)] = sum(log_loss(*pair) for part in said for pair in zip(*part, strict=True))
    return min(losses, key=lambda c: losses[c])


def _weights(x: Any, y: Any, strength: float) -> Any:
    import numpy as np

    return logistic_weights(x, y, np.full(x.shape[1], strength / x.shape[1]), "lbfgs")


def _warnings(measured: Sequence[EvalResult]) -> tuple[str, ...]:
    by_name: dict[tuple[str, str], EvalResult] = {(r.name, r.model): r for r in measured}
    found = []
    accuracy = by_name["accuracy", "probe"]
    if accuracy.low <= 0.5:
        found.append(
            f"the probe was not shown to know more than a coin: right on {accuracy.value:.1%} of {accuracy.n} held-out pairs "
            f"[{accuracy.low:.1%}, {accuracy.high:.1%}]. Don't label with it; more labels may help"
        )
    elif by_name["log_loss_gain", f"probe over {COIN}"].low <= 0:
        found.append("the probe's probabilities were not shown to be better than a coin's: calibrate it on other labels")
    over_rule = next(r for r in measured if r.name == "accuracy_gain" and r.note)
    if over_rule.low <= 0:
        found.append(f"the probe was not shown to beat the best trivial rule ({over_rule.model.removeprefix('probe over ')})")
    return tuple(found)
