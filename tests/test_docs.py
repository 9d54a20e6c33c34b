"""What the documents name exists: links, anchors, commands with their options, make targets, rooms. `make docs` checks the site's links."""

import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from cai import recipe
from cai.cli import app, audits, constitution_trials, constitutions, human, judges, models, prompts, runs, studio  # noqa: F401 - importing registers their commands
from cai.core.plugins import POLICY_METHOD, PROTOCOL, REWARD_TERM, Kind, own_names
from tests.floors import FLOORS
from tests.workspaces import ROOT

README = ROOT / "README.md"
DATED = {ROOT / "docs" / "log.md"}
"""Pages whose commands are those of their day."""
PAGES = sorted({README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")} - DATED)
CALL = re.compile(r"(?:^\s*\$?\s*|`|&& |-m )cai (?P<rest>[a-z-][^`\n&]*)", re.MULTILINE)
LINK = re.compile(r"\]\((?P<file>[^)\s#:]*)(?:#(?P<anchor>[^)\s]+))?\)")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.strip().lower())) for title in titles}


def calls(text: str) -> Iterator[list[str]]:
    """The arguments of each `cai …` that a page shows, without comments."""
    for match in CALL.finditer(text):
        yield shlex.split(match["rest"], comments=True)


@functools.cache
def root() -> Any:
    return typer.main.get_command(app)


def problem(arguments: list[str]) -> str | None:
    """What is wrong with a call: no such command, or no such option. Hidden ones don't count: they only say what to use instead."""
    command = root()
    words = list(arguments)
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        name = words.pop(0)
        command = command.commands.get(name)
        if command is None or command.hidden:
            return f"cai {' '.join(arguments)}: no command {name}"
    known = {option for p in command.params if not getattr(p, "hidden", False) for option in (*p.opts, *p.secondary_opts)}
    unknown = [w for w in words if re.match(r"--?[a-z]", w) and w.split("=")[0] not in {*known, "--help"}]
    return f"cai {' '.join(arguments)}: no option {', '.join(unknown)}" if unknown else None


def test_the_readme_is_at_most_a_thousand_words() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1000


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md"], ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    links = [(m["file"], m["anchor"]) for m in LINK.finditer(page.read_text(encoding="utf-8"))]
    assert links or page != README
    missing = [file for file, _ in links if not (page.parent / file).exists()]
    assert missing == []
    assert [f"{file}#{anchor}" for file, anchor in links if anchor and anchor not in anchors(page.parent / file if file else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_command_that_is_named_exists(page: Path) -> None:
    assert [p for p in map(problem, calls(page.read_text(encoding="utf-8"))) if p] == []


def test_missing_commands_and_options_are_noticed() -> None:
    text = "    cai run X --sett a=b   # no\n$ cai judge bench --pairs x\nas `cai audits RUN` and `cai judge try`, `torchrun -m cai run R`"
    assert [p and p.split(": ")[1] for p in map(problem, calls(text))] == [
        "no option --sett",
        None,
        "no command audits",
        "no command try",
        None,
    ]
    assert len(list(calls(README.read_text(encoding="utf-8")))) >= 8


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"(?:`|^\s*\$?\s*)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)}
    assert {"quickstart", "docs"} <= named <= targets


def test_contributing_has_every_room_and_its_floor() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d–]+) \| ((?:`[\w/]+`(?:, )?)+) \|", text, re.MULTILINE)
    first = [(int(floors.split("–")[0]), "–" in floors, re.findall(r"[\w/]+", rooms)) for floors, rooms in rows]
    shown = [(floor + i * one_each, room) for floor, one_each, rooms in first for i, room in enumerate(rooms)]
    assert sorted(shown) == sorted((floor, room.rstrip("/")) for floor, rooms in FLOORS.items() for room in rooms.split())
    tree = set(re.findall(r"^        (\w+)/ ", text, re.MULTILINE))
    assert tree == {p.parent.name for p in (ROOT / "cai").glob("*/__init__.py")}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(hooks: ModuleType, markdown: str) -> str:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

    config = MkDocsConfig()
    config.docs_dir = str(ROOT / "docs")
    return str(hooks.on_page_markdown(markdown, page=None, config=config, files=Files([])))


def test_the_command_line_page_has_every_command_and_no_hidden_one(hooks: ModuleType) -> None:
    page = fill(hooks, "<!-- commands -->")
    for name, command in root().commands.items():
        assert (f"\n## `cai {name}`\n" in f"\n{page}") is not command.hidden, name
    assert "\n### `cai judge bench`\n" in page and "| `--pairs <path>` |" in page and "--shard" not in page


def test_the_api_page_documents_records_and_errors_once(hooks: ModuleType) -> None:
    names = re.findall(r"^::: (\S+)$", fill(hooks, "<!-- public names -->"), re.MULTILINE)
    assert {"cai.records.Principle", "cai.records.Preference", "cai.errors.CaiError"} <= set(names)
    assert len(names) == len(set(names))


def test_the_navigation_has_every_decision(hooks: ModuleType) -> None:
    page = fill(hooks, "<!-- decisions -->")
    listed = re.findall(r"^- \d{4} \[[A-Z]\D.*\]\((0\S+\.md)\)$", page, re.MULTILINE)
    assert listed == sorted(p.name for p in (ROOT / "docs" / "decisions").glob("0*.md")) and len(listed) >= 20


@pytest.mark.parametrize(("kind", "page"), [(PROTOCOL, "judging"), (REWARD_TERM, "training"), (POLICY_METHOD, "training")])
def test_the_guide_that_a_setting_points_to_lists_every_name(kind: Kind, page: str) -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "guides" / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(own_names(kind)) <= set(rows)


def test_the_recipe_page_has_every_setting(hooks: ModuleType) -> None:
    page = fill(hooks, "<!-- settings -->")
    blocks = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for name, block in vars(recipe).items():
        if isinstance(block, type) and issubclass(block, recipe.Section) and block is not recipe.Section:
            own = list(block.__annotations__)
            assert re.findall(r"^\| `(\w+)` \|", blocks[name], re.MULTILINE) == own, name
    assert "| `prompt_price` | `float (ge=0)` | `0.0` | US dollars" in blocks["ModelSpec"]
    assert "| `Aggregate` | `mean, min, uncertainty` |" in blocks["Types"]
