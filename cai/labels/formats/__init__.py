"""Formats of labelled pairs: modules that declare `FORMATS`. See `cai.core.plugins` for those of other packages."""

from functools import cache

from cai.core.plugins import PAIR_FORMATS, Registry
from cai.errors import RecipeError
from cai.labels.readings import PairFormat, PairFormats

FAMILIES: Registry[PairFormats] = Registry(PAIR_FORMATS, PairFormats)


@cache
def families() -> list[PairFormats]:
    """Return all families in the order in which a file's first row is held against them. Raises `RecipeError` for a broken plug-in."""
    return sorted(FAMILIES.all(), key=lambda family: family.rank)


@cache
def pair_formats() -> dict[str, PairFormat]:
    """Return all formats by name, in that order. Raises `RecipeError` also if two families declare the same name."""
    found: dict[str, tuple[str, PairFormat]] = {}
    for family in families():
        for one in family.formats:
            if one.name in found:
                raise RecipeError(f"the pair format {one.name!r} is in {found[one.name][0]!r} and in {family.name!r}; a name has one owner")
            found[one.name] = family.name, one
    return {name: one for name, (_, one) in found.items()}
