"""Settings of plug-ins: a protocol, reward term or policy method declares their type, and a recipe gives them beside its name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cai.core.plugins import POLICY_METHOD, PROTOCOL, REWARD_TERM, Kind, Registry, names_of
from cai.core.yaml_source import YamlPath, YamlSource, schema_problems
from cai.errors import RecipeError
from cai.recipe.base import Section
from cai.recipe.labels import FeedbackConfig
from cai.recipe.policy import PolicyConfig, RewardTerm
from cai.recipe.recipe import Recipe

S = TypeVar("S", bound=Section)


def own_settings(config: FeedbackConfig | PolicyConfig | RewardTerm, declared: type[S]) -> S:
    """Return a plug-in's own settings, with its defaults for what the recipe leaves out.

    Args:
        config: the part of the recipe that names the plug-in.
        declared: the plug-in's `own_settings`.

    Raises:
        RecipeError: the settings are not valid. `load_recipe` and the set-up check have said so before.
    """
    try:
        return msgspec.convert({} if config.settings is msgspec.UNSET else config.settings, declared)
    except msgspec.ValidationError as e:
        raise RecipeError(f"settings: {e}") from e


def own_problems(source: YamlSource) -> list[str]:
    """Validate what a recipe gives as `settings` of plug-ins; return all problems, each with file, line and YAML path."""
    return [problem for at, kind, name in _named(source.data) if name in names_of(kind) for problem in _problems(source, at, kind, name)]


def own_problems_of(recipe: Recipe) -> list[str]:
    """Validate `settings` of a recipe that may have been made in Python."""
    data = msgspec.to_builtins(recipe)
    return own_problems(YamlSource(Path(recipe.name), data, {(): 0}, dict.fromkeys([(key,) for key in data], recipe.name)))


def _named(data: Any) -> Iterator[tuple[YamlPath, Kind, Any]]:
    """Yield where a recipe gives settings of a plug-in, its kind and its name."""
    feedback, policy = _mapping(data.get("feedback")), _mapping(data.get("policy"))
    rewards = _mapping(policy.get("online")).get("rewards")
    terms = [_mapping(term) for term in rewards] if isinstance(rewards, list | tuple) else []
    found: list[tuple[YamlPath, dict[str, Any], Kind, Any]] = [
        (("feedback",), feedback, PROTOCOL, feedback.get("protocol", FeedbackConfig().protocol)),
        (("policy",), policy, POLICY_METHOD, policy.get("method", PolicyConfig().method)),
        *((("policy", "online", "rewards", i), term, REWARD_TERM, term.get("term", RewardTerm().term)) for i, term in enumerate(terms)),
    ]
    for path, block, kind, name in found:
        if isinstance(block.get("settings"), dict):
            yield (*path, "settings"), kind, name


def _problems(source: YamlSource, at: YamlPath, kind: Kind, name: str) -> list[str]:
    where = source.where(at)
    try:
        declared = getattr(Registry(kind, object).get(name), "own_settings", None)
    except RecipeError as e:
        return [f"{where}: {e}"]
    if declared is None:
        return [f"{where}: the {kind.what} {name!r} has no settings of its own. Leave this key out"]
    if problems := schema_problems(source, msgspec.json.schema(declared), at):
        return problems
    try:
        msgspec.convert(source.at(at), declared)
    except msgspec.ValidationError as e:
        return [f"{where}: {e}"]
    return []


def _mapping(node: Any) -> dict[str, Any]:
    return node if isinstance(node, dict) else {}
