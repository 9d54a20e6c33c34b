"""What people should label next, by a reward ensemble's disagreement."""

from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.core.workspace import RunDirectory
from cai.errors import DataError
from cai.labels.annotating import label_queue
from cai.records import Message, Preference, Prompt, Provenance, RewardScore, ScoredPair


def preference(i: int, source: str = "ai:pointwise") -> Preference:
    prompt = Prompt(f"p{i}", "harmful", (Message("user", f"question {i}"),), "s")
    return Preference(prompt, f"good {i}", f"bad {i}", 0.8, 1.0, source, (), Provenance("m"))


def scored(p: Preference, *margins: float) -> ScoredPair:
    chosen, rejected = (RewardScore(0.0, 0.0, tuple(x / 2 * sign for x in margins)) for sign in (1, -1))
    return ScoredPair(p.id, p.prompt.id, "harmful", p.source, p.p_chosen, False, 6, 5, chosen, rejected)


def run_with(folder: Path, *margins: tuple[float, ...]) -> RunDirectory:
    run = RunDirectory(folder / "runs" / "r")
    preferences = [preference(i) for i in range(len(margins))]
    write_records(run.data("preferences"), [*preferences[1:], preference(99, "human:f")])
    write_records(run.data("preferences_heldout"), preferences[:1])
    asked = [scored(p, *m) for p, m in zip(preferences, margins, strict=True)]
    write_records(run.data("reward_scores"), [*asked, scored(preference(99, "human:f"), 9.0, -9.0)])
    (run.path / "recipe.yaml").write_text("name: r\n")
    return run


def test_the_most_disputed_pairs_come_first_and_peoples_own_are_not_asked(tmp_path: Path) -> None:
    run = run_with(tmp_path, (1.0, 3.0), (2.0, 2.0), (-4.0, 4.0))
    chosen = label_queue(run, tmp_path, "disagreement", 10, None, ())
    assert [c.pair.response_a for c in chosen] == ["good 2", "good 0", "good 1"]
    assert [c.score for c in chosen] == [4.0, 1.0, 0.0]


def test_one_reward_model_disputes_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path, (1.0,), (2.0,))
    write_records(run.data("reward_scores"), [scored(preference(0), 1.0)])
    with pytest.raises(DataError, match="no scores of a reward ensemble"):
        label_queue(run, tmp_path, "disagreement", 10, None, ())
