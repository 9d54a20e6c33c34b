"""A page in a real browser, for tests of what only a browser does: layout, scripts of pages, mouse and keyboard."""

import contextlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = [f"--{flag}" for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-quic", "disable-background-networking")]
needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no Playwright here"),
]


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Open this machine's browser, and close it at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


def title_after_load(page: Path, width: int = 1280, flags: Sequence[str] = ()) -> str:
    """Return the title that a page has given itself when it was loaded.

    Args:
        page: an HTML file; the browser's profile is put beside it.
        width: width of the window in pixels.
        flags: the browser's, without their dashes.
    """
    own = [
        f"--user-data-dir={page.parent / 'browser'}",
        f"--window-size={width},900",
        *(f"--{flag}" for flag in flags),
        "--dump-dom",
        page.as_uri(),
    ]
    dom = subprocess.run([str(BROWSER), *FLAGS, *own], check=True, capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    return unescape(title[1])
