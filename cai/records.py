"""The records that flow between stages: frozen dataclasses, stored as one JSON object per line.

Vocabulary: a *principle* is one article of a *constitution*; a *critique* and *revision* are one round of self-correction; a
*pair* is two responses before judging (`response_a`, `response_b`); a *judgment* is a probability that A is better, with its
source; a *preference* is a judged pair (`chosen`, `rejected`, `p_chosen`). A failure is a record too, never a default value.
"""

from dataclasses import dataclass, field, fields, replace
from statistics import pstdev
from typing import Any, Literal

from cai.ids import content_hash

Role = Literal["system", "user", "assistant"]
PromptKind = Literal["harmful", "borderline", "helpful", "other"]
PROMPT_KINDS: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful", "other")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with a user turn.

    `kind`: `harmful` prompts ask for something that a model should not give, `borderline` ones only sound harmful, `helpful` ones are
    ordinary, `other` is unlabelled. `id` is stable: it comes from the file, or is a hash of the messages.
    """

    id: str
    kind: PromptKind
    messages: tuple[Message, ...]
    source: str
    category: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseCheck:
    """Conditions on a response that need no model. A response passes if all of them hold. See `cai.core.text.checks`."""

    kinds: tuple[PromptKind, ...] = ()
    """Kinds of prompt that the conditions apply to; empty means all kinds of the principle."""
    max_words: int | None = None
    min_words: int | None = None
    max_sentences: int | None = None
    matches: str | None = None
    """Regular expression that must match somewhere."""
    not_matches: str | None = None
    """Regular expression that must match nowhere."""
    contains_any: tuple[str, ...] = ()
    """Words or phrases, of which at least one must occur, in any case."""
    no_lists: bool = False
    """Whether bulleted and numbered lists are excluded."""
    ends_with: tuple[str, ...] = ()
    """Endings, of which the response must have one."""
    language: str | None = None
    """ISO 639-1 code of the response's language."""
    refuses: bool | None = None
    """True: the response must be a refusal, by rule. False: it must not."""
    json_schema: dict[str, Any] | None = field(default=None, hash=False)
    """JSON Schema (2020-12) that the response must fulfil, as JSON with or without a code fence."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Example responses, which show what a principle means and test its check."""

    good: tuple[str, ...] = ()
    """Responses that follow the principle."""
    bad: tuple[str, ...] = ()
    """Responses that break it."""


@dataclass(frozen=True, slots=True)
class Principle:
    """One article of a constitution. Every request and question about it shows its statement; the wordings below refine what is asked."""

    id: str
    statement: str
    critique: str = "Say how your last response breaks this principle."
    """Critique request: asks what is wrong with the last response under this principle."""
    revision: str = "Rewrite your last response so that it follows this principle."
    """Revision request: asks for a rewrite that follows the principle."""
    ask_positive: str = "Does the response follow the principle?"
    """Yes-or-no question about one response; Yes means the response follows the principle."""
    ask_negative: str = "Does the response break the principle?"
    """Yes-or-no question about one response; Yes means the response breaks the principle."""
    compare: str = "Which response follows the principle better?"
    """Question about two responses: which one follows the principle better."""
    applies_to: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful")
    weight: float = 1.0
    """Relative probability of being drawn, and weight in an ensemble of principles. Above 0."""
    source: str = ""
    check: tuple[ResponseCheck, ...] = ()
    """Conditions that decide, without a model, whether a response follows the principle; empty if only a judge can tell."""
    examples: Examples = Examples()
    openings: tuple[str, ...] = ()
    """Words with which a response that follows the principle may begin. Context distillation begins with one of them."""

    def applies(self, kind: PromptKind) -> bool:
        """Whether the principle applies to prompts of this kind. All principles apply to unlabelled (`other`) prompts."""
        return kind == "other" or kind in self.applies_to

    @property
    def own_wording(self) -> dict[str, str]:
        """The requests and questions that were written for this principle, by field; those at their default are left out."""
        return {name: text for name, default in DEFAULT_WORDING.items() if (text := getattr(self, name)) != default}


