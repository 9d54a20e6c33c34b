"""Lint a constitution for problems that the schema does not catch. Each finding has a line number.

Rules by severity:

    error    schema              (files) the file violates the schema
             duplicate-id        two principles have the same id
             duplicate           two principles have the same statement, critique request or question, word for word
             contradiction       two principles for the same kind of prompt contradict each other
             same-question       a principle's two questions ask the same thing
             swapped-questions   `ask_positive` asks for the opposite of the statement, or `compare` asks which response is worse
             not-a-question      a question field is not a question, or can't be answered Yes or No
             leftover            remains of another format: role names, request wrappers, {placeholders}
             unreachable         the principle can't be drawn for any prompt
             bad-check           a check that is malformed, that no response can pass or that contradicts another principle's
             example-fails       a good example breaks the principle's check, or a bad one passes it
    warning  near-duplicate      two principles say nearly the same
             may-contradict      two principles use the same words, one for and one against
             rarely-drawn        drawn for fewer than 1 in 500 prompts of any kind, because of the weights of others
             uncovered-kind      no principle applies to a kind of prompt
             no-request          a critique or revision text that is not a request
             no-subject          a question that does not mention the response
             too-long            too long for a small model to follow
             outdated-wording    (files) the statement changed since the last run, or since the constitution that `cai` ships under the same
                                 id, and the principle's own requests or questions did not

Rules about wording work for English only; they are skipped for constitutions in other languages.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from cai.constitution.editing import UNWRITTEN
from cai.constitution.load import entries, read_fields, source_problems
from cai.constitution.outdated import outdated
from cai.constitution.wording import FUNCTION_WORDS, claim, cosine, forbids, leans_against, opposed, sentences, vectors, words
from cai.core.text.checks import check_problems, checks_for, follows, unsatisfiable
from cai.core.yaml_source import YamlSource, load_yaml, parse_yaml
from cai.errors import ConstitutionError, ReplyError
from cai.records import LABELLED_KINDS, Constitution, Principle, PromptKind

Severity = Literal["error", "warning"]
STATEMENT_ALIKE = 0.45
"""Cosine similarity from which two statements are near-duplicates. Measured: none of the 487 pairs in the shipped constitutions is above
0.30; nine paraphrases of their statements are between 0.49 and 0.82."""
REQUESTS_ALIKE = 0.6
"""Cosine similarity from which the critique and revision requests of two principles are near-duplicates. It is higher because requests
share more words. Measured on the paper's 16 principles: different ones stay below 0.45; the three that ask for the same are between 0.62
and 0.79."""
RARE_SHARE = 1 / 500
MAX_WORDS = {"statement": 70, "critique": 100, "revision": 100, "ask_positive": 40, "ask_negative": 40, "compare": 60}
QUESTIONS = ("ask_positive", "ask_negative", "compare")
TEXTS = ("statement", "critique", "revision", *QUESTIONS)

_LEFTOVERS = (
    (
        re.compile(r"\b(?:CritiqueRequest|RevisionRequest)\b|\b(?:Critique|Revision|Options|Human|Assistant|User|System)\s*:"),
        "a wrapper",
    ),
    (re.compile(r"\{\{?\s*[\w.]+\s*\}?\}|<[A-Z_]{3,}>"), "a placeholder"),
    (re.compile(r"<\|[^|<>]*\|>|\[/?INST\]|<</?SYS>>|</?s>"), "a chat-template marker"),
    (re.compile(r"\\n\\n"), "an escaped line break"),
    (re.compile(r"\b(?:TODO|FIXME|TBD)\b"), "a note to the author"),
)
_AUXILIARIES = frozenset(
    """is are was were am does do did has have had can could will would should shall may might must isn't aren't doesn't don't didn't
    hasn't haven't can't couldn't won't wouldn't shouldn't""".split()
)
_WH = frozenset("what what's which who whom whose why how".split())
_ENGLISH = frozenset("never don't doesn't without avoid not".split())
_REQUESTS = frozenset(
    """add amend analyse analyze apply argue ask assess break check choose cite clarify comment compare compose consider correct count
    criticise criticize critique cut decide delete describe detect determine discuss distinguish draw edit estimate evaluate examine explain
    find fix flag follow give go highlight identify imagine improve indicate inspect judge keep leave list locate look make mark measure
    mention modify name note outline pick point produce propose provide put quote rate read recheck reconsider reflect remove
    rephrase replace report reply respond restate review revise reword rewrite say search see set shorten show sort specify spell spot
    state suggest summarise summarize take tell test think trim try turn underline update verify weigh work write""".split()
)


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One lint error or warning."""

    severity: Severity
    rule: str
    message: str
    principle_id: str | None
    path: str
    """Path of the file, or the constitution's id without a file."""
    line: int | None
    where: str
    """Location as `file:line`."""


