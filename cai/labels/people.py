"""Reads a table of annotators' attributes, which labelling tools don't export with the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cai.data.kept import Kept
from cai.data.rows import read_rows
from cai.errors import DataError
from cai.labels.readings import ANNOTATOR, name_of
from cai.records import HumanLabel

People = Mapping[str, Mapping[str, str]]
"""Annotator to attributes."""
MOST_PROBLEMS = 100
"""After which the rest of a table isn't read."""


def load_people(path: Path) -> dict[str, dict[str, str]]:
    """Read a table with one row per annotator: a column with the name as in the labels, and one column per attribute.

    Empty cells are skipped.

    Raises:
        DataError: the file can't be read, or rows have no name or repeat one (lists the first hundred).
    """
    people: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    kept = Kept(str(path))
    for row in read_rows(path):
        cells = row.value if isinstance(row.value, dict) and not row.fault else {}
        column = next((c for c in ANNOTATOR if cells.get(c) not in (None, "")), None)
        if column is None:
            problems.append(f"{row.where}: {row.fault or 'says not who it is about'}; expected a column {' or '.join(ANNOTATOR)}")
        elif (name := name_of(cells[column])) in people:
            problems.append(f"{row.where}: {name} was described before; expected one row for every person")
        else:
            people[name] = {
                str(k): str(v) for k, v in cells.items() if k not in ANNOTATOR and v not in (None, "") and not isinstance(v, dict | list)
            }
            kept.add(*people[name], *people[name].values())
        if len(problems) >= MOST_PROBLEMS:
            raise DataError("\n".join([*problems, f"{path}: only the first {MOST_PROBLEMS} problems are listed"]))
    if problems or not people:
        raise DataError("\n".join(problems) or f"{path}: describes nobody")
    return people


def described(labels: Sequence[HumanLabel], people: People, where: Path) -> tuple[tuple[HumanLabel, ...], tuple[str, ...]]:
    """Add attributes from a table to labels. The table overrides attributes in the labels.

    Returns:
        The labels, and the names of annotators that are missing in the table.

    Raises:
        DataError: the table has none of the annotators, for example because it uses e-mail addresses and the labels use numbers.
    """
    names = sorted({label.annotator for label in labels if label.annotator})
    unknown = tuple(name for name in names if name not in people)
    if len(unknown) == len(names):
        raise DataError(
            f"{where}: describes none of those who labelled. It has {_some(sorted(people))}; the labels are of {_some(names) or 'nobody'}"
        )
    return tuple(replace(x, attributes={**x.attributes, **people.get(x.annotator, {})}) for x in labels), unknown


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
