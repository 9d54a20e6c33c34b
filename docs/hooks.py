"""Makes what the site takes from elsewhere: command line, Python API, recipe settings, changelog, list of decisions.

mkdocs calls the functions below by their names. Nothing here is copied by hand: commands come from the typer app, public names from
`cai.__all__`, settings from `cai/recipe/`, the changelog from CHANGELOG.md, and decisions from the files in `docs/decisions/`.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COMMANDS, NAMES, SETTINGS, DECISIONS = "<!-- commands -->", "<!-- public names -->", "<!-- settings -->", "<!-- decisions -->"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each entry of the navigation that has a `*` by the pages that match it."""
    config.nav = _expanded(config.nav or [], Path(config.docs_dir))
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the changelog, whose links start at the root of the repository."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/serving)", "](servers.md)")
    files.append(File.generated(config, "changelog.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page leaves to its source."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(_commands()))
    if NAMES in markdown:
        markdown = markdown.replace(NAMES, "\n".join(_public_names()))
    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, "\n".join(_settings()))
    if DECISIONS in markdown:
        markdown = markdown.replace(DECISIONS, "\n".join(_decisions(Path(config.docs_dir) / "decisions")))
    return markdown


def _expanded(nav: Any, docs: Path) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(entry, docs) for title, entry in nav.items()}
    if not isinstance(nav, list):
        return nav
    pages: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and "*" in entry:
            pages += sorted(p.relative_to(docs).as_posix() for p in docs.glob(entry))
        else:
            pages.append(_expanded(entry, docs))
    return pages


def _commands() -> list[str]:
    """Markdown of every command that isn't hidden: what it does, how it is called, its arguments and options."""
    import typer.main

    from cai.cli import app, audits, constitution_trials, constitutions, human, models, prompts, runs, studio  # noqa: F401 - importing registers their commands

    lines: list[str] = []

    def add(command: Any, parent: Any, level: int) -> None:
        context = command.make_context(command.name, [], parent=parent, resilient_parsing=True)
        lines.extend([f"{'#' * level} `{context.command_path}`", "", command.help or "", ""])
        children = [c for c in getattr(command, "commands", {}).values() if not c.hidden]
        if not children:
            lines.extend(["```console", f"$ {context.command_path} {' '.join(command.collect_usage_pieces(context))}", "```", ""])
        records = [p.get_help_record(context) for p in command.get_params(context) if not getattr(p, "hidden", False)]
        rows = [(name.replace("|", r"\|"), (text or "").replace("|", r"\|")) for name, text in filter(None, records)]
        rows = [(name, text) for name, text in rows if not name.startswith("-h") and "--help" not in name]
        if rows:
            lines.extend(["| | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in rows), ""])
        for child in children:
            add(child, context, level + 1)

    root = typer.main.get_command(app)
    context = root.make_context("cai", [], resilient_parsing=True)
    for command in sorted((c for c in root.commands.values() if not c.hidden), key=lambda c: c.name):  # type: ignore[attr-defined]
        add(command, context, 2)
    return lines


def _public_names() -> list[str]:
    """An identifier for mkdocstrings for each name in `cai.__all__`, and for the records and errors that aren't in it."""
    package, errors = _visited("cai"), _visited("cai.errors")
    paths = {str(name): package.members[str(name)].target_path for name in package.exports or ()}
    of = {module: [p for p in paths.values() if p.startswith(f"{module}.")] for module in ("cai.recipe", "cai.records", "cai.errors")}
    all_records = [f"cai.records.{name}" for name, value in _members("cai.records").items() if value.is_class]
    parts = {
        "Sessions, runs and training": [p for p in paths.values() if not any(p in those for those in of.values())],
        "Records": of["cai.records"],
        "Other records": [p for p in all_records if p not in of["cai.records"]],
        "Errors": [f"cai.errors.{name}" for name, value in errors.members.items() if not value.is_alias and value.is_class],
    }
    settings = [name for name, path in paths.items() if path in of["cai.recipe"] and name[0].isupper()]
    lines = [line for title, names in parts.items() if names for line in (f"## {title}", "", *(f"::: {name}\n" for name in names))]
    if settings:
        lines += ["## Settings", "", ", ".join(f"[`{name}`](recipe.md#{name.lower()})" for name in settings), ""]
    return [*lines, "::: cai.recipe.load_recipe", ""]


def _visited(module: str) -> Any:
    """A module's names, types and docstrings, read from its source: nothing is imported."""
    import griffe

    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return griffe.visit(module, filepath=file, code=file.read_text(encoding="utf-8"))


def _members(package: str) -> dict[str, Any]:
    """What the modules of a package define, by name."""
    modules = sorted(p.stem for p in ROOT.joinpath(*package.split(".")).glob("*.py"))
    visited = (_visited(f"{package}.{module}") for module in modules if module != "__init__")
    return {name: value for module in visited for name, value in module.members.items() if not value.is_alias}


def _settings() -> list[str]:
    """A table for each block of a recipe, read from the types in `cai/recipe/`: setting, type, default, meaning."""
    import griffe

    members = _members("cai.recipe")
    blocks = {n: c for n, c in members.items() if isinstance(c, griffe.Class) and n not in ("Recipe", "Section")}
    lines = []
    for name, block in {"Recipe": members["Recipe"], **blocks}.items():
        lines.extend([f"## {name}", "", block.docstring.value if block.docstring else "", ""])
        parents = [str(base) for base in block.bases if str(base) in blocks]
        lines.extend(f"It also has the settings of [{parent}](#{parent.lower()}), unless listed here.\n" for parent in parents)
        fields = [a for a in block.members.values() if isinstance(a, griffe.Attribute) and "property" not in a.labels]
        if fields:
            lines.extend(["| setting | type | default | |", "|---|---|---|---|"])
        for field in fields:
            links = [f"[{n}](#{n.lower()})" for n in re.findall(r"\w+", str(field.annotation)) if n in blocks]
            kind = ", ".join(links) or f"`{_readable(str(field.annotation))}`"
            value = str(field.value).replace("UNSET", "none")
            default = "required" if field.value is None else "" if links and "(" in value else f"`{value}`"
            meaning = " ".join(field.docstring.value.split()).replace("|", r"\|") if field.docstring else ""
            lines.append(f"| `{field.name}` | {kind} | {default} | {meaning} |")
        lines.append("")
    aliases = {n: a for n, a in members.items() if isinstance(a, griffe.Attribute) and _is_choice(str(a.value))}
    lines.extend(["## Types", "", "| type | values |", "|---|---|"])
    return [*lines, *(f"| `{name}` | `{_readable(str(alias.value))}` |" for name, alias in aliases.items()), ""]


def _is_choice(value: str) -> bool:
    return bool(re.search(r"Literal|Annotated", value)) and "extra_json_schema" not in value


def _readable(annotation: str) -> str:
    """A type as people read it: `Annotated[int, Meta(ge=1)] | None` is `int (ge=1) or None`, and `Literal['a', 'b']` is `a, b`."""
    annotation = annotation.replace("OwnSettings", "mapping")
    text = re.sub(r"Annotated\[(.+?), Meta\((.*?)\)\]", r"\1 (\2)", annotation)
    return re.sub(r"Literal\[(.+?)\]", r"\1", text).replace("'", "").replace("|", "or")


def _decisions(folder: Path) -> list[str]:
    """A list item for each decision, titled as its page is."""
    pages = sorted(folder.glob("0*.md"))
    titles = [p.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ") for p in pages]
    return [f"- {p.name[:4]} [{title}]({p.name})" for p, title in zip(pages, titles, strict=True)]
