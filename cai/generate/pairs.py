"""Response pairs: two samples of one policy to one prompt, or one answer under a principle and one against it (RLCD).

A pair whose texts are the same can't teach anything and is a counted failure. The judge says which response is better, except for contrast
pairs, whose label comes from how they were made (Yang et al. 2023, arXiv 2307.12950).
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
    """The `number`-th pair of a prompt, yet to be made."""

    prompt: Prompt
    number: int

    @property
    def id(self) -> str:
        """Names the pair in a failure."""
        return f"{self.prompt.id}#{self.number}"


def pair_tasks(prompts: Iterable[Prompt], per_prompt: int) -> Iterator[PairTask]:
    """Yield `per_prompt` tasks for each prompt. A higher number only adds tasks: those of a lower one stay as they are."""
    for prompt in prompts:
        for number in range(per_prompt):
            yield PairTask(prompt, number)


async def sample_pair(task: PairTask, writer: Writer, config: PairsConfig) -> ResponsePair:
    """Sample two responses to a prompt, each with its own seed.

    Raises:
        ReplyError: `identical_responses`, or one is empty.
    """
    seeds = [derive_seed(writer.run_seed, task.prompt.id, "pairs", 2 * task.number + side) for side in (0, 1)]
    template = writer.templates.respond
    asked = template.render({"conversation": task.prompt.messages})
    first, second = await together(writer.text(asked, config.sampling, seed) for seed in seeds)
    _check_distinct(first, second)
    provenance = Provenance(writer.model.fingerprint, (), template.hash, seeds[0], writer.recipe_hash)
    return ResponsePair(task.prompt, first, second, "sampled", provenance)


async def contrast_pair(task: PairTask, constitution: Constitution, writer: Writer, config: PairsConfig) -> ResponsePair:
    """Make a pair that is labelled by construction: one answer asked for under a principle, one against it.

    The principle is the task's own by rendezvous hashing; the side of the better answer is a hash too, so it can't be learnt.

    Returns:
        A pair whose `p_a` is `config.contrast_p` where A was asked for under the principle, else one minus that.

    Raises:
        ReplyError: `identical_responses`, or one is empty.
        ConstitutionError: no principle applies to the prompt's kind.
    """
    prompt, run_seed = task.prompt, writer.run_seed
    salt = derive_seed(run_seed, "contrast")
    principle = principles_in_turn(prompt, constitution, salt, task.number + 1)[task.number]
    values: dict[str, Value] = {"conversation": prompt.messages, "statement": principle.statement}
    seed = derive_seed(run_seed, prompt.id, "contrast", task.number)
    templates = (writer.templates.contrast_under, writer.templates.contrast_against)
    under, against = await together(writer.text(template.render(values), config.sampling, seed) for template in templates)
    _check_distinct(under, against)
    template_hash = combine_hashes([template.hash for template in templates])
    provenance = Provenance(writer.model.fingerprint, (principle.id,), template_hash, seed, writer.recipe_hash)
    pair = ResponsePair(prompt, under, against, "contrast", provenance, config.contrast_p)
    return pair if split_fraction(task.id, f"contrast-side-{run_seed}") < 0.5 else pair.swapped()


def _check_distinct(one: str, two: str) -> None:
    if one.split() == two.split():
        raise ReplyError("identical_responses", one[:200])
