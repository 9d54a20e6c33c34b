"""Labels of people: blind, in an order of the rater's own, one line for each answer, and none lost to a kill or another tab."""

import json
import os
import re
import signal
import threading
from html import unescape
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
from cai.recipe import HumanSource, load_recipe
from cai.records import EvalResult, HumanLabel, Message, Preference, Prompt, Provenance, ResponsePair
from cai.studio.labelling import BLOCK, GOLD, Labelling, NotLastError, Queue, as_shown, order, rater_name
from cai.studio.results import in_words, label_results
from tests.studio.serving import Served
from tests.workspaces import run_data, start_cai

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def pair(number: int, a: str = "", b: str = "") -> ResponsePair:
    prompt = Prompt(f"p{number}", "helpful", (Message("user", f"Question {number}?"),), "secret-source", "secret-category")
    by = Provenance("secret-model", ("secret-principle",))
    return ResponsePair(prompt, a or f"First answer to {number}.", b or f"Second answer to {number}.", "contrast", by, 0.875)


@pytest.fixture
def queue_file(workspace: Workspace) -> Path:
    path = workspace.root / "labels" / "queues" / "q.jsonl"
    write_records(path, [{"pair": pair(i), "score": 0.5, "reason": "the judge says 0.123 for A"} for i in range(12)])
    return path


@pytest.fixture
def labelling(workspace: Workspace, queue_file: Path) -> Labelling:
    return Labelling(workspace)


@pytest.fixture
def queue(labelling: Labelling) -> Queue:
    return labelling.queue("q-jsonl")


def answer_all(labelling: Labelling, queue: Queue, rater: str, text: str) -> int:
    """Choose the side whose text begins so, until all is done."""
    count = 0
    while (turn := labelling.turn(queue, rater)).pair is not None:
        assert turn.key is not None
        assert labelling.answer(queue, rater, turn.key, "a" if turn.pair.response_a.startswith(text) else "b")
        count += 1
    return count


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


def label(labelling: Labelling, queue: Queue, rater: str, first: int) -> None:
    """Label the first ten pairs: the "First answer" on the first few of them, the "Second answer" on the others."""
    for i, (key, one) in enumerate(list(labelling.to_label(queue).pairs.items())[:10]):
        shown = as_shown(one, key, rater)
        wanted = "First" if i < first else "Second"
        labelling.answer(queue, rater, key, "a" if shown.response_a.startswith(wanted) else "b")


def test_results_say_how_far_raters_agree_and_show_what_they_dispute(labelling: Labelling, queue: Queue) -> None:
    assert label_results(labelling, queue).words.startswith("Agreement is not known")
    label(labelling, queue, "ana", 5)
    label(labelling, queue, "ben", 5)
    agreed = label_results(labelling, queue)
    assert (agreed.shared, agreed.disputed, [r.n for r in agreed.raters]) == (10, (), [10, 10])
    assert agreed.words.startswith("The raters agree: the labels can be used as they are")
    label(labelling, queue, "eve", 2)
    found = label_results(labelling, queue)
    assert len(found.disputed) == 3 and found.files == tuple(f"labels/q-jsonl.{who}.jsonl" for who in ("ana", "ben", "eve"))
    for one in found.disputed:
        first = "A" if one.pair.response_a.startswith("First") else "B"
        assert one.answers == (("ana", first, ""), ("ben", first, ""), ("eve", "B" if first == "A" else "A", "")) and not one.decided


def test_notes_and_how_much_better_stand_beside_a_dispute(labelling: Labelling, queue: Queue) -> None:
    key, one = next(iter(labelling.to_label(queue).pairs.items()))
    for rater, choice, note in (("ana", "a-slightly", "It is kinder."), ("ben", "a", ""), ("eve", "b", EVIL)):
        aside = as_shown(one, key, rater).response_a == as_shown(one, key, "ana").response_a
        turned = choice if aside else ("b" if choice[0] == "a" else "a") + choice[1:]
        labelling.answer(queue, rater, key, turned, note)
    (found,) = label_results(labelling, queue).disputed
    a, b = ("A", "B") if found.pair.response_a == as_shown(one, key, "ana").response_a else ("B", "A")
    assert found.answers == (("ana", f"{a} slightly", "It is kinder."), ("ben", a, ""), ("eve", b, EVIL))
    labelling.answer(queue, ADJUDICATOR, key, "a-slightly")
    assert label_results(labelling, queue).disputed[0].decided == "A slightly"
    assert [r.first for r in label_results(labelling, queue).raters if r.name == "ana"] == [1.0], "slightly better is chosen, too"


