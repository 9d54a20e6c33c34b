r"""Set a model's reasoning apart from its answer. Servers and local models often leave it inside the text.

Known forms, in any case and with any nesting:

    <think>…</think>answer        also thinking, thought(s), reasoning, reflection and scratchpad, in <…>, […], <|…|> or ◁…▷
    …</think>answer               the chat template has opened the reasoning
    <|START_THINKING|>…<|END_THINKING|>answer, <|begin_of_thought|>…<|end_of_thought|>answer
    <|channel|>analysis<|message|>…<|channel|>final<|message|>answer      gpt-oss; also "analysis…assistantfinal…", without the tokens
    <|channel>thought…<channel|>answer, <unused94>thought…<unused95>answer, <|inner_prefix|>…<|inner_suffix|>answer      Gemma, Apertus
    Here is my thought process:…Here is my response:answer                Granite

A block counts if it stands at the start of a line or after a sentence, if it has several lines, or if one before it counts; never in code.
So an answer may name a tag.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NAME = (
    r"(?:[a-z]\w{0,11}:|longcat_)?(?:think(?:ing)?|thoughts?|thought_process|chain_of_thought|cot|reason(?:ing)?|reflection|scratchpad"
    r"|analysis)"
)
_TAG = re.compile(
    rf"(?<![`'\"“])(?:(?P<open><{_NAME}(?:\s[^<>\n]{{0,60}})?>|\[{_NAME}\]|<\|{_NAME}\|>|◁{_NAME}▷"
    r"|<\|(?:start|begin)(?:_of)?_(?:thinking|thought|think)\|>"
    r"|<\|channel>(?:thought|analysis)\b|<unused94>(?:thought\b)?|<\|inner_prefix\|>)"
    rf"|(?P<close></{_NAME}>|\[/{_NAME}\]|<\|/{_NAME}\|>|◁/{_NAME}▷|<\|end(?:_of)?_(?:thinking|thought|think)\|>"
    r"|<channel\|>|<unused95>|<\|inner_suffix\|>))",
    re.IGNORECASE,
)
_CLOSED_BY = {
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<unused94>": "<unused95>",
    "<unused94>thought": "<unused95>",
    "<|channel>thought": "<channel|>",
}
_LAST_WORD = re.compile(r"\S+\s*\Z")
_START = re.compile(r"(?:\A|\n)[ \t]*(?:[-*>#]{1,3}[ \t]*)?\Z|[.!?:…。！？：][*_'\")\]]*[ \t]+\Z")
"""What stands before a block: the start of a line, with Markdown's marks, or the end of a sentence."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)(?:(?!<\|message\|>).)*<\|message\|>", re.IGNORECASE | re.DOTALL)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>(?:assistant)?|<\|channel\|>", re.IGNORECASE)
_BARE_CHANNEL = re.compile(r"\A\s*(?:assistant)?analysis(?=\S)(.*?)assistant\s*final(?=\S)", re.DOTALL)
_BARE_ANALYSIS = re.compile(r"\A\s*(?:assistant)?analysis(?=[A-Z])")
_GRANITE = re.compile(r"\A\s*Here(?: is|['’]s) my thought process:(.*?)(?:\n\s*Here(?: is|['’]s) my response:|\Z)", re.DOTALL)
_WRAPPED = re.compile(
    r"\A\s*(?:<(answer|response|output|final)>(.*?)(?:</\1>\s*)?"
    r"|<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>\s*)?|<\|START_RESPONSE\|>(.*?)(?:<\|END_RESPONSE\|>\s*)?"
    r"|<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>\s*)?)\Z",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A model's text in two parts."""

    answer: str
    """Empty if the reasoning doesn't end."""
    reasoning: str = ""


def split_reasoning(text: str, cut: bool = False) -> Spoken:
    """Return a text's answer, and its reasoning without the tags. A text without reasoning is returned unchanged.

    Args:
        cut: whether the text ended at a limit of tokens. Then one that begins as Granite's reasoning does is nothing else; otherwise any
            model may begin an answer so.

    >>> split_reasoning("<think>Is it?</think>\\n\\nYes.")
    Spoken(answer='Yes.', reasoning='Is it?')
    >>> split_reasoning("Is it?</think>Yes."), split_reasoning("<think>Is")
    (Spoken(answer='Yes.', reasoning='Is it?'), Spoken(answer='', reasoning='Is'))
    >>> split_reasoning("Close it with `</b>`, as in <think>.")
    Spoken(answer='Close it with `</b>`, as in <think>.', reasoning='')
    """
    if _CHANNEL.search(text):
        return _channels(text)
    if bare := _BARE_CHANNEL.match(text):
        return Spoken(text[bare.end() :].strip(), bare[1].strip())
    if _BARE_ANALYSIS.match(text):
        return Spoken("", text.strip().removeprefix("assistant").removeprefix("analysis").strip())
    if (granite := _GRANITE.match(text)) and (cut or granite.end() < len(text)):
        return Spoken(text[granite.end() :].strip(), granite[1].strip())
    return _blocks(text)


def opens_reasoning(text: str) -> str:
    r"""Return the tag that opens a reasoning at the end of a prompt, with the white space after it; empty if there is none.

    >>> opens_reasoning("<|im_start|>assistant\n<think>\n"), opens_reasoning("<|im_start|>assistant\n")
    ('<think>\n', '')
    """
    last = _LAST_WORD.search(text[-60:])
    if last is None:
        return ""
    tags = [tag for tag in _TAG.finditer(last[0]) if tag.end() == len(last[0].rstrip())]
    return last[0][tags[0].start() :] if tags and tags[0]["open"] else ""


def closing_tag(tag: str) -> str:
    """Return the tag that closes a reasoning which this one has opened.

    >>> [closing_tag(tag) for tag in ("<think>", "[THINK]", "<|think|>", "<|START_THINKING|>", "<|begin_of_thought|>")]
    ['</think>', '[/THINK]', '<|/think|>', '<|END_THINKING|>', '<|end_of_thought|>']
    """
    start = 2 if tag[1:2] == "|" else 1
    if tag in _CLOSED_BY:
        return _CLOSED_BY[tag]
    for opening, closing in (("START", "END"), ("start", "end"), ("BEGIN", "END"), ("begin", "end")):
        if tag.startswith(opening, start):
            return tag[:start] + closing + tag[start + len(opening) :]
    return f"{tag[:start]}/{tag[start:]}"


def within(opened: str, text: str) -> str:
    """Return a text with the tag that its prompt has opened before it, unless it opens a reasoning itself.

    >>> within("<think>", "Is it?</think>Yes."), within("<think>", "<think>Is it?")
    ('<think>Is it?</think>Yes.', '<think>Is it?')
    """
    first = _TAG.match(text.lstrip()) if opened else None
    return text if first is not None and first["open"] else opened + text


def _blocks(text: str) -> Spoken:
    """Split a text at its tags: what is between an opening tag and its closing tag is reasoning."""
    reasoning: list[str] = []
    answer: list[str] = []
    depth = start = 0
    opened = False  # whether any block was opened so far
    tags = list(_TAG.finditer(text))
    long = _with_several_lines(text, tags)
    for tag in tags:
        if tag["open"]:
            if depth or ((opened or tag.start() in long or _starts_block(text, tag)) and not _in_code(text, start, tag.start())):
                if not depth:
                    answer.append(text[start : tag.start()])
                    start = tag.end()
                depth += 1
                opened = True
        elif depth:
            depth -= 1
            if not depth:
                reasoning.append(text[start : tag.start()])
                start = tag.end()
        elif not opened and not _TAG.search(text, start, tag.start()) and not _is_named(text, tag):  # the template opened it
            reasoning.append(text[start : tag.start()])
            start = tag.end()
    if depth:  # it ends inside
        reasoning.append(text[start:])
        return Spoken("", _joined(reasoning))
    if not reasoning:
        return Spoken(text)
    return Spoken(_unwrapped("".join([*answer, text[start:]]).strip()), _joined(reasoning))


def _starts_block(text: str, tag: re.Match[str]) -> bool:
    """Whether an opening tag stands where a block begins."""
    return _START.search(text[max(0, tag.start() - 200) : tag.start()]) is not None


def _with_several_lines(text: str, tags: Sequence[re.Match[str]]) -> set[int]:
    """Return where the opening tags stand that have a line break before the next closing tag. One pass, as a text may have many tags."""
    found: set[int] = set()
    has_break: bool | None = None  # between here and the next closing tag; None: there is no closing tag
    after = len(text)
    for tag in reversed(tags):
        if has_break is not None:
            has_break = has_break or "\n" in text[tag.end() : after]
        if tag["close"]:
            has_break = False
        elif has_break:
            found.add(tag.start())
        after = tag.start()
    return found


def _is_named(text: str, tag: re.Match[str]) -> bool:
    """Whether a closing tag is a word in a sentence: it has a space on both sides."""
    return text[: tag.start()].endswith(" ") and text.startswith(" ", tag.end())


def _in_code(text: str, start: int, end: int) -> bool:
    """Whether a position is in a fenced block of code, of the text from `start`."""
    return text.count("```", start, end) % 2 == 1


def _channels(text: str) -> Spoken:
    """Split gpt-oss's text: the channel `final` is the answer, all others are reasoning."""
    headers = list(_CHANNEL.finditer(text))
    parts: dict[bool, list[str]] = {True: [], False: [text[: headers[0].start()]]}
    for i, header in enumerate(headers):
        body = text[header.end() : headers[i + 1].start() if i + 1 < len(headers) else len(text)]
        end = _CHANNEL_END.search(body)
        parts[header[1].lower() == "final"].append(body[: end.start()] if end else body)
    before = [_CHANNEL_END.sub("", p) for p in parts[False]]
    return Spoken("".join(parts[True]).strip(), _joined(before))


def _unwrapped(answer: str) -> str:
    """Return an answer without a tag around the whole of it, which some models write after their reasoning."""
    found = _WRAPPED.match(answer)
    return answer if found is None else next(part for part in found.groups()[1:] if part is not None).strip()


def _joined(parts: list[str]) -> str:
    return "\n\n".join(p.strip() for p in parts if p.strip())
