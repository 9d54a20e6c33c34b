"""Exports a run's data in the formats of other tools: TRL, hh-rlhf, cai-conversation, UltraFeedback-binarized, Label Studio.

Each table is written as JSON Lines and Parquet. Records that a format can't represent are counted as failures.

Departures from the original datasets: (1) in `cai-conversation`, `chosen` is the text that the judge prefers, and rows without a judgment
are in the SFT splits only, while the original calls every revision chosen; (2) in `ultrafeedback`, scores are ten times the probability
that the response is the better of the two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from cai.core.jsonl import atomic_file, disk_error, write_json, write_records, write_text
from cai.data.conversations import RowFault, render_transcript
from cai.data.filters import sides_by_hash, texts_key
from cai.data.splits import split_groups
from cai.errors import DataError
from cai.records import Constitution, Failure, Message, Preference, Prompt, ResponsePair, RevisionTrace, SFTExample

ExportFormat = Literal["trl", "hh", "cai-conversation", "ultrafeedback", "label-studio"]
Rows = list[dict[str, Any]]
Column = Literal["text", "number", "integer", "flag", "message", "messages", "texts"]
STAGE = "export"
_CUT: dict[str, Column] = {"chosen_truncated": "flag", "rejected_truncated": "flag"}
"""Whether a response was cut off at the token limit."""
_PREFERENCE: dict[str, Column] = {
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
    **_CUT,
}
_SFT: dict[str, Column] = {
    "prompt": "messages",
    "completion": "messages",
    "source": "text",
    "kind": "text",
    "principle_ids": "texts",
    "truncated": "flag",
}
_HH: dict[str, Column] = {"chosen": "text", "rejected": "text", **_CUT}
_CAI_CONVERSATION: dict[str, Column] = {
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
    **_CUT,
}
_ULTRAFEEDBACK: dict[str, Column] = {
    "prompt": "text",
    "prompt_id": "text",
    "chosen": "messages",
    "rejected": "messages",
    "messages": "messages",
    "score_chosen": "number",
    "score_rejected": "number",
    **_CUT,
}
LAYOUT: dict[ExportFormat, dict[str, dict[str, Column]]] = {
    "trl": {
        "preferences/train": _PREFERENCE,
        "preferences/test": _PREFERENCE,
        "sft/train": _SFT,
        "sft-messages/train": {"messages": "messages", "truncated": "flag"},
    },
    "hh": {"train": _HH, "test": _HH},
    "cai-conversation": dict.fromkeys(("train_sft", "train_prefs", "test_sft", "test_prefs"), _CAI_CONVERSATION),
    "ultrafeedback": {"train_prefs": _ULTRAFEEDBACK, "test_prefs": _ULTRAFEEDBACK},
    "label-studio": {},
}
"""Each format's tables (file names without suffix) and their columns."""
TASK_FILES = ("tasks.json", "labeling_config.xml")
LABEL_STUDIO_CONFIG = """<View>
  <Text name="prompt" value="$prompt"/>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1"><Header value="Response A"/><Text name="response_a" value="$response_a"/></View>
    <View style="flex: 1"><Header value="Response B"/><Text name="response_b" value="$response_b"/></View>
  </View>
  <Header value="Which response is better?"/>
  <Choices name="better" toName="prompt" choice="single-radio" showInLine="true" required="true">
    <Choice value="A" hotkey="1"/>
    <Choice value="tie" hotkey="2"/>
    <Choice value="B" hotkey="3"/>
  </Choices>
</View>
"""
"""Label Studio's labelling configuration. Annotators can answer with a tie, and skip tasks that can't be judged."""


def export(data: "RunData", format: ExportFormat, folder: Path) -> "Exported":
    """Write a run's data in one format. Tables of an earlier export that are now empty are removed.

    Args:
        format: the export format.
        folder: folder to write to; created if missing.

    Raises:
        DataError: the format is unknown, or the run has no data for it.
        StoreError: the folder can't be written.
    """
    if format not in get_args(ExportFormat):
        raise DataError(f"unknown export format {format!r}; expected {', '.join(get_args(ExportFormat))}")
    failures: list[Failure] = []
    if format == "label-studio":
        tasks = label_tasks(p.pair for p in (*data.train, *data.held_out))
        if not tasks:
            raise DataError("nothing to export as label-studio: the run has no preferences yet")
        return write_tasks(tasks, folder / "tasks.json")
    makers = {"trl": _trl, "hh": _hh, "cai-conversation": _cai_conversation, "ultrafeedback": _ultrafeedback}
    tables = {name: rows for name, rows in makers[format](data, failures).items() if rows}
    if not tables:
        why = f"; {len(failures)} rows don't fit it, the first: {failures[0].detail}" if failures else ""
        raise DataError(f"nothing to export as {format}: the run has no data for this format yet{why}")
    for name, columns in LAYOUT[format].items():
        lines, parquet = (folder / f"{name}{suffix}" for suffix in (".jsonl", ".parquet"))
        if name in tables:
            write_records(lines, tables[name])
            _write_parquet(parquet, tables[name], columns)
        else:
            _remove(lines)
            _remove(parquet)
    return Exported(format, folder, {name: len(rows) for name, rows in tables.items()}, tuple(failures))


