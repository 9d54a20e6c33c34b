"""One file adds a thing: the package that CONTRIBUTING.md shows is installed and used, and broken ones are refused by name."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from cai.core.plugins import (
    AUDIT_CHECK,
    EXPORT_FORMAT,
    KINDS,
    PAIR_FORMATS,
    POLICY_METHOD,
    PROMPT_FORMAT,
    PROTOCOL,
    REWARD_TERM,
    Registry,
    names_of,
    own_names,
)
from cai.data.export_formats import EXPORT_FORMATS
from cai.data.prompt_formats import PROMPT_FORMATS
from cai.errors import RecipeError
from cai.evaluate.audit.checks import CHECKS
from cai.judge.protocols import PROTOCOLS
from cai.labels.formats import FAMILIES, pair_formats
from cai.pipeline.methods import METHODS
from cai.recipe import FeedbackConfig, Recipe, own_problems_of
from cai.train.rl.terms import TERMS
from tests.workspaces import ROOT, make_workspace, start_cai

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
SHOWN = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE, re.DOTALL))
DECLARED = tomllib.loads("".join(re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)))["project"]["entry-points"]
ANY: dict[str, Registry[object]] = {r.kind.group: r for r in (PROTOCOLS, TERMS, METHODS, CHECKS, PROMPT_FORMATS, EXPORT_FORMATS, FAMILIES)}  # type: ignore[dict-item]


def install(site: Path, package: str, points: dict[str, dict[str, str]], modules: dict[str, str]) -> Path:
    """Put a package into a folder as an installer leaves it: its modules, and what it declares."""
    (site / package).mkdir(parents=True)
    for name, text in {"__init__.py": "", **modules}.items():
        (site / package / name).write_text(text)
    info = site / f"{package}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items()) for group, entries in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of CONTRIBUTING.md."""
    assert SHOWN.keys() == {"pointwise_breaks.py", "no_question.py", "copy_sft.py", "asks_back.py"}
    return install(tmp_path_factory.mktemp("site"), "my_kit", DECLARED, SHOWN)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("w") / "w").root


