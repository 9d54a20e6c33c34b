"""Reads and validates recipes."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from cai.core.plugins import KINDS, did_you_mean, names_of
from cai.core.yaml_source import YamlSource, load_yaml, parse_yaml, schema_problems
from cai.errors import RecipeError
from cai.recipe.recipe import Recipe


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
    if "principles" in source.data:
        fix = f"run a recipe with it: cai run runs/quickstart.yaml --set constitution={path}"
        raise RecipeError(f"{path}: this is a constitution, and a run takes a recipe.\nFix: {fix}")
    source.data.setdefault("name", path.stem)
    if name is not None:
        source.data["name"] = name
    problems = [problem for override in overrides for problem in _override(source, override)]
    _drop_retired(source.data)
    problems += schema_problems(source, recipe_schema())
    if not problems:
        try:
            return msgspec.convert(source.data, Recipe)
        except msgspec.ValidationError as e:
            problems = [f"{path}: {e}"]
    raise RecipeError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n" + "\n".join(f"  {p}" for p in problems))


_RETIRED = {
    ("policy", "ppo", "kl_estimator"): "k1",
    ("policy", "ppo", "target_kl"): None,
    ("policy", "ppo", "kl_horizon"): 10_000,
    ("policy", "ppo", "whiten_rewards"): False,
    ("policy", "ppo", "score_clip"): None,
    ("policy", "dpo", "ld_alpha"): None,
    ("policy", "dpo", "sft_weight"): 0.0,
}
"""Keys of earlier versions, with their defaults: a run's own recipe names every key."""


def _drop_retired(data: dict[str, Any]) -> None:
    """Take out the keys of earlier versions that have their default, which changes nothing. With another value they are unknown keys."""
    for (block, section, key), default in _RETIRED.items():
        within = data.get(block)
        settings = within.get(section) if isinstance(within, dict) else None
        if isinstance(settings, dict) and settings.get(key, default) == default:
            settings.pop(key, None)


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
    if key not in known:
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
