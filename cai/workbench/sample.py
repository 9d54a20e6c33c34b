"""Sample data for trials of a constitution: prompts with one response and one pair of responses each.

The data does not depend on a constitution, so two constitutions are compared on the same texts. It is sampled from prompts, or taken from
a run, whose calls are already in the call store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cai.core.jsonl import read_existing, read_records
from cai.core.workspace import RunDirectory
from cai.errors import DataError
from cai.ids import split_fraction
from cai.recipe import PromptSource
from cai.records import Prompt, Response, ResponsePair
from cai.session import Session

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Calls:
    """Number of model calls that ran, and of calls that came from the call store."""

    made: int
    reused: int

    def __sub__(self, other: "Calls") -> "Calls":
        return Calls(self.made - other.made, self.reused - other.reused)


def calls_of(session: Session) -> Calls:
    """Return the calls of a session so far."""
    usage = session.usage
    return Calls(usage.made, usage.reused)


@dataclass(frozen=True)
class TrialData:
    """Responses and pairs on which two constitutions are compared."""

    responses: tuple[Response, ...]
    pairs: tuple[ResponsePair, ...]
    unaffected: int = 0
    """Number of other sampled prompts, which the edit can't affect and for which no text is needed."""


def load_sample(prompts: Path | None, session: Session, sample: int, rank: Callable[[Prompt], int] = lambda prompt: 0) -> list[Prompt]:
    """Return `sample` prompts of a file, or of the recipe's training prompts. A larger sample contains the smaller one.

    Args:
        rank: prompts of a lower rank are chosen first; within a rank, a hash chooses.
    """
    recipe = session.recipe
    sources = recipe.prompts.train if prompts is None else (PromptSource(path=str(prompts.resolve())),)
    return _sampled(list(session.load_prompts(sources)), lambda p: p, sample, rank)


async def sample_trial_data(prompts: Sequence[Prompt], session: Session) -> TrialData:
    """Sample one response to revise and one pair to judge for every prompt, as the stages `respond` and `pairs` do."""
    responses = await session.each(prompts, session.respond, "responses")
    pairs = await session.each(prompts, session.sample_pair, "pairs", lambda p: f"{p.id}#0")
    return TrialData(tuple(responses), tuple(pairs))


def trial_data_of_run(run: RunDirectory, sample: int, rank: Callable[[Prompt], int] = lambda prompt: 0) -> TrialData:
    """Return the responses and pairs of `sample` prompts of a run, chosen as `load_sample` does."""
    if not run.data("responses").is_file():
        raise DataError(f"{run.data('responses')}: no such file; the run has not answered its prompts yet. Run its stage respond first.")
    responses = _sampled(list(read_records(run.data("responses"), Response)), lambda r: r.prompt, sample, rank)
    wanted = {r.prompt.id for r in responses}
    pairs = read_existing(run.data("pairs"), ResponsePair)
    return TrialData(tuple(responses), tuple(p for p in pairs if p.prompt.id in wanted and p.p_a is None))


def _sampled(items: list[T], prompt_of: Callable[[T], Prompt], sample: int, rank: Callable[[Prompt], int]) -> list[T]:
    """Return `sample` items, chosen by their prompts' rank and then by hash, in their original order."""

    def order(i: int) -> tuple[int, float, int]:
        prompt = prompt_of(items[i])
        return rank(prompt), split_fraction(prompt.id, "workbench-sample"), i

    chosen = sorted(range(len(items)), key=order)[:sample]
    return [items[i] for i in sorted(chosen)]
