"""Plug-in registry: judging protocols, reward terms, policy methods, audit checks and formats, from `cai` and from other packages.

Each kind has a folder in `cai`. A module in it declares one plug-in, and its file name is the plug-in's name: `pairwise_cot.py` declares
`pairwise-cot`. An installed package adds plug-ins through an entry point:

    [project.entry-points."cai.protocols"]
    shorter = "my_package.shorter:PROTOCOL"

Names are listed without an import, so recipes are validated quickly. A plug-in is imported when it is first used. One that can't be
imported, or that has the same name as another, raises a `RecipeError` that names its package.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from cai.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of plug-in."""

    what: str
    """Name of the kind in messages."""
    group: str
    """Group of the entry points."""
    folder: str
    """Package that holds the built-in plug-ins."""
    attribute: str
    """Name of the variable that a built-in module declares."""


PROTOCOL = Kind("judging protocol", "cai.protocols", "cai.judge.protocols", "PROTOCOL")
REWARD_TERM = Kind("reward term", "cai.reward_terms", "cai.train.rl.terms", "TERM")
POLICY_METHOD = Kind("policy method", "cai.policy_methods", "cai.pipeline.methods", "METHOD")
AUDIT_CHECK = Kind("audit check", "cai.checks", "cai.evaluate.audit.checks", "CHECKS")
PROMPT_FORMAT = Kind("prompt format", "cai.prompt_formats", "cai.data.prompt_formats", "FORMAT")
EXPORT_FORMAT = Kind("export format", "cai.export_formats", "cai.data.export_formats", "FORMAT")
PAIR_FORMATS = Kind("family of pair formats", "cai.pair_formats", "cai.labels.formats", "FORMATS")
KINDS = {kind.group: kind for kind in (PROTOCOL, REWARD_TERM, POLICY_METHOD, AUDIT_CHECK, PROMPT_FORMAT, EXPORT_FORMAT, PAIR_FORMATS)}


def names_of(kind: Kind) -> tuple[str, ...]:
    """Return all names of a kind: the built-in ones, then those of installed packages, each in alphabetical order."""
    own = own_names(kind)
    return (*own, *sorted({entry.name for entry in _entries(kind)} - set(own)))


@cache
def own_names(kind: Kind) -> tuple[str, ...]:
    """Return the built-in names, without importing their modules."""
    spec = find_spec(kind.folder)
    assert spec is not None and spec.submodule_search_locations is not None
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(list(spec.submodule_search_locations))))


def unknown(kind: Kind, name: str) -> str:
    """Return the error message for an unknown name: it lists the known names and suggests the closest one."""
    known = names_of(kind)
    return f"no {kind.what} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a sentence that suggests the closest known name; empty if none is close.

    >>> did_you_mean("pairwize", ("pairwise", "pointwise"))
    ". Did you mean 'pairwise'?"
    """
    close = get_close_matches(name, known, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """All plug-ins of one kind.

    Args:
        declared: class of the declarations, which has a `name`.
    """

    def __init__(self, kind: Kind, declared: type[T]) -> None:
        self.kind = kind
        self.declared = declared
        self._loaded: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """Return all names, as `names_of` does."""
        return names_of(self.kind)

    def get(self, name: str) -> T:
        """Return the plug-in of a name.

        Raises:
            RecipeError: the name is unknown, two packages declare it, or the plug-in can't be loaded.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def all(self) -> tuple[T, ...]:
        """Return all plug-ins, in the order of their names. Raises as `get` does."""
        return tuple(self.get(name) for name in self.names())

    def _load(self, name: str) -> T:
        own, entries = name in own_names(self.kind), [entry for entry in _entries(self.kind) if entry.name == name]
        if len(entries) + own > 1:
            owners = ", ".join([*(["cai"] if own else []), *map(_package, entries)])
            raise RecipeError(
                f"{self.kind.what} {name!r} is declared by {owners}. A name has one owner: "
                f"uninstall {_package(entries[-1])}, or have it choose another name"
            )
        if own:
            module = import_module(f"{self.kind.folder}.{name.replace('-', '_')}")
            found, where = getattr(module, self.kind.attribute), module.__name__
        elif entries:
            found, where = self._from_package(entries[0]), f"{_package(entries[0])}: {entries[0].value}"
        else:
            raise RecipeError(unknown(self.kind, name))
        if not isinstance(found, self.declared):
            raise RecipeError(f"{where}: {self.kind.what} {name!r} is of type {type(found).__name__}; expected {self.declared.__name__}")
        if (declared := getattr(found, "name", None)) != name:
            raise RecipeError(f"{where}: {self.kind.what} {name!r} calls itself {declared!r}. Give both the same name")
        return found

    def _from_package(self, entry: EntryPoint) -> object:
        try:
            found: object = entry.load()
        except Exception as e:  # a plug-in's import can raise anything
            raise RecipeError(
                f"{self.kind.what} {entry.name!r} of {_package(entry)} can't be loaded from {entry.value}: {type(e).__name__}: {e}. "
                "Repair that package or uninstall it"
            ) from e
        return found


@cache
def _installed() -> Any:
    """Return all entry points, read once; their type differs between versions of Python."""
    return entry_points()


@cache
def _entries(kind: Kind) -> tuple[EntryPoint, ...]:
    return tuple(sorted(_installed().select(group=kind.group), key=lambda entry: (entry.name, _package(entry))))


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