@dataclass(frozen=True)
class _Draft:
    """A finding without a line number. `at` is the index of its principle."""

    severity: Severity
    rule: str
    message: str
    at: int | None = None
    field: str | None = None


def lint(constitution: Constitution, kinds: Collection[PromptKind] = LABELLED_KINDS) -> list[LintFinding]:
    """Lint a loaded constitution.

    Args:
        kinds: kinds of prompt that will be used with it.

    Returns:
        Findings in the order of the file; empty if there are none.
    """
    drafts = list(_drafts(constitution, kinds))
    return _placed(drafts, constitution.principles, range(len(constitution.principles)), None, constitution.id)


def lint_file(path: Path) -> list[LintFinding]:
    """Lint a file: report schema errors, and lint every principle that can be parsed.

    Raises:
        ConstitutionError: the file can't be read.
    """
    try:
        source = load_yaml(path, ConstitutionError, "constitution")
    except ConstitutionError as e:
        if not path.is_file():
            raise
        return [_from_problem(str(e), path)]
    return _lint_source(source)


def lint_text(text: str, path: Path) -> list[LintFinding]:
    """Lint the text of a file that is not saved yet; `path` is the name used in findings."""
    try:
        source = parse_yaml(text.encode(), path, ConstitutionError)
    except ConstitutionError as e:
        return [_from_problem(str(e), path)]
    return _lint_source(source)


def lint_scope(constitution: Constitution) -> str:
    """Return what the linter checked in a constitution, and what it can't check, in words."""
    principles = constitution.principles
    checks = sum(bool(p.check) for p in principles)
    shared = sum(bool(set(a.applies_to) & set(b.applies_to)) for a, b in combinations(principles, 2))
    language = "" if _is_english(principles) else " The rules about wording are for English and were left out."
    return (
        f"Checked: {len(principles)} principles: schema, wording of requests and questions, which kinds of prompt they reach, "
        f"{shared} pairs for duplicates and contradictions in their words, {checks} check{'' if checks == 1 else 's'} on their examples."
        f"{language} Contradictions that are not in the words need a reader, or a model: cai constitution stress."
    )


def _lint_source(source: YamlSource) -> list[LintFinding]:
    path = source.path
    whole = read_fields(source.data, Constitution)
    readable = [(i, p) for i, entry in enumerate(entries(source)) if (p := read_fields(entry, Principle)) is not None]
    constitution = whole or Constitution("", "", "", tuple(p for _, p in readable))
    complete = 0 < len(readable) == len(entries(source))
    drafts = [d for d in _drafts(constitution, LABELLED_KINDS) if complete or d.rule not in ("uncovered-kind", "rarely-drawn")]
    found = _placed(drafts, constitution.principles, [i for i, _ in readable], source, str(path))
    taken = {(f.rule, f.line) for f in found}
    for problem in source_problems(source):
        schema = _from_problem(problem, path)
        if not {("unreachable", schema.line), ("duplicate-id", schema.line)} & taken:
            found.append(schema)
    for i, field, message in outdated(source):
        line = source.lines.get(("principles", i, field), 1)
        found.append(LintFinding("warning", "outdated-wording", message, message.partition(":")[0], str(path), line, f"{path}:{line}"))
    return sorted(found, key=lambda f: f.line or 0)


