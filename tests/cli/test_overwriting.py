"""No command writes over a file that it read, or that it can't have written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai.cli import app
from cai.constitution.load import load_constitution
from cai.core.workspace import Workspace
from cai.errors import CaiError, ConstitutionError, DataError
from cai.evaluate.commands import calibrate_judge, fit_judge_probe
from cai.recipe import Recipe
from cai.session import Session
from tests.workspaces import ROOT, cai, make_workspace, run_data

pytestmark = pytest.mark.attack
GENERAL = ROOT / "constitution" / "general.yaml"


def refused(error: type[CaiError], *args: str) -> str:
    found = CliRunner().invoke(app, args).exception
    assert isinstance(found, error), found
    return str(found)


@pytest.mark.parametrize("name", ["README.md", "page.html"])
def test_guidelines_replace_only_guidelines(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("# My own\n")
    command = ("constitution", "guidelines", str(GENERAL), "-o", str(out))
    assert f"{name}: would be replaced" in refused(DataError, *command)
    assert out.read_text() == "# My own\n"
    out.unlink()
    for _ in range(2):
        assert CliRunner().invoke(app, command).exit_code == 0


def test_an_imported_constitution_replaces_nothing_because_people_edit_it(tmp_path: Path) -> None:
    source, out = tmp_path / "paper.json", tmp_path / "mine.yaml"
    source.write_text('{"a": {"prompt": "Identify harm.", "edit_request": "Remove it."}}')
    out.write_text("mine")
    assert "is there already" in refused(ConstitutionError, "constitution", "import", str(source), "-o", str(out))
    assert "is there already" in refused(ConstitutionError, "constitution", "import", str(source), "-o", str(source))
    assert out.read_text() == "mine"


def test_a_judges_files_replace_only_their_own_before_anything_is_asked(tmp_path: Path) -> None:
    pairs = [ROOT / "prompts" / "probe_pairs.jsonl"]
    session = Session(recipe=Recipe(name="s"), workspace=Workspace(ROOT))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"a model's own weights")
    with pytest.raises(DataError, match=r"model\.safetensors: would be replaced"):
        fit_judge_probe(session, pairs, tmp_path / "model.json", format="auto", limit=None)
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(DataError, match=r"config\.json: would be replaced"):
        fit_judge_probe(session, pairs, tmp_path / "config.json", format="auto", limit=None)
    with pytest.raises(DataError, match=r"config\.json: would be replaced"):
        constitution = load_constitution(GENERAL)
        calibrate_judge(session, pairs, constitution, tmp_path / "config.json", use_length=False, format="auto", limit=None)
    assert weights.read_bytes() == b"a model's own weights" and "hidden_size" in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    "command",
    [
        ("prompts", "generate", str(GENERAL), "--model", "scripted"),
        ("constitution", "learn", "--model", "scripted", "--pairs", str(ROOT / "prompts" / "probe_pairs.jsonl")),
    ],
)
def test_a_draft_replaces_nothing_because_people_edit_it(tmp_path: Path, command: tuple[str, ...]) -> None:
    for name in ("notes.md", "mine.jsonl", "recipe.yaml"):
        out = tmp_path / name
        out.write_text('{"id": "1", "kind": "helpful", "messages": [{"role": "user", "content": "Mine."}]}\n')
        assert name in refused(DataError, *command, "-o", str(out)) and "Mine." in out.read_text()


@pytest.mark.parametrize(
    "command",
    [
        ("prompts", "generate", str(GENERAL), "--model", "scripted", "-o"),
        ("blend", "sft", "policy", "--share", "0.5", "-o"),
        ("constitution", "lint"),
    ],
)
def test_a_name_that_is_too_long_for_a_file_is_a_users_error(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = cai(tmp_path, *command, "a" * 300)
    assert done.returncode == 2 and "name too long" in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and "a" * 200 not in done.stderr


def test_a_run_never_replaces_prompts_that_it_reads(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    prompts = workspace.run("s").data("prompts")
    prompts.parent.mkdir(parents=True)
    prompts.write_bytes((workspace.root / "prompts" / "harmful.jsonl").read_bytes())
    (prompts.parent / "mine.jsonl").write_bytes(prompts.read_bytes())
    before = prompts.read_bytes()
    for pattern in ("runs/s/data/prompts.jsonl", "runs/s/data/*.jsonl"):
        with pytest.raises(DataError, match=r"runs/s/data/prompts\.jsonl: is an input file"):
            run_data(workspace, f"prompts.train=[{{path: {pattern}}}]", only=["respond"])
        assert prompts.read_bytes() == before
    prompts.unlink()
    run_data(workspace, "prompts.train=[{path: runs/s/data/mine.jsonl, limit: 3}]", only=["respond"])
    assert prompts.exists()
