"""Reads and validates recipes."""

import warnings
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from cai.core.plugins import KINDS, did_you_mean, names_of
from cai.core.yaml_source import YamlPath, YamlSource, load_yaml, parse_yaml, schema_problems
from cai.errors import RecipeError
from cai.recipe.own import own_problems
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
    problems += _earlier_settings(source)
    problems += schema_problems(source, recipe_schema())
    problems += own_problems(source)
    if not problems:
        try:
            return msgspec.convert(source.data, Recipe)
        except msgspec.ValidationError as e:
            problems = [f"{path}: {e}"]
    raise RecipeError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n" + "\n".join(f"  {p}" for p in problems))


_RETIRED: dict[YamlPath, tuple[Any, str]] = {
    ("policy", "ppo", "kl_estimator"): ("k1", "k3 as a reward is no gradient of the KL divergence, so k1 is always used"),
    ("policy", "ppo", "target_kl"): (None, "the KL coefficient is constant; set policy.ppo.kl_coef"),
    ("policy", "ppo", "kl_horizon"): (10_000, "the KL coefficient is constant; set policy.ppo.kl_coef"),
    ("policy", "ppo", "whiten_rewards"): (False, "rewards are not whitened; advantages are"),
    ("policy", "ppo", "score_clip"): (None, "scores are not clipped"),
    ("policy", "dpo", "ld_alpha"): (None, "for a loss that is normalized by length, set policy.dpo.loss: sigmoid_norm"),
    ("policy", "dpo", "sft_weight"): (0.0, "DPO has no SFT term; train on the examples in the stage sft"),
}
"""Keys of earlier versions, with their defaults, because a run's own recipe names every key, and what is true now."""
_RENAMED: dict[YamlPath, YamlPath] = {
    ("preferences", f"{name}_weight"): ("preferences", name, "weight") for name in ("ai", "revision", "contrast")
}
"""Keys that have another name since the last version."""
_MODELS: tuple[YamlPath, ...] = (("model",), ("weights",), ("feedback", "judge"))
_ONE_URL = (
    "takes one URL, not a list. Put servers of one model behind `vllm-router`, or serve it with `vllm serve --data-parallel-size N` "
    "(docs/servers.md), and name that address"
)


def _earlier_settings(source: YamlSource) -> list[str]:
    """Take out or rename the keys of earlier versions, with a warning where one is renamed. Returns what can't be kept, and the fix.

    A key that is gone is passed over at its default, which changes nothing.
    """
    problems = []
    for path, (default, now) in _RETIRED.items():
        block = _block(source, path[:-1])
        if path[-1] in block and block.pop(path[-1]) != default:
            problems.append(f"{source.where(path)}: this setting is gone: {now}. Leave the key out")
    for path, new in _RENAMED.items():
        block = _block(source, path[:-1])
        if path[-1] not in block:
            continue
        where, name, value = source.where(path), ".".join(map(str, new)), block.pop(path[-1])
        within = block.setdefault(str(new[-2]), {})
        if not isinstance(within, dict) or new[-1] in within:
            problems.append(f"{where}: is now {name}, which is set too. Leave one of them out")
            continue
        within[str(new[-1])] = value
        source.origins[new] = where
        if value != 1:  # the default, which a run's own recipe names
            warnings.warn(f"{where} is now {name}; the old name works in this release only", FutureWarning, stacklevel=1)
    for path in _MODELS:
        block = _block(source, path)
        if isinstance(block.get("path"), list):
            del block["path"]
            problems.append(f"{source.where((*path, 'path'))}: {_ONE_URL}")
    return problems


def _block(source: YamlSource, path: YamlPath) -> dict[str, Any]:
    """Return a block of settings; empty where there is none."""
    node = source.data
    for key in path:
        node = node.get(str(key)) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


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
    path: tuple[str, ...] = tuple(key.split("."))
    known = recipe_keys()
    of_plugin = len(path) > 2 and path[:2] in (("feedback", "settings"), ("policy", "settings"))  # validated by what the plug-in declares
    if key not in known and not of_plugin and path not in _RETIRED and path not in _RENAMED:
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
