"""Response pairs: two samples of one policy to one prompt, or one answer under a principle and one against it (RLCD).

A pair that can't teach anything (both texts the same) is a counted failure. Who is better is the judge's matter, except for contrast
pairs, whose label comes from how they were made (Yang et al. 2023, arXiv 2307.12950).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cai.core.flow import together
from cai.errors import ReplyError
from cai.generate.critique import as_sampling, kept_text, principles_in_turn
from cai.ids import combine_hashes, derive_seed, split_fraction
from cai.models.base import TextModel
from cai.models.templates import Template, Templates, Value
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


async def sample_pair(
    task: PairTask, model: TextModel, templates: Templates, config: PairsConfig, run_seed: int, recipe_hash: str = ""
) -> ResponsePair:
    """Sample two responses to a prompt, each with its own seed.

    Raises:
        ReplyError: `identical_responses`, or one is empty.
    """
    seeds = [derive_seed(run_seed, task.prompt.id, "pairs", 2 * task.number + side) for side in (0, 1)]
    values: dict[str, Value] = {"conversation": task.prompt.messages}
    first, second = await together(_answer(templates.respond, values, model, config, seed) for seed in seeds)
    _check_distinct(first, second)
    provenance = Provenance(model.fingerprint, (), templates.respond.hash, seeds[0], recipe_hash)
    return ResponsePair(task.prompt, first, second, "sampled", provenance)


async def contrast_pair(
    task: PairTask,
    constitution: Constitution,
    model: TextModel,
    templates: Templates,
    config: PairsConfig,
    run_seed: int,
    recipe_hash: str = "",
) -> ResponsePair:
    """Make a pair that is labelled by construction: one answer asked for under a principle, one against it.

    The principle is the task's own by rendezvous hashing; the side of the better answer is a hash too, so it can't be learnt.

    Returns:
        A pair whose `p_a` is `config.contrast_p` where A was asked for under the principle, else one minus that.

    Raises:
        ReplyError: `identical_responses`, or one is empty.
        ConstitutionError: no principle applies to the prompt's kind.
    """
    prompt = task.prompt
    salt = derive_seed(run_seed, "contrast")
    principle = principles_in_turn(prompt, constitution, salt, task.number + 1)[task.number]
    values: dict[str, Value] = {"conversation": prompt.messages, "statement": principle.statement}
    seed = derive_seed(run_seed, prompt.id, "contrast", task.number)
    asked = (templates.contrast_under, templates.contrast_against)
    under, against = await together(_answer(template, values, model, config, seed) for template in asked)
    _check_distinct(under, against)
    template_hash = combine_hashes([templates.contrast_under.hash, templates.contrast_against.hash])
    provenance = Provenance(model.fingerprint, (principle.id,), template_hash, seed, recipe_hash)
    pair = ResponsePair(prompt, under, against, "contrast", provenance, config.contrast_p)
    return pair if split_fraction(task.id, f"contrast-side-{run_seed}") < 0.5 else pair.swapped()


async def _answer(template: Template, values: Mapping[str, Value], model: TextModel, config: PairsConfig, seed: int) -> str:
    asked = template.render(values)
    return kept_text(await model.complete(asked.messages, as_sampling(config.sampling), seed, asked.prefill), asked.prefill)


def _check_distinct(one: str, two: str) -> None:
    if one.split() == two.split():
        raise ReplyError("identical_responses", one[:200])
