"""What an export format declares: its tables and how a run's data becomes their rows. With the parts of rows that formats share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cai.records import Constitution, Failure, Message, Preference, Prompt, RevisionTrace, SFTExample

Rows = list[dict[str, Any]]
Column = Literal["text", "number", "integer", "flag", "message", "messages", "texts"]
ColumnTypes = Mapping[str, Column]
STAGE = "export"
CUT: dict[str, Column] = {"chosen_truncated": "flag", "rejected_truncated": "flag"}
"""Whether a response was cut off at the token limit."""


@dataclass(frozen=True)
class RunData:
    """A run's data; parts of stages that have not run yet are empty."""

    train: Sequence[Preference] = ()
    held_out: Sequence[Preference] = ()
    sft: Sequence[SFTExample] = ()
    traces: Sequence[RevisionTrace] = ()
    constitution: Constitution | None = None


@dataclass(frozen=True)
class ExportFormat:
    """Another tool's format."""

    name: str
    """As in `--format`."""
    about: str
    """What the dataset card says of the tables."""
    rows: Callable[[RunData, list[Failure]], dict[str, Rows]]
    """Returns the rows of each table, and adds a failure for each record that the format can't represent."""
    tables: Mapping[str, ColumnTypes] = field(default_factory=dict)
    """Tables (file names without suffix) and their columns, written as JSON Lines and Parquet; none for a format with files of its own."""
    own_files: tuple[str, ...] = ()
    write: Callable[[dict[str, Rows], Path], None] | None = None
    """Writes `own_files` into a folder."""
    tags: tuple[str, ...] = ()
    """Tags of the dataset on the Hub."""

    @property
    def files(self) -> list[str]:
        """Files that an export may write or remove, relative to its folder, without the card."""
        return [*self.own_files, *(f"{name}{suffix}" for name in self.tables for suffix in (".jsonl", ".parquet"))]


def directed(preferences: Iterable[Preference], failures: list[Failure]) -> Iterator[Preference]:
    """Yield preferences with the better response as `chosen`. Ties are counted as failures."""
    for p in preferences:
        if p.p_chosen == 0.5:
            failures.append(Failure(STAGE, p.id, "tie", "p_chosen is 0.5: neither response can be called chosen"))
        else:
            yield p if p.p_chosen > 0.5 else p.swapped()


def cut_columns(p: Preference) -> dict[str, bool]:
    """Return the columns that say which response was cut off at the token limit."""
    return {"chosen_truncated": p.chosen_truncated, "rejected_truncated": p.rejected_truncated}


def dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as other tools write them."""
    return [{"content": m.content, "role": m.role} for m in messages]


def assistant(text: str) -> dict[str, str]:
    """Return the turn of an answer."""
    return {"content": text, "role": "assistant"}


def conversation(prompt: Prompt, answer: str) -> list[dict[str, str]]:
    """Return a prompt and its answer as one conversation."""
    return [*dicts(prompt.messages), assistant(answer)]
