"""A linear probe: logistic regression on a model's own hidden states, fitted to human labels by `cai judge fit`.

    log-odds(A) = w · state(A) − w · state(B)

`state` is the hidden state at one layer while the model reads a response as its own answer: the mean over the response's tokens, or the
last token's. Nothing is asked, no principle is read, and there is no intercept, so swapping a pair gives exactly the opposite label. A
probe knows only what its labels know: use it on prompts like theirs.

A single response has the score `w · state`. It compares responses to one prompt; between prompts it means nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from cai.core.jsonl import NOT_JSON, atomic_file, read_file, write_json
from cai.errors import DataError, RecipeError
from cai.ids import content_hash
from cai.models.base import TextModel
from cai.models.requests import HiddenState
from cai.recipe import FeedbackConfig, Precision
from cai.records import EvalResult, Message, Prompt

Pooling = Literal["mean", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")
WEIGHT = "weight"
"""Name of the tensor in the safetensors file."""
NO_PROBE = "feedback.probe: no probe is named. Fit one to human labels with: cai judge fit --pairs FILE -o FILE"


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """The contents of a probe's JSON file."""

    model: str
    """Fingerprint of the model whose hidden states it reads."""
    model_name: str
    precision: Precision
    """In which the model was loaded; part of the fingerprint."""
    layer: int
    """Counted from 1."""
    layers: int
    """Number of the model's layers."""
    pooling: Pooling
    strength: float
    """Prior variance of the log-odds; smaller values regularise more."""
    n: int
    """Number of pairs that it was fitted on."""
    pairs: str
    """Files of the human labels."""
    weights_hash: str
    """Content hash of the weights in the safetensors file beside the JSON file."""
    fitted_on: tuple[str, ...] = ()
    """`texts_key` of every pair that it was fitted on. It must not be measured on these pairs."""
    fitted_prompts: tuple[tuple[Message, ...], ...] = ()
    """The prompts of these pairs. It must not be measured on them or on near-copies."""
    measured: tuple[EvalResult, ...] = ()
    """Cross-validated measures of the probe, and of trivial rules on the same pairs."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted probe."""

    facts: ProbeFacts
    weights: tuple[float, ...]
    """One per number of the hidden state."""

    @property
    def hash(self) -> str:
        """Content hash of everything in it, for the provenance of records."""
        return content_hash(self.facts)

    @property
    def fitted_on(self) -> tuple[str, ...]:
        return self.facts.fitted_on

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """`fitted_prompts` as records."""
        return tuple(Prompt(content_hash(messages), "other", messages, "probe") for messages in self.facts.fitted_prompts)

    def score(self, state: HiddenState) -> float:
        """Return `w · state`, in log-odds against another response to the same prompt. Raises `RecipeError` if their sizes differ."""
        import numpy as np

        pooled = np.frombuffer(getattr(state, self.facts.pooling), "<f4").astype(np.float64)
        if len(pooled) != len(self.weights):
            raise RecipeError(f"feedback.probe: it has {len(self.weights)} weights, and the model's hidden states {len(pooled)} numbers")
        return float(pooled @ np.array(self.weights))


async def probe_score(probe: Probe, model: TextModel, messages: tuple[Message, ...], text: str) -> float:
    """Return a response's score. Raises as `TextModel.hidden_state` does."""
    return probe.score(await model.hidden_state(messages, text, probe.facts.layer))


def weights_hash(weights: tuple[float, ...]) -> str:
    """Return the content hash of a probe's weights."""
    return content_hash(weights)


def check_probe(probe: Probe, model: str) -> None:
    """Check that a probe was fitted on this model.

    Args:
        model: fingerprint of the judge.

    Raises:
        RecipeError: it was not.
    """
    facts = probe.facts
    if facts.model != model:
        raise RecipeError(
            f"feedback.probe was fitted on another model: on {facts.model_name} in {facts.precision} ({facts.model}); this judge is "
            f"{model}. A probe reads one model's hidden states and means nothing to another.\n"
            f"Fix: judge with that model (in a recipe, feedback.judge: {{path: {facts.model_name}, precision: {facts.precision}}}), "
            "or fit a probe on this one: cai judge fit"
        )


def probe_of(config: FeedbackConfig, root: Path) -> Probe | None:
    """Read the probe that a recipe names, relative to the workspace; None if it names none. Raises `DataError`."""
    return read_probe(root / config.probe) if config.probe is not None else None


def weights_path(path: Path) -> Path:
    """Return the safetensors file of a probe's JSON file."""
    return path.with_suffix(".safetensors")


def read_probe(path: Path) -> Probe:
    """Read a probe: a JSON file, and the safetensors file beside it. Raises `DataError`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        facts = msgspec.json.decode(read_file(path), type=ProbeFacts)
    except FileNotFoundError:
        raise DataError(f"{path}: no such probe. Fit one with: cai judge fit --pairs FILE -o {path}") from None
    except (OSError, ValueError, *NOT_JSON) as e:
        raise DataError(f"{path}: not a probe ({e})") from e
    beside = weights_path(path)
    try:
        weights = tuple(float(w) for w in load_file(beside)[WEIGHT])
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as e:
        raise DataError(f"{beside}: the weights of {path.name} can't be read ({e}). Keep both files together, or fit it again") from e
    if weights_hash(weights) != facts.weights_hash:
        raise DataError(f"{beside}: these are not the weights that {path.name} was written with. Fit the probe again: cai judge fit")
    return Probe(facts, weights)


def write_probe(path: Path, probe: Probe) -> None:
    """Write a probe's two files: the weights first, so that a JSON file never stands without them. Raises `StoreError`."""
    import numpy as np
    from safetensors.numpy import save_file

    with atomic_file(weights_path(path)) as temporary:
        save_file({WEIGHT: np.array(probe.weights, dtype=np.float32)}, temporary)
    write_json(path, probe.facts, indent=1)
