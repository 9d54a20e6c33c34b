"""Validate principles on human labels: agreement of each principle, the effect of removing it, and the share of people's choices that the
constitution explains.

Every pair is given with the preferred response as A. This reveals nothing, because the log-odds of every protocol are exactly antisymmetric
under a swap. The only fitted number, one scale per set of scores, is cross-validated by prompt.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cai.core.flow import together
from cai.data.splits import conversation_id, split_groups
from cai.errors import DataError, ReplyError
from cai.evaluate.commands import labelled_pairs_of
from cai.ids import split_fraction
from cai.judge.fitting import log_loss
from cai.judge.protocol import Opinion, ProtocolContext, pool_log_odds, probability
from cai.judge.protocols import PROTOCOLS
from cai.recipe import FeedbackConfig
from cai.records import Constitution, Failure, Preference, Principle, PromptKind, ResponsePair
from cai.session import Session
from cai.stats import change, clustered_share, correctness, paired_bootstrap
from cai.workbench.sample import Calls, calls_of

FOLDS = 5
RULES: dict[str, Callable[[ResponsePair], float]] = {
    "longer": lambda pair: float(len(pair.response_a) - len(pair.response_b)),
    "shorter": lambda pair: float(len(pair.response_b) - len(pair.response_a)),
}
"""Trivial rules: a score above 0 prefers A. Only the sign is used."""


@dataclass(frozen=True, slots=True)
class PrincipleResult:
    """Results of one principle on the pairs that it applies to."""

    principle_id: str
    n: int
    """Number of judged pairs that the principle applies to."""
    applies: float
    """Share of all judged pairs that the principle applies to."""
    agreement: float
    """Agreement with human labels, in [0, 1]; ties count half. Its 95 % interval is below."""
    low: float
    high: float
    mean_log_odds: float
    """Mean |log-odds|: the strength of the principle's opinions."""
    decisive: int
    """Number of pairs whose pooled label changes sides, or is missing, without the principle."""
    without: float | None
    """Change in accuracy of the pooled label without the principle, over those of the n pairs that other principles judge too; ties count
    as wrong. Below 0, the principle helps. None if no other principle judges. Its 95 % interval is below."""
    without_low: float | None
    without_high: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """Accuracy and log-likelihood of one set of scores on people's choices."""

    name: str
    n: int
    accuracy: float
    low: float
    high: float
    nats: float
    """Mean log-likelihood of people's choice per pair, with the cross-validated scale; chance is −0.693."""
    nats_low: float
    nats_high: float
    raw_nats: float | None
    """Mean log-likelihood with the unscaled probabilities; None for a trivial rule, which has none."""
    explained: float
    """Share of the uncertainty about people's choices that the scores explain: 1 − nats / nats of chance; below 0, worse than chance."""


@dataclass(frozen=True, slots=True)
class Validation:
    """Results of a constitution on human labels."""

    pairs: int
    skipped: int
    """Number of pairs that people left undecided."""
    protocol: str
    principles: tuple[PrincipleResult, ...]
    """Results per principle, by descending agreement."""
    pooled: Explained
    rules: tuple[Explained, ...]
    accuracy_gain: float
    """Accuracy of the pooled label minus that of the most accurate rule, on the same pairs; its 95 % interval is below."""
    accuracy_gain_low: float
    accuracy_gain_high: float
    nats_gain: float
    """The same for the log-likelihood, against the best rule by log-likelihood, or chance if no rule beats chance."""
    nats_gain_low: float
    nats_gain_high: float
    calls: Calls = field(default_factory=lambda: Calls(0, 0))
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair with the preferred response as A, and the log-odds for A under each principle that applies."""

    pair: ResponsePair
    opinions: dict[str, float]

    def pooled(self, weights: dict[str, float], without: str | None = None) -> float | None:
        """Return the pooled log-odds, as in the judge's ensemble; None if no principle is left."""
        kept = [(weights[i], x) for i, x in self.opinions.items() if i != without]
        return pool_log_odds([x for _, x in kept], [w for w, _ in kept]) if kept else None


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A file of human-labelled pairs, and how to read it."""

    path: Path
    format: str = "auto"
    """File format; `auto` detects it."""
    kind: PromptKind | None = None
    """Kind of prompt for pairs without one."""
    limit: int | None = None
    """Number of pairs to use, chosen by hash; None: all."""


async def validate_constitution(constitution: Constitution, pairs: LabelFile, session: Session) -> Validation:
    """Test every principle on human-labelled pairs, without those that the session's probe was fitted on."""
    decided, skipped = decided_pairs(pairs, session)
    judged = await ask_all(decided, constitution, session)
    validation = measure(judged, constitution, session.recipe.feedback, session.recipe.seed)
    return replace(validation, skipped=skipped, calls=calls_of(session), failures=tuple(session.failures))


