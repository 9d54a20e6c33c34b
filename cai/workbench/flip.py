"""Flip rate: how often a principle in context makes a model's response follow it, and how often the reverse.

Measured before anything is trained: context distillation can only teach what the model does when it is told. A response flips if it didn't
follow the principle without it and does with it.
"""

from dataclasses import dataclass

from cai.core.text.checks import can_be_added
from cai.data.prompts import load_all
from cai.errors import RecipeError
from cai.evaluate.adherence import Followed, followed, measurable, prompts_for, tell
from cai.generate.critique import respond
from cai.judge.judge import Judge
from cai.recipe import Placement
from cai.records import PROMPT_KINDS, Constitution, Prompt, Response
from cai.session import Session
from cai.stats import change

PLACEMENTS: tuple[Placement, ...] = ("turns", "user", "system")
LEARNABLE = 0.1
"""Minimum rise of the rate, told against untold, of a principle that is worth training on."""


@dataclass(frozen=True, slots=True)
class Flip:
    """One principle in one place of the context."""

    principle_id: str
    placement: Placement
    n: int
    """Number of prompts."""
    untold: float
    """Share of responses that follow the principle without it in context, in [0, 1]."""
    told: float
    """The same with it in context."""
    flipped: float
    """Share of prompts that weren't followed without it and are with it."""
    reversed: float
    """Share of prompts that were followed without it and aren't with it."""
    low: float
    """95 % interval of `told` − `untold`."""
    high: float

    @property
    def learnable(self) -> bool:
        """Whether context distillation has something to teach: the rate rises by at least `LEARNABLE`, and certainly rises."""
        return self.low > 0 and self.told - self.untold >= LEARNABLE


async def flip_rates(session: Session, constitution: Constitution, limit: int, *, judge: Judge | None = None) -> list[Flip]:
    """Measure the flip rates of a session's model on the recipe's training prompts.

    Args:
        limit: maximum number of prompts per principle, chosen by hash.
        judge: decides where a principle has no check; None leaves those principles out.
    """
    recipe = session.recipe
    principles = measurable(constitution, judge is not None)
    if not principles:
        raise RecipeError(f"constitution {constitution.id}: no principle has a check. Add `check:` to some, or name a judge with --judge")
    prompts = load_all(recipe.prompts.train, session.workspace.root, recipe.seed).prompts
    wanted = {p.id: prompts_for(p, prompts, limit, recipe.seed) for p in principles}
    asked = list({prompt.id: prompt for mine in wanted.values() for prompt in mine}.values())
    writer = session.writer(session.model)

    async def work(prompt: Prompt) -> Response:
        return await respond(prompt, writer, recipe.distill.sampling)

    responses = await session.each(asked, work, "answers untold")
    untold = await followed(session, principles, responses, judge)
    found = []
    for placement in PLACEMENTS:
        # in turns, a principle that concerns the whole answer stands in the user's turn too
        placed = [p for p in principles if placement != "turns" or any(can_be_added(p, kind) for kind in PROMPT_KINDS)]
        said = await tell(session, session.model, placed, responses, limit, placement, recipe.distill.sampling)
        for p in placed:
            verdicts = await followed(session, [p], said[p.id], judge)
            if flip := _flip(p.id, placement, untold, verdicts):
                found.append(flip)
    return found


def _flip(principle_id: str, placement: Placement, untold: Followed, told: Followed) -> Flip | None:
    ids = [i for i in told[principle_id] if i in untold[principle_id]]
    if not ids:
        return None
    before, after = [untold[principle_id][i] for i in ids], [told[principle_id][i] for i in ids]
    n, (_, low, high) = len(ids), change(before, after)
    pairs = list(zip(before, after, strict=True))
    flipped, back = (pairs.count(wanted) / n for wanted in ((False, True), (True, False)))
    return Flip(
        principle_id,
        placement,
        n,
        sum(before) / n,
        sum(after) / n,
        flipped,
        back,
        low,
        high,
    )
