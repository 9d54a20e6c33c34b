"""Sessions over a scripted model whose requests are kept."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cai.core.workspace import Workspace
from cai.models.requests import Completion, Reply, Request
from cai.models.scripted import ScriptedEngine, default_script
from cai.recipe import CritiqueConfig, FeedbackConfig, ModelSpec, Recipe
from cai.records import PROMPT_KINDS, Message, Prompt, PromptKind
from cai.session import Session

T = TypeVar("T")


class ScriptedSession(Session):
    """A session whose models all answer by one script. With a workspace it shares that one's calls; without, it keeps its own in memory.

    `asked` has the requests that were not in the call store.
    """

    def __init__(
        self,
        script: Callable[[Request], Reply] = default_script,
        workspace: Workspace | None = None,
        recipe: Recipe | None = None,
        **feedback: Any,
    ) -> None:
        self.asked: list[Request] = []

        def logged(request: Request) -> Reply:
            self.asked.append(request)
            return script(request)

        async def opener(spec: ModelSpec) -> ScriptedEngine:
            return ScriptedEngine(logged, script.__name__)

        recipe = recipe or Recipe(name="test", critique=CritiqueConfig(kinds=PROMPT_KINDS), feedback=FeedbackConfig(**feedback))
        super().__init__(recipe=recipe, workspace=workspace, keep_calls=workspace is not None, opener=opener)

    def ask(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Open the session, run some work and close it."""

        async def opened() -> T:
            async with self:
                return await work(self)

        return asyncio.run(opened())


def prompts(n: int, kind: PromptKind = "helpful") -> list[Prompt]:
    return [Prompt(f"p{i}", kind, (Message("user", f"Question {i}?"),), "test") for i in range(n)]


IN_THE_USERS_TURN = {
    "Answer in one short sentence.": "Yes.",
    "Answer as a numbered list.": "1. Yes.",
    "Use the word river in your answer.": "A river.",
}


def reads_the_user_only(request: Request) -> Reply:
    """Follows three of the five instructions in the user's turn, and one of them, brevity, in the system turn too."""
    told = " ".join(m.content for m in request.messages if m.role == "user")
    if any(m.role == "system" and "one short sentence" in m.content for m in request.messages):
        return Completion("Yes.", False, 5, 5)
    answer = next((text for instruction, text in IN_THE_USERS_TURN.items() if instruction in told), "it depends. " * 20)
    return Completion(answer, False, 5, 5)
