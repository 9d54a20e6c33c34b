"""Read a model's replies that are lists of short texts, each on a line after a label. The label is the template's `[[prefill]]`."""

import re

from cai.core.text.refusals import is_refusal
from cai.errors import ReplyError, TemplateError
from cai.models.requests import Completion
from cai.models.templates import Rendered, Template, disarm

MAX_CHARACTERS = 600


def whole_lines(reply: Completion, prefill: str) -> str:
    """Return a reply with its prefill; without the last line if the reply was cut off."""
    text = f"{prefill} {reply.text}" if prefill else reply.text
    return text.rpartition("\n")[0] if reply.truncated else text


def unquoted(text: str) -> str:
    """Remove quotation marks that enclose the whole text.

    >>> unquoted('"Be brief."'), unquoted('"A" and "B"')
    ('Be brief.', '"A" and "B"')
    """
    found = re.fullmatch(r"\s*[\"“„«]([^\"“”„«»]*)[\"”“»]\s*", text)
    return (found[1] if found else text).strip()


def split_labelled(text: str, label: str) -> list[str]:
    r"""Return what follows each label that begins a line. What stands before the first is left out.

    >>> split_labelled("Here:\nQuote: a b\n c\nQuote：d", "Quote:")
    ['a b\n c', 'd']
    """
    _, *found = re.split(rf"^[ \t]*{re.escape(label.rstrip(':：'))}[ \t]*[:：]", text, flags=re.MULTILINE)
    return [part.strip() for part in found]


def labelled(reply: Completion, asked: Rendered, template: Template) -> list[str]:
    """Return the labelled texts of a reply as they stand; `fault` says which of them can be used.

    Raises:
        ReplyError: there is none.
        TemplateError: the template has no label.
    """
    label = asked.prefill.strip()
    if not label.endswith((":", "：")):
        raise TemplateError(f"{template.path}: replies are read by a label: end the file with [[prefill]] and a word with a colon")
    again = split_labelled(reply.text.lstrip().split("\n", 1)[0], label)  # a server may repeat the prefill
    found = [unquoted(text) for text in split_labelled(whole_lines(reply, "" if again else asked.prefill), label)]
    if not any(found):
        raise ReplyError("unparsed", f"no whole line after {label!r}: {reply.text[:200]!r}")
    return [text for text in found if text]


def fault(text: str, template: Template) -> str | None:
    """Return why a labelled text can't be used as a single short text; None if it can."""
    if "\n" in text:
        return "several lines"
    if not any(c.isalpha() for c in text) or text.endswith((":", "：")):
        return "no sentence"
    if len(text) > MAX_CHARACTERS:
        return "too long"
    if disarm(text, template.labels) != text or "{{" in text or "[[" in text:
        return "markers of a template"
    if any(text in section.text for section in template.sections):
        return "an example of the template"
    return "a refusal" if is_refusal(text) else None


def single(reply: Completion, asked: Rendered, template: Template) -> str:
    """Return the only text of a reply. Raises `ReplyError` where there are none or several, or where it can't be used."""
    texts = labelled(reply, asked, template)
    if len(texts) > 1:
        raise ReplyError("unparsed", f"{len(texts)} texts instead of one: {reply.text[:200]!r}")
    if (reason := fault(texts[0], template)) is not None:
        raise ReplyError(reason, texts[0][:200])
    return texts[0]