def cai_with(site: Path, folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    process = start_cai(folder, *args, environment={"PYTHONPATH": f"{ROOT}:{site}", "COLUMNS": "400"})
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def python_with(site: Path, code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"], capture_output=True, text=True, cwd=ROOT
    )


def test_a_plugin_protocol_is_benched_beside_the_own_ones(kit: Path, workspace: Path) -> None:
    bench = ("judge", "bench", "--pairs", "prompts/probe_pairs.jsonl", "--model", "scripted", "--limit", "8", "--json")
    done = cai_with(kit, workspace, *bench, "--protocol", "pointwise-breaks,pointwise")
    assert done.returncode == 0, done.stderr
    found = {p["name"]: p for p in json.loads(done.stdout)["protocols"]}
    assert found.keys() == {"pointwise", "pointwise-breaks"}
    assert all(p["n"] == 8 and p["failures"] == 0 for p in found.values())


def test_a_recipe_that_names_plugins_is_planned(kit: Path, workspace: Path) -> None:
    recipe = workspace / "runs" / "kit.yaml"
    recipe.write_text(
        (workspace / "runs" / "s.yaml").read_text().replace("feedback: {", "feedback: { protocol: pointwise-breaks, ")
        + "policy: { method: grpo, online: { rewards: [{ term: no-question }] } }\n"
    )
    planned = cai_with(kit, workspace, "plan", "runs/kit.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    calls = {s["name"]: s["calls"] for s in json.loads(planned.stdout)["stages"]}
    # 12 sampled pairs, 12 revision pairs and 8 bench pairs, one principle each, one question about each response
    assert calls["feedback"] == 2 * (12 + 12 + 8)
    without = cai_with(workspace, workspace, "plan", "runs/kit.yaml")
    assert without.returncode == 2
    assert "kit.yaml:8: feedback.protocol: 'pointwise-breaks' is none of check, likelihood, pairwise" in without.stderr
    assert "kit.yaml:9: policy.online.rewards[0].term: 'no-question' is none of" in without.stderr


SETTINGS = """
feedback: { protocol: pointwise-breaks, bench_limit: 8, settings: { sharpness: 0.5 } }
policy:
  method: grpo
  online:
    rewards:
      - { term: no-question, settings: { penalty: 2 } }
"""


def test_a_recipe_gives_plugins_settings_of_their_own(kit: Path, workspace: Path) -> None:
    recipe = workspace / "runs" / "settings.yaml"
    lines = [line for line in (workspace / "runs" / "s.yaml").read_text().splitlines() if not line.startswith("feedback:")]
    recipe.write_text("\n".join(lines) + SETTINGS)
    assert cai_with(kit, workspace, "plan", "runs/settings.yaml").returncode == 0
    wrong = cai_with(kit, workspace, "plan", "runs/settings.yaml", "--set", "feedback.settings.sharpnes=1")
    assert "--set feedback.settings.sharpnes=1: feedback.settings.sharpnes: unknown key 'sharpnes'" in wrong.stderr
    assert "Did you mean 'sharpness'?" in wrong.stderr
    recipe.write_text(recipe.read_text().replace("penalty: 2", "penalty: 0").replace("sharpness: 0.5", "sharpness: high"))
    wrong = cai_with(kit, workspace, "plan", "runs/settings.yaml")
    at = [number for number, line in enumerate(recipe.read_text().splitlines(), 1) if "settings:" in line]
    assert wrong.returncode == 2 and "2 problems" in wrong.stderr
    assert f"settings.yaml:{at[0]}: feedback.settings.sharpness: must be a number; found 'high'" in wrong.stderr
    assert f"settings.yaml:{at[1]}: policy.online.rewards[0].settings.penalty: must be a number above 0; found 0" in wrong.stderr


def test_settings_are_only_for_plugins_that_declare_some(workspace: Path) -> None:
    wrong = cai_with(workspace, workspace, "plan", "runs/s.yaml", "--set", "policy.settings={ a: 1 }")
    assert wrong.returncode == 2
    assert "policy.settings: the policy method 'dpo' has no settings of its own. Leave this key out" in wrong.stderr
    recipe = Recipe(name="made", feedback=FeedbackConfig(settings={"a": 1}))
    assert own_problems_of(recipe) == [
        "made: feedback.settings: the judging protocol 'pointwise-contrast' has no settings of its own. Leave this key out"
    ]
    assert recipe.feedback.by("pairwise") == FeedbackConfig(protocol="pairwise")


def test_a_recipe_without_such_settings_has_no_such_key() -> None:
    recipe = Recipe(name="plain")
    for config in (recipe.feedback, recipe.policy, *recipe.policy.online.rewards):
        assert "settings" not in msgspec.to_builtins(config)


def test_a_plugin_protocol_and_a_plugin_term_read_their_settings(kit: Path) -> None:
    code = """
from cai.recipe import FeedbackConfig, RewardTerm, own_settings
from cai.records import Message, Prompt
from cai.train.rl.rewards import RewardFunction
from my_kit.pointwise_breaks import BreaksSettings
for settings in ({}, {"sharpness": 0.5}):
    print(own_settings(FeedbackConfig(protocol="pointwise-breaks", settings=settings), BreaksSettings).sharpness)
prompt = Prompt("p", "helpful", (Message("user", "Hello"),), "test")
print(RewardFunction((RewardTerm(term="no-question", settings={"penalty": 3}),)).score([(prompt, "Why?")]).totals)
"""
    assert python_with(kit, code).stdout.split() == ["1.0", "0.5", "[-3.0]"]


def test_a_plugin_methods_settings_decide_whether_it_runs_again(workspace: Path, tmp_path: Path) -> None:
    changed = {
        '"copy-sft"': '"signed-copy"',
        "import shutil": "import shutil\n\nfrom cai.recipe import Section, own_settings",
        "METHOD = ": "class CopySettings(Section, frozen=True, kw_only=True):\n    by: str = 'nobody'\n\n\nMETHOD = ",
        "    return {}": "    (c.run.model('policy') / 'by').write_text(own_settings(c.recipe.policy, CopySettings).by)\n    return {}",
        "watch=False": "own_settings=CopySettings",
    }
    module = SHOWN["copy_sft.py"]
    for old, new in changed.items():
        module = module.replace(old, new)
    site = install(tmp_path, "copy_kit", {"cai.policy_methods": {"signed-copy": "copy_kit.copy_sft:METHOD"}}, {"copy_sft.py": module})
    adapter, signed = workspace / "runs/s/models/sft/adapter_config.json", workspace / "runs/s/models/policy/by"
    adapter.write_text("{}")
    again = []
    for more in ((), ("--set", "policy.settings.by=me"), ("--set", "policy.settings={by: me}")):
        done = cai_with(site, workspace, "run", "runs/s.yaml", "--only", "policy", "--set", "policy.method=signed-copy", *more)
        assert done.returncode == 0, done.stderr
        again.append(("done before, nothing changed" in done.stdout + done.stderr, signed.read_text()))
    assert again == [(False, "nobody"), (False, "me"), (True, "me")]
    adapter.unlink()


def test_a_plugin_method_trains_the_policy(kit: Path, workspace: Path) -> None:
    adapter = workspace / "runs" / "s" / "models" / "sft" / "adapter_config.json"
    adapter.write_text("{}")
    ran = cai_with(kit, workspace, "run", "runs/s.yaml", "--only", "policy", "--set", "policy.method=copy-sft")
    assert ran.returncode == 0, ran.stderr
    assert (workspace / "runs" / "s" / "models" / "policy" / "adapter_config.json").read_text() == "{}"
    again = cai_with(kit, workspace, "run", "runs/s.yaml", "--only", "policy", "--set", "policy.method=copy-sft")
    assert "done before, nothing changed" in again.stdout + again.stderr
    adapter.unlink()


def test_a_plugin_term_is_part_of_the_reward(kit: Path) -> None:
    code = """
from cai.recipe import RewardTerm
from cai.records import Message, Prompt
from cai.train.rl.rewards import RewardFunction
prompt = Prompt("p", "helpful", (Message("user", "Hello"),), "test")
terms = RewardTerm(term="no-question", weight=2.0), RewardTerm(term="length", words=2)
print(RewardFunction(terms).score([(prompt, "Why?"), (prompt, "Good day to you")]).totals)
"""
    done = python_with(kit, code)
    assert done.stdout == "[-2.0, -1.0]\n", done.stderr


def test_a_plugin_check_is_a_finding_like_any_other(kit: Path, workspace: Path) -> None:
    done = cai_with(kit, workspace, "audit", "s", "--limit", "12", "--json")
    assert done.returncode == 0, done.stderr
    findings = {f["check"]: f for f in json.loads(done.stdout)["findings"] if f["subject"] == "base"}
    mine = findings["asks_back"]
    tested = [f["p"] for f in findings.values() if f["p_adjusted"] is not None]
    assert mine["n"] >= 20 and mine["p_adjusted"] is not None and len(tested) > 1
    assert findings.keys() > {"asks_back", "preaches", "says_nothing"}
    smallest = min(findings.values(), key=lambda f: 2.0 if f["p_adjusted"] is None else f["p"])
    assert smallest["p_adjusted"] == pytest.approx(min(1.0, smallest["p"] * len(tested)))


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ({"shorter.py": "import nowhere_to_be_found"}, "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ({"shorter.py": "PROTOCOL = 3"}, "judging protocol 'shorter' is of type int; expected Protocol"),
        ({"shorter.py": "from cai.judge.protocols.likelihood import PROTOCOL"}, "judging protocol 'shorter' calls itself 'likelihood'"),
    ],
)
def test_a_broken_plugin_is_refused_by_its_packages_name(tmp_path: Path, modules: dict[str, str], told: str) -> None:
    site = install(tmp_path, "broken_kit", {"cai.protocols": {"shorter": "broken_kit.shorter:PROTOCOL"}}, modules)
    done = python_with(site, "from cai.judge.protocols import PROTOCOLS\nPROTOCOLS.get('pairwise')\nPROTOCOLS.get('shorter')")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cai.errors.RecipeError: ") and "the package broken_kit 1.5" in last and told in last


def test_a_broken_plugin_stops_a_run_that_names_it_before_it_starts(tmp_path: Path) -> None:
    site = install(tmp_path / "site", "broken_kit", {"cai.protocols": {"shorter": "broken_kit.gone:PROTOCOL"}}, {})
    root = make_workspace(tmp_path / "w").root
    named = cai_with(site, root, "plan", "runs/s.yaml", "--set", "feedback.protocol=shorter")
    assert (
        named.returncode == 2
        and "feedback.protocol: judging protocol 'shorter' of the package broken_kit 1.5 can't be loaded" in named.stderr
    )
    assert cai_with(site, root, "plan", "runs/s.yaml").returncode == 0


@pytest.mark.parametrize(("group", "name"), [("cai.protocols", "pairwise"), ("cai.policy_methods", "dpo"), ("cai.checks", "sycophancy")])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, group: str, name: str) -> None:
    site = install(tmp_path, "greedy_kit", {group: {name: "greedy_kit:THING"}}, {})
    room = {"cai.protocols": "judge.protocols", "cai.policy_methods": "pipeline.methods", "cai.checks": "evaluate.audit.checks"}[group]
    registry = {"cai.protocols": "PROTOCOLS", "cai.policy_methods": "METHODS", "cai.checks": "CHECKS"}[group]
    done = python_with(site, f"from cai.{room} import {registry} as r\nprint(r.names().count({name!r}))\nr.get({name!r})")
    assert done.stdout == "1\n"
    assert (
        f"{name!r} is declared by cai, the package greedy_kit 1.5. A name has one owner: uninstall the package greedy_kit 1.5"
        in done.stderr
    )


