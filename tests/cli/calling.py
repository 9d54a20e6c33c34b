"""Calls commands in this process, for the tests in this folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.cli import main

CONSTITUTION = "constitution/general.yaml"


class Called:
    """What a command in this process printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch
        self.out = self.err = ""

    def __call__(self, folder: Path, *args: str) -> int:
        self.monkeypatch.chdir(folder)
        self.monkeypatch.setenv("COLUMNS", "80")
        self.monkeypatch.setattr("sys.argv", ["cai", *args])
        with pytest.raises(SystemExit) as e:
            main()
        self.out, self.err = self.capsys.readouterr()
        return int(e.value.code or 0)

    @property
    def told(self) -> str:
        """Standard error without frames and line breaks."""
        return " ".join(self.err.replace("│", " ").split())

    def json(self, folder: Path, *args: str) -> Any:
        assert self(folder, *args, "--json") == 0, self.err
        return json.loads(self.out)


LABELS = [
    {
        "prompt": f"Question {i} about locks?",
        "response_a": f"Open it with answer {i}.",
        "response_b": f"I can't help with question {i}, but ask a locksmith.",
        "choice": "b" if i % 3 or who == "eve" else "a",
        "annotator": who,
        "rater_country": "KE" if who == "eve" else "NL",
    }
    for i in range(45)
    for who in ("ann", "eve")
]


def write_labels(folder: Path) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*LABELS, {**LABELS[0], "choice": "perhaps"}]))
    return path
