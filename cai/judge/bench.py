"""Measures the agreement of judge protocols with human labels, compared with trivial baselines.

A judge's labels are worth training on only if they beat the trivial baselines on human-labelled pairs. Each result says whether they do.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cai.core.flow import in_words, run_items
from cai.core.plugins import unknown
from cai.data.splits import conversation_id
from cai.errors import DataError, ModelError, NoLogprobsError, RecipeError
from cai.ids import split_fraction
from cai.judge.judge import Judge
from cai.judge.protocols import PROTOCOLS, asking_protocols
from cai.recipe import FeedbackConfig
from cai.records import Failure, Judgment, Preference, ResponsePair
from cai.stats import clustered_share, correctness, paired_bootstrap


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """Agreement of one protocol or baseline with human labels. A tie (exactly ½) counts half."""

    name: str
    accuracy: float
    low: float
    high: float
    n: int
    """Number of judged pairs, without failures."""
    position_bias: float | None
    """Rate at which the response shown first is preferred, minus ½; None for pointwise protocols and baselines."""
    failures: int
    failure_reasons: dict[str, int]
    ties: int
    mean_p: float
    """Mean probability of the response that annotators preferred."""
    beats_baselines: bool | None
    """Whether the 95 % confidence interval of the difference to the best baseline, on the same pairs, lies above 0. None for a baseline."""
    difference: float | None
    """Accuracy minus the best baseline's, on the pairs that this protocol judged."""
    difference_low: float | None
    """Lower bound of that difference's 95 % confidence interval."""
    best_baseline: str | None
    mass: float | None = None
    """Mean probability that the judge gave to its choices together, in [0, 1]; None for baselines and where no choices were read."""
    failure_details: str = ""
    """The reasons of failures with the server's own words."""


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A protocol that judged no pair, so that there is no figure for it."""

    name: str
    failures: int
    reason: str
    """Why, with the server's own words."""


@dataclass(frozen=True, slots=True)
class JudgeBench:
    """Results of protocols, in the requested order, and of the baselines on all pairs."""

    pairs: int
    skipped: int
    """Number of pairs left out because their human label is a tie (exactly ½)."""
    protocols: tuple[ProtocolResult, ...]
    baselines: tuple[ProtocolResult, ...]
    unmeasured: tuple[Unmeasured, ...] = ()
    """Protocols that judged no pair."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A pair to be judged, and whether annotators preferred A."""

    pair: ResponsePair
    a_is_better: bool

    @property
    def id(self) -> str:
        return self.pair.id

    @property
    def conversation(self) -> str:
        """What pairs share that are not independent."""
        return conversation_id(self.pair.prompt)


BASELINES: dict[str, Callable[[ResponsePair], float]] = {
    "always-a": lambda pair: 1.0,
    "longer": lambda pair: _compare(len(pair.response_a), len(pair.response_b)),
    "shorter": lambda pair: _compare(len(pair.response_b), len(pair.response_a)),
}


async def judge_bench(
    preferences: Iterable[Preference],
    judges: Sequence[Judge],
    *,
    window: int,
    on_progress: Callable[[int, int, str], None] = lambda done, total, protocol: None,
) -> JudgeBench:
    """Judge human-labelled pairs with one or several judges, and compare them with the baselines.

    A hash of the pair decides which response is A, so that a judge gains nothing by a preference for one position.

    Args:
        preferences: human labels; those at exactly ½ are skipped and counted.
        judges: judges with the same seed, which also decides positions and bootstrap. Without judges, only the baselines are measured.
        window: maximum number of pairs in progress.
        on_progress: called with the number of judged pairs, the total, and the protocol.

    Raises:
        DataError: there is no pair with a preferred response.
        ModelError: the model fails, or no protocol judged any pair. Failures of single pairs are counted in the result.
    """
    preferences = list(preferences)
    seed = judges[0].run_seed if judges else 0
    labelled = labelled_pairs(preferences, seed)
    if not labelled:
        raise DataError(f"nothing to measure a judge on: {len(preferences)} pairs, none with a preferred response")
    results, unmeasured = [], []
    for judge in judges:
        name = judge.label
        try:
            judgments = await _judge_all(labelled, judge, name, window, on_progress)
        except NoLogprobsError as e:
            unmeasured.append(Unmeasured(name, len(labelled), str(e)))
            continue
        failed = [Failure("judge bench", j.pair_id, *j.failed) for j in judgments if j.failed is not None]
        if len(failed) == len(judgments):
            unmeasured.append(Unmeasured(name, len(failed), in_words(failed)))
        else:
            results.append(_result(name, labelled, judgments, failed, seed))
    if judges and not results:
        words = "\n".join(f"{u.name}: all {u.failures} pairs failed: {u.reason}" for u in unmeasured)
        raise ModelError(f"{judges[0].model.engine.name}: the judge could not be measured.\n{words}")
    baselines = tuple(_baseline(name, labelled) for name in BASELINES)
    return JudgeBench(len(labelled), len(preferences) - len(labelled), tuple(results), baselines, tuple(unmeasured))


