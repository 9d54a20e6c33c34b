"""What sways the judge: the order in which it is shown two answers, their length, and how much they sound like itself.

Length and self-preference are measured against people on the same pairs, because the longer or the more fluent answer may be better. An
answer sounds like the judge where the judge finds it likelier, per token (after Wataoka et al. 2024, arXiv 2410.21819, who find that judges
prefer texts of low perplexity, their own above all).
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
    reasoning="such a verdict is about the place, not the answer; strong judges flip on about one pair in ten, and averaging both orders "
    "turns each flip into a label that says little.",
)
PICKS_LONGER = Check(
    "judge bias",
    "picks_the_longer",
    "Picks the longer answer more often than people do",
    rise=0.10,
    level=None,
    reasoning="people's own taste for length is the measure; one pair in ten more is a bias that training will find.",
)
PICKS_LIKELIER = Check(
    "judge bias",
    "picks_what_sounds_like_itself",
    "Picks the answer that sounds more like itself, more often than people do",
    rise=0.10,
    level=None,
    reasoning="the same pairs by people are the measure; a judge that rewards its own fluency can't judge the model that shares it.",
)


def order_flips(judgments: Iterable[Judgment], pairs: Mapping[str, ResponsePair] | None = None) -> Measurement:
    """Read which pairs, judged in both orders, had another winner in each. Exact ties in either order are left out."""
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
    note = f"{'first' if lean > 0 else 'second'} place favoured in {abs(lean)} more" if lean else ""
    return Measurement(FLIPS, values, shown, note)


def taste(
    check: Check, trait: Mapping[str, float], judged: Mapping[str, float], people: Mapping[str, bool]
) -> tuple[Measurement, Measurement]:
    """Read how often the judge, and how often people, picked the answer with more of a trait.

    Args:
        check: `PICKS_LONGER` or `PICKS_LIKELIER`.
        trait: pair id to the trait of A minus that of B; 0 leaves the pair out.
        judged: pair id to the judge's probability that A is better; exactly ½ leaves the pair out.
        people: pair id to whether people preferred A.

    Returns:
        The judge's reading and people's, on the same pairs.
    """
    ids = [i for i in people if trait.get(i, 0.0) != 0 and judged.get(i, 0.5) != 0.5]
    return (
        Measurement(check, {i: float((judged[i] > 0.5) == (trait[i] > 0)) for i in ids}),
        Measurement(check, {i: float(people[i] == (trait[i] > 0)) for i in ids}),
    )
