"""What people should label next, by a reward ensemble's disagreement."""

from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.core.workspace import RunDirectory
from cai.data.export_formats.label_studio import LABEL_STUDIO_CONFIG
from cai.errors import DataError
from cai.labels.annotating import export_human, import_labels, label_queue
from cai.records import HumanLabel, Message, Preference, Prompt, Provenance, ResponsePair, RewardScore, ScoredPair


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


def label(i: int) -> HumanLabel:
    p = preference(i)
    return HumanLabel(ResponsePair(p.prompt, p.chosen, p.rejected, "s", Provenance("m")), "ann", 1.0, "human:s", "")


def imported(source: Path, out: Path, people: Path | None = None) -> None:
    import_labels([source], out, "auto", None, {}, people)


@pytest.mark.attack
@pytest.mark.parametrize("torn", ["", "not a label\n"])
def test_rejected_rows_of_an_import_never_replace_what_it_read(tmp_path: Path, torn: str) -> None:
    source = tmp_path / "labels.rejected.jsonl"
    write_records(source, [label(1)])
    with source.open("a") as f:
        f.write(torn)
    before = source.read_bytes()
    for out in (tmp_path / "labels.jsonl", tmp_path / "labels"):
        with pytest.raises(DataError, match="is an input file"):
            imported(source, out)
    assert source.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [source.name]


@pytest.mark.attack
def test_rejected_rows_never_replace_a_file_of_another_kind_and_replace_their_own(tmp_path: Path) -> None:
    source, rejects = tmp_path / "in.jsonl", tmp_path / "out.rejected.jsonl"
    write_records(source, [label(1)])
    rejects.write_text('{"my": "notes"}\n')
    with pytest.raises(DataError, match=r"out\.rejected\.jsonl: would be replaced"):
        imported(source, tmp_path / "out.jsonl")
    assert rejects.read_text() == '{"my": "notes"}\n' and not (tmp_path / "out.jsonl").exists()
    rejects.unlink()
    with source.open("a") as f:
        f.write('{"prompt": 3}\n')
    imported(source, tmp_path / "out.jsonl")
    assert rejects.exists()
    write_records(source, [label(1)])
    imported(source, tmp_path / "out.jsonl")
    assert not rejects.exists()


@pytest.mark.attack
def test_tasks_replace_only_tasks(tmp_path: Path) -> None:
    source = tmp_path / "tasks.json"
    write_records(source, [label(1)])
    with pytest.raises(DataError, match="is an input file"):
        export_human(str(source), tmp_path, "label-studio", "votes", 0.0)
    write_records(tmp_path / "in.jsonl", [label(1)])
    for name in ("tasks.json", "labeling_config.xml"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("my own")
        with pytest.raises(DataError, match=f"{name}: is not of an export"):
            export_human(str(tmp_path / "in.jsonl"), folder, "label-studio", "votes", 0.0)
        assert (folder / name).read_text() == "my own"
    for _ in range(2):
        export_human(str(tmp_path / "in.jsonl"), tmp_path / "new", "label-studio", "votes", 0.0)
    assert (tmp_path / "new" / "labeling_config.xml").read_text() == LABEL_STUDIO_CONFIG


@pytest.mark.attack
def test_labels_preferences_and_queues_replace_only_their_own(tmp_path: Path) -> None:
    source, run = tmp_path / "in.jsonl", run_with(tmp_path, (1.0, 3.0), (2.0, 2.0))
    write_records(source, [label(1)])
    writes = {
        "labels.jsonl": lambda out: imported(source, out),
        "preferences.jsonl": lambda out: export_human(str(source), out, "preferences", "votes", 0.0),
        "queue.jsonl": lambda out: label_queue(run, tmp_path, "disagreement", 10, out, ()),
        "queue.json": lambda out: label_queue(run, tmp_path, "disagreement", 10, out, ()),
    }
    for name, write in writes.items():
        out = tmp_path / name
        for mine in ('{"my": "notes"}\n', "my own\n"):
            out.write_text(mine)
            with pytest.raises(DataError, match=f"{name}: (would be replaced|is not of an export)"):
                write(out)
            assert out.read_text() == mine
        out.unlink()
        write(out)
        before = out.read_bytes()
        write(out)
        assert out.read_bytes() == before


@pytest.mark.attack
def test_a_queue_never_replaces_what_it_was_chosen_from(tmp_path: Path) -> None:
    run = run_with(tmp_path, (1.0, 3.0), (2.0, 2.0))
    for name in ("preferences", "reward_scores"):
        before = run.data(name).read_bytes()
        with pytest.raises(DataError, match="is an input file"):
            label_queue(run, tmp_path, "disagreement", 10, run.data(name), ())
        assert run.data(name).read_bytes() == before
    (tmp_path / "labeling_config.xml").write_text("my own")
    with pytest.raises(DataError, match="is not of an export"):
        label_queue(run, tmp_path, "disagreement", 10, tmp_path / "q.json", ())
