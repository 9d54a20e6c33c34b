import asyncio
from collections import Counter

import pytest

from cai.errors import ReplyError
from cai.generate.critique import Writer
from cai.generate.pairs import PairTask, contrast_pair, pair_tasks, sample_pair
from cai.models.base import TextModel
from cai.models.requests import Completion
from cai.models.scripted import ScriptedEngine, default_script
from cai.models.store import CallStore
from cai.recipe import PairsConfig
from cai.records import Message, Prompt
from tests.judge.judging import CONSTITUTION, TEMPLATES


def prompt(number):
    return Prompt(f"p{number}", "helpful", (Message("user", f"Question {number}?"),), "test")


def model_of(script=default_script):
    return TextModel(ScriptedEngine(script), CallStore(None), "pairs")


def sampled(task, script=default_script, run_seed=0):
    return asyncio.run(sample_pair(task, Writer(model_of(script), TEMPLATES, run_seed, "h"), PairsConfig()))


def contrasted(task, script=default_script, run_seed=0, **config):
    return asyncio.run(contrast_pair(task, CONSTITUTION, Writer(model_of(script), TEMPLATES, run_seed, "h"), PairsConfig(**config)))


def test_tasks_of_a_lower_number_stay_when_it_rises():
    few, many = list(pair_tasks([prompt(0), prompt(1)], 1)), list(pair_tasks([prompt(0), prompt(1)], 3))
    assert set(few) < set(many) and len(many) == 6 and len({t.id for t in many}) == 6
    assert sampled(few[1]) == sampled(many[3])


def test_every_response_has_its_own_seed():
    seeds = []

    def script(request):
        seeds.append(request.seed)
        return default_script(request)

    for task in pair_tasks([prompt(0), prompt(1)], 3):
        pair = sampled(task, script)
        assert pair.response_a != pair.response_b and pair.source == "sampled" and pair.p_a is None
        assert pair.provenance.seed in seeds and pair.provenance.recipe_hash == "h"
    assert len(set(seeds)) == 12


def test_identical_responses_are_a_failure():
    with pytest.raises(ReplyError) as caught:
        sampled(PairTask(prompt(0), 0), lambda request: Completion(["Same text.", "Same  text."][request.seed % 2], False, 1, 1))
    assert caught.value.reason == "identical_responses"


def by_instruction(request):
    system = request.messages[0].content
    return Completion("Good." if "good assistant" in system else "Bad.", False, 1, 1)


def test_a_contrast_pair_is_labelled_by_how_it_was_made():
    sides = Counter()
    for task in pair_tasks([prompt(i) for i in range(60)], 1):
        pair = contrasted(task, by_instruction, contrast_p=0.8)
        assert pair.source == "contrast" and {pair.response_a, pair.response_b} == {"Good.", "Bad."}
        assert pair.p_a == pytest.approx(0.8 if pair.response_a == "Good." else 0.2)
        assert len(pair.provenance.principle_ids) == 1
        sides[pair.response_a] += 1
    assert min(sides.values()) > 18


def test_a_contrast_pair_shows_its_principle_in_both_instructions():
    systems = []

    def script(request):
        systems.append(request.messages[0].content)
        return default_script(request)

    pair = contrasted(PairTask(prompt(0), 0), script)
    statement = CONSTITUTION.principle(pair.provenance.principle_ids[0]).statement
    assert len(systems) == 2 and all(statement in s for s in systems) and systems[0] != systems[1]


def test_contrast_pairs_of_one_prompt_take_principles_in_turn():
    ids = [contrasted(task).provenance.principle_ids[0] for task in pair_tasks([prompt(0)], 3)]
    assert len(set(ids)) == 3


def test_identical_contrast_answers_are_a_failure():
    with pytest.raises(ReplyError, match="identical_responses"):
        contrasted(PairTask(prompt(0), 0), lambda request: Completion("Same.", False, 1, 1))
