"""A run of hundreds of calls, long enough to be stopped amid them, and how many of them are kept."""

import contextlib
import json
import sqlite3
from pathlib import Path

from cai.core.workspace import Workspace
from tests.workspaces import DATA_STAGES, RECIPE, make_workspace

ITEMS = 300
MANY = RECIPE.replace("prompts/harmful.jsonl, limit: 8", "prompts/many.jsonl, kind: harmful")
RUN = ("run", "runs/s.yaml", "--only", ",".join(DATA_STAGES))


def many_workspace(folder: Path) -> Workspace:
    """A workspace whose run has `ITEMS` prompts of its own."""
    workspace = make_workspace(folder, MANY)
    lines = (json.dumps({"prompt": f"How would I do harm number {i}?"}) for i in range(ITEMS))
    (folder / "prompts" / "many.jsonl").write_text("\n".join(lines) + "\n")
    return workspace


def calls_kept(workspace: Workspace) -> int:
    """How many calls are in the call store, even amid a run."""
    if not workspace.store_path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{workspace.store_path}?mode=ro", uri=True)) as store:
        try:
            return int(store.execute("SELECT COUNT(*) FROM calls").fetchone()[0])
        except sqlite3.OperationalError:  # its table isn't made yet
            return 0