def written_names(format: str) -> list[str]:
    """Return the names of the files that an export in this format may write or remove, relative to its folder, without the card."""
    if format == "label-studio":
        return list(TASK_FILES)
    return [f"{name}{suffix}" for name in LAYOUT.get(cast(ExportFormat, format), ()) for suffix in (".jsonl", ".parquet")]


def _trl(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    """Rows of TRL's conversational preference, prompt-completion and language-modelling types, with extra columns for the label."""
    return {
        "preferences/train": [_trl_preference(p) for p in _directed(data.train, failures)],
        "preferences/test": [_trl_preference(p) for p in _directed(data.held_out, failures)],
        "sft/train": [
            {
                "prompt": _dicts(e.prompt.messages),
                "completion": [_assistant(e.completion)],
                "source": e.source,
                "kind": e.prompt.kind,
                "principle_ids": list(e.principle_ids),
                "truncated": e.truncated,
            }
            for e in data.sft
        ],
        "sft-messages/train": [{"messages": _conversation(e.prompt, e.completion), "truncated": e.truncated} for e in data.sft],
    }


def _trl_preference(p: Preference) -> dict[str, Any]:
    return {
        "id": p.id,
        "prompt": _dicts(p.prompt.messages),
        "chosen": [_assistant(p.chosen)],
        "rejected": [_assistant(p.rejected)],
        "p_chosen": p.p_chosen,
        "weight": p.weight,
        "source": p.source,
        "kind": p.prompt.kind,
        "category": p.prompt.category,
        "principle_ids": list(p.principle_ids),
        **_cut(p),
    }


def _hh(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    def rows(preferences: Iterable[Preference]) -> Iterator[dict[str, Any]]:
        for p in _directed(preferences, failures):
            try:
                sides = [render_transcript((*p.prompt.messages, Message("assistant", text))) for text in (p.chosen, p.rejected)]
            except RowFault as e:
                failures.append(Failure(STAGE, p.id, e.reason, e.detail))
            else:
                yield {"chosen": sides[0], "rejected": sides[1], **_cut(p)}

    return {"train": list(rows(data.train)), "test": list(rows(data.held_out))}


def _cai_conversation(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    """Rows of cai-conversation: one per trace, with its last round. `init_response` is the text before that round."""
    group_of = split_groups([*(p.prompt for p in data.held_out), *(trace.prompt for trace in data.traces)])
    held_out = {group_of(p.prompt) for p in data.held_out}
    tables: dict[str, Rows] = {name: [] for name in LAYOUT["cai-conversation"]}
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
    pair, cut, chosen, rejected = trace.pair, dict[str, Any](dict.fromkeys(_CUT)), None, None
    if trace.p_revised is not None and trace.p_revised != 0.5 and trace.final != trace.response:
        better = pair.swapped() if trace.p_revised > 0.5 else pair
        chosen, rejected = _conversation(trace.prompt, better.response_a), _conversation(trace.prompt, better.response_b)
        cut = dict(zip(_CUT, (better.truncated_a, better.truncated_b), strict=True))
    return {
        "prompt": asked,
        "init_prompt": {"content": asked, "role": "user"},
        "init_response": _assistant(trace.rounds[-2].revision.text if len(trace.rounds) > 1 else trace.response),
        "critic_prompt": {"content": critique_request, "role": "user"},
        "critic_response": _assistant(last.critique.text),
        "revision_prompt": {"content": revision_request, "role": "user"},
        "revision_response": _assistant(last.revision.text),
        "messages": _conversation(trace.prompt, trace.final),
        "chosen": chosen,
        "rejected": rejected,
        "truncated": pair.truncated_b,
        **cut,
    }


def _ultrafeedback(data: "RunData", failures: list[Failure]) -> dict[str, Rows]:
    def row(p: Preference) -> dict[str, Any]:
        chosen = _conversation(p.prompt, p.chosen)
        return {
            "prompt": p.prompt.messages[-1].content,
            "prompt_id": p.prompt.id,
            "chosen": chosen,
            "rejected": _conversation(p.prompt, p.rejected),
            "messages": chosen,
            "score_chosen": 10.0 * p.p_chosen,
            "score_rejected": 10.0 * (1.0 - p.p_chosen),
            **_cut(p),
        }

    return {
        "train_prefs": [row(p) for p in _directed(data.train, failures)],
        "test_prefs": [row(p) for p in _directed(data.held_out, failures)],
    }


def label_tasks(pairs: Iterable[ResponsePair]) -> Rows:
    """Return one Label Studio task per pair of texts, without labels. A hash decides which response is A."""
    tasks: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key = texts_key(pair.prompt, pair.response_a, pair.response_b)
        if key not in tasks:
            first, second = sides_by_hash(pair.prompt, pair.response_a, pair.response_b)
            shown = pair if first == pair.response_a else pair.swapped()
            tasks[key] = {
                "data": {
                    "prompt": "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in pair.prompt.messages),
                    "messages": _dicts(pair.prompt.messages),
                    "response_a": first,
                    "response_b": second,
                    "kind": pair.prompt.kind,
                    "truncated_a": shown.truncated_a,
                    "truncated_b": shown.truncated_b,
                }
            }
    return list(tasks.values())


def _directed(preferences: Iterable[Preference], failures: list[Failure]) -> Iterator[Preference]:
    """Yield preferences with the better response as `chosen`. Ties are counted as failures."""
    for p in preferences:
        if p.p_chosen == 0.5:
            failures.append(Failure(STAGE, p.id, "tie", "p_chosen is 0.5: neither response can be called chosen"))
        else:
            yield p if p.p_chosen > 0.5 else p.swapped()


def _cut(p: Preference) -> dict[str, bool]:
    return {"chosen_truncated": p.chosen_truncated, "rejected_truncated": p.rejected_truncated}


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"content": m.content, "role": m.role} for m in messages]


def _assistant(text: str) -> dict[str, str]:
    return {"content": text, "role": "assistant"}


def _conversation(prompt: Prompt, answer: str) -> list[dict[str, str]]:
    return [*_dicts(prompt.messages), _assistant(answer)]


def _write_parquet(path: Path, rows: Rows, columns: dict[str, Column]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("content", pa.string()), ("role", pa.string())])
    types = {
        "text": pa.string(),
        "number": pa.float64(),
        "integer": pa.int64(),
        "flag": pa.bool_(),
        "message": message,
        "messages": pa.list_(message),
        "texts": pa.list_(pa.string()),
    }
    # An explicit schema: Arrow can't infer the type of a column of empty lists or nulls.
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, types[column]) for name, column in columns.items()]))
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def write_tasks(tasks: Rows, path: Path) -> "Exported":
    """Write tasks as a JSON array for Label Studio, with the labelling configuration in the same folder.

    Raises:
        StoreError: the folder can't be written.
    """
    write_json(path, tasks, indent=1)
    write_text(path.with_name(TASK_FILES[1]), LABEL_STUDIO_CONFIG)
    return Exported("label-studio", path.parent, {path.stem: len(tasks)}, ())


def _start(path: Path, most: int) -> bytes:
    with path.open("rb") as f:
        return f.read(most)


def refuse_foreign_tasks(*files: Path) -> None:
    """Refuse to write tasks or their configuration over files that `write_tasks` didn't write. Raises `DataError`."""
    for path in files:
        begins = LABEL_STUDIO_CONFIG.encode() if path.name == TASK_FILES[1] else b'[\n {\n  "data": {\n   "prompt": '
        if path.exists() and not (path.is_file() and _start(path, len(begins)) == begins):
            raise DataError(f"{path}: is not of an export by `cai` and would be lost. Choose another --out, or move it away.")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise disk_error(e, path) from e


@dataclass(frozen=True)
class RunData:
    """A run's data; parts of stages that have not run yet are empty."""

    train: Sequence[Preference] = ()
    held_out: Sequence[Preference] = ()
    sft: Sequence[SFTExample] = ()
    traces: Sequence[RevisionTrace] = ()
    constitution: Constitution | None = None


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    format: ExportFormat
    folder: Path
    tables: dict[str, int]
    """Table (path in the folder, without suffix) to its number of rows."""
    failures: tuple[Failure, ...]
