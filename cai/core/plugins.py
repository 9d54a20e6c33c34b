"""Declarations by name: judging protocols, reward terms, policy methods, audit checks. One file each, of `cai` or of another package.

Each kind has a folder. A module in it declares one thing, and its file name is the name: `pairwise_cot.py` has `pairwise-cot`. Nothing
else lists it. An installed package adds its own through an entry point of the kind's group:

    [project.entry-points."cai.protocols"]
    shorter = "my_package.shorter:PROTOCOL"

Names are known without importing anything, so that a recipe is checked quickly. A declaration is imported when it is asked for; a plug-in
that can't be imported, or that takes a name of `cai` or of another package, is then a `RecipeError` that names its package.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Generic, TypeVar

from cai.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of things that can be added by a file."""

    what: str
    """For messages."""
    group: str
    """Of entry points."""
    folder: str
    """The package whose modules are those that `cai` brings."""
    attribute: str
    """What such a module declares."""


PROTOCOL = Kind("judging protocol", "cai.protocols", "cai.judge.protocols", "PROTOCOL")
REWARD_TERM = Kind("reward term", "cai.reward_terms", "cai.train.rl.terms", "TERM")
POLICY_METHOD = Kind("policy method", "cai.policy_methods", "cai.pipeline.methods", "METHOD")
AUDIT_CHECK = Kind("audit check", "cai.checks", "cai.evaluate.audit.checks", "CHECKS")
KINDS = {kind.group: kind for kind in (PROTOCOL, REWARD_TERM, POLICY_METHOD, AUDIT_CHECK)}


def names_of(kind: Kind) -> tuple[str, ...]:
    """Return every name of a kind: those that `cai` brings, then those of installed packages, each in alphabetical order."""
    own = own_names(kind)
    return (*own, *sorted({entry.name for entry in _entries(kind)} - set(own)))


@cache
def own_names(kind: Kind) -> tuple[str, ...]:
    """Return the names that `cai` brings itself, without importing their modules."""
    spec = find_spec(kind.folder)
    assert spec is not None and spec.submodule_search_locations is not None
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(list(spec.submodule_search_locations))))


def unknown(kind: Kind, name: str) -> str:
    """Say that there is no such name, which there are, and which of them was perhaps meant."""
    known = names_of(kind)
    return f"no {kind.what} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a sentence with the known name that is most like one; empty where none is.

    >>> did_you_mean("pairwize", ("pairwise", "pointwise"))
    ". Did you mean 'pairwise'?"
    """
    close = get_close_matches(name, known, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """All declarations of one kind.

    Args:
        kind: which.
        declared: the class of a declaration. It has a `name`.
    """

    def __init__(self, kind: Kind, declared: type[T]) -> None:
        self.kind = kind
        self.declared = declared
        self._loaded: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """Return every name, as `names_of`."""
        return names_of(self.kind)

    def get(self, name: str) -> T:
        """Return the declaration of a name.

        Raises:
            RecipeError: there is none, two packages have one, or a plug-in can't be loaded.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def all(self) -> tuple[T, ...]:
        """Return every declaration, in the order of the names. Raises as `get`."""
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
        except Exception as e:  # whatever a plug-in's own import raises
            raise RecipeError(
                f"{self.kind.what} {entry.name!r} of {_package(entry)} can't be loaded from {entry.value}: {type(e).__name__}: {e}. "
                "Repair that package or uninstall it"
            ) from e
        return found


@cache
def _entries(kind: Kind) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=kind.group), key=lambda entry: (entry.name, _package(entry))))


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
