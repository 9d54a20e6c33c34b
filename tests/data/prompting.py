"""Writes and shows prompts, for the tests in this folder."""

import gzip
import json
from pathlib import Path

from cai.data.prompts import (
    LoadedPrompts,
)

ROOT = Path(__file__).parents[2]


def write_jsonl(path: Path, rows: list[object]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def texts(loaded: LoadedPrompts) -> list[str]:
    return [p.messages[-1].content for p in loaded.prompts]


def said(*turns: str) -> list[dict[str, str]]:
    return [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(turns)]
