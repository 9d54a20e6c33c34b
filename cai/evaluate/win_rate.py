"""Win rates: how often one model's response is preferred to another's, by a judge, a reward model or rules.

A win counts 1 and a tie ½. Identical texts tie, whatever the floating-point noise of their scores. The judge and the reward models that
produced the training signal are not independent evaluators of the policy, so read these rates together with the refusal rates.
"""

from collections.abc import Mapping
from dataclasses import replace

from cai.core.text.words import word_count
from cai.errors import DataError
from cai.evaluate.paired import AnswersByPrompt, shared_ids
from cai.records import PROMPT_KINDS, EvalResult
from cai.stats import mcnemar, wilson

LIKE_LENGTH = 0.2
"""Two responses have like length if the shorter one has at least 1 − this fraction of the longer one's words."""


def outcomes_by_judge(p_wins: Mapping[str, float], base: AnswersByPrompt, answers: AnswersByPrompt) -> dict[str, float]:
    """Turn a judge's probabilities into wins (1), ties (½) and losses (0) per prompt.

    Args:
        p_wins: prompt id to the probability, averaged over both orders, that the response in `answers` is better than the one in `base`.
    """
    _check_known(p_wins, base, answers)
    wrong = [f"{i}: {p}" for i, p in p_wins.items() if not 0 <= p <= 1]
    if wrong:
        raise DataError(f"win probabilities outside [0, 1]: {', '.join(wrong[:5])}")
    return {i: _outcome(p, 0.5, base[i].text == answers[i].text) for i, p in p_wins.items()}


def outcomes_by_reward(
    base_scores: Mapping[str, float], scores: Mapping[str, float], base: AnswersByPrompt, answers: AnswersByPrompt
) -> dict[str, float]:
    """Turn reward scores (any scale, higher is better) into wins, ties and losses on the prompts that both models have scores for."""
    ids = shared_ids(base_scores, scores)
    _check_known(ids, base, answers)
    wrong = [i for i in ids if base_scores[i] != base_scores[i] or scores[i] != scores[i]]
    if wrong:
        raise DataError(f"rewards that aren't numbers for {', '.join(wrong[:5])}")
    return {i: _outcome(scores[i], base_scores[i], base[i].text == answers[i].text) for i in ids}


def win_rates(name: str, model: str, outcomes: Mapping[str, float], answers: AnswersByPrompt) -> list[EvalResult]:
    """Return the win rate over all prompts (`name`) and, if there are several kinds, per kind of prompt (`name:harmful`).

    The overall rate has the p-value of a sign test, which ignores ties.

    Args:
        name: `win_rate_by_judge` or `win_rate_by_reward`.
        outcomes: prompt id to 1, ½ or 0.
        answers: any model's responses to these prompts, which hold each prompt's kind.
    """
    results = [_rate(name, model, list(outcomes.values()))] if outcomes else []
    decided = [o for o in outcomes.values() if o != 0.5]
    results = [replace(r, p=mcnemar(decided.count(0.0), decided.count(1.0))) for r in results]
    groups = {kind: [o for i, o in outcomes.items() if answers[i].prompt.kind == kind] for kind in PROMPT_KINDS}
    present = {kind: found for kind, found in groups.items() if found}
    if len(present) > 1:
        results += [_rate(f"{name}:{kind}", model, found) for kind, found in present.items()]
    return results


def length_control(
    name: str, model: str, outcomes: Mapping[str, float], base: AnswersByPrompt, answers: AnswersByPrompt
) -> list[EvalResult]:
    """Check whether length explains the wins: how often the longer response wins, and the win rate at like length.

    Returns:
        `longer_wins` over decided prompts of unequal length (½: no length bias), and `NAME:like_length` over prompts whose word counts
        differ by at most a fifth. A measure without prompts is left out.
    """
    words = {i: (word_count(base[i].text), word_count(answers[i].text)) for i in outcomes}
    decided = {i: o for i, o in outcomes.items() if o != 0.5 and words[i][0] != words[i][1]}
    longer = [float((words[i][1] > words[i][0]) == (o == 1.0)) for i, o in decided.items()]
    like = [o for i, o in outcomes.items() if min(words[i]) >= (1 - LIKE_LENGTH) * max(words[i])]
    results = [_rate("longer_wins", model, longer, f"of decided prompts of unequal length, by {name}")] if longer else []
    if like:
        results.append(_rate(f"{name}:like_length", model, like, "prompts whose word counts differ by at most a fifth"))
    return results


def _outcome(mine: float, theirs: float, same_text: bool) -> float:
    return 0.5 if same_text or mine == theirs else float(mine > theirs)


def _rate(name: str, model: str, outcomes: list[float], note: str = "") -> EvalResult:
    won = sum(outcomes)
    low, high = wilson(won, len(outcomes))
    ties = outcomes.count(0.5)
    tie_note = f"{ties} tie{'s' if ties > 1 else ''} counted half" if ties else ""
    return EvalResult(name, model, won / len(outcomes), len(outcomes), low, high, "; ".join(filter(None, (note, tie_note))))


def _check_known(ids: Mapping[str, float] | list[str], base: AnswersByPrompt, answers: AnswersByPrompt) -> None:
    unknown = [i for i in ids if i not in base or i not in answers]
    if unknown:
        raise DataError(f"judged prompts without two responses: {', '.join(unknown[:5])}; judge only prompts that both models answered")
