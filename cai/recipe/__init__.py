"""The recipe: all settings of a run in one YAML file, validated before the run starts.

The types of this room define every key, its default and its range. The JSON Schema that validates a recipe is generated from them, so
unknown keys, wrong types and values out of range are reported together, each with its line. `--set critique.rounds=2` changes one value.
"""

from cai.recipe.base import ModelSpec, Precision, SamplingSpec, Section, SteadySampling
from cai.recipe.data import CritiqueConfig, DistillConfig, PairsConfig, Placement, Prompts, PromptSource, Respond
from cai.recipe.labels import FeedbackConfig, HumanSource, KindShares, Pooling, PreferencesConfig, SourceMix
from cai.recipe.load import load_recipe, recipe_keys, recipe_schema
from cai.recipe.own import own_problems_of, own_settings
from cai.recipe.policy import (
    BlendConfig,
    DPOConfig,
    DPOLoss,
    MonitorConfig,
    OnlineConfig,
    PolicyConfig,
    PPOSpec,
    RewardTerm,
    RoundsConfig,
    SelfDistillConfig,
)
from cai.recipe.recipe import EvaluateConfig, Recipe, ReportTo
from cai.recipe.train import (
    GOLD,
    Aggregate,
    BeginningsConfig,
    GoldConfig,
    LoraSpec,
    PairTrainSpec,
    RewardConfig,
    SFTConfig,
    SFTData,
    Slices,
    TrainSpec,
)

__all__ = [
    "GOLD",
    "Aggregate",
    "BeginningsConfig",
    "BlendConfig",
    "CritiqueConfig",
    "DPOConfig",
    "DPOLoss",
    "DistillConfig",
    "EvaluateConfig",
    "FeedbackConfig",
    "GoldConfig",
    "HumanSource",
    "KindShares",
    "LoraSpec",
    "ModelSpec",
    "MonitorConfig",
    "OnlineConfig",
    "PPOSpec",
    "PairTrainSpec",
    "PairsConfig",
    "Placement",
    "PolicyConfig",
    "Pooling",
    "Precision",
    "PreferencesConfig",
    "PromptSource",
    "Prompts",
    "Recipe",
    "ReportTo",
    "Respond",
    "RewardConfig",
    "RewardTerm",
    "RoundsConfig",
    "SFTConfig",
    "SFTData",
    "SamplingSpec",
    "Section",
    "SelfDistillConfig",
    "Slices",
    "SourceMix",
    "SteadySampling",
    "TrainSpec",
    "load_recipe",
    "own_problems_of",
    "own_settings",
    "recipe_keys",
    "recipe_schema",
]
