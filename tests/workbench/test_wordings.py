"""A model's wording is kept only where it holds up, and the rules' stands where it doesn't."""

from cai.constitution.lint import lint
from cai.constitution.proposals import accept, propose
from cai.errors import ReplyError
from cai.models.base import CompleteRequest, Completion
from cai.workbench.wordings import ASKED, holds_up, word_all
from tests.sessions import ScriptedSession

DOCUMENT = "The assistant must not reveal loans. The assistant should name a source for each fact."
GOOD = {
    "critique": "Point out each loan that your last response reveals.",
    "revision": "Rewrite your last response without revealing a loan.",
    "ask_positive": "Does the response keep loans private and reveal none?",
    "ask_negative": "Does the response reveal a loan?",
    "compare": "Which response reveals fewer loans?",
}


def answering(texts):
    def answer(request):
        assert isinstance(request, CompleteRequest) and request.sampling.temperature == 0
        field = next(name for name, (task, *_) in ASKED.items() if request.messages[0].content.startswith(task))
        if "reveal" not in request.messages[-1].content:
            raise ReplyError("empty")
        return Completion(texts[field], False, 1, 1)

    return answer


def worded(tmp_path, texts):
    path = tmp_path / "d.md"
    path.write_text(DOCUMENT)
    return propose(path), ScriptedSession(answering(texts)).ask(lambda opened: word_all(propose(path), opened)), path


def test_good_words_replace_the_rules(tmp_path):
    rules, found, path = worded(tmp_path, GOOD)
    first, second = found.review.proposals
    assert {name: getattr(first.principle, name) for name in GOOD} == GOOD
    assert second == rules.proposals[1], "no reply, and the rules' words stand"
    assert (found.written, found.refused, found.calls.made) == (5, 5, 5)
    assert first.principle.statement == "The assistant must not reveal loans." and "d.md:1: “The assistant" in first.principle.source
    assert "(written by answer: critique, revision, ask_positive, ask_negative, compare)" in first.principle.source
    assert lint(accept(found.review, "all", path)) == []


def test_words_that_do_not_hold_up_are_refused_one_by_one(tmp_path):
    bad = GOOD | {
        "ask_positive": "What does it reveal?",  # not Yes or No
        "ask_negative": "Is the response nice about weather?",  # about something else
        "compare": "Reveal it.\nWhich response?",  # no question in its first line
        "critique": "Critique: name each loan.",  # a wrapper left in
    }
    rules, found, _ = worded(tmp_path, bad)
    first, before = found.review.proposals[0].principle, rules.proposals[0].principle
    assert first.revision == GOOD["revision"] and found.written == 1
    assert all(getattr(first, name) == getattr(before, name) for name in ("ask_positive", "ask_negative", "compare", "critique"))
    assert "(written by answer: revision; made by rule: critique, ask_positive, ask_negative, compare)" in first.source


def test_holding_up():
    from dataclasses import replace

    from tests.judge.judging import principle

    p = replace(
        principle("kind"), ask_positive="Is the response kind?", ask_negative="Is the response UNkind?", compare="Which response is kinder?"
    )
    p = replace(p, critique="Say where your last response isn't kind.", revision="Rewrite it to be kind.")
    assert holds_up(p, "ask_positive")
    assert not holds_up(replace(p, ask_negative=p.ask_positive), "ask_negative")
    assert not holds_up(replace(p, critique="Say what is blue."), "critique")
