"""HuggingFaceH4/cai-conversation.

Departure: `chosen` is the text that the judge prefers, and rows without a judgment are in the SFT splits only, while the original calls
every revision chosen.
"""

from typing import Any

from cai.data.conversations import RowFault
from cai.data.export_format import CUT, STAGE, ColumnTypes, ExportFormat, Rows, RunData, assistant, conversation
from cai.data.splits import split_groups
from cai.records import Constitution, Failure, RevisionTrace

_CAI_CONVERSATION: ColumnTypes = {
    "index": "integer",
    "prompt": "text",
    "init_prompt": "message",
    "init_response": "message",
    "critic_prompt": "message",
    "critic_response": "message",
    "revision_prompt": "message",
    "revision_response": "message",
    "messages": "messages",
    "chosen": "messages",
    "rejected": "messages",
    "truncated": "flag",
    **CUT,
}
_TABLES = ("train_sft", "train_prefs", "test_sft", "test_prefs")


def _cai_conversation(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    """Return rows: one per trace, with its last round. `init_response` is the text before that round."""
    group_of = split_groups([*(p.prompt for p in data.held_out), *(trace.prompt for trace in data.traces)])
    held_out = {group_of(p.prompt) for p in data.held_out}
    tables: dict[str, Rows] = {name: [] for name in _TABLES}
    for trace in data.traces:
        side = "test" if group_of(trace.prompt) in held_out else "train"
        try:
            row = _cai_row(trace, data.constitution)
        except RowFault as e:
            failures.append(Failure(STAGE, trace.id, e.reason, e.detail))
            continue
        if trace.dropped is None:
            tables[f"{side}_sft"].append(row)
        if row["chosen"] is not None:
            tables[f"{side}_prefs"].append(row)
    for rows in tables.values():
        rows[:] = [{"index": i, **row} for i, row in enumerate(rows)]
    return tables


def _cai_row(trace: RevisionTrace, constitution: Constitution | None) -> dict[str, Any]:
    if not trace.rounds:
        raise RowFault("not_revised", "the trace has no critique")
    if constitution is None:
        raise RowFault("no_constitution", "the run's constitution is needed for the critique and revision requests")
    last = trace.rounds[-1]
    try:
        critique_request = constitution.principle(last.critique.principle_id).critique
        revision_request = constitution.principle(last.revision.principle_id).revision
    except KeyError as e:
        raise RowFault("unknown_principle", f"the constitution has no principle {e.args[0]!r}") from e
    asked = trace.prompt.messages[-1].content
    pair, cut, chosen, rejected = trace.pair, dict[str, Any](dict.fromkeys(CUT)), None, None
    if trace.p_revised is not None and trace.p_revised != 0.5 and trace.final != trace.response:
        better = pair.swapped() if trace.p_revised > 0.5 else pair
        chosen, rejected = conversation(trace.prompt, better.response_a), conversation(trace.prompt, better.response_b)
        cut = dict(zip(CUT, (better.truncated_a, better.truncated_b), strict=True))
    return {
        "prompt": asked,
        "init_prompt": {"content": asked, "role": "user"},
        "init_response": assistant(trace.rounds[-2].revision.text if len(trace.rounds) > 1 else trace.response),
        "critic_prompt": {"content": critique_request, "role": "user"},
        "critic_response": assistant(last.critique.text),
        "revision_prompt": {"content": revision_request, "role": "user"},
        "revision_response": assistant(last.revision.text),
        "messages": conversation(trace.prompt, trace.final),
        "chosen": chosen,
        "rejected": rejected,
        "truncated": pair.truncated_b,
        **cut,
    }


FORMAT = ExportFormat(
    "cai-conversation",
    "The columns of HuggingFaceH4/cai-conversation-harmless, one row per trace, of its last round. Unlike there, "
    "`chosen` is the text that the judge preferred. Rows without a judgment have a null there and are in the SFT splits only.",
    _cai_conversation,
    dict.fromkeys(_TABLES, _CAI_CONVERSATION),
)
