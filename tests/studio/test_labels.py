"""Labels of people: blind, in an order of the rater's own, one line for each answer, and none lost to a kill or another tab."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cai.core.jsonl import read_records, write_records
from cai.core.workspace import Workspace
from cai.errors import DataError
from cai.labels.annotating import export_human, import_labels, read_label_files
from cai.labels.load import load_human
from cai.labels.pooling import ADJUDICATOR
from cai.labels.to_label import load_to_label
from cai.recipe import HumanSource
from cai.records import HumanLabel, Preference, Provenance
from cai.studio.labelling import BLOCK, Labelling, NotLastError, Queue, as_shown, order, rater_name
from tests.studio.queues import EVIL, answer_all, pair
from tests.studio.serving import Served
from tests.workspaces import run_data, start_cai


def test_answers_are_what_the_other_commands_read(labelling: Labelling, queue: Queue) -> None:
    assert [answer_all(labelling, queue, who, "First") for who in ("Ann", "ben")] == [12, 12]
    labels, failures, _ = read_label_files([labelling.file(queue, who) for who in ("Ann", "ben")])
    assert len(labels) == 24 and not failures and {label.annotator for label in labels} == {"Ann", "ben"}
    for label in labels:
        assert (label.pair.response_a if label.p_a == 1 else label.pair.response_b).startswith("First")
        assert label.source == "human:q.jsonl" and label.time.startswith("20") and label.pair.provenance == Provenance("")
    assert 0 < sum(label.p_a for label in labels) < 24, "the better text stands on either side"
    assert labelling.progress(queue) == {"Ann": 12, "ben": 12}
    assert labelling.turn(queue, "Ann").key is None


def test_sides_and_order_are_the_raters_own_and_stay(labelling: Labelling, queue: Queue) -> None:
    pairs = labelling.to_label(queue).pairs
    keys = list(pairs)
    orders = {who: order(keys, who) for who in ("ann", "ben", "cem")}
    sides = {who: tuple(as_shown(pairs[k], k, who).response_a for k in keys) for who in orders}
    assert len(set(map(tuple, orders.values()))) == 3 and len(set(sides.values())) == 3
    for who, mine in orders.items():
        assert sorted(mine) == sorted(keys) and set(mine[:BLOCK]) == set(keys[:BLOCK]), "a queue's most telling pairs still come first"
        assert mine == order(keys, who)


def test_a_tie_is_half_and_a_skip_is_nothing(labelling: Labelling, queue: Queue) -> None:
    first = labelling.turn(queue, "ann")
    second = labelling.turn(queue, "ann", [first.key])
    assert second.key != first.key and second.done == 0
    every = order(list(labelling.to_label(queue).pairs), "ann")
    assert labelling.turn(queue, "ann", [*every[1:], every[0]]).key == every[1], "what was skipped longest ago comes back first"
    labelling.answer(queue, "ann", second.key, "tie")
    assert [label.p_a for label in labelling.done(queue, "ann").values()] == [0.5]


def test_how_much_better_and_why_reach_preferences_as_soft_labels_and_import_as_notes(labelling: Labelling, queue: Queue) -> None:
    keys = list(labelling.to_label(queue).pairs)[:5]
    for key, choice in zip(keys, ("a", "a-slightly", "tie", "b-slightly", "b"), strict=True):
        labelling.answer(queue, "ann", key, choice, f"  because {choice}\n")
    file, folder = labelling.file(queue, "ann"), labelling.folder.parent
    assert [(x.p_a, x.note) for x in labelling.done(queue, "ann").values()] == [
        (1.0, "because a"),
        (0.75, "because a-slightly"),
        (0.5, "because tie"),
        (0.25, "because b-slightly"),
        (0.0, "because b"),
    ]
    import_labels([file], folder / "all.jsonl", "auto", None, {})
    assert list(read_records(folder / "all.jsonl", HumanLabel)) == list(read_records(file, HumanLabel)), "nothing is lost by an import"
    shown = {key: as_shown(labelling.to_label(queue).pairs[key], key, "ann") for key in keys}
    count, _ = export_human(str(folder / "all.jsonl"), folder / "soft.jsonl", "preferences", "votes", 0.0)
    soft = {p.chosen: p.p_chosen for p in read_records(folder / "soft.jsonl", Preference)}
    assert count == 4 and soft == {
        shown[keys[0]].response_a: 1.0,
        shown[keys[1]].response_a: 0.75,
        shown[keys[3]].response_b: 0.75,
        shown[keys[4]].response_b: 1.0,
    }
    in_a_run, failures = load_human([HumanSource(path=str(file))], folder, seed=0)
    assert {p.chosen: p.p_chosen for p in in_a_run} == soft and [f.reason for f in failures] == ["tie"]
    for key in keys:  # another rater is sure of the other side: the votes are pooled as probabilities
        side = as_shown(labelling.to_label(queue).pairs[key], key, "ben").response_a
        labelling.answer(queue, "ben", key, "b" if side == shown[key].response_a else "a")
    both, _ = load_human([HumanSource(path="labels/q-jsonl.*.jsonl")], folder, seed=0)
    assert {p.chosen: p.p_chosen for p in both}[shown[keys[1]].response_b] == 1 - 0.75 / 2


def test_undo_takes_back_the_last_answer_only(labelling: Labelling, queue: Queue) -> None:
    first = labelling.turn(queue, "ann")
    labelling.answer(queue, "ann", first.key, "a")
    before = labelling.file(queue, "ann").read_bytes()
    second = labelling.turn(queue, "ann")
    assert second.last == first.key
    labelling.answer(queue, "ann", second.key, "b")
    with pytest.raises(NotLastError):
        labelling.undo(queue, "ann", first.key)
    labelling.undo(queue, "ann", second.key)
    assert labelling.file(queue, "ann").read_bytes() == before
    again = labelling.turn(queue, "ann")
    assert (again.key, again.pair, again.done) == (second.key, second.pair, 1)
    labelling.undo(queue, "ann", first.key)
    with pytest.raises(NotLastError):
        labelling.undo(queue, "ann", first.key)
    assert labelling.file(queue, "ann").read_bytes() == b""


def test_any_decision_of_the_adjudicator_can_be_undone(labelling: Labelling, queue: Queue) -> None:
    keys = [labelling.turn(queue, ADJUDICATOR).key]
    for choice in ("a", "b", "tie"):
        labelling.answer(queue, ADJUDICATOR, keys[-1], choice)
        keys.append(labelling.turn(queue, ADJUDICATOR).key)
    labelling.undo(queue, ADJUDICATOR, keys[0])
    assert list(labelling.done(queue, ADJUDICATOR)) == keys[1:3]
    with pytest.raises(NotLastError, match="undone in another tab"):
        labelling.undo(queue, ADJUDICATOR, keys[0])
    assert labelling.answer(queue, ADJUDICATOR, keys[0], "b") and list(labelling.done(queue, ADJUDICATOR)) == [*keys[1:3], keys[0]]


def test_a_torn_last_line_costs_that_line_only(labelling: Labelling, queue: Queue) -> None:
    for _ in range(3):
        labelling.answer(queue, "ann", labelling.turn(queue, "ann").key, "a")
    path = labelling.file(queue, "ann")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    turn = labelling.turn(queue, "ann")
    assert turn.done == 2
    labelling.answer(queue, "ann", turn.key, "a")
    assert len(list(read_records(path, HumanLabel))) == 3
    path.write_bytes(path.read_bytes() + whole[:40])
    labelling.undo(queue, "ann", turn.key)
    assert path.read_bytes() == b"".join(whole.splitlines(True)[:2])


def test_raters_never_share_a_file(labelling: Labelling, queue: Queue) -> None:
    names = ["ann", "Ann", "ANN", "ann ", "Änn", "ann.b", "ann/b", "../ann", "安", "rejected"]
    files = {labelling.file(queue, rater_name(n)).name for n in names}
    assert len(files) == len({rater_name(n) for n in names}) == 9
    assert all(labelling.file(queue, rater_name(n)).resolve().parent == labelling.folder.resolve() for n in names)
    for bad in ("", "  ", "x" * 61, "a\x00b", "a\u202eb"):
        with pytest.raises(DataError):
            rater_name(bad)


@pytest.mark.parametrize("form", ["queued", "pairs", "tasks", "table", "trl", "labels"])
def test_pairs_are_read_from_what_there_is_and_say_nothing_of_their_origin(tmp_path: Path, form: str) -> None:
    p, messages = pair(1), [{"role": "user", "content": "Question 1?"}]
    sides = {"response_a": p.response_a, "response_b": p.response_b}
    row: Any = {
        "queued": {"pair": p, "score": 1.0, "reason": "secret"},
        "pairs": p,
        "tasks": {"data": {"prompt": "User: Question 1?", "messages": messages, **sides, "kind": "helpful"}},
        "table": {"prompt": "Question 1?", **sides, "choice": "a", "annotator": "x"},
        "trl": {"prompt": "Question 1?", "chosen": p.response_a, "rejected": p.response_b},
        "labels": HumanLabel(p, "x", 1.0, "human:x"),
    }[form]
    path = tmp_path / "x.jsonl"
    write_records(path, [row, row, {"nothing": 1}])
    found = load_to_label(path)
    assert len(found.pairs) == 1 and [f.item_id for f in found.failures] == [f"{path}:3"]
    (only,) = found.pairs.values()
    assert {only.response_a, only.response_b} == {p.response_a, p.response_b} and only.prompt.messages == p.prompt.messages
    assert (only.source, only.p_a, only.provenance) == ("human", None, Provenance(""))


@pytest.mark.enable_socket
def test_a_rater_is_sent_two_texts_and_nothing_about_them(served: Served, queue_file: Path) -> None:
    write_records(queue_file, [{"pair": pair(1, f"{EVIL} one", "two"), "score": 0.123, "reason": "the judge says 0.123 for A"}])
    client = served.enter()
    shown = served.post("/label/q-jsonl/next", rater="ann", skipped=[])
    page = client.get("/label/q-jsonl?rater=ann&guide=general").text
    assert "Question 1?" in shown["html"] and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown["html"]
    assert "<script" not in shown["html"] and "<img" not in shown["html"]
    told = json.dumps(shown) + page
    assert not any(hint in told for hint in ("secret-", "0.123", "0.875", "contrast", "the judge says"))
    assert set(shown) == {"done", "total", "key", "last", "kept", "html"}
    assert "guidelines for raters" in page and f'<h1 dir="auto">{"ann"}</h1>' in page
    assert "&lt;b&gt;" in client.get("/label/q-jsonl", params={"rater": "<b>"}).text


@pytest.mark.enable_socket
def test_two_raters_and_two_tabs_of_each_at_once_lose_nothing(served: Served, queue_file: Path) -> None:
    served.enter()
    confirmed: list[tuple[str, str]] = []

    def tab(rater: str, choice: str) -> None:
        with httpx2.Client(
            base_url=served.origin, cookies=served.client.cookies, headers={"origin": served.origin}, trust_env=False
        ) as client:
            client.timeout = 60
            shown = client.post("/label/q-jsonl/next", json={"rater": rater}).json()
            while shown["key"] is not None:
                key = shown["key"]
                shown = client.post("/label/q-jsonl/answer", json={"rater": rater, "key": key, "choice": choice}).json()
                if shown["kept"]:
                    confirmed.append((rater, key))

    tabs = [threading.Thread(target=tab, args=(rater, choice)) for rater in ("ann", "ben") for choice in ("a", "b")]
    for thread in tabs:
        thread.start()
    for thread in tabs:
        thread.join()
    assert len(confirmed) == len(set(confirmed)) == 24, "each rater answered each pair once, whichever tab was first"
    for rater in ("ann", "ben"):
        kept = list(read_records(served.workspace.root / "labels" / f"q-jsonl.{rater}.jsonl", HumanLabel))
        assert len(kept) == 12 and {label.annotator for label in kept} == {rater}
    assert "ann 12" in served.client.get("/label").text.replace("</span>", "").replace('<span dir="auto">', "")


@pytest.mark.enable_socket
def test_a_kill_loses_no_answer_that_was_confirmed(workspace: Workspace, queue_file: Path) -> None:
    process = start_cai(workspace.root, "studio", "--port", "0")
    confirmed: list[str] = []
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("Open ").strip()
        origin = address.partition("/enter")[0]
        with httpx2.Client(base_url=origin, trust_env=False, timeout=60, headers={"origin": origin}) as client:
            assert client.get(address).status_code == 200
            shown = client.post("/label/q-jsonl/next", json={"rater": "ann"}).json()
            killer = threading.Timer(0.0, os.kill, (process.pid, signal.SIGKILL))
            try:
                while shown["key"] is not None:
                    key = shown["key"]
                    shown = client.post("/label/q-jsonl/answer", json={"rater": "ann", "key": key, "choice": "a"}).json()
                    confirmed.append(key)
                    if len(confirmed) == 5:
                        killer.start()  # while the next answers are on their way
            except httpx2.HTTPError:
                pass
            killer.join()
    finally:
        process.kill()
        process.communicate()
    labelling = Labelling(workspace)
    kept = list(labelling.done(labelling.queue("q-jsonl"), "ann"))
    assert len(confirmed) >= 5 and kept[: len(confirmed)] == confirmed and len(kept) <= len(confirmed) + 1


@pytest.mark.enable_socket
def test_a_queue_is_made_from_a_run_and_asks_nothing_twice(served: Served) -> None:
    run_data(served.workspace)
    served.enter()
    made = served.post("/label/queues", run="s", by="uncertainty", n=3)
    assert made == {"file": "s-uncertainty-1.jsonl", "pairs": 3}
    for _ in range(3):
        shown = served.post("/label/s-uncertainty-1-jsonl/next", rater="ann")
        served.post("/label/s-uncertainty-1-jsonl/answer", rater="ann", key=shown["key"], choice="tie")
    again = served.post("/label/queues", run="s", by="uncertainty", n=3)
    assert again["file"] == "s-uncertainty-2.jsonl"
    first, second = (set(load_to_label(served.workspace.root / "labels" / "queues" / m["file"]).pairs) for m in (made, again))
    assert len(first) == len(second) == 3 and not first & second
    assert "disagree" in served.post("/label/queues", status=400, run="s", by="disagreement", n=3)["error"]
    served.post("/label/queues", status=404, run="../w/runs/s", by="uncertainty", n=3)
    served.post("/label/nothing/next", status=404, rater="ann")
    served.post("/label/q-jsonl/answer", status=404, rater="ann", key="x", choice="a")
    served.post("/label/s-uncertainty-1-jsonl/answer", status=400, rater="ann", key="x", choice="a")
    served.post("/label/s-uncertainty-1-jsonl/answer", status=400, rater="ann", key="x", choice="A")


@pytest.mark.attack
def test_queues_of_like_names_are_apart_and_an_earlier_versions_labels_are_found(workspace: Workspace, queue_file: Path) -> None:
    folder, labelling = queue_file.parent, Labelling(workspace)
    names = ("v1-2-uncertainty-1.jsonl", "v1.2-uncertainty-1.jsonl", "V1.2.jsonl", "V1-2.jsonl", "a.b.jsonl", "a-b.jsonl", "a.b.json")
    for name in names:
        write_records(folder / name, [{"pair": pair(i)} for i in range(2)])
    found = {queue.path.name: queue for queue in labelling.queues().values()}
    assert set(found) == {"q.jsonl", *names}
    answer_all(labelling, found["a.b.jsonl"], "ann", "First")
    assert [labelling.progress(found[name]) for name in ("a.b.jsonl", "a-b.jsonl", "a.b.json")] == [{"ann": 2}, {}, {}]
    old = Queue("v1-2-uncertainty-1-jsonl", folder / "v1.2-uncertainty-1.jsonl")  # as it was called
    (folder / "v1-2-uncertainty-1.jsonl").unlink()
    answer_all(labelling, old, "ben", "First")
    assert labelling.queues()[old.id].path == old.path and labelling.progress(old) == {"ben": 2}
