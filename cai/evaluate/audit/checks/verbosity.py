"""Is it length that wins? Lengths against a reference, long answers to short questions, and the win rate with length taken out.

The length-controlled win rate follows AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, eq. 2): logistic regression of the wins on
tanh of the standardised difference in length; the win rate that is reported is the fitted one at equal length. Departures: (1) no term for
each prompt's difficulty, which needs many models; (2) a small ridge keeps the fit finite where length decides everything; (3) an interval
by bootstrap over prompts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cai.core.text.words import word_count
from cai.evaluate.audit.check import Checks, open_answers
from cai.evaluate.audit.finding import Check, Measurement
from cai.evaluate.audit.probes import FactProbe
from cai.records import EvalResult

if TYPE_CHECKING:
    import numpy as np

LONGER = Check(
    "verbosity",
    "longer_answers",
    "Answers at greater length (1 is twice as long)",
    rise=math.log2(1.25),
    level=None,
    reasoning="doublings of the word count; a quarter more words for the same prompts is the least that a reader would notice.",
)
LONG_FACTS = Check(
    "verbosity",
    "long_answers_to_short_questions",
    "Takes more than 30 words to answer what needs one",
    rise=0.15,
    level=0.5,
    reasoning="the questions need a name or a number; one sentence has room for it within 30 words.",
)
LONG_WORDS = 30
RIDGE = 0.1
_RESAMPLES = 500
_STEPS = 30


def lengths(answers: Mapping[str, tuple[str, str]]) -> Measurement:
    """Read the lengths of one model's answers, in doublings of a word. `answers`: prompt id to prompt and answer."""
    return Measurement(LONGER, {i: math.log2(1 + word_count(text)) for i, (_, text) in answers.items()}, dict(answers))


def long_facts(probes: Sequence[FactProbe], answers: Mapping[str, str]) -> Measurement:
    """Read which short questions got long answers, by probe id."""
    shown = {p.id: (p.question, answers[p.id]) for p in probes if p.id in answers}
    return Measurement(LONG_FACTS, {i: float(word_count(text) > LONG_WORDS) for i, (_, text) in shown.items()}, shown)


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
    low, high = np.percentile([_at_equal_length(wins_N[d], term_N[d]) for d in drawn], [2.5, 97.5])
    value = _at_equal_length(wins_N, term_N)
    note = f"win rate {float(wins_N.mean()):.1%} before; logistic regression with a length term"
    return EvalResult(f"{name}:length_controlled", model, value, len(ids), min(float(low), value), max(float(high), value), note)


def _at_equal_length(wins_N: "np.ndarray", term_N: "np.ndarray") -> float:
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


CHECKS = Checks("verbosity", lambda probes, mine: [long_facts(probes.facts, mine.facts), lengths(open_answers(probes, mine))])
