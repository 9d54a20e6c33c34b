"""Pairs of responses and their labels."""

from dataclasses import dataclass, field, replace

from cai.ids import content_hash
from cai.records.base import Prompt, Provenance


@dataclass(frozen=True, slots=True)
class ResponsePair:
    """Two responses to one prompt, before judging. `source` names how they were made (`sampled`, `revision`, `contrast`, …)."""

    prompt: Prompt
    response_a: str
    response_b: str
    source: str
    provenance: Provenance
    p_a: float | None = None
    """Probability that A is better, for pairs labelled by construction (`contrast`); None for pairs to be judged."""
    truncated_a: bool = False
    """Whether A was cut off at the token limit."""
    truncated_b: bool = False

    @property
    def id(self) -> str:
        """Content hash of the prompt's id and both texts, in order."""
        return content_hash((self.prompt.id, self.response_a, self.response_b))

    def swapped(self) -> "ResponsePair":
        """The same pair with A and B exchanged, and the label with them. Swapping twice gives the original."""
        p_a = None if self.p_a is None else 1.0 - self.p_a
        return replace(
            self,
            response_a=self.response_b,
            response_b=self.response_a,
            p_a=p_a,
            truncated_a=self.truncated_b,
            truncated_b=self.truncated_a,
        )


@dataclass(frozen=True, slots=True)
class HumanLabel:
    """One annotator's label of one pair, before pooling.

    `p_a` is 1 for A, 0 for B, ½ for a tie, and in between for graded answers. If a source only says which response was chosen, a hash of
    the texts decides which one is A, so that the position carries no information.
    """

    pair: ResponsePair
    annotator: str
    """Name or id; empty if unknown. Labels without an annotator are pooled as if each came from another person."""
    p_a: float
    source: str
    """`human:FILE` or `human:hub:OWNER/NAME`."""
    time: str = ""
    """Time of the label as the source writes it; ISO 8601 if known."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Attributes that the annotator gave: `language`, `age_group`, …"""
    note: str = ""
    """The annotator's remark about the pair. Not trained on."""
    both_bad: bool = False
    """Whether the annotator finds neither response acceptable. `p_a` is then ½."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """A judge's label of one pair under one or more principles: either a probability or a named failure.

    `p_a` is the probability that A is better, averaged over both presentation orders. `p_a_first` and `p_a_second` are the probabilities
    that A is better when A is shown first and second; both are None for pointwise protocols.
    """

    pair_id: str
    principle_ids: tuple[str, ...]
    protocol: str
    p_a: float | None
    p_a_first: float | None
    p_a_second: float | None
    failure: str | None
    provenance: Provenance
    detail: str = ""
    """The judge's reasoning (`pairwise-cot`), or details of the failure."""
    mass: float | None = None
    """Probability that the judge gave to the choices together, averaged over its questions, in [0, 1]. A label from a small one comes from
    words that the model would hardly write. None if nothing was measured (`likelihood`, servers without log-probabilities)."""

    @property
    def failed(self) -> tuple[str, str] | None:
        """The reason and details of the failure; None if the pair was judged."""
        return None if self.failure is None else (self.failure, self.detail)


@dataclass(frozen=True, slots=True)
class Preference:
    """A judged pair, the input of preference training. `p_chosen` is the probability that `chosen` is better, in [0, 1]: `cai` writes
    values in [0.5, 1], and 1.0 for one annotator's choice. `weight` multiplies the example's loss."""

    prompt: Prompt
    chosen: str
    rejected: str
    p_chosen: float
    weight: float
    source: str
    """Source of the label: `human:FILE`, `ai:PROTOCOL`, `revision:PROTOCOL`, `contrast`."""
    principle_ids: tuple[str, ...]
    provenance: Provenance
    chosen_truncated: bool = False
    """Whether `chosen` was cut off at the token limit: the end of its turn is then not trained on."""
    rejected_truncated: bool = False

    @property
    def id(self) -> str:
        """Content hash of the prompt's id and both texts, in order."""
        return content_hash((self.prompt.id, self.chosen, self.rejected))

    @property
    def pair(self) -> ResponsePair:
        """The two responses without the label; A is `chosen`."""
        cut = (self.chosen_truncated, self.rejected_truncated)
        return ResponsePair(self.prompt, self.chosen, self.rejected, self.source, self.provenance, None, *cut)

    def swapped(self) -> "Preference":
        """The same label with chosen and rejected exchanged. Swapping twice gives the original."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            p_chosen=1.0 - self.p_chosen,
            chosen_truncated=self.rejected_truncated,
            rejected_truncated=self.chosen_truncated,
        )
