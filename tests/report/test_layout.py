"""The report in a browser: nothing is cut off at usual widths, on screen or on paper."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.report.collect import collect_report
from cai.report.page import render_report
from tests.browser import needs_browser, open_browser, title_after_load
from tests.report.run_directory import write_run

pytestmark = [*needs_browser, pytest.mark.enable_socket]

LOOK = """<script>addEventListener("load", () => {
  const cut = [], of = (e) => getComputedStyle(e).overflowX;
  const boxes = [...document.querySelectorAll("body *:not(svg *)")];
  const inside = (e) => boxes.some((b) => b !== e && of(b) !== "visible" && b.contains(e));
  const tell = (why, e) => cut.push(`${why}: ${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 30)}`);
  for (const e of boxes) {
    const box = e.getBoundingClientRect();
    if (!box.width || !box.height || e.classList.contains("visually-hidden")) continue;
    if (box.right > innerWidth + 1 && !inside(e)) tell("beyond the page", e);
    if (of(e) !== "visible" && e.scrollWidth > e.clientWidth + 1) tell("wider than its box", e);
    if (PAPER && e.matches(".text") && e.scrollHeight > e.clientHeight + 1) tell("longer than its box", e);
  }
  document.title = JSON.stringify([innerWidth, cut]);
});</script></head>"""


@pytest.fixture
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def cut_off(html: str, width: int, folder: Path, paper: bool = False) -> tuple[int, list[str]]:
    """Return the page's width in a browser, and its elements that are cut off. All foldable parts are open."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("<details", "<details open")
    page = page.replace("</head>", LOOK.replace("PAPER", str(paper).lower()), 1)
    file = folder / "page.html"
    file.write_text(page.replace("@media print", "@media all") if paper else page)
    shown, cut = json.loads(title_after_load(file, width))
    return shown, cut


@pytest.mark.parametrize("width", [1280, 1100, 700])
def test_nothing_is_cut_off_on_a_screen(tmp_path: Path, width: int) -> None:
    html = render_report(collect_report(write_run(tmp_path / "run", "A fairly long answer. " * 60)))
    assert cut_off(html, width, tmp_path) == (width, [])


def test_nothing_is_cut_off_on_paper(tmp_path: Path) -> None:
    html = render_report(collect_report(write_run(tmp_path / "run", "A fairly long answer. " * 60)))
    assert cut_off(html, 700, tmp_path, paper=True) == (700, [])


def test_the_contents_mark_the_section_that_is_read(tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "page.html"
    file.write_text(render_report(collect_report(write_run(tmp_path / "run"))))
    tab = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    tab.goto(file.as_uri())
    marked = "[...document.querySelectorAll('nav a')].filter((a) => getComputedStyle(a).fontWeight === '650').map((a) => a.hash)"
    for link in tab.locator("nav a:not([href='#next'])").all():
        link.click()
        tab.wait_for_function(f"({marked}).join() === '{link.get_attribute('href')}'")
    tab.close()
