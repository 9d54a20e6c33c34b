"""The stages of a run, in order, with what each reads, writes and depends on.

Stages exchange data only through files in the run directory, so each one can be run, replaced, inspected or resumed alone. The model
batches requests, not the stages.
"""

from typing import Any

from msgspec import UNSET

from cai.data.splits import SIMILARITY
from cai.labels.load import local_sources
from cai.pipeline.blending import blend_stage
from cai.pipeline.driver import Stage
from cai.pipeline.evaluating import evaluate_stage, report_stage
from cai.pipeline.making_data import (
    critique_stage,
    distill_stage,
    feedback_stage,
    pair_files,
    pairs_stage,
    preferences_stage,
    respond_stage,
)
from cai.pipeline.methods import METHODS, is_watched
from cai.pipeline.policy_method import judge_sources
from cai.pipeline.reward_models import gold_data, gold_model, reward_models
from cai.pipeline.training import EXAMPLES_OF, policy_stage, reward_stage, sft_stage
from cai.recipe import Recipe


def _similarity(recipe: Recipe) -> list[float | None]:
    """Return the recipe's similarity of near-duplicates, unless it is the default."""
    return [] if recipe.prompts.near_duplicates == SIMILARITY else [recipe.prompts.near_duplicates]


def _if_begun(recipe: Recipe, path: str) -> tuple[str, ...]:
    return () if recipe.sft.beginnings is UNSET else (path,)


def _policy_settings(recipe: Recipe) -> Any:
    """Return what decides the policy: what its method names, and the method's own settings if the recipe gives some."""
    named = METHODS.get(recipe.policy.method).settings(recipe)
    return named if recipe.policy.settings is UNSET else (named, recipe.policy.settings)


