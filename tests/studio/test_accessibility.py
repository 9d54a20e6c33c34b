"""The report and the studio's pages under axe-core's rules (WCAG 2.2 A and AA), in light and dark.

axe-core is the script in the package axe-playwright-python, of which nothing else is used. The studio's pages are checked as their scripts
have built them.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cai.core.jsonl import write_records
from cai.records import Message, Prompt, Provenance, ResponsePair
from cai.report.collect import collect_report
from cai.report.page import render_report
from tests.browser import needs_browser, title_after_load
from tests.report.run_directory import write_run
from tests.studio.principle_runs import MINE, add_run
from tests.studio.serving import Served

PACKAGE = importlib.util.find_spec("axe_playwright_python")
no_axe = pytest.mark.skipif(PACKAGE is None, reason="no axe-core: pip install --no-deps axe-playwright-python")
pytestmark = [*needs_browser, no_axe, pytest.mark.enable_socket]
CHECKED = """
  const rules = { type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] };
  const found = await axe.run(document, { runOnly: rules });
  const broken = found.violations.map((v) => [v.id, v.nodes.slice(0, 3).map((n) => n.html.slice(0, 120))]);
  const said = JSON.stringify([found.passes.length, broken]);
"""
RUN = f'addEventListener("load", async () => {{ {CHECKED} document.title = said; }});'
DARK = "blink-settings=preferredColorScheme=0"


def axe(tab: Any) -> tuple[int, list[Any]]:
    """Return the number of rules that the page in a tab passes, as its scripts have built it, and those that it breaks."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    tab.evaluate((Path(PACKAGE.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    passed, broken = json.loads(tab.evaluate(f"(async () => {{ {CHECKED} return said; }})()"))
    return passed, broken


def broken_rules(html: str, folder: Path, *flags: str) -> tuple[int, list[Any]]:
    """Return the number of rules that a page passes, and those that it breaks, with the first elements."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    axe = (Path(PACKAGE.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    file = folder / "page.html"
    file.write_text(page.replace("</head>", f"<script>{axe}</script><script>{RUN}</script></head>", 1))
    passed, broken = json.loads(title_after_load(file, flags=["virtual-time-budget=20000", *flags]))
    return passed, broken


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_the_report_breaks_no_rule(tmp_path: Path, flags: tuple[str, ...]) -> None:
    passed, broken = broken_rules(render_report(collect_report(write_run(tmp_path / "run", "A long answer. " * 60))), tmp_path, *flags)
    assert passed > 10 and broken == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_studios_pages_break_no_rule(tab: Any, served: Served, scheme: str) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    add_run(served.workspace, "r1")
    add_run(served.workspace, "r2")
    asked = Prompt("p", "helpful", (Message("user", "Why?"),), "test")
    queue = served.workspace.root / "labels" / "queues" / "q.jsonl"
    write_records(queue, [{"pair": ResponsePair(asked, "So.", "Not so.", "sampled", Provenance("m"))}])
    served.enter()
    key = served.post("/label/q-jsonl/next", rater="ann")["key"]
    for rater, choice in {"ann": "a", "ben": "a", "eve": "a", "dan": "both-bad"}.items():  # of three, two see the same text first, or all
        served.post("/label/q-jsonl/answer", rater=rater, key=key, choice=choice, note="A note.")
    tab.emulate_media(color_scheme=scheme)
    ready = {
        "/": "#runs",
        "/constitutions/mine": ".principle-form >> nth=1",
        "/constitutions/mine/principles/short": "#examples",
        "/constitutions/mine/principles/kind": "#examples",
        "/label": "#rater",
        "/label/q-jsonl?rater=new&guide=mine": "#pair .column",
        "/label/q-jsonl/results": "#disputed",
        "/runs": "#start",
        "/runs/r1": "#stages table",
        "/runs/r1/texts": ".sample",
        "/runs/r1/texts?what=answers&principle=short": ".sample",
        "/constitutions/none": "h1",
    }
    found = {}
    for path, part in ready.items():
        tab.goto(path)
        tab.wait_for_selector(part)
        found[path] = axe(tab)
    for action, path, part in (
        ("#tab-text", "/constitutions/mine", "#paper div"),
        (".words-of summary >> nth=0", "/constitutions/mine", ".words-of textarea >> nth=0"),
        (".checks-of summary >> nth=0", "/constitutions/mine", ".rule-row"),
        ("#plan", "/runs", "#planned table"),
    ):
        tab.goto(path)
        if path == "/runs":
            tab.select_option("[name=recipe]", "s.yaml")
        tab.click(action)
        tab.wait_for_selector(part)
        found[f"{path}, {action}"] = axe(tab)
    assert min(passed for passed, _ in found.values()) > 5
    assert {path: broken for path, (_, broken) in found.items() if broken} == {}


def test_a_page_that_breaks_a_rule_is_found(tmp_path: Path) -> None:
    page = '<!doctype html><html lang="en"><head><title>x</title></head><body><input><p style="color:#aaa">pale</p></body></html>'
    assert {rule for rule, _ in broken_rules(page, tmp_path)[1]} == {"color-contrast", "label"}
