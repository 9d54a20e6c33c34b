"""Labels of pairs: AI feedback, human labels and their mixture."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta
from msgspec.structs import replace

from cai.core.plugins import PROTOCOL
from cai.recipe.base import Fraction, ModelSpec, OwnSettings, Positive, Rate, Section
from cai.records import PromptKind

ProtocolName = Annotated[str, Meta(extra_json_schema={"x-names-of": PROTOCOL.group})]
Weight = Annotated[float, Meta(ge=0)]
Pooling = Literal["votes", "dawid-skene"]


class FeedbackConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AI feedback: the judge, its protocol, and the principles that it applies."""

    protocol: ProtocolName = "pointwise-contrast"
    """How the judge is asked. docs/guides/judging.md lists the protocols; installed packages can add others."""
    judge: ModelSpec | None = None
    """Model that judges. None: the run's `model`."""
    principles: Literal["sample", "ensemble"] = "ensemble"
    """Principles per label. `sample`: `per_label` principles, drawn by hash of the pair. `ensemble`: all that apply, averaged by weight."""
    per_label: Positive = 1
    """Number of principles per label. Only for `sample`."""
    cot_clamp: tuple[Fraction, Fraction] | None = (0.4, 0.6)
    """Lower and upper bound of the probabilities of `pairwise-cot`, as in the paper (§4.1). None doesn't clamp."""
    cot_max_tokens: Positive = 256
    """Maximum length of a chain of thought, in tokens. Only for `pairwise-cot`."""
    thinking_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens that a judge which reasons may think with before its chain of thought, in addition. Only for `pairwise-cot`."""
    bench_pairs: str | None = "prompts/probe_pairs.jsonl"
    """Human-labelled pairs on which the judge is measured before it labels. None skips the measurement, and the run warns about it."""
    bench_limit: Positive = 400
    """Maximum number of these pairs."""
    calibration: str | None = None
    """Calibration file that `cai judge calibrate` wrote for this judge. It corrects the judge's probabilities to fit human labels."""
    probe: str | None = None
    """Probe that `cai judge fit` wrote for this judge: a JSON file, with its weights in a safetensors file beside it. For the protocol
    `probe`, and for the reward term `probe`."""
    settings: OwnSettings = UNSET
    """Settings of a protocol that an installed package added, if it declares some."""

    def by(self, protocol: str) -> "FeedbackConfig":
        """Return these settings with another protocol, and without `settings`, which are of the one before."""
        return self if protocol == self.protocol else replace(self, protocol=protocol, settings=UNSET)


class SourceMix(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weighting of one source of labels. `temperature` is applied first, then `noise`, then `weight`."""

    weight: Weight = 1.0
    """Factor on each example's loss. 0 leaves the source out."""
    temperature: Rate = 1.0
    """Divisor of the labels' log-odds. Above 1 softens an overconfident source. Labels of exactly 1 don't change: use `noise` for those."""
    noise: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """Assumed fraction of wrong labels: p becomes (1 − 2·noise)·p + noise."""
    limit: Positive | None = None
    """Maximum number of pairs. They are chosen by a hash of the run's seed and the pair, so raising the limit only adds pairs. None keeps
    all."""


class HumanSource(SourceMix, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source of human labels."""

    path: str
    """A file that `cai human import` can read or has written, a glob, or `hub:OWNER/NAME`."""
    split: str = "train"
    """Split of a Hub dataset."""
    pooling: Pooling = "votes"
    """How several annotators' labels of one pair become one probability. `votes`: their mean. `dawid-skene`: weighted by each annotator's
    estimated reliability, which needs annotators who labelled the same pairs and agree more than by chance: where alpha is near 0, it is
    surer than it should be, and `votes` with `smoothing` 2 is better."""
    smoothing: Annotated[float, Meta(ge=0)] = 0.0
    """Pseudo-votes added to each side, with `votes`. With 1, two annotators who agree give 3/4 instead of 1."""
    kind: PromptKind | None = None
    """Kind of the prompts whose row names none."""


class KindShares(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of the pairs' total weight, by the kind of the prompt, relative to each other. They decide between opposite aims: with a lower
    share of harmful prompts a policy refuses less of everything."""

    harmful: Weight = 1.0
    """Of prompts that should be declined. 0 leaves them out."""
    borderline: Weight = 1.0
    """Of prompts that only sound harmful."""
    helpful: Weight = 1.0
    """Of ordinary prompts."""
    other: Weight = 1.0
    """Of prompts without a kind."""


class PreferencesConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mixture of AI and human labels, split into training and held-out sets by prompt."""

    human: tuple[HumanSource, ...] = ()
    """Human labels."""
    ai: SourceMix = SourceMix()
    """Sampled pairs, labelled by the judge."""
    revision: SourceMix = SourceMix()
    """Pairs of initial response and revision, labelled by the judge."""
    distilled: SourceMix = SourceMix()
    """Pairs of a response with principles in context and one without, labelled by the judge."""
    contrast: SourceMix = SourceMix()
    """Contrast pairs, labelled by construction."""
    shares: KindShares | None = None
    """Shares of the kinds of prompts in the training pairs' total weight, however many pairs there are of each. None: each pair has its
    own weight."""
    min_margin: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """Minimum |p − ½| of a pair, after temperature and noise. Pairs below it are dropped."""
    held_out_fraction: Fraction = 0.1
    """Fraction of the prompts whose pairs are held out, to measure the reward models on."""
