"""Principles against people: how far each agrees with human labels, what each one's removal changes, and how much of what people
preferred the whole constitution explains.

A pair is told from the side that people preferred, which no protocol can see: each gives exactly mirrored log-odds for a swapped pair.
Whatever is fitted, one scale per set of scores, is fitted on other prompts than it is measured on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cai.core.flow import together
from cai.errors import DataError, ReplyError
from cai.ids import split_fraction
from cai.judge.bench import correctness
from cai.judge.protocol import Opinion, ProtocolContext, probability
from cai.judge.protocols import PROTOCOLS
from cai.labels.load import load_pairs
from cai.recipe import FeedbackConfig
from cai.records import Constitution, Failure, Preference, Principle, PromptKind, ResponsePair
from cai.session import Session
from cai.stats import change, paired_bootstrap, wilson
from cai.workbench.sample import Calls, calls_of

FOLDS = 5
RULES: dict[str, Callable[[ResponsePair], float]] = {
    "longer": lambda pair: float(len(pair.response_a) - len(pair.response_b)),
    "shorter": lambda pair: float(len(pair.response_b) - len(pair.response_a)),
}
"""What needs no judgement, as a score above 0 where it prefers A; only its sign counts."""


@dataclass(frozen=True, slots=True)
class PrincipleResult:
    """One principle on the pairs that it applies to."""

    principle_id: str
    n: int
    """Pairs that it applies to by their kind, and that it judged."""
    applies: float
    """Share of all judged pairs that it applies to."""
    agreement: float
    """How often it sides with people, a tie counting half, with its interval."""
    low: float
    high: float
    mean_log_odds: float
    """Mean |log-odds|: how strongly it speaks."""
    decisive: int
    """Pairs whose pooled label has another side without it, or none."""
    without: float | None
    """Change of the pooled label's accuracy when it is left out, over those of the n pairs that others judge too, with its interval; a
    tie counts as wrong. Below 0, it is missed. None where nothing else judges."""
    without_low: float | None
    without_high: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """How well some scores account for people's choices."""

    name: str
    n: int
    accuracy: float
    low: float
    high: float
    nats: float
    """Mean log-likelihood of people's choice per pair, after the cross-validated scale; a coin has −0.693."""
    nats_low: float
    nats_high: float
    raw_nats: float | None
    """The same with the probabilities as they are; None for a rule, which has none."""
    explained: float
    """1 − nats / a coin's: the share of people's choice that the scores account for; below 0, worse than a coin."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A constitution measured against human labels."""

    pairs: int
    skipped: int
    """Pairs that people didn't decide."""
    protocol: str
    principles: tuple[PrincipleResult, ...]
    """Those that agree most first."""
    pooled: Explained
    rules: tuple[Explained, ...]
    accuracy_gain: float
    """The pooled label's accuracy minus that of the best rule by accuracy, on the same pairs, with its interval."""
    accuracy_gain_low: float
    accuracy_gain_high: float
    nats_gain: float
    """The same for the log-likelihood, against the best rule by that, or a coin if no rule beats it."""
    nats_gain_low: float
    nats_gain_high: float
    calls: Calls = field(default_factory=lambda: Calls(0, 0))
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair told from the side that people preferred, and the log-odds for that side under each principle that applies."""

    pair: ResponsePair
    opinions: dict[str, float]

    def pooled(self, weights: dict[str, float], without: str | None = None) -> float | None:
        """Return the weighted mean in log-odds, as the judge's ensemble takes it; None where nothing is left."""
        kept = [(weights[i], x) for i, x in self.opinions.items() if i != without]
        return math.fsum(w * x for w, x in kept) / math.fsum(w for w, _ in kept) if kept else None


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A file of pairs that people labelled, and how to read it."""

    path: Path
    format: str = "auto"
    """`auto` recognises it."""
    kind: PromptKind | None = None
    """Of pairs that don't say it themselves."""
    limit: int | None = None
    """Use this many pairs, chosen by hash; None: all."""


