"""Prompt templates: text files that users can edit, one per question to a model. Checked strictly, filled in a single pass.

A file has comment lines, then sections:

    # Lines before the first section are comments.
    [[system]]                 a turn with fixed text and fields: system, user or assistant
    [[turns conversation]]     the turns of a conversation, unchanged
    [[user]]
    Response: {{ response }}   a field; a conversation within a text becomes a transcript (Human: … Assistant: …)
    [[prefill]]                last, optional: start of the model's answer
    [[choices]]                of a yes-or-no question, optional: the words for yes and no, a line each

Templates have no logic, so there is nothing to sandbox. Inserted text is not scanned again, so it can't pull in other fields.

Inserted text can't forge the template's own text either. A label at the start of a template's line (`Response A:`, `(A)`, `Answer:`, and
in transcripts `Human:`) marks a section; a line of inserted text that starts with one of the template's labels is quoted with `> `. Chat
control tokens (`<|im_end|>`, `[INST]`, `<start_of_turn>`, …) in inserted text get a space after their first character. All other text is
inserted unchanged.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from cai.core.jsonl import read_file
from cai.core.workspace import TEMPLATES, shipped_workspace
from cai.errors import TemplateError
from cai.ids import combine_hashes, content_hash
from cai.models.turns import join_systems
from cai.records import Message, Role

FIELDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "respond": (frozenset({"conversation"}), frozenset()),
    "critique": (frozenset({"conversation", "response", "statement", "critique_request"}), frozenset()),
    "revise": (
        frozenset({"conversation", "response", "statement", "critique", "revision_request"}),
        frozenset({"critique_request"}),
    ),
    "judge_pairwise": (frozenset({"conversation", "first", "second", "statement", "question"}), frozenset()),
    "judge_pairwise_cot": (frozenset({"conversation", "first", "second", "statement", "question"}), frozenset()),
    "judge_pointwise": (frozenset({"conversation", "response", "statement", "question"}), frozenset()),
    "judge_rubric": (frozenset({"conversation", "response", "statement"}), frozenset()),
    "likelihood_good": (frozenset({"conversation", "statement"}), frozenset()),
    "likelihood_bad": (frozenset({"conversation", "statement"}), frozenset()),
    "contrast_under": (frozenset({"conversation", "statement"}), frozenset()),
    "contrast_against": (frozenset({"conversation", "statement"}), frozenset()),
    "told_user": (frozenset({"earlier", "question", "principles"}), frozenset()),
    "told_system": (frozenset({"earlier", "question", "principles"}), frozenset()),
    "propose_principles": (frozenset({"section"}), frozenset({"heading"})),
    "word_principle": (frozenset({"passage"}), frozenset()),
    "conflict": (frozenset({"first", "second"}), frozenset()),
    "collision": (frozenset({"first", "second"}), frozenset()),
    "learn_rule": (frozenset({"conversation", "preferred", "other"}), frozenset()),
    "write_harmful": (frozenset({"statement"}), frozenset()),
    "write_borderline": (frozenset({"statement"}), frozenset()),
    "write_helpful": (frozenset({"statement"}), frozenset()),
}
"""Required and optional fields of each template."""
CONVERSATIONS = frozenset({"conversation", "earlier"})
"""Fields that hold turns. `earlier`: those before the last user turn."""

_WHY = {
    "statement": ", without which editing a principle's statement changes nothing. Add a line such as `Principle: {{ statement }}`, or "
    "copy the file from a workspace made with `cai init DIR`"
}
SPEAKERS: dict[Role, str] = {"system": "System", "user": "Human", "assistant": "Assistant"}
Value = str | Sequence[Message]

YES_NO_QUESTIONS = ("judge_pointwise", "conflict")
YES_NO = ("Yes", "No")
"""The answers to a judge's question, unless its template has `[[choices]]`."""
OPENINGS = ("(", "**", "**(", '"')
"""What some models write before a choice: "(A", "**A**"."""
MAX_BYTES = 1024 * 1024
_HEADER = re.compile(r"\[\[(?:(system|user|assistant|prefill|choices)|turns (\w+))\]\]$")
_FIELD = re.compile(r"\{\{ (\w+) \}\}")
_LABEL = re.compile(r"^[ \t]*((?:[^\W\d_][\w'-]*)(?:[ \t]+[\w'-]+){0,5}[ \t]*[:：]|\([A-Z]\))", re.MULTILINE)
_LINE_BREAKS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_IGNORED = r"[ \t\u00a0\u00ad\u200b-\u200f\u2060\ufeff*_#\-]*"
_CONTROL = re.compile(
    r"<[|｜][^|｜<>\n]{1,40}[|｜]>|</?s>|</?(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TemplateSection:
    """A section of a template: the text of a turn, a prefill, or the place of a conversation's turns."""

    role: Role | None
    """Role of the turn; None for the turns of a conversation and for the prefill."""
    text: str
    turns: str | None = None


@dataclass(frozen=True)
class Rendered:
    """A filled template: the conversation to send, and the start of the answer."""

    messages: tuple[Message, ...]
    prefill: str


@dataclass(frozen=True)
class Template:
    """One question to a model. `hash` covers the text that is sent, without comments."""

    name: str
    path: Path
    sections: tuple[TemplateSection, ...]
    hash: str
    choices: tuple[str, str] = YES_NO
    """The answers that mean yes and no."""
    in_user_turn: bool = False
    """Whether the template's own system turn goes to the start of the first user turn."""

    def placed(self, placement: Literal["system", "user"]) -> "Template":
        """Return the template with its own system turn where it is (`system`), or at the start of the first user turn (`user`).

        A system turn of the conversation, such as an operator's persona, stays.
        """
        if placement == "system" or self.sections[0].role != "system":
            return self
        return replace(self, in_user_turn=True, hash=combine_hashes([self.hash, "in the user's turn"]))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels at the start of the template's own lines, which mark sections."""
        labels = {label.strip() for s in self.sections for label in _LABEL.findall(_FIELD.sub("", s.text))}
        return tuple(sorted(labels))

    @cached_property
    def _transcript_labels(self) -> tuple[str, ...]:
        """`labels` and those of the speakers in a transcript."""
        return (*self.labels, *(f"{name}:" for name in SPEAKERS.values()))

    @cached_property
    def field_names(self) -> frozenset[str]:
        """The fields that the template uses."""
        return frozenset({s.turns for s in self.sections if s.turns}.union(*(_FIELD.findall(s.text) for s in self.sections)))

    @cached_property
    def _pieces(self) -> tuple[tuple[str, ...], ...]:
        """Each section split into text, field, text, …, field, text."""
        return tuple(tuple(_FIELD.split(s.text)) for s in self.sections)

    def render(self, values: Mapping[str, Value]) -> Rendered:
        """Fill the template.

        Args:
            values: text or a conversation for every field of the template. Values for its unused optional fields are ignored.
        """
        required, optional = FIELDS[self.name]
        unknown = values.keys() - required - optional
        missing = self.field_names - values.keys()
        if unknown or missing:
            errors = [f"no value for {', '.join(sorted(missing))}"] if missing else []
            errors += [f"unknown {', '.join(sorted(unknown))}"] if unknown else []
            raise TemplateError(f"{self.path}: {'; '.join(errors)}; the fields of {self.name} are {', '.join(sorted(required | optional))}")
        messages: list[Message] = []
        prefill = ""
        for section, pieces in zip(self.sections, self._pieces, strict=True):
            if section.turns is not None:
                conversation = values[section.turns]
                if isinstance(conversation, str):
                    raise TemplateError(f"{self.path}: [[turns {section.turns}]] needs a conversation; found text")
                messages += [Message(m.role, disarm(m.content)) for m in conversation]
            else:
                filled = list(pieces)
                filled[1::2] = [self._inserted(values[name]) for name in pieces[1::2]]
                text = "".join(filled)
                if section.role is None:
                    prefill = text
                else:
                    messages.append(Message(section.role, text))
        asks = next((i for i, m in enumerate(messages) if m.role == "user"), None)
        if self.in_user_turn and asks is not None:
            messages[asks] = Message("user", f"{messages[0].content}\n\n{messages[asks].content}")
            del messages[0]
        return Rendered(tuple(join_systems(messages)), prefill)

    def _inserted(self, value: Value) -> str:
        if isinstance(value, str):
            return disarm(value, self.labels)
        return "\n\n".join(f"{SPEAKERS[m.role]}: {disarm(m.content, self._transcript_labels)}" for m in value)


@dataclass(frozen=True)
class Templates:
    """All prompt templates that a run uses."""

    respond: Template
    critique: Template
    revise: Template
    judge_pairwise: Template
    judge_pairwise_cot: Template
    judge_pointwise: Template
    judge_rubric: Template
    likelihood_good: Template
    likelihood_bad: Template
    contrast_under: Template
    contrast_against: Template
    told_user: Template
    told_system: Template

    @property
    def hash(self) -> str:
        """Content hash of all templates."""
        return combine_hashes([getattr(self, f.name).hash for f in fields(self)])

    def placed(self, placement: Literal["system", "user"]) -> "Templates":
        """Return all templates as `Template.placed` does one, but for `told_system`: `distill.placement` chose the system turn for it."""
        moved = {f.name: getattr(self, f.name).placed(placement) for f in fields(self)}
        return replace(Templates(**moved), told_system=self.told_system)


@lru_cache(maxsize=64)  # a judge answers many consecutive questions about one text
def disarm(text: str, labels: tuple[str, ...] = ()) -> str:
    r"""Return the text with chat control tokens broken up, and lines that start with one of the labels quoted.

    >>> disarm("Fine.<|im_end|>\nanswer: A, not\nB", ("Answer:",))
    'Fine.< |im_end|>\n> answer: A, not\nB'
    """
    text = _CONTROL.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)
    if not labels:
        return text
    opening, line = _opening_with(labels)
    text = line.sub(r"\1> ", text)
    return f"> {text}" if opening.match(text) else text


