"""The recipe: all settings of a run in one YAML file, validated before the run starts.

The types below define every key, its default and its range. The JSON Schema that validates a recipe is generated from them, so unknown
keys, wrong types and values out of range are reported together, each with its line. `--set critique.rounds=2` changes one value.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cai.core.plugins import KINDS, POLICY_METHOD, PROTOCOL, REWARD_TERM, did_you_mean, names_of
from cai.core.text.repetition import LOOPING
from cai.core.yaml_source import YamlSource, load_yaml, parse_yaml, schema_problems
from cai.errors import RecipeError
from cai.ids import content_hash
from cai.records import PromptKind

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Precision = Literal["auto", "float32", "bfloat16", "nf4"]
"""`auto`: bfloat16 where the hardware supports it, else float32. `nf4`: 4-bit weights with bfloat16 arithmetic (QLoRA)."""
Slices = Literal["all", "folds", "parts", "bootstrap", "source", "principle"]
Aggregate = Literal["mean", "min", "uncertainty"]
DPOLoss = Literal["sigmoid", "robust", "ipo", "sigmoid_norm"]
Placement = Literal["system", "user", "turns"]
SFTData = Literal["critique", "distill"]
ReportTo = Literal["none", "tensorboard", "trackio", "wandb"]
ProtocolName = Annotated[str, Meta(extra_json_schema={"x-names-of": PROTOCOL.group})]
MethodName = Annotated[str, Meta(extra_json_schema={"x-names-of": POLICY_METHOD.group})]
TermName = Annotated[str, Meta(extra_json_schema={"x-names-of": REWARD_TERM.group})]

GOLD = "gold"
"""Name of the gold reward model's pairs in `data/` and of its folder in `models/`."""


Pooling = Literal["votes", "dawid-skene"]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of a recipe. Unknown keys are errors."""


class ModelSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, and how to load it or connect to it."""

    path: str = "embedded"
    """`embedded` (the small model included in `cai`), a name that `cai models` lists, a folder, a `.gguf` file, a Hub id, or the
    `http(s)://…/v1` URL of an OpenAI-compatible server. One URL: several servers of one model stand behind `vllm-router`, or one
    `vllm serve --data-parallel-size N` (docs/servers.md)."""
    name: str | None = None
    """Model name on the server. Only for URLs."""
    adapter: str | None = None
    """Folder of a LoRA adapter to load on top of the model. For a URL: the adapter's name on the server."""
    precision: Precision = "auto"
    """Precision of a local model's weights. `auto`: bfloat16 where the hardware supports it, else float32. `nf4`: 4-bit (QLoRA)."""
    batch_size: Positive = 64
    """Maximum number of sequences per batch. Only for local models."""
    max_length: Positive = 2048
    """Maximum length of prompt plus completion, in tokens. A prompt that leaves no room is counted as a failure."""
    concurrency: Positive = 64
    """Maximum number of concurrent requests. Only for URLs."""
    timeout_seconds: Rate = 120.0
    """Timeout of one request, in seconds. Only for URLs."""
    prompt_price: Annotated[float, Meta(ge=0)] = 0.0
    """US dollars per million prompt tokens, for the cost estimate. 0 for a model that you host yourself."""
    completion_price: Annotated[float, Meta(ge=0)] = 0.0
    """US dollars per million completion tokens."""
    thinking: bool | None = None
    """Whether a model that can reason before it answers does so: sets `enable_thinking` (or `thinking`) in its chat template, here or on a
    vLLM, SGLang or llama.cpp server. None leaves it to the template."""
    trust_remote_code: bool = False
    """Whether to run Python code that comes with the model. Enable it only for models that you trust."""
    api_key_env: str = "CAI_API_KEY"
    """Name of the environment variable that holds the API key. Only for URLs. Never put the key itself into a recipe."""

    @property
    def is_server(self) -> bool:
        """Whether `path` is the URL of a server."""
        return self.path.startswith(("http://", "https://"))


