"""What the labels of a queue say: agreement, disputes, checks, and who decides."""

import re
from html import unescape
from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.errors import DataError
from cai.labels.annotating import read_label_files
from cai.labels.pooling import ADJUDICATOR
from cai.recipe import load_recipe
from cai.records import EvalResult, Message, Preference, Prompt, Provenance
from cai.studio.labelling import GOLD, Labelling, Queue, as_shown
from cai.studio.results import in_words, label_results
from tests.studio.queues import EVIL, answer_all, label
from tests.studio.serving import Served


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
