"""Two models on the same prompts: lining answers up, and how much a yes-or-no rate changed between them.

Comparing within prompts takes away how hard the prompts are, so far fewer of them are needed than with two separate rates.
Which question is asked of the answers is the other modules' matter.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from cai.errors import DataError
from cai.evaluate.intervals import mcnemar, wilson
from cai.records import EvalResult, Response

AnswersByPrompt = Mapping[str, Response]


def by_prompt(responses: Iterable[Response]) -> dict[str, Response]:
    """Key one model's responses by prompt id, in their order.

    Raises:
        DataError: a prompt was answered twice: which answer to count would be a guess.
    """
    found: dict[str, Response] = {}
    for response in responses:
        if response.prompt.id in found:
            raise DataError(f"prompt {response.prompt.id} has two responses of one model; expected one. Evaluate one sample per prompt.")
        found[response.prompt.id] = response
    return found


def shared_ids(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return the prompt ids that both have, in the order of the first."""
    return [i for i in before if i in after]


def unpaired_note(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Say how many prompts only one of the two has, so that what a comparison leaves out is seen; empty where there are none."""
    left = len(before.keys() ^ after.keys())
    return f"{left} prompt{'s' if left > 1 else ''} answered by only one of the two left out" if left else ""


def rate(name: str, model: str, yes: Sequence[bool], note: str = "") -> EvalResult:
    """Return the share of yes with its Wilson interval."""
    count = sum(yes)
    low, high = wilson(count, len(yes))
    return EvalResult(name, model, count / len(yes), len(yes), low, high, note)


def change(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Return how much a rate rose from `before` to `after` on the same items, with a 95 % interval.

    Newcombe (1998), Statistics in Medicine 17:2635-2650, method 10: Wilson intervals of both rates, joined by their correlation. Unlike a
    bootstrap or Wald interval it keeps its width where few items differ, so that three changes out of three don't pass for certainty.

    Args:
        before: one yes or no per item.
        after: the same items, in the same order; not empty.

    Returns:
        Change in [-1, 1], above 0 where the rate rose; lower and upper bound.

    >>> before = [True] * 36 + [True] * 12 + [False] * 2
    >>> after = [True] * 36 + [False] * 12 + [True] * 2
    >>> [round(x, 4) for x in change(before, after)]
    [-0.2, -0.3404, -0.0569]
    """
    n = len(before)
    both = sum(x and y for x, y in zip(before, after, strict=True))
    first, second = sum(before), sum(after)
    neither = n - first - second + both
    p, q = second / n, first / n
    (p_low, p_high), (q_low, q_high) = wilson(second, n), wilson(first, n)
    correlation = _correlation(both, first, second, neither, n)
    below = (p - p_low) ** 2 - 2 * correlation * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * correlation * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    return p - q, max(-1.0, p - q - math.sqrt(max(0.0, below))), min(1.0, p - q + math.sqrt(max(0.0, above)))


def change_result(name: str, model: str, before: Sequence[bool], after: Sequence[bool], note: str = "") -> EvalResult:
    """Return `change` as a result about `model`, whose answers are `after`, with McNemar's exact p-value."""
    value, low, high = change(before, after)
    only_before, only_after = (sum(x and not y for x, y in zip(a, b, strict=True)) for a, b in ((before, after), (after, before)))
    return EvalResult(name, model, value, len(before), low, high, note, mcnemar(only_before, only_after))


def _correlation(both: int, first: int, second: int, neither: int, n: int) -> float:
    """Phi of the two-by-two table, with Newcombe's continuity correction towards 0."""
    spread = first * (n - first) * second * (n - second)
    if spread == 0:
        return 0.0
    product = float(both * neither - (first - both) * (second - both))
    if product > 0:
        product = max(0.0, product - n / 2)
    return product / math.sqrt(spread)
