"""Training of the policy: its methods, rewards and over-optimization monitor."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta

from cai.core.plugins import POLICY_METHOD, REWARD_TERM
from cai.core.text.repetition import LOOPING
from cai.recipe.base import Count, Fraction, OwnSettings, Positive, Rate, Section, SteadySampling
from cai.recipe.data import PromptSource
from cai.recipe.train import PairTrainSpec

DPOLoss = Literal["sigmoid", "robust", "ipo", "sigmoid_norm"]
MethodName = Annotated[str, Meta(extra_json_schema={"x-names-of": POLICY_METHOD.group})]
TermName = Annotated[str, Meta(extra_json_schema={"x-names-of": REWARD_TERM.group})]


class MonitorConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Over-optimization monitor. It observes the policy during training on held-out prompts. An observation counts as over-optimized if the
    gold reward fell while the training reward rose, or if the policy collapsed (empty, identical or looping responses)."""

    action: Literal["off", "warn", "stop"] = "warn"
    """What to do on over-optimization: warn, or stop training. `off` disables the monitor."""
    every_steps: Positive = 20
    """Optimizer steps between observations."""
    prompts: Positive = 64
    """Maximum number of evaluation prompts for the monitor, chosen by hash; never more than half of them. `evaluate` excludes them."""
    patience: Positive = 2
    """Number of consecutive observations that are averaged and compared with as many earlier ones, and of consecutive collapsed
    observations before `action`."""
    min_drop: Annotated[float, Meta(ge=0)] = 1.0
    """Minimum fall of the gold reward, in half-widths of the confidence interval of that change. At 1, at most 5 % of trainings with a
    constant gold reward end with a false alarm, however many observations there are."""
    min_words: Fraction = 0.25
    """Collapse to empty responses: their mean length is below this fraction of the first observation's. 0 disables this test."""
    min_distinct: Fraction = 0.5
    """Collapse to identical responses: their fraction of distinct bigrams is below this fraction of the first observation's. 0 disables
    this test."""
    max_repetition: Fraction = LOOPING
    """Collapse to looping responses: more than this fraction of their four-word n-grams are repeats, and it was less at the first
    observation."""
    select: Literal["best", "last"] = "best"
    """Weights to keep as the policy. `best`: the observation with the highest gold reward that did not collapse. `last`: the last step."""


class DPOConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Loss of `dpo` and `online-dpo`. All losses take soft labels and weights."""

    loss: DPOLoss = "sigmoid"
    """Loss of the DPO family. `ipo` and `sigmoid_norm` use log-ratios per token, so `beta` has another scale: try 0.1 for `ipo` and 2 to 10
    for `sigmoid_norm`."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """`robust` only: assumed fraction of wrong labels, for which it corrects the loss (arXiv 2403.00409)."""

    def __post_init__(self) -> None:
        """Refuse a fraction that the loss has no use for."""
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing is for loss: robust; {self.loss} has no use for it")


class RewardTerm(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One reward function. The policy's reward is the weighted sum of all terms."""

    term: TermName = "model"
    """Reward function. docs/guides/training.md lists them; installed packages can add others."""
    weight: float = 1.0
    """Coefficient of the term."""
    words: Positive = 150
    """Length in words above which `length` penalizes a response."""
    settings: OwnSettings = UNSET
    """Settings of a term that an installed package added, if it declares some."""


class OnlineConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of GRPO, RLOO and best of n."""

    num_generations: Annotated[int, Meta(ge=2)] = 8
    """Number of completions sampled per prompt: n of `best-of-n`. For GRPO and RLOO `batch_size` × `gradient_accumulation` × processes must
    be a multiple of it."""
    max_tokens: Positive = 128
    """Maximum length of a completion, in tokens. The monitor uses it for DPO and KTO too."""
    thinking_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens that the policy may think with before it answers, in addition to `max_tokens`. Each has its own limit, except where weights
    are sharded (FSDP, DeepSpeed): then the sum is one limit. With 0 both share `max_tokens`. The reasoning is trained, but only the answer
    is rewarded. The monitor uses it for DPO and KTO too."""
    temperature: Rate = 1.0
    """Sampling temperature."""
    missing_eos_penalty: Annotated[float, Meta(ge=0)] | None = 1.0
    """Penalty subtracted from the reward of a completion that was cut at its limit or has no answer after its reasoning, as in `ppo`. None:
    no penalty, and a cut answer is rewarded as a finished one."""
    loss_type: Literal["dapo", "dr_grpo", "bnpo", "grpo"] = "dapo"
    """How GRPO aggregates its loss over tokens, as in TRL. `dapo`: over all tokens of a step (arXiv 2503.14476). `dr_grpo`: over a constant
    length (arXiv 2503.20783). `bnpo`: over the tokens of a local batch. `grpo`: within each completion first, which favours short ones."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What GRPO divides advantages by: the standard deviation of a prompt's rewards, that of the batch's (arXiv 2508.08221), or nothing
    (arXiv 2503.20783)."""
    rewards: Annotated[tuple[RewardTerm, ...], Meta(min_length=1)] = (RewardTerm(),)
    """Reward functions, which are weighted and summed."""
    patience: Positive = 5
    """Number of consecutive steps in which no prompt's completions differ in reward before training stops: without a difference there is
    no gradient."""

    @property
    def most_tokens(self) -> int:
        """Maximum length of a completion with its reasoning, in tokens."""
        return self.max_tokens + self.thinking_tokens


class PPOSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of proximal policy optimization, with TRL's names and mostly its defaults.

    A step samples `batch_size` × `gradient_accumulation` × `num_mini_batches` responses in each process and makes `num_ppo_epochs` passes
    over them. Only `batch_size` affects peak memory.
    """

    total_episodes: Positive | None = None
    """Total number of responses to sample, rounded up to whole steps. None: `epochs` passes over the prompts."""
    num_mini_batches: Positive = 1
    """Number of optimizer steps per pass over a step's responses."""
    num_ppo_epochs: Positive = 4
    """Number of passes over a step's responses."""
    response_length: Positive = 128
    """Maximum length of a response, in tokens."""
    thinking_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens that the policy may think with before it responds, in addition to `response_length`; each has its own limit. With 0 both share
    `response_length`. The reasoning is trained, but only the response is scored."""
    temperature: Annotated[float, Meta(gt=0, le=5)] = 0.7
    """Sampling temperature."""
    local_rollout_forward_batch_size: Positive = 64
    """Number of responses sampled per batch in each process."""
    kl_coef: Annotated[float, Meta(ge=0)] = 0.05
    """Coefficient of the KL penalty in the reward."""
    gamma: Fraction = 1.0
    """Discount factor."""
    lam: Fraction = 0.95
    """λ of generalized advantage estimation."""
    cliprange: Rate = 0.2
    """Clip range of the policy's probability ratio."""
    cliprange_value: Rate = 0.2
    """Clip range of the value function."""
    critic_learning_rate: Rate | None = None
    """Peak learning rate of the value function. None: the policy's."""
    critic_warmup: Count = 0
    """Number of steps at the start in which only the value function is trained, so that the first advantages mean something."""
    vf_coef: Annotated[float, Meta(ge=0)] = 0.1
    """Coefficient of the value loss."""
    max_grad_norm: Rate = 1.0
    """Maximum norm of the gradient; larger ones are clipped."""
    missing_eos_penalty: Annotated[float, Meta(ge=0)] | None = 1.0
    """Penalty subtracted from the score of a response that was truncated at its limit or has nothing after its reasoning. None: no
    penalty."""

    @property
    def most_tokens(self) -> int:
        """Maximum length of a response with its reasoning, in tokens."""
        return self.response_length + self.thinking_tokens


class SelfDistillConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `distill`, beside `online.max_tokens`, `thinking_tokens` and `temperature`. Where the principles stand, and how many, is
    as in the recipe's `distill`; `turns` counts as `user`, because a teacher reads whole answers."""

    alpha: Annotated[float, Meta(ge=0, le=0.5)] = 0.5
    """Divergence between policy and teacher at each token. 0: forward KL. 0.5: Jensen–Shannon, which is at most ln 2, so that no token
    dominates. Reverse KL is not offered: it makes short and over-cautious answers more so (arXiv 2606.03089)."""
    top_k: Positive = 100
    """Number of the policy's most likely tokens that are compared at each position; the others are one more."""
    max_steps: Positive = 100
    """Maximum number of optimizer steps: collapse was seen after that."""


class RoundsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rounds of `online-dpo`. Each round samples pairs from the current policy with the settings of `pairs`, has them labelled, and trains
    on them with DPO."""

    count: Positive = 3
    """Number of rounds."""
    labels: Literal["judge", "reward"] = "judge"
    """Source of the labels: the run's judge, or its reward models."""
    reference: Literal["sft", "previous"] = "sft"
    """Reference model of the later rounds. `sft` bounds the distance to one model over all rounds. `previous` is the policy at the start
    of each round."""
    prompts: Positive | None = None
    """Number of training prompts per round, drawn anew for each round. None uses all of them, with new samples."""


class PolicyConfig(PairTrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Policy training. The policy starts from the SFT adapter, which is also its reference model."""

    learning_rate: Rate = 5e-5
    """Peak learning rate."""
    method: MethodName = "dpo"
    """Training method. docs/guides/training.md lists them; installed packages can add others."""
    beta: Rate | None = None
    """Strength of the constraint to the reference model: β of DPO and KTO, and the KL coefficient of GRPO and RLOO. None: the
    method's usual value, which docs/guides/training.md lists."""
    online: OnlineConfig = OnlineConfig()
    """Settings of `grpo`, `rloo` and `best-of-n`."""
    distill: SelfDistillConfig = SelfDistillConfig()
    """Settings of `distill`."""
    ppo: PPOSpec = PPOSpec()
    """Settings of `ppo`."""
    watch: MonitorConfig = MonitorConfig()
    """Over-optimization monitor. It needs `gold`."""
    early_stopping: Positive | None = 2
    """`dpo` and `kto`: stop after this many epochs in a row without a lower loss on `preferences_heldout`. Without a gold reward model, the
    epoch with the lowest loss becomes the policy. None trains all epochs."""
    dpo: DPOConfig = DPOConfig()
    """Loss of `dpo` and `online-dpo`."""
    rounds: RoundsConfig = RoundsConfig()
    """Rounds of `online-dpo`."""
    settings: OwnSettings = UNSET
    """Settings of a method that an installed package added, if it declares some."""

    def beta_or(self, usual: float) -> float:
        """Return `beta`, or a method's usual one where the recipe has none."""
        return usual if self.beta is None else self.beta

    def group_problem(self, processes: int = 1) -> str | None:
        """Return what is wrong with the batch size of a method that compares completions of one prompt; None if it is valid."""
        batch, group = self.batch_size * self.gradient_accumulation * processes, self.online.num_generations
        if batch % group == 0:
            return None
        return (
            f"policy.online.num_generations: a step of {batch} completions can't be divided into groups of {group} "
            f"(batch_size {self.batch_size} × gradient_accumulation {self.gradient_accumulation} × processes {processes}). "
            f"Make the step a multiple of {group}: for example batch_size: {group}"
        )


class BlendConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Blend of the SFT adapter and the policy's, chosen on prompts of its own. Without training, it sets a threshold that training leaves
    to chance, for example how readily a policy refuses."""

    prompts: Annotated[tuple[PromptSource, ...], Meta(min_length=1)]
    """Prompts to choose the blend by. Those that repeat a training or an evaluation prompt are left out."""
    keep: Annotated[dict[str, Fraction], Meta(min_length=1)]
    """Principles with a check, by id, and the rate of responses that must at least follow each. Of the blends that do, the one that follows
    the other principles most is chosen; if none does, the policy stays as it was trained."""
    shares: Annotated[tuple[Fraction, ...], Meta(min_length=1)] = (0.25, 0.5, 0.75)
    """Blends to try, as shares of the way from the SFT adapter (0) to the policy's (1). The policy as trained is always tried too."""
    sampling: SteadySampling = SteadySampling(max_tokens=40, temperature=0.0)
    """Sampling of the responses. A refusal shows in the first words."""
