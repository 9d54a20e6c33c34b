"""Checks the configuration before any weights are loaded, and reports all errors together."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET

from cai.constitution.load import language_of, load_constitution
from cai.core.workspace import TEMPLATES, Workspace
from cai.data.prompts import SkippedRows, is_hub, stream_prompts
from cai.data.rows import source_files
from cai.errors import CaiError, ModelError, RecipeError, ReplyError
from cai.judge.calibration import calibration_of
from cai.judge.probe import check_probe, probe_of
from cai.judge.protocols import PROTOCOLS
from cai.labels.load import load_human, local_sources
from cai.models.base import NO_STATES
from cai.models.placement import placement_of
from cai.models.server.address import check_url
from cai.models.templates import load_templates
from cai.pipeline.blending import check_kept
from cai.pipeline.methods import METHODS
from cai.pipeline.policy_method import term_problems
from cai.pipeline.tracking import missing_tracker
from cai.recipe import HumanSource, ModelSpec, Recipe, own_problems_of
from cai.records import Constitution, Role

if TYPE_CHECKING:
    from cai.models.local.encoding import Encoder


def spec_fingerprint(spec: ModelSpec) -> str:
    """Return what identifies a model before it is opened. A server is identified by URL and names, without a request.

    Raises:
        ModelError: the URL can't be used, or the model's files aren't there.
    """
    if spec.is_server:
        check_url(spec.path)
    if spec.path == "scripted" or spec.is_server:
        return f"{spec.path}:{spec.name}:{spec.adapter}"
    from cai.models.local.fingerprint import model_fingerprint

    return model_fingerprint(spec)


def local_prompts(recipe: Recipe, root: Path) -> Sequence[str]:
    """Return the paths and globs of prompts that are not on the Hub."""
    return [s.path for s in (*recipe.prompts.train, *recipe.prompts.evaluate) if not is_hub(s, root)]


READ_AT_ONCE = 64 * 1024 * 1024
"""Size in bytes up to which labels and prompts are read when a run is set up."""


@contextlib.contextmanager
def told(problems: list[str], key: str = "") -> Iterator[None]:
    """Add an error of the block to the problems, under the recipe's key that it is about."""
    try:
        yield
    except CaiError as e:
        problems.append(f"{key}: {e}" if key else str(e))


def check_setup(recipe: Recipe, workspace: Workspace, trains: bool = True) -> tuple[Constitution, str]:
    """Check a recipe: load the small files, and check that the large ones exist.

    Args:
        recipe: the recipe to check.
        workspace: the workspace of its files.
        trains: whether the run needs local weights.

    Returns:
        The constitution, and the model's fingerprint.

    Raises:
        RecipeError: lists all configuration errors.
    """
    problems: list[str] = []
    constitution: Constitution | None = None
    model = ""
    with told(problems):
        constitution = load_constitution(workspace.root / recipe.constitution)
    with told(problems):
        load_templates(workspace.root / recipe.templates)
    for spec in dict.fromkeys((recipe.model, recipe.judge, recipe.trained)):
        with told(problems):
            placement_of(spec, workspace)
            found = spec_fingerprint(spec)
            model = model or found
    if trains and recipe.trained.is_server:
        problems.append(
            f"model: {recipe.trained.path} is a server, and there is nothing here to train. Name the weights (weights: {{path: …}}), "
            "or run only the stages that need none: --only respond,critique"
        )
    if recipe.weights is not None and recipe.weights.placement != "system":
        problems.append("weights.placement: not used. model.placement says where instructions go, for the model that is trained too")
    files = [("prompts", path) for path in local_prompts(recipe, workspace.root)]
    files += [("blend.prompts", path) for path in local_sources(recipe.blend.prompts if recipe.blend else ())]
    begun = recipe.sft.beginnings
    if begun is not UNSET:
        files += [("sft.beginnings.prompts", path) for path in local_sources(begun.prompts)]
        if "distill" not in recipe.sft.data:
            problems.append("sft.beginnings: they are those of distilled responses, and sft.data has no distill. Add it, or leave them out")
    files += [("evaluate.knowledge", path) for path in recipe.evaluate.knowledge_files]
    for key, path in files:
        with told(problems, key):
            source_files(path, workspace.root)
    problems += _label_problems(recipe, workspace.root)
    with told(problems, "feedback.calibration"):
        calibration_of(recipe.feedback, workspace.root)
    problems += _probe_problems(recipe, workspace.root)
    with told(problems, "feedback.protocol"):
        problems += PROTOCOLS.get(recipe.feedback.protocol).problems(recipe.feedback)
    if constitution is not None:
        with contextlib.suppress(CaiError):  # an unknown protocol is reported above
            protocol = PROTOCOLS.get(recipe.feedback.protocol)
            if not any(protocol.applies(p, kind) for p in constitution.principles for kind in p.applies_to):
                problems.append(f"feedback.protocol: {protocol.name} can judge by no principle of {recipe.constitution}")
        with told(problems, "policy.online.rewards"):
            problems += [f"policy.online.rewards: {problem}" for problem in term_problems(recipe, constitution)]
        with told(problems):
            check_kept(recipe.blend, constitution)
        uncovered = [k for k in recipe.critique.kinds if not constitution.for_kind(k)]
        if uncovered:
            problems.append(f"critique.kinds: no principle of {recipe.constitution} applies to {', '.join(uncovered)}")
    if recipe.gold is not None and not recipe.gold.human and recipe.gold.fraction == 0:
        problems.append("gold: the gold reward model has no pairs. Name label files in gold.human, or set gold.fraction above 0")
    if problem := missing_tracker(recipe.report_to):
        problems.append(problem)
    problems += own_problems_of(recipe)
    with told(problems, "policy.method"):
        problems += METHODS.get(recipe.policy.method).problems(recipe)
    reward = recipe.reward
    if reward.members < 2 and reward.slices in ("folds", "parts"):
        problems.append(f"reward.slices: {reward.slices} needs at least 2 members, found {reward.members}. Raise reward.members")
    if trains and not recipe.trained.is_server and recipe.trained.path != "scripted":
        problems += _target_problems(recipe)
    if problems or constitution is None:
        errors = f"{len(problems)} configuration error{'s' if len(problems) != 1 else ''}"
        raise RecipeError(f"{recipe.name}: {errors}\n" + "\n".join(f"- {p}" for p in problems))
    return constitution, model


