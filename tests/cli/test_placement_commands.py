"""`placement: auto` as people meet it: a run says what to measure, a command measures it, and the run asks in that turn."""

import json
from pathlib import Path

import pytest

from cai.errors import RecipeError
from cai.models.requests import Reply, Request
from cai.models.scripted import default_script
from cai.records import Message
from tests.cli.calling import Called
from tests.sessions import reads_the_user_only
from tests.workspaces import make_workspace, run_data, script


def test_a_run_waits_for_the_measurement_and_then_asks_in_that_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    asked: list[tuple[Message, ...]] = []

    def recording(request: Request) -> Reply:
        asked.append(request.messages)
        answer = reads_the_user_only(request)
        return answer if request.messages[-1].content.endswith("?") else default_script(request)

    script(monkeypatch, recording)
    with pytest.raises(RecipeError, match="cai models check scripted --placement"):
        run_data(workspace, "model.placement=auto", only=["respond", "critique"])
    assert call(workspace.root, "models", "check", "scripted", "--placement") == 0 and "into the first user turn" in call.out
    assert call.json(workspace.root, "models", "check", "scripted", "--placement")["user"] == 18
    assert len((workspace.root / "runs" / "placements.jsonl").read_text().splitlines()) == 2
    asked.clear()
    run_data(workspace, "model.placement=auto", only=["respond", "critique"])
    assert asked and not any(m.role == "system" for messages in asked for m in messages)


def test_both_placements_of_a_protocol_are_benched(tmp_path: Path, call: Called) -> None:
    root = make_workspace(tmp_path / "w").root
    given = ("judge", "bench", "--pairs", "prompts/probe_pairs.jsonl", "--model", "scripted", "--limit", "6", "--principles", "sample")
    found = call.json(root, *given, "--protocol", "likelihood,pairwise", "--both-placements")
    assert [p["name"] for p in found["protocols"]] == ["likelihood", "likelihood (user turn)", "pairwise"]
    assert json.dumps(found).count("likelihood") == 2
