"""Which prompts may not be on two sides of a split: those of one conversation, and near-copies.

Two prompts belong together if their first user turn is the same (a data set may hold several turns of one conversation), or if their texts
or their first turns are near-duplicates by the rule of `prompts.near_duplicates`. Groups are transitive. Whatever splits prompts or
labelled pairs (training and held-out sets, folds, slices, halves) splits the groups of `split_groups`.
"""

from collections.abc import Callable, Iterable

from cai.data.filters import normalise, prompt_key
from cai.data.repeats import NearRepeats
from cai.ids import content_hash
from cai.recipe import Prompts
from cai.records import Prompt

SIMILARITY = Prompts().near_duplicates
"""Similarity of near-duplicates where no recipe says it."""
MANY_COMPARISONS = 10_000_000
"""Number of comparisons that take about ten seconds."""
NEEDLESS = (
    "many prompts share some wording without being duplicates, so the search for near-duplicates takes long: its time grows with the "
    "square of their number. Set prompts.near_duplicates: null to skip the search and compare exact texts only."
)


def conversation_id(prompt: Prompt) -> str:
    """Return a hash of the first user turn's normalised text: the same for all prompts of a conversation."""
    return content_hash(normalise(first_turn(prompt)))


def first_turn(prompt: Prompt) -> str:
    """Return the first user turn; the whole text if there is none."""
    return next((m.content for m in prompt.messages if m.role == "user"), whole_text(prompt))


def whole_text(prompt: Prompt) -> str:
    """Return all turns of a prompt, one after the other."""
    return "\n".join(m.content for m in prompt.messages)


def compared_texts(prompt: Prompt) -> tuple[str, ...]:
    """Return the texts by which near-copies of a prompt are found."""
    return tuple(dict.fromkeys((first_turn(prompt), whole_text(prompt))))


def split_groups(
    prompts: Iterable[Prompt], similarity: float | None = SIMILARITY, warn: Callable[[str], None] = lambda text: None
) -> Callable[[Prompt], str]:
    """Return a function that says the id of a prompt's group. It raises `KeyError` for a prompt that was not among these.

    The id is the smallest `conversation_id` in the group, so adding prompts moves a group only if they join it to another.

    Args:
        prompts: all prompts that will be split.
        similarity: Jaccard similarity of five-word n-grams from which texts are near-duplicates; None: only equal first turns.
        warn: called once if the search takes long.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(one: str, other: str) -> None:
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    of_prompt: dict[str, str] = {}
    warned = False
    with NearRepeats(1.0 if similarity is None else similarity) as met:
        for prompt in prompts:
            key = prompt_key(prompt)
            if key in of_prompt:
                continue
            mine = of_prompt[key] = conversation_id(prompt)
            known = mine in parent
            parent.setdefault(mine, mine)
            if similarity is None:
                continue
            for text in compared_texts(prompt)[known:]:  # the first turn of a known conversation was compared before
                for other in met.twins(text):
                    join(mine, other)
                met.keep(text, mine)
            if met.comparisons > MANY_COMPARISONS and not warned:
                warned = True
                warn(NEEDLESS)
    group_of_key = {key: root(mine) for key, mine in of_prompt.items()}
    return lambda prompt: group_of_key[prompt_key(prompt)]
