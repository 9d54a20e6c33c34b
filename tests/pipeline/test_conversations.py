"""Conversations with a persona, several turns and a tool's result reach the model whole in every stage."""

import itertools
import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.core.console import Reporter
from cai.core.workspace import Workspace
from cai.models.local.encoding import Encoder
from cai.models.local.engine import LocalEngine
from cai.models.requests import CompleteRequest, Completion, Reply, Request
from cai.pipeline.driver import run_recipe
from cai.pipeline.stages import STAGES
from tests.pipeline.tiny_runs import tiny_workspace
from tests.workspaces import recipe_of, rows

LONG = 2048
SETTINGS = (
    f"model.max_length={LONG}",
    "prompts={train: [{path: prompts/talks.jsonl}], evaluate: [{path: prompts/eval_talks.jsonl}]}",
    "critique={min_p_revised: 0.0, kinds: [harmful, helpful], train_on: every, sampling: {max_tokens: 12}}",
    "distill={samples: 1, min_share: 0.0, drop_refusals: false, sampling: {max_tokens: 12}}",
    f"sft={{data: [critique, distill], max_length: {LONG}, batch_size: 4, lora: {{rank: 2}}}}",
    f"reward={{max_length: {LONG}, batch_size: 8, lora: {{rank: 2}}}}",
    f"policy={{max_length: {LONG}, batch_size: 4, lora: {{rank: 2}}}}",
)
GRPO = ("policy.method=grpo", "policy.online={num_generations: 2, max_tokens: 4}")
TRADES = ("baker", "clerk", "diver", "miner", "piper", "judge")


def talk(form: str, trade: str) -> dict[str, Any]:
    """Return a prompt whose turns all name the trade: asked at once, after two turns, or after a tool's result."""
    turns = {
        "once": [("user", f"Is a {trade} early, LAST-{trade}?")],
        "three": [("user", f"FIRST-{trade}"), ("assistant", f"So a {trade}."), ("user", f"And rye, LAST-{trade}?")],
        "tool": [("user", f"FIRST-{trade}"), ("assistant", None), ("tool", f"12C, LAST-{trade}")],
    }[form]
    call = {"tool_calls": [{"function": {"name": "weather", "arguments": f"CALL-{trade}"}}]}
    messages = [{"role": role, "content": text, **(call if text is None else {})} for role, text in turns]
    kind = "harmful" if trade in TRADES[::2] else "helpful"
    return {"id": f"{form}-{trade}", "kind": kind, "messages": [{"role": "system", "content": f"PERSONA-{trade}"}, *messages]}


def parts(prompt: dict[str, Any]) -> list[str]:
    """Return the texts by which a prompt's turns are found in what a model reads, the last turn's first."""
    form, trade = prompt["id"].split("-")
    return [f"{word}-{trade}" for word in ("LAST", "PERSONA", *{"once": [], "three": ["FIRST"], "tool": ["FIRST", "CALL"]}[form])]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What models read, in prompts and in training, decoded from its token ids."""
    texts: list[str] = []
    numbers = itertools.count()
    prompt, turn, submit = Encoder.prompt, Encoder.turn, LocalEngine.submit

    def prompted(self: Encoder, *args: Any, **options: Any) -> Any:
        ids, tail = prompt(self, *args, **options)
        texts.append(self.tokenizer.decode(ids))
        return ids, tail

    def turned(self: Encoder, *args: Any, **options: Any) -> Any:
        asked, said = turn(self, *args, **options)
        texts.append(self.tokenizer.decode(asked))
        return asked, said

    async def ended(self: LocalEngine, request: Request) -> Reply:  # a random model seldom ends an answer
        reply = await submit(self, request)
        return (
            replace(reply, text=f"Said {next(numbers)}.", truncated=False)
            if isinstance(request, CompleteRequest) and isinstance(reply, Completion)
            else reply
        )

    monkeypatch.setattr(LocalEngine, "submit", ended)
    monkeypatch.setattr(Encoder, "prompt", prompted)
    monkeypatch.setattr(Encoder, "turn", turned)
    return texts


def talking_workspace(folder: Path, tiny_model_dir: Path) -> tuple[Workspace, dict[str, list[dict[str, Any]]]]:
    """Return a workspace with such prompts, and a model whose context holds them."""
    model = shutil.copytree(tiny_model_dir, folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": LONG}))
    workspace = tiny_workspace(folder / "w", model)
    prompts = {
        "talks": [
            talk(form, trade) for form, trades in (("once", TRADES[:2]), ("three", TRADES[2:4]), ("tool", TRADES[4:])) for trade in trades
        ],
        "eval_talks": [talk(form, f"{form}r") for form in ("once", "three", "tool")],
    }
    for name, written in prompts.items():
        (workspace.root / "prompts" / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in written))
    return workspace, prompts


def test_persona_earlier_turns_and_tool_results_are_read_in_every_stage(tmp_path: Path, tiny_model_dir: Path, read: list[str]) -> None:
    workspace, prompts = talking_workspace(tmp_path, tiny_model_dir)
    recipe = recipe_of(workspace, *SETTINGS)
    by_stage: dict[str, list[str]] = defaultdict(list)
    for name, used in [(s.name, recipe) for s in STAGES if s.name not in ("blend", "report")] + [
        ("policy", recipe_of(workspace, *SETTINGS, *GRPO))
    ]:
        read.clear()
        run_recipe(used, workspace, STAGES, Reporter(), only=(name,))
        by_stage[name if used is recipe else "grpo"] += read
    kept = [p["prompt"]["id"] for name in ("preferences", "preferences_heldout") for p in rows(workspace.run("s").data(name))]
    assert {p["id"] for p in prompts["talks"]} == set(kept)
    by_stage["preferences"] = [json.dumps(p["prompt"]) for p in rows(workspace.run("s").data("preferences"))]
    for stage, texts in by_stage.items():
        missed = []
        for prompt in prompts["eval_talks" if stage == "evaluate" else "talks"]:
            last, *others = parts(prompt)
            found = [text for text in texts if last in text]
            missed += [] if found else [prompt["id"]]
            for text in found:
                assert all(part in text for part in others), (stage, prompt["id"], text)
        assert len(missed) < len(prompts["talks"]) if stage in ("preferences", "policy") else not missed, (stage, missed)