def decided_pairs(pairs: LabelFile, session: Session) -> tuple[list[ResponsePair], int]:
    """Return human-labelled pairs, each with the preferred response as A, and the number of pairs that people left undecided."""
    labelled = labelled_pairs_of(pairs.path, pairs.format, pairs.limit, session, pairs.kind)
    decided = [told_from_the_preferred_side(p) for p in labelled if p.p_chosen != 0.5]
    return decided, len(labelled) - len(decided)


def told_from_the_preferred_side(preference: Preference) -> ResponsePair:
    """Return a labelled pair with the preferred response as A."""
    p = preference if preference.p_chosen > 0.5 else preference.swapped()
    return ResponsePair(p.prompt, p.chosen, p.rejected, "human", p.provenance)


async def ask_all(pairs: Sequence[ResponsePair], constitution: Constitution, session: Session) -> list[JudgedPair]:
    """Judge each pair under every principle that applies. A pair with an unusable reply is a counted failure."""
    protocol = PROTOCOLS.get(session.recipe.feedback.protocol)
    config = session.recipe.feedback
    asking = ProtocolContext(session.judge_model, session.judge_templates, config, session.recipe.seed, session.probe_for(config))

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
    """Compute agreement, leave-one-out changes and explained choices from the log-odds."""
    weights = {p.id: p.weight for p in constitution.principles}
    pooled = [j.pooled(weights) for j in judged]
    scores = [x for x in pooled if x is not None]
    pairs = [j.pair for j in judged]
    results = [_principle(p, judged, weights) for p in constitution.principles]
    whole, right, nats = _explained("constitution", scores, pairs, seed, raw=True)
    rules = [(_explained(name, [_sign(rule(p)) for p in pairs], pairs, seed)) for name, rule in RULES.items()]
    _, best_right, _ = max(rules, key=lambda r: r[0].accuracy)
    best_nats = max(([-math.log(2)] * len(pairs), *(r[2] for r in rules)), key=math.fsum)
    conversations = [conversation_id(p.prompt) for p in pairs]
    gain, low, high = paired_bootstrap([a - b for a, b in zip(right, best_right, strict=True)], seed, conversations)
    nats_gain, nats_low, nats_high = paired_bootstrap([a - b for a, b in zip(nats, best_nats, strict=True)], seed, conversations)
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
    """Return the maximum-likelihood scale s ≥ 0 of scores, which are log-odds for people's choices.

    One agreeing and one disagreeing choice of mean strength are added, so that the scale is finite even if all choices agree. For scores of
    ±1 this gives Laplace's estimate (k + 1) / (n + 2). The log-likelihood is concave in s, so its slope has one root.

    >>> round(probability(fit_scale([1.0, 1.0, 1.0, -1.0])), 6)  # (3 + 1) / (4 + 2)
    0.666667
    """
    from scipy.optimize import brentq

    strength = math.fsum(map(abs, scores)) / len(scores) if scores else 0.0
    if strength == 0:
        return 0.0
    z = [x / strength for x in (*scores, strength, -strength)]

    def slope(s: float) -> float:
        return math.fsum(x * probability(-s * x) for x in z)

    return float(brentq(slope, 0.0, 1e6)) / strength if slope(0.0) > 0 else 0.0


def held_out_nats(scores: Sequence[float], pairs: Sequence[ResponsePair]) -> list[float]:
    """Return the log-likelihood of each pair under a scale fitted on the other folds, which share no conversation or near-copy with it."""
    group_of = split_groups(p.prompt for p in pairs)
    fold = [int(split_fraction(group_of(p.prompt), "validate-fold") * FOLDS) for p in pairs]
    scale = {k: fit_scale([x for x, f in zip(scores, fold, strict=True) if f != k]) for k in set(fold)}
    return [-log_loss(scale[f] * x, 1.0) for x, f in zip(scores, fold, strict=True)]


def _explained(
    name: str, scores: Sequence[float], pairs: Sequence[ResponsePair], seed: int, raw: bool = False
) -> tuple[Explained, list[float], list[float]]:
    """Return the summary, and the correctness and held-out log-likelihood of each pair."""
    right = [correctness(probability(x), True) for x in scores]
    nats = held_out_nats(scores, pairs)
    conversations = [conversation_id(p.prompt) for p in pairs]
    low, high = clustered_share(right, conversations)
    mean, nats_low, nats_high = paired_bootstrap(nats, seed, conversations)
    as_they_are = -math.fsum(log_loss(x, 1.0) for x in scores) / len(scores) if raw else None
    accuracy = sum(right) / len(right)
    return Explained(name, len(right), accuracy, low, high, mean, nats_low, nats_high, as_they_are, 1 + mean / math.log(2)), right, nats


def _principle(principle: Principle, judged: Sequence[JudgedPair], weights: dict[str, float]) -> PrincipleResult | None:
    """Measure one principle; return None if it applies to no pair."""
    mine = [j for j in judged if principle.id in j.opinions]
    if not mine:
        return None
    right = [correctness(probability(j.opinions[principle.id]), True) for j in mine]
    low, high = clustered_share(right, [conversation_id(j.pair.prompt) for j in mine])
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


def _sign(x: float) -> float:
    return float((x > 0) - (x < 0))
