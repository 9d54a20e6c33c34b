"""The report and the studio's pages under axe-core's rules (WCAG 2.2 A and AA), in light and dark.

axe-core is the script in the package axe-playwright-python, of which nothing else is used. Pages are checked as the server sends them,
with their style sheets.
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
from tests.studio.serving import Served
from tests.studio.test_principles import MINE, add_run

PACKAGE = importlib.util.find_spec("axe_playwright_python")
no_axe = pytest.mark.skipif(PACKAGE is None, reason="no axe-core: pip install --no-deps axe-playwright-python")
pytestmark = [*needs_browser, no_axe, pytest.mark.enable_socket]
RUN = """
addEventListener("load", async () => {
  const rules = { type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] };
  const found = await axe.run(document, { runOnly: rules });
  const broken = found.violations.map((v) => [v.id, v.nodes.slice(0, 3).map((n) => n.html.slice(0, 120))]);
  document.title = JSON.stringify([found.passes.length, broken]);
});
"""
DARK = "blink-settings=preferredColorScheme=0"


def broken_rules(html: str, folder: Path, *flags: str) -> tuple[int, list[Any]]:
    """Return the number of rules that a page passes, and those that it breaks, with the first elements."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    axe = (Path(PACKAGE.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    file = folder / "page.html"
    file.write_text(page.replace("</head>", f"<script>{axe}</script><script>{RUN}</script></head>", 1))
    passed, broken = json.loads(title_after_load(file, flags=["virtual-time-budget=20000", *flags]))
    return passed, broken


def as_sent(served: Served, path: str) -> str:
    """Return a page of the studio with its style sheets in it, and without its scripts."""
    html = served.client.get(path, headers={"accept": "text/html"}).text

    def style(found: re.Match[str]) -> str:
        return f"<style>{served.client.get(found[1]).text}</style>"

    return re.sub(r"<script[^>]*></script>", "", re.sub(r'<link rel="stylesheet" href="([^"]+)">', style, html))


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_the_report_breaks_no_rule(tmp_path: Path, flags: tuple[str, ...]) -> None:
    passed, broken = broken_rules(render_report(collect_report(write_run(tmp_path / "run", "A long answer. " * 60))), tmp_path, *flags)
    assert passed > 10 and broken == []


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_the_studios_pages_break_no_rule(served: Served, tmp_path: Path, flags: tuple[str, ...]) -> None:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    add_run(served.workspace, "r1")
    add_run(served.workspace, "r2")
    asked = Prompt("p", "helpful", (Message("user", "Why?"),), "test")
    queue = served.workspace.root / "labels" / "queues" / "q.jsonl"
    write_records(queue, [{"pair": ResponsePair(asked, "So.", "Not so.", "sampled", Provenance("m"))}])
    served.enter()
    key = served.post("/label/q-jsonl/next", rater="ann")["key"]
    for rater in ("ann", "ben", "eve"):  # of three, two see the same text first, or all
        served.post("/label/q-jsonl/answer", rater=rater, key=key, choice="a", note="A note.")
    paths = ["/", "/constitutions/mine", "/constitutions/mine/principles/short", "/constitutions/mine/principles/kind"]
    paths += ["/label", "/label/q-jsonl?rater=ann&guide=mine", "/label/q-jsonl/results", "/runs/r1", "/constitutions/none"]
    found = {path: broken_rules(as_sent(served, path), tmp_path, *flags) for path in paths}
    assert min(passed for passed, _ in found.values()) > 5
    assert {path: broken for path, (_, broken) in found.items() if broken} == {}


def test_a_page_that_breaks_a_rule_is_found(tmp_path: Path) -> None:
    page = '<!doctype html><html lang="en"><head><title>x</title></head><body><input><p style="color:#aaa">pale</p></body></html>'
    assert {rule for rule, _ in broken_rules(page, tmp_path)[1]} == {"color-contrast", "label"}
