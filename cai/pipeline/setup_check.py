"""Everything that can be known to be wrong before any weights load, found and reported together."""

import os
from collections.abc import Sequence
from pathlib import Path

from cai.constitution.load import load_constitution
from cai.core.workspace import Workspace
from cai.data.prompts import is_hub
from cai.data.rows import source_files
from cai.errors import CaiError, RecipeError
from cai.judge.calibration import calibration_of
from cai.labels.load import local_sources
from cai.models.server.address import check_url
from cai.models.templates import Templates, load_templates
from cai.pipeline.tracking import missing_tracker
from cai.recipe import ONLINE, ModelSpec, Recipe
from cai.records import Constitution


def spec_fingerprint(spec: ModelSpec) -> str:
    """Return what identifies a model before it is opened. A server is known by name here; its engine asks it for the rest.

    Raises:
        ModelError: the URL can't be used, or the model's files aren't there.
    """
    if spec.is_server:
        check_url(spec.path)
    if spec.path == "scripted" or spec.is_server:
        return f"{spec.path}:{spec.name}:{spec.adapter}"
    from cai.models.local.loading import model_fingerprint

    return model_fingerprint(spec)


def local_prompts(recipe: Recipe, root: Path) -> Sequence[str]:
    """Return the paths and globs of the prompts that lie on this disk."""
    return [s.path for s in (*recipe.prompts.train, *recipe.prompts.evaluate) if not is_hub(s, root)]


def check_setup(recipe: Recipe, workspace: Workspace, trains: bool = True) -> tuple[Constitution, Templates, str]:
    """Load what is small and look for what is large.

    Args:
        recipe: what is to run.
        workspace: where its files are.
        trains: whether weights are needed here.

    Returns:
        The constitution, the templates and the model's fingerprint.

    Raises:
        RecipeError: with every problem, one a paragraph.
    """
    problems: list[str] = []
    constitution: Constitution | None = None
    templates: Templates | None = None
    model = ""
    try:
        constitution = load_constitution(workspace.root / recipe.constitution)
    except CaiError as e:
        problems.append(str(e))
    try:
        templates = load_templates(workspace.root / recipe.templates)
    except CaiError as e:
        problems.append(str(e))
    for spec in (recipe.model, *(s for s in (recipe.feedback.judge, recipe.weights) if s is not None)):
        try:
            found = spec_fingerprint(spec)
            model = model or found
        except CaiError as e:
            problems.append(str(e))
    if trains and recipe.trained.is_server:
        problems.append(
            f"model: {recipe.trained.path} is a server, and there is nothing here to train. Name the weights (weights: {{path: …}}), "
            "or run only the stages that need none: --only respond,critique"
        )
    files = [("prompts", path) for path in local_prompts(recipe, workspace.root)]
    files += [("preferences.human", path) for path in local_sources(recipe.preferences.human)]
    files += [("gold.human", path) for path in local_sources(recipe.gold.human if recipe.gold else ())]
    files += [("feedback.bench_pairs", recipe.feedback.bench_pairs)] if recipe.feedback.bench_pairs else []
    files += [("evaluate.knowledge", path) for path in recipe.evaluate.knowledge_files]
    for key, path in files:
        try:
            source_files(path, workspace.root)
        except CaiError as e:
            problems.append(f"{key}: {e}")
    try:
        calibration_of(recipe.feedback, workspace.root)
    except CaiError as e:
        problems.append(f"feedback.calibration: {e}")
    if constitution is not None:
        uncovered = [k for k in recipe.critique.kinds if not constitution.for_kind(k)]
        if uncovered:
            problems.append(f"critique.kinds: no principle of {recipe.constitution} applies to {', '.join(uncovered)}")
    if recipe.gold is not None and not recipe.gold.human and recipe.gold.fraction == 0:
        problems.append("gold: the gold reward model has no pairs. Name label files in gold.human, or set gold.fraction above 0")
    if problem := recipe.policy.group_problem(int(os.environ.get("WORLD_SIZE", "1"))):
        problems.append(problem)
    if problem := missing_tracker(recipe.report_to):
        problems.append(problem)
    problems += _late_problems(recipe)
    if problems or constitution is None or templates is None:
        raise RecipeError(f"{recipe.name}: {len(problems)} thing(s) to mend before it can run\n" + "\n".join(f"- {p}" for p in problems))
    return constitution, templates, model


def _late_problems(recipe: Recipe) -> list[str]:
    """Return what the stages that train would find wrong with their settings, hours after the start."""
    policy, reward, problems = recipe.policy, recipe.reward, []
    if policy.method == "kto" and policy.batch_size < 2:
        problems.append("policy.batch_size: 1, and KTO estimates a divergence over a batch. Make it 2 or more")
    longest = {"ppo": ("ppo.response_length", policy.ppo.response_length)}
    longest |= dict.fromkeys(ONLINE, ("online.max_tokens", policy.online.max_tokens))
    if policy.method in longest:
        key, tokens = longest[policy.method]
        if tokens >= policy.max_length:
            problems.append(f"policy.{key}: {tokens} tokens leave a prompt no room in policy.max_length ({policy.max_length}). Raise that")
    if reward.members < 2 and reward.slices in ("folds", "parts"):
        problems.append(f"reward.slices: {reward.slices} needs at least 2 members, found {reward.members}. Raise reward.members")
    return problems
