"""Training of the SFT model and of the reward models."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cai.recipe.base import Fraction, Positive, Precision, Rate, Section
from cai.recipe.data import PromptSource
from cai.recipe.labels import HumanSource

Slices = Literal["all", "folds", "parts", "bootstrap", "source", "principle"]
Aggregate = Literal["mean", "min", "uncertainty"]
SFTData = Literal["critique", "distill"]
GOLD = "gold"
"""Name of the gold reward model's pairs in `data/` and of its folder in `models/`."""


class LoraSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """LoRA adapter."""

    rank: Positive = 16
    """Rank of the update matrices."""
    alpha: Positive = 32
    """Scaling: updates are multiplied by `alpha` / `rank`."""
    dropout: Fraction = 0.0
    """Dropout probability of the adapter's input."""
    target_modules: str = "all-linear"
    """Modules to adapt: `all-linear`, or names separated by commas, for example `q_proj,v_proj`."""
    layers: Positive | None = None
    """Number of layers to adapt, counted from the last. Fewer layers shorten the backward pass. None adapts all."""


class TrainSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training settings shared by SFT, reward models and policies."""

    precision: Precision = "auto"
    """Precision of the base weights in training. `auto`: bfloat16 where the hardware supports it, else float32. `nf4`: 4-bit (QLoRA)."""
    epochs: Annotated[float, Meta(gt=0)] = 1.0
    """Number of passes over the training data. Fractions are allowed."""
    learning_rate: Rate = 2e-4
    """Peak learning rate."""
    batch_size: Positive = 8
    """Examples per process and batch, before gradient accumulation."""
    gradient_accumulation: Positive = 1
    """Number of batches per optimizer step."""
    max_length: Positive = 512
    """Maximum length of prompt plus response, in tokens. Longer examples are dropped and counted. Reward models keep theirs, truncated on
    the left, and counted."""
    warmup_fraction: Fraction = 0.1
    """Fraction of the steps over which the learning rate rises to its peak."""
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """Optimizer. The 8-bit ones need bitsandbytes and save memory."""
    gradient_checkpointing: bool = False
    """Whether to recompute activations in the backward pass: less memory, more time."""
    save_steps: Positive = 50
    """Optimizer steps between checkpoints. A killed run resumes from the last one."""
    lora: LoraSpec = LoraSpec()
    """LoRA adapter to train."""


class BeginningsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompts of which only the beginning of a response is learned, before whole responses: when to refuse or warn, and not only how.
    The first words decide that, and are few among all that a response teaches."""

    prompts: Annotated[tuple[PromptSource, ...], Meta(min_length=1)]
    """Prompts, those of `prompts.train` among them or not. Evaluation prompts are left out. They cost little: a response begins with an
    opening of its kind's principles, or with what the model says in five tokens with these principles in its context."""
    epochs: Annotated[float, Meta(gt=0)] = 3.0
    """Number of passes over them."""
    batch_size: Positive = 8
    """Beginnings per process and batch."""


class SFTConfig(TrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning. The loss covers response tokens only."""

    data: Annotated[tuple[SFTData, ...], Meta(min_length=1)] = ("critique",)
    """Examples to train on, and thereby the stages that a run has. `critique`: revisions (Bai et al. 2022). `distill`: responses under
    principles in context."""
    soft_targets: bool = True
    """Whether distilled responses are learned as the distribution of the model with the principles in its context (KL divergence), and not
    as the tokens that it sampled. It teaches more per response and keeps perplexity (docs/results.md), for one more forward pass a step.
    Only where the model that is trained wrote them; a server counts as that model if `model.name` is the path of `weights`."""
    beginnings: BeginningsConfig | UnsetType = UNSET
    """Beginnings of responses, learned first. Only with `data: [distill]`."""
    thinking: bool = False
    """Whether to imitate what the model thought too, as `<think>…</think>` before each completion. What it thought before a revision or a
    distilled response is about a request or principles that the trained prompt doesn't hold."""


class PairTrainSpec(TrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training settings shared by methods that train on pairs."""

    share_prompt: Literal["auto", "always", "never"] = "auto"
    """Whether to run a pair's prompt once for both responses, without padding. The loss is the same up to rounding. `auto`: only on a CPU,
    and only if a test shows that the model supports it. It was not measured on GPUs."""


class RewardConfig(PairTrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bradley–Terry reward models: an ensemble over one base model. Each member has a LoRA adapter and a scalar head."""

    learning_rate: Rate = 5e-4
    """Peak learning rate."""
    center: Annotated[float, Meta(ge=0)] = 0.01
    """Coefficient of the squared sum of both rewards in the loss, which keeps scores near 0."""
    margin: Annotated[float, Meta(ge=0)] = 0.0
    """Margin in the loss (Llama 2, eq. 2): the score difference required of a certain label. A label p requires |2p − 1| of it."""
    balance_length: bool = False
    """Whether to weight pairs so that longer and shorter responses win equally often at each difference in length. This reduces length
    bias."""
    members: Positive = 1
    """Number of reward models in the ensemble."""
    slices: Slices = "all"
    """Training data of each member. `all`: everything, so members differ only by seed. `folds`: all prompts except its own fold. `parts`:
    only its own part of the prompts. `bootstrap`: a bootstrap sample of the prompts. `source`, `principle`: the labels of some sources or
    principles, which are distributed over the members."""
    aggregate: Aggregate = "mean"
    """How the members' scores are combined: `mean`, `min` (worst case), or `uncertainty` (mean − penalty × standard deviation)."""
    uncertainty_penalty: Annotated[float, Meta(ge=0)] = 1.0
    """Penalty of `uncertainty`, in standard deviations of the members' scores."""

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members, and of their folders under `models/`."""
        return tuple(f"reward-{i}" for i in range(self.members))

    @property
    def member(self) -> "RewardConfig":
        """The settings that one member's training depends on: the ensemble's settings are set to their defaults."""
        own = RewardConfig()
        return msgspec.structs.replace(
            self, members=own.members, slices=own.slices, aggregate=own.aggregate, uncertainty_penalty=own.uncertainty_penalty
        )


class GoldConfig(TrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gold reward model, which measures over-optimization. It shares no training pairs with the reward models."""

    learning_rate: Rate = 5e-4
    """Peak learning rate."""
    lora: LoraSpec = LoraSpec(rank=32, alpha=64)
    """LoRA adapter to train. Its rank differs from the reward models', so that it makes different errors."""
    balance_length: bool = False
    """As in `reward`."""
    human: tuple[HumanSource, ...] = ()
    """Human labels used only for the gold reward model. Pairs of `preferences` with the same prompts are dropped and counted."""
    fraction: Fraction = 0.0
    """Fraction of the prompts of `preferences` that is reserved for the gold reward model."""
    held_out_fraction: Fraction = 0.2
    """Fraction of its prompts that is held out, to measure its accuracy."""

    @property
    def reward(self) -> RewardConfig:
        """The same settings as a `RewardConfig`."""
        return RewardConfig(**{name: getattr(self, name) for name in (*TrainSpec.__struct_fields__, "balance_length")})
