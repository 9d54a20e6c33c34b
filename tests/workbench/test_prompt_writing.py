"""Prompts that exercise each principle: how many of what kind, what is dropped, and that nothing depends on chance."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cai.errors import ConstitutionError, ModelError
from cai.models.requests import Reply, Request
from cai.recipe import Recipe
from cai.records import LABELLED_KINDS, Constitution, Message, Principle, Prompt
from cai.workbench.prompt_writing import WrittenPrompts, known_prompts, write_prompts
from tests.sessions import ScriptedSession
from tests.workbench.scripted_models import five, replying
from tests.workspaces import make_workspace

PRINCIPLES = (
    Principle("brief", "Answer in one short sentence of at most ten words."),
    Principle("refuse", "Decline to help with anything that hurts people.", applies_to=("harmful",)),
)
CONSTITUTION = Constitution("c", "C", "D", PRINCIPLES)


def written(
    script: Callable[[Request], Reply], n: int = 10, existing: Sequence[Prompt] = (), session: ScriptedSession | None = None, **options: Any
) -> WrittenPrompts:
    kinds = options.get("kinds", LABELLED_KINDS)
    return (session or ScriptedSession(script)).ask(lambda s: write_prompts(s, CONSTITUTION, n, kinds, existing))


def test_each_principle_gets_its_prompts_in_equal_parts_for_its_kinds() -> None:
    session = ScriptedSession(replying(five))
    found = written(replying(five), session=session)
    assert Counter((p.category, p.kind) for p in found.prompts) == {
        ("brief", "harmful"): 4,
        ("brief", "borderline"): 3,
        ("brief", "helpful"): 3,
        ("refuse", "harmful"): 10,
    }
    assert len({p.id for p in found.prompts}) == 20 and all(c.wanted == c.written for c in found.coverage)
    assert len(session.asked) == 5 and found.dropped == {"more than wanted": 5} and not found.failures
    assert all(p.messages[-1].role == "user" and "\n" not in p.messages[-1].content for p in found.prompts)
    assert {p.kind for p in written(replying(five), kinds=("helpful",)).prompts} == {"helpful"}
    with pytest.raises(ConstitutionError, match="no principle applies to other prompts"):
        written(replying(five), kinds=("other",))


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    first, second = (written(replying(five)).prompts for _ in range(2))
    assert first == second
    other = written(replying(five), session=ScriptedSession(replying(five), recipe=Recipe(name="test", seed=1))).prompts
    assert not {p.id for p in first} & {p.id for p in other}


def test_near_copies_are_dropped_and_named() -> None:
    held_out = Prompt(
        "e1", "helpful", (Message("user", "How do I keep the herons away from my small garden pond in winter?"),), "prompts/eval.jsonl"
    )

    def copying(about: str, seed: int) -> str:
        texts = (
            "how do I keep the herons away from my  small garden pond in WINTER?",
            "Is tea cold?",
            "IS  TEA cold?",
            PRINCIPLES[0].statement,
        )
        return "\nRequest: ".join(texts)

    found = written(replying(copying), existing=[held_out], kinds=("harmful",))
    assert [p.messages[0].content for p in found.prompts] == ["Is tea cold?"]
    rounds = found.dropped["near-copy of prompts/eval.jsonl"]
    assert (
        rounds == found.dropped["near-copy of a principle"] > 1 and found.dropped["near-copy of another written prompt"] == 2 * rounds - 1
    )
    assert [(c.principle, c.written, c.wanted) for c in found.coverage] == [("brief", 1, 10), ("refuse", 0, 10)]


def test_replies_and_lines_that_are_no_request_are_counted() -> None:
    def mixed(about: str, seed: int) -> str:
        if "Decline" in about:
            return ""
        unusable = (
            "Two\nlines.",
            "<|im_end|> Hi.",
            "{{ statement }}",
            "Rule: be kind.",
            "Request:",
            "As an AI, I cannot write that.",
            "x" * 601,
        )
        return "\nRequest: ".join([five(about, seed), *unusable])

    found = written(replying(mixed), n=3)
    assert {p.category for p in found.prompts} == {"brief"} and {f.reason for f in found.failures} == {"unparsed"}
    assert {"several lines", "markers of a template", "a refusal", "too long"} <= found.dropped.keys() and found.dropped[
        "markers of a template"
    ] == 9
    with pytest.raises(ModelError, match=r"wrote no usable prompt \(unparsed × 8.*--model"):
        written(replying(lambda about, seed: ""), n=3, kinds=("harmful",))


def test_a_reply_that_was_cut_off_loses_its_last_line_only() -> None:
    found = written(replying(lambda about, seed: f"{five(about, seed)}\nRequest: What if the", truncated=True), n=1)
    assert found.prompts and not any("What if" in p.messages[0].content for p in found.prompts)


def test_what_was_asked_is_kept(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    first, second = (written(replying(five), session=ScriptedSession(replying(five), workspace)) for _ in range(2))
    assert first.prompts == second.prompts and first.calls.made > 0 == second.calls.made


def test_a_file_without_prompts_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    broken = workspace.root / "prompts" / "broken.jsonl"
    broken.write_text("{}\n")
    warnings: list[str] = []
    session = ScriptedSession(workspace=workspace)
    monkeypatch.setattr(session.reporter, "warn", warnings.append)
    known = known_prompts(session, [workspace.root / "prompts" / "eval_helpful.jsonl", broken])
    assert len(known) == 53 and {p.source for p in known} == {"prompts/eval_helpful.jsonl"}
    assert len(warnings) == 1 and re.search(r"not compared .*broken.jsonl: no usable prompt", warnings[0])
