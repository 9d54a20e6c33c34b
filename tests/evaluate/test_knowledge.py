"""What a model still knows: shares of right answers, perplexity from given log-probabilities, and their changes."""

import math
from pathlib import Path

import pytest

from cai.errors import ModelError
from cai.evaluate.knowledge import FactProbe, Knowledge, Passage, ask_knowledge, knowledge_results, load_knowledge
from cai.models.requests import Completion, Reply, Request, ScoreRequest, TextLogprob
from cai.records import EvalResult
from cai.stats import mcnemar
from tests.sessions import ScriptedSession
from tests.workspaces import ROOT


def by_name(results: list[EvalResult]) -> dict[str, EvalResult]:
    return {r.name: r for r in results}


def test_perplexity_is_per_token_and_the_ratio_is_of_the_same_passages() -> None:
    base = Knowledge(passages={"a": (-10 * math.log(2), 10), "b": (-30 * math.log(4), 30)})
    mine = Knowledge(passages={"a": (-10 * math.log(4), 10), "b": (-30 * math.log(8), 30)})
    alone, both = by_name(knowledge_results("base", base)), by_name(knowledge_results("policy", mine, base))
    assert alone["perplexity"].value == pytest.approx(2 ** (10 / 40) * 4 ** (30 / 40)) and alone["perplexity"].n == 2
    assert set(alone) == {"perplexity"} and set(both) == {"perplexity", "perplexity_ratio"}
    ratio = both["perplexity_ratio"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert ratio.p == pytest.approx(0.5, abs=0.02)  # two passages can't tell


def test_another_tokenizer_has_no_ratio() -> None:
    base, mine = Knowledge(passages={"a": (-5.0, 10)}), Knowledge(passages={"a": (-5.0, 9)})
    assert [r.name for r in knowledge_results("policy", mine, base)] == ["perplexity"]


def test_right_answers_are_compared_question_by_question() -> None:
    base = Knowledge({f"f{i}": True for i in range(20)})
    mine = Knowledge({f"f{i}": i >= 8 for i in range(20)} | {"new": True})
    found = by_name(knowledge_results("policy", mine, base))
    assert found["truthful"].value == pytest.approx(13 / 21)
    changed = found["truthful_change"]
    assert (
        changed.value == pytest.approx(-0.4)
        and changed.high < 0
        and changed.p == pytest.approx(mcnemar(8, 0))
        and "1 prompt" in changed.note
    )


def test_a_model_is_asked_and_scored_as_it_is_used() -> None:
    facts = (FactProbe("f1", "geography", "Capital of France?", ("Paris",)), FactProbe("f2", "geography", "Of Japan?", ("Tokyo",)))
    passages = (Passage("p1", "story", "Tell a story.", "Once there was."), Passage("p2", "story", "Another.", "Too long."))
    scored: list[ScoreRequest] = []

    def answer(request: Request) -> Reply:
        if isinstance(request, ScoreRequest):
            scored.append(request)
            return TextLogprob(-6.0, 3, 5)
        return Completion("It is Paris.", False, 5, 5)

    session = ScriptedSession(answer)
    found = session.ask(lambda opened: ask_knowledge(opened, opened.model, "m", facts, passages))
    assert found == Knowledge({"f1": True, "f2": False}, {"p1": (-6.0, 3), "p2": (-6.0, 3)})
    assert {r.text for r in scored} == {"Once there was.", "Too long."} and "Tell a story." in scored[0].messages[-1].content


def test_the_shipped_passages_are_whole_and_a_limit_only_adds(tmp_path: Path) -> None:
    facts, passages = load_knowledge(ROOT)
    assert len(facts) == 92 and len(passages) == 24 == len({p.text for p in passages})
    assert all(50 <= len(p.text.split()) <= 120 and p.prompt and p.text == p.text.strip() for p in passages)
    few, more = ({p.id for p in load_knowledge(ROOT, n)[1]} for n in (4, 9))
    assert few < more


def test_a_model_that_cannot_score_texts_has_no_perplexity_and_answers_all_the_same() -> None:
    def answer(request: Request) -> Reply:
        if isinstance(request, ScoreRequest):
            raise ModelError("can't say how likely a given text is")
        return Completion("It is Paris.", False, 5, 5)

    facts = (FactProbe("f1", "geography", "Capital of France?", ("Paris",)),)
    passages = (Passage("p1", "story", "Tell a story.", "Once."), Passage("p2", "story", "Another.", "Twice."))
    session = ScriptedSession(answer)
    found = session.ask(lambda opened: ask_knowledge(opened, opened.model, "m", facts, passages))
    assert found == Knowledge({"f1": True}, {})
    assert [(f.item_id, f.reason) for f in session.failures] == [("p1", "not_scored"), ("p2", "not_scored")]
