"""Limits of a completion that reasons before it answers: the reasoning has its own, and the answer's counts from the reasoning's end."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.core.text.reasoning import split_reasoning

_TAG_BEGINS = re.compile(r"\s*(?:[<\[◁][^\s>\]▷]{0,24})?")
"""A text that may be the beginning of a tag, which can be several tokens."""


@dataclass(frozen=True)
class ThinkingBudget:
    """Says how many tokens a completion may have, given those that it has.

    It is asked only where a completion reaches what it was last allowed, so that texts are decoded a few times and not at every token.
    """

    text_of: Callable[[Sequence[int]], str]
    """Decodes tokens, with the tag that the prompt has opened before them."""
    max_tokens: int
    """Of the answer, from its first token that isn't white space."""
    thinking_tokens: int
    """Of the reasoning, with its tags and the white space after it. A reasoning that is longer is cut, and has no answer."""

    @property
    def first(self) -> int:
        """Number of tokens after which to ask for the first time."""
        return min(self.max_tokens, self.thinking_tokens)

    def __call__(self, ids: Sequence[int]) -> int:
        """Return the most tokens that a completion which begins with `ids` may have. It has reached its limit if that isn't more."""
        text = self.text_of(ids)
        answer = split_reasoning(text).answer
        if answer == text and not _TAG_BEGINS.fullmatch(text):  # it doesn't reason
            return self.max_tokens
        if answer == text or not answer.strip():
            return min(self.thinking_tokens, len(ids) + self.max_tokens)  # an answer that begins next is not over its limit there
        return bisect_left(range(len(ids)), True, key=lambda i: self._answers(ids[: i + 1])) + self.max_tokens

    def _answers(self, ids: Sequence[int]) -> bool:
        """Whether an answer has begun after a reasoning."""
        text = self.text_of(ids)
        answer = split_reasoning(text).answer
        return answer != text and bool(answer.strip())


def thinking_budget(text_of: Callable[[Sequence[int]], str], max_tokens: int, thinking_tokens: int) -> ThinkingBudget | None:
    """Return the limits of a completion whose reasoning has its own; None without `thinking_tokens`. Arguments as in `ThinkingBudget`."""
    return ThinkingBudget(text_of, max_tokens, thinking_tokens) if thinking_tokens else None
