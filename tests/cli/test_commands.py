"""Every command as people call it: what it prints, its JSON, its exit codes."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.cli import main
from cai.constitution.load import load_constitution
from cai.constitution.proposals import Proposal, Review, drafted, dump_review
from cai.core.workspace import Workspace
from cai.judge.calibration import Calibration, write_calibration
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, Completion, Reply, Request
from cai.models.scripted import ScriptedEngine
from tests.workbench.test_learning import POLITE, TERSE, labelled, people
from tests.workbench.test_prompt_writing import five, replying
from tests.workspaces import DATA_STAGES, RECIPE, cai, make_workspace, rows, run_data, script

CONSTITUTION = "constitution/general.yaml"
EXPORTS = Path(__file__).parents[1] / "labels" / "exports"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a run of the data stages; tests must leave it as it is."""
    workspace = make_workspace(tmp_path_factory.mktemp("commands") / "w")
    run_data(workspace)
    return workspace


class Called:
    """What a command in this process printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch
        self.out = self.err = ""

    def __call__(self, folder: Path, *args: str) -> int:
        self.monkeypatch.chdir(folder)
        self.monkeypatch.setenv("COLUMNS", "80")
        self.monkeypatch.setattr("sys.argv", ["cai", *args])
        with pytest.raises(SystemExit) as e:
            main()
        self.out, self.err = self.capsys.readouterr()
        return int(e.value.code or 0)

    @property
    def told(self) -> str:
        """Standard error without frames and line breaks."""
        return " ".join(self.err.replace("│", " ").split())

    def json(self, folder: Path, *args: str) -> Any:
        assert self(folder, *args, "--json") == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Called:
    return Called(capsys, monkeypatch)


def test_the_module_runs_as_the_command(tmp_path: Path) -> None:
    done = cai(tmp_path, "--version")
    assert done.returncode == 0 and re.fullmatch(r"cai \d+\.\d+\.\d+\S*\n", done.stdout)


def test_help_names_every_command_of_the_contract(tmp_path: Path, call: Called) -> None:
    assert call(tmp_path, "--help") == 0
    for command in (
        "init",
        "run",
        "plan",
        "status",
        "constitution",
        "judge",
        "label",
        "evaluate",
        "audit",
        "report",
        "chat",
        "export",
        "human",
        "prompts",
        "studio",
    ):
        assert re.search(rf"\b{command}\b", call.out), command


@pytest.mark.parametrize("args", [("nonsense",), ("run",), ("run", "--nonsense"), ("chat", "scripted", "--max-tokens", "0")])
def test_wrong_usage_exits_2(tmp_path: Path, call: Called, args: tuple[str, ...]) -> None:
    assert call(tmp_path, *args) == 2
    assert "Traceback" not in call.err


def test_init_makes_a_workspace_and_never_overwrites(tmp_path: Path, call: Called) -> None:
    made = call.json(tmp_path, "init", "w")
    assert len(made) > 20 and all((tmp_path / path).is_file() for path in made)
    recipe = tmp_path / "w" / "runs" / "quickstart.yaml"
    recipe.write_text("mine")
    assert call(tmp_path, "init", "w") == 2
    assert "already has constitution/, prompts/, runs/" in call.told
    assert recipe.read_text() == "mine"


def test_a_run_says_what_it_did(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    arguments = ("run", "runs/s.yaml", "--only", ",".join(DATA_STAGES), "--set", "respond.sampling.max_tokens=9", "--name", "named")
    workspace.run("named").model("sft").mkdir(parents=True)
    first = call.json(workspace.root, *arguments)
    assert first["run"] == "named" and first["report"] is None
    assert [s["name"] for s in first["stages"]] == list(DATA_STAGES)
    assert first["stages"][0].keys() == {"name", "reused", "seconds", "calls_made", "calls_reused", "counts"}
    assert "NOT SHOWN TO BEAT" in first["warnings"][0] and "NOT SHOWN TO BEAT" in call.err
    assert "max_tokens: 9" in (workspace.run("named").path / "recipe.yaml").read_text()
    again = call.json(workspace.root, *arguments)
    assert all(s["reused"] for s in again["stages"]) and again["warnings"] == first["warnings"]
    assert "done before, nothing changed" in call.err and "NOT SHOWN TO BEAT" in call.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--only", "respond,critic"), "no stage 'critic'; the stages are: respond critique sft"),
        (("--from", "nowhere"), "no stage 'nowhere'"),
        (("--only", "critique"), "stage critique reads data/responses.jsonl"),
        (("--set", "critique.round=2"), "round"),
        (("--set", "critique.rounds"), "expected key.path=value"),
        (("--name", "../out"), "name"),
        (("--name", "[red]x[/red]"), "[red]x[/red]"),
        (("--set", "constitution=none.yaml", "--set", "templates=none"), "2 configuration errors"),
    ],
)
def test_what_a_user_can_mend_is_a_panel_and_exit_code_2(tmp_path: Path, call: Called, args: tuple[str, ...], told: str) -> None:
    workspace = make_workspace(tmp_path / "w")
    assert call(workspace.root, "run", "runs/s.yaml", *args) == 2
    assert told in call.told
    assert "╭" in call.err and "Error" in call.err and "Traceback" not in call.err
    assert call.out == ""


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    code = "import cai.pipeline.prompts as s\ns.load_all = lambda *a: 1 / 0\nfrom cai.cli import main\nmain()"
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code, "run", "runs/s.yaml", "--only", "respond"],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_outside_a_workspace_the_way_in_is_shown(tmp_path: Path, call: Called) -> None:
    for args in (("status", "s"), ("report", "s"), ("export", "s"), ("label", "s")):
        assert call(tmp_path, *args) == 2
        assert "cai init DIR" in call.told


def test_status_shows_stages_and_fits_80_columns(shared: Workspace, call: Called) -> None:
    assert call(shared.root, "status", "s") == 0
    lines = call.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.search(r"respond +done .* 12 .*12 prompts", call.out) and re.search(r"policy +not run", call.out)
    found = call.json(shared.root, "status", "runs/s")
    assert found["run"] == "s" and [s["state"] for s in found["stages"][:3]] == ["done", "done", "not run"]
    assert found["stages"][0].keys() == {"name", "state", "seconds", "calls_made", "calls_reused", "failures", "counts"}
    assert any("NOT SHOWN TO BEAT" in note for note in found["notes"])
    assert call.json(shared.root.parent, "status", str(shared.run("s").path)) == found, "a path works from anywhere"
    assert call(shared.root, "status", "nowhere") == 2
    assert "There are: s" in call.told


def test_plan_fits_80_columns(shared: Workspace, call: Called) -> None:
    assert call(shared.root, "plan", "runs/s.yaml") == 0
    assert max(map(len, call.out.splitlines())) <= 80
    assert "respond" in call.out and "…" not in call.out
    assert {s["name"] for s in call.json(shared.root, "plan", "runs/s.yaml")["stages"]} >= set(DATA_STAGES)


def test_a_plan_counts_every_member_of_a_reward_ensemble(shared: Workspace, call: Called) -> None:
    def steps(*settings: str) -> int:
        sets = [part for s in (*settings, "reward.batch_size=1") for part in ("--set", s)]
        stages = call.json(shared.root, "plan", "runs/s.yaml", *sets)["stages"]
        return next(int(s["train_steps"]) for s in stages if s["name"] == "reward")

    one = steps()
    assert one > 0 and steps("reward.members=3") == 3 * one
    assert one <= steps("reward.members=3", "reward.slices=parts") < one + 3
    assert 2 * one <= steps("reward.members=3", "reward.slices=folds") < 2 * one + 3


def test_label_makes_labels_again_for_a_run(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace, "seed=3")
    workspace.run("s").data("judgments").unlink()
    found = call.json(workspace.root, "label", "s")
    assert [(s["name"], s["reused"]) for s in found["stages"]] == [("feedback", False), ("preferences", True)]
    assert found["stages"][0]["calls_made"] == 0, "the run's own recipe, seed and all"


def test_report_carries_the_warning(shared: Workspace, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    found = call.json(shared.root, "report", "s")
    page = Path(found["report"]).read_text()
    assert "NOT SHOWN TO BEAT THE TRIVIAL BASELINES" in re.sub(r"\s+", " ", page)
    assert 'src="http' not in page
    Path(found["report"]).unlink()


def test_report_of_several_runs_compares_them(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    run_data(workspace, "preferences.min_margin=0.1", name="t", only=("respond", "critique"))
    found = call.json(workspace.root, "report", "s", "t")
    assert [s["key"] for s in found["comparison"]["settings"]] == ["preferences.min_margin"]
    assert found["report"].endswith("runs/s/against-t.html") and "preferences.min_margin" in Path(found["report"]).read_text()
    assert call(workspace.root, "report", "s", "t") == 0 and "1 setting differs" in call.out
    assert call(workspace.root, "report", "s", "s") == 2 and "two or more different runs" in call.told


@pytest.mark.parametrize("format", ["trl", "hh", "cai-conversation", "ultrafeedback", "label-studio"])
def test_export_writes_every_format(shared: Workspace, call: Called, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("not of this export")
    found = call.json(shared.root, "export", "s", "--format", format, "--out", str(out))
    assert found["url"] is None and found["folder"] == str(out) and sum(found["rows"].values()) > 0
    assert all(Path(f).is_file() for f in found["files"])
    assert str(out / "README.md") in found["files"]
    assert (out / "README.md").read_text().startswith("---\n") or format == "label-studio"


def test_export_refuses_what_it_does_not_know(shared: Workspace, call: Called, tmp_path: Path) -> None:
    assert call(shared.root, "export", "s", "--format", "xml", "--out", str(tmp_path / "out")) == 2
    assert "trl" in call.err and not (tmp_path / "out").exists()
    assert call(shared.root, "export", "nowhere") == 2


def test_judge_bench_prints_the_contract(shared: Workspace, call: Called) -> None:
    arguments = ("judge", "bench", "--pairs", "prompts/probe_pairs.jsonl", "--model", "scripted", "--limit", "10", "--principles", "sample")
    found = call.json(shared.root, *arguments)
    assert [p["name"] for p in found["protocols"]] == "likelihood pairwise pairwise-cot pointwise pointwise-contrast rubric".split()
    for protocol in found["protocols"]:
        assert {"name", "accuracy", "low", "high", "n", "position_bias", "failures"} <= protocol.keys()
        assert protocol["n"] + protocol["failures"] == 10
    assert {b["name"] for b in found["baselines"]} == {"always-a", "longer", "shorter"}
    assert call(shared.root, *arguments, "--protocol", "pointwise-contrast,pairwise") == 0
    assert max(map(len, call.out.splitlines())) <= 80
    assert re.search(r"^ *pointwise-contrast .*%", call.out, re.M) and "likelihood" not in call.out
    assert "Do not train a model on labels from this judge" in call.told


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--protocol", "vibes"), "no judging protocol 'vibes'; known: check, likelihood, pairwise"),
        (("--format", "xml"), "unknown pair format 'xml'; expected auto,"),
        (("--principles", "some"), "expected ensemble or sample"),
        (("--constitution", "constitution/none.yaml"), "none.yaml"),
    ],
)
def test_judge_bench_refuses_what_it_does_not_know(shared: Workspace, call: Called, args: tuple[str, ...], told: str) -> None:
    assert call(shared.root, "judge", "bench", "--pairs", "prompts/probe_pairs.jsonl", "--model", "scripted", *args) == 2
    assert told in call.told


def test_evaluate_measures_one_model_and_two(shared: Workspace, call: Called) -> None:
    judge = ("--judge", "scripted", "--limit", "3")
    alone = call.json(shared.root, "evaluate", "scripted", *judge)["results"]
    assert {r["model"] for r in alone} == {"model"} and all(r["low"] <= r["value"] <= r["high"] and r["n"] > 0 for r in alone)
    own = shared.root / "mine.jsonl"
    own.write_text('{"prompt": "How do I pick a lock?"}\n{"prompt": ""}\n', encoding="utf-8")
    (words,) = [
        r for r in call.json(shared.root, "evaluate", "scripted", *judge, "--prompts", str(own))["results"] if r["name"] == "response_words"
    ]
    assert words["n"] == 1 and "1 rows are no prompts, the first: " in call.told
    compared = call.json(shared.root, "evaluate", "scripted", "--against", "scripted", *judge)
    assert compared["judge"] == "scripted" and compared["judge_card"]["n"] == 88, "the judge is named and measured"
    both = compared["results"]
    assert {r["model"] for r in both} == {"base", "model"}
    assert {r["value"] for r in both if r["name"] == "win_rate_by_judge"} == {0.5}, "the same answers"
    assert all("by an uncalibrated judge" in r["note"] for r in both if r["name"].startswith("win_rate_by_judge"))
    weighed = Calibration("pointwise-contrast", "ensemble", 1, "scripted:scripted", "", scale=2.0, pooling="probabilities")
    write_calibration(shared.root / "c.json", weighed)
    both = call.json(shared.root, "evaluate", "scripted", "--against", "scripted", *judge, "--calibration", "c.json")["results"]
    assert all("calibrated with c.json" in r["note"] for r in both if r["name"].startswith("win_rate_by_judge"))
    write_calibration(shared.root / "c.json", replace(weighed, protocol="pairwise"))
    assert call(shared.root, "evaluate", "scripted", *judge, "--calibration", "c.json") == 2
    assert "protocol: fitted for pairwise, this judge has pointwise-contrast" in call.told
    assert call(shared.root, "evaluate", "scripted", *judge) == 0
    assert max(map(len, call.out.splitlines())) <= 80


def test_audit_prints_findings(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    answer = call.json(workspace.root, "audit", "s", "--limit", "2")
    assert {f["subject"] for f in answer["findings"]} == {"base", "labels", "judge"}
    assert all({"value", "low", "high", "n", "threshold", "reasoning", "verdict", "examples"} <= f.keys() for f in answer["findings"])
    assert call(workspace.root, "audit", "s", "--limit", "2") == 0
    assert "not enough data" in call.out and max(map(len, call.out.splitlines()[:-1])) <= 80
    assert call(workspace.root, "audit", "nowhere") == 2 and "no such run. There are: s" in call.told


@pytest.mark.parametrize(
    "args",
    [
        ("report", "typo"),
        ("status", "typo"),
        ("label", "typo"),
        ("export", "typo"),
        ("audit", "typo"),
        ("human", "queue", "typo"),
        ("constitution", "guidelines", CONSTITUTION, "--examples", "typo"),
        ("constitution", "diff", CONSTITUTION, CONSTITUTION, "--against-run", "typo"),
    ],
)
def test_a_run_that_does_not_exist_is_not_made(shared: Workspace, call: Called, args: tuple[str, ...]) -> None:
    assert call(shared.root, *args) == 2
    assert "no such run. There are: s" in call.told and not (shared.root / "runs" / "typo").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("human", "import", "{}", "-o", "{}"),
        ("human", "export", "{}", "-o", "{}", "--format", "preferences"),
        ("judge", "calibrate", "--pairs", "{}", "-o", "{}", "--model", "scripted"),
        ("judge", "fit", "--pairs", "{}", "-o", "{}", "--model", "scripted"),
        ("constitution", "import", "{}", "-o", "{}"),
        ("human", "queue", "s", "--by", "conflict", "--labels", "{}", "-o", "{}"),
    ],
)
def test_what_people_wrote_is_never_written_over(shared: Workspace, tmp_path: Path, call: Called, args: tuple[str, ...]) -> None:
    written = write_labels(tmp_path)
    if args[0] == "constitution":
        written = tmp_path / "values.md"
        written.write_text("The assistant should be honest.\n")
    before = written.read_bytes()
    assert call(shared.root, *(a.replace("{}", str(written)) for a in args)) == 2
    assert "would be overwritten" in call.told and written.read_bytes() == before


def test_constitutions_are_linted_shown_and_imported(shared: Workspace, call: Called, tmp_path: Path) -> None:
    assert call(shared.root, "constitution", "lint", CONSTITUTION) == 0
    assert call.out.startswith(f"{CONSTITUTION}: clean\nChecked: 27 principles: schema,")
    assert call.json(shared.root, "constitution", "lint", CONSTITUTION) == {CONSTITUTION: []}
    broken = tmp_path / "broken.yaml"
    broken.write_text((shared.root / CONSTITUTION).read_text().replace("statement:", "statment:", 1))
    assert call(shared.root, "constitution", "lint", str(broken), "--json") == 2
    assert json.loads(call.out)[str(broken)][0]["severity"] == "error"
    assert call(shared.root, "constitution", "show", CONSTITUTION, "--full") == 0
    assert max(map(len, call.out.splitlines())) <= 80 and "ask_negative:" in call.out
    shown = call.json(shared.root, "constitution", "show", CONSTITUTION)
    assert len(shown["principles"]) >= 16
    paper = tmp_path / "paper.json"
    paper.write_text(json.dumps({"a": {"prompt": "", "edit_request": "Rewrite it kindly.", "critique_request": "What is unkind in it?"}}))
    assert call(shared.root, "constitution", "import", str(paper), "-o", str(tmp_path / "paper.yaml")) in (0, 2)


def edited(workspace: Workspace) -> str:
    """A copy of the shipped constitution with one question changed; its name."""
    text = (workspace.root / CONSTITUTION).read_text()
    path = workspace.root / "constitution" / "edited.yaml"
    path.write_text(text.replace("Does the response lecture or moralise?", "Does the response [red]preach[/red]?"))
    return "constitution/edited.yaml"


def test_a_constitutions_text_changes_are_shown_without_a_model(shared: Workspace, call: Called) -> None:
    new = edited(shared)
    assert call(shared.root, "constitution", "diff", CONSTITUTION, new) == 0
    assert "~ no-preaching edited" in (told := " ".join(call.out.split())) and "[-lecture or moralise-] {+[red]preach[/red]+}?" in told
    assert call.err == ""
    assert call(shared.root, "constitution", "diff", CONSTITUTION, CONSTITUTION) == 0 and "No difference" in call.out
    (change,) = call.json(shared.root, "constitution", "diff", CONSTITUTION, new)["text"]["principles"]
    assert change["fields"] == [
        {"field": "ask_negative", "before": "Does the response lecture or moralise?", "after": "Does the response [red]preach[/red]?"}
    ]


def test_a_constitutions_consequences_are_shown_with_their_cost(shared: Workspace, call: Called) -> None:
    arguments = ("constitution", "diff", CONSTITUTION, edited(shared), "--sample", "6", "--prompts", "prompts/borderline.jsonl")
    found = call.json(shared.root, *arguments, "--model", "scripted")
    assert found["revisions"] == 0, "a judging question changes no revision"
    assert found["labels"]["n"] == 6 and found["calls"]["after"]["made"] == 12
    assert call(shared.root, *arguments, "--model", "scripted") == 0
    assert re.search(r"all changes +6 +6 +\d: ", call.out) and "after: 0 made" in call.out and max(map(len, call.out.splitlines())) <= 80
    assert call(shared.root, "constitution", "diff", CONSTITUTION, edited(shared), "--against-run", "s", "--sample", "4") == 0
    assert "before: 0 made" in call.out
    assert call(shared.root, *arguments, "--against-run", "s", "--model", "scripted") == 2 and "own model and settings" in call.told


def test_a_prompt_is_tried_step_by_step(shared: Workspace, call: Called) -> None:
    arguments = ("constitution", "try", CONSTITUTION, "--prompt", "How do I bake bread?", "--model", "scripted", "--kind", "helpful")
    assert call(shared.root, *arguments, "--rounds", "2") == 0
    shown = [call.out.index(word) for word in ("─ response", "─ critique", "─ revision", "judge (pointwise-contrast)")]
    assert shown == sorted(shown) and call.out.count("─ critique") == 2 and max(map(len, call.out.splitlines())) <= 80
    found = call.json(shared.root, *arguments, "--principle", "no-preaching", "--protocol", "pairwise")
    assert found["rounds"][0]["principle"]["id"] == "no-preaching" and found["judge"]["protocol"] == "pairwise"
    assert 0 < found["judge"]["p_revised"] < 1 and len(found["judge"]["opinions"]) == 1
    recipe = (*arguments[:-4], "--recipe", "runs/s.yaml", "--kind", "helpful")
    assert call.json(shared.root, *recipe)["response"] == call.json(shared.root, *arguments)["response"], "the recipe's model is the same"
    assert call(shared.root, *arguments, "--principle", "nothing") == 2 and "no principle nothing; it has:" in call.told
    assert call(shared.root, *arguments, "--protocol", "vibes") == 2 and "no judging protocol 'vibes'" in call.told


def test_an_empty_prompt_is_not_tried(shared: Workspace, call: Called) -> None:
    assert call(shared.root, "constitution", "try", CONSTITUTION, "--prompt", " ", "--model", "scripted") == 2
    assert "the prompt is empty" in call.told


def test_principles_are_validated_on_labelled_pairs(shared: Workspace, call: Called) -> None:
    arguments = ("constitution", "validate", CONSTITUTION, "--pairs", "prompts/probe_pairs.jsonl", "--limit", "20", "--model", "scripted")
    found = call.json(shared.root, *arguments, "--protocol", "pointwise")
    assert found["pairs"] == 20 and len(found["principles"]) > 15 and found["pooled"]["low"] <= found["pooled"]["accuracy"]
    assert [r["name"] for r in found["rules"]] == ["longer", "shorter"]
    assert call(shared.root, *arguments, "--principle", "no-preaching", "--principle", "no-flattery") == 0
    assert re.search(r"no-preaching +\d+% \[", call.out) and "a coin has -0.693" in call.out and "no-evasion" not in call.out
    assert max(map(len, call.out.splitlines())) <= 80
    for wrong, told in ((("--protocol", "vibes"), "no judging protocol 'vibes'"), (("--format", "xml"), "expected auto,")):
        assert call(shared.root, *arguments, *wrong) == 2 and told in call.told


def test_prompts_are_written_for_a_constitution_and_a_run_reads_them(call: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    (evaluated, *_) = rows(workspace.root / "prompts" / "eval_helpful.jsonl")
    script(monkeypatch, replying(lambda about, seed: f" {evaluated['messages'][0]['content']}\nRequest:{five(about, seed)}"))
    file = workspace.root / "constitution" / "mine.yaml"
    file.write_text(STARTER_DE.replace("language: de\n", ""))
    out = workspace.root / "prompts" / "made.jsonl"
    arguments = ("prompts", "generate", str(file), "-n", "4", "--kind", "helpful", "--model", "scripted")
    assert call(workspace.root, *arguments, "-o", str(out)) == 0
    told = " ".join(call.out.split())
    assert "8 prompts for 2 of 2 principles" in told and "near-copy of prompts/eval_helpful.jsonl × 2" in told
    made = rows(out)
    assert [list(row) for row in made] == [["id", "kind", "category", "messages"]] * 8
    assert {(row["kind"], row["category"]) for row in made} == {("helpful", "kurz"), ("helpful", "lang")}
    (workspace.root / "runs" / "made.yaml").write_text(
        "model: { path: scripted }\nconstitution: constitution/mine.yaml\nprompts: { train: [{ path: prompts/made.jsonl }] }\n"
    )
    run = call.json(workspace.root, "run", "runs/made.yaml", "--only", "respond")
    assert run["stages"][0]["counts"]["prompts"] == 8, run["stages"][0]["counts"]
    assert call(workspace.root, *arguments, "-o", str(out)) == 2 and "would be overwritten" in call.told and rows(out) == made
    out.unlink()
    assert call(workspace.root, *arguments) == 0
    assert [json.loads(line) for line in call.out.splitlines()] == made and "8 prompts for 2 of 2 principles" in call.err
    found = call.json(workspace.root, *arguments)
    assert found["prompts"] == made and found["coverage"][0] == {"principle": "kurz", "kind": "helpful", "wanted": 4, "written": 4}
    assert call(workspace.root, *arguments[:-2], "--kind", "other") == 2 and "expected harmful or borderline or helpful" in call.told


@pytest.mark.attack
def test_a_file_that_is_edited_while_the_model_writes_its_wording_loses_nothing(
    call: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path / "w")
    file = workspace.root / "constitution" / "mine.yaml"
    head = "id: mine\nname: Mine\ndescription: Two principles.\nprinciples:\n"
    one, two = "  - { id: terms, statement: Use everyday words. }\n", "  - id: sources\n    statement: Name every source.\n"
    file.write_text(head + one + two)
    first = "  - { id: first, statement: Be kind to every reader. }\n"

    def answer(request: Request) -> Reply:
        file.write_text(head + first + one.replace("everyday", "plain") + two)
        text = " Name every source.\nCritique: Point out each claim in your last response that names no source.\n"
        return Completion(text, False, 1, 1)

    script(monkeypatch, answer)
    assert call(workspace.root, "constitution", "draft", str(file), "--model", "scripted") == 0
    now = {p.id: p for p in load_constitution(file).principles}
    assert list(now) == ["first", "terms", "sources"] and now["terms"].statement == "Use plain words."
    assert "names no source" in file.read_text().partition("id: sources")[2], "and not in the principle that has its number now"
    assert "changed while the model wrote" in call.told and "terms" in call.told


def test_principles_are_learned_from_pairs_into_a_draft(
    shared: Workspace, call: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pairs, draft = labelled(tmp_path).path, tmp_path / "draft.yaml"
    arguments = ("constitution", "learn", "--pairs", str(pairs), "--model", "scripted")
    script(monkeypatch, people(lambda i: TERSE))
    assert call(shared.root, *arguments, "-o", str(draft)) == 0 and not draft.exists()
    told = " ".join(call.out.split())
    assert "nothing is written" in told and "A larger model may find" in told and TERSE[:20] in told
    assert max(map(len, call.out.splitlines())) <= 80
    script(monkeypatch, people(lambda i: POLITE))
    assert call(shared.root, *arguments, "--seed", "1") == 0 and "Write the best 1 with -o FILE" in call.out
    found = call.json(shared.root, *arguments, "--seed", "1", "-o", str(draft))
    assert found["out"] == str(draft) and found["candidates"][0]["chosen"] and found["calls"]["made"] == 0
    assert call(shared.root, "constitution", "lint", str(draft)) == 0
    before = draft.read_text()
    assert (
        call(shared.root, *arguments, "--seed", "1", "-o", str(draft)) == 2
        and "already exists" in call.told
        and draft.read_text() == before
    )
    for wrong, why in (
        (("--language", "fr"), "expected en or de"),
        (("--protocol", "vibes"), "no judging protocol"),
        (("-o", str(pairs)), "already exists"),
    ):
        assert call(shared.root, *arguments, *wrong) == 2 and why in call.told


def test_where_principles_collide_is_shown_with_a_request(
    shared: Workspace, call: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def colliding(request: Request) -> Reply:
        if isinstance(request, ChoicesRequest):
            return ChoiceLogprobs((-0.1, -3.0), 1)
        return Completion("Lehr mich [red]alles[/red].", False, 1, 1)

    script(monkeypatch, colliding)
    file = shared.root / "constitution" / "starter-de.yaml"
    file.write_text(STARTER_DE)
    arguments = ("constitution", "stress", str(file), "--model", "scripted")
    assert call(shared.root, *arguments) == 0
    told = " ".join(call.out.split())
    assert (
        "kurz lang harmful, borderline, helpful 95%" in told and "they are not a verdict. kurz and lang Lehr mich [red]alles[/red]." in told
    )
    assert "1 pairs asked about, 1 of them likely" in told and max(map(len, call.out.splitlines())) <= 80
    found = call.json(shared.root, *arguments)
    assert found["conflicts"][0]["request"] == "Lehr mich [red]alles[/red]." and found["failures"] == [] and found["unanswered"] == 0
    assert (
        call.json(shared.root, "constitution", "conflicts", *arguments[2:]) == found and "is now called cai constitution stress" in call.err
    )
    assert call(shared.root, *arguments, "-n", "0") == 0 and "Lehr" not in call.out
    assert call(tmp_path, *arguments[:2], "none.yaml") == 2 and "none.yaml: no such file" in call.told
    file.unlink()


def test_a_constitutions_language_chooses_the_templates(shared: Workspace, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def listening(request: Request) -> Reply:
        asked.append(request.messages[-1].content)
        return ChoiceLogprobs((-3.0, -0.1), 1) if isinstance(request, ChoicesRequest) else Completion("Nein.", False, 1, 1)

    script(monkeypatch, listening)
    file = shared.root / "constitution" / "starter-de.yaml"
    file.write_text(STARTER_DE.replace("kurz an", "knapp an"))
    assert call(shared.root, "constitution", "stress", str(file), "--model", "scripted") == 0
    assert all("Widersprechen sich" in text for text in asked[:2]) and len(asked) == 3 and asked[2].startswith("Regel 1: Antworte knapp")
    assert call(shared.root, "constitution", "stress", str(file), "--recipe", "runs/s.yaml") == 0
    assert all("contradict each other" in text for text in asked[3:5]) and len(asked) == 6, "the recipe says what templates to use"
    file.unlink()


STARTER_DE = """\
id: starter-de
name: Anfang
description: Zwei Grundsätze.
language: de
principles:
  - { id: kurz, statement: Antworte kurz an jeder Stelle. }
  - { id: lang, statement: Erkläre alles ausführlich. }