async def validate_constitution(constitution: Constitution, pairs: LabelFile, session: Session) -> Validation:
    """Test every principle on human-labelled pairs.

    Args:
        constitution: its principles are asked one by one.
        pairs: what people labelled.
        session: is open; its judge is asked.

    Raises:
        CaiError: the pairs can't be read, or the model can't go on.
    """
    seed = session.recipe.seed
    loaded = load_pairs(pairs.path, pairs.format, pairs.kind, pairs.limit, seed)
    if loaded.failures:
        first = loaded.failures[0]
        session.reporter.warn(f"{pairs.path}: {len(loaded.failures)} rows can't be used, the first: {first.item_id}: {first.reason}")
    decided = [told_from_the_preferred_side(p) for p in loaded.preferences if p.p_chosen != 0.5]
    judged = await ask_all(decided, constitution, session)
    validation = measure(judged, constitution, session.recipe.feedback, seed)
    skipped = len(loaded.preferences) - len(decided)
    return replace(validation, skipped=skipped, calls=calls_of(session), failures=tuple(session.failures))


def told_from_the_preferred_side(preference: Preference) -> ResponsePair:
    """Return a labelled pair with the response that people preferred as A."""
    p = preference if preference.p_chosen > 0.5 else preference.swapped()
    return ResponsePair(p.prompt, p.chosen, p.rejected, "human", p.provenance)


async def ask_all(pairs: Sequence[ResponsePair], constitution: Constitution, session: Session) -> list[JudgedPair]:
    """Ask about each pair under every principle that applies to it. A pair that one can't be read about is a counted failure.

    Raises:
        DataError: no principle applies to any pair.
        ModelError: too many failed, or the model can't go on.
    """
    protocol = PROTOCOLS.get(session.recipe.feedback.protocol)
    asking = ProtocolContext(session.judge_model, session.templates, session.recipe.feedback, session.recipe.seed)

    async def work(pair: ResponsePair) -> JudgedPair:
        principles = constitution.for_kind(pair.prompt.kind)
        if not principles:
            raise ReplyError("no_principle_applies", f"to {pair.prompt.kind} prompts")
        opinions: list[Opinion] = await together(protocol.ask(pair, p, asking) for p in principles)
        return JudgedPair(pair, {p.id: o.log_odds for p, o in zip(principles, opinions, strict=True)})

    judged = await session.each(pairs, work, "pairs", lambda p: p.id)
    if not judged:
        raise DataError(f"constitution {constitution.id}: none of the {len(pairs)} labelled pairs could be judged by its principles")
    return judged


def measure(
    judged: Sequence[JudgedPair],
    constitution: Constitution,
    config: FeedbackConfig,
    seed: int,
) -> Validation:
    """Turn what each principle said into agreement, leave-one-out changes and explained choices."""
    weights = {p.id: p.weight for p in constitution.principles}
    pooled = [j.pooled(weights) for j in judged]
    scores = [x for x in pooled if x is not None]
    pairs = [j.pair for j in judged]
    results = [_principle(p, judged, weights) for p in constitution.principles]
    whole, right, nats = _explained("constitution", scores, pairs, seed, raw=True)
    rules = [(_explained(name, [_sign(rule(p)) for p in pairs], pairs, seed)) for name, rule in RULES.items()]
    _, best_right, _ = max(rules, key=lambda r: r[0].accuracy)
    best_nats = max(([-math.log(2)] * len(pairs), *(r[2] for r in rules)), key=math.fsum)
    gain, low, high = paired_bootstrap([a - b for a, b in zip(right, best_right, strict=True)], seed)
    nats_gain, nats_low, nats_high = paired_bootstrap([a - b for a, b in zip(nats, best_nats, strict=True)], seed)
    return Validation(
        len(judged),
        0,
        config.protocol,
        tuple(sorted((r for r in results if r is not None), key=lambda r: -r.agreement)),
        whole,
        tuple(r[0] for r in rules),
        gain,
        low,
        high,
        nats_gain,
        nats_low,
        nats_high,
    )


