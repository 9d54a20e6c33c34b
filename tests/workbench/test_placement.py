"""Where instructions go: measured for a model, chosen by `placement: auto`, and shown to the model in that turn."""

from pathlib import Path

import pytest

from cai.errors import ModelError, RecipeError, ReplyError
from cai.models.placement import MeasuredPlacement, keep, placement_of, spec_name
from cai.models.requests import Reply, Request
from cai.models.templates import load_named_templates, load_templates
from cai.recipe import ModelSpec
from cai.records import Message
from cai.workbench.placement import measure_placement
from tests.sessions import ScriptedSession, reads_the_user_only
from tests.workspaces import ROOT, make_workspace

TEMPLATES = ROOT / "prompts" / "templates"
PERSONA = (Message("system", "You are a pirate."), Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Why?"))


def measured_of(folder: Path, answer: object) -> MeasuredPlacement:
    session = ScriptedSession(answer, make_workspace(folder / "w"))  # type: ignore[arg-type]
    return session.ask(lambda opened: measure_placement(opened, session.recipe.model))


def test_instructions_are_counted_by_place(tmp_path: Path) -> None:
    found = measured_of(tmp_path, reads_the_user_only)
    assert (found.n, found.untold, found.system, found.user, found.best) == (30, 0, 6, 18, "user")


def test_a_model_that_says_nothing_is_not_measured(tmp_path: Path) -> None:
    def silent(request: Request) -> Reply:
        raise ReplyError("empty_reply", "no text came back")

    with pytest.raises(ModelError, match="answered none of 6 questions within 64 tokens"):
        measured_of(tmp_path, silent)


def test_auto_takes_what_was_measured_last(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", adapters=False)
    spec = ModelSpec(path="http://127.0.0.1:1/v1", name="m", placement="auto")
    for user, best in ((9, "user"), (4, "system")):
        keep(MeasuredPlacement(model=spec_name(spec), n=30, untold=0, system=4, user=user), workspace)
        assert placement_of(spec, workspace) == best
    with (workspace.root / "runs" / "placements.jsonl").open("a") as f:
        f.write('{"model": "emb')  # killed while it wrote
    assert placement_of(spec, workspace) == "system"
    with pytest.raises(RecipeError, match="cai models check embedded --placement"):
        placement_of(ModelSpec(placement="auto"), workspace)


def test_only_the_templates_own_instruction_moves() -> None:
    [template] = load_named_templates(["contrast_under"], TEMPLATES)
    moved = template.placed("user")
    system, first, *rest = moved.render({"conversation": PERSONA, "statement": "Be kind."}).messages
    assert system == PERSONA[0] and first.role == "user" and rest == list(PERSONA[2:])
    assert first.content.endswith("Be kind.\n\nHi") and moved.hash != template.hash
    whole = load_templates(TEMPLATES)
    assert whole.placed("system") == whole and whole.placed("user").hash != whole.hash
    assert whole.placed("user").told_system == whole.told_system, "distill.placement put it there, and flip compares the places"
    assert whole.placed("user").judge_pairwise.hash == whole.judge_pairwise.hash, "it has no system turn"