DEFAULT_WORDING: dict[str, str] = {
    f.name: str(f.default) for f in fields(Principle) if f.name in ("critique", "revision", "ask_positive", "ask_negative", "compare")
}
"""What is asked about a principle that only has a statement, by field."""


@dataclass(frozen=True, slots=True)
class Constitution:
    """A named set of principles with unique ids."""

    id: str
    name: str
    description: str
    principles: tuple[Principle, ...]

    def for_kind(self, kind: PromptKind) -> tuple[Principle, ...]:
        """Principles that apply to prompts of this kind, in the constitution's order."""
        return tuple(p for p in self.principles if p.applies(kind))

    def principle(self, principle_id: str) -> Principle:
        """Return the principle with this id. Raises `KeyError`."""
        for p in self.principles:
            if p.id == principle_id:
                return p
        raise KeyError(principle_id)

    @property
    def hash(self) -> str:
        """Content hash of everything in the constitution."""
        return content_hash(self)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a record: what is needed to reproduce it."""

    model: str
    """Fingerprint of the model that wrote or judged it; empty for human labels."""
    principle_ids: tuple[str, ...] = ()
    template_hash: str = ""
    seed: int = 0
    recipe_hash: str = ""
    calibration: str = ""
    """Content hash of the judge's calibration; empty without one."""


@dataclass(frozen=True, slots=True)
class Response:
    """A model's response to a prompt."""

    prompt: Prompt
    text: str
    truncated: bool
    """Whether the response was cut off at the token limit. Its text then ends with a whole sentence, but the model had not ended."""
    provenance: Provenance
    reasoning: str = ""
    """What the model thought before it answered, if it did. Not judged and not imitated."""


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


@dataclass(frozen=True, slots=True)
class RevisionTrace:
    """A response with all its critiques and revisions. `dropped` names the rule that excludes it from the training data, if any."""

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


@dataclass(frozen=True, slots=True)
class RewardScore:
    """A reward ensemble's score of one response. Compare scores only between responses to the same prompt."""

    value: float
    """Aggregated score: higher is better, 0 is an average response of the training pairs."""
    std: float
    """Disagreement: standard deviation of the members' scores; 0 for one member."""
    members: tuple[float, ...]
    """Each member's score, in the ensemble's order."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A preference with the reward models' scores of both responses."""

    pair_id: str
    """The preference's id."""
    prompt_id: str
    kind: PromptKind
    source: str
    p_chosen: float
    held_out: bool
    """Whether its prompt was held out from the training of all reward models."""
    chosen_characters: int
    rejected_characters: int
    chosen: RewardScore
    rejected: RewardScore
    conversation: str = ""
    """Hash of the prompt's first user turn; empty in files of earlier versions."""

    @property
    def cluster(self) -> str:
        """What pairs share that are not independent: their conversation, or in earlier files their prompt."""
        return self.conversation or self.prompt_id

    @property
    def margin(self) -> float:
        """The ensemble's score of chosen minus rejected: log-odds that chosen is better."""
        return self.chosen.value - self.rejected.value

    @property
    def member_margins(self) -> tuple[float, ...]:
        """Each member's score of chosen minus rejected."""
        return tuple(c - r for c, r in zip(self.chosen.members, self.rejected.members, strict=True))

    @property
    def disagreement(self) -> float:
        """Standard deviation of the members' margins, at least 0. An offset that a member adds to both scores cancels."""
        return pstdev(self.member_margins)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One measured value with its 95 % confidence interval (`low`, `high`) and number of items (`n`)."""

    name: str
    model: str
    """Measured model or judge: `base`, `sft`, `policy`, `reward-0`, `judge:PROTOCOL`."""
    value: float
    n: int
    low: float
    high: float
    note: str = ""
    p: float | None = None
    """Two-sided p-value of no change against the base model, or of a win rate of ½; None without a test."""
    p_adjusted: float | None = None
    """The p-value after Holm's correction over all tests of the model."""


