"""Judge biases: position bias, length bias and self-preference.

Length bias and self-preference are measured against human labels of the same pairs, because the longer or more fluent response may be
better. Self-preference is measured by perplexity: a response with a higher log-probability per token under the judge sounds more like the
judge (after Wataoka et al. 2024, arXiv 2410.21819, who find that judges prefer texts of low perplexity, such as their own).
"""

from collections.abc import Iterable, Mapping

from cai.evaluate.audit.finding import Check, Measurement
from cai.records import Judgment, ResponsePair

FLIPS = Check(
    "judge bias",
    "flips_with_the_order",
    "Prefers the other answer when the two are shown in the other order",
    rise=0.0,
    level=0.2,
    reasoning="such a verdict depends on the position, not on the answer; strong judges flip on about one pair in ten, and averaging both "
    "orders turns each flip into a label near one half.",
)
PICKS_LONGER = Check(
    "judge bias",
    "picks_the_longer",
    "Picks the longer answer more often than people do",
    rise=0.10,
    level=None,
    reasoning="people's own preference for length is the reference; one pair in ten more is a bias that training will exploit.",
)
PICKS_LIKELIER = Check(
    "judge bias",
    "picks_what_sounds_like_itself",
    "Picks the answer that sounds more like itself, more often than people do",
    rise=0.10,
    level=None,
    reasoning="people's labels of the same pairs are the reference; a judge that prefers its own style can't judge a model that shares it.",
)


def order_flips(judgments: Iterable[Judgment], pairs: Mapping[str, ResponsePair] | None = None) -> Measurement:
    """Measure for each pair judged in both orders whether the winner changes with the order. Pairs with an exact tie are left out."""
    values: dict[str, float] = {}
    shown: dict[str, tuple[str, str]] = {}
    lean = 0
    for j in judgments:
        if j.p_a_first is None or j.p_a_second is None or 0.5 in (j.p_a_first, j.p_a_second):
            continue
        flipped = (j.p_a_first > 0.5) != (j.p_a_second > 0.5)
        values[j.pair_id] = float(flipped)
        lean += flipped and (1 if j.p_a_first > 0.5 else -1)
        if pairs is not None and (pair := pairs.get(j.pair_id)) is not None:
            shown[j.pair_id] = (pair.prompt.messages[-1].content, f"A: {pair.response_a}\n\nB: {pair.response_b}")
    note = f"{'first' if lean > 0 else 'second'} position favoured in {abs(lean)} more" if lean else ""
    return Measurement(FLIPS, values, shown, note)


def taste(
    check: Check, trait: Mapping[str, float], judged: Mapping[str, float], people: Mapping[str, bool]
) -> tuple[Measurement, Measurement]:
    """Measure how often the judge, and how often annotators, preferred the response with more of a trait.

    Args:
        trait: pair id to the trait of A minus that of B; pairs with 0 are left out.
        judged: pair id to the judge's probability that A is better; pairs with exactly ½ are left out.
        people: pair id to whether annotators preferred A.

    Returns:
        The measurements of the judge and of the annotators, on the same pairs.
    """
    ids = [i for i in people if trait.get(i, 0.0) != 0 and judged.get(i, 0.5) != 0.5]
    return (
        Measurement(check, {i: float((judged[i] > 0.5) == (trait[i] > 0)) for i in ids}),
        Measurement(check, {i: float(people[i] == (trait[i] > 0)) for i in ids}),
    )
