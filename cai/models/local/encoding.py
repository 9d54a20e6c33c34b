"""Encode conversations as token ids: one encoder for sampling, scoring and every training.

The model's chat template is used unchanged. SmolLM2's template adds its own system prompt ("You are a helpful AI assistant named
SmolLM…") to conversations without one; this is kept. A template without a system role gets the system turn in the next user turn, one
that wants users and assistants to alternate gets consecutive turns of one role as one, and one that reads texts only as lists of parts
gets them so.

Only the template may open or close a turn: a marker such as `<|im_end|>` in a text is encoded as plain characters. A turn ends with one
token, which is read from the template: it isn't always `eos_token` (Gemma: `<end_of_turn>`, Phi: `<|end|>`, Llama 3: `<|eot_id|>`).
"""

import contextlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from cai.core.text.reasoning import closing_tag, opens_reasoning, split_reasoning, within
from cai.errors import ModelError, ReplyError
from cai.models.local.bounded import TemplateLimitError, bounded_template, check_length
from cai.models.turns import alternating, without_system
from cai.records import Message, Role

_TAIL_CHARACTERS = 24
_FIRST_PRIVATE, _LAST_PRIVATE = 0xE000, 0xF8FF
_MARKER_STARTS = tuple("<[|◁#")
_PROBE = (Message("user", "Hi"),)
_ANSWER = "\uf8ff"
"""Stands for an answer whose place in the template is looked up."""


class _TemplateRefusedError(Exception):
    """The chat template refuses a conversation."""


