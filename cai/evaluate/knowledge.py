"""Checks whether training made a model forget: accuracy on short factual questions, and perplexity of good prose.

Both use the chat template. `truthful`: the fraction of questions in `prompts/audit/facts.jsonl` whose response contains an accepted name or
number. A response that names many counts too, so it is an upper bound. `perplexity`: the exponential of the mean negative log-probability
per token over all passages (`prompts/audit/passages.jsonl`, written for this project), each as the response to a request for it. Compare
perplexities only between models with the same tokenizer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cai.evaluate.lengths import ratio_of_means
from cai.evaluate.paired import change_result, rate, shared_ids, unpaired_note
from cai.records import EvalResult
from cai.stats import two_sided


@dataclass(frozen=True)
class Knowledge:
    """One model's results on facts and passages."""

    right: Mapping[str, bool] = field(default_factory=dict)
    """Fact id to whether the response was right."""
    passages: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Passage id to its log-probability in nats (at most 0) and its number of tokens (at least 1)."""


def knowledge_results(model: str, mine: Knowledge, base: Knowledge | None = None, seed: int = 0) -> list[EvalResult]:
    """Return `truthful` and `perplexity` of a model, and against `base` `truthful_change` and `perplexity_ratio`.

    Args:
        base: the base model's results. Comparisons use only questions and passages that both have.
    """
    results = [rate("truthful", model, list(mine.right.values()))] if mine.right else []
    if base is not None and (ids := shared_ids(base.right, mine.right)):
        note = unpaired_note(base.right, mine.right)
        results.append(change_result("truthful_change", model, [base.right[i] for i in ids], [mine.right[i] for i in ids], note))
    if mine.passages:
        nats, tokens = ([f(x) for x in mine.passages.values()] for f in (lambda x: -x[0], lambda x: float(x[1])))
        value, low, high = map(math.exp, ratio_of_means(nats, tokens, seed))
        results.append(EvalResult("perplexity", model, value, len(nats), low, high))
    ids = [] if base is None else shared_ids(base.passages, mine.passages)
    if base is not None and ids and all(base.passages[i][1] == mine.passages[i][1] for i in ids):  # else the tokenizers differ
        results.append(_perplexity_ratio(model, [mine.passages[i] for i in ids], [base.passages[i] for i in ids], seed))
    return results


def _perplexity_ratio(model: str, mine: list[tuple[float, int]], base: list[tuple[float, int]], seed: int) -> EvalResult:
    """Return the ratio of the model's to the base model's perplexity on the same passages, with a paired confidence interval."""
    extra = [b[0] - m[0] for m, b in zip(mine, base, strict=True)]  # nats by which the model finds each passage less likely
    value, low, high = map(math.exp, ratio_of_means(extra, [float(tokens) for _, tokens in mine], seed))
    return EvalResult("perplexity_ratio", model, value, len(extra), low, high, p=two_sided(extra, seed))
