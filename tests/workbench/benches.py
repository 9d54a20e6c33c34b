"""A workbench over a scripted model whose requests are kept."""

from collections.abc import Callable
from typing import Any

from cai.core.console import Reporter
from cai.models.base import Reply, Request, TextModel
from cai.models.scripted import ScriptedEngine, default_script
from cai.models.store import CallStore
from cai.recipe import FeedbackConfig, Recipe
from cai.records import Message, Prompt, PromptKind
from cai.workbench.sample import Bench
from tests.judge.judging import TEMPLATES


def bench_with(script: Callable[[Request], Reply] = default_script, store: CallStore | None = None, **feedback: Any) -> Bench:
    """A bench of its own, or another one over the same calls; its requests that weren't in the store are in `bench.model.engine.asked`."""
    asked: list[Request] = []

    def logged(request: Request) -> Reply:
        asked.append(request)
        return script(request)

    engine = ScriptedEngine(logged, script.__name__)
    engine.asked = asked  # type: ignore[attr-defined]
    model = TextModel(engine, CallStore(None) if store is None else store, "workbench")
    return Bench(Recipe(name="test", feedback=FeedbackConfig(**feedback)), model, model, TEMPLATES, Reporter())


def prompts(n: int, kind: PromptKind = "helpful") -> list[Prompt]:
    return [Prompt(f"p{i}", kind, (Message("user", f"Question {i}?"),), "test") for i in range(n)]
