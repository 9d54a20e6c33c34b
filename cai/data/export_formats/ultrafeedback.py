"""UltraFeedback-binarized. Departure: scores are ten times the probability that the response is the better of the two."""

from typing import Any

from cai.data.export_format import CUT, ColumnTypes, ExportFormat, Rows, RunData, conversation, cut_columns, directed
from cai.records import Failure, Preference

_ULTRAFEEDBACK: ColumnTypes = {
    "prompt": "text",
    "prompt_id": "text",
    "chosen": "messages",
    "rejected": "messages",
    "messages": "messages",
    "score_chosen": "number",
    "score_rejected": "number",
    **CUT,
}


def _ultrafeedback(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    def row(p: Preference) -> dict[str, Any]:
        chosen = conversation(p.prompt, p.chosen)
        return {
            "prompt": p.prompt.messages[-1].content,
            "prompt_id": p.prompt.id,
            "chosen": chosen,
            "rejected": conversation(p.prompt, p.rejected),
            "messages": chosen,
            "score_chosen": 10.0 * p.p_chosen,
            "score_rejected": 10.0 * (1.0 - p.p_chosen),
            **cut_columns(p),
        }

    return {
        "train_prefs": [row(p) for p in directed(data.train, failures)],
        "test_prefs": [row(p) for p in directed(data.held_out, failures)],
    }


FORMAT = ExportFormat(
    "ultrafeedback",
    "The columns of UltraFeedback-binarized. Scores are ten times the probability that the response is the better one.",
    _ultrafeedback,
    {"train_prefs": _ULTRAFEEDBACK, "test_prefs": _ULTRAFEEDBACK},
)