STAGES: tuple[Stage, ...] = (
    Stage(
        "respond",
        respond_stage,
        reads=lambda r: (),
        writes=lambda r: ("data/prompts.jsonl", "data/eval_prompts.jsonl", "data/responses.jsonl"),
        settings=lambda r: (r.prompts, r.respond),
        models=lambda r: (r.model,),
        uses_templates=True,
        uses_prompts=True,
    ),
    Stage(
        "critique",
        critique_stage,
        reads=lambda r: ("data/responses.jsonl",),
        writes=lambda r: ("data/traces.jsonl", "data/sft.jsonl", "data/revision_pairs.jsonl"),
        settings=lambda r: (r.critique, r.feedback),
        sources=judge_sources,
        models=lambda r: (r.model, r.judge),
        uses_constitution=True,
        uses_templates=True,
    ),
    Stage(
        "distill",
        distill_stage,
        reads=lambda r: ("data/prompts.jsonl", *_if_begun(r, "data/eval_prompts.jsonl"), "data/responses.jsonl"),
        writes=lambda r: ("data/distilled.jsonl", "data/distilled_pairs.jsonl", *_if_begun(r, "data/beginnings.jsonl")),
        settings=lambda r: r.distill if r.sft.beginnings is UNSET else (r.distill, r.sft.beginnings.prompts, *_similarity(r)),
        sources=lambda r: [] if r.sft.beginnings is UNSET else local_sources(r.sft.beginnings.prompts),
        models=lambda r: (r.model,),
        uses_constitution=True,
        uses_templates=True,
    ),
    Stage(
        "sft",
        sft_stage,
        reads=lambda r: (*(f"data/{EXAMPLES_OF[name]}.jsonl" for name in r.sft.data), *_if_begun(r, "data/beginnings.jsonl")),
        writes=lambda r: ("models/sft", *_if_begun(r, "models/beginnings")),
        settings=lambda r: r.sft,
        models=lambda r: (r.trained,),
        trains=True,
        together=True,
    ),
    Stage(
        "pairs",
        pairs_stage,
        reads=lambda r: ("data/prompts.jsonl", "models/sft"),
        writes=lambda r: ("data/pairs.jsonl",),
        settings=lambda r: r.pairs,
        models=lambda r: (r.model, r.trained),
        trains=True,
        uses_constitution=True,
        uses_templates=True,
    ),
    Stage(
        "feedback",
        feedback_stage,
        reads=lambda r: tuple(f"data/{name}.jsonl" for name in pair_files(r)),
        writes=lambda r: ("data/judgments.jsonl", "data/judge_bench.jsonl"),
        settings=lambda r: r.feedback,
        models=lambda r: (r.judge,),
        uses_constitution=True,
        uses_templates=True,
        sources=lambda r: [*judge_sources(r), *([r.feedback.bench_pairs] if r.feedback.bench_pairs else [])],
    ),
    Stage(
        "preferences",
        preferences_stage,
        reads=lambda r: (*(f"data/{name}.jsonl" for name in pair_files(r)), "data/judgments.jsonl", "data/eval_prompts.jsonl"),
        writes=lambda r: ("data/preferences.jsonl", "data/preferences_heldout.jsonl", "data/balance.jsonl", *gold_data(r)),
        settings=lambda r: (
            r.preferences,
            r.gold and (r.gold.human, r.gold.fraction, r.gold.held_out_fraction),
            *_similarity(r),
        ),
        sources=lambda r: [
            *local_sources((*r.preferences.human, *(r.gold.human if r.gold else ()))),
            *judge_sources(r),
        ],
    ),
    Stage(
        "reward",
        reward_stage,
        reads=lambda r: ("data/preferences.jsonl", "data/preferences_heldout.jsonl", *gold_data(r)),
        writes=lambda r: (*reward_models(r), *gold_model(r), "data/reward_scores.jsonl", "data/reward_measures.jsonl"),
        settings=lambda r: (r.reward, r.gold and r.gold.reward, *_similarity(r)),
        models=lambda r: (r.trained,),
        trains=True,
        together=True,
    ),
    Stage(
        "policy",
        policy_stage,
        reads=lambda r: METHODS.get(r.policy.method).reads(r),
        writes=lambda r: ("models/policy",),
        settings=_policy_settings,
        sources=lambda r: METHODS.get(r.policy.method).sources(r),
        models=lambda r: METHODS.get(r.policy.method).models(r),
        trains=True,
        together=True,
        uses_constitution=True,
        uses_templates=True,
    ),
    Stage(
        "blend",
        blend_stage,
        reads=lambda r: ("data/prompts.jsonl", "data/eval_prompts.jsonl", "models/sft", "models/policy"),
        writes=lambda r: ("models/blend", "data/blend.jsonl"),
        settings=lambda r: (r.blend, *_similarity(r)),
        sources=lambda r: local_sources(r.blend.prompts) if r.blend else [],
        models=lambda r: (r.trained,),
        trains=True,
        uses_constitution=True,
        uses_templates=True,
    ),
    Stage(
        "evaluate",
        evaluate_stage,
        reads=lambda r: (
            "data/eval_prompts.jsonl",
            "models/sft",
            *reward_models(r),
            "data/reward_measures.jsonl",
            "models/policy",
            *(["models/blend"] if r.blend else []),
        ),
        writes=lambda r: ("data/evaluation.jsonl", "data/samples.jsonl", "data/adherence.jsonl"),
        settings=lambda r: (
            (r.evaluate, r.distill.placement, r.feedback, r.reward.aggregate, r.reward.uncertainty_penalty),
            r.policy.watch.prompts if is_watched(r) else None,
        ),
        sources=lambda r: [*judge_sources(r), *r.evaluate.knowledge_files, *([r.evaluate.controls] if r.evaluate.controls else [])],
        models=lambda r: (r.trained, r.judge),
        trains=True,
        uses_constitution=True,
        uses_templates=True,
    ),
    Stage("report", report_stage, reads=lambda r: (), writes=lambda r: ("report.html",), settings=lambda r: None, always=True),
)
