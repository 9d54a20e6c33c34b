"""Shell completion of recipes, runs, constitutions, models, stages and recipe keys. A completion that fails offers nothing."""

from collections.abc import Callable, Iterable
from pathlib import Path


def _completion(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a completion callback for typer: the names that begin with what was typed."""

    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in names() if name.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - a traceback in the middle of a command line helps nobody
            return []

    return complete


def _files(folder: str) -> list[str]:
    """Return the YAML files of a folder in the workspace, as paths from the current folder if they are below it."""
    from cai.core.workspace import find_workspace

    here = Path.cwd()
    found = sorted((find_workspace(here).root / folder).glob("*.yaml"))
    return [str(f.relative_to(here) if f.is_relative_to(here) else f) for f in found]


def _runs() -> list[str]:
    from cai.core.workspace import find_workspace

    return sorted(f.parent.name for f in (find_workspace(Path.cwd()).root / "runs").glob("*/recipe.yaml"))


def _models() -> list[str]:
    """Return the embedded model, and the models that the workspace's runs have trained."""
    from cai.core.workspace import find_workspace

    here = Path.cwd()
    found = sorted(f.parent for f in (find_workspace(here).root / "runs").glob("*/models/*/*config.json"))
    return list(dict.fromkeys(["embedded", *(str(f.relative_to(here) if f.is_relative_to(here) else f) for f in found)]))


def _keys() -> list[str]:
    from cai.recipe import recipe_keys

    keys = recipe_keys()
    sections = {key.rpartition(".")[0] for key in keys}
    return [f"{key}=" for key in keys if key not in sections]


def _stages() -> list[str]:
    from cai.core.stages import STAGE_NAMES

    return list(STAGE_NAMES)


def _pair_formats() -> list[str]:
    from cai.labels.formats import pair_formats

    return ["auto", *pair_formats()]


recipes = _completion(lambda: _files("runs"))
constitutions = _completion(lambda: _files("constitution"))
models = _completion(_models)
run_names = _completion(_runs)
recipe_keys = _completion(_keys)
stages = _completion(_stages)
pair_formats = _completion(_pair_formats)
