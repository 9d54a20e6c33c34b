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
    headings: Sequence[str] = ()
    """A heading before a revision ("Here is the revised response"), up to its colon. Read in the text as it is, in any case; so are the next two."""
    leaks: Sequence[str] = ()
    """Talk about a revision or its critique, which is left out of training wherever it stands."""
    leaks_at_edges: Sequence[str] = ()
    """Talk about a revision that may be about another thing in the middle of a text."""
    spaced: bool = True
    """Whether phrases begin and end at word boundaries."""