def _from_problem(text: str, path: Path) -> LintFinding:
    line, message = None, text.removeprefix(f"{path}: ")
    if match := re.match(r":(\d+): ?(.*)", text.removeprefix(str(path)), re.DOTALL):
        line, message = int(match[1]), match[2]
    return LintFinding("error", "schema", message, None, str(path), line, f"{path}:{line}" if line else str(path))


def _placed(
    drafts: list[_Draft], principles: tuple[Principle, ...], positions: Collection[int], source: YamlSource | None, name: str
) -> list[LintFinding]:
    """Add line numbers to drafts. `positions` are the indices of the principles in the file."""
    places = list(positions)
    path = str(source.path) if source else name
    found = []
    for d in sorted(drafts, key=lambda d: -1 if d.at is None else d.at):
        line = None
        where = path
        if source is not None:
            at: tuple[str | int, ...] = ("principles",) if d.at is None else ("principles", places[d.at])
            line = source.lines.get((*at, d.field)) if d.field else None
            line = line or source.lines.get(at, 1)
            where = f"{path}:{line}"
        found.append(LintFinding(d.severity, d.rule, d.message, None if d.at is None else principles[d.at].id, path, line, where))
    return found


def _drafts(constitution: Constitution, kinds: Collection[PromptKind]) -> Iterator[_Draft]:
    principles = constitution.principles
    yield from _reach(constitution, kinds)
    english = _is_english(principles)
    for i, p in enumerate(principles):
        yield from _checks(i, p, principles[:i])
        yield from _texts(i, p)
        if english:
            yield from _questions(i, p)
            yield from _requests(i, p)
    yield from _pairs(principles, english)


def _is_english(principles: tuple[Principle, ...]) -> bool:
    """Return whether at least 1 in 6 words is an English function word or a verb of requests (in English text, about 1 in 2 is)."""
    all_words = [w for p in principles for text in (p.statement, *p.own_wording.values()) for w in words(text)]
    return sum(w in FUNCTION_WORDS or w in _REQUESTS or w in _ENGLISH for w in all_words) * 6 >= len(all_words)


def _reach(constitution: Constitution, kinds: Collection[PromptKind]) -> Iterator[_Draft]:
    """Find principles that are never or rarely drawn, and kinds of prompt without a principle."""
    first: dict[str, int] = {}
    for i, p in enumerate(constitution.principles):
        if first.setdefault(p.id, i) != i:
            yield _Draft("error", "duplicate-id", f"{p.id}: an earlier principle already has this id; ids must be unique", i, "id")
        if not p.weight > 0:
            yield _Draft(
                "error", "unreachable", f"{p.id}: weight {p.weight:g} is never drawn; delete it or give it a weight above 0", i, "weight"
            )
        elif not p.applies_to:
            yield _Draft("error", "unreachable", f"{p.id}: applies to no kind of prompt, so nothing can draw it", i, "applies_to")
        elif not any(kind in p.applies_to for kind in kinds):
            message = f"{p.id}: applies only to {', '.join(p.applies_to)} prompts, and none are used"
            yield _Draft("error", "unreachable", message, i, "applies_to")
        elif max(constitution.draw_shares(p, kinds).values()) < RARE_SHARE:
            message = f"{p.id}: drawn for fewer than 1 in {1 / RARE_SHARE:.0f} prompts of any kind, because the others weigh so much more"
            yield _Draft("warning", "rarely-drawn", message, i, "weight")
    for kind in kinds:
        if not any(p.weight > 0 and kind in p.applies_to for p in constitution.principles):
            message = f"no principle applies to {kind} prompts: they can't be criticised or judged; add one, or leave such prompts out"
            yield _Draft("warning", "uncovered-kind", message)


