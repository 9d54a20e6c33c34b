"""Two responses side by side: the paper's two-option question (Bai et al. 2022, §4.1), plain or after thinking aloud.

The question is asked in both orders. With thinking, the probability is read where the last verdict (`Answer: …`) was written, from the
log-probabilities of A and B. Small models often forget the verdict: then "Answer:" is put after their reasoning and the probability read
there. A verdict that is not on the menu is a failure. A server that gives no log-probabilities is taken at its word: its verdict counts as
certain, which the clamp then tempers, and no verdict is a failure.
"""

import re

from cai.core.flow import together
from cai.errors import NoLogprobsError, ReplyError
from cai.ids import content_hash, derive_seed
from cai.judge.protocol import MAX_LOG_ODDS, Opinion, ProtocolContext, both_orders, difference, log_odds_of, probability
from cai.models.base import PairTokens, Sampling, Work
from cai.models.templates import Rendered, Template
from cai.recipe import FeedbackConfig
from cai.records import Principle, ResponsePair

OPTIONS = ("A", "B")
COT_TEMPERATURE = 0.7
ASKED_FOR = "Answer:"
"""What is put after a reasoning that ends without a verdict."""
_VERDICT = re.compile(
    r"\b(?:answer|verdict)[\s*_]*(?:is\b[\s*_]*[:：]?|[:：])[\s*_\"'“(\[]*(?:option\s+|response\s+)?[\s*_\"'“(\[]*", re.IGNORECASE
)
_OPTION = re.compile(
    r"([AB])\b(?![\s)\]*_\"'”’,/&]*(?:or|and)?[\s(*_\"'“]*[AB]\b)"  # not "A or B", "A/B"
    r"(?=[)\]*_\"'”’]*\s*(?:$|\n|[.,;:!?(\u2013\u2014-]|(?:is|was|because|since|as|seems)\b))"  # not "A good response would"
)


async def ask_pairwise(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask which response is better, in both orders, and read the log-probabilities of A and B."""
    shown = [_shown(p, principle, asking.templates.judge_pairwise) for p in (pair, pair.swapped())]
    first, second = await together(asking.model.choices(r.messages, OPTIONS, r.prefill) for r in shown)
    return both_orders(difference(first.logprobs), -difference(second.logprobs))


async def ask_pairwise_cot(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Let the model reason about both orders, then read its verdicts.

    The seed is that of the two texts and of which is shown first, so that swapping the pair asks the very same questions.

    Raises:
        ReplyError: `off_menu`, or `no_verdict` from a server without log-probabilities.
    """
    texts = sorted((pair.response_a, pair.response_b))
    seeds = [
        derive_seed(asking.run_seed, pair.prompt.id, content_hash(texts), principle.id, "judge", texts.index(p.response_a))
        for p in (pair, pair.swapped())
    ]
    shown = [_shown(p, principle, asking.templates.judge_pairwise_cot) for p in (pair, pair.swapped())]
    (first, said_first), (second, said_second) = await together(
        _reason(rendered, seed, asking) for rendered, seed in zip(shown, seeds, strict=True)
    )
    return both_orders(first, -second, f"[A first] {said_first}\n[B first] {said_second}")


def pairwise_work(pair: PairTokens, config: FeedbackConfig) -> tuple[Work, ...]:
    """Return the calls for one pair: a question about both responses, in both orders."""
    return (Work(2, pair.prompt + 2 * pair.response, 1, pair.comparison),)


def pairwise_cot_work(pair: PairTokens, config: FeedbackConfig) -> tuple[Work, ...]:
    """Return the calls for one pair: reasoning in both orders, then a verdict read after each."""
    shown = pair.prompt + 2 * pair.response + pair.comparison
    return Work(2, shown, max_tokens=config.cot_max_tokens), Work(2, shown + config.cot_max_tokens)


def find_verdict(reply: str) -> tuple[str, int] | None:
    """Return the last verdict of a reply, and where its letter stands; None where there is none.

    >>> find_verdict("Answer: A? No, (B) is kinder.\\nAnswer: B")
    ('B', 39)

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


async def _reason(rendered: Rendered, seed: int, asking: ProtocolContext) -> tuple[float, str]:
    """Return the log-odds that the response shown first is better, and the model's words."""
    sampling = Sampling(asking.config.cot_max_tokens, COT_TEMPERATURE)
    completion = await asking.model.complete(rendered.messages, sampling, seed, rendered.prefill)
    said = completion.text.strip()
    verdict = find_verdict(completion.text)
    reasoning = completion.text[: verdict[1]].strip() if verdict else f"{said}\n{ASKED_FOR}"
    if rendered.prefill:
        reasoning = f"{rendered.prefill} {reasoning}"
    try:
        log_odds = difference((await asking.model.choices(rendered.messages, OPTIONS, reasoning)).logprobs)
    except NoLogprobsError:
        if verdict is None:
            raise ReplyError("no_verdict", said[-200:]) from None
        log_odds = MAX_LOG_ODDS if verdict[0] == OPTIONS[0] else -MAX_LOG_ODDS
    if asking.config.cot_clamp is not None:
        low, high = asking.config.cot_clamp
        log_odds = log_odds_of(min(high, max(low, probability(log_odds))))
    return log_odds, said if verdict else f"{said}\n[no verdict; read after {ASKED_FOR!r}]"


def _shown(pair: ResponsePair, principle: Principle, template: Template) -> Rendered:
    return template.render(
        {
            "conversation": pair.prompt.messages,
            "first": pair.response_a,
            "second": pair.response_b,
            "question": principle.compare,
            "statement": principle.statement,
        }
    )
