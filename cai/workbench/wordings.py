"""A model's own wording of proposed principles, in place of the rules'. What it writes is kept only where it holds up.

Each text is asked for on its own, with two worked cases in front of it. A reply stays if `cai constitution lint` has nothing against it
in its place and it shares a word that carries meaning with the statement; otherwise the rule's wording stays, and that is counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cai.constitution.lint import lint
from cai.constitution.proposals import DOCUMENTS, Proposal, Review, accept, propose, reworded
from cai.constitution.wording import claim
from cai.core.console import Reporter
from cai.core.flow import together
from cai.core.workspace import find_workspace
from cai.errors import ConstitutionError, ReplyError
from cai.ids import derive_seed
from cai.models.base import Sampling
from cai.models.templates import disarm
from cai.records import Constitution, Message, Principle
from cai.session import Session, settings
from cai.workbench.sample import Calls, calls_of

ASKED: Mapping[str, tuple[str, str, str]] = {
    "critique": (
        "Write a request to a writer to criticise their own last response under the rule. Begin with a verb.",
        "Point out every fact, quotation or source in your last response that may be invented.",
        "Name each term in your last response that a newcomer would not know.",
    ),
    "revision": (
        "Write a request to a writer to rewrite their last response so that it follows the rule. Begin with 'Rewrite your last response'.",
        "Rewrite your last response without anything invented, and say plainly what you do not know.",
        "Rewrite your last response in everyday words, and explain each term that is needed.",
    ),
    "ask_positive": (
        "Write a question about the response that is answered Yes if the response follows the rule.",
        "Is the response free of invented facts and sources?",
        "Does the response use words that a newcomer understands?",
    ),
    "ask_negative": (
        "Write a question about the response that is answered Yes if the response breaks the rule.",
        "Does the response contain invented facts or sources?",
        "Does the response use terms that a newcomer would not know?",
    ),
    "compare": (
        "Write a question that begins with 'Which response' and asks which of two responses follows the rule better.",
        "Which response states fewer invented facts?",
        "Which response is easier to understand for a newcomer?",
    ),
}
"""For each text: what is asked for, and how it reads for the two rules below."""
RULES = ("Never invent facts, quotations or sources.", "Use words that a newcomer understands.")
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Worded:
    """A review in the model's words, and how many of its texts were kept."""

    review: Review
    written: int
    refused: int
    """Replies that lint or the look at their words turned down, and ones that never came; the rules' wording stands there."""
    calls: Calls


def word_document(path: Path, accepted: str | None, model: str, reporter: Reporter, seed: int = 0) -> tuple[Review | Constitution, str]:
    """Propose principles out of a document and let a model word their requests and questions.

    Args:
        path: the document. Not a review file: a person's wording is never replaced.
        accepted: `all` or numbers, to take those at once; None: a review, for a person.
        model: its name.
        reporter: shows progress.
        seed: for a model that can't be greedy.

    Returns:
        The review, or the constitution of what was accepted; and a line that says how much of the wording is the model's.

    Raises:
        CaiError: the document can't be read, nothing is accepted, or the model can't go on.
    """
    if path.suffix.lower() not in DOCUMENTS:
        raise ConstitutionError(f"{path}: --model words what is proposed out of a document; in a review file the wording is a person's")
    review = propose(path)

    session = Session(recipe=settings(model=model, seed=seed, name="import"), workspace=find_workspace(Path.cwd()), reporter=reporter)
    worded = session.run(lambda opened: word_all(review, opened), "import")
    note = f"{worded.written} texts written by {model}; {worded.refused} of its replies did not hold up, and the rules' wording stands"
    return (worded.review if accepted is None else accept(worded.review, accepted, path)), note


async def word_all(review: Review, session: Session) -> Worded:
    """Ask for every text of every proposal. Raises `ModelError` where the model can't go on."""

    async def work(proposal: Proposal) -> tuple[Proposal, dict[str, str]]:
        replies = await together(_write(proposal, field, session) for field in ASKED)
        return proposal, dict(zip(ASKED, replies, strict=True))

    written = 0
    for proposal, replies in await session.each(review.proposals, work, "proposals", lambda p: p.where):
        principle = proposal.principle
        for field, text in replies.items():
            candidate = replace(principle, **{field: text})  # type: ignore[arg-type]
            if text and holds_up(candidate, field):
                principle = candidate
        kept = [field for field in ASKED if getattr(principle, field) == replies[field] != getattr(proposal.principle, field)]
        written += len(kept)
        if kept:
            by_rule = [field for field in ASKED if field not in kept]
            origin = proposal.principle.source.partition(" (made by rule")[0]
            note = f"{origin} (written by {session.model.engine.name}: {', '.join(kept)}"
            source = note + (f"; made by rule: {', '.join(by_rule)})" if by_rule else ")")
            review = reworded(review, proposal.number, source=source, **{field: getattr(principle, field) for field in kept})
    return Worded(review, written, len(ASKED) * len(review.proposals) - written, calls_of(session))


def holds_up(principle: Principle, field: str) -> bool:
    """Whether lint finds nothing against a principle with this text in it, and the text is about what the statement is about."""
    alone = Constitution("alone", "Alone", "One principle.", (principle,))
    faults = [f for f in lint(alone, kinds=principle.applies_to) if f.rule not in ("uncovered-kind", "rarely-drawn")]
    return not faults and bool(claim(getattr(principle, field)).content & claim(principle.statement).content)


async def _write(proposal: Proposal, field: str, session: Session) -> str:
    """Return the first line of the model's reply; nothing where it gave none."""
    task, *answers = ASKED[field]
    messages = [Message("system", f"{task} Answer with one sentence and nothing else.")]
    for rule, answer in zip(RULES, answers, strict=True):
        messages += [Message("user", f"Rule: {rule}"), Message("assistant", answer)]
    messages.append(Message("user", f"Rule: {disarm(proposal.principle.statement)}"))
    try:
        reply = await session.model.complete(messages, Sampling(MAX_TOKENS, 0.0), derive_seed(session.recipe.seed, proposal.where, field))
    except ReplyError:
        return ""
    lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
    return lines[0].strip('"“”') if lines and not (reply.truncated and len(lines) == 1) else ""