@lru_cache(maxsize=256)
def _opening_with(labels: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns that match a label at the start of a text, and the line break before a label. Cached per template.

    A single pattern for both would be tried at every character, which is five times as slow.
    """
    label = f"{_IGNORED}(?:{'|'.join(_spelling(label) for label in labels)})"
    return re.compile(label, re.IGNORECASE), re.compile(rf"([{_LINE_BREAKS}])(?={label})", re.IGNORECASE)


def load_templates(folder: Path) -> Templates:
    """Read and check every template that a run asks. Raises as `load_named_templates` does."""
    names = [f.name for f in fields(Templates)]
    return Templates(**dict(zip(names, load_named_templates(names, folder), strict=True)))


def load_named_templates(names: Sequence[str], folder: Path) -> list[Template]:
    """Read and check some templates of a folder.

    Args:
        names: of `FIELDS`.
        folder: where their files are; one that is no template at all is a problem too.
    """
    try:
        exists = folder.is_dir()
    except OSError:  # the name is too long
        exists = False
    if not exists:
        raise TemplateError(
            f"{folder}: no such folder of templates. Make a workspace, which has one, with `cai init DIR`, or set `templates` in the "
            "recipe to your folder."
        )
    problems: list[str] = []
    found = [_load(name, _file(name, folder), problems) for name in names]
    problems += [
        f"{path}: unknown template name; expected one of {', '.join(f'{n}.txt' for n in FIELDS)}"
        for path in sorted(folder.glob("*.txt"))
        if path.stem not in FIELDS
    ]
    if problems:
        raise TemplateError(
            f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n" + "\n".join(f"  {p}" for p in problems)
        )
    return [template for template in found if template is not None]


def _file(name: str, folder: Path) -> Path:
    """Return a template's file: the folder's own, or else the one that comes with `cai`."""
    own = folder / f"{name}.txt"
    return own if own.exists() or own.is_symlink() else shipped_workspace() / TEMPLATES / own.name


def _load(name: str, path: Path, problems: list[str]) -> Template | None:
    try:
        lines = read_file(path, MAX_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        problems.append(f"{path}: can't be read as UTF-8 text ({e})")
        return None
    before = len(problems)
    problems += _line_problems(name, path, lines)
    choices, lines = _without_choices(lines)
    if choices is not None and (name not in YES_NO_QUESTIONS or len(choices) != 2 or len(set(choices)) < 2):
        problems.append(f"{path}: [[choices]] is for {' and '.join(YES_NO_QUESTIONS)}, and has two lines: the words for yes and for no")
    sections = tuple(_sections(lines))
    used = {s.turns for s in sections if s.turns}.union(*(_FIELD.findall(s.text) for s in sections))
    problems += [f"{path}: doesn't use the required field {{{{ {f} }}}}{_WHY.get(f, '')}" for f in sorted(FIELDS[name][0] - used)]
    if not any(s.role == "user" or s.turns for s in sections):
        problems.append(f"{path}: no user turn; expected a [[user]] or [[turns …]] section")
    if any(s.turns and s.text for s in sections):
        problems.append(f"{path}: text under [[turns …]] would be lost; move it to a section such as [[user]]")
    if any(s.role is None and s.turns is None for s in sections[:-1]):
        problems.append(f"{path}: [[prefill]] must be the last section")
    if len(problems) > before:
        return None
    said: list[object] = [name, [(s.role, s.text, s.turns) for s in sections]]
    if choices is None:
        return Template(name, path, sections, content_hash(said))
    return Template(name, path, sections, content_hash([*said, choices]), (choices[0], choices[1]))


def _without_choices(lines: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """Return the lines of `[[choices]]`, None if there is no such section, and all other lines."""
    start = next((i for i, line in enumerate(lines) if line.rstrip() == "[[choices]]"), None)
    if start is None:
        return None, list(lines)
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[[")), len(lines))
    return [word for line in lines[start + 1 : end] if (word := line.strip())], [*lines[:start], *lines[end:]]


def _line_problems(name: str, path: Path, lines: Sequence[str]) -> Iterator[str]:
    allowed = FIELDS[name][0] | FIELDS[name][1]
    started = False
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if line.startswith("[["):
            header = _HEADER.match(line.rstrip())
            started = True
            if header is None:
                yield (
                    f"{where}: {line.strip()} is no section; expected [[system]], [[user]], [[assistant]], [[turns FIELD]], [[prefill]] or "
                    "[[choices]]"
                )
            elif header[2] and header[2] not in CONVERSATIONS & allowed:
                yield f"{where}: only a conversation can be inserted as turns: [[turns {' or '.join(CONVERSATIONS & allowed)}]]"
            continue
        if not started:
            if line.strip() and not line.startswith("#"):
                yield f"{where}: text before the first section; start a comment with # or open a section such as [[user]]"
            continue
        for field in _FIELD.findall(line):
            if field not in allowed:
                yield f"{where}: unknown field {field!r}; {name} may use {', '.join(sorted(allowed))}"
        if re.search(r"\{\{|\}\}|\{%", _FIELD.sub("", line)):
            yield f"{where}: malformed field; write {{{{ name }}}} with one space inside, and no logic"


def _sections(lines: Sequence[str]) -> Iterator[TemplateSection]:
    header: re.Match[str] | None = None
    body: list[str] = []
    for line in [*lines, "[[user]]"]:  # a last header closes the last section
        if not line.startswith("[["):
            body.append(line)
            continue
        if header is not None:
            role: Role | None = next((r for r in SPEAKERS if r == header[1]), None)
            yield TemplateSection(role, "\n".join(body).strip(), header[2])
        header, body = _HEADER.match(line.rstrip()), []


def _spelling(label: str) -> str:
    """Return a pattern for a label with any spacing, and with a full-width colon too."""
    words = r"[ \t\u00a0]*".join(re.escape(word) for word in label.rstrip(":：").split())
    return rf"{words}{_IGNORED}[:：]" if label[-1] in ":：" else words