def test_two_packages_that_take_one_name_are_both_named(tmp_path: Path) -> None:
    for package in ("one_kit", "two_kit"):
        install(tmp_path, package, {"cai.protocols": {"shorter": f"{package}:PROTOCOL"}}, {})
    done = python_with(tmp_path, "from cai.judge.protocols import PROTOCOLS\nPROTOCOLS.get('shorter')")
    assert "'shorter' is declared by the package one_kit 1.5, the package two_kit 1.5" in done.stderr


@pytest.mark.parametrize("group", KINDS)
def test_every_file_declares_what_its_name_says(group: str) -> None:
    assert len(own_names(KINDS[group])) >= 4
    assert [getattr(d, "name", None) for d in ANY[group].all()] == list(names_of(KINDS[group]))


def test_what_cai_brings() -> None:
    assert own_names(PROTOCOL) == ("check", "likelihood", "pairwise", "pairwise-cot", "pointwise", "pointwise-contrast", "probe", "rubric")
    assert own_names(REWARD_TERM) == ("check", "constitution", "length", "model", "probe", "refusal")
    assert own_names(POLICY_METHOD) == ("best-of-n", "distill", "dpo", "grpo", "kto", "online-dpo", "ppo", "rloo")
    assert own_names(AUDIT_CHECK) == ("boilerplate", "confidence", "degeneration", "formatting", "refusing", "sycophancy", "verbosity")
    assert own_names(PROMPT_FORMAT) == ("auto", "cai", "csv", "hh", "hub", "jsonl", "text")
    assert own_names(EXPORT_FORMAT) == ("cai-conversation", "hh", "label-studio", "trl", "ultrafeedback")
    assert own_names(PAIR_FORMATS) == ("argilla", "chosen-rejected", "label-studio", "published", "records", "table")
    published = ("pku", "shp", "helpsteer3", "helpsteer2", "pandalm", "arena")
    more_general = ("argilla", "table", "hhh", "ultrafeedback", "rewardbench", "hh", "trl")
    assert tuple(pair_formats()) == ("label-studio", *published, "labels", "cai", *more_general), "tried in this order"