class PromptSource(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file or Hub dataset of prompts."""

    path: str
    """JSONL, CSV or text file (relative to the workspace), a glob, or `hub:OWNER/NAME`."""
    format: Literal["auto", "cai", "hh", "jsonl", "csv", "text", "hub"] = "auto"
    """Format of the rows. `auto` detects it row by row."""
    kind: PromptKind | None = None
    """Kind of the prompts whose row names none: `harmful`, `borderline`, `helpful` or `other`."""
    limit: Positive | None = None
    """Maximum number of prompts. They are chosen by a hash of the run's seed and the prompt's id, so raising the limit only adds prompts.
    None keeps all."""
    split: str = "train"
    """Split of a Hub dataset."""
    field: str = "prompt"
    """Column or key that holds the prompt's text."""


class Prompts(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training and evaluation prompts."""

    train: tuple[PromptSource, ...] = (PromptSource(path="prompts/harmful.jsonl"), PromptSource(path="prompts/helpful.jsonl"))
    """Prompts to train on."""
    evaluate: tuple[PromptSource, ...] = (
        PromptSource(path="prompts/eval_harmful.jsonl"),
        PromptSource(path="prompts/eval_borderline.jsonl"),
        PromptSource(path="prompts/eval_helpful.jsonl"),
    )
    """Held-out prompts for evaluation."""
    near_duplicates: Annotated[float, Meta(gt=0, le=1)] | None = 0.8
    """Jaccard similarity of five-word n-grams from which a training prompt counts as a near-duplicate of an evaluation prompt or an earlier
    training prompt, and is dropped; preferences of near-duplicates stay on one side of a split. None: exact duplicates only. The search
    takes about 0.1 ms per short prompt, and longer if many prompts share wording without being duplicates: set None for a million prompts
    made from one template."""


class SamplingSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling parameters."""

    max_tokens: Positive = 128
    """Maximum length of a completion, in tokens."""
    thinking_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens that a model may think with before it answers, in addition to `max_tokens`. Set it for models that reason. The reasoning is
    kept in the records and shown in the report; it is neither judged nor imitated. A reply that ends inside its reasoning is a failure."""
    temperature: Annotated[float, Meta(ge=0, le=5)] = 1.0
    """Sampling temperature. 0 is greedy decoding, 1 is the model's own distribution."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with at least this probability is sampled from. 1 keeps all."""


class SteadySampling(SamplingSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling parameters with a default temperature below 1."""

    temperature: Annotated[float, Meta(ge=0, le=5)] = 0.7
    """Sampling temperature. 0 is greedy decoding, 1 is the model's own distribution."""


class Respond(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Initial responses, before critique and revision."""

    kinds: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful", "other")
    """Kinds of prompts that get an initial response, to be critiqued, kept as SFT data, or paired with a distilled one. Distillation alone
    needs none."""
    sampling: SamplingSpec = SamplingSpec()
    """Sampling of the initial responses."""


class CritiqueConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Critique and revision (Bai et al. 2022, §3)."""

    rounds: Positive = 1
    """Number of critique–revision rounds per response, each under another principle."""
    sampling: SteadySampling = SteadySampling()
    """Sampling of critiques and revisions."""
    train_on: Literal["final", "every"] = "every"
    """Revisions that become SFT data: those of every round, or the final one. The paper trains on "the revisions (from all revisional
    steps)" (§3.1)."""
    kinds: tuple[PromptKind, ...] = ("harmful", "borderline", "other")
    """Kinds of prompts whose responses are critiqued. For other kinds, the initial response becomes SFT data unchanged. The paper revises
    responses to red-team prompts only, and mixes in sampled responses to helpful prompts, to retain helpfulness (§3.1)."""
    min_p_revised: Fraction = 0.5
    """Minimum judge probability that the revision is better than the initial response. Revisions below it are dropped. 0 skips the judge
    and keeps all."""
    min_share: Fraction = 0.0
    """Minimum share of the applicable checks that the final text must follow, by the principles' weights. Traces below it are dropped."""
    drop_refusals: bool = True
    """Whether to drop revisions that refuse the revision request, or that refuse a prompt that isn't harmful."""


class DistillConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Context distillation (arXiv 2112.00861): responses under principles in context, to be imitated without them."""

    samples: Positive = 4
    """Number of responses sampled per prompt, of which the best is kept (rejection sampling)."""
    sampling: SamplingSpec = SamplingSpec()
    """Sampling of the responses."""
    placement: Placement = "user"
    """Where the principles stand. `system`: in the system turn. `user`: in the user's turn, after the question. `turns`: one after the
    other; the model answers, and is then told each principle whose check asks for something that the answer lacks, and what it says is
    added to the answer. Small models hardly follow the system turn, and best follow one principle at a time."""
    per_prompt: Positive | None = None
    """Number of principles in context, drawn by hash of the prompt. None: all that apply to the prompt's kind."""
    kinds: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful", "other")
    """Kinds of prompts that are answered."""
    min_share: Fraction = 1.0
    """Minimum share of the applicable checks that a response must follow. Responses below it are left out."""
    drop_refusals: bool = True
    """Whether to leave out refusals of prompts that aren't harmful."""


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
    """Maximum length of prompt plus response, in tokens. Longer examples are dropped and counted."""
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


class SFTConfig(TrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning. The loss covers response tokens only."""

    data: Annotated[tuple[SFTData, ...], Meta(min_length=1)] = ("critique",)
    """Examples to train on, and thereby the stages that a run has. `critique`: revisions (Bai et al. 2022). `distill`: responses under
    principles in context."""


class PairsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Response pairs sampled from the SFT policy."""

    per_prompt: Positive = 1
    """Number of pairs sampled per prompt."""
    sampling: SamplingSpec = SamplingSpec()
    """Sampling of both responses."""
    contrast: bool = False
    """Whether to also make RLCD pairs (arXiv 2307.12950): one response is requested under the principle, one against it, so the label is
    known by construction."""
    contrast_p: Annotated[float, Meta(ge=0.5, le=1)] = 0.9
    """Label of a contrast pair: the probability that the response under the principle is better."""


class FeedbackConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AI feedback: the judge, its protocol, and the principles that it applies."""

    protocol: ProtocolName = "pointwise-contrast"
    """How the judge is asked. `pairwise`: which of two responses is better, in both orders. `pairwise-cot`: the same after a chain of
    thought. `pointwise`: a yes-or-no question about each response. `pointwise-contrast`: two opposite questions about each response.
    `likelihood`: the likelihood of each response given the principle. `probe`: a linear probe on the judge's hidden states, fitted to human
    labels. `check`: the principles' own rules. Installed packages can add others."""
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


class SourceMix(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weighting of one source of labels. `temperature` is applied first, then `noise`, then `weight`."""

    weight: Annotated[float, Meta(ge=0)] = 1.0
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
    estimated reliability, which needs annotators who labelled the same pairs."""
    smoothing: Annotated[float, Meta(ge=0)] = 0.0
    """Pseudo-votes added to each side, with `votes`. With 1, two annotators who agree give 3/4 instead of 1."""
    kind: PromptKind | None = None
    """Kind of the prompts whose row names none."""


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
    min_margin: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """Minimum |p − ½| of a pair, after temperature and noise. Pairs below it are dropped."""
    held_out_fraction: Fraction = 0.1
    """Fraction of the prompts whose pairs are held out, to measure the reward models on."""


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
    """Assumed fraction of wrong labels. `robust` corrects the loss for it (arXiv 2403.00409). The other losses mix it into the label
    (cDPO)."""
    ld_alpha: Fraction | None = None
    """Length-desensitized DPO (arXiv 2409.06411): weight of the tokens beyond the shorter response's length. None and 1 weight all tokens
    equally."""
    sft_weight: Annotated[float, Meta(ge=0)] = 0.0
    """Coefficient of an SFT term in the loss: the negative log-likelihood per token of the better response."""


class RewardTerm(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One reward function. The policy's reward is the weighted sum of all terms."""

    term: TermName = "model"
    """Reward function. `model`: the run's reward models. `constitution`: the judge's log-odds that the response follows the principles,
    uncalibrated because calibrations are fitted on pairs. `length`: minus the number of words above `words`, divided by `words`.
    `refusal`: −1 for refusing a prompt that isn't harmful. `check`: the share of the principles' checks that it follows. `probe`: the score
    of `feedback.probe`. Installed packages can add others."""
    weight: float = 1.0
    """Coefficient of the term."""
    words: Positive = 150
    """Length in words above which `length` penalizes a response."""


class OnlineConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of GRPO and RLOO."""

    num_generations: Annotated[int, Meta(ge=2)] = 8
    """Number of completions sampled per prompt. `batch_size` × `gradient_accumulation` × processes must be a multiple of it."""
    max_tokens: Positive = 128
    """Maximum length of a completion, in tokens. The monitor uses it for DPO and KTO too."""
    temperature: Rate = 1.0
    """Sampling temperature."""
    missing_eos_penalty: Annotated[float, Meta(ge=0)] | None = 1.0
    """Penalty subtracted from the reward of a completion that was cut at `max_tokens`, as in `ppo`. None: no penalty, and a cut answer is
    rewarded as a finished one."""
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
    temperature: Annotated[float, Meta(gt=0, le=5)] = 0.7
    """Sampling temperature."""
    local_rollout_forward_batch_size: Positive = 64
    """Number of responses sampled per batch in each process."""
    kl_coef: Annotated[float, Meta(ge=0)] = 0.05
    """Coefficient of the KL penalty in the reward."""
    target_kl: Rate | None = None
    """KL divergence to the reference, in nats per response, that an adaptive `kl_coef` aims at. None keeps `kl_coef` fixed."""
    kl_horizon: Positive = 10_000
    """Speed of the adaptation: over this many responses, a KL that is off by a fifth changes `kl_coef` by a fifth."""
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
    whiten_rewards: bool = False
    """Whether to scale rewards to unit variance. Their mean stays."""
    score_clip: Rate | None = None
    """Maximum absolute value of a score; larger ones are clipped. None doesn't clip."""
    missing_eos_penalty: Annotated[float, Meta(ge=0)] | None = 1.0
    """Penalty subtracted from the score of a response that was truncated at `response_length`. None: no penalty."""


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
    """Training method: `dpo`, `kto`, `online-dpo`, `grpo`, `rloo`, `ppo`. Installed packages can add others."""
    beta: Rate | None = None
    """Strength of the constraint to the reference model: β of DPO and KTO, and the KL coefficient of GRPO and RLOO. None: 0.04 for GRPO
    (arXiv 2402.03300, §4.2), 0.05 for RLOO (TRL), 0.1 for the others (arXiv 2305.18290, appendix B)."""
    online: OnlineConfig = OnlineConfig()
    """Settings of `grpo` and `rloo`."""
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

    @property
    def constraint(self) -> float:
        """`beta`, or the method's usual one."""
        return {"grpo": 0.04, "rloo": 0.05}.get(self.method, 0.1) if self.beta is None else self.beta

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


class EvaluateConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Evaluation of base model, SFT model and policy."""

    sampling: SteadySampling = SteadySampling()
    """Sampling of the responses to evaluation prompts."""
    told: Count = 48
    """Maximum number of prompts per principle that the base model answers with the principle in context, which shows what it is able to
    do. 0 skips this."""
    controls: str | None = None
    """Constitution file of principles that the training doesn't use. They are measured in the same way, and should not change."""
    knowledge: Count | None = None
    """Maximum number of factual questions, and of passages whose perplexity is measured. None uses all, 0 skips both."""

    @property
    def knowledge_files(self) -> tuple[str, ...]:
        """Files of the factual questions and of the passages, relative to the workspace; empty if `knowledge` is 0."""
        return () if self.knowledge == 0 else ("prompts/audit/facts.jsonl", "prompts/audit/passages.jsonl")


class Recipe(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one run."""

    name: Name
    """Name of the run and of its directory, `runs/NAME`. Defaults to the file's name."""
    description: str = ""
    """Free text for readers of the recipe."""
    seed: Count = 0
    """Seed of the run. All random choices derive from it."""
    seeds: tuple[Count, ...] = ()
    """Repeat the whole run with each of these seeds, as runs `NAME-seed-N`, and report the spread of the evaluation over them. Empty runs
    `seed` alone."""
    constitution: str = "constitution/general.yaml"
    """Constitution file, relative to the workspace."""
    templates: str = "prompts/templates"
    """Folder of the prompt templates, relative to the workspace."""
    model: ModelSpec = ModelSpec()
    """Model that responds, critiques and revises. It also judges, unless `feedback.judge` names another model."""
    weights: ModelSpec | None = None
    """Model to train. None: `model`. Required if `model` is a server."""
    prompts: Prompts = Prompts()
    """Training and evaluation prompts."""
    respond: Respond = Respond()
    """Initial responses."""
    critique: CritiqueConfig = CritiqueConfig()
    """Critique and revision."""
    distill: DistillConfig = DistillConfig()
    """Context distillation. Only if `sft.data` has `distill`."""
    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning on revisions, on responses under principles in context, or on both."""
    pairs: PairsConfig = PairsConfig()
    """Response pairs sampled from the SFT model."""
    feedback: FeedbackConfig = FeedbackConfig()
    """AI feedback on the pairs."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Mixture of AI and human labels."""
    reward: RewardConfig = RewardConfig()
    """Reward models."""
    gold: GoldConfig | None = None
    """Gold reward model, which measures over-optimization. None: no gold reward model and no over-optimization monitor."""
    policy: PolicyConfig = PolicyConfig()
    """Policy training."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    report_to: ReportTo = "none"
    """Experiment tracker that receives the run's metrics. Each one except `none` needs the package extra of that name."""
    window: Positive = 512
    """Maximum number of items in progress per stage. It bounds memory and doesn't change results."""
    max_failure_fraction: Fraction = 0.2
    """Fraction of failed items above which a stage stops."""

    @property
    def judge(self) -> ModelSpec:
        """The model that judges: `feedback.judge`, or `model`."""
        return self.feedback.judge or self.model

    @property
    def trained(self) -> ModelSpec:
        """The model that is trained: `weights`, or `model`."""
        return self.weights or self.model

    @property
    def wants_watch(self) -> bool:
        """Whether the over-optimization monitor runs during policy training, if the method has one."""
        return self.gold is not None and self.policy.watch.action != "off"

    @property
    def hash(self) -> str:
        """Content hash of all settings except name, description and tracker, which don't affect results."""
        return content_hash({**msgspec.to_builtins(self), "name": "", "description": "", "report_to": "none"})


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe. Names that packages can add are an enumeration of those that are installed here."""
    schema = msgspec.json.schema(Recipe)
    for definition in schema["$defs"].values():
        for property in definition.get("properties", {}).values():
            if (group := property.pop("x-names-of", None)) is not None:
                del property["type"]
                property["enum"] = list(names_of(KINDS[group]))
    return schema


def load_recipe(path: Path, overrides: Sequence[str] = (), name: str | None = None) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `key.path=value`; the value is parsed as YAML.
        name: replaces the recipe's name and thereby the run directory.

    Raises:
        RecipeError: listing every problem, with file, line and YAML path.
    """
    source = load_yaml(path, RecipeError, "runs")
    if not isinstance(source.data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of settings; found {type(source.data).__name__}")
    source.data.setdefault("name", path.stem)
    if name is not None:
        source.data["name"] = name
    problems = [problem for override in overrides for problem in _override(source, override)]
    problems += [*_retired(source.data), *schema_problems(source, recipe_schema())]
    if not problems:
        try:
            return msgspec.convert(source.data, Recipe)
        except msgspec.ValidationError as e:
            problems = [f"{path}: {e}"]
    raise RecipeError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n" + "\n".join(f"  {p}" for p in problems))


def _retired(data: dict[str, Any]) -> list[str]:
    """Take out settings of earlier versions that have only one value now; return what is wrong with another value."""
    policy = data.get("policy")
    ppo = policy.get("ppo") if isinstance(policy, dict) else None
    estimator = ppo.pop("kl_estimator", "k1") if isinstance(ppo, dict) else "k1"
    if estimator == "k1":
        return []
    return [
        f"policy.ppo.kl_estimator: {estimator!r} is gone: as a reward, the gradient of k3 is not that of the KL divergence. Leave the key "
        "out; the penalty is the log-ratio (k1)"
    ]


def recipe_keys() -> tuple[str, ...]:
    """Return the dotted path of every key that a recipe may have outside lists, sections included."""
    schema = recipe_schema()

    def below(node: dict[str, Any], at: str) -> Iterator[str]:
        for choice in (node, *node.get("anyOf", ())):
            definition = schema["$defs"][choice["$ref"].rsplit("/", 1)[1]] if "$ref" in choice else {}
            for key, value in definition.get("properties", {}).items():
                yield f"{at}{key}"
                yield from below(value, f"{at}{key}.")

    return tuple(below(schema, ""))


def _override(source: YamlSource, text: str) -> list[str]:
    """Set one value. Returns what is wrong with its key; the value is validated together with the file's."""
    key, eq, value = text.partition("=")
    if not eq or not key:
        raise RecipeError(f"--set {text}: expected key.path=value, for example --set critique.rounds=2")
    data = parse_yaml(value.encode(errors="surrogateescape"), Path(f"--set {key}"), RecipeError).data
    path = tuple(key.split("."))
    known = recipe_keys()
    if key not in known and key not in _RETIRED:
        return [f"--set {text}: unknown key {key!r}{_which_key(path, known)}"]
    node = source.data
    for parent in path[:-1]:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"{source.where(path)}: {parent!r} is not a block of settings")
    node[path[-1]] = data
    source.origins[path] = f"--set {text}"
    return []


def _which_key(path: tuple[str, ...], known: tuple[str, ...]) -> str:
    """Return a suggestion for an unknown key: the same key in other sections, a similar key, or else all keys of its section."""
    key = ".".join(path)
    if whole := [k for k in known if k.endswith(f".{key}")]:
        return f". Did you mean {' or '.join(map(repr, whole))}?"
    section = next(p for n in range(len(path) - 1, -1, -1) if not (p := ".".join(path[:n])) or p in known)
    inside = [k for k in known if k.rpartition(".")[0] == section]
    if section and not inside:
        return f"; {section!r} is not a block of settings"
    if key.removeprefix(f"{section}.") != path[-1]:
        return did_you_mean(key, known) or f"; known: {', '.join(inside)}"
    similar = get_close_matches(path[-1], [k.rpartition(".")[2] for k in inside], n=1)
    return f". Did you mean {f'{section}.{similar[0]}'.lstrip('.')!r}?" if similar else f"; known: {', '.join(inside)}"


_RETIRED = ("policy.ppo.kl_estimator",)
"""Keys of earlier versions, which `_retired` takes out."""
