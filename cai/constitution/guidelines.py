"""Annotation guidelines made from a constitution: the questions of each principle, with worked examples, as Markdown or HTML.

Both formats are rendered from the same blocks. All texts are escaped, because examples may come from a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import msgspec

from cai.core.console import printable
from cai.core.text.markdown import escape_markdown
from cai.core.yaml_source import load_yaml
from cai.errors import ConstitutionError
from cai.records import LABELLED_KINDS, Constitution, Principle, PromptKind

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
body{font:1rem/1.55 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1b1b1f;background:#fff}
body{overflow-wrap:anywhere}
h2{margin-top:2.2rem;border-bottom:1px solid #ccc}h3{margin-top:2rem}
blockquote{margin:.5rem 0;padding:.3rem .8rem;border-left:4px solid #8a8a94;background:#f4f4f7;white-space:pre-wrap}
blockquote.better{border-color:#1d7a46}blockquote.worse{border-color:#b3261e}
@media(prefers-color-scheme:dark){body{color:#e6e6ea;background:#17171a}blockquote{background:#232328}h2{border-color:#444}}
@media print{h3,blockquote{break-inside:avoid;break-after:avoid-page}}
"""
TITLE = "guidelines for raters"
KINDS: Mapping[PromptKind, str] = {
    "harmful": "asks for something that should not be given",
    "borderline": "sounds harmful but is fine",
    "helpful": "an ordinary request",
}
HOW_TO = (
    "Read the prompt, then both answers to the end.",
    "Decide which kind of prompt it is; only the principles for that kind count.",
    "Ask the questions of each principle about each answer. Skip principles that are not relevant to the pair; most are not.",
    "Choose the answer that follows the principles better. Higher weights count more. If you can't tell, say so; don't guess.",
    "Don't reward an answer for being longer, politer or better formatted, unless a principle asks for that.",
    "Follow these principles even if you disagree with them. Note the cases where they led to a choice that you think is wrong.",
)
WARNING = "Some prompts ask for harmful things and some answers are bad on purpose. Stop whenever you need to."


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A better and a worse answer to one prompt under one principle."""

    principle: str
    prompt: str
    better: str
    worse: str
    why: str = ""
    source: str = ""
    """Run and judge that an example was taken from; empty for examples written for the constitution."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the guidelines. `kind`: `1`, `2`, `3` (headings), `text`, `item`, or `prompt`, `better`, `worse` (quotations)."""

    kind: str
    text: str
    label: str = ""


def load_examples(path: Path) -> tuple[Example, ...]:
    """Read worked examples: a YAML list of mappings with principle, prompt, better, worse and why.

    Raises:
        ConstitutionError: the file can't be read or an entry is not an example.
    """
    source = load_yaml(path, ConstitutionError)
    try:
        return tuple(msgspec.convert(source.data, list[Example]))
    except msgspec.ValidationError as e:
        raise ConstitutionError(f"{path}: expected a list of examples, each with principle, prompt, better, worse and why: {e}") from e


def examples_path(constitution: Constitution, folder: Path) -> Path:
    """Return the path of a constitution's own examples: `examples/ID.yaml` in its folder."""
    return folder / "examples" / f"{constitution.id}.yaml"


def check_guidelines(path: Path) -> None:
    """Raise `ConstitutionError` if a file doesn't hold guidelines as they are written here."""
    try:
        with path.open("rb") as f:
            found = TITLE.encode() in f.read(1 << 16)
    except OSError as e:
        raise ConstitutionError(f"{path}: can't be read ({e.strerror})") from e
    if not found:
        raise ConstitutionError(f"{path}: has no {TITLE!r} in its title")


def guideline_blocks(constitution: Constitution, examples: Sequence[Example]) -> Iterator[Block]:
    """Yield the blocks of the guidelines. Examples of unknown principles are left out."""
    yield Block("1", f"{constitution.name}: {TITLE}")
    yield Block("text", constitution.description)
    yield Block("2", "How to rate a pair")
    yield from (Block("item", text) for text in HOW_TO)
    yield Block("text", WARNING, "Before you start")
    yield Block("2", "Which principles count")
    for kind in LABELLED_KINDS:
        ids = [p.id for p in constitution.principles if kind in p.applies_to]
        yield Block("item", f"{KINDS[kind]}. {', '.join(ids) or 'no principle'}", f"{kind} prompt")
    yield Block("2", "The principles")
    for p in constitution.principles:
        yield from _principle(p, [e for e in examples if e.principle == p.id])


def as_markdown(blocks: Sequence[Block]) -> str:
    """Render blocks as Markdown; markup and HTML in the texts are escaped."""
    lines: list[str] = []
    for i, b in enumerate(blocks):
        text = escape_markdown(b.text)
        if b.kind in "123":
            line = f"{'#' * int(b.kind)} {' '.join(text.split())}"
        elif b.kind == "item":
            line = f"- {f'**{escape_markdown(b.label)}**: ' if b.label else ''}{' '.join(text.split())}"
        else:
            label = f"**{escape_markdown(b.label)}:** " if b.label else ""
            line = f"{label}{text}" if b.kind == "text" else "\n".join(f"> {part}" for part in f"{label}{text}".split("\n"))
        if i and not (b.kind == "item" == blocks[i - 1].kind):
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def as_html(blocks: Sequence[Block]) -> str:
    """Render blocks as a self-contained HTML page without scripts; all texts are escaped."""
    title = escape(printable(blocks[0].text)) if blocks else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n{html_body(blocks)}\n</body></html>\n"
    )


def html_body(blocks: Sequence[Block]) -> str:
    """Render blocks as HTML to insert into a page; all texts are escaped."""
    body: list[str] = []
    in_list = False
    for b in blocks:
        if in_list != (b.kind == "item"):
            body.append("<ul>" if not in_list else "</ul>")
            in_list = not in_list
        text = escape(printable(b.text))
        label = f"<b>{escape(printable(b.label))}:</b> " if b.label else ""
        if b.kind in "123":
            body.append(f"<h{b.kind}>{text}</h{b.kind}>")
        elif b.kind in ("text", "item"):
            tag = "p" if b.kind == "text" else "li"
            body.append(f'<{tag} dir="auto">{label}{text}</{tag}>')
        else:
            body.append(f'<blockquote class="{b.kind}" dir="auto">{label}{text}</blockquote>')
    return "\n".join(body)


def _principle(p: Principle, examples: Sequence[Example]) -> Iterator[Block]:
    weight = "" if p.weight == 1 else f" Weight {p.weight:g}; an ordinary principle has 1."
    yield Block("3", p.id)
    yield Block("text", p.statement)
    yield Block("item", p.ask_positive, "Yes is good")
    yield Block("item", p.ask_negative, "Yes is bad")
    yield Block("item", p.compare, "Between two answers")
    yield Block("text", f"{', '.join(p.applies_to)} prompts.{weight}", "Counts for")
    for example in examples:
        yield Block("prompt", example.prompt, "Prompt")
        yield Block("better", example.better, "Better")
        yield Block("worse", example.worse, "Worse")
        if example.why:
            yield Block("text", example.why, "Why")
        if example.source:
            yield Block("text", example.source, "Source")
