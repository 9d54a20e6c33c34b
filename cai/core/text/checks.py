"""Decide whether a response follows a principle's `check`: conditions on a text that need no model.

A check is a measure, a filter, a reward and a label source in one. Texts come from models and patterns from people, so every regular
expression runs under a time limit.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jsonschema
import regex
from referencing import Registry

from cai.core.text.endings import sentence_count
from cai.core.text.languages import candidates
from cai.core.text.refusals import can_tell, is_refusal
from cai.core.text.words import UNSPACED, word_count
from cai.errors import ReplyError
from cai.records import Constitution, Principle, PromptKind, ResponseCheck

PATTERN_SECONDS = 1.0
"""Time limit of one regular expression on one text, in seconds."""
_BULLET = r"[-*+•‣▪▫◦●○■□►▸▶➤➢→✓✔✅☑🔹🔸👉·–]\ufe0f?"
_NUMBER = r"(?:[(（]?(?:\d{1,3}|[a-zA-Z])[.)）]|[α-ωа-яА-Яא-ת][)]|[가나다라마바사][.)])"
_CJK_NUMBER = r"(?:・|[①-⑳❶-❿]|（(?:\d{1,2}|[一二三四五六七八九十]{1,3})）|(?:\d{1,3}|[一二三四五六七八九十]{1,3})[、．])"
_LIST_LINE = regex.compile(
    rf"^[ \t>]*(?:#{{1,6}}[ \t]+)?(?:\*\*|__)?(?:(?:{_BULLET}|{_NUMBER})(?:\*\*|__)?[ \t]+|{_CJK_NUMBER}(?:\*\*|__)?[ \t]*)\S",
    regex.MULTILINE,
)
"""An item's beginning, perhaps in a quotation or heading or in bold. After Chinese and Japanese marks there is no space."""
_ADDABLE = {"min_words", "matches", "contains_any", "ends_with"}
_FENCE = regex.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", regex.DOTALL)


def follows(principle: Principle, kind: PromptKind, text: str) -> bool | None:
    """Return whether a response follows a principle's check; None if the principle has no check for this kind of prompt, or a condition
    can't be decided: `refuses` for a language that the rules don't know, `language` for a text that may be in several.

    Args:
        principle: its `check` holds the conditions.
        kind: the prompt's kind.
        text: the response.

    Raises:
        ReplyError: a regular expression ran out of time (`check_timeout`).
    """
    applying = checks_for(principle, kind)
    if not applying or any(_undecided(check, text) for check in applying):
        return None
    return not any(True for check in applying for _ in broken(check, text))


def check_share(constitution: Constitution, kind: PromptKind, text: str) -> float | None:
    """Return the share, in [0, 1], of a constitution's checks that a response follows, by the principles' weights.

    None if no principle has a check that can be decided. Raises as `follows` does.
    """
    found = [(p.weight, v) for p in constitution.principles if (v := follows(p, kind, text)) is not None]
    return sum(weight * v for weight, v in found) / sum(weight for weight, _ in found) if found else None


def checks_for(principle: Principle, kind: PromptKind) -> tuple[ResponseCheck, ...]:
    """Return the checks of a principle that apply to this kind of prompt; none if the principle itself doesn't apply."""
    if not principle.applies(kind):
        return ()
    return tuple(c for c in principle.check if not c.kinds or kind == "other" or kind in c.kinds)


def broken(check: ResponseCheck, text: str) -> Iterator[str]:
    """Yield the name of each condition that a text breaks, in the order of `ResponseCheck`. Raises as `follows` does."""
    text = text.strip()
    for name, holds in _CONDITIONS.items():
        wanted = getattr(check, name)
        if wanted is not None and wanted != () and not holds(text, wanted):
            yield name


def _undecided(check: ResponseCheck, text: str) -> bool:
    if check.refuses is not None and not can_tell(text):
        return True
    found = candidates(text)
    return check.language is not None and (not found or (check.language in found and len(found) > 1))


def can_be_added(principle: Principle, kind: PromptKind) -> bool:
    """Return whether one more sentence can make any response follow a principle's check: whether it only asks for something to occur."""
    checks = checks_for(principle, kind)
    stated = {name for check in checks for name in _CONDITIONS if getattr(check, name) not in (None, (), False)}
    return bool(stated) and stated <= _ADDABLE and all(check.refuses is None for check in checks)


def check_problems(check: ResponseCheck) -> list[str]:
    """Return what is malformed in a check: patterns that can't be compiled, and an invalid JSON Schema."""
    problems = []
    for name in ("matches", "not_matches"):
        pattern = getattr(check, name)
        if pattern is not None and (why := pattern_problem(pattern)):
            problems.append(f"{name} is not a regular expression: {why}: {pattern!r}")
    if check.json_schema is not None:
        try:
            jsonschema.Draft202012Validator.check_schema(check.json_schema)
        except jsonschema.SchemaError as e:
            problems.append(f"json_schema is not a JSON Schema: {e.message}")
    return problems


