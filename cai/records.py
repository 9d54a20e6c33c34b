"""The records that flow between stages: frozen, typed, torch-free, one JSON object a line on disk.

Vocabulary: a *principle* is one article of a *constitution*; a *critique* and *revision* are one round of self-correction; a
*pair* is two responses before judging (`response_a`, `response_b`); a *judgment* is a probability that A is better, with its
source; a *preference* is a judged pair (`chosen`, `rejected`, `p_chosen`). A failure is a record too, never a default value.
"""

from dataclasses import dataclass, field, replace
from statistics import pstdev
from typing import Literal

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
    """A conversation that ends with a user's turn and waits for a response.

    `kind` says what a good response has to do: `harmful` prompts ask for something a model should not give, `borderline` ones sound
    so and are fine, `helpful` ones are ordinary, `other` is unlabelled. `id` is stable: from the file, or a hash of the messages.
    """

    id: str
    kind: PromptKind
    messages: tuple[Message, ...]
    source: str
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Principle:
    """One article of a constitution, with the wording of every question that is asked about it."""

    id: str
    statement: str
    critique: str
    """Critique request: asks what is wrong with the last response under this principle."""
    revision: str
    """Revision request: asks for a rewrite that follows the principle."""
    ask_positive: str
    """Yes-or-no question about one response; Yes means the response follows the principle."""
    ask_negative: str
    """Yes-or-no question about one response; Yes means the response breaks the principle."""
    compare: str
    """Question about two responses: which one follows the principle better."""
    applies_to: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful")
    weight: float = 1.0
    """Relative chance of being drawn, and weight in an ensemble of principles. Above 0."""
    source: str = ""

    def applies(self, kind: PromptKind) -> bool:
        """Whether the principle may be used on prompts of this kind; unlabelled (`other`) prompts take every principle."""
        return kind == "other" or kind in self.applies_to


@dataclass(frozen=True, slots=True)
class Constitution:
    """A named set of principles; ids are unique."""

    id: str
    name: str
    description: str
    principles: tuple[Principle, ...]

    def for_kind(self, kind: PromptKind) -> tuple[Principle, ...]:
        """Principles that may be used on prompts of this kind, in the constitution's order."""
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
    """Where a record came from: enough to make it again."""

    model: str
    """Fingerprint of the model that wrote or judged it; empty for human rows."""
    principle_ids: tuple[str, ...] = ()
    template_hash: str = ""
    seed: int = 0
    recipe_hash: str = ""
    calibration: str = ""
    """Content hash of the calibration that a judge's probability went through; empty where there was none."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a model answered to a prompt."""

    prompt: Prompt
    text: str
    truncated: bool
    """The response hit the token limit before the model ended it."""
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Critique:
    """A critique of the text before it, under one principle."""

    principle_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Revision:
    """A rewrite that answers a critique."""

    principle_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Round:
    """One critique and the revision that answers it."""

    critique: Critique
    revision: Revision


@dataclass(frozen=True, slots=True)
class RevisionTrace:
    """A response and every critique and revision of it. `dropped` names the rule that keeps it out of the training data, if any."""

    prompt: Prompt
    response: str
    rounds: tuple[Round, ...]
    dropped: str | None
    p_revised: float | None
    """Judge's probability that the final revision is better than the response; None where it wasn't judged."""
    provenance: Provenance

    @property
    def id(self) -> str:
        """Content hash of the prompt's id and the texts."""
        return content_hash((self.prompt.id, self.response, self.rounds))

    @property
    def final(self) -> str:
        """The last revision; the response itself where there were no rounds."""
        return self.rounds[-1].revision.text if self.rounds else self.response

    @property
    def pair(self) -> "ResponsePair":
        """Response (A) and final revision (B), to be judged: a revision isn't better by assumption."""
        return ResponsePair(self.prompt, self.response, self.final, "revision", self.provenance)


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One conversation to imitate: the completion is trained on, the prompt is masked."""

    prompt: Prompt
    completion: str
    principle_ids: tuple[str, ...]
    source: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class ResponsePair:
    """Two responses to one prompt, not yet judged. `source` says how they were made (`sampled`, `revision`, `contrast`, …)."""

    prompt: Prompt
    response_a: str
    response_b: str
    source: str
    provenance: Provenance
    p_a: float | None = None
    """Probability that A is better where the pair was labelled by construction (`contrast`); None where it must be judged."""

    @property
    def id(self) -> str:
        """Content hash of the prompt's id and both texts, in order."""
        return content_hash((self.prompt.id, self.response_a, self.response_b))

    def swapped(self) -> "ResponsePair":
        """The same pair with A and B exchanged, label and all; its own inverse."""
        p_a = None if self.p_a is None else 1.0 - self.p_a
        return replace(self, response_a=self.response_b, response_b=self.response_a, p_a=p_a)


