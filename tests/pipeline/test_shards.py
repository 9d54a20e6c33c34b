"""Several clients share one run's calls; merged, they give the outputs of one client, byte for byte."""

import asyncio
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from cai.core.console import Reporter
from cai.core.workspace import Workspace
from cai.errors import DataError, RecipeError, StoreError
from cai.ids import content_hash
from cai.models.base import Completion
from cai.models.store import SCHEMA_VERSION, CallStore, MergedCalls
from cai.pipeline.driver import UNTRAINED, RunSummary, run_recipe
from cai.pipeline.shards import Shard, parse_shard
from cai.pipeline.stages import STAGES
from tests.workspaces import cai, calls_made, data_bytes, make_workspace, recipe_of, run_data, start_cai

COUNT = 3


def key(i: int) -> str:
    return content_hash(i, length=64)


def run_shard(workspace: Workspace, number: int, *only: str, count: int = COUNT) -> RunSummary:
    return run_recipe(recipe_of(workspace), workspace, STAGES, Reporter(), only=only, shard=Shard(number, count))


def merge_all(workspace: Workspace) -> list[MergedCalls]:
    with CallStore(workspace.store_path) as store:
        return [store.merge(path) for path in sorted((workspace.run("s").path / "shards").rglob("calls.sqlite"))]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, bytes]]:
    """Calls and outputs of one client that nobody disturbed."""
    workspace = make_workspace(tmp_path_factory.mktemp("calm") / "w")
    made = calls_made(run_data(workspace))
    return made, data_bytes(workspace.run("s"))


def test_shards_merged_give_the_bytes_of_one_client_and_no_call_is_made_twice(tmp_path: Path, calm: tuple[int, dict[str, bytes]]) -> None:
    workspace = make_workspace(tmp_path / "w")
    parts = [run_shard(workspace, n) for n in range(1, COUNT + 1)]
    assert all(calls_made(part) > 0 for part in parts)
    merged = merge_all(workspace)
    assert [m.added for m in merged] == [calls_made(part) for part in parts]
    assert calls_made(run_data(workspace, only=UNTRAINED)) == 0
    later = [run_shard(workspace, n, "pairs", "feedback") for n in range(1, COUNT + 1)]
    assert all(calls_made(part) > 0 for part in later)
    merge_all(workspace)
    assert calls_made(run_data(workspace)) == 0
    assert data_bytes(workspace.run("s")) == calm[1]
    assert sum(map(calls_made, (*parts, *later))) == calm[0]


def test_a_client_on_another_machine_needs_only_the_runs_files(tmp_path: Path, calm: tuple[int, dict[str, bytes]]) -> None:
    here = make_workspace(tmp_path / "here")
    run_data(here, only=UNTRAINED)
    for number in (1, 2):
        there = make_workspace(tmp_path / f"there-{number}", adapters=False)
        shutil.copytree(here.run("s").path, there.run("s").path)
        run_shard(there, number, "pairs", "feedback", count=2)
        with CallStore(here.store_path) as store:
            store.merge(there.run("s").shard(f"{number}-of-2").own_store)
    assert calls_made(run_data(here)) == 0
    assert data_bytes(here.run("s")) == calm[1]


def test_a_client_killed_and_started_again_changes_nothing(tmp_path: Path, calm: tuple[int, dict[str, bytes]]) -> None:
    workspace = make_workspace(tmp_path / "w")
    clients = [start_cai(workspace.root, "run", "runs/s.yaml", "--shard", f"{n}/2") for n in (1, 2)]
    store = workspace.run("s").shard("1-of-2").own_store
    while clients[0].poll() is None and not _calls(store):
        time.sleep(0.005)
    clients[0].kill()
    for client in clients:
        client.communicate(timeout=120)
    assert clients[1].returncode == 0
    assert clients[0].returncode in (-signal.SIGKILL, 0)  # 0: it was quicker
    again = cai(workspace.root, "run", "runs/s.yaml", "--shard", "1/2")
    assert again.returncode == 0, again.stderr
    done = cai(workspace.root, "merge-calls", "runs/s/shards")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" of them new") == 2
    assert calls_made(run_data(workspace, only=UNTRAINED)) == 0
    made = data_bytes(workspace.run("s"))
    assert made == {name: calm[1][name] for name in made} and "traces.jsonl" in made


def _calls(path: Path) -> int:
    if not path.exists():
        return 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(db.execute("SELECT COUNT(*) FROM calls").fetchone()[0])
    except sqlite3.OperationalError:  # its table isn't made yet
        return 0
    finally:
        db.close()


def test_a_stage_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(RecipeError, match=r"sft can't be shared among clients; respond, critique, pairs, feedback can"):
        run_shard(workspace, 1, "sft")
    assert not (workspace.run("s").path / "shards").exists()


def test_a_shard_whose_inputs_are_nowhere_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage pairs reads data/prompts\.jsonl"):
        run_shard(make_workspace(tmp_path / "w"), 1, "pairs")


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "a/3", "1/0", "-1/3", "1/3/5"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="expected i/n with i from 1 to n"):
        parse_shard(text)


def test_every_prompt_is_exactly_one_shards() -> None:
    shards = [parse_shard(f"{n}/7") for n in range(1, 8)]
    owners = [[s.number for s in shards if s.owns(f"prompt {i}")] for i in range(2000)]
    assert all(len(o) == 1 for o in owners)
    assert all(200 < sum(o == [n] for o in owners) < 380 for n in range(1, 8))


# --- merging stores ---


def fill(path: Path, texts: dict[int, str]) -> None:
    with CallStore(path) as store:
        for i, text in texts.items():
            asyncio.run(store.put(key(i), "respond", "m", {"i": i}, Completion(text, False, 1, 1), 0.5))


def test_merging_adds_what_is_new_keeps_what_is_here_and_can_be_repeated(tmp_path: Path) -> None:
    one, two = tmp_path / "one.sqlite", tmp_path / "two.sqlite"
    fill(one, {i: f"text {i}" for i in range(300)})
    fill(two, {i: f"text {i}" for i in range(250, 600)} | {0: "another"})
    with CallStore(one) as store:
        assert store.merge(two) == MergedCalls(str(two), 351, 300, 1)
        assert store.merge(two) == MergedCalls(str(two), 351, 0, 1)
        assert len(store) == 600
        assert store.get(key(0), Completion) == Completion("text 0", False, 1, 1)
        assert store.get(key(599), Completion) == Completion("text 599", False, 1, 1)
        assert store.stage_totals() == {"respond": (600, 300.0)}


def test_what_cannot_be_merged_is_named_and_harms_nothing(tmp_path: Path) -> None:
    one = tmp_path / "one.sqlite"
    fill(one, {0: "text"})
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    other.close()
    with CallStore(one) as store:
        for path, said in (
            ("gone", "no such call store"),
            ("noise", "noise: the call store is damaged"),
            ("other", "not a call store of version"),
        ):
            with pytest.raises(StoreError, match=said):
                store.merge(tmp_path / path)
        with pytest.raises(StoreError, match="is the store to merge into"):
            store.merge(one)
        assert len(store) == 1
        fill(tmp_path / "two", {1: "more"})
        assert store.merge(tmp_path / "two").added == 1


def test_a_folder_without_stores_is_told(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    done = cai(workspace.root, "merge-calls", "runs")
    assert done.returncode == 2
    assert "no calls.sqlite in there" in done.stderr
