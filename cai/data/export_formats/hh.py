"""hh-rlhf: whole transcripts."""

from collections.abc import Iterable, Iterator
from typing import Any

from cai.data.conversations import RowFault, render_transcript
from cai.data.export_format import CUT, STAGE, ColumnTypes, ExportFormat, Rows, RunData, cut_columns, directed
from cai.records import Failure, Message, Preference

_HH: ColumnTypes = {"chosen": "text", "rejected": "text", **CUT}


def _hh(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    def rows(preferences: Iterable[Preference]) -> Iterator[dict[str, Any]]:
        for p in directed(preferences, failures):
            try:
                sides = [render_transcript((*p.prompt.messages, Message("assistant", text))) for text in (p.chosen, p.rejected)]
            except RowFault as e:
                failures.append(Failure(STAGE, p.id, e.reason, e.detail))
            else:
                yield {"chosen": sides[0], "rejected": sides[1], **cut_columns(p)}

    return {"train": list(rows(data.train)), "test": list(rows(data.held_out))}


FORMAT = ExportFormat(
    "hh",
    "hh-rlhf transcripts: the prompt is everything before the last `Assistant:`. The format holds no probabilities.",
    _hh,
    {"train": _HH, "test": _HH},
)
