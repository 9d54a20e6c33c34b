from dataclasses import replace
from pathlib import Path

import pytest

from cai.errors import RecipeError
from cai.models.requests import Completion, Reply, Request
from cai.records import Constitution, ResponseCheck
from cai.session import Session
from cai.workbench.flip import Flip, flip_rates
from tests.judge.judging import principle
from tests.sessions import ScriptedSession
from tests.workspaces import make_workspace

BRIEF = replace(principle("brief"), statement="Answer in two words.", check=(ResponseCheck(max_words=2),))
LOUD = replace(principle("loud"), statement="Answer in capitals.", check=(ResponseCheck(matches="^[A-Z ]+$"),))


def follows_the_user(request: Request) -> Reply:
    """Does what the user's turn says about length, and nothing else that it is told."""
    told = "Answer in two words." in request.messages[-1].content
    return Completion("Two words." if told else "More than two words.", False, 5, 5)


def measured(folder: Path, constitution: Constitution, limit: int = 12) -> dict[tuple[str, str], Flip]:
    session = ScriptedSession(follows_the_user, make_workspace(folder / "w"))

    async def work(opened: Session) -> list[Flip]:
        return await flip_rates(opened, constitution, limit)

    return {(f.principle_id, f.placement): f for f in session.ask(work)}


def test_what_a_principle_in_context_changes_by_placement(tmp_path: Path) -> None:
    found = measured(tmp_path, Constitution("c", "C", "", (BRIEF, LOUD, principle("unchecked"))))
    user, system = found["brief", "user"], found["brief", "system"]
    assert (user.untold, user.told, user.flipped, user.reversed, user.n) == (0.0, 1.0, 1.0, 0.0, 12) and user.learnable
    assert (system.told, system.flipped, system.learnable) == (0.0, 0.0, False)
    assert not found["loud", "user"].learnable
    assert {name for name, _ in found} == {"brief", "loud"}, "a principle without a check needs a judge"


def test_a_constitution_without_a_check_needs_a_judge(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no principle has a check"):
        measured(tmp_path, Constitution("c", "C", "", (principle("unchecked"),)))