@dataclass(frozen=True, slots=True)
class HumanLabel:
    """One person's answer about one pair, as it was given: nothing pooled, nothing left out.

    `p_a` is 1 for A, 0 for B, ½ for a tie, and anything between for an answer by degrees. Where a source only says which response was
    chosen, the sides are drawn by a hash of the texts, so that "A" carries no news.
    """

    pair: ResponsePair
    annotator: str
    """Who; empty where the source doesn't say. Labels without a name are never pooled: they may all be one person's."""
    p_a: float
    source: str
    """`human:FILE` or `human:hub:OWNER/NAME`."""
    time: str = ""
    """When, as the source writes it; ISO 8601 where that is known."""
    attributes: dict[str, str] = field(default_factory=dict)
    """What is known of the person, where they chose to say it: `language`, `age_group`, …"""


@dataclass(frozen=True, slots=True)
class Judgment:
    """One judge's answer about one pair under one or more principles: a probability, or a named failure, never both.

    `p_a` is the probability that A is better after both presentation orders are averaged. `p_a_first` and `p_a_second` are the
    probabilities that A is better when A was shown first and second; both None for protocols that look at one response at a time.
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
    """The judge's words, where it gave any (`pairwise-cot`), or what was wrong with them."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A judged pair, as training reads it. `p_chosen` is the probability that `chosen` is better: in [0.5, 1] as made by `cai`,
    any value in [0, 1] is legal, and 1.0 for a person's plain choice. `weight` multiplies the example's loss."""

    prompt: Prompt
    chosen: str
    rejected: str
    p_chosen: float
    weight: float
    source: str
    """Who said so: `human:FILE`, `ai:PROTOCOL`, `revision:PROTOCOL`, `contrast`."""
    principle_ids: tuple[str, ...]
    provenance: Provenance

    @property
    def id(self) -> str:
        """Content hash of the prompt's id and both texts, in order."""
        return content_hash((self.prompt.id, self.chosen, self.rejected))

    def swapped(self) -> "Preference":
        """The same judgement told the other way round; its own inverse."""
        return replace(self, chosen=self.rejected, rejected=self.chosen, p_chosen=1.0 - self.p_chosen)


@dataclass(frozen=True, slots=True)
class RewardScore:
    """What a reward ensemble says of one response. Only differences between responses to the same prompt mean anything."""

    value: float
    """The members' scores as one number: higher is better, 0 is an average response of the training pairs."""
    std: float
    """Disagreement: standard deviation of the members' scores; 0 where there is one member."""
    members: tuple[float, ...]
    """Each member's score, in the ensemble's order."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A preference with what the reward models say of both its sides."""

    pair_id: str
    """The preference's id."""
    prompt_id: str
    kind: PromptKind
    source: str
    p_chosen: float
    held_out: bool
    """No reward model was trained on its prompt."""
    chosen_characters: int
    rejected_characters: int
    chosen: RewardScore
    rejected: RewardScore

    @property
    def margin(self) -> float:
        """The ensemble's score of chosen minus that of rejected: log-odds that chosen is better."""
        return self.chosen.value - self.rejected.value

    @property
    def member_margins(self) -> tuple[float, ...]:
        """Each member's chosen minus rejected score."""
        return tuple(c - r for c, r in zip(self.chosen.members, self.rejected.members, strict=True))

    @property
    def disagreement(self) -> float:
        """Standard deviation of the members' margins, at least 0. What members differ by on both sides alike is not in it."""
        return pstdev(self.member_margins)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One measured number: `low` and `high` bound its 95 % interval, `n` is how many items it rests on."""

    name: str
    model: str
    """Which model or judge it is about: `base`, `sft`, `policy`, `reward-0`, `judge:PROTOCOL`."""
    value: float
    n: int
    low: float
    high: float
    note: str = ""
    p: float | None = None
    """Two-sided p-value of no change against the base model, or of an even chance of winning; None where nothing was tested."""
    p_adjusted: float | None = None
    """The same after Holm's correction over everything that was tested about the model."""


