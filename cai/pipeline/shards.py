"""One run's calls shared out among several clients: which prompts are whose.

A shard asks the model about its own prompts and keeps the calls in a store of its own. Put the stores together (`cai merge-calls`) and
run the recipe once more, unsharded: every call is a hit, so the outputs are those of one client, byte for byte.
"""

import re
from dataclasses import dataclass

from cai.errors import RecipeError
from cai.ids import split_fraction

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Shard:
    """The `number`-th of `count` parts, from 1. The parts share nothing, and together they are everything."""

    number: int
    count: int

    @property
    def name(self) -> str:
        """The shard's folder, below the run's."""
        return f"{self.number}-of-{self.count}"

    def owns(self, prompt_id: str) -> bool:
        """Whether a prompt, and whatever is made of it, is this shard's.

        >>> [Shard(n, 3).owns("p1") for n in (1, 2, 3)].count(True)
        1
        """
        return int(split_fraction(prompt_id, "shard") * self.count) == self.number - 1


def parse_shard(text: str) -> Shard:
    """Read `i/n`, as in `--shard 2/8`.

    Raises:
        RecipeError: it isn't of that form, or i isn't one of 1 to n.
    """
    match = _SHARD.fullmatch(text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise RecipeError(f"--shard {text}: expected i/n with i from 1 to n, for example --shard 2/8")
    return Shard(int(match[1]), int(match[2]))
