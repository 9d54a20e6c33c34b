"""The editor's highlighting, in a browser: it shows the text as it is, and tells keys, comments and quoted texts apart."""

import json
from pathlib import Path

import cai.studio
from tests.browser import needs_browser, title_after_load
from tests.workspaces import ROOT

pytestmark = needs_browser
SCRIPT = Path(cai.studio.__file__).parent / "static" / "yaml.js"
SAMPLE = """\
# top
id: mine  # after
principles:
  - id: a-b
    statement: >-
      Note: no key # and no comment

      "nothing" here
    compare: "Is it: yes # or no?"
    check: { max_words: 3, contains_any: ['it''s', "b"] }
    source: http://x#y, don't "cite": it
\ttab\u00a0\u202e<b>&amp;</b>
"""
SHOWN = """
const rows = painted(text);
const pieces = rows.flatMap((row) => [...row.children].map((span) => [span.className, span.textContent]));
document.title = JSON.stringify([rows.map((row) => row.textContent).join("\\n") === text, pieces]);
"""


def painted(text: str, folder: Path) -> tuple[bool, list[tuple[str, str]]]:
    """Return whether the highlighted text is the text, and its highlighted pieces with their kinds."""
    script = SCRIPT.read_text().replace("export function", "function")
    data = json.dumps(text).replace("<", "\\u003c")
    page = folder / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title></title><script>{script}\nconst text = {data};{SHOWN}</script>")
    same, pieces = json.loads(title_after_load(page))
    return same, [(kind, piece) for kind, piece in pieces]


def test_keys_comments_and_quoted_texts_are_told_apart(tmp_path: Path) -> None:
    same, pieces = painted(SAMPLE, tmp_path)
    assert same
    found = {kind: [piece for k, piece in pieces if k == kind] for kind, _ in pieces}
    assert found == {
        "comment": ["# top", "# after"],
        "field-name": ["id", "principles", "id", "statement", "compare", "check", "source"],
        "quoted": ['"Is it: yes # or no?"', "'it''s'", '"b"'],
    }


def test_every_shipped_constitution_is_shown_as_it_is(tmp_path: Path) -> None:
    files = sorted((ROOT / "constitution").glob("*.yaml"))
    assert len(files) >= 5
    same, pieces = painted("\n".join(file.read_text() for file in files), tmp_path)
    assert same and ("field-name", "principles") in pieces
