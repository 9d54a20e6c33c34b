"""Commands as people call them: what they print, their JSON, their exit codes. Constitutions and judges have tests of their own."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cai.core.workspace import Workspace
from cai.judge.calibration import Calibration, write_calibration
from tests.cli.calling import CONSTITUTION, Called, write_labels
from tests.workspaces import DATA_STAGES, RECIPE, cai, make_workspace, rows, run_data


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


def test_a_plan_says_what_a_chat_template_can_not_take_of_the_prompts(
    shared: Workspace, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "m: 2 of 6 prompts will be counted failures"
    monkeypatch.setattr("cai.pipeline.setup_check.prompt_warnings", lambda recipe, workspace: [told])
    assert call(shared.root, "plan", "runs/s.yaml") == 0 and told in call.told


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


def test_commands_and_settings_of_earlier_versions_say_what_to_use(shared: Workspace, call: Called, tmp_path: Path) -> None:
    assert call(shared.root, "diagnose", "embedded", "--limit", "3") == 2
    assert "cai audit RUN measures the same" in call.told
    assert call(shared.root, "evaluate", "scripted", "--lm-eval", "arc_easy") == 2 and "run lm-eval itself" in call.told
    for gone in (("run", "runs/s.yaml", "--shard", "0/2"), ("merge-calls", "a.sqlite")):
        assert call(shared.root, *gone) == 2 and "finished calls are reused" in call.told
    (shared.root / "runs" / "old.yaml").write_text(f"{RECIPE}preferences: {{ ai_weight: 2 }}\n")
    done = cai(shared.root, "plan", "runs/old.yaml")
    (shared.root / "runs" / "old.yaml").unlink()
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert "preferences.ai_weight is now preferences.ai.weight" in told and "FutureWarning" not in told


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


def test_evaluate_ranks_models_in_an_arena(shared: Workspace, call: Called) -> None:
    models, judge = ("scripted#one", "scripted#two", "scripted#three"), ("--judge", "scripted")
    [arena] = call.json(shared.root, "evaluate", "--arena", *models, "--limit", "3", *judge)["arenas"]
    assert arena["by"] == "judge" and arena["prompts"] == 9
    assert {r["model"] for r in arena["ratings"]} == set(models) and {r["duels"] for r in arena["ratings"]} == {18}
    assert sum(r["elo"] for r in arena["ratings"]) == pytest.approx(3000)
    assert call(shared.root, "evaluate", "--arena", *models, "--limit", "3", *judge) == 0 and "mean rating 1000" in call.out
    assert "--judge" not in call.told
    assert call(shared.root, "evaluate", *models) == 2 and "rank them with --arena" in call.told
    assert call(shared.root, "evaluate", "--arena", "scripted#one") == 2 and "two or more different models" in call.told
    assert "The judge is the embedded model (SmolLM2-135M), which was not shown to beat trivial rules" in call.told
    assert "Choose another with --judge MODEL" in call.told
    assert call(shared.root, "evaluate", "--arena", *models, "--against", "scripted") == 2 and "without --against" in call.told
