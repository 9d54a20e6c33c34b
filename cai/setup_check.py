"""Everything that can be known to be wrong before any weights load, found and reported together."""

from cai.constitution.load import load_constitution
from cai.errors import CaiError, RecipeError
from cai.recipe import ModelSpec, Recipe
from cai.records import Constitution
from cai.templates import Templates, load_templates
from cai.workspace import Workspace


def spec_fingerprint(spec: ModelSpec) -> str:
    """Return what identifies a model before it is opened. A server is known by name here; its engine asks it for the rest."""
    if spec.path == "scripted" or spec.is_server:
        return f"{spec.path}:{spec.name}:{spec.adapter}"
    from cai.models.loading import model_fingerprint

    return model_fingerprint(spec)


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
    files = [(s.path, "prompts") for s in (*recipe.prompts.train, *recipe.prompts.evaluate) if not s.path.startswith("hub:")]
    files += [(h.path, "preferences.human") for h in recipe.preferences.human]
    files += [(recipe.feedback.bench_pairs, "feedback.bench_pairs")] if recipe.feedback.bench_pairs else []
    for path, key in files:
        if not any(workspace.root.glob(path)) if "*" in path else not (workspace.root / path).exists():
            problems.append(f"{key}: {workspace.root / path} is not there")
    if constitution is not None:
        uncovered = [k for k in recipe.critique.kinds if not constitution.for_kind(k)]
        if uncovered:
            problems.append(f"critique.kinds: no principle of {recipe.constitution} applies to {', '.join(uncovered)}")
    if problems or constitution is None or templates is None:
        raise RecipeError(f"{recipe.name}: {len(problems)} thing(s) to mend before it can run\n" + "\n".join(f"- {p}" for p in problems))
    return constitution, templates, model