def fit_scale(scores: Sequence[float]) -> float:
    """Return the scale s ≥ 0 under which scores, as log-odds for what people chose, make their choices likeliest.

    One choice with and one against it, of mean strength, are added, so that the scale stays finite where every choice agrees. For a rule
    that says ±1 this gives Laplace's estimate (k + 1) / (n + 2). The likelihood is concave in s, so its slope is bisected.

    >>> round(probability(fit_scale([1.0, 1.0, 1.0, -1.0])), 6)  # (3 + 1) / (4 + 2)
    0.666667
    """
    strength = math.fsum(map(abs, scores)) / len(scores) if scores else 0.0
    if strength == 0:
        return 0.0
    z = [x / strength for x in (*scores, strength, -strength)]

    def slope(s: float) -> float:
        return math.fsum(x * probability(-s * x) for x in z)

    low, high = 0.0, 1.0
    if slope(0.0) <= 0:
        return 0.0
    while slope(high) > 0 and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low / strength


def held_out_nats(scores: Sequence[float], pairs: Sequence[ResponsePair]) -> list[float]:
    """Return each pair's log-likelihood under a scale fitted on the other folds. Pairs of one prompt share a fold."""
    fold = [int(split_fraction(p.prompt.id, "validate-fold") * FOLDS) for p in pairs]
    scale = {k: fit_scale([x for x, f in zip(scores, fold, strict=True) if f != k]) for k in set(fold)}
    return [_log_likelihood(scale[f] * x) for x, f in zip(scores, fold, strict=True)]


def _explained(
    name: str, scores: Sequence[float], pairs: Sequence[ResponsePair], seed: int, raw: bool = False
) -> tuple[Explained, list[float], list[float]]:
    """Return the figures, and each pair's correctness and held-out log-likelihood."""
    right = [correctness(probability(x), True) for x in scores]
    nats = held_out_nats(scores, pairs)
    low, high = wilson(sum(right), len(right))
    mean, nats_low, nats_high = paired_bootstrap(nats, seed)
    as_they_are = math.fsum(map(_log_likelihood, scores)) / len(scores) if raw else None
    accuracy = sum(right) / len(right)
    return Explained(name, len(right), accuracy, low, high, mean, nats_low, nats_high, as_they_are, 1 + mean / math.log(2)), right, nats


def _principle(principle: Principle, judged: Sequence[JudgedPair], weights: dict[str, float]) -> PrincipleResult | None:
    """Measure one principle; None where it applies to no pair."""
    mine = [j for j in judged if principle.id in j.opinions]
    if not mine:
        return None
    right = [correctness(probability(j.opinions[principle.id]), True) for j in mine]
    low, high = wilson(sum(right), len(right))
    both = [(w, wo) for j in mine if (w := j.pooled(weights)) is not None and (wo := j.pooled(weights, principle.id)) is not None]
    with_it, left_out = [w > 0 for w, _ in both], [wo > 0 for _, wo in both]
    without: tuple[float, float, float] | tuple[None, None, None] = change(with_it, left_out) if both else (None, None, None)
    return PrincipleResult(
        principle.id,
        len(mine),
        len(mine) / len(judged),
        sum(right) / len(right),
        low,
        high,
        math.fsum(abs(j.opinions[principle.id]) for j in mine) / len(mine),
        sum(w != wo for w, wo in zip(with_it, left_out, strict=True)) + len(mine) - len(both),
        *without,
    )


def _log_likelihood(log_odds: float) -> float:
    """Return the log of the probability of some log-odds, without underflow."""
    return -math.log1p(math.exp(-log_odds)) if log_odds >= 0 else log_odds - math.log1p(math.exp(log_odds))


def _sign(x: float) -> float:
    return float((x > 0) - (x < 0))