def template_warning(recipe: Recipe, workspace: Workspace) -> str:
    """Return a warning if a recipe leaves the templates in English under a constitution in another language; empty if it doesn't."""
    language = language_of(workspace.root / recipe.constitution)
    folder = TEMPLATES / language
    if language == "en" or Path(recipe.templates) != TEMPLATES or not (workspace.root / folder).is_dir():
        return ""
    return f"{recipe.constitution} is in another language ({language}) than {recipe.templates}. Set templates: {folder}"


def prompt_warnings(recipe: Recipe, workspace: Workspace) -> Iterator[str]:
    """Yield what the chat templates of local models can't take of the prompts: each order of roles is tried once, without weights.

    Prompts on the Hub, and files above `READ_AT_ONCE`, are not read.

    Raises:
        ModelError: a model has no chat template, or one that leaves out what the user says.
        DataError: prompts can't be read.
    """
    local = [spec for spec in dict.fromkeys((recipe.model, recipe.trained, recipe.judge)) if not spec.is_server and spec.path != "scripted"]
    if not local:
        return
    from cai.models.local.encoding import Encoder
    from cai.models.local.engine import template_limits
    from cai.models.local.loading import load_tokenizer

    encoders = {}
    for spec in local:
        tokenizer = load_tokenizer(spec)
        template_limits(spec.path, tokenizer)
        if spec in (recipe.model, recipe.trained):  # a judge reads conversations as one text
            encoders[spec.path] = Encoder(tokenizer)
    shapes: Counter[tuple[Role, ...]] = Counter()
    first: dict[tuple[Role, ...], str] = {}
    for sources in (recipe.prompts.train, recipe.prompts.evaluate):
        read = [s for s in sources if not is_hub(s, workspace.root) and _size(s.path, workspace.root) <= READ_AT_ONCE]
        for prompt in stream_prompts(read, workspace.root, recipe.seed, SkippedRows()):
            roles = tuple(m.role for m in prompt.messages)
            shapes[roles] += 1
            first.setdefault(roles, prompt.id)
    for path, encoder in encoders.items():
        refused = "will be counted failures" if path == recipe.model.path else "will stop the training, unless you remove them"
        fates: Counter[str] = Counter()
        example: dict[str, str] = {}
        for roles, count in shapes.items():
            fate = _fate(encoder, roles, refused)
            fates[fate] += count
            example.setdefault(fate, first[roles])
        yield from (f"{path}: {n} of {shapes.total()} prompts (such as {example[fate]}) {fate}" for fate, n in fates.items() if fate)


def _fate(encoder: "Encoder", roles: Sequence[Role], refused: str) -> str:
    """Say what becomes of prompts of such turns; empty where they are asked whole."""
    try:
        lost = encoder.left_out(roles)
    except ReplyError as e:
        return f"{refused}: {e.detail}"
    return f"will be asked without their {lost} turns, which the model's chat template leaves out" if lost else ""


def _size(path: str, root: Path) -> int:
    return sum(file.stat().st_size for file in source_files(path, root) if file.is_file())


def _target_problems(recipe: Recipe) -> list[str]:
    """Return what is wrong with the modules that the training stages are to adapt."""
    from cai.train.arguments import target_problem

    blocks = {"sft": recipe.sft.lora, "reward": recipe.reward.lora, "policy": recipe.policy.lora}
    blocks |= {"gold": recipe.gold.lora} if recipe.gold is not None else {}
    problems = []
    for name, lora in blocks.items():
        try:
            problem = target_problem(recipe.trained, lora)
        except CaiError:  # reported with the model above
            continue
        if problem:
            problems.append(f"{name}.lora.target_modules: {problem}")
    return problems


def _probe_problems(recipe: Recipe, root: Path) -> list[str]:
    """Return why the recipe's probe can't be used: it can't be read, or was fitted on another model than the judge."""
    config, spec, probe = recipe.feedback, recipe.judge, None
    problems: list[str] = []
    with told(problems, "feedback.probe"):
        if spec.is_server and (config.probe is not None or PROTOCOLS.get(config.protocol).reads_states):
            raise ModelError(NO_STATES.format(name=spec.path))
        probe = probe_of(config, root)
    if probe is not None and spec.path != "scripted":
        with told(problems), contextlib.suppress(ModelError):  # reported with the model
            check_probe(probe, spec_fingerprint(spec))
    return problems


def _label_problems(recipe: Recipe, root: Path) -> list[str]:
    """Return what is wrong with local human labels, which the run would otherwise find after it has paid for generation."""
    labels = [("preferences.human", source) for source in recipe.preferences.human]
    labels += [("gold.human", source) for source in (recipe.gold.human if recipe.gold else ())]
    labels += [("feedback.bench_pairs", HumanSource(path=recipe.feedback.bench_pairs))] if recipe.feedback.bench_pairs else []
    problems: list[str] = []
    for key, source in labels:
        if not local_sources([source]):
            continue
        with told(problems, key):
            files = source_files(source.path, root)
            if all(file.is_file() for file in files) and _size(source.path, root) <= READ_AT_ONCE:
                load_human([source], root, recipe.seed)
    return problems
