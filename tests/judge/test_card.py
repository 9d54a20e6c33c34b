"""What is said of a judge, and how loudly."""

import pytest

from cai.judge.bench import JudgeBench, ProtocolResult
from cai.judge.card import judge_card
from cai.recipe import FeedbackConfig


def result(name: str, accuracy: float, beats: bool | None = None) -> ProtocolResult:
    best = None if beats is None else "longer"
    return ProtocolResult(name, accuracy, accuracy - 0.1, accuracy + 0.1, 50, None, 0, {}, 0, 0.5, beats, None, None, best)


@pytest.mark.parametrize("beats", [True, False])
def test_the_card_says_whether_the_judge_beats_what_needs_no_judgement(beats: bool) -> None:
    bench = JudgeBench(50, 0, (result("pairwise", 0.7, beats),), (result("always-a", 0.5), result("longer", 0.55)))
    card = judge_card(FeedbackConfig(protocol="pairwise", bench_pairs="people.jsonl"), bench)
    assert (card.measured, card.beats_baselines, card.accuracy, card.n, card.best_baseline) == (True, beats, 0.7, 50, "longer")
    assert "pairwise agrees with people.jsonl on 70.0% of n = 50 [60.0%, 80.0%]; the best trivial baseline (longer) on 55.0%." in card.note
    assert card.note.startswith("The judge beats" if beats else "THE JUDGE WAS NOT SHOWN TO BEAT")
