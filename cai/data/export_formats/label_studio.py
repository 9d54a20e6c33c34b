"""Tasks for Label Studio, and its labelling configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cai.core.jsonl import write_json, write_text
from cai.data.export_format import ExportFormat, Rows, dicts
from cai.data.filters import sides_by_hash, texts_key
from cai.errors import DataError
from cai.records import ResponsePair

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
                    "messages": dicts(pair.prompt.messages),
                    "response_a": first,
                    "response_b": second,
                    "kind": pair.prompt.kind,
                    "truncated_a": shown.truncated_a,
                    "truncated_b": shown.truncated_b,
                }
            }
    return list(tasks.values())


def write_tasks(tasks: Rows, path: Path) -> None:
    """Write tasks as a JSON array for Label Studio, with the labelling configuration in the same folder.

    Raises:
        StoreError: the folder can't be written.
    """
    write_json(path, tasks, indent=1)
    write_text(path.with_name(TASK_FILES[1]), LABEL_STUDIO_CONFIG)


def _start(path: Path, most: int) -> bytes:
    with path.open("rb") as f:
        return f.read(most)


def refuse_foreign_tasks(*files: Path) -> None:
    """Refuse to write tasks or their configuration over files that `write_tasks` didn't write. Raises `DataError`."""
    for path in files:
        begins = LABEL_STUDIO_CONFIG.encode() if path.name == TASK_FILES[1] else b'[\n {\n  "data": {\n   "prompt": '
        if path.exists() and not (path.is_file() and _start(path, len(begins)) == begins):
            raise DataError(f"{path}: is not of an export by `cai` and would be lost. Choose another --out, or move it away.")


FORMAT = ExportFormat(
    "label-studio",
    "Tasks for Label Studio (`tasks.json`, `labeling_config.xml`). A hash decides which response is A. Labels are hidden.",
    lambda data, failures: {"tasks": label_tasks(p.pair for p in (*data.train, *data.held_out))},
    own_files=TASK_FILES,
    write=lambda tables, folder: write_tasks(tables["tasks"], folder / TASK_FILES[0]),
)
