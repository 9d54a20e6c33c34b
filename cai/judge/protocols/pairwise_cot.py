"""Protocol `pairwise-cot`: the paper's two-option question (Bai et al. 2022, §4.1) after a chain of thought.

The question is asked in both orders. After a chain of thought, the log-probabilities of A and B are read at the position of the last
verdict (`Answer: …`), in the form that the model wrote (" A" after "Answer:", "A" after "Answer: ("). Small models often omit the verdict:
then "Answer:" is appended to their reasoning, and the log-probabilities are read there. A verdict other than A or B is a failure. Without
log-probabilities (some servers), the verdict counts as certain before the clamp, and a missing verdict is a failure.

What a model thinks before its chain of thought is no verdict: the verdict is read after both.
"""

import re
from dataclasses import replace

from msgspec import UNSET

from cai.core.flow import together
from cai.errors import NoLogprobsError, ReplyError
from cai.ids import content_hash, derive_seed
from cai.judge.choices import Reading, mean_mass, read_choices
from cai.judge.protocol import MAX_LOG_ODDS, Opinion, Protocol, ProtocolContext, both_orders, log_odds_of, probability
from cai.judge.protocols.pairwise import OPTIONS, shown
from cai.models.base import PairTokens, Work
from cai.models.requests import Sampling
from cai.models.templates import Rendered
from cai.recipe import FeedbackConfig
from cai.records import Principle, ResponsePair

COT_TEMPERATURE = 0.7
ASKED_FOR = "Answer:"
"""Text appended to a chain of thought without a verdict."""
_VERDICT = re.compile(
    r"\b(?:answer|verdict)[\s*_]*(?:is\b[\s*_]*[:：]?|[:：])[\s*_\"'“(\[]*(?:option\s+|response\s+)?[\s*_\"'“(\[]*", re.IGNORECASE
)
_OPTION = re.compile(
    r"([AB])\b(?![\s)\]*_\"'”’,/&]*(?:or|and)?[\s(*_\"'“]*[AB]\b)"  # not "A or B", "A/B"
    r"(?=[)\]*_\"'”’]*\s*(?:$|\n|[.,;:!?(\u2013\u2014-]|(?:is|was|because|since|as|seems)\b))"  # not "A good response would"
)


async def ask_pairwise_cot(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Sample a chain of thought for both orders, then read the verdicts.

    The seed depends on the two texts and on which one is shown first, so swapping the pair makes the same two calls.

    Raises:
        ReplyError: `off_menu`, or `no_verdict` from a server without log-probabilities.
    """
    texts = sorted((pair.response_a, pair.response_b))
    seeds = [
        derive_seed(asking.run_seed, pair.prompt.id, content_hash(texts), principle.id, "judge", texts.index(p.response_a))
        for p in (pair, pair.swapped())
    ]
    rendered = [shown(p, principle, asking.templates.judge_pairwise_cot) for p in (pair, pair.swapped())]
    (first, said_first), (second, said_second) = await together(
        _reason(one, seed, asking) for one, seed in zip(rendered, seeds, strict=True)
    )
    detail = f"[A first] {said_first}\n[B first] {said_second}"
    return both_orders(first.log_odds, -second.log_odds, detail, mean_mass([first, second]))


def find_verdict(reply: str) -> tuple[str, int] | None:
    """Return the last verdict of a reply and the position of its letter; None if there is none.

    >>> find_verdict("Answer: A? No, (B) is kinder.\\nAnswer: B")
    ('B', 38)

    Raises:
        ReplyError: `off_menu`: the last verdict is neither A nor B.
    """
    verdicts = list(_VERDICT.finditer(reply))
    if not verdicts:
        return None
    at = verdicts[-1].end()
    option = _OPTION.match(reply, at)
    if option is None:
        raise ReplyError("off_menu", reply[max(0, at - 100) : at + 50].strip())
    return option[1], option.start(1)


async def _reason(rendered: Rendered, seed: int, asking: ProtocolContext) -> tuple[Reading, str]:
    """Return the log-odds that the response shown first is better, and the model's reasoning."""
    sampling = Sampling(asking.config.cot_max_tokens, COT_TEMPERATURE, thinking_tokens=asking.config.thinking_tokens or UNSET)
    completion = await asking.model.complete(rendered.messages, sampling, seed, rendered.prefill)
    said = completion.text.strip()
    verdict = find_verdict(completion.text)
    reasoning = completion.text[: verdict[1]] if verdict else f"{said}\n{ASKED_FOR} "
    spaced = reasoning[-1:].isspace()
    reasoning = reasoning.strip()
    if rendered.prefill:
        reasoning = f"{rendered.prefill} {reasoning}"
    thought = f"<think>\n{completion.reasoning}\n</think>\n\n" if completion.reasoning else ""
    try:
        reading = await read_choices(asking.model, rendered.messages, OPTIONS, thought + reasoning, spaced=spaced)
    except (NoLogprobsError, ReplyError) as e:
        if isinstance(e, ReplyError) and e.reason != "choice_not_likely":  # some servers ignore the start of an answer
            raise
        if verdict is None:
            raise ReplyError("no_verdict", said[-200:]) from None
        reading = Reading(MAX_LOG_ODDS if verdict[0] == OPTIONS[0] else -MAX_LOG_ODDS, None)
    if asking.config.cot_clamp is not None:
        low, high = asking.config.cot_clamp
        reading = replace(reading, log_odds=log_odds_of(min(high, max(low, probability(reading.log_odds)))))
    said = thought + said
    return reading, said if verdict else f"{said}\n[no verdict; read after {ASKED_FOR!r}]"


def clamp_problems(config: FeedbackConfig) -> list[str]:
    """Refuse a clamp that would give a pair and its swap labels that don't add up to 1."""
    clamp = config.cot_clamp
    if clamp is None or (abs(clamp[0] + clamp[1] - 1) <= 1e-9 and clamp[0] <= clamp[1]):
        return []
    return [
        f"feedback.cot_clamp: {list(clamp)} is not symmetric around 0.5, so swapping two responses would change their label; "
        f"for example [{clamp[0]:g}, {1 - clamp[0]:g}], or null for none"
    ]


def cot_work(tokens: PairTokens, config: FeedbackConfig) -> list[Work]:
    """Return the calls about one pair: a reasoning in each order, and a verdict read after each."""
    asked = tokens.prompt + 2 * tokens.response + tokens.comparison
    most = config.cot_max_tokens + config.thinking_tokens
    return [Work(2, asked, max_tokens=most), Work(2, asked + most)]


PROTOCOL = Protocol("pairwise-cot", ask_pairwise_cot, lambda t: (t.judge_pairwise_cot,), cot_work, ("statement", "compare"), clamp_problems)
