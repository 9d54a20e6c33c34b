"""The commands about constitutions and prompts as people call them: what they print, their JSON, their exit codes."""

import json
import re
from pathlib import Path

import pytest

from cai.constitution.load import load_constitution
from cai.constitution.proposals import Proposal, Review, drafted, dump_review
from cai.core.workspace import Workspace
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, Completion, Reply, Request
from tests.cli.calling import CONSTITUTION, Called
from tests.workbench.scripted_models import POLITE, TERSE, five, labelled, people, replying
from tests.workspaces import make_workspace, rows, script


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
        (("--language", "fr"), "'fr' is not one of 'en', 'de'"),
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


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (("judge", "bench", "--pairs", "prompts/probe_pairs.jsonl", "--limit", "2", "--protocol", "pairwise", "--constitution"), "Antwort"),
        (("human", "agreement", "prompts/probe_pairs.jsonl", "--limit", "2", "--protocol", "pairwise", "--constitution"), "Antwort"),
        (("constitution", "validate", "--pairs", "prompts/probe_pairs.jsonl", "--limit", "2"), "Antwort"),
        (("constitution", "try", "--prompt", "Wie backe ich Brot?"), "Grundsatz: Antworte"),
        (("constitution", "flip", "--limit", "1"), "Du folgst diesen Grundsätzen"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_commands_without_a_recipe_ask_in_the_constitutions_language(
    shared: Workspace, call: Called, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], asked: str
) -> None:
    texts: list[str] = []

    def listening(request: Request) -> Reply:
        texts.append("\n".join(message.content for message in request.messages))
        return ChoiceLogprobs((-3.0, -0.1), 1) if isinstance(request, ChoicesRequest) else Completion("Das ist gut so.", False, 1, 1)

    script(monkeypatch, listening)
    file = shared.root / "constitution" / "starter-de.yaml"
    file.write_text(STARTER_DE.replace("Stelle. }", "Stelle., check: { max_words: 9 } }"))
    model = ("--judge" if command[0] in ("judge", "human") else "--model", "scripted")
    assert call(shared.root, *command, str(file), *model, "--json") == 0, call.err
    file.unlink()
    assert any(asked in text for text in texts)
    assert not any(english in text for text in texts for english in ("Principle:", "You follow", "Here are two responses"))


def test_a_run_says_that_its_templates_are_in_another_language_than_its_constitution(call: Called, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    (workspace.root / "constitution" / "mine.yaml").write_text(STARTER_DE)
    (workspace.root / "runs" / "mine.yaml").write_text(
        "model: { path: scripted }\nconstitution: constitution/mine.yaml\nprompts: { train: [{ path: prompts/helpful.jsonl, limit: 2 }] }\n"
    )
    run = ("run", "runs/mine.yaml", "--only", "respond")
    for command in (run, ("plan", "runs/mine.yaml")):
        assert call(workspace.root, *command) == 0
        assert "another language (de) than prompts/templates. Set templates: prompts/templates/de" in call.told
    assert call(workspace.root, *run, "--set", "templates=prompts/templates/de") == 0 and "another language" not in call.told


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
    assert (
        "scripted proposed nothing that holds up (not in the section" in " ".join(call.told.split()) and "another language" not in call.told
    )
    german = tmp_path / "werte.md"
    german.write_text("Der Assistent soll seine Quellen nennen. Er darf nicht raten, und er ist höflich.", encoding="utf-8")
    assert call(shared.root, "constitution", "import", str(german), "--model", "scripted") == 2
    assert "another language (de) than the templates" in " ".join(call.told.split())
    file = shared.root / "constitution" / "anfang.yaml"
    file.write_text(STARTER_DE.replace("starter-de", "anfang"), encoding="utf-8")
    before = file.read_bytes()
    assert call(shared.root, "constitution", "draft", str(file), "--model", "scripted") == 2 and file.read_bytes() == before
    assert "another language (de) than word_principle.txt" in " ".join(call.told.split())
    proposals = tuple(
        Proposal(i, f"values.md:{i}", s, drafted(f"p-{i}", s)) for i, s in enumerate(("Name your sources.", "Never guess a date."), 1)
    )
    Path(review).write_text(dump_review(Review("values.md", "values", "Values", "From values.md.", proposals)))
    assert call(shared.root, "constitution", "import", review, "-o", made) == 2 and "none of 2 proposals is accepted" in call.told
    assert call(shared.root, "constitution", "import", review, "--accept", "2", "-o", made) == 0 and "1 principles" in call.out
    assert call(shared.root, "constitution", "lint", made) == 0 and "clean" in call.out
    assert call(shared.root, "constitution", "import", review, "--model", "scripted") == 2 and "needs one document" in call.told
    assert call(shared.root, "constitution", "import", str(document), "--accept", "all") == 2 and "needs a review file" in call.told