"""


def test_guidelines_and_a_documents_proposals(shared: Workspace, call: Called, tmp_path: Path) -> None:
    page, review, made = (str(tmp_path / name) for name in ("g.html", "review.yaml", "made.yaml"))
    assert call(shared.root, "constitution", "guidelines", CONSTITUTION, "-o", page) == 0
    assert "27 principles, 27 examples" in call.out and Path(page).read_text().startswith("<!doctype html>")
    assert call(shared.root, "constitution", "guidelines", CONSTITUTION, "--examples", "s") == 0 and "says its judge" in call.out
    assert call(shared.root, "constitution", "guidelines", CONSTITUTION, "-o", "g.pdf") == 2
    document = tmp_path / "values.md"
    document.write_text("The assistant should name its sources. It must not guess. Users must wait.")
    assert call(shared.root, "constitution", "import", str(document), "--model", "scripted") == 2
    assert "scripted proposed nothing that holds up (not in the section" in " ".join(call.told.split())
    proposals = tuple(
        Proposal(i, f"values.md:{i}", s, drafted(f"p-{i}", s)) for i, s in enumerate(("Name your sources.", "Never guess a date."), 1)
    )
    Path(review).write_text(dump_review(Review("values.md", "values", "Values", "From values.md.", proposals)))
    assert call(shared.root, "constitution", "import", review, "-o", made) == 2 and "none of 2 proposals is accepted" in call.told
    assert call(shared.root, "constitution", "import", review, "--accept", "2", "-o", made) == 0 and "1 principles" in call.out
    assert call(shared.root, "constitution", "lint", made) == 0 and "clean" in call.out
    assert call(shared.root, "constitution", "import", review, "--model", "scripted") == 2 and "needs one document" in call.told
    assert call(shared.root, "constitution", "import", str(document), "--accept", "all") == 2 and "needs a review file" in call.told


NASTY = "[red]stop[/red] \\e[2J\\a"
"""As YAML writes it between double quotes: markup, an escape sequence and a bell."""


def test_markup_and_control_characters_are_shown_not_obeyed(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    file = workspace.root / "constitution" / "nasty.yaml"
    fields = "".join(f'    {key}: "{NASTY}"\n' for key in ("statement", "critique", "revision", "ask_positive", "ask_negative", "compare"))
    file.write_text(f'id: nasty\nname: "{NASTY}"\ndescription: "{NASTY}"\nprinciples:\n  - id: first\n{fields}')
    assert call(workspace.root, "constitution", "show", str(file), "--full") == 0
    assert "\x1b[2J" not in call.out and "\x07" not in call.out
    assert call.out.count("[red]stop[/red] \\x1b[2J\\x07") == 8
    call(workspace.root, "constitution", "lint", str(file))
    assert "\x1b[2J" not in call.out and "[red]" in call.out
    assert call(workspace.root, "run", "runs/s.yaml", "--set", 'constitution="\\e[2J[red]none"') == 2
    assert "\x1b[2J" not in call.err and "\\x1b[2J[red]none" in call.told.replace(" ", "")


def test_control_characters_are_escaped_in_json_too(tmp_path: Path, call: Called) -> None:
    fields = "".join(f"    {key}: Be kind.\n" for key in ("statement", "critique", "revision", "ask_positive", "ask_negative", "compare"))
    file = tmp_path / "c.yaml"
    file.write_text(f'id: c\nname: c\ndescription: "\\x9b2J\\x7f \\x1b[2J ü"\nprinciples:\n  - id: first\n{fields}')
    assert call.json(tmp_path, "constitution", "show", "c.yaml")["description"] == "\x9b2J\x7f \x1b[2J ü"
    assert not set("\x9b\x7f\x1b") & set(call.out) and "ü" in call.out


def test_a_name_that_is_not_text_is_told(tmp_path: Path, call: Called) -> None:
    assert call(tmp_path, "constitution", "lint", "a\udcff.yaml", "--json") == 2
    assert "\\udcff.yaml: this argument is not UTF-8 text" in call.told


def test_chat_answers_lines_from_its_input(tmp_path: Path) -> None:
    done = cai(tmp_path, "chat", "scripted", stdin="hello\n\n/reset\nhello\n/exit\nnever read\n")
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"╭.*?╰", done.stdout, re.S)
    assert len(answers) == 2 and answers[0] != answers[1], "each turn has its own seed"
    assert "started again" in done.stdout
    side_by_side = cai(tmp_path, "chat", "scripted", "--against", "scripted", "--system", "Be kind.", stdin="hello\n")
    assert side_by_side.returncode == 0 and side_by_side.stdout.count("╭") == 2


def test_help_is_quick_because_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "pandas", "scipy", "numpy", "trl", "peft", "datasets", "rich.progress")
    code = f"import sys\nimport cai.cli\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"


def test_failures_appear_in_the_status(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w", RECIPE)
    source = workspace.root / "prompts" / "harmful.jsonl"
    source.write_text(source.read_text() + "not json\n")
    run_data(workspace, only=("respond",))
    assert call.json(workspace.root, "status", "s")["stages"][0]["failures"] == 1 == len(rows(workspace.run("s").failures))


LABELS = [
    {
        "prompt": f"Question {i} about locks?",
        "response_a": f"Open it with answer {i}.",
        "response_b": f"I can't help with question {i}, but ask a locksmith.",
        "choice": "b" if i % 3 or who == "eve" else "a",
        "annotator": who,
        "rater_country": "KE" if who == "eve" else "NL",
    }
    for i in range(45)
    for who in ("ann", "eve")
]


def write_labels(folder: Path) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*LABELS, {**LABELS[0], "choice": "perhaps"}]))
    return path


def test_human_labels_come_in_and_go_out(tmp_path: Path, call: Called) -> None:
    write_labels(tmp_path)
    assert call(tmp_path, "human", "import", "answers.jsonl", "-o", "labels.jsonl") == 0
    assert "answers.jsonl:91: no_choice" in call.told and "90 labels of 45 pairs by 2 people, from 91 rows" in call.out
    assert [r["reason"] for r in rows(tmp_path / "labels.rejected.jsonl")] == ["no_choice"]
    answer = call.json(tmp_path, "human", "import", "answers.jsonl", "-o", "labels.jsonl")
    assert (answer["labels"], answer["annotators"], answer["formats"], answer["rejected"]) == (90, 2, ["table"], {"no_choice": 1})
    assert call.json(tmp_path, "human", "export", "labels.jsonl", "-o", "tasks")["count"] == 45
    assert len(json.loads((tmp_path / "tasks" / "tasks.json").read_text())) == 45
    given = ("human", "export", "labels.jsonl", "-o", "soft.jsonl", "--format", "preferences", "--smoothing", "1")
    assert call.json(tmp_path, *given)["count"] == 30  # the others are even
    assert {r["p_chosen"] for r in rows(tmp_path / "soft.jsonl")} == {0.75}
    (tmp_path / "unnamed.jsonl").write_text(json.dumps({k: v for k, v in LABELS[0].items() if k != "annotator"}) + "\n")
    assert call(tmp_path, "human", "import", "unnamed.jsonl", "-o", "u.jsonl") == 0 and "by nobody with a name" in call.out
    assert call(tmp_path, "human", "agreement", "u.jsonl") == 2 and "nothing to compare" in call.told
    assert call(tmp_path, "human", "import", "answers.jsonl", "-o", "x.jsonl", "--column", "choice") == 2
    assert "--column choice: expected OURS=THEIRS" in call.told


def test_an_export_without_attributes_gets_them_from_a_table(tmp_path: Path, call: Called) -> None:
    (tmp_path / "people.csv").write_text("annotator,language\n2,sw\n4,sw\n")
    given = ("human", "import", str(EXPORTS / "label_studio.json"), "-o", "labels.jsonl", "--people", "people.csv")
    assert call(tmp_path, *given) == 0 and "people.csv has no row for 3" in call.told
    answer = call.json(tmp_path, "human", "agreement", "labels.jsonl")
    assert [r["n"] for r in answer["results"] if (r["name"], r["model"]) == ("alpha", "language = sw")] == [3]
    before = (tmp_path / "people.csv").read_bytes()
    assert call(tmp_path, *given[:4], "people.csv", "--people", "people.csv") == 2 and (tmp_path / "people.csv").read_bytes() == before


def test_what_an_export_leaves_unsaid_is_said(tmp_path: Path, call: Called) -> None:
    assert call(tmp_path, "human", "import", str(EXPORTS / "argilla_nested.json"), "-o", "labels.jsonl") == 0
    assert "8 labels: the export doesn't say which answers are drafts" in call.told
    assert list(call.json(tmp_path, "human", "import", str(EXPORTS / "argilla_nested.json"), "-o", "labels.jsonl")["doubts"].values()) == [
        8
    ]


def test_agreement_of_people_groups_gold_and_judge(shared: Workspace, tmp_path: Path, call: Called) -> None:
    path = write_labels(tmp_path)
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "annotator"}) + "\n" for row in LABELS[1:20:2]))
    asked = ("--protocol", "pointwise", "--model", "scripted", "--principles", "sample", "--gold", str(gold))
    answer = call.json(shared.root, "human", "agreement", str(path), *asked)
    found = {(r["name"], r["model"]): r for r in answer["results"]}
    assert found["kappa", "ann and eve"]["n"] == found["alpha", "people"]["n"] == 45
    assert found["agrees_with_others", "country = KE"]["value"] == pytest.approx(2 / 3)
    assert found["gold_accuracy", "eve"]["value"] == 1.0 and found["agrees", "judge:pointwise"]["n"] == 30
    assert any(model.startswith("judge:pointwise/") for _, model in found)
    assert all(r["low"] <= r["value"] <= r["high"] for r in found.values())


def test_a_judge_is_not_asked_where_labels_are_too_few(tmp_path: Path, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    def unasked(request: Request) -> Reply:
        raise AssertionError("nothing may be asked")

    script(monkeypatch, unasked)
    workspace = make_workspace(tmp_path / "w")
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LABELS[:20]))
    assert call(workspace.root, "judge", "calibrate", "--pairs", str(tmp_path / "few.jsonl"), "--model", "scripted", "-o", "c.json") == 2
    assert "needs at least 40 pairs, of at least 10 prompts" in call.told


def test_a_judge_is_calibrated_and_a_run_uses_it(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    people = [row for row in LABELS if row["annotator"] == "eve"]
    (tmp_path / "eve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    asked = ("--model", "scripted", "--principles", "sample", "-o", "runs/c.json", "--length")
    fitted = call.json(workspace.root, "judge", "calibrate", "--pairs", str(tmp_path / "eve.jsonl"), *asked)
    assert len(fitted["fitted_on"]) == 45 and {r["name"] for r in fitted["measured"]} >= {"accuracy", "accuracy_gain", "log_loss"}
    run_data(workspace)
    plain = rows(workspace.run("s").data("judgments"))
    run_data(workspace, "feedback.calibration=runs/c.json")
    weighed = rows(workspace.run("s").data("judgments"))
    assert {j["provenance"]["calibration"] for j in plain} == {""}
    assert len({j["provenance"]["calibration"] for j in weighed}) == 1 and "" not in {j["provenance"]["calibration"] for j in weighed}
    assert [j["p_a"] for j in weighed] != [j["p_a"] for j in plain]
    judge = json.loads(workspace.run("s").manifest.read_text())["judge"]
    assert "after calibration, on pairs not used to fit it (0 left out)" in judge["note"] and judge["calibration"]
    assert call(workspace.root, "run", "runs/s.yaml", "--set", "feedback.calibration=runs/none.json") == 2
    assert "feedback.calibration" in call.told and "no such calibration" in call.told


def test_a_probe_is_fitted_benched_and_labels_a_run(tmp_path: Path, call: Called) -> None:
    workspace = make_workspace(tmp_path / "w")
    people = [row for row in LABELS if row["annotator"] == "eve"]
    pairs = ("--pairs", str(tmp_path / "eve.jsonl"))
    (tmp_path / "eve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    fitted = call.json(workspace.root, "judge", "fit", *pairs, "--model", "scripted", "-o", "runs/p.json")
    assert len(fitted["fitted_on"]) == fitted["n"] == 45 and fitted["pooling"] in ("mean", "last") and fitted["warnings"]
    assert call(workspace.root, "judge", "fit", *pairs, "--model", "scripted", "-o", "runs/p.json") == 0
    assert "set feedback.protocol: probe" in call.out and "valid only for scripted in float32" in call.out
    assert "not shown to beat the best trivial rule" in call.told, "a script's hidden states are noise"
    bench = ("judge", "bench", "--pairs", "prompts/probe_pairs.jsonl", "--model", "scripted", "--limit", "10")
    assert [p["name"] for p in call.json(workspace.root, *bench, "--protocol", "probe", "--probe", "runs/p.json")["protocols"]] == ["probe"]
    assert call(workspace.root, *bench, "--protocol", "probe") == 2 and "feedback.probe: no probe is named" in call.told
    assert call(workspace.root, "judge", "bench", *pairs, "--model", "scripted", "--probe", "runs/p.json") == 2
    assert "the probe was fitted on all of these pairs" in call.told
    assert call(workspace.root, "judge", "fit", *pairs, "--model", "http://127.0.0.1:1/v1#m", "-o", "runs/q.json") == 2
    assert "gives no hidden states" in call.told and "Fix: judge with local weights" in call.told
    evaluate = ("evaluate", "scripted", "--against", "scripted", "--judge", "scripted", "--limit", "3", "--protocol", "probe")
    compared = call.json(workspace.root, *evaluate, "--probe", "runs/p.json")
    assert compared["judge_card"]["protocol"] == "probe" and "win_rate_by_judge" in {r["name"] for r in compared["results"]}
    assert call(workspace.root, *evaluate) == 2 and "feedback.probe: no probe is named" in call.told

    probing = "feedback={protocol: probe, probe: runs/p.json, bench_limit: 8}"
    mixed = f"preferences={{held_out_fraction: 0.5, human: [{{path: {tmp_path / 'eve.jsonl'}}}]}}"
    run_data(workspace, probing, mixed, "critique={min_p_revised: 0.5}")
    judgments = rows(workspace.run("s").data("judgments"))
    assert {(j["protocol"], *j["principle_ids"]) for j in judgments} == {("probe",)} and {j["failure"] for j in judgments} == {None}
    held_out = {p["prompt"]["messages"][0]["content"] for p in rows(workspace.run("s").data("preferences_heldout"))}
    trained = {p["prompt"]["messages"][0]["content"] for p in rows(workspace.run("s").data("preferences"))}
    theirs = {row["prompt"] for row in people}
    assert theirs <= trained and held_out and not theirs & held_out, "the labels of a probe measure nothing"
    traces = rows(workspace.run("s").data("traces"))
    assert any(t["p_revised"] is not None for t in traces), "the probe filters revisions"
    before = [j["p_a"] for j in judgments]
    call.json(workspace.root, "judge", "fit", *pairs, "--model", "scripted", "-o", "runs/p.json", "--limit", "40")
    made = run_data(workspace, probing, mixed, "critique={min_p_revised: 0.5}")
    assert not next(s for s in made.stages if s.name == "feedback").reused, "another probe judges anew"
    assert [j["p_a"] for j in rows(workspace.run("s").data("judgments"))] != before


def test_the_queue_asks_what_the_judge_is_unsure_of_and_what_people_contradict(shared: Workspace, tmp_path: Path, call: Called) -> None:
    run = shared.run("s")
    judged = {j["pair_id"]: j["p_a"] for j in rows(run.data("judgments"))}
    out = tmp_path / "q.jsonl"
    answer = call.json(shared.root, "human", "queue", "s", "-n", "5", "-o", str(out))
    assert answer["count"] == 5 and [c["score"] for c in answer["pairs"]] == sorted((c["score"] for c in answer["pairs"]), reverse=True)
    assert len({c["pair"]["prompt"]["id"] for c in rows(out)}) == 5
    assert max(answer["pairs"][i]["score"] for i in range(5)) == pytest.approx(max(0.5 - abs(p - 0.5) for p in judged.values()))
    assert call.json(shared.root, "human", "queue", "s", "-n", "3", "-o", str(tmp_path / "tasks.json"))["count"] == 3
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == 3 and (tmp_path / "labeling_config.xml").exists() and "score" not in str(tasks)

    pairs = {p["response_a"]: p for p in rows(run.data("pairs"))}
    first, second = list(pairs.values())[:2]
    for pair, against in ((first, True), (second, False)):
        pair |= {"said": "b" if (judged[_pair_id(pair)] > 0.5) == against else "a"}
    people = tmp_path / "people.jsonl"
    asked = [{"messages": p["prompt"]["messages"], "annotator": "ann", "choice": p["said"], **p} for p in (first, second)]
    people.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "prompt"}) + "\n" for row in asked))
    answer = call.json(shared.root, "human", "queue", "s", "--by", "conflict", "--labels", str(people))
    assert [c["pair"]["response_a"] for c in answer["pairs"]] == [first["response_a"]]
    fresh = call.json(shared.root, "human", "queue", "s", "-n", "1000", "--labels", str(people))
    assert not {first["response_a"], second["response_a"]} & {c["pair"]["response_a"] for c in fresh["pairs"]}

    assert call(shared.root, "human", "queue", "s", "--by", "conflict") == 2 and "labelled none of the pairs" in call.told
    assert call(shared.root, "human", "queue", "s", "--by", "disagreement") == 2 and "no scores of a reward ensemble" in call.told
    assert call(shared.root, "human", "queue", "s", "--by", "chance") == 2 and "expected uncertainty or disagreement" in call.told


def _pair_id(row: dict[str, Any]) -> str:
    import msgspec

    from cai.records import ResponsePair

    return msgspec.convert({k: v for k, v in row.items() if k != "said"}, ResponsePair).id


def test_a_runs_own_judge_compares_unless_another_is_named(tmp_path: Path, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = workspace.run("s")
    (run.path / "recipe.yaml").write_text("model: { path: scripted }\nfeedback: { judge: { path: scripted, name: strict } }\n")
    policy = run.model("policy")
    policy.mkdir(parents=True)
    (policy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "embedded"}))
    (policy / "adapter_model.safetensors").touch()
    monkeypatch.setattr("cai.models.opening.LazyEngine", lambda spec, loading: ScriptedEngine(name=spec.path))
    asked = ("evaluate", str(policy), "--against", "scripted", "--limit", "2")
    assert call.json(workspace.root, *asked)["judge"] == "strict"
    assert call.json(workspace.root, *asked, "--judge", "scripted#other")["judge"] == "other"


def test_evaluate_ranks_models_in_an_arena(shared: Workspace, call: Called) -> None:
    models, judge = ("scripted#one", "scripted#two", "scripted#three"), ("--judge", "scripted")
    [arena] = call.json(shared.root, "evaluate", "--arena", *models, "--limit", "3", *judge)["arenas"]
    assert arena["by"] == "judge" and arena["prompts"] == 9
    assert {r["model"] for r in arena["ratings"]} == set(models) and {r["duels"] for r in arena["ratings"]} == {18}
    assert sum(r["elo"] for r in arena["ratings"]) == pytest.approx(3000)
    assert call(shared.root, "evaluate", "--arena", *models, "--limit", "3", *judge) == 0 and "mean rating 1000" in call.out
    assert call(shared.root, "evaluate", *models) == 2 and "rank them with --arena" in call.told
    assert call(shared.root, "evaluate", "--arena", "scripted#one") == 2 and "two or more different models" in call.told
    assert call(shared.root, "evaluate", "--arena", *models, "--against", "scripted") == 2 and "without --against" in call.told
