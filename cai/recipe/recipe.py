"""A whole recipe."""

from typing import Literal

import msgspec

from cai.ids import content_hash
from cai.recipe.base import Count, Fraction, ModelSpec, Name, Positive, Section, SteadySampling
from cai.recipe.data import CritiqueConfig, DistillConfig, PairsConfig, Prompts, Respond
from cai.recipe.labels import FeedbackConfig, PreferencesConfig
from cai.recipe.policy import BlendConfig, PolicyConfig
from cai.recipe.train import GoldConfig, RewardConfig, SFTConfig

ReportTo = Literal["none", "tensorboard", "trackio", "wandb"]


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
    blend: BlendConfig | None = None
    """Blend of SFT model and policy, which becomes the run's last model. None: no blend."""
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
    def trains_its_writer(self) -> bool:
        """Whether the model that writes is the model that is trained, as far as their names say."""
        return self.weights is None or self.weights.path == (self.model.name if self.model.is_server else self.model.path)

    @property
    def wants_watch(self) -> bool:
        """Whether the over-optimization monitor runs during policy training, if the method has one."""
        return self.gold is not None and self.policy.watch.action != "off"

    @property
    def hash(self) -> str:
        """Content hash of all settings except name, description and tracker, which don't affect results."""
        return content_hash({**msgspec.to_builtins(self), "name": "", "description": "", "report_to": "none"})
