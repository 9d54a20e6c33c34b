"""Wording that was written for an earlier statement: since the last run, the shipped file, or since a model drafted it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cai.constitution.diff import outdated_wording
from cai.constitution.editing import stale_drafts
from cai.constitution.load import load_constitution, read_fields, source_problems
from cai.core.manifest import read_manifest
from cai.core.workspace import find_workspace, shipped_workspace
from cai.core.yaml_source import YamlSource
from cai.errors import RecipeError, StoreError
from cai.records import Constitution, Principle


def outdated(source: YamlSource) -> Iterator[tuple[int, str, str]]:
    """Yield index of the principle, field and message for wording that is older than its statement; nothing if the file is invalid."""
    constitution = None if source_problems(source) else read_fields(source.data, Constitution)
    if constitution is None:
        return
    where, before = last_used(constitution.id, source.path) or ("", ())
    for i, (p, stale) in enumerate(zip(constitution.principles, stale_drafts(source), strict=True)):
        for field in stale:
            yield i, field, f"{p.id}: {field} was drafted from another statement. Draft it again, reword it, or leave it out"
        earlier = next((q for q in before if q.id == p.id), None)
        if earlier is not None and (names := [name for name in outdated_wording(earlier, p) if name not in stale]):
            yield (
                i,
                "statement",
                f"{p.id}: the statement changed since {where}, but {', '.join(names)} did not. Reword them, or leave them out: "
                "the statement is part of every request and question",
            )


def last_used(constitution_id: str, path: Path) -> tuple[str, tuple[Principle, ...]] | None:
    """Return the principles of a constitution as they were last known, and where: in the workspace's last run, or as shipped with `cai`.

    Args:
        constitution_id: id of the constitution.
        path: its file, which may not exist; runs are looked for in its workspace.
    """
    manifests: list[tuple[float, Path]] = []
    with contextlib.suppress(RecipeError, OSError):
        runs = find_workspace(path.absolute().parent).root / "runs"
        manifests = [(m.stat().st_mtime, m) for m in runs.glob("*/manifest.json") if m.is_file()]
    for _, manifest in sorted(manifests, reverse=True):
        with contextlib.suppress(StoreError):
            found = read_manifest(manifest)
            if found is not None and found.constitution is not None and found.constitution.id == constitution_id:
                return f"run {manifest.parent.name}", found.constitution.principles
    shipped = shipped_workspace() / "constitution" / f"{constitution_id}.yaml"
    if shipped.is_file() and shipped.resolve() != path.absolute().resolve():
        return "the constitution that cai ships", load_constitution(shipped).principles
    return None
