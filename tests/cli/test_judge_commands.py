"""The commands about judges and labels as people call them: what they print, their JSON, their exit codes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cai.core.workspace import Workspace
from cai.models.requests import Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.workbench.settings import settings
from tests.cli.calling import LABELS, Called, write_labels
from tests.workspaces import make_workspace, rows, run_data, script

EXPORTS = Path(__file__).parents[1] / "labels" / "exports"


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
        (("--principles", "some"), "'some' is not one of 'ensemble', 'sample'"),
        (("--constitution", "constitution/none.yaml"), "none.yaml"),
    ],
)
def test_judge_bench_refuses_what_it_does_not_know(shared: Workspace, call: Called, args: tuple[str, ...], told: str) -> None:
    assert call(shared.root, "judge", "bench", "--pairs", "prompts/probe_pairs.jsonl", "--model", "scripted", *args) == 2
    assert told in call.told


def test_judge_bench_tells_every_reason_for_unusable_rows(shared: Workspace, call: Called, tmp_path: Path) -> None:
    pair = {"prompt": "Q?", "response_a": "Yes.", "response_b": "No.", "choice": "A"}
    changes = ({}, {"choice": "tie", "prompt": "R?"}, {"response_b": "Yes."}, {"response_a": ""}, {"choice": None}, {"choice": ""})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({**pair, **change}) + "\n" for change in changes))
    command = ("judge", "bench", "--pairs", str(tmp_path / "p.jsonl"), "--model", "scripted", "--protocol", "pairwise")
    assert call(shared.root, *command, "--principles", "sample") == 0
    assert "5 rows can't be used (2 not_labelled, 1 identical, 1 empty, 1 tie); the first:" in " ".join(call.told.split())


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
    assert (
        call(shared.root, "human", "queue", "s", "--by", "chance") == 2
        and "is not one of 'uncertainty', 'disagreement', 'conflict'" in call.told
    )


def _pair_id(row: dict[str, Any]) -> str:
    import msgspec

    from cai.records import ResponsePair

    return msgspec.convert({k: v for k, v in row.items() if k != "said"}, ResponsePair).id


def policy_of_a_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, recipe: str = "") -> str:
    """The folder of a policy, which a scripted model stands for, in a run with a judge of its own."""
    run = workspace.run("s")
    judged = "model: { path: scripted }\nfeedback: { judge: { path: scripted, name: strict } }\n"
    (run.path / "recipe.yaml").write_text(judged + recipe)
    policy = run.model("policy")
    policy.mkdir(parents=True)
    (policy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "embedded"}))
    (policy / "adapter_model.safetensors").touch()
    monkeypatch.setattr("cai.models.opening.LazyEngine", lambda spec, loading: ScriptedEngine(name=spec.path))
    return str(policy)


def test_a_runs_own_judge_compares_unless_another_is_named(tmp_path: Path, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    asked = ("evaluate", policy_of_a_run(workspace, monkeypatch), "--against", "scripted", "--limit", "2")
    assert call.json(workspace.root, *asked)["judge"] == "strict"
    assert call.json(workspace.root, *asked, "--judge", "scripted#other")["judge"] == "other"


def test_a_runs_own_constitution_judges_unless_another_is_named(tmp_path: Path, call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    policy = policy_of_a_run(workspace, monkeypatch, "constitution: constitution/starter.yaml\n")

    def measured(*options: str) -> set[str]:
        results = call.json(tmp_path, "evaluate", policy, "--limit", "2", *options)["results"]
        return {name.removeprefix("adherence:") for r in results if (name := r["name"]).startswith("adherence:") and "_" not in name}

    assert "no-lists" in measured(), "the run's constitution and workspace, from any folder"
    file = workspace.root / "constitution" / "one.yaml"
    file.write_text(
        "id: one\nname: One\ndescription: One.\nprinciples: [{ id: few-words, statement: Be brief., check: { max_words: 9 } }]\n"
    )
    assert measured("--constitution", str(file)) == {"few-words"}


def test_a_seed_and_an_aggregate_on_the_command_line_replace_a_runs_and_a_recipes(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = workspace.run("s")
    (run.path / "recipe.yaml").write_text("seed: 7\nreward: { aggregate: min }\n")
    assert (settings(run=run).seed, settings(run=run, seed=0).seed, settings(recipe=run.path / "recipe.yaml", seed=3).seed) == (7, 0, 3)
    assert (settings(run=run).reward.aggregate, settings(run=run, aggregate="mean").reward.aggregate) == ("min", "mean")
