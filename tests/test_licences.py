"""Licences of the locked dependencies, and of what they need: whoever uses or changes `cai` owes credit, and no source code."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
REFUSED = re.compile(r"GPL|General Public|SSPL|Commons Clause|NonCommercial|-NC\b|Proprietary", re.IGNORECASE)
SILENT = {"axe-playwright-python"}
"""Names no licence in its metadata; MIT by its repository. Only the tests use it."""


def licences() -> dict[str, str]:
    """The licence of each installed package that `cai` or its tests need, by the package's name; empty if it names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip() and not line.startswith("#")]
    waiting = [Requirement(line) for line in [*project["dependencies"], *extras["studio"], *extras["docs"], *extras["dev"], *pinned]]
    found: dict[str, str] = {}
    seen = set()
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        wanted = need.extras or {""}
        if name == project["name"] or (name, *sorted(wanted)) in seen:
            continue
        seen.add((name, *sorted(wanted)))
        try:
            about = metadata(name)
        except PackageNotFoundError:  # of an extra that isn't installed
            continue
        classified = [line.removeprefix("License :: ") for line in about.get_all("Classifier", []) if line.startswith("License :: ")]
        found[name] = about.get("License-Expression") or "; ".join(classified) or (about.get("License") or "").strip()
        needs = map(Requirement, about.get_all("Requires-Dist", []))
        waiting += [n for n in needs if n.marker is None or any(n.marker.evaluate({"extra": extra}) for extra in wanted)]
    return found


def test_every_dependency_names_a_licence_that_asks_for_no_source_code() -> None:
    found = licences()
    assert len(found) > 80 and {"torch", "trl", "numpy", "ruff", "jinja2", "httpcore2"} <= found.keys()
    silent = {name for name, licence in found.items() if licence in ("", "UNKNOWN")}
    assert silent == SILENT
    assert {name: licence for name, licence in found.items() if REFUSED.search(licence)} == {}
    assert all(map(REFUSED.search, ("GPL-3.0-or-later", "OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", "CC-BY-NC-4.0")))