def test_a_package_adds_formats(tmp_path: Path) -> None:
    modules = {
        "turns.py": "from cai.data.prompt_format import PromptFormat, prompt_of\n"
        "FORMAT = PromptFormat('turns', lambda value, name, source: prompt_of(value['turns'][0], {}, name, source))",
        "rated.py": "from cai.labels.formats.chosen_rejected import read_trl\nfrom cai.labels.readings import PairFormat, PairFormats\n"
        "read = lambda row, *rest: read_trl(row | {'chosen': row['good'], 'rejected': row['poor']}, *rest)\n"
        "FORMATS = PairFormats('rated', (PairFormat('good-poor', lambda row: {'good', 'poor'} <= row.keys(), read),), '`good` and `poor`')",
    }
    points = {"cai.prompt_formats": {"turns": "kit.turns:FORMAT"}, "cai.pair_formats": {"rated": "kit.rated:FORMATS"}}
    site = install(tmp_path, "kit", points, modules)
    (tmp_path / "p.jsonl").write_text('{"turns": ["Why?"]}\n')
    (tmp_path / "l.jsonl").write_text('{"prompt": "q", "good": "yes", "poor": "no"}\n')
    done = python_with(
        site,
        f"""
from pathlib import Path
from cai.data.prompts import load_prompts
from cai.labels.load import load_pairs
from cai.recipe import PromptSource, recipe_schema
print(recipe_schema()["$defs"]["PromptSource"]["properties"]["format"]["enum"][-1])
print(load_prompts(PromptSource(path="p.jsonl", format="turns"), Path({str(tmp_path)!r}), 0).prompts[0].messages[0].content)
loaded = load_pairs(Path({str(tmp_path / "l.jsonl")!r}))
print(loaded.format, loaded.preferences[0].chosen)
""",
    )
    assert done.stdout.split() == ["turns", "Why?", "good-poor", "yes"], done.stderr


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    known = "best-of-n, distill, dpo, grpo, kto, online-dpo, ppo, rloo"
    with pytest.raises(RecipeError, match=rf"no policy method 'gpro'; known: {known}. Did you mean 'grpo'\?"):
        METHODS.get("gpro")


def test_names_are_known_without_importing_what_they_name() -> None:
    rooms = ("cai.judge", "cai.pipeline", "cai.train")
    done = python_with(
        ROOT,
        "import json\nfrom cai.recipe import recipe_schema\nrecipe_schema()\n"
        f"print(json.dumps([m for m in sys.modules if m.startswith({rooms!r})]))",
    )
    assert set(json.loads(done.stdout)) <= {*rooms, "cai.train.rl"}, done.stderr  # the packages around the folders, and nothing in them
