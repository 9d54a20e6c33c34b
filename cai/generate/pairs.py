"""Response pairs: two samples of one policy for one prompt, or one response under a principle and one against it (RLCD).

The judge labels sampled pairs. Contrast pairs are labelled by construction (Yang et al. 2023, arXiv 2307.12950). Pairs of identical texts
are counted as failures (`identical_responses`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cai.core.flow import together
from cai.errors import ReplyError
from cai.generate.critique import Writer, principles_in_turn
from cai.ids import combine_hashes, derive_seed, split_fraction
from cai.models.templates import Value
from cai.recipe import PairsConfig
from cai.records import Constitution, Prompt, Provenance, ResponsePair


@dataclass(frozen=True, slots=True)
class PairTask:
    """A pair to sample: the `number`-th of a prompt."""

    prompt: Prompt
    number: int

    @property
    def id(self) -> str:
        """Id of the pair in failure records."""
        return f"{self.prompt.id}#{self.number}"


def pair_tasks(prompts: Iterable[Prompt], per_prompt: int) -> Iterator[PairTask]:
    """Yield `per_prompt` tasks for each prompt. Raising `per_prompt` only adds tasks."""
    for prompt in prompts:
        for number in range(per_prompt):
            yield PairTask(prompt, number)


async def sample_pair(task: PairTask, writer: Writer, config: PairsConfig) -> ResponsePair:
    """Sample two responses to a prompt, each with its own seed."""
    seeds = [derive_seed(writer.run_seed, task.prompt.id, "pairs", 2 * task.number + side) for side in (0, 1)]
    template = writer.templates.respond
    asked = template.render({"conversation": task.prompt.messages})
    first, second = await together(writer.text(asked, config.sampling, seed) for seed in seeds)
    _check_distinct(first.text, second.text)
    provenance = Provenance(writer.model.fingerprint, (), template.hash, seeds[0], writer.recipe_hash)
    return ResponsePair(task.prompt, first.text, second.text, "sampled", provenance, None, first.truncated, second.truncated)


async def contrast_pair(task: PairTask, constitution: Constitution, writer: Writer, config: PairsConfig) -> ResponsePair:
    """Sample a pair labelled by construction: one response is requested under a principle, one against it.

    Rendezvous hashing chooses the principle. A hash also decides which response is A, so that the position carries no information.

    Returns:
        A pair whose `p_a` is `config.contrast_p` if A was requested under the principle, else 1 − `config.contrast_p`.
    """
    prompt, run_seed = task.prompt, writer.run_seed
    salt = derive_seed(run_seed, "contrast")
    principle = principles_in_turn(prompt, constitution, salt, task.number + 1)[task.number]
    values: dict[str, Value] = {"conversation": prompt.messages, "statement": principle.statement}
    seed = derive_seed(run_seed, prompt.id, "contrast", task.number)
    templates = (writer.templates.contrast_under, writer.templates.contrast_against)
    under, against = await together(writer.text(template.render(values), config.sampling, seed) for template in templates)
    _check_distinct(under.text, against.text)
    template_hash = combine_hashes([template.hash for template in templates])
    provenance = Provenance(writer.model.fingerprint, (principle.id,), template_hash, seed, writer.recipe_hash)
    cut = (under.truncated, against.truncated)
    pair = ResponsePair(prompt, under.text, against.text, "contrast", provenance, config.contrast_p, *cut)
    return pair if split_fraction(task.id, f"contrast-side-{run_seed}") < 0.5 else pair.swapped()


def _check_distinct(one: str, two: str) -> None:
    if one.split() == two.split():
        raise ReplyError("identical_responses", one[:200])