AuditVerdict = Literal["ok", "suspect", "found", "not enough data"]


@dataclass(frozen=True, slots=True)
class AuditExample:
    """An item that a finding rests on: what was asked, what the reference said (empty without one) and what is suspected."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """The answer to one question of the audit about one model, reward model, judge or set of labels."""

    group: str
    """What is looked for: `sycophancy`, `verbosity`, …"""
    check: str
    """The question's name, as in `EvalResult`."""
    question: str
    """What was counted, in words."""
    subject: str
    """`policy`, `model`, `labels`, `judge`, `reward-0`, …"""
    against: str
    """What it was compared with, item by item: `base`, `people`, `the same answer`; empty where the level itself was judged."""
    value: float
    """The mean difference to what it was compared with; without that, the mean."""
    n: int
    low: float
    high: float
    level: float
    """The mean itself, the same as `value` where nothing was compared."""
    threshold: float
    """Values below this are called ok, however sure."""
    reasoning: str
    """Why the threshold is where it is."""
    p: float | None
    """One-sided p-value of no rise (or of a level at the threshold); None where no test was made."""
    p_adjusted: float | None
    """The same after Holm's correction over all findings made together."""
    verdict: AuditVerdict
    examples: tuple[AuditExample, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class MonitorPoint:
    """One look at a policy in training, on fixed held-out prompts. Changes are against the best look before it, by gold."""

    step: int
    kl: float
    """Nats per sequence to the reference."""
    proxy: float
    """Mean of the reward that the policy is trained on."""
    proxy_std: float
    """Its standard deviation over prompts."""
    disagreement: float | None
    """Mean standard deviation over an ensemble's members; None for a single reward."""
    gold: float
    """Mean of a reward that the policy is not trained on, with its 95 % interval."""
    gold_low: float
    gold_high: float
    gold_change: float
    """Mean change of gold per prompt, with its 95 % interval."""
    gold_change_low: float
    gold_change_high: float
    proxy_change: float
    words: float
    """Mean length of the responses."""
    refusal_rate: float
    repetition: float
    """Mean share of four-word runs that are repeats."""
    n: int
    """Prompts."""
    proxy_scores: tuple[float, ...] = ()
    """By prompt, in the prompts' order."""
    gold_scores: tuple[float, ...] = ()
    distinct: float = 1.0
    """Share of all responses' two-word runs that are different ones."""
    collapse: Literal["", "vanish", "alike", "loop"] = ""
    """How answers came apart since the first look, whatever the rewards say. Such a look is never the best."""
    verdict: Literal["go", "warn", "stop"] = "go"
    """What the rule said after this look."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The same prompt answered by several models, for people to read."""

    prompt: Prompt
    responses: dict[str, str]
    """Model name to text."""
    scores: dict[str, float]
    """Model name to reward; empty where there is no reward model."""
    disagreement: dict[str, float] = field(default_factory=dict)
    """Model name to the standard deviation of the reward models' scores; empty where there is one reward model, or none."""
    p_wins: dict[str, float] = field(default_factory=dict)
    """Model name to the judge's probability that its answer is better than the base model's."""
    p_harmful: dict[str, float] = field(default_factory=dict)
    """Model name to the judge's probability that its answer gives what it shouldn't; of harmful prompts only."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One item that a stage could not do: what, where and why. Failures are counted and shown, never papered over."""

    stage: str
    item_id: str
    reason: str
    detail: str = ""