def pattern_problem(pattern: str) -> str | None:
    """Return why a regular expression can't be compiled; None if it can."""
    try:
        regex.compile(pattern)
    except regex.error as e:
        return str(e)
    return None


def found(pattern: str, text: str) -> bool:
    """Return whether a regular expression matches somewhere in a text, under the time limit. Raises as `follows` does."""
    try:
        return regex.compile(pattern).search(text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError as e:
        raise ReplyError(
            "check_timeout",
            f"the pattern {pattern!r} took longer than {PATTERN_SECONDS:g} s on a response of {len(text)} characters; simplify it",
        ) from e


def contains(text: str, phrase: str) -> bool:
    """Return whether a text contains a phrase as whole words, in any case. Scripts without spaces have no word limits.

    >>> contains("A RISK of fire.", "risk"), contains("An asterisk.", "risk"), contains("有火灾风险。", "风险")
    (True, False, True)
    """
    edge = rf"[\w--[{UNSPACED}]]"
    before = rf"(?<!{edge})" if regex.match(edge, phrase[0], regex.VERSION1) else ""
    after = rf"(?!{edge})" if regex.match(edge, phrase[-1], regex.VERSION1) else ""
    return regex.search(before + regex.escape(phrase) + after, text, regex.VERSION1 | regex.IGNORECASE) is not None


def has_list(text: str) -> bool:
    r"""Return whether a line of a text is an item of a bulleted or numbered list.

    >>> has_list("Two steps:\n1. Stop.\n2. Look."), has_list("It was 1990. Then it rained.")
    (True, False)
    """
    return _LIST_LINE.search(text) is not None


def _valid_json(text: str, schema: dict[str, Any]) -> bool:
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return bool(_validator(schema).is_valid(value))


def _validator(schema: dict[str, Any]) -> Any:
    """Return a validator that loads no remote schema and runs patterns under the time limit."""

    def pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(instance, str) and not found(wanted, instance):
            yield jsonschema.ValidationError(f"{instance!r} does not match {wanted!r}")

    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, {"pattern": pattern})(schema, registry=Registry())


_CONDITIONS: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda text, limit: word_count(text) <= limit,
    "min_words": lambda text, limit: word_count(text) >= limit,
    "max_sentences": lambda text, limit: sentence_count(text) <= limit,
    "matches": lambda text, pattern: found(pattern, text),
    "not_matches": lambda text, pattern: not found(pattern, text),
    "contains_any": lambda text, phrases: any(contains(text, phrase) for phrase in phrases),
    "no_lists": lambda text, wanted: not (wanted and has_list(text)),
    "ends_with": lambda text, endings: text.endswith(tuple(endings)),
    "language": lambda text, code: code in candidates(text),
    "refuses": lambda text, wanted: is_refusal(text) == wanted,
    "json_schema": _valid_json,
}


def unsatisfiable(checks: Sequence[ResponseCheck]) -> str | None:
    """Return why no text can pass several checks together, in words; None if no reason is known.

    Only contradictions that hold for every text are found: a text that passes may still not exist.
    """
    longest = [c.max_words for c in checks if c.max_words is not None]
    shortest = [c.min_words for c in checks if c.min_words is not None]
    if longest and shortest and min(longest) < max(shortest):
        return f"at least {max(shortest)} words (min_words) and at most {min(longest)} (max_words)"
    wanted = {c.matches for c in checks if c.matches}
    for pattern in (c.not_matches for c in checks if c.not_matches):
        if pattern in wanted:
            return f"matches and not_matches have the same pattern {pattern!r}"
        for c in checks:
            if c.contains_any and all(_hit(pattern, phrase) for phrase in c.contains_any):
                return f"every phrase of contains_any is excluded by not_matches {pattern!r}"
            if c.ends_with and all(_hit(pattern, ending) for ending in c.ends_with):
                return f"every ending of ends_with is excluded by not_matches {pattern!r}"
    if longest and any(c.contains_any and min(len(p.split()) for p in c.contains_any) > min(longest) for c in checks):
        return f"every phrase of contains_any has more than {min(longest)} words (max_words)"
    endings = [c.ends_with for c in checks if c.ends_with]
    for i, one in enumerate(endings):
        for two in endings[:i]:
            if not any(x.endswith(y) or y.endswith(x) for x in one for y in two):
                return f"it would end both with {' or '.join(map(repr, two))} and with {' or '.join(map(repr, one))}"
    if len({c.refuses for c in checks if c.refuses is not None}) > 1:
        return "it would both refuse and not refuse"
    if len(languages := sorted({c.language for c in checks if c.language})) > 1:
        return f"it would be in {' and in '.join(languages)}"
    return None


def _hit(pattern: str, text: str) -> bool:
    """Whether a pattern without anchors or look-around matches a text by itself, and so wherever the text occurs."""
    if pattern_problem(pattern) or regex.search(r"[\^$]|\\[AZzbBGmM]|\(\?(?:[=!<])", pattern):
        return False
    try:
        return found(pattern, text)
    except ReplyError:
        return False
