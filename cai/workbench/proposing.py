"""Let a model propose principles from a narrative document, each with a verbatim quotation from it.

    section ─▶ quotations ─▶ statement, requests and questions out of each ─▶ review file, for a person

A proposal whose quotation is not in its section, or whose statement is about something else, is dropped, with the reason. A request or
question that fails `cai constitution lint`, or that shares no content word with its statement, is replaced by a fixed sentence that quotes
the statement; the principle's `source` says so.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cai.constitution.documents import Document, DocumentPassage, DocumentSection, find_quote
from cai.constitution.importers import kebab, with_unique_ids
from cai.constitution.lint import STATEMENT_ALIKE
from cai.constitution.proposals import WORDED, DroppedProposal, Proposal, Review, drafted, fault_of, worded
from cai.constitution.wording import FUNCTION_WORDS, claim, cosine, opposed, vectors, words
from cai.core.flow import run_items, together
from cai.errors import ConstitutionError, ReplyError
from cai.ids import derive_seed
from cai.models.base import TextModel
from cai.models.requests import Sampling
from cai.models.templates import Template
from cai.records import Failure, Principle
from cai.session import Session
from cai.workbench.replies import split_labelled, unquoted, whole_lines

TEMPLATES = ("propose_principles", "word_principle")
LABELS = {
    "Principle": "statement",
    "Critique": "critique",
    "Revision": "revision",
    "Follows": "ask_positive",
    "Breaks": "ask_negative",
    "Compare": "compare",
}
"""Labels of a reply to `word_principle`, and what they hold."""
PROPOSING = Sampling(512, 0.0)
WORDING = Sampling(256, 0.0)
WINDOW = 32
"""Number of sections processed at once."""
_QUOTE_CHARACTERS = 500
_SAYS_LITTLE = FUNCTION_WORDS | {"assistant", "response", "model", "never", "not"}


@dataclass(frozen=True, slots=True)
class _Found:
    section: DocumentSection
    passage: DocumentPassage
    principle: Principle


async def propose(
    document: Document, model: TextModel, templates: Sequence[Template], seed: int, on_progress: Callable[[int], None] = lambda done: None
) -> Review:
    """Let a model propose principles, section by section. A near-duplicate is listed with the earlier proposal.

    Args:
        templates: the two templates named in `TEMPLATES`.
        seed: seed for models without greedy decoding.

    Raises:
        ConstitutionError: no proposal is valid; the message lists the commonest reasons.
    """
    failures: list[Failure] = []

    async def work(section: DocumentSection) -> list[_Found | DroppedProposal]:
        return await _read_section(section, document.path.name, model, templates, seed)

    flow = run_items(
        document.sections,
        work,
        window=WINDOW,
        max_failure_fraction=1.0,
        stage="import",
        failures=failures,
        item_id=lambda s: _where(document.path.name, s.line, s.line),
        on_progress=on_progress,
    )
    results = [result async for section in flow for result in section]
    found = [r for r in results if isinstance(r, _Found)]
    dropped = [r for r in results if isinstance(r, DroppedProposal)]
    dropped += [DroppedProposal(f.item_id, "", _said(f.reason, f.detail)) for f in failures]
    if not found:
        reasons = ", ".join(f"{reason} × {n}" for reason, n in Counter(d.reason for d in dropped).most_common(3))
        raise ConstitutionError(
            f"{document.path}: {model.engine.name} proposed nothing that holds up"
            + (f" ({reasons})" if reasons else ": it found no rule in any section")
            + ". Name a larger model with --model, or write sentences such as 'The assistant should name its sources.'"
        )
    kept = list(_without_repeats(found, document.path.name))
    principles = with_unique_ids(f.principle for f, _ in kept)
    return Review(
        document.path.name,
        kebab(document.path.stem)[:64].strip("-") or "imported",
        f"Proposed from {document.path.name}"[:120],
        f"Accepted from what {model.engine.name[:200]} proposed out of {document.path.name}.",
        tuple(
            Proposal(i, _place(f, document.path.name), f.passage.quote, p, False, f.section.heading, also)
            for i, ((f, also), p) in enumerate(zip(kept, principles, strict=True), 1)
        ),
        tuple(dropped),
    )


async def propose_in(session: Session, document: Document) -> Review:
    """Call `propose` with a session's model, templates and seed. Raises as `propose` does, and `TemplateError`."""
    templates = session.named_templates(*TEMPLATES)
    count = len(document.sections)
    return await propose(
        document, session.model, templates, session.recipe.seed, lambda done: session.reporter.progress(done, count, "sections")
    )


async def _read_section(
    section: DocumentSection, file: str, model: TextModel, templates: Sequence[Template], seed: int
) -> list[_Found | DroppedProposal]:
    """Return the proposals of a section, valid and dropped. Raises `ReplyError` if the reply can't be parsed."""
    asked = templates[0].render({"heading": section.heading or "(no heading)", "section": section.text})
    reply = await model.complete(asked.messages, PROPOSING, derive_seed(seed, "propose", section.line), asked.prefill)
    quotes = read_quotes(whole_lines(reply, asked.prefill))

    async def one(quote: str) -> _Found | DroppedProposal:
        if (passage := find_quote(quote, section)) is None:
            return DroppedProposal(_where(file, section.line, section.line), quote[:_QUOTE_CHARACTERS], "not in the section")
        try:
            return _Found(section, passage, await _word(passage, file, model, templates[1], seed))
        except ReplyError as e:
            return DroppedProposal(_where(file, passage.line, passage.end_line), passage.quote, _said(e.reason, e.detail))

    return await together(one(quote) for quote in dict.fromkeys(quotes))


