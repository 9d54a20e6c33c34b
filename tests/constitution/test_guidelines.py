"""Guidelines say what the constitution says, twice the same, and no text in them can become markup."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cai.constitution.guidelines import Block, Example, as_html, as_markdown, examples_path, guideline_blocks, load_examples
from cai.constitution.load import load_constitution
from cai.errors import ConstitutionError

ROOT = Path(__file__).parents[2]
GENERAL = load_constitution(ROOT / "constitution" / "general.yaml")
NASTY = "<script>alert(1)</script> <img src=x onerror=y>\n# not a heading\n- not an item\n1. nor this\n[a](javascript:x) **b** `c` \x1b[2J"


def test_every_principle_of_the_shipped_constitution_has_a_worked_example() -> None:
    examples = load_examples(examples_path(GENERAL, ROOT / "constitution"))
    assert [e.principle for e in examples] == [p.id for p in GENERAL.principles]
    assert all(e.better != e.worse and e.why and e.prompt for e in examples)


def test_all_of_a_principle_is_there() -> None:
    heavy = replace(GENERAL.principles[0], weight=2.5, applies_to=("harmful", "helpful"))
    constitution = replace(GENERAL, principles=(heavy,))
    text = as_markdown(list(guideline_blocks(constitution, [Example(heavy.id, "P?", "B.", "W.", "Y."), Example("gone", "X", "X", "X")])))
    assert all(field in text for field in (heavy.statement, heavy.ask_positive, heavy.ask_negative, heavy.compare))
    assert all(shown in text for shown in ("> **Better:** B.", "> **Worse:** W.", "**Why:** Y."))
    assert "harmful, helpful prompts. Weight 2.5" in text and "gone" not in text
    assert "no principle" in text, "nothing counts for borderline prompts"


def blocks() -> list[Block]:
    constitution = replace(GENERAL, name=NASTY, description=NASTY, principles=(replace(GENERAL.principles[0], statement=NASTY),))
    return list(guideline_blocks(constitution, [Example(constitution.principles[0].id, NASTY, NASTY, NASTY, NASTY, NASTY)]))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_escapes_everything_and_closes_what_it_opens() -> None:
    page = as_html(blocks())
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert tags.seen == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "b", "blockquote"}
    assert not {name for name in tags.attributes if name.startswith("on")} and "src" not in tags.attributes
    assert "\x1b" not in page and "default-src 'none'" in page
    assert unescape(page).count("alert(1)") >= 7


def test_markdown_escapes_everything() -> None:
    text = as_markdown(blocks())
    assert "\x1b" not in text
    plain = re.sub(r"\\.", "", text)
    assert "<" not in plain and "](" not in plain and "`" not in plain
    assert len(re.findall(r"(?m)^#+ ", text)) == 5, "title, three sections, one principle"
    assert not re.search(r"(?m)^(> )?(- not|1\. nor|# not)", text)


def test_both_forms_say_the_same() -> None:
    examples = load_examples(examples_path(GENERAL, ROOT / "constitution"))
    all_blocks = list(guideline_blocks(GENERAL, examples))
    page, text = unescape(as_html(all_blocks)), as_markdown(all_blocks).replace("\\", "")
    for b in all_blocks:
        assert b.text in page and " ".join(b.text.split()) in " ".join(text.split())


def test_an_example_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("- principle: a\n  prompt: b\n  better: c\n")
    with pytest.raises(ConstitutionError, match="worse"):
        load_examples(path)
    with pytest.raises(ConstitutionError, match=r"none\.yaml"):
        load_examples(tmp_path / "none.yaml")
