"""What a language's file declares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lexicon:
    """The word rules of one language, as regular expressions."""

    code: str
    """ISO 639-1."""
    name: str
    refusals: Sequence[str]
    """A refusal's opening matches one of them."""
    revising: Sequence[str]
    """A refusal that matches one of them refuses to rewrite a response."""
    markers: Mapping[str, Sequence[str]]
    """Name of a lexicon of `cai.evaluate.audit.markers` to phrases."""
    spaced: bool = True
    """Whether phrases begin and end at word boundaries."""
