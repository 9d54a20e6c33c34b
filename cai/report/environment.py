"""Template engine for all HTML output: texts are escaped, and invisible characters are made visible."""

from importlib import resources

from jinja2 import DictLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from cai.core.manifest import counts_in_words
from cai.report.formatting import duration, number, percent, plural, signed, visible, word_changes

CLIP_CHARACTERS = 700
CLIP_LINES = 12


def html_environment(*packages: str) -> SandboxedEnvironment:
    """Return an environment with the templates of these packages; a later package overrides templates of the same name."""
    names = {f.name: package for package in packages for f in resources.files(package).joinpath("templates").iterdir()}
    environment = SandboxedEnvironment(
        loader=DictLoader({name: read_asset(package, name) for name, package in names.items() if name.endswith(".j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (percent, number, duration, plural, signed, counts_in_words)
    environment.filters |= {f.__name__: f for f in formats}
    environment.globals["word_changes"] = word_changes
    environment.tests |= {"long": is_long}
    return environment


def read_asset(package: str, name: str) -> str:
    """Return the text of a file in a package's templates."""
    return resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")


def is_long(text: str) -> bool:
    """Return whether a text is long enough to be collapsed. One click shows all of it."""
    return len(text) > CLIP_CHARACTERS or text.count("\n") >= CLIP_LINES
