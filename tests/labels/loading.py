"""Loads the labels of one file, as most tests need it."""

from collections.abc import Mapping
from pathlib import Path

from cai.labels.answers import Choices
from cai.labels.load import LoadedLabels, load_label_files


def load_labels(path: Path, format: str = "auto", columns: Mapping[str, str] | None = None, choices: Choices | None = None) -> LoadedLabels:
    (loaded,) = load_label_files([path], format, None, columns, choices)
    return loaded
