"""Paired comparisons of two models on the same prompts.

Pairing by prompt removes the variance between prompts, so it needs far fewer of them than comparing two separate rates.
"""

from collections.abc import Iterable, Mapping, Sequence

from cai.errors import DataError
from cai.records import EvalResult, Response
from cai.stats import change, mcnemar, wilson

AnswersByPrompt = Mapping[str, Response]


def by_prompt(responses: Iterable[Response]) -> dict[str, Response]:
    """Return one model's responses by prompt id, in their order. Raises `DataError` if a prompt has two."""
    found: dict[str, Response] = {}
    for response in responses:
        if response.prompt.id in found:
            raise DataError(f"prompt {response.prompt.id} has two responses of one model; expected one. Evaluate one sample per prompt.")
        found[response.prompt.id] = response
    return found


def shared_ids(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return the prompt ids that occur in both, in the order of the first."""
    return [i for i in before if i in after]


def unpaired_note(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Return a note with the number of prompts that only one of the two has; empty if there are none."""
    left = len(before.keys() ^ after.keys())
    return f"{left} prompt{'s' if left > 1 else ''} answered by only one of the two left out" if left else ""


def rate(name: str, model: str, yes: Sequence[bool], note: str = "") -> EvalResult:
    """Return the rate of `yes` with its Wilson interval."""
    count = sum(yes)
    low, high = wilson(count, len(yes))
    return EvalResult(name, model, count / len(yes), len(yes), low, high, note)


def change_result(name: str, model: str, before: Sequence[bool], after: Sequence[bool], note: str = "") -> EvalResult:
    """Return `change` as a result about `model`, whose answers are `after`, with McNemar's exact p-value."""
    value, low, high = change(before, after)
    only_before, only_after = (sum(x and not y for x, y in zip(a, b, strict=True)) for a, b in ((before, after), (after, before)))
    return EvalResult(name, model, value, len(before), low, high, note, mcnemar(only_before, only_after))


def rate_and_change(name: str, model: str, mine: Mapping[str, bool], theirs: Mapping[str, bool] | None, note: str = "") -> list[EvalResult]:
    """Return the rate of yes among a model's prompts (`name`), and its change from another model's on the shared ones (`NAME_change`).

    Args:
        mine: prompt id to yes or no.
        theirs: the same for the other model; None: no change is returned.
    """
    results = [rate(name, model, list(mine.values()), note)] if mine else []
    ids = [] if theirs is None else shared_ids(theirs, mine)
    if theirs is not None and ids:
        before, after = [theirs[i] for i in ids], [mine[i] for i in ids]
        results.append(change_result(f"{name}_change", model, before, after, unpaired_note(theirs, mine)))
    return results
