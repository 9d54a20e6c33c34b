"""A calibrated judge: same symmetry, other weights, and only for the judge that it was fitted for."""

import asyncio
import math
from dataclasses import replace

import msgspec
import pytest

from cai.core.console import Reporter
from cai.core.jsonl import write_records
from cai.data.filters import preference_key, texts_key
from cai.errors import DataError, RecipeError
from cai.ids import content_hash
from cai.judge.calibration import POOLING, Calibration, length_difference, read_calibration, write_calibration
from cai.judge.card import measure_judge
from cai.judge.fitted import unseen_by
from cai.judge.judge import Judge
from cai.judge.protocol import log_odds_of
from cai.recipe import FeedbackConfig, Recipe
from cai.records import Message, Preference, Prompt, Provenance
from tests.judge.judging import CONSTITUTION, TEMPLATES, hashed, judge_with, judged, pair, prefers_text

FIT = Calibration("pointwise", "ensemble", 1, "scripted:hashed", CONSTITUTION.hash, 0.5, {"kind": 0.3, "true": -0.2}, -0.4, pooling=POOLING)


def calibrated_judge(calibration=FIT, script=hashed, protocol="pointwise"):
    plain = judge_with(script, protocol)
    return Judge(plain.config, plain.constitution, plain.model, plain.templates, 0, calibration=calibration)


def ask(judge, *pairs):
    async def go():
        return [await judge(p) for p in pairs]

    return asyncio.run(go())


@pytest.mark.parametrize("protocol", ["pointwise", "pairwise"])
def test_a_swapped_pair_still_gets_exactly_the_opposite_label(protocol):
    judge = calibrated_judge(replace(FIT, protocol=protocol), protocol=protocol)
    for number in range(12):
        p = pair(f"GOOD one {number} and more words", f"other {number * 7}", number)
        kept, swapped = ask(judge, p, p.swapped())
        assert swapped.p_a == 1 - kept.p_a
        if kept.p_a_first is not None:
            assert (swapped.p_a_first, swapped.p_a_second) == (1 - kept.p_a_second, 1 - kept.p_a_first)


def test_the_label_is_the_weighted_sum_by_hand():
    p = pair("One two three.", "Four.")
    judge = calibrated_judge()
    principles = judge.principles(p)
    opinions = {q.id: o.log_odds for q, o in zip(principles, asyncio.run(judge.opinions(p, principles)), strict=True)}
    chances = {i: 1 / (1 + math.exp(-x)) for i, x in opinions.items()}
    mean = (chances["kind"] + 2 * chances["true"] + 0.5 * chances["brief"]) / 3.5
    by_principle = (0.3 * 4 * (chances["kind"] - 0.5) - 0.2 * 4 * (chances["true"] - 0.5)) / 3
    expected = 0.5 * math.log(mean / (1 - mean)) + by_principle - 0.4 * length_difference(p)
    (found,) = ask(judge, p)
    assert log_odds_of(found.p_a) == pytest.approx(expected, abs=1e-6)
    assert found.provenance.calibration == FIT.hash and judged(hashed, "pointwise", p)[0].provenance.calibration == ""


def test_a_calibration_of_nothing_changes_nothing():
    p = pair("One two three.", "Four.")
    assert ask(calibrated_judge(replace(FIT, scale=1.0, weights={}, length=0.0)), p)[0].p_a == judged(hashed, "pointwise", p)[0].p_a


def test_another_judges_calibration_is_refused_with_every_difference():
    with pytest.raises(RecipeError, match=r"(?s)protocol: fitted for pairwise, this judge has pointwise.*model: fitted for other"):
        calibrated_judge(replace(FIT, protocol="pairwise", model="other"))
    with pytest.raises(RecipeError, match="pooling: fitted for log-odds, this judge has probabilities"):
        calibrated_judge(replace(FIT, pooling=Calibration("p", "sample", 1, "m", "c", 1.0).pooling))


def test_it_is_read_as_it_was_written(tmp_path):
    write_calibration(tmp_path / "c.json", FIT)
    assert read_calibration(tmp_path / "c.json") == FIT
    with pytest.raises(DataError, match="no such calibration"):
        read_calibration(tmp_path / "d.json")
    (tmp_path / "e.json").write_text('{"protocol": "none"}')
    with pytest.raises(DataError, match="not a calibration"):
        read_calibration(tmp_path / "e.json")


def measured(tmp_path, fitted_on):
    preferences = [
        Preference(pair(number=i).prompt, "GOOD answer.", "Another one.", 1.0, 1.0, "human:f", (), Provenance("")) for i in range(10)
    ]
    write_records(tmp_path / "people.jsonl", preferences)
    keys = tuple(texts_key(p.prompt, p.chosen, p.rejected) for p in preferences[:fitted_on])
    calibration = Calibration("pointwise", "ensemble", 1, "scripted:prefers_text", CONSTITUTION.hash, -1.0, fitted_on=keys, pooling=POOLING)
    config = FeedbackConfig(protocol="pointwise", bench_pairs="people.jsonl")
    judge = Judge(config, CONSTITUTION, judge_with(prefers_text, "pointwise").model, TEMPLATES, 0, calibration=calibration)
    recipe = Recipe(name="r", feedback=config)
    return asyncio.run(measure_judge(recipe, tmp_path, judge, tmp_path / "bench.jsonl", Reporter())), calibration


def test_pairs_of_a_fitted_conversation_or_of_a_near_copy_are_seen() -> None:
    def told(*turns: str) -> Preference:
        roles = ("user", "assistant", "user")
        messages = tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))
        return Preference(Prompt(" ".join(turns), "other", messages, "s"), "x", "y", 1.0, 1.0, "human:f", (), Provenance(""))

    asked = "Please tell me how I can bake a loaf of rye bread at home in an oven without steam"
    pairs = [told(asked), told(asked, "Gladly.", "And then?"), told(f"{asked} now"), told("Something else?")]
    for calibration in (replace(FIT, fitted_prompts=(pairs[1].prompt.messages,)), replace(FIT, fitted_on=(preference_key(pairs[1]),))):
        assert unseen_by([calibration], pairs) == [pairs[3]]
    assert unseen_by([], pairs) == pairs


def test_a_calibration_without_its_prompts_keeps_its_hash() -> None:
    older = {k: v for k, v in msgspec.to_builtins(FIT).items() if k not in ("fitted_prompts", "probe")}
    assert FIT.hash == content_hash(older) != replace(FIT, fitted_prompts=((Message("user", "q"),),)).hash
    assert FIT.hash != replace(FIT, probe="a").hash


def test_the_card_measures_the_calibrated_judge_on_pairs_that_it_was_not_fitted_on(tmp_path):
    card, calibration = measured(tmp_path, fitted_on=4)
    assert (card.n, card.accuracy) == (6, 0.0)  # the calibration turns a judge that was always right round
    assert card.calibration == calibration.hash and "after calibration, on pairs not used to fit it (4 left out)" in card.note
    card, _ = measured(tmp_path, fitted_on=10)
    assert not card.measured and not card.beats_baselines and "fitted on every pair" in card.note