def test_both_bad_is_a_tie_that_says_what_the_model_lacks(labelling: Labelling, queue: Queue, tmp_path: Path) -> None:
    keys = list(labelling.to_label(queue).pairs)
    for rater, choices in {"ana": ("both-bad", "both-bad", "a"), "ben": ("both-bad", "tie", "a")}.items():
        for key, choice in zip(keys, choices, strict=False):
            labelling.answer(queue, rater, key, choice)  # type: ignore[arg-type]
    found = label_results(labelling, queue)
    asked = labelling.to_label(queue).pairs[keys[0]].prompt
    assert [(r.name, round(3 * r.both_bad), round(3 * r.ties)) for r in found.raters] == [("ana", 2, 0), ("ben", 1, 1)]
    assert found.bad == (asked,) and keys[0] not in {d.key for d in found.disputed}
    labels, failures, _ = read_label_files([labelling.file(queue, "ana")])
    assert [(label.p_a, label.both_bad) for label in labels][:2] == [(0.5, True)] * 2 and not failures


def test_attention_checks_are_mixed_in_unseen_and_measure_each_rater(labelling: Labelling, queue: Queue) -> None:
    own = list(labelling.to_label(queue).pairs)
    asked = [Prompt(f"g{i}", "helpful", (Message("user", f"Gold {i}?"),), "gold") for i in range(3)]
    gold = [Preference(p, "Right.", "Wrong.", 1.0, 1.0, "human:gold", (), Provenance("")) for p in asked]
    write_records(labelling.folder / GOLD, gold)
    mixed = list(labelling.to_label(queue).pairs)
    checks = [key for key in mixed if key not in own]
    assert [key for key in mixed if key in own] == own and len(checks) == 2, "one in a block, of twelve pairs"
    assert answer_all(labelling, queue, "good", "Right.") == answer_all(labelling, queue, "careless", "Wrong.") == 14
    rows = {r.name: r.checks for r in label_results(labelling, queue).raters}
    assert [(r.value, r.n) for name in ("good", "careless") if (r := rows[name]) is not None] == [(1.0, 2), (0.0, 2)]
    (labelling.folder / GOLD).write_text("{")
    with pytest.raises(DataError, match="gold"):
        labelling.turn(queue, "good")


def test_an_adjudicator_decides_and_is_no_rater(labelling: Labelling, queue: Queue) -> None:
    label(labelling, queue, "ana", 5)
    label(labelling, queue, "eve", 2)
    before = label_results(labelling, queue)
    labelling.answer(queue, ADJUDICATOR, before.disputed[0].key, "b")
    after = label_results(labelling, queue)
    assert [d.decided for d in after.disputed].count("B") == 1 and after.agreement == before.agreement
    assert [r.name for r in after.raters] == ["ana", "eve"]


def test_agreement_is_put_in_words_by_its_limits() -> None:
    def words(value: float, low: float, high: float) -> str:
        return in_words([EvalResult("alpha", "people", value, 10, low, high)])

    assert words(0.9, 0.85, 0.95) == "The raters agree: the labels can be used as they are."
    assert words(0.7, 0.68, 0.75).startswith("The raters agree fairly well")
    assert words(0.3, 0.1, 0.5).startswith("The raters agree too little")
    assert words(-0.1, -0.3, 0.1).startswith("The raters agree too little")
    assert words(-0.3, -0.5, -0.1).startswith("The raters agree no more than by chance")
    assert words(0.9, 0.2, 1.0).endswith("With so few shared pairs, this is uncertain.")


@pytest.mark.enable_socket
def test_the_results_page_takes_decisions(served: Served, labelling: Labelling, queue: Queue) -> None:
    label(labelling, queue, "ana", 5)
    label(labelling, queue, EVIL[:40], 2)
    client = served.enter()
    assert 'href="/label/q-jsonl/results"' in client.get("/label").text
    page = client.get("/label/q-jsonl/results").text
    assert "3 of them disputed" in page and page.count('class="decide"') == 12 and "<script>alert" not in page
    key = label_results(labelling, queue).disputed[0].key
    assert served.post("/label/q-jsonl/answer", rater=ADJUDICATOR, key=key, choice="tie")["kept"]
    setting = re.search(r"<pre>(preferences\.human=.*)</pre>", page)
    assert setting is not None
    recipe = load_recipe(served.workspace.root / "runs" / "smoke.yaml", [unescape(setting[1])])
    assert [source.path for source in recipe.preferences.human] == re.findall(r"labels/q-jsonl\.\S+\.jsonl", setting[1])
    assert "decided: <b>tie</b>" in client.get("/label/q-jsonl/results").text
    for who, i in (("uwe", 11), ("ida", 11)):
        key = list(labelling.to_label(queue).pairs)[i]
        side = "a" if as_shown(labelling.to_label(queue).pairs[key], key, who).response_a.startswith("First") == (who == "uwe") else "b"
        assert served.post("/label/q-jsonl/answer", rater=who, key=key, choice=f"{side}-slightly", note=f"{EVIL} by {who}")["kept"]
    page = client.get("/label/q-jsonl/results").text
    assert page.count("slightly</b> <q") == 2 and "by uwe</q>" in page and "<img" not in page and "<script>alert" not in page
    served.post("/label/q-jsonl/answer", 400, rater="uwe", key=key, choice="a", note="x" * 2001)
