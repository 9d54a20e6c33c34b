"""Rewrites change form only; a reward that pays for form is named, and one that pays for content is not."""

import re
from collections.abc import Callable

import pytest

from cai.evaluate.audit.finding import settle
from cai.evaluate.audit.reward_probes import Items, probe_reward
from cai.evaluate.audit.rewriting import REWRITES, sentences
from cai.records import AuditFinding, Message, Prompt, Provenance, Response

TEXT = "I think the oven should be hot. Bake it for 40 minutes! Then let it cool."
ANSWERS = [
    Response(Prompt(f"p{i}", "helpful", (Message("user", "How?"),), "t"), f"{TEXT} It serves {i % 9} people.", False, Provenance("m"))
    for i in range(36)
]


def content(text: str) -> float:
    """A reward for what is said: the number of people, whatever stands around it."""
    return float(re.search(r"\d", text.partition("serves")[2].lstrip("* "))[0])  # type: ignore[index]


def found(score: Callable[[str], float]) -> dict[str, AuditFinding]:
    def scores(items: Items) -> list[float]:
        return [score(text) for _, text in items]

    return {f.check: f for f in settle(probe_reward(scores, ANSWERS, "reward-0"))}


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_keeps_every_word_that_answers(name: str) -> None:
    rewritten = REWRITES[name][2](TEXT)
    assert rewritten != TEXT
    kept = re.findall(r"\w+", rewritten.lower())
    wanted = [w for w in re.findall(r"\w+", TEXT.lower()) if w not in ("i", "think")]
    assert all(w in kept for w in wanted)


def test_sentences_end_where_they_end() -> None:
    assert sentences(TEXT) == ["I think the oven should be hot.", "Bake it for 40 minutes!", "Then let it cool."]
    assert REWRITES["as_list"][2]("Just one.") == "Just one."


def test_a_reward_for_content_is_left_in_peace() -> None:
    findings = found(content)
    assert len(findings) == len(REWRITES) == 9  # no answer has formatting to strip
    assert {f.verdict for f in findings.values()} == {"ok"}
    assert all(f.value == 0 and f.n == 36 for f in findings.values())


@pytest.mark.parametrize(
    ("weakness", "score"),
    [
        ("reward_if_lengthened", lambda t: len(t.split()) / 10),
        ("reward_if_as_list", lambda t: 3.0 * t.startswith("- ")),
        ("reward_if_with_headings", lambda t: 3.0 * ("##" in t)),
        ("reward_if_with_bold", lambda t: 3.0 * ("**" in t)),
        ("reward_if_more_certain", lambda t: 3.0 * ("certain of" in t)),
        ("reward_if_hedged", lambda t: 3.0 * ("wrong" in t)),
        ("reward_if_agreeable", lambda t: 3.0 * ("great question" in t)),
        ("reward_if_apologetic", lambda t: 3.0 * ("sorry" in t)),
        ("reward_if_with_boilerplate", lambda t: 3.0 * ("alone" in t)),
    ],
)
def test_each_weakness_is_named(weakness: str, score: Callable[[str], float]) -> None:
    findings = found(lambda t: content(t) + score(t))
    assert findings[weakness].verdict == "found"
    if weakness != "reward_if_lengthened":
        assert [c for c, f in findings.items() if f.verdict == "found"] == [weakness]
    assert findings[weakness].examples[0].before != findings[weakness].examples[0].after


def test_the_move_is_in_standard_deviations_over_real_answers() -> None:
    # people: 0..8 four times over, standard deviation sqrt(60/9); a bonus of 2 moves every score by 2 of these
    findings = found(lambda t: content(t) + 2.0 * ("alone" in t))
    assert findings["reward_if_with_boilerplate"].value == pytest.approx(2 / (60 / 9) ** 0.5)


def test_formatting_that_is_paid_for_shows_when_it_is_stripped() -> None:
    listed = [Response(r.prompt, REWRITES["as_list"][2](r.text), False, r.provenance) for r in ANSWERS]

    def scores(items: Items) -> list[float]:
        return [content(t) + 3.0 * t.startswith("- ") for _, t in items]

    by_check = {f.check: f for f in settle(probe_reward(scores, listed, "reward-0"))}
    assert by_check["reward_for_formatting"].verdict == "found" and by_check["reward_for_formatting"].n == 36


def test_a_reward_that_tells_nothing_apart_is_named_as_that() -> None:
    findings = found(lambda t: 1.0)
    assert {c: f.verdict for c, f in findings.items()} == {"reward_is_constant": "found"}
