"""The studio in a real browser: each thing that people do there from beginning to end, by mouse and keyboard."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cai.constitution.load import load_constitution
from cai.core.jsonl import read_records, write_records
from cai.models.requests import Completion, Request
from cai.records import Examples, HumanLabel, Message, Preference, Prompt, Provenance, ResponseCheck, ResponsePair
from cai.studio.labelling import GOLD
from tests.browser import needs_browser
from tests.models.serving import servers
from tests.studio.principle_runs import MINE, SHORT, add_run
from tests.studio.serving import Served
from tests.workspaces import run_data, script

pytestmark = [*needs_browser, pytest.mark.enable_socket]
BY = Provenance("m")


def test_a_constitution_is_written_saved_and_taken_back(tab: Any, served: Served) -> None:
    file = served.workspace.root / "constitution" / "mine.yaml"
    file.write_text(MINE)
    tab.goto("/constitutions/mine")
    tab.click("#add")
    tab.wait_for_selector(".principle-form >> nth=2")
    last = tab.locator(".principle-form").last
    last.locator("[data-name=id]").fill("no-jargon")
    last.locator("[data-name=statement]").press_sequentially("Explain terms, “like” <b>these</b>.")
    tab.wait_for_selector("#state:text('draft stored')")
    tab.click("#save")
    tab.wait_for_selector("#state:text-is('saved')")
    assert "id: no-jargon" in file.read_text() and "Explain terms, “like” <b>these</b>." in file.read_text()
    tab.click("#tab-text")
    tab.locator("#text").press("Control+End")
    tab.locator("#text").press_sequentially("\n# typed as YAML")
    tab.wait_for_selector("#paper .comment:text('typed as YAML')")
    tab.wait_for_selector("#state:text('draft stored')")
    tab.keyboard.press("Control+s")
    tab.wait_for_selector("#state:text-is('saved')")
    assert "# typed as YAML" in file.read_text()
    tab.click("#history summary")
    tab.locator("#history details summary").last.click()
    tab.locator("#history [data-key]").last.click()
    tab.wait_for_selector("#state:text('draft stored')")
    assert tab.locator("#text").input_value() == MINE
    tab.click("#discard")
    tab.wait_for_selector("#state:text-is('saved')")
    assert "no-jargon" in tab.locator("#text").input_value()


def test_rules_weight_and_examples_are_edited_in_the_form(tab: Any, served: Served) -> None:
    file = served.workspace.root / "constitution" / "mine.yaml"
    file.write_text(MINE.replace("weight: 3", "weight: 3 # thrice").replace("    check:", "    # to be read at a glance\n    check:"))
    tab.goto("/constitutions/mine")
    box = tab.locator(".principle-form").first
    stored = "#state:text('draft stored')"
    assert box.locator("[data-name=weight]").input_value() == "3"
    box.locator("[data-name=weight]").fill("0")
    box.locator(".found[data-of=weight] >> text=give it a weight above 0").wait_for()
    assert tab.locator("#save").is_disabled()
    box.locator("[data-name=weight]").fill("1.5")
    box.locator(".found li").wait_for(state="detached")
    box.locator(".checks-of summary").click()
    assert box.locator(".rule").input_value() == "max_words" and box.locator(".rule-value").input_value() == "3"
    box.locator(".rule-value").fill("few")
    box.locator(".found[data-of=check] >> text=At most … words: must be a whole number, at least 1; found 'few'").wait_for()
    box.locator(".rule-value").fill("12")
    box.locator(".add-rule").click()
    box.locator(".rule").last.select_option("ends_with")
    box.locator(".rule-value").last.press_sequentially("now.\nlater.")
    box.locator(".for-kinds").last.select_option("helpful")
    box.locator(".add-good").click()
    box.locator(".good textarea").fill("Do it now.")
    box.locator(".add-bad").click()
    box.locator(".bad textarea").fill("Do it.")
    box.locator(".checks-of summary:has-text('2 rules; 2 examples')").wait_for()
    box.locator(".found li").wait_for(state="detached")
    tab.keyboard.press("Control+s")
    tab.wait_for_selector("#state:text-is('saved')")
    text = file.read_text()
    assert "weight: 1.5 # thrice\n    # to be read at a glance\n    check:" in text
    found = load_constitution(file).principles[0]
    assert found.check == (ResponseCheck(max_words=12), ResponseCheck(("helpful",), ends_with=("now.", "later.")))
    assert found.examples == Examples(("Do it now.",), ("Do it.",))
    tab.click("#tab-text")
    tab.locator("#text").fill(text.replace("max_words: 12", "max_wrods: 9"))
    tab.click("#tab-form")
    box.locator(".found[data-of=check] >> text=unknown rule 'max_wrods'. Did you mean 'max_words'?").wait_for()
    assert box.locator(".rule").first.input_value() == "max_wrods"
    box.locator(".rule").first.select_option("max_words")
    tab.wait_for_selector(stored)
    box.locator("button[title='Remove this rule']").last.click()
    box.locator(".checks-of summary:has-text('1 rule;')").wait_for()
    tab.click("#save")
    tab.wait_for_selector("#state:text-is('saved')")
    assert load_constitution(file).principles[0].check == (ResponseCheck(max_words=9),)


def test_principles_are_drafted_by_a_model_and_put_in_order_by_keyboard(tab: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = "Name the source.\nCritique: Point out every claim in your last response that names no source."
    script(monkeypatch, lambda request: Completion(reply, False, 1, 1))
    file = served.workspace.root / "constitution" / "mine.yaml"
    file.write_text(MINE.replace("Be kind.", "Name the source of every claim."))
    tab.goto("/constitutions/mine")
    second = tab.locator(".principle-form").nth(1)
    second.locator(".words-of summary").click()
    second.locator(".draft:text-is('Draft from the statement')").click()
    second.locator(".drafted:visible").wait_for()
    assert second.locator("[data-name=critique]").input_value().startswith("Point out every claim")
    second.locator("[data-name=critique]").fill("Point out each claim without a source.")
    tab.wait_for_selector("#state:text('draft stored')")
    second.locator(".drafted:visible").wait_for(state="detached")
    second.locator("[data-name=statement]").fill("")
    second.locator(".found >> text=needs an id and a statement").wait_for()
    second.locator("[data-name=statement]").fill("Name the source of each claim.")
    tab.wait_for_selector("#state:text('draft stored')")
    tab.wait_for_timeout(800)  # longer than the pause after which typing is stored
    tab.locator("[title='Move up']:enabled").first.press("Enter")
    tab.wait_for_selector(".principle-form[data-id=kind]:first-child")
    tab.locator("[title='Move down']:enabled").first.press("Enter")
    tab.wait_for_selector(".principle-form[data-id=short]:first-child")
    assert tab.evaluate("document.activeElement.closest('.principle-form').dataset.id") == "kind", "the keyboard stays with it"
    tab.locator(".principle-form").last.locator(".draft").click()
    tab.locator(".principle-form").last.locator(".job-panel:has-text('drafted')").wait_for()
    tab.click("#bare button")
    tab.locator("#bare + .job-panel:has-text('drafted')").wait_for()


def test_a_statement_is_drafted_from_once_it_is_written(tab: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()

    def reply(request: Request) -> Completion:
        assert slow.wait(60)
        of = "number" if "number" in request.messages[-1].content else "claim"
        return Completion(f"x\nCritique: Point out every {of} in your last response that names no source.", False, 1, 1)

    script(monkeypatch, reply)
    file = served.workspace.root / "constitution" / "mine.yaml"
    file.write_text(MINE)
    tab.goto("/constitutions/mine")
    tab.click("#add")
    last = tab.locator(".principle-form >> nth=2")
    last.locator("[data-name=statement]").fill("Name the source of each number.")
    tab.keyboard.press("Tab")
    last.locator(".job-panel:has-text('drafting for principle-1')").wait_for()
    last.locator("[data-name=id]").fill("sources")
    tab.keyboard.press("Control+s")
    tab.wait_for_selector("#state:text-is('saved')")
    assert load_constitution(file).principles[2].id == "sources", "drafting keeps nobody from saving"
    tab.click("#tab-text")
    tab.locator("#text").press("Control+End")
    slow.set()
    tab.locator("#text").press_sequentially("# typed while it drafts", delay=60)
    tab.click("#tab-form")
    last.locator("[data-name=critique]:visible").wait_for()
    assert "# typed while it drafts" in tab.locator("#text").input_value()
    assert last.locator("[data-name=critique]").input_value() == "Point out every number in your last response that names no source."
    assert last.locator(".drafted:visible").count() == 1 and "# drafted from the statement" not in file.read_text(), "until it was read"
    first = tab.locator(".principle-form").first
    assert first.locator(".words-of summary").inner_text().endswith("which quote the statement"), "nobody wrote that one here"
    last.locator("[data-name=statement]").fill("Name the source of each claim.")
    last.locator(".found >> text=drafted from another statement").wait_for()
    last.locator(".draft").click()
    last.locator(".found li").wait_for(state="detached")
    assert "every claim" in last.locator("[data-name=critique]").input_value()
    slow.clear()
    first.locator("[data-name=statement]").fill("Name the source of each number, briefly.")
    tab.keyboard.press("Tab")
    with tab.expect_response("**/jobs/*/stop") as answered:
        first.locator(".job-panel .stop").click()
    slow.set()
    assert answered.value.ok


def test_openings_and_source_are_edited_in_the_form(tab: Any, served: Served) -> None:
    file = served.workspace.root / "constitution" / "mine.yaml"
    file.write_text(MINE.replace("    check:", "    openings: [In short] # a start\n    check:"))
    tab.goto("/constitutions/mine")
    box = tab.locator(".principle-form").first
    box.locator(".rest-of summary:has-text('Openings: 1; source: none')").click()
    assert box.locator("[data-name=openings]").input_value() == "In short"
    box.locator("[data-name=openings]").fill("In short,\n\nYes: ")
    box.locator("[data-name=source]").fill("The handbook, page 3")
    box.locator(".rest-of summary:has-text('Openings: 2; source: given')").wait_for()
    tab.keyboard.press("Control+s")
    tab.wait_for_selector("#state:text-is('saved')")
    found = load_constitution(file).principles[0]
    assert (found.openings, found.source) == (("In short,", "Yes:"), "The handbook, page 3") and "# a start" in file.read_text()
    box.locator("[data-name=openings]").fill("")
    box.locator("[data-name=source]").fill("")
    box.locator(".rest-of summary:has-text('Openings: none; source: none')").wait_for()
    tab.keyboard.press("Control+s")
    tab.wait_for_selector("#state:text-is('saved')")
    assert load_constitution(file).principles[0] == SHORT


def test_a_principle_is_dragged_to_another_place(tab: Any, served: Served) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    tab.goto("/constitutions/mine")
    tab.wait_for_selector(".principle-form[data-id=short]:first-child")
    onto = tab.locator(".principle-form[data-id=kind] [data-name=statement]")
    onto.scroll_into_view_if_needed()  # scrolling would end the drag
    tab.locator(".handle").first.hover()
    tab.mouse.down()
    onto.hover()
    onto.hover()  # a drag begins with the first move, and is over something with the second
    tab.mouse.up()
    tab.wait_for_selector(".principle-form[data-id=kind]:first-child")
    tab.wait_for_selector("#state:text('draft stored')")
    assert tab.locator("#text").input_value().index("id: kind") < tab.locator("#text").input_value().index("id: short")


def test_a_fault_is_shown_at_its_line_and_can_not_be_saved(tab: Any, served: Served) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    tab.goto("/constitutions/mine")
    tab.click("#tab-text")
    tab.locator("#text").press("Control+End")
    tab.locator("#text").press_sequentially("\nnothing: such")
    tab.wait_for_selector("#found .error")
    assert tab.locator("#save").is_disabled()
    tab.locator("#found .jump").first.click()
    assert tab.evaluate("document.activeElement.id") == "text"


def test_two_people_label_by_keyboard_and_a_third_decides(tab: Any, served: Served) -> None:
    labels = served.workspace.root / "labels"
    asked = [Prompt(f"p{i}", "helpful", (Message("user", f"Question {i}?"),), "test") for i in range(3)]
    rows = [{"pair": ResponsePair(p, f"Long answer to {p.id}.", "Short.", "sampled", BY)} for p in asked]
    write_records(labels / "queues" / "q.jsonl", rows)
    gold = Prompt("g", "helpful", (Message("user", "What is two and two?"),), "test")
    write_records(labels / GOLD, [Preference(gold, "Four.", "Five.", 1.0, 1.0, "human:x", (), BY)])
    for name, wanted in (("Ana", ("Four.", "Long")), ("Ben", ("Four.", "Short."))):
        tab.goto("/label")
        tab.fill("#rater", name)
        tab.click("button:text-is('Start')")
        for number in range(4):
            tab.wait_for_selector(f"#count:text('{number} of 4')")
            first = tab.locator("#pair .column").first.inner_text()
            if name == "Ana" and number == 1:
                tab.keyboard.press("n")
                tab.keyboard.type("The word “better” is in a note; t, b, x answer nothing.")
                tab.keyboard.press("Enter")
            tab.wait_for_timeout(250)  # a key for the pair before must not answer this one
            tab.keyboard.press("a" if any(text in first for text in wanted) else "b")
        tab.wait_for_selector("#count:text('4 of 4')")
        tab.wait_for_timeout(250)
        tab.keyboard.press("u")
        tab.wait_for_selector("#count:text('3 of 4')")
        tab.wait_for_timeout(250)
        tab.keyboard.press("x")
        tab.wait_for_selector("#count:text('4 of 4')")
    found = [list(read_records(file, HumanLabel)) for file in sorted(labels.glob("q-jsonl.*.jsonl"))]
    assert [len(answers) for answers in found] == [4, 4] and all(answers[-1].both_bad for answers in found)
    assert [label.note for label in found[0] if label.note] == ["The word “better” is in a note; t, b, x answer nothing."]
    tab.goto("/label/q-jsonl/results")
    disputed = tab.locator("#disputed .sample").count()
    assert disputed >= 1
    tab.locator(".decide").first.click()
    tab.wait_for_selector("text=decided: A is better")
    tab.locator(".undo:visible").first.click()
    tab.locator(".decide[data-choice=b]:visible").first.click()
    tab.wait_for_selector("text=decided: B is better")
    tab.reload()
    tab.locator(".undo:visible").wait_for()
    assert len(list(read_records(next(labels.glob("q-jsonl.adjudication.jsonl")), HumanLabel))) == 1


def test_a_run_is_planned_started_stopped_and_goes_on(tab: Any, served: Served) -> None:
    with servers(1, seconds=0.3) as (server,):
        tab.click("text=Start a run")
        tab.select_option("[name=recipe]", "s.yaml")
        tab.fill("[name=name]", "mine")
        tab.click("#plan")
        tab.wait_for_selector("#planned table")
        tab.fill("[name=model]", server.url)
        tab.fill("[name=only]", "respond,critique")
        tab.fill("[name=settings]", "model.concurrency=1\n\n")
        tab.click("button:text-is('Start')")
        tab.wait_for_url("**/runs/mine")
        tab.wait_for_selector(".status.running", timeout=60_000)
        assert tab.locator("#resume").is_hidden()
        tab.click("#stop")
        tab.wait_for_selector("#resume:visible", timeout=60_000)
        tab.wait_for_selector(".status.stopped")
        assert tab.locator("#stop").is_hidden()
        tab.click("summary:has-text('What it printed')")
        assert "Run the same command again to resume" in tab.locator("#log").inner_text()
        tab.click("#resume")
        tab.wait_for_selector("#stop:visible")
        tab.wait_for_selector(".status.running", timeout=60_000)
        tab.click("#stop")
        tab.wait_for_selector("#resume:visible", timeout=60_000)


def test_texts_are_searched_and_followed_to_their_prompt(tab: Any, served: Served) -> None:
    add_run(served.workspace, "r")
    tab.goto("/runs/r")
    tab.click("text=Browse the texts")
    tab.select_option("[name=what]", "answers")
    tab.select_option("[name=principle]", "short")
    tab.select_option("[name=order]", "worst")
    tab.click("button:text-is('Show')")
    assert re.search(r"breaks it", tab.locator(".sample").first.inner_text())
    changed = tab.locator(".sample:has-text('Asked by z')")
    changed.locator("summary:has-text('What changed')").click()
    assert changed.locator("del").inner_text().strip() == "of"
    tab.fill("[name=search]", "two three")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**search=two+three**")
    assert tab.locator(".sample").count() == 2
    tab.locator("text=All about this prompt").first.click()
    assert "Everything about one prompt" in tab.locator("h1").inner_text()


def test_runs_are_compared(tab: Any, served: Served) -> None:
    with ThreadPoolExecutor(1) as outside:  # Playwright's event loop is this thread's
        for name in ("r1", "r2"):
            outside.submit(run_data, served.workspace, only=("respond",), name=name).result()
    tab.goto("/")
    for name in ("r1", "r2"):
        tab.check(f"[aria-label='Compare {name}']")
    tab.click("text=Compare side by side")
    assert "r1" in tab.locator("h1").inner_text()


def test_the_form_is_built_when_its_script_comes_late(tab: Any, served: Served) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    held: list[Any] = []
    tab.route("**/static/rules.js", lambda route: held.append(route))
    tab.goto("/constitutions/mine", wait_until="commit")
    tab.wait_for_selector("#state:text-is('saved')")
    held[0].continue_()
    tab.wait_for_selector(".principle-form >> nth=1")


def test_another_tabs_edit_is_not_overwritten(tab: Any, served: Served, tmp_path: Path) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    tab.goto("/constitutions/mine")
    tab.click("#tab-text")
    other = tab.context.new_page()
    other.goto("/constitutions/mine")
    other.click("#tab-text")
    other.locator("#text").press("Control+End")
    other.locator("#text").press_sequentially("\n# other")
    other.wait_for_selector("#state:text('draft stored')")
    tab.locator("#text").press("Control+End")
    tab.locator("#text").press_sequentially("\n# mine")
    tab.wait_for_selector("#told:visible")
    assert "reload the page" in tab.locator("#told").inner_text() and "# mine" in tab.locator("#text").input_value()