def _texts(i: int, p: Principle) -> Iterator[_Draft]:
    """Check single texts with the rules that work in any language."""
    for field in TEXTS:
        text: str = getattr(p, field)
        if text == UNWRITTEN:
            yield _Draft("error", "leftover", f"{p.id}: the {field} is still to be written", i, field)
        for pattern, what in _LEFTOVERS:
            if match := pattern.search(text):
                yield _Draft("error", "leftover", f"{p.id}: {field} has {what} left in it: {match[0]!r}", i, field)
        if (n := len(text.split())) > MAX_WORDS[field]:
            yield _Draft(
                "warning", "too-long", f"{p.id}: {field} has {n} words; a small model follows at most about {MAX_WORDS[field]}", i, field
            )
        if field in QUESTIONS and not text.rstrip(" \"'”’)").endswith(("?", "？", "؟", ";", "՞")):  # Chinese, Arabic, Greek, Armenian
            yield _Draft("error", "not-a-question", f"{p.id}: {field} doesn't end in a question mark: {text[-60:]!r}", i, field)


def _checks(i: int, p: Principle, earlier: Sequence[Principle]) -> Iterator[_Draft]:
    """Test a principle's check by itself, against those of earlier principles, and on its examples."""
    problems = [problem for c in p.check for problem in check_problems(c)]
    yield from (_Draft("error", "bad-check", f"{p.id}: {problem}", i, "check") for problem in problems)
    if problems:
        return
    for kind in p.applies_to:
        mine = checks_for(p, kind)
        if why := unsatisfiable(mine):
            yield _Draft("error", "bad-check", f"{p.id}: no response to a {kind} prompt can pass the check: {why}", i, "check")
            return
        for other in earlier:
            theirs = checks_for(other, kind)
            if mine and theirs and not unsatisfiable(theirs) and (why := unsatisfiable((*theirs, *mine))):
                message = f"{p.id}: its check contradicts that of {other.id} for {kind} prompts: {why}"
                yield _Draft("error", "bad-check", message, i, "check")
                return
    for wanted, texts in ((True, p.examples.good), (False, p.examples.bad)):
        for text in texts:
            try:
                verdicts = {follows(p, kind, text) for kind in p.applies_to} - {None}
            except ReplyError as e:
                yield _Draft("error", "bad-check", f"{p.id}: {e.detail}", i, "check")
                return
            if verdicts and wanted not in verdicts:
                message = f"{p.id}: the {'good' if wanted else 'bad'} example {text[:60]!r} {'breaks' if wanted else 'passes'} the check"
                yield _Draft("error", "example-fails", message, i, "examples")


def _last_sentence(text: str) -> str:
    return (sentences(text) or [""])[-1]


def _questions(i: int, p: Principle) -> Iterator[_Draft]:
    for field in ("ask_positive", "ask_negative"):
        text: str = getattr(p, field)
        last = _last_sentence(text)
        tokens = words(last)
        openings = {words(clause)[0] for clause in re.split(r"[,:–—]", last) if words(clause)}
        if last.endswith("?") and not openings & _AUXILIARIES:
            kind = "asks " + tokens[0] if tokens and tokens[0] in _WH else "doesn't begin with is, does, can or the like"
            yield _Draft("error", "not-a-question", f"{p.id}: {field} can't be answered Yes or No: it {kind}", i, field)
        if not {"response", "responses", "answer", "reply", "message", "text", "note", "draft", "assistant", "assistant's"} & set(
            words(text)
        ):
            yield _Draft("warning", "no-subject", f"{p.id}: {field} doesn't say what it is about; name 'the response'", i, field)
    if p.compare.rstrip().endswith("?") and "which" not in words(_last_sentence(p.compare)):
        yield _Draft("error", "not-a-question", f"{p.id}: compare must end by asking 'Which response ...?'", i, "compare")
    positive, negative, compare = (claim(_last_sentence(getattr(p, field))) for field in QUESTIONS)
    own = [claim(sentence) for sentence in sentences(p.statement)]
    if words(p.ask_positive) == words(p.ask_negative) or (positive.sign == negative.sign and positive.alike(negative)):
        message = f"{p.id}: ask_positive and ask_negative ask the same thing; Yes must be good for the first and bad for the second"
        yield _Draft("error", "same-question", message, i, "ask_negative")
    elif any(opposed(c, positive) and not opposed(c, negative) for c in own):
        message = f"{p.id}: a Yes to ask_positive would break the statement; are the two questions swapped?"
        yield _Draft("error", "swapped-questions", message, i, "ask_positive")
    compare = replace(compare, content=compare.content - {"<amount>"})
    if compare.sign == negative.sign and compare.alike(negative) and not (compare.sign == positive.sign and compare.alike(positive)):
        message = f"{p.id}: compare asks which response is worse: it agrees with ask_negative"
        yield _Draft("error", "swapped-questions", message, i, "compare")
    if any(opposed(a, b) for a, b in combinations(own, 2)):
        yield _Draft("error", "contradiction", f"{p.id}: two sentences of the statement contradict each other", i, "statement")


