"""Checks whether training made a model forget: accuracy on short factual questions, and perplexity of good prose.

Both use the chat template. `truthful`: the fraction of questions in `prompts/audit/facts.jsonl` whose response contains an accepted name or
number. A response that names many counts too, so it is an upper bound. `perplexity`: the exponential of the mean negative log-probability
per token over all passages (`prompts/audit/passages.jsonl`, written for this project), each as the response to a request for it. Compare
perplexities only between models with the same tokenizer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from cai.core.jsonl import read_records
from cai.core.text.words import mentions
from cai.errors import DataError, ModelError, ReplyError
from cai.evaluate.lengths import ratio_of_means
from cai.evaluate.paired import change_result, rate, shared_ids, unpaired_note
from cai.generate.critique import respond
from cai.ids import W, at_most
from cai.models.base import TextModel
from cai.models.requests import TextLogprob
from cai.recipe import SamplingSpec
from cai.records import EvalResult, Message, Prompt
from cai.session import Session
from cai.stats import two_sided

FOLDER = Path("prompts/audit")
SHORT_TOKENS = 48
"""Token limit for questions whose answer is a name or a number; longer responses are cut at a sentence."""


@dataclass(frozen=True, slots=True)
class FactProbe:
    """A short factual question."""

    id: str
    category: str
    question: str
    right: tuple[str, ...]
    """Words, at least one of which is in every right answer."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of good prose, and a request for it."""

    id: str
    category: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Knowledge:
    """One model's results on facts and passages."""

    right: Mapping[str, bool] = field(default_factory=dict)
    """Fact id to whether the response was right."""
    passages: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Passage id to its log-probability in nats (at most 0) and its number of tokens (at least 1)."""


def load_knowledge(root: Path, limit: int | None = None, seed: int = 0) -> tuple[tuple[FactProbe, ...], tuple[Passage, ...]]:
    """Read a workspace's facts and passages.

    Args:
        limit: maximum number of each, chosen by hash, so that raising it only adds some; None keeps all.
    """
    facts, passages = read_probes(root / FOLDER / "facts.jsonl", FactProbe), read_probes(root / FOLDER / "passages.jsonl", Passage)
    return at_most(facts, limit, f"limit:{seed}"), at_most(passages, limit, f"limit:{seed}")


def read_probes(path: Path, record_type: type[W]) -> list[W]:
    """Read a file of probes. Raises `DataError` if two have the same id."""
    found = list(read_records(path, record_type))
    ids = {p.id for p in found}
    if len(ids) != len(found):
        raise DataError(f"{path}: {len(found) - len(ids)} probes repeat the id of another one; give each a unique id")
    return found


async def ask_knowledge(
    session: Session, model: TextModel, name: str, facts: Sequence[FactProbe], passages: Sequence[Passage]
) -> Knowledge:
    """Ask a model short factual questions, and measure the log-probability of passages.

    On a server that can't return log-probabilities of a given text, the passages are counted as failures.
    """
    writer, sampling = session.writer(model), short(session.recipe.evaluate.sampling)

    async def ask(fact: FactProbe) -> tuple[str, bool]:
        response = await respond(plain_question(fact.id, fact.question), writer, sampling)
        return fact.id, mentions(fact.right, response.text)

    async def read(passage: Passage) -> tuple[str, TextLogprob]:
        prompt = session.templates.respond.render({"conversation": (Message("user", passage.prompt),)})
        try:
            return passage.id, await model.score(prompt.messages, passage.text)
        except ReplyError:
            raise
        except ModelError as e:
            raise ReplyError("not_scored", str(e)) from e

    right = dict(await session.each(facts, ask, f"probes of {name}"))
    scored = await session.each(passages, read, f"passages read by {name}", may_all_fail=True)
    return Knowledge(right, {i: (reply.total, reply.tokens) for i, reply in scored})


def short(sampling: SamplingSpec) -> SamplingSpec:
    """Return a sampling for answers of a name or a number."""
    return replace(sampling, max_tokens=min(SHORT_TOKENS, sampling.max_tokens))


def plain_question(probe_id: str, text: str) -> Prompt:
    """Return a probe as a prompt of one turn."""
    return Prompt(probe_id, "other", (Message("user", text),), "audit")


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
