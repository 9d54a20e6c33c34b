"""Win rates: how often one model's response is preferred to another's, by a judge, a reward model or rules.

A win counts 1 and a tie ½. Identical texts tie, whatever the floating-point noise of their scores. The judge and the reward models that
produced the training signal are not independent evaluators of the policy, so read these rates together with the refusal rates.

The length-controlled win rate follows AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, eq. 2): logistic regression of the wins on
tanh of the standardised difference in length; the win rate that is reported is the fitted one at equal length. Departures: (1) no term for
each prompt's difficulty, which needs many models; (2) a small ridge keeps the fit finite where length decides everything; (3) an interval
by bootstrap over prompts.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cai.core.text.words import word_count
from cai.errors import DataError
from cai.evaluate.paired import AnswersByPrompt, shared_ids
from cai.records import PROMPT_KINDS, EvalResult
from cai.stats import mcnemar, wilson

if TYPE_CHECKING:
    import numpy as np

LIKE_LENGTH = 0.2
"""Two responses have like length if the shorter one has at least 1 − this fraction of the longer one's words."""
RIDGE = 0.1
_RESAMPLES = 500
_STEPS = 30


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


def length_controlled(name: str, model: str, outcomes: Mapping[str, float], words: Mapping[str, tuple[int, int]], seed: int) -> EvalResult:
    """Return the win rate that is left at equal length, with a 95 % bootstrap interval.

    Args:
        name: of the win rate, e.g. `win_rate_by_judge`; the result is called `NAME:length_controlled`.
        outcomes: prompt id to 1 for a win, ½ for a tie, 0 for a loss, or a probability; not empty.
        words: prompt id to the words of the base model's answer and of the model's.
    """
    import numpy as np

    ids = list(outcomes)
    wins_N = np.array([outcomes[i] for i in ids], dtype=np.float64)
    longer_N = np.array([words[i][1] - words[i][0] for i in ids], dtype=np.float64)
    spread = float(longer_N.std()) or 1.0
    term_N = np.tanh(longer_N / spread)
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, len(ids), size=len(ids)) for _ in range(_RESAMPLES))
    low, high = np.percentile([_fitted_at_equal_length(wins_N[d], term_N[d]) for d in drawn], [2.5, 97.5])
    value = _fitted_at_equal_length(wins_N, term_N)
    note = f"win rate {float(wins_N.mean()):.1%} before; logistic regression with a length term"
    return EvalResult(f"{name}:length_controlled", model, value, len(ids), min(float(low), value), max(float(high), value), note)


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


def _fitted_at_equal_length(wins_N: "np.ndarray", term_N: "np.ndarray") -> float:
    """Fit P(win) = σ(a + b·term) with a ridge on both, by Newton's method; return σ(a)."""
    import numpy as np

    design_N2 = np.stack([np.ones_like(term_N), term_N], axis=1)
    weights_2 = np.zeros(2)
    for _ in range(_STEPS):
        p_N = 1 / (1 + np.exp(-np.clip(design_N2 @ weights_2, -30, 30)))
        gradient_2 = design_N2.T @ (wins_N - p_N) - RIDGE * weights_2
        curvature_22 = design_N2.T @ (design_N2 * (p_N * (1 - p_N))[:, None]) + RIDGE * np.eye(2)
        step_2 = np.linalg.solve(curvature_22, gradient_2)
        weights_2 = weights_2 + step_2
        if float(np.abs(step_2).max()) < 1e-8:
            break
    return float(1 / (1 + math.exp(-float(weights_2[0]))))