async def _word(passage: DocumentPassage, file: str, model: TextModel, template: Template, seed: int) -> Principle:
    """Let the model word a principle; a request or question that doesn't hold up is drafted from the statement."""
    place = _where(file, passage.line, passage.end_line)
    asked = template.render({"passage": passage.quote})
    reply = await model.complete(asked.messages, WORDING, derive_seed(seed, "word", place, passage.quote), asked.prefill)
    texts = read_wording(whole_lines(reply, asked.prefill))
    if (statement := texts.pop("statement", None)) is None:
        raise ReplyError("unparsed", f"not one line 'Principle:': {reply.text[:200]!r}")
    if not claim(statement).content & claim(passage.quote).content:
        raise ReplyError("the statement is about something else", statement[:200])
    principle = drafted(id_of(statement), statement)
    if (fault := fault_of(principle)) is not None:
        raise ReplyError("the statement doesn't hold up", fault)
    principle, kept = worded(principle, without_examples(texts, statement, template))
    said = {f"written by {model.engine.name[-100:]}: ": kept, "drafted from the statement: ": [f for f in WORDED if f not in kept]}
    notes = "; ".join(by + ", ".join(names) for by, names in said.items() if names)
    short = passage.quote if len(passage.quote) <= _QUOTE_CHARACTERS else passage.quote[: _QUOTE_CHARACTERS - 1] + "…"
    return replace(principle, source=f"{place}: “{short}” ({notes})")


def read_quotes(text: str) -> list[str]:
    """Read a reply to `propose_principles`: what follows each label; a quotation may have several lines. "none" is none.

    >>> read_quotes("Quote: none\\nQuote: never guess\\na dose")
    ['never guess\\na dose']

    Raises:
        ReplyError: it has no label.
    """
    quotes = split_labelled(text, "Quote:")
    if not quotes:
        raise ReplyError("unparsed", f"no line 'Quote:': {text[:200]!r}")
    return [q for q in quotes if q.strip(" .\n").lower() not in ("", "none")]


def read_wording(text: str) -> dict[str, str]:
    """Parse a reply to `word_principle`: one text for each label that occurs exactly once.

    >>> read_wording("Critique: Name it.\\nBreaks: Is it?\\nBreaks: Was it?")
    {'critique': 'Name it.'}
    """
    lines = re.findall(rf"^ *({'|'.join(LABELS)}): *(\S.*)$", text, re.MULTILINE)
    counts = Counter(label for label, _ in lines)
    return {LABELS[label]: unquoted(said) for label, said in lines if counts[label] == 1}


def without_examples(texts: dict[str, str], statement: str, template: Template) -> dict[str, str]:
    """Return the texts that aren't the template's examples, nor about what only the examples are about.

    Small models write of "a newcomer" in principles that have none, because an example is about one.
    """
    rules = [line for part in template.sections if part.role == "assistant" for line in part.text.splitlines()[:1]]
    foreign = {word for rule in rules for word in claim(rule).content} - claim(statement).content
    copied = {text for text in texts.values() if any(text in section.text for section in template.sections)}
    return {field: text for field, text in texts.items() if text not in copied and not claim(text).content & foreign}


def _without_repeats(found: Sequence[_Found], file: str) -> Iterator[tuple[_Found, tuple[str, ...]]]:
    """Yield the proposals without near-duplicates, each with the passages of its near-duplicates."""
    for i, repeats in group_alike([f.principle.statement for f in found]).items():
        yield found[i], tuple(f"{_place(found[j], file)}: {found[j].passage.quote}" for j in repeats)


def group_alike(statements: Sequence[str]) -> dict[int, list[int]]:
    """Return the place of each statement that isn't a near-duplicate of an earlier one, with the places of its near-duplicates."""
    alike = vectors(statements)
    claims = [claim(s) for s in statements]
    kept: dict[int, list[int]] = {}
    for i in range(len(statements)):
        same = [j for j in kept if cosine(alike[i], alike[j]) >= STATEMENT_ALIKE and not opposed(claims[i], claims[j])]
        if same:
            kept[max(same, key=lambda j: cosine(alike[i], alike[j]))].append(i)
        else:
            kept[i] = []
    return kept


def _said(reason: str, detail: str) -> str:
    return f"{reason}: {detail}" if detail else reason


def id_of(statement: str) -> str:
    """Return an id made from the first content words of a statement."""
    carrying = [w.replace("'", "") for w in words(statement) if w not in _SAYS_LITTLE]
    return kebab(" ".join(carrying[:4])) or "principle"


def _place(found: _Found, file: str) -> str:
    return _where(file, found.passage.line, found.passage.end_line)


def _where(file: str, line: int, end_line: int) -> str:
    return f"{file}:{line}" if line == end_line else f"{file}:{line}-{end_line}"