class Encoder:
    """Encodes conversations with one tokenizer of `transformers`, which has to have a chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        written = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.special or _is_marker(t.content, template)}
        self._marker_ids = frozenset(written)
        self._markers = tuple(sorted({t.content for t in written.values()}, key=lambda t: (-len(t), t)))
        self._continuation = lru_cache(maxsize=4096)(self._encode_continuation)
        try:
            self._refuses(_PROBE)  # it may, and take others
        except ReplyError as e:
            raise ModelError(f"{e.detail}.\nFix: write another one into its chat_template.jinja") from e

    @cached_property
    def end_id(self) -> int:
        """The token that ends a turn: the first marker that the template writes after an answer, else the tokenizer's end token."""
        marker = next((token for token in self._ids(self._around_answer[1]) if token in self._marker_ids), None)
        return int(self.tokenizer.eos_token_id if marker is None else marker)

    def prompt(self, messages: Sequence[Message], prefill: str = "", *, answered: bool = False) -> tuple[list[int], str]:
        """Return the token ids of a conversation with the assistant's header and prefill, and the last characters of its text.

        Args:
            prefill: the start of the answer. Where the template lets the model think first, the reasoning is closed before it.
            answered: whether the answer itself comes next, also without a prefill.
        """
        stand_ins = self._stand_ins(messages, prefill)
        asked = self._asked(messages, stand_ins)
        opening = self._opening if prefill or (answered and self._opening.strip()) else ""
        thought = split_reasoning(prefill).reasoning
        if thought and "<think>" in str(self.tokenizer.chat_template):  # what the model thought comes before its answer
            opening = ""
            prefill = prefill.removeprefix("<think>\n") if opens_reasoning(asked) else prefill
        elif thought:
            prefill = split_reasoning(prefill).answer
        text = asked + opening + _guarded(prefill, stand_ins)
        return self._guarded_ids(text, stand_ins), text[-_TAIL_CHARACTERS:]

    def turn(self, messages: Sequence[Message], answer: str, *, ended: bool = True, reasoning: str = "") -> tuple[list[int], list[int]]:
        """Return the token ids of a conversation, and of an answer with the token that ends its turn. Nothing follows that token.

        Scoring and every training use these ids.

        Args:
            ended: False for an answer that was cut: the token that ends the turn is then left out.
            reasoning: what was thought before the answer. Empty: nothing, or the closed reasoning that the template writes.
        """
        stand_ins = self._stand_ins(messages, answer, reasoning)
        asked = self._asked(messages, stand_ins)
        ids = self._thought_ids(asked, reasoning, answer, stand_ins) if reasoning else self._answer_ids(asked, answer, stand_ins)
        return self._guarded_ids(asked, stand_ins), [*ids, self.end_id] if ended else ids

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer as `turn` does, without the token that ends the turn."""
        return self._answer_ids(self._rendered(_PROBE), answer, self._stand_ins((), answer))

    def _answer_ids(self, asked: str, answer: str, stand_ins: list[tuple[str, str]]) -> list[int]:
        space, opening = (self._opening, "") if not self._opening.strip() else ("", self._opening)
        (first, marker), *others = _split(space + _guarded(answer, stand_ins), stand_ins)
        ids = self._ids(opening)
        ids += self._encode_continuation((asked + opening)[-_TAIL_CHARACTERS:], first) if first else ()
        ids += self._plain_ids(marker)
        for piece, marker in others:
            ids += self._plain_ids(piece) + self._plain_ids(marker)
        return ids

    def _thought_ids(self, asked: str, reasoning: str, answer: str, stand_ins: list[tuple[str, str]]) -> list[int]:
        """Return the token ids of a reasoning, by the tag that the header opens or `<think>`, and of the answer after it."""
        opened = opens_reasoning(asked)
        tag = opened.strip() or "<think>"
        ids = [] if opened else self._ids(f"{tag}\n")
        for piece, marker in _split(f"{_guarded(reasoning, stand_ins)}\n", stand_ins):
            ids += self._plain_ids(piece) + self._plain_ids(marker)
        ids += self._ids(f"{closing_tag(tag)}\n\n")
        for piece, marker in _split(_guarded(answer, stand_ins), stand_ins):
            ids += self._plain_ids(piece) + self._plain_ids(marker)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of sampled tokens, without special tokens except those that set a reasoning apart from the answer."""
        whole = str(self.tokenizer.decode(ids))
        said = split_reasoning(whole)
        plain = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        bare = split_reasoning(plain)
        if said.answer == whole or bare == said or (said.reasoning and bare.reasoning == said.reasoning):
            return plain
        answer = said.answer
        for marker in self._markers:
            answer = answer.replace(marker, "")
        return f"<think>{said.reasoning}" + (f"</think>{answer}" if answer else "")

    def sampled(self, ids: Sequence[int]) -> str:
        """Return the text of sampled tokens as `decode` does, after the tag with which the assistant's header opens a reasoning."""
        return within(self.opened, self.decode(ids))

    def answer(self, ids: Sequence[int]) -> str:
        """Return the answer in sampled tokens, without special tokens and reasoning; empty if the reasoning doesn't end."""
        return split_reasoning(self.sampled(ids)).answer

    def only_reasons(self, ids: Sequence[int]) -> bool:
        """Whether sampled tokens hold a reasoning, and no answer after it."""
        text = self.sampled(ids)
        return bool(text.strip()) and not split_reasoning(text).answer.strip()

    def opens_reasoning(self, messages: Sequence[Message]) -> str:
        """Return the tag with which the assistant's header opens a reasoning; empty for most models."""
        return opens_reasoning(self._asked(messages, []))

    def continuation(self, tail: str, text: str) -> list[int]:
        """Return the ids of `text` after a prompt that ends with `tail`; if a token would span the two, the ids of `text` alone."""
        return list(self._continuation(tail, text))

    def _encode_continuation(self, tail: str, text: str) -> tuple[int, ...]:
        before, joint = self._plain_ids(tail), self._plain_ids(tail + text)
        if joint[: len(before)] == before and len(joint) > len(before):
            return tuple(joint[len(before) :])
        return tuple(self._plain_ids(text))

    def _asked(self, messages: Sequence[Message], stand_ins: list[tuple[str, str]]) -> str:
        """Return a conversation's text up to where the model goes on."""
        return self._rendered([Message(m.role, _guarded(m.content, stand_ins)) for m in messages])

    @cached_property
    def opened(self) -> str:
        """The tag with which the assistant's header opens a reasoning; empty for most models."""
        return opens_reasoning(self._rendered(_PROBE))

    @cached_property
    def _opening(self) -> str:
        """What the template writes between the assistant's header and an answer: a closed reasoning, a space, mostly nothing.

        Some headers open a reasoning, and finished turns have none (DeepSeek-R1): it is closed as the others close it.
        """
        try:
            asked = self._rendered(_PROBE)
        except ReplyError:
            return ""
        before = self._around_answer[0]
        if before.startswith(asked):
            return before[len(asked) :]
        opened = opens_reasoning(asked).strip()
        return f"\n{closing_tag(opened)}\n\n" if opened else ""

    @cached_property
    def _around_answer(self) -> tuple[str, str]:
        """What the template writes before an answer to a conversation, and what after it."""
        try:
            whole = self._rendered([*_PROBE, Message("assistant", _ANSWER)], open_turn=False)
        except ReplyError:
            return "", ""
        before, found, after = whole.rpartition(_ANSWER)
        return (before, after) if found else ("", "")

    def left_out(self, roles: Sequence[Role]) -> Role | None:
        """Return the role of a turn that the template leaves out of a conversation of such turns; None if it writes all.

        Raises:
            ReplyError: it refuses the conversation.
        """
        turns = [Message(role, f"{_ANSWER}{number}{_ANSWER}") for number, role in enumerate(roles)]
        text = self._rendered(turns)
        return next((m.role for m in turns if m.content not in text), None)

    def limits(self) -> list[str]:
        """Say what the model's chat template can't take, or does before an answer, in sentences for people.

        Raises:
            ReplyError: it leaves out what the user says.
        """
        asked, found, known = self._rendered(_PROBE), [], [Message("user", _ANSWER)]
        if not self._writes(known):
            raise ReplyError("template_refused", "the model's chat template leaves out what the user says")
        if not self._takes_system:
            found.append("its chat template takes no system turn: instructions go into the next user turn")
        if self._refuses([*_PROBE, *_PROBE]):
            found.append("its chat template wants users and assistants to alternate: consecutive turns of one role are joined")
        if self._refuses([Message("assistant", "Hello."), *_PROBE]):
            found.append("its chat template refuses conversations that begin with the assistant: these are counted failures")
        answered = [*_PROBE, Message("assistant", _ANSWER), *_PROBE]
        if self._refuses(answered):
            found.append("its chat template refuses conversations with an assistant turn: these are counted failures")
        elif not self._writes(answered):
            found.append(
                "its chat template leaves out assistant turns: the model never sees earlier answers, nor one that it is to criticise"
            )
        if lacking := self._lacking_header:
            what = "no header" if lacking.strip() else "an unfinished header"
            found.append(
                f"its chat template writes {what} before the answer: {lacking!r} is missing in prompts, and is trained as part of answers"
            )
        if opens_reasoning(asked):
            found.append("its chat template lets it think before every answer: give it sampling.thinking_tokens")
        return found

    def _writes(self, messages: Sequence[Message]) -> bool:
        """Whether the template takes a conversation as it is and writes the known text in it."""
        return not self._refuses(messages) and _ANSWER in self._render(messages, True)

    @cached_property
    def _takes_system(self) -> bool:
        return self._writes([Message("system", _ANSWER), *_PROBE])

    @property
    def _lacking_header(self) -> str:
        """What a template that doesn't know `add_generation_prompt` writes of the header before an answer only; a space is none of it."""
        if self._rendered(_PROBE) != self._rendered(_PROBE, open_turn=False):
            return ""
        lacking = split_reasoning(self._opening).answer
        return lacking if lacking.strip(" ") else ""

    def _refuses(self, messages: Sequence[Message]) -> bool:
        try:
            self._render(messages, True)
        except _TemplateRefusedError:
            return True
        return False

    def _rendered(self, messages: Sequence[Message], *, open_turn: bool = True) -> str:
        """Return the template's text. A system turn that it refuses or leaves out goes into the next user turn, and turns are joined."""
        refusal: _TemplateRefusedError | None = None
        folded = without_system(messages)
        for turns in (folded if folded and not self._takes_system else messages, folded, alternating(folded or messages)):
            if turns is None:
                continue
            try:
                text = self._render(turns, open_turn)
            except _TemplateRefusedError as e:  # raised below, where nothing helps
                refusal = refusal or e
                continue
            if all(m.content.strip() in text for m in turns if m.role == "system"):
                return text
        why = refusal or "it leaves out the system turn"
        raise ReplyError("template_refused", f"the model's chat template can't write this conversation: {why}") from refusal

    def _render(self, messages: Sequence[Message], open_turn: bool) -> str:
        return self._apply([(m.role, m.content) for m in messages], open_turn, self._in_parts)

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template reads texts as lists of parts only: of a plain text it writes nothing."""
        for in_parts in (False, True):
            with contextlib.suppress(_TemplateRefusedError):
                if _ANSWER in self._apply([("user", _ANSWER)], True, in_parts):
                    return in_parts
        return False

    def _apply(self, turns: Sequence[tuple[str, str]], open_turn: bool, in_parts: bool) -> str:
        """Return the template's text.

        Raises:
            _TemplateRefusedError: the template raises an error about this conversation.
            ReplyError: it computes without end.
        """
        chat = [{"role": r, "content": [{"type": "text", "text": text}] if in_parts else text} for r, text in turns]
        try:
            with bounded_template():
                text = str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=open_turn, tokenize=False))
            return check_length(text, sum(len(text) for _, text in turns))
        except TemplateLimitError as e:
            raise ReplyError("template_refused", f"the model's chat template computes without end: {e}") from None
        except Exception as e:  # templates and Jinja raise whatever they like
            raise _TemplateRefusedError(e) from e

    def _guarded_ids(self, text: str, stand_ins: list[tuple[str, str]]) -> list[int]:
        ids: list[int] = []
        for piece, marker in _split(text, stand_ins):
            ids += self._ids(piece) + (self._plain_ids(marker) if marker else [])
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """Return the ids of a text as characters: none of them is a marker's."""
        ids = self._ids(text, split_special_tokens=True)
        if self._marker_ids.isdisjoint(ids) or (marker := next((m for m in self._markers if m in text), None)) is None:
            return ids
        before, _, after = text.partition(marker)  # tokenizers split only those markers that are declared special
        return [*self._plain_ids(before + marker[0]), *self._plain_ids(marker[1:] + after)]

    def _ids(self, text: str, **options: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]) if text else []

    def _stand_ins(self, messages: Sequence[Message], *answer: str) -> list[tuple[str, str]]:
        """Return, for each marker in the texts, a private-use character that no text contains."""
        texts = [*(m.content for m in messages), *answer]
        forged = [t for t in self._markers if any(t in text for text in texts)]
        if not forged:
            return []
        used = set("".join(texts)) | {_ANSWER}
        free = (chr(code) for code in range(_FIRST_PRIVATE, _LAST_PRIVATE) if chr(code) not in used)
        return [(marker, next(free)) for marker in forged]


def _is_marker(token: str, template: str) -> bool:
    """Whether an added token that isn't declared special is one of the template's own markers. Tags of reasoning are the model's."""
    return token[:1] in _MARKER_STARTS and len(token) > 2 and token in template and not opens_reasoning(token.replace("/", ""))


def _guarded(text: str, stand_ins: list[tuple[str, str]]) -> str:
    for marker, stand_in in stand_ins:
        text = text.replace(marker, stand_in)
    return text


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