def position_bias(judgments: Iterable[Judgment]) -> float | None:
    """Return the rate at which the response shown first is preferred, over both orders of every pair, minus ½; None without orders."""
    firsts: list[float] = []
    for judgment in judgments:
        if judgment.p_a_first is not None and judgment.p_a_second is not None:
            firsts += [correctness(judgment.p_a_first, True), correctness(judgment.p_a_second, False)]
    return sum(firsts) / len(firsts) - 0.5 if firsts else None


async def _judge_all(
    labelled: Sequence[LabelledPair], judge: Judge, name: str, window: int, on_progress: Callable[[int, int, str], None]
) -> list[Judgment]:
    async def work(item: LabelledPair) -> Judgment:
        return await judge(item.pair)

    unstopped: list[Failure] = []
    on_progress(0, len(labelled), name)
    flow = run_items(
        labelled,
        work,
        window=window,
        max_failure_fraction=1.0,
        stage=f"judge bench: {name}",
        failures=unstopped,
        on_progress=lambda done: on_progress(done, len(labelled), name),
        may_all_fail=True,
    )
    return [judgment async for judgment in flow]


def _result(
    name: str, labelled: Sequence[LabelledPair], judgments: Sequence[Judgment], failed: Sequence[Failure], seed: int
) -> ProtocolResult:
    reasons = dict(Counter(f.reason for f in failed))
    judged = [(item, j.p_a) for item, j in zip(labelled, judgments, strict=True) if j.p_a is not None]
    measured = _measure(name, [i for i, _ in judged], [p for _, p in judged])
    masses = [j.mass for j in judgments if j.mass is not None]
    measured = replace(
        measured,
        position_bias=position_bias(judgments),
        failures=len(failed),
        failure_reasons=reasons,
        failure_details=in_words(failed),
        mass=sum(masses) / len(masses) if masses else None,
    )
    right = [correctness(p, item.a_is_better) for item, p in judged]
    by_baseline = {b: [correctness(rule(item.pair), item.a_is_better) for item, _ in judged] for b, rule in BASELINES.items()}
    best = max(by_baseline, key=lambda b: sum(by_baseline[b]))
    difference, low, _ = paired_bootstrap(
        [mine - its for mine, its in zip(right, by_baseline[best], strict=True)], seed, [item.conversation for item, _ in judged]
    )
    return replace(measured, beats_baselines=low > 0, difference=difference, difference_low=low, best_baseline=best)


def _baseline(name: str, labelled: Sequence[LabelledPair]) -> ProtocolResult:
    return _measure(name, labelled, [BASELINES[name](item.pair) for item in labelled])


def _measure(name: str, labelled: Sequence[LabelledPair], p_a: Sequence[float]) -> ProtocolResult:
    right = [correctness(p, item.a_is_better) for item, p in zip(labelled, p_a, strict=True)]
    n = len(right)
    low, high = clustered_share(right, [item.conversation for item in labelled])
    mean_p = sum(p if item.a_is_better else 1 - p for item, p in zip(labelled, p_a, strict=True)) / n
    return ProtocolResult(name, sum(right) / n, low, high, n, None, 0, {}, right.count(0.5), mean_p, None, None, None, None)


def labelled_pairs(preferences: Iterable[Preference], seed: int) -> list[LabelledPair]:
    """Return the pairs that are not ties. A hash decides whether the preferred response is A or B."""
    return [_labelled(p, seed) for p in preferences if p.p_chosen != 0.5]


def _labelled(preference: Preference, seed: int) -> LabelledPair:
    """Assign the preferred response to A or B by a hash, independent of the order in the row."""
    better, worse = (preference.chosen, preference.rejected)
    if preference.p_chosen < 0.5:
        better, worse = worse, better
    pair = ResponsePair(preference.prompt, better, worse, "human", preference.provenance)
    a_is_better = split_fraction(pair.id, f"bench-side-{seed}") < 0.5
    return LabelledPair(pair if a_is_better else pair.swapped(), a_is_better)


def _compare(one: int, two: int) -> float:
    return 0.5 if one == two else float(one > two)


def chosen_protocols(text: str, config: FeedbackConfig) -> list[str]:
    """Parse `all` (those that ask a model, if nothing is wrong with their settings), or protocol names separated by commas.

    Raises:
        RecipeError: a name is unknown.
    """
    known = PROTOCOLS.names()
    if text == "all":
        return list(asking_protocols(config))
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not wanted:
        raise RecipeError(f"--protocol {text}: expected all, or some of {', '.join(known)}")
    for name in wanted:
        if name not in known:
            raise RecipeError(f"--protocol {text}: {unknown(PROTOCOLS.kind, name)}")
    return [k for k in known if k in wanted]
