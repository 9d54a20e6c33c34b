"""Encode requests as token ids: chat template, prefill and choices. Text in messages can't forge special tokens.

The model's chat template is used unchanged. SmolLM2's template adds its own system prompt ("You are a helpful AI assistant named
SmolLM…") to conversations without one; this is kept.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cai.errors import ReplyError
from cai.records import Message

_TAIL_CHARACTERS = 24


class Encoder:
    """Encodes conversations with one tokenizer.

    Args:
        tokenizer: a `transformers` tokenizer with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._markers = tuple(sorted(special, key=lambda t: (-len(t), t)))
        self._continuation = lru_cache(maxsize=4096)(self._encode_continuation)

    def prompt(self, messages: Sequence[Message], prefill: str = "") -> tuple[list[int], str]:
        """Return the token ids of a conversation with the assistant's header and prefill, and the last characters of its text.

        A special token such as `<|im_end|>` inside a message is encoded as plain characters: only the template may open or close a turn.

        Raises:
            ReplyError: the model's template refuses the conversation (some have no system role, some require alternating turns).
        """
        forged = [t for t in self._markers if t in prefill or any(t in m.content for m in messages)]
        stand_ins = self._stand_ins(forged, messages, prefill)

        def guarded(text: str) -> str:
            for marker, stand_in in stand_ins:
                text = text.replace(marker, stand_in)
            return text

        conversation = [{"role": m.role, "content": guarded(m.content)} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except Exception as e:
            raise ReplyError("template_refused", f"the model's chat template can't write this conversation: {e}") from e
        text += guarded(prefill)
        ids: list[int] = []
        for piece, marker in _split(text, stand_ins):
            ids += self._ids(piece) + (self._ids(marker, split_special_tokens=True) if marker else [])
        return ids, text[-_TAIL_CHARACTERS:]

    def continuation(self, tail: str, text: str) -> list[int]:
        """Return the ids of `text` after a prompt that ends with `tail`; if a token would span the two, the ids of `text` alone."""
        return list(self._continuation(tail, text))

    def _encode_continuation(self, tail: str, text: str) -> tuple[int, ...]:
        before, joint = self._ids(tail, split_special_tokens=True), self._ids(tail + text, split_special_tokens=True)
        if joint[: len(before)] == before and len(joint) > len(before):
            return tuple(joint[len(before) :])
        return tuple(self._ids(text, split_special_tokens=True))

    def _ids(self, text: str, **options: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]) if text else []

    def _stand_ins(self, forged: list[str], messages: Sequence[Message], prefill: str) -> list[tuple[str, str]]:
        """Return, for each marker, a private-use character that no message contains."""
        if not forged:
            return []
        used = set("".join(m.content for m in messages) + prefill)
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
        return [(marker, next(free)) for marker in forged]


def _split(text: str, stand_ins: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Split a text at its stand-ins, into pairs of a piece and the marker after it. The last marker is empty."""
    markers = {stand_in: marker for marker, stand_in in stand_ins}
    pieces: list[tuple[str, str]] = []
    start = 0
    for at, character in enumerate(text if markers else ""):
        if character in markers:
            pieces.append((text[start:at], markers[character]))
            start = at + 1
    return [*pieces, (text[start:], "")]
