"""A recipe: everything that decides a run, as one YAML file checked in full before anything starts.

The types below are the only place where a default lives; the JSON Schema that checks a recipe is made from them, so an unknown key,
a wrong type and a number out of range are all reported at once, each with its line. `--set critique.rounds=2` changes one value.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

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
"""`auto`: bfloat16 where the hardware multiplies it, else float32. `nf4`: 4-bit weights, bfloat16 arithmetic (QLoRA)."""
Slices = Literal["all", "folds", "parts", "bootstrap", "source", "principle"]
Aggregate = Literal["mean", "min", "uncertainty"]
DPOLoss = Literal["sigmoid", "robust", "ipo", "sigmoid_norm"]
KlEstimator = Literal["k1", "k3"]
ReportTo = Literal["none", "tensorboard", "trackio", "wandb"]
ProtocolName = Literal["pairwise", "pairwise-cot", "pointwise", "pointwise-contrast", "likelihood"]

ONLINE = ("grpo", "rloo")
"""Methods whose policy learns from its own samples."""
GOLD = "gold"
"""The gold reward model's name: of its pairs in `data/`, and of its folder in `models/`."""


Pooling = Literal["votes", "dawid-skene"]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of a recipe; unknown keys are errors."""


class ModelSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model to use and how to load or reach it."""

    path: str = "embedded"
    """`embedded` (the small model that `cai` brings), a folder or Hub id, or the `http(s)://…/v1` URL of an OpenAI-compatible server. One
    URL: several servers of one model stand behind `vllm-router`, or one `vllm serve --data-parallel-size N` (docs/servers.md)."""
    name: str | None = None
    """For a URL: the model's name on the server."""
    adapter: str | None = None
    """Folder of a LoRA adapter to put on top; for a URL, the adapter's name on the server."""
    precision: Precision = "auto"
    batch_size: Positive = 64
    """Sequences that the local model runs at once."""
    max_length: Positive = 2048
    """Longest prompt plus completion, in tokens; a longer prompt is a counted failure."""
    concurrency: Positive = 64
    """For a URL: requests in flight."""
    timeout_seconds: Rate = 120.0
    prompt_price: Annotated[float, Meta(ge=0)] = 0.0
    """US dollars per million prompt tokens; 0 for a model of your own."""
    completion_price: Annotated[float, Meta(ge=0)] = 0.0
    trust_remote_code: bool = False
    api_key_env: str = "CAI_API_KEY"
    """For a URL: the environment variable that holds the key. The key itself never goes into a recipe."""

    @property
    def is_server(self) -> bool:
        """Whether `path` is the URL of a server."""
        return self.path.startswith(("http://", "https://"))


