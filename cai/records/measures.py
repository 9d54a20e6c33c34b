"""What is measured of models, reward models, judges and labels."""

from dataclasses import dataclass, field
from statistics import pstdev
from typing import Literal

from cai.records.base import Prompt, PromptKind


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
    """Measured model or judge: `base`, `sft`, `policy`, `blend`, `reward-0`, `judge:PROTOCOL`."""
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
class BlendPoint:
    """One blend of the SFT adapter and the policy's, and how often its responses follow each principle."""

    share: float
    """Share of the way from the SFT adapter (0) to the policy's (1)."""
    rates: dict[str, float]
    """Principle to the rate of responses that follow it."""
    n: dict[str, int]
    """Principle to its number of prompts."""
    keeps: bool = False
    """Whether it follows the principles of `blend.keep` as often as the recipe asks."""
    chosen: bool = False


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
