"""What is known of the people who label, from a table of its own: no labelling tool exports it with their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cai.data.rows import read_rows
from cai.errors import DataError
from cai.labels.readings import ANNOTATOR, name_of
from cai.records import HumanLabel

People = Mapping[str, Mapping[str, str]]
"""Annotator to attributes."""


def load_people(path: Path) -> dict[str, dict[str, str]]:
    """Read a table with a row for every person: a column for the name that their labels bear, every other one an attribute.

    Empty cells say nothing of a person.

    Raises:
        DataError: the file can't be read; or listing every row that has no name, or one that another row has too.
    """
    people: dict[str, dict[str, str]] = {}
    problems: list[str] = []
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
    if problems or not people:
        raise DataError("\n".join(problems) or f"{path}: describes nobody")
    return people


def described(labels: Sequence[HumanLabel], people: People, where: Path) -> tuple[tuple[HumanLabel, ...], tuple[str, ...]]:
    """Add what a table says of each person to their labels; where a label says otherwise, the table counts.

    Returns:
        The labels, and the names of those whom the table doesn't have.

    Raises:
        DataError: it has none of them: then the names are of two kinds, as e-mail addresses and numbers are.
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