def _requests(i: int, p: Principle) -> Iterator[_Draft]:
    for field, example in (("critique", "Point out ... in your last response"), ("revision", "Rewrite your last response so that ...")):
        text: str = getattr(p, field)
        clauses = [
            [w for w in words(c) if w not in ("please", "then", "now", "and", "also", "carefully", "first")]
            for c in re.split(r"[.,;:!?]", text)
        ]
        if "?" not in text and not any(c and c[0] in _REQUESTS | _WH for c in clauses):
            yield _Draft("warning", "no-request", f"{p.id}: {field} is not a request; write one such as {example!r}", i, field)


def _pairs(principles: tuple[Principle, ...], english: bool) -> Iterator[_Draft]:
    """Find contradictions and duplicates. The finding is reported for the later of two principles."""
    statements = vectors([p.statement for p in principles])
    requests = vectors([" ".join(p.own_wording.get(field, "") for field in ("critique", "revision")) for p in principles])
    claims = [[(s, claim(s)) for s in sentences(p.statement)] for p in principles] if english else [[] for _ in principles]
    plain = [{field: words(text) for field, text in {"statement": p.statement, **p.own_wording}.items()} for p in principles]
    for j, b in enumerate(principles):
        copied: dict[str, list[str]] = {}
        nearly = []
        against: list[str] = []
        for i, a in enumerate(principles[:j]):
            if clash := next(((x, y) for x, cx in claims[i] for y, cy in claims[j] if opposed(cx, cy)), None):
                if both := [kind for kind in b.applies_to if kind in a.applies_to]:
                    message = f"{b.id}: {clash[1]!r} contradicts {clash[0]!r} of {a.id}, and both apply to {', '.join(both)} prompts"
                    yield _Draft("error", "contradiction", message, j, "statement")
            elif clash := next(((x, y) for x, cx in claims[i] for y, cy in claims[j] if forbids(cx, cy) or forbids(cy, cx)), None):
                against.append(f"{clash[1]!r} against {clash[0]!r} of {a.id}")
            elif same := [field for field, text in plain[j].items() if plain[i].get(field) == text]:
                for field in same:
                    copied.setdefault(field, []).append(a.id)
            elif (alike := cosine(statements[i], statements[j])) >= STATEMENT_ALIKE:
                if turned := next(((x, y) for x, cx in claims[i] for y, cy in claims[j] if leans_against(cx, cy)), None):
                    against.append(f"{turned[1]!r} against {turned[0]!r} of {a.id}")
                else:
                    nearly.append((alike, a.id, "statement"))
            elif (alike := cosine(requests[i], requests[j])) >= REQUESTS_ALIKE:
                nearly.append((alike, a.id, "critique and revision"))
        for field, others in copied.items():
            yield _Draft("error", "duplicate", f"{b.id}: {field} is identical to that of {', '.join(others)}", j, field)
        if against:
            message = (
                f"{b.id}: uses the same words as another principle, but seems to ask for the opposite: {'; '.join(against)}. "
                "Keep one of them, or say when each applies"
            )
            yield _Draft("warning", "may-contradict", message, j, "statement")
        if nearly:
            nearly.sort(reverse=True)
            listed = ", ".join(f"{other} ({what}, similarity {alike:.2f})" for alike, other, what in nearly)
            message = f"{b.id}: says nearly the same as {listed}; merge them or make them more distinct"
            yield _Draft("warning", "near-duplicate", message, j, "statement")