class PromptSource(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file or Hub dataset of prompts."""

    path: str
    """JSONL, CSV or text file (from the workspace), a glob, or `hub:OWNER/NAME`."""
    format: Literal["auto", "cai", "hh", "jsonl", "csv", "text", "hub"] = "auto"
    kind: PromptKind | None = None
    """For rows that don't say it themselves."""
    limit: Positive | None = None
    """Take this many, chosen by hash of the run's seed and the prompt's id, so that a higher limit only adds."""
    split: str = "train"
    field: str = "prompt"


class Prompts(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    train: tuple[PromptSource, ...] = (PromptSource(path="prompts/harmful.jsonl"), PromptSource(path="prompts/helpful.jsonl"))
    evaluate: tuple[PromptSource, ...] = (
        PromptSource(path="prompts/eval_harmful.jsonl"),
        PromptSource(path="prompts/eval_borderline.jsonl"),
        PromptSource(path="prompts/eval_helpful.jsonl"),
    )
    near_duplicates: Annotated[float, Meta(gt=0, le=1)] | None = 0.8
    """Drop a training prompt that shares at least this part of its five-word runs (Jaccard) with an evaluation prompt or an earlier
    training prompt; None keeps all but exact repeats. The search takes a tenth of a millisecond a short prompt, and more the more of them
    share some wording without being repeats: a million made from one sentence are not to be searched."""


class SamplingSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_tokens: Positive = 128
    temperature: Annotated[float, Meta(ge=0, le=5)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0


class SteadySampling(SamplingSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling a little colder than the model's own distribution."""

    temperature: Annotated[float, Meta(ge=0, le=5)] = 0.7


class Respond(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First responses of the model, to be critiqued."""

    sampling: SamplingSpec = SamplingSpec()


class CritiqueConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Critique and revision (Bai et al. 2022, §3)."""

    rounds: Positive = 1
    sampling: SteadySampling = SteadySampling()
    train_on: Literal["final", "every"] = "final"
    """Which revisions become SFT data; the paper leaves it open."""
    kinds: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful", "other")
    """Prompts of these kinds are critiqued; the others' first responses are imitated as they are."""
    min_p_revised: Fraction = 0.5
    """Drop a revision that the judge finds better than the response with a lower probability than this. 0 keeps all."""
    drop_refusals: bool = True
    """Drop revisions in which the model refused the revision request itself, or refuses a prompt that isn't harmful."""


class LoraSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rank: Positive = 16
    alpha: Positive = 32
    dropout: Fraction = 0.0
    target_modules: str = "all-linear"
    """`all-linear`, or names with commas between: `q_proj,v_proj`."""
    layers: Positive | None = None
    """Adapt only the last so many layers, which saves the others' backward pass; None: all."""


class TrainSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What SFT, reward and DPO training share."""

    precision: Precision = "auto"
    epochs: Annotated[float, Meta(gt=0)] = 1.0
    learning_rate: Rate = 2e-4
    batch_size: Positive = 8
    """Examples per step and process, before accumulation."""
    gradient_accumulation: Positive = 1
    max_length: Positive = 512
    warmup_fraction: Fraction = 0.1
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    gradient_checkpointing: bool = False
    save_steps: Positive = 50
    lora: LoraSpec = LoraSpec()


class SFTConfig(TrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning on revisions, the prompt masked."""


class PairsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Response pairs sampled from the SFT policy."""

    per_prompt: Positive = 1
    sampling: SamplingSpec = SamplingSpec()
    contrast: bool = False
    """Also make RLCD pairs (arXiv 2307.12950): one answer asked for under the principle, one against it, labelled by construction."""
    contrast_p: Annotated[float, Meta(ge=0.5, le=1)] = 0.9
    """Label of a contrast pair."""


class FeedbackConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AI feedback: who judges, how, and under which principles."""

    protocol: ProtocolName = "pointwise-contrast"
    judge: ModelSpec | None = None
    """None: the run's base model judges."""
    principles: Literal["sample", "ensemble"] = "ensemble"
    """Per label: some principles drawn by the pair's id, or all that apply, averaged by weight."""
    per_label: Positive = 1
    """With `sample`: principles per label."""
    cot_clamp: tuple[Fraction, Fraction] | None = (0.4, 0.6)
    """For `pairwise-cot`: clamp probabilities, as the paper does (§4.1)."""
    cot_max_tokens: Positive = 256
    bench_pairs: str | None = "prompts/probe_pairs.jsonl"
    """Human-labelled pairs on which the judge is measured before it labels; None skips it, and the run says so."""
    bench_limit: Positive = 400
    calibration: str | None = None
    """What `cai judge calibrate` wrote for this very judge: its answers are weighed as people's labels said."""


class SourceMix(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the labels of one source enter the mixture: first `temperature`, then `noise`, then `weight`."""

    weight: Annotated[float, Meta(ge=0)] = 1.0
    """Multiplies each example's loss; 0 leaves the source out."""
    temperature: Rate = 1.0
    """Log-odds are divided by it: above 1 calms an overconfident source. A label of exactly 1 stays 1: that is for `noise`."""
    noise: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """Part of the source's labels taken to be wrong: p becomes (1 − 2·noise)·p + noise."""
    limit: Positive | None = None
    """Keep this many, chosen by hash of the run's seed and the pair, so that a higher limit only adds."""


class HumanSource(SourceMix, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    """A file that `cai human import` reads or wrote, a glob, or `hub:OWNER/NAME`."""
    split: str = "train"
    """Of a Hub dataset."""
    pooling: Pooling = "votes"
    """How several people's labels of one pair become one probability: their share, or weighed by each one's reliability."""
    smoothing: Annotated[float, Meta(ge=0)] = 0.0
    """Votes to imagine on either side: with 1, two people who agree make 3/4 instead of certainty."""
    kind: PromptKind | None = None


class PreferencesConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mixing judged pairs and human labels into training and held-out sets, split by prompt."""

    human: tuple[HumanSource, ...] = ()
    ai: SourceMix = SourceMix()
    """Sampled pairs that the judge labelled."""
    revision: SourceMix = SourceMix()
    """Responses against their revisions, labelled by the judge."""
    contrast: SourceMix = SourceMix()
    """Pairs labelled by construction."""
    min_margin: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """Drop pairs whose |p − ½|, after temperature and noise, is below this."""
    held_out_fraction: Fraction = 0.1


class PairTrainSpec(TrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What trainings on pairs share."""

    share_prompt: Literal["auto", "always", "never"] = "auto"
    """Run the prompt of a pair once for both sides, and no padding. The loss is the same up to rounding. `auto`: on a CPU, where
    the model is seen to honour it; a GPU pads, because nothing was measured there."""


class RewardConfig(PairTrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bradley–Terry reward models: each a scalar head and a LoRA adapter; together an ensemble over one base."""

    learning_rate: Rate = 5e-4
    center: Annotated[float, Meta(ge=0)] = 0.01
    """Coefficient of the squared sum of both rewards, which keeps scores near 0."""
    margin: Annotated[float, Meta(ge=0)] = 0.0
    """Score difference that a certain label asks for before its loss fades (Llama 2, eq. 2); a label p asks for |2p − 1| of it."""
    balance_length: bool = False
    """Weigh pairs so that longer and shorter answers win equally often, at each difference in length: against learning that alone."""
    members: Positive = 1
    """Reward models in the ensemble."""
    slices: Slices = "all"
    """What each member is trained on. `all`: everything, so members differ by seed. `folds`: everything but its own fold of the prompts.
    `parts`: its own part of the prompts only. `bootstrap`: as many prompts as there are, drawn with replacement. `source`, `principle`: the
    labels of some sources or principles, which are dealt out to the members."""
    aggregate: Aggregate = "mean"
    """How members' scores become one: `mean`, `min` (the worst case), or `uncertainty`: mean − penalty × std."""
    uncertainty_penalty: Annotated[float, Meta(ge=0)] = 1.0
    """Standard deviations of the members' scores that `uncertainty` takes off the mean."""

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members, and of their folders under `models/`."""
        return tuple(f"reward-{i}" for i in range(self.members))

    @property
    def member(self) -> "RewardConfig":
        """What decides one member, given its labels: the ensemble's own settings at their defaults."""
        own = RewardConfig()
        return msgspec.structs.replace(
            self, members=own.members, slices=own.slices, aggregate=own.aggregate, uncertainty_penalty=own.uncertainty_penalty
        )


class GoldConfig(TrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gold reward model, to measure over-optimisation with: it never sees the reward models' pairs, nor they its own."""

    learning_rate: Rate = 5e-4
    lora: LoraSpec = LoraSpec(rank=32, alpha=64)
    """Of another shape than the reward models', so that the two err in different ways."""
    balance_length: bool = False
    """As in `reward`."""
    human: tuple[HumanSource, ...] = ()
    """Label files of its own. Pairs of `preferences` with a prompt that is in them are dropped, and counted."""
    fraction: Fraction = 0.0
    """Share of the prompts of `preferences` that is set apart for it."""
    held_out_fraction: Fraction = 0.2
    """Share of its prompts that it is measured on."""

    @property
    def reward(self) -> RewardConfig:
        """The settings of its training, as a reward model's."""
        return RewardConfig(**{name: getattr(self, name) for name in (*TrainSpec.__struct_fields__, "balance_length")})


class MonitorConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Watching for over-optimisation: does gold fall while the reward that the policy is trained on rises, or do answers come apart?"""

    action: Literal["off", "warn", "stop"] = "warn"
    """What happens once they do: nothing is looked at, a warning, or training ends there."""
    every_steps: Positive = 20
    prompts: Positive = 64
    """At most this many of the evaluation prompts, and at most half of them, chosen by hash. `evaluate` leaves them out."""
    patience: Positive = 2
    """Looks in a row that must find it."""
    min_drop: Annotated[float, Meta(ge=0)] = 1.0
    """How far gold must have fallen from its best, in half-widths of the 95 % interval of that change."""
    min_words: Fraction = 0.25
    """Answers vanish where their mean length is below this share of the first look's. 0 allows any."""
    min_distinct: Fraction = 0.5
    """Answers are alike where the share of different two-word runs in all of them is below this share of the first look's. 0 allows any."""
    max_repetition: Fraction = LOOPING
    """Answers loop where more than this share of their four-word runs are repeats, and it was less at the first look."""
    select: Literal["best", "last"] = "best"
    """Which weights become the policy: those of the look with the highest gold reward among those whose answers are whole, or the last."""


class DPOConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which loss of the DPO family, for `dpo` and `online-dpo`; all take soft labels and weights."""

    loss: DPOLoss = "sigmoid"
    """`ipo` and `sigmoid_norm` go by log-ratios per token, so `beta` means something else there: try 0.1 for `ipo`, 2 to 10 for
    `sigmoid_norm`."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """Part of the labels taken to be wrong: `robust` undoes it (arXiv 2403.00409), the others mix it into the label (cDPO)."""
    ld_alpha: Fraction | None = None
    """Length-desensitised DPO (arXiv 2409.06411): weight of the tokens beyond the shorter side's length; None and 1: all count alike."""
    sft_weight: Annotated[float, Meta(ge=0)] = 0.0
    """Of the negative log-likelihood per token of the better side, added to the loss."""


class RewardTerm(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that a policy is rewarded for while it samples; the terms are weighted and added up."""

    term: Literal["model", "constitution", "length", "refusal"] = "model"
    """`model`: the run's reward models. `constitution`: the judge's log-odds that the response follows the principles, uncalibrated (a
    calibration is of pairs). `length`: minus the words above `words`, as a share of `words`. `refusal`: −1 for refusing a prompt that
    isn't harmful."""
    weight: float = 1.0
    words: Positive = 150


class OnlineConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Policies that learn from their own samples, with GRPO or RLOO."""

    num_generations: Annotated[int, Meta(ge=2)] = 8
    """Completions of one prompt, which are each other's baseline. `batch_size` × `gradient_accumulation` × processes is a multiple."""
    max_tokens: Positive = 128
    """Of a completion; and of those that a watch samples from a policy of DPO or KTO."""
    temperature: Rate = 1.0
    rewards: Annotated[tuple[RewardTerm, ...], Meta(min_length=1)] = (RewardTerm(),)
    patience: Positive = 5
    """Steps in a row without any difference of reward within a prompt's completions after which training stops: it learns nothing."""


class PPOSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proximal policy optimization, with TRL's names and, where nothing is said, TRL's defaults.

    A step samples `batch_size` × `gradient_accumulation` × `num_mini_batches` responses in each process, and goes over them
    `num_ppo_epochs` times; `batch_size` alone bounds the memory.
    """

    total_episodes: Positive | None = None
    """Responses to sample in all, rounded up to whole steps; None: `epochs` passes over the prompts."""
    num_mini_batches: Positive = 1
    num_ppo_epochs: Positive = 4
    response_length: Positive = 128
    """Longest response in tokens."""
    temperature: Annotated[float, Meta(gt=0, le=5)] = 0.7
    local_rollout_forward_batch_size: Positive = 64
    """Responses that are sampled at once in a process."""
    kl_coef: Annotated[float, Meta(ge=0)] = 0.05
    kl_estimator: KlEstimator = "k1"
    target_kl: Rate | None = None
    """Nats per response that `kl_coef` is adapted to hold; None keeps it fixed."""
    kl_horizon: Positive = 10_000
    """Responses over which an error of a fifth changes `kl_coef` by a fifth."""
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    cliprange: Rate = 0.2
    cliprange_value: Rate = 0.2
    vf_coef: Annotated[float, Meta(ge=0)] = 0.1
    max_grad_norm: Rate = 1.0
    whiten_rewards: bool = False
    score_clip: Rate | None = None
    missing_eos_penalty: Annotated[float, Meta(ge=0)] | None = 1.0
    """Taken off the score of a response that was cut at `response_length`; None takes nothing."""


class RoundsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rounds of `online-dpo`: sample pairs (as `pairs` says) from the policy, have them judged, train on them by `dpo`, again."""

    count: Positive = 3
    labels: Literal["judge", "reward"] = "judge"
    """Who judges the new pairs: the run's judge, or its reward models."""
    reference: Literal["sft", "previous"] = "sft"
    """Reference of the later rounds. `sft`: the distance to one model is bounded over all rounds; `previous`: each round's anew."""
    prompts: Positive | None = None
    """Training prompts drawn for each round, other ones each time; None takes all, with new samples."""


class PolicyConfig(PairTrainSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy, trained from the SFT adapter with it as the reference."""

    learning_rate: Rate = 5e-5
    method: Literal["dpo", "kto", "online-dpo", "grpo", "rloo", "ppo"] = "dpo"
    beta: Rate = 0.1
    """How strongly the policy is held to its reference: DPO's β, the coefficient of the KL in GRPO and RLOO."""
    online: OnlineConfig = OnlineConfig()
    ppo: PPOSpec = PPOSpec()
    watch: MonitorConfig = MonitorConfig()
    dpo: DPOConfig = DPOConfig()
    rounds: RoundsConfig = RoundsConfig()

    def group_problem(self, processes: int = 1) -> str | None:
        """Say what is wrong with the batch of a method that compares completions of one prompt; None where it is right."""
        batch, group = self.batch_size * self.gradient_accumulation * processes, self.online.num_generations
        if self.method not in ONLINE or batch % group == 0:
            return None
        return (
            f"policy.online.num_generations: {group} completions of a prompt don't fill a step of {batch} "
            f"(batch_size {self.batch_size} × gradient_accumulation {self.gradient_accumulation} × processes {processes}). "
            f"Make the step a multiple of {group}: for example batch_size: {group}"
        )


class EvaluateConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sampling: SteadySampling = SteadySampling()
    knowledge: Count | None = None
    """Short questions with known answers, and passages whose perplexity is measured: at most so many of each; None takes all."""

    @property
    def knowledge_files(self) -> tuple[str, ...]:
        """Where those are, from the workspace: questions, then passages."""
        return () if self.knowledge == 0 else ("prompts/audit/facts.jsonl", "prompts/audit/passages.jsonl")


class Recipe(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole run."""

    name: Name
    description: str = ""
    seed: Count = 0
    constitution: str = "constitution/general.yaml"
    templates: str = "prompts/templates"
    model: ModelSpec = ModelSpec()
    """Answers, critiques and revises; also judges, unless `feedback.judge` names another."""
    weights: ModelSpec | None = None
    """What is trained, and sampled from once it is; None: `model`. Needed where `model` is a server, which has no weights here."""
    prompts: Prompts = Prompts()
    respond: Respond = Respond()
    critique: CritiqueConfig = CritiqueConfig()
    sft: SFTConfig = SFTConfig()
    pairs: PairsConfig = PairsConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    reward: RewardConfig = RewardConfig()
    gold: GoldConfig | None = None
    """None: no gold reward model, and over-optimisation can't be seen."""
    policy: PolicyConfig = PolicyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report_to: ReportTo = "none"
    """Where the run's numbers are sent as they come; each but `none` is an extra of the package."""
    window: Positive = 512
    """Items in flight per stage: bounds memory, not results."""
    max_failure_fraction: Fraction = 0.2
    """A stage stops when more of its items than this have failed."""

    @property
    def trained(self) -> ModelSpec:
        """The model that is trained."""
        return self.weights or self.model

    @property
    def watched(self) -> bool:
        """Whether a gold reward model looks for over-optimisation while the policy trains. The rounds of online DPO have no watch."""
        return self.gold is not None and self.policy.watch.action != "off" and self.policy.method != "online-dpo"

    @property
    def hash(self) -> str:
        """Content hash of every setting but name, description and tracker, which decide nothing."""
        return content_hash({**msgspec.to_builtins(self), "name": "", "description": "", "report_to": "none"})


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe."""
    return msgspec.json.schema(Recipe)


def load_recipe(path: Path, overrides: Sequence[str] = (), name: str | None = None) -> Recipe:
    """Read, check and freeze a recipe.

    Args:
        path: the YAML file.
        overrides: `key.path=value`, the value read as YAML.
        name: replaces the recipe's name, and so the run directory.

    Raises:
        RecipeError: listing every problem, with file, line and YAML path.
    """
    source = load_yaml(path, RecipeError)
    if not isinstance(source.data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of settings; found {type(source.data).__name__}")
    source.data.setdefault("name", path.stem)
    if name is not None:
        source.data["name"] = name
    for override in overrides:
        _override(source, override)
    problems = schema_problems(source, recipe_schema())
    if not problems:
        try:
            return msgspec.convert(source.data, Recipe)
        except msgspec.ValidationError as e:
            problems = [f"{path}: {e}"]
    raise RecipeError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n" + "\n".join(f"  {p}" for p in problems))


def _override(source: YamlSource, text: str) -> None:
    key, eq, value = text.partition("=")
    if not eq or not key:
        raise RecipeError(f"--set {text}: expected key.path=value, for example --set critique.rounds=2")
    *parents, last = key.split(".")
    node = source.data
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"--set {text}: {parent!r} is not a block of settings")
    node[last] = parse_yaml(value.encode(errors="surrogateescape"), Path(f"--set {key}"), RecipeError).data
