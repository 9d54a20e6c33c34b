"""What is rewarded, by hand."""

import doctest
from dataclasses import replace

import pytest

import cai.train.rl.terms.length
from cai.constitution.load import load_constitution
from cai.errors import RecipeError, TrainingError
from cai.recipe import RewardTerm
from cai.records import Constitution, Message, Prompt, PromptKind, ResponseCheck, RewardScore
from cai.train.rl.rewards import RewardFunction, proxy_of
from cai.train.rl.term import TermContext
from cai.train.rl.terms import TERMS
from tests.judge.judging import principle

REFUSAL = "I'm sorry, but I can't help with that."


def prompt(kind: PromptKind) -> Prompt:
    return Prompt(kind, kind, (Message("user", f"a {kind} thing"),), "test")


ANSWERS = [(prompt("harmful"), REFUSAL), (prompt("borderline"), REFUSAL), (prompt("helpful"), "one two three four five six")]


def ensemble(items: object) -> list[RewardScore]:
    return [RewardScore(float(i), 0.1 * i, (0.9 * i, 1.1 * i)) for i in range(3)]


def test_terms_are_weighted_and_added() -> None:
    terms = (RewardTerm(weight=2.0), RewardTerm(term="length", weight=4.0, words=4), RewardTerm(term="refusal", weight=3.0))
    rewards = RewardFunction(terms, ensemble).score(ANSWERS)
    assert rewards.by_term == {"model": [0.0, 1.0, 2.0], "length": [-1.0, -1.0, -0.5], "refusal": [0.0, -1.0, 0.0]}
    assert rewards.totals == [-4.0, 2.0 - 4.0 - 3.0, 4.0 - 2.0]
    assert rewards.disagreement == pytest.approx((0.0, 0.1, 0.2))


def test_a_single_reward_model_disagrees_with_nobody() -> None:
    rewards = RewardFunction((RewardTerm(),), lambda items: [RewardScore(1.0, 0.0, (1.0,))] * 3).score(ANSWERS)
    assert (rewards.totals, rewards.disagreement) == ([1.0, 1.0, 1.0], ())


def test_what_a_term_cannot_score_has_no_reward() -> None:
    rewarding = RewardFunction(
        (RewardTerm(term="constitution", weight=0.5), RewardTerm(term="length")), None, lambda answers: [None, 2.0, 4.0]
    )
    rewards = rewarding.score(ANSWERS)
    assert (rewards.totals, rewards.disagreement) == ([None, 1.0, 2.0], ())
    items = [(p.messages, text) for p, text in ANSWERS]
    assert list(proxy_of(rewarding, [p for p, _ in ANSWERS])(items).values) == [1.5, 1.0, 2.0]


def test_a_probe_is_a_term_of_its_own() -> None:
    terms = (RewardTerm(term="probe", weight=2.0), RewardTerm(term="length", words=4))
    rewards = RewardFunction(terms, probe=lambda answers: [0.5, None, -1.0]).score(ANSWERS)
    assert rewards.totals == [1.0 - 1.0, None, -2.0 - 0.5] and rewards.by_term["probe"] == [0.5, None, -1.0]


def test_a_watch_on_nothing_is_an_error() -> None:
    rewarding = RewardFunction((RewardTerm(term="constitution"),), None, lambda answers: [None])
    with pytest.raises(TrainingError, match="none of 1 responses to the watched prompts could be rewarded"):
        proxy_of(rewarding, [ANSWERS[0][0]])([(ANSWERS[0][0].messages, "x")])


@pytest.mark.parametrize("term", ["model", "constitution", "probe"])
def test_a_term_needs_what_it_scores_with(term: str) -> None:
    with pytest.raises(TrainingError, match=f"the term '{term}' has nothing to score with"):
        RewardFunction((RewardTerm(term=term),))


def test_an_unknown_term_is_an_error_and_no_default() -> None:
    with pytest.raises(RecipeError, match=r"no reward term 'lenght'; known: .*Did you mean 'length'\?"):
        RewardFunction((RewardTerm(term="lenght"),))


def test_a_term_that_scores_too_few_responses_is_an_error() -> None:
    rewarding = RewardFunction((RewardTerm(term="constitution"),), None, lambda answers: [1.0])
    with pytest.raises(TrainingError, match="the reward term 'constitution' scored 1 of 3 responses"):
        rewarding.score(ANSWERS)


@pytest.mark.parametrize("name", TERMS.names())
def test_every_term_scores_every_response_or_says_that_it_cannot(name: str) -> None:
    same = lambda answers: [0.5 for _ in answers]  # noqa: E731
    context = TermContext(RewardTerm(term=name), ensemble, same, load_constitution("general"), same)
    values = TERMS.get(name).score(ANSWERS, context).values
    assert len(values) == len(ANSWERS) and all(v is None or isinstance(v, float) for v in values)


def test_doctests_hold() -> None:
    tried = doctest.testmod(cai.train.rl.terms.length)
    assert tried.attempted > 0 and not tried.failed


def test_checks_pay_the_share_that_is_followed_by_weight() -> None:
    brief = replace(principle("brief", 3.0), check=(ResponseCheck(max_words=2),))
    asks = replace(principle("asks"), check=(ResponseCheck(kinds=("helpful",), ends_with=("?",)),))
    constitution = Constitution("c", "C", "", (brief, asks, principle("unchecked")))
    helpful, harmful = (Prompt("p", kind, (Message("user", "Hi."),), "test") for kind in ("helpful", "harmful"))
    answers = [(helpful, "Why not?"), (helpful, "Now."), (helpful, "Is it so now?"), (harmful, "Now."), (harmful, "It is so now.")]
    rewards = RewardFunction((RewardTerm(term="check"),), constitution=constitution).score(answers)
    assert rewards.totals == [1.0, 0.75, 0.25, 1.0, 0.0]
    unchecked = RewardFunction((RewardTerm(term="check"),), constitution=Constitution("d", "D", "", (principle("unchecked"),)))
    assert unchecked.score(answers[:1]).totals == [None], "nothing is filled in"
    with pytest.raises(TrainingError, match="nothing to score with"):
        RewardFunction((RewardTerm(term="check"),))