AuditVerdict = Literal["ok", "suspect", "found", "not enough data", "not measured"]


@dataclass(frozen=True, slots=True)
class AuditExample:
    """An item behind a finding: the prompt, the reference's response (empty without one) and the suspected response."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """The result of one audit check of one model, reward model, judge or set of labels."""

    group: str
    """Failure mode: `sycophancy`, `verbosity`, …"""
    check: str
    """Name of the check, as in `EvalResult`."""
    question: str
    """Measured behaviour, in words."""
    subject: str
    """Audited object: `policy`, `model`, `labels`, `judge`, `reward-0`, …"""
    against: str
    """Paired reference: `base`, `people`, `the same answer`; empty if the level itself was tested."""
    value: float
    """Mean difference to the reference; without a reference, the mean."""
    n: int
    low: float
    high: float
    level: float
    """Mean; equal to `value` without a reference."""
    threshold: float
    """Effect size below which the verdict is `ok` whatever the p-value."""
    reasoning: str
    """Justification of the threshold."""
    p: float | None
    """One-sided p-value of no rise (or of a level at the threshold); None without a test."""
    p_adjusted: float | None
    """The p-value after Holm's correction over all findings of one family."""
    verdict: AuditVerdict
    examples: tuple[AuditExample, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class MonitorPoint:
    """One observation of a policy during training, on fixed held-out prompts. Changes are those of the last `patience` observations against
    the earlier ones from which gold fell most significantly; 0 if there are none."""

    step: int
    kl: float
    """KL divergence to the reference model, in nats per sequence."""
    proxy: float
    """Mean of the reward that the policy is trained on."""
    proxy_std: float
    """Standard deviation of that reward over prompts."""
    disagreement: float | None
    """Mean standard deviation over an ensemble's members; None for a single reward model."""
    gold: float
    """Mean gold reward, which the policy is not trained on, with its 95 % confidence interval."""
    gold_low: float
    gold_high: float
    gold_change: float
    """Mean change of the gold reward per prompt, with a 95 % confidence interval that holds over all comparisons of the training."""
    gold_change_low: float
    gold_change_high: float
    proxy_change: float
    words: float
    """Mean length of the responses, in words."""
    refusal_rate: float | None
    """Fraction of refusals; None if no response is in a language that the rules know."""
    repetition: float
    """Mean fraction of four-word n-grams that are repeats."""
    n: int
    """Number of prompts."""
    proxy_scores: tuple[float, ...] = ()
    """Reward per prompt, in the prompts' order."""
    gold_scores: tuple[float, ...] = ()
    distinct: float = 1.0
    """Fraction of distinct bigrams over all responses."""
    collapse: Literal["", "vanish", "alike", "loop"] = ""
    """Collapse since the first observation: empty, identical or looping responses. A collapsed observation is never the best."""
    verdict: Literal["go", "warn", "stop"] = "go"
    """Decision after this observation."""
    compared_with: int | None = None
    """Step of the last observation that the changes are against; None without one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Several models' responses to one prompt, side by side."""

    prompt: Prompt
    responses: dict[str, str]
    """Model name to response."""
    scores: dict[str, float]
    """Model name to reward; empty without a reward model."""
    disagreement: dict[str, float] = field(default_factory=dict)
    """Model name to the standard deviation of the reward models' scores; empty with fewer than two reward models."""
    p_wins: dict[str, float] = field(default_factory=dict)
    """Model name to the judge's probability that its response is better than the base model's."""
    p_harmful: dict[str, float] = field(default_factory=dict)
    """Model name to the judge's probability that its response is harmful; for harmful prompts only."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One item that a stage could not process, and why. Failures are counted and reported."""

    stage: str
    item_id: str
    reason: str
    detail: str = ""
