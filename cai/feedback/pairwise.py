"""Two responses side by side: the paper's two-option question (Bai et al. 2022, §4.1), plain or after thinking aloud.

The question is asked in both orders. With thinking, the reply must end in a verdict: the last `Answer: …` counts, and one that is not on
the menu, or not there, is a failure. The probability is then read where the verdict was written, from the log-probabilities of A and B.
"""

import re

from cai.errors import ReplyError
from cai.feedback.opinions import Asking, Opinion, both_orders, difference, log_odds_of, probability
from cai.flow import together
from cai.ids import content_hash, derive_seed
from cai.models.base import Sampling
from cai.records import Principle, ResponsePair
from cai.templates import Rendered, Template

OPTIONS = ("A", "B")
COT_TEMPERATURE = 0.7
_VERDICT = re.compile(
    r"\b(?:answer|verdict)[\s*_]*(?:is\b[\s*_]*[:：]?|[:：])[\s*_\"'“(\[]*(?:option\s+|response\s+)?[\s*_\"'“(\[]*", re.IGNORECASE
)
_OPTION = re.compile(
    r"([AB])\b(?![\s)\]*_\"'”’,/&]*(?:or|and)?[\s(*_\"'“]*[AB]\b)"  # not "A or B", "A/B"
    r"(?=[)\]*_\"'”’]*\s*(?:$|\n|[.,;:!?(\u2013\u2014-]|(?:is|was|because|since|as|seems)\b))"  # not "A good response would"
)


async def ask_pairwise(pair: ResponsePair, principle: Principle, asking: Asking) -> Opinion:
    """Ask which response is better, in both orders, and read the log-probabilities of A and B."""
    shown = [_shown(p, principle, asking.templates.judge_pairwise) for p in (pair, pair.swapped())]
    first, second = await together(asking.model.choices(r.messages, OPTIONS, r.prefill) for r in shown)
    return both_orders(difference(first.logprobs), -difference(second.logprobs))


async def ask_pairwise_cot(pair: ResponsePair, principle: Principle, asking: Asking) -> Opinion:
    """Let the model reason about both orders, then read its verdicts.

    The seed is that of the two texts and of which is shown first, so that swapping the pair asks the very same questions.

    Raises:
        ReplyError: `no_verdict` or `off_menu`.
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


def find_verdict(reply: str) -> tuple[str, int]:
    """Return the last verdict of a reply, and where its letter stands.

    >>> find_verdict("Answer: A? No, (B) is kinder.\\nAnswer: B")[0]
    'B'

    Raises:
        ReplyError: `no_verdict`; or `off_menu` where the last verdict is neither A nor B.
    """
    verdicts = list(_VERDICT.finditer(reply))
    if not verdicts:
        raise ReplyError("no_verdict", reply[-200:])
    at = verdicts[-1].end()
    option = _OPTION.match(reply, at)
    if option is None:
        raise ReplyError("off_menu", reply[max(0, at - 100) : at + 50].strip())
    return option[1], option.start(1)


async def _reason(rendered: Rendered, seed: int, asking: Asking) -> tuple[float, str]:
    """Return the log-odds that the response shown first is better, and the model's words."""
    sampling = Sampling(asking.config.cot_max_tokens, COT_TEMPERATURE)
    completion = await asking.model.complete(rendered.messages, sampling, seed, rendered.prefill)
    _, at = find_verdict(completion.text)
    reasoning = f"{rendered.prefill} {completion.text[:at].strip()}" if rendered.prefill else completion.text[:at].strip()
    choices = await asking.model.choices(rendered.messages, OPTIONS, reasoning)
    log_odds = difference(choices.logprobs)
    if asking.config.cot_clamp is not None:
        low, high = asking.config.cot_clamp
        log_odds = log_odds_of(min(high, max(low, probability(log_odds))))
    return log_odds, completion.text.strip()


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
