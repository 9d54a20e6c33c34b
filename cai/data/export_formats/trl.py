"""TRL's conversational preference, prompt-completion and language-modelling types, with extra columns for the label."""

from typing import Any

from cai.data.export_format import CUT, ColumnTypes, ExportFormat, Rows, RunData, assistant, conversation, cut_columns, dicts, directed
from cai.records import Failure, Preference

_PREFERENCE: ColumnTypes = {
    "id": "text",
    "prompt": "messages",
    "chosen": "messages",
    "rejected": "messages",
    "p_chosen": "number",
    "weight": "number",
    "source": "text",
    "kind": "text",
    "category": "text",
    "principle_ids": "texts",
    **CUT,
}
_SFT: ColumnTypes = {
    "prompt": "messages",
    "completion": "messages",
    "source": "text",
    "kind": "text",
    "principle_ids": "texts",
    "truncated": "flag",
}


def _trl(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    return {
        "preferences/train": [_trl_preference(p) for p in directed(data.train, failures)],
        "preferences/test": [_trl_preference(p) for p in directed(data.held_out, failures)],
        "sft/train": [
            {
                "prompt": dicts(e.prompt.messages),
                "completion": [assistant(e.completion)],
                "source": e.source,
                "kind": e.prompt.kind,
                "principle_ids": list(e.principle_ids),
                "truncated": e.truncated,
            }
            for e in data.sft
        ],
        "sft-messages/train": [{"messages": conversation(e.prompt, e.completion), "truncated": e.truncated} for e in data.sft],
    }


def _trl_preference(p: Preference) -> dict[str, Any]:
    return {
        "id": p.id,
        "prompt": dicts(p.prompt.messages),
        "chosen": [assistant(p.chosen)],
        "rejected": [assistant(p.rejected)],
        "p_chosen": p.p_chosen,
        "weight": p.weight,
        "source": p.source,
        "kind": p.prompt.kind,
        "category": p.prompt.category,
        "principle_ids": list(p.principle_ids),
        **cut_columns(p),
    }


FORMAT = ExportFormat(
    "trl",
    "TRL columns. `p_chosen` is the probability that `chosen` is the better response, `weight` multiplies an example's loss, "
    "`source` names the source of the label. TRL masks the prompts of the `sft` table; `sft-messages` has the same conversations unsplit.",
    _trl,
    {
        "preferences/train": _PREFERENCE,
        "preferences/test": _PREFERENCE,
        "sft/train": _SFT,
        "sft-messages/train": {"messages": "messages", "truncated": "flag"},
    },
    tags=("trl",),
)
