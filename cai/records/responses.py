"""Responses, critiques, revisions, and what is imitated of them."""

from dataclasses import dataclass

from cai.ids import content_hash
from cai.records.base import Message, Prompt, Provenance
from cai.records.pairs import ResponsePair


@dataclass(frozen=True, slots=True)
class Response:
    """A model's response to a prompt."""

    prompt: Prompt
    text: str
    truncated: bool
    """Whether the response was cut off at the token limit. Its text then ends with a whole sentence, but the model had not ended."""
    provenance: Provenance
    reasoning: str = ""
    """What the model thought before it answered, if it did. Not judged, and imitated only with `sft.thinking`."""


@dataclass(frozen=True, slots=True)
class Critique:
    """A critique of the previous text, under one principle."""

    principle_id: str
    text: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Revision:
    """A rewrite that follows a critique. `truncated` and `reasoning` are as in `Response`."""

    principle_id: str
    text: str
    truncated: bool = False
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """One critique and its revision."""

    critique: Critique
    revision: Revision


STANDING = ("unchanged", "worse_by_check")
"""Values of `RevisionTrace.dropped` after which the text before the last revision stands."""


@dataclass(frozen=True, slots=True)
class RevisionTrace:
    """A response with all its critiques and revisions. `dropped` names the rule that its last revision broke, if any."""

    prompt: Prompt
    response: str
    rounds: tuple[Round, ...]
    dropped: str | None
    p_revised: float | None
    """The judge's probability that the final revision is better than the response; None if it was not judged."""
    provenance: Provenance
    response_truncated: bool = False
    """Whether the initial response was cut off at the token limit."""
    response_reasoning: str = ""

    @property
    def id(self) -> str:
        """Content hash of the prompt's id and the texts."""
        texts = [
            {
                "critique": {"principle_id": r.critique.principle_id, "text": r.critique.text},
                "revision": {"principle_id": r.revision.principle_id, "text": r.revision.text},
            }
            for r in self.rounds
        ]
        return content_hash((self.prompt.id, self.response, texts))

    @property
    def stands(self) -> bool:
        """Whether the last revision is left out and the text before it trained on: it changed nothing, or was worse by a check."""
        return self.dropped in STANDING

    @property
    def final(self) -> str:
        """The last revision, or the response if there were no rounds."""
        return self.rounds[-1].revision.text if self.rounds else self.response

    @property
    def pair(self) -> "ResponsePair":
        """The response (A) and the final revision (B), to be judged: a revision is not assumed to be better."""
        cut = (self.response_truncated, self.rounds[-1].revision.truncated if self.rounds else self.response_truncated)
        return ResponsePair(self.prompt, self.response, self.final, "revision", self.provenance, None, *cut)


@dataclass(frozen=True, slots=True)
class ToldPart:
    """A part of a completion, and the conversation with principles in it under which it was written."""

    messages: tuple[Message, ...]
    opening: str
    """Text that the part was made to begin with; empty if it wasn't."""
    text: str
    """The part, with the space before it. A completion is its parts in order."""


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One SFT example. The loss covers the completion; the prompt is masked."""

    prompt: Prompt
    completion: str
    principle_ids: tuple[str, ...]
    source: str
    provenance: Provenance
    truncated: bool = False
    """Whether the completion was cut off at the token limit: the end of the turn is then not trained on."""
    parts: tuple[ToldPart, ...] = ()
    """Where the completion was written under other conversations than the prompt (`distill`): its parts with theirs."""
    reasoning: str = ""
    """What the model thought before the completion, if it did. Imitated only with `sft.thinking`."""
