"""`cai constitution adherence`: of a run, of several seeds, and of any model under a constitution file."""

import json
from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.core.workspace import Workspace
from cai.models.requests import Completion, Reply, Request
from cai.records import EvalResult
from tests.cli.calling import Called
from tests.workspaces import make_workspace, script

KEYS = {"id", "by", "base", "told", "sft", "policy", "change", "low", "high", "n", "seeds", "verdict", "blend"}


def evaluated(workspace: Workspace, name: str, policy: float, p: float) -> None:
    """Write the evaluation of a run whose policy follows a principle at a rate."""

    def rate(model: str, value: float, of: str = "adherence:brief", note: str = "by check") -> EvalResult:
        return EvalResult(of, model, value, 40, value - 0.1, value + 0.1, note)

    change = EvalResult("adherence:brief_change", "policy", policy - 0.1, 40, policy - 0.2, policy, p=p, p_adjusted=p)
    told = EvalResult("adherence:brief_change", "told", 0.6, 40, 0.5, 0.7, p=0.001, p_adjusted=0.001)
    judged = [rate(m, 0.5, "adherence:kind", "by judge") for m in ("base", "policy")]
    control = [rate(m, 0.2, "control:colour") for m in ("base", "policy")]
    words = [EvalResult("response_words", m, v, 40, v, v) for m, v in (("base", 90.0), ("policy", 40.0))]
    run = workspace.run(name)
    run.data("evaluation").parent.mkdir(parents=True)
    (run.path / "recipe.yaml").write_text("model: { path: scripted }\n")
    rates = [rate("base", 0.1), rate("told", 0.7), rate("sft", 0.4), rate("policy", policy)]
    write_records(run.data("evaluation"), [*rates, change, told, *judged, *control, *words])


def test_a_runs_adherence_is_printed_as_the_contract_has_it(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    evaluated(workspace, "a", 0.8, 0.001)
    found = call.json(workspace.root, "constitution", "adherence", "a")
    brief, kind = found["principles"]
    assert brief.keys() == KEYS and found.keys() == {"principles", "controls", "cost"}
    assert (brief["id"], brief["by"], brief["base"], brief["told"], brief["sft"], brief["policy"]) == ("brief", "check", 0.1, 0.7, 0.4, 0.8)
    assert (brief["change"], brief["low"], brief["high"], brief["n"], brief["seeds"]) == (
        pytest.approx(0.7),
        pytest.approx(0.6),
        0.8,
        40,
        1,
    )
    assert (brief["verdict"], brief["blend"]) == ("learned", None)
    assert kind["by"] == "judge" and kind["verdict"] is None and kind["told"] is None
    assert [c["id"] for c in found["controls"]] == ["colour"] and found["cost"] == {"response_words": {"base": 90.0, "policy": 40.0}}
    assert call(workspace.root, "constitution", "adherence", "a") == 0
    assert "brief" in call.out and "+70 [+60, +80]" in call.out and "blend" not in call.out
    assert call.out.index("controls:") < call.out.index("colour")
    assert call(workspace.root, "constitution", "adherence", "a", "--seed", "1") == 2 and "was measured with its own models" in call.told


def test_seeds_are_averaged_and_a_verdict_needs_all_of_them(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    evaluated(workspace, "a-seed-0", 0.8, 0.001)
    evaluated(workspace, "a-seed-1", 0.6, 0.001)
    found = call.json(workspace.root, "constitution", "adherence", "a")["principles"][0]
    assert (found["policy"], found["change"], found["seeds"], found["verdict"]) == (pytest.approx(0.7), pytest.approx(0.6), 2, "learned")
    evaluated(workspace, "a-seed-2", 0.3, 0.4)
    assert call.json(workspace.root, "constitution", "adherence", "a")["principles"][0]["verdict"] == "not_learned"
    assert call(workspace.root, "constitution", "adherence", "b") == 2 and "no such run" in call.told


def test_any_models_answers_are_measured_under_a_constitution_file(
    tmp_path: Path,
    call: Called,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace = make_workspace(tmp_path / "w")
    file = workspace.root / "constitution" / "short.yaml"
    file.write_text(
        "id: short\nname: Short\ndescription: A principle with a check, and one without.\nprinciples:\n"
        "  - { id: brief, statement: Use two words., check: { max_words: 2 } }\n  - { id: kind, statement: Be kind. }\n"
    )
    with (workspace.root / "prompts" / "own.jsonl").open("w") as f:
        for i in range(6):
            f.write(json.dumps({"id": f"own-{i}", "kind": "helpful", "messages": [{"role": "user", "content": f"What is {i}?"}]}) + "\n")

    def answer(request: Request) -> Reply:
        return Completion("Two words." if "Use two words." in request.messages[-1].content else "More than two words.", False, 5, 5)

    script(monkeypatch, answer)
    command = ("constitution", "adherence", "constitution/short.yaml", "--prompts", "prompts/own.jsonl")
    found = call.json(workspace.root, *command, "--model", "scripted")
    assert [(p["id"], p["base"], p["told"], p["change"], p["n"]) for p in found["principles"]] == [("brief", 0.0, 1.0, None, 6)]
    compared = call.json(workspace.root, *command, "--model", "scripted", "--against", "scripted")["principles"][0]
    assert (compared["base"], compared["policy"], compared["change"], compared["told"]) == (0.0, 0.0, 0.0, 1.0)
    assert call(workspace.root, *command) == 2 and "which model?" in call.told
    assert call(workspace.root, "constitution", "adherence", "a", "--model", "scripted") == 2 and "go with a constitution" in call.told
