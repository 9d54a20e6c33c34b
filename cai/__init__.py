"""Align a language model with a written constitution: critique and revision, AI feedback, reward models and policies.

The names below are the public API. They are imported when first used, so `import cai` loads neither torch nor transformers.

GNU's OpenMP, which PyTorch uses, reads its settings when it is loaded, so `GOMP_SPINCOUNT` is set here. By default a thread that has
finished its part spins for some milliseconds while it waits for the others. Beside other work on the same cores these wait for its core,
and decoding was several times slower. 10,000 rounds are some tenths of a millisecond; then the thread sleeps.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:
    from cai.constitution.load import load_constitution
    from cai.core.workspace import Workspace, find_workspace, init_workspace
    from cai.errors import CaiError
    from cai.evaluate.adherence_table import AdherenceReport, adherence_of_run
    from cai.evaluate.audit.run import audit_run
    from cai.evaluate.commands import Evaluation, adherence_of_models, bench_judge, evaluate_models
    from cai.judge.bench import JudgeBench
    from cai.judge.judge import Judge
    from cai.labels.load import load_pairs
    from cai.models.base import TextModel
    from cai.models.requests import Sampling
    from cai.pipeline.methods.grpo import GRPO
    from cai.pipeline.methods.rloo import RLOO
    from cai.pipeline.run import Run, SeedRuns, run, run_seeds
    from cai.recipe import ModelSpec, PolicyConfig, Recipe, RewardConfig, RewardTerm, SFTConfig, load_recipe
    from cai.records import (
        AuditFinding,
        Constitution,
        EvalResult,
        Judgment,
        Message,
        Preference,
        Principle,
        Prompt,
        Response,
        ResponsePair,
        RevisionTrace,
        SFTExample,
    )
    from cai.session import Session
    from cai.train.dpo import train_dpo
    from cai.train.kto import train_kto
    from cai.train.reward.ensemble import load_ensemble
    from cai.train.reward.train import train_reward
    from cai.train.rl.grpo import train_online
    from cai.train.rl.online_method import OnlineMethod
    from cai.train.rl.ppo import PPOWatch, train_ppo
    from cai.train.rl.rewards import RewardFunction
    from cai.train.rl.self_distill import train_self_distilled
    from cai.train.running import PolicyJob
    from cai.train.sft import train_sft

_HOMES = {
    "cai.constitution.load": ("load_constitution",),
    "cai.core.workspace": ("Workspace", "find_workspace", "init_workspace"),
    "cai.errors": ("CaiError",),
    "cai.evaluate.adherence_table": ("AdherenceReport", "adherence_of_run"),
    "cai.evaluate.audit.run": ("audit_run",),
    "cai.evaluate.commands": ("Evaluation", "adherence_of_models", "bench_judge", "evaluate_models"),
    "cai.judge.bench": ("JudgeBench",),
    "cai.judge.judge": ("Judge",),
    "cai.labels.load": ("load_pairs",),
    "cai.models.base": ("TextModel",),
    "cai.models.requests": ("Sampling",),
    "cai.pipeline.methods.grpo": ("GRPO",),
    "cai.pipeline.methods.rloo": ("RLOO",),
    "cai.pipeline.run": ("Run", "SeedRuns", "run", "run_seeds"),
    "cai.recipe": ("ModelSpec", "PolicyConfig", "Recipe", "RewardConfig", "RewardTerm", "SFTConfig", "load_recipe"),
    "cai.records": (
        "AuditFinding",
        "Constitution",
        "EvalResult",
        "Judgment",
        "Message",
        "Preference",
        "Principle",
        "Prompt",
        "Response",
        "ResponsePair",
        "RevisionTrace",
        "SFTExample",
    ),
    "cai.session": ("Session",),
    "cai.train.dpo": ("train_dpo",),
    "cai.train.kto": ("train_kto",),
    "cai.train.reward.ensemble": ("load_ensemble",),
    "cai.train.reward.train": ("train_reward",),
    "cai.train.rl.grpo": ("train_online",),
    "cai.train.rl.online_method": ("OnlineMethod",),
    "cai.train.rl.ppo": ("PPOWatch", "train_ppo"),
    "cai.train.rl.rewards": ("RewardFunction",),
    "cai.train.rl.self_distill": ("train_self_distilled",),
    "cai.train.running": ("PolicyJob",),
    "cai.train.sft": ("train_sft",),
}
"""The module that each public name comes from."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - by what they are for
    "Session",
    "run",
    "Run",
    "run_seeds",
    "SeedRuns",
    "Recipe",
    "load_recipe",
    "Workspace",
    "find_workspace",
    "init_workspace",
    "load_constitution",
    "Constitution",
    "Principle",
    "Message",
    "Prompt",
    "Response",
    "ResponsePair",
    "RevisionTrace",
    "SFTExample",
    "Judgment",
    "Preference",
    "EvalResult",
    "AuditFinding",
    "Judge",
    "TextModel",
    "Sampling",
    "ModelSpec",
    "SFTConfig",
    "RewardConfig",
    "PolicyConfig",
    "RewardTerm",
    "train_sft",
    "train_reward",
    "train_dpo",
    "train_kto",
    "PolicyJob",
    "train_ppo",
    "PPOWatch",
    "train_online",
    "OnlineMethod",
    "GRPO",
    "RLOO",
    "RewardFunction",
    "train_self_distilled",
    "load_ensemble",
    "Evaluation",
    "evaluate_models",
    "AdherenceReport",
    "adherence_of_models",
    "adherence_of_run",
    "load_pairs",
    "JudgeBench",
    "bench_judge",
    "audit_run",
    "CaiError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cai' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
