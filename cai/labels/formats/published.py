"""Readers of published data sets whose answers are codes: what each code means is in the data set's own documentation.

To add a data set, add a row to `_DATA_SETS`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cai.data.conversations import RowFault
from cai.labels.answers import Choices
from cai.labels.readings import Columns, PairFormat, PairFormats, PairRow, Said, asked, column, reading, side
from cai.records import PromptKind

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Columns of a data set, and what its answers mean."""

    name: str
    prompt: tuple[str, ...]
    """Columns that may hold the prompt; empty where the responses are whole conversations."""
    names: tuple[str, str]
    """Columns with the two responses."""
    answer: str
    """Column with the answer, or the columns of several annotators, as a regular expression."""
    choices: Choices
    annotator: str | None = None
    """Column with the annotator's name, besides those that every format has."""
    several: tuple[str, str] | None = None
    """Column with a list of annotators, and where each one's answer is. It is read instead of `answer`, which sums it up."""

    def recognise(self, row: Row) -> bool:
        prompt = not self.prompt or any(name in row for name in self.prompt)
        answered = any(re.fullmatch(self.answer, str(name)) for name in row) or self._annotators(row) is not None
        return prompt and set(self.names) <= row.keys() and answered

    def read(self, row: Row, source: str, kind: PromptKind | None) -> Iterator[PairRow | RowFault]:
        prompt = asked(row, self.prompt)
        if self.prompt and prompt is None:
            raise RowFault("no_column", f"expected {' or '.join(self.prompt)}, found {', '.join(map(str, row))}")
        first, second = (side(prompt, column(row, name)) for name in self.names)
        if self.several is not None and (annotators := self._annotators(row)) is not None:
            name, key = self.several
            row.get(name)
            for n, one in enumerate(annotators, 1):
                if not isinstance(one, dict) or one.get(key) in (None, ""):
                    yield RowFault("not_labelled", f"annotator {n} in {name} has no {key}")
                else:
                    answer = Said(((name, one[key]),), self.names, self.choices)
                    yield reading(first, second, answer, row, source, kind, as_shown=True, who=one)
            return
        said = [(str(name), row[name]) for name in row if re.fullmatch(self.answer, str(name)) and dict.get(row, name) not in (None, "")]
        if not said:
            raise RowFault("not_labelled", f"no answer in {self.answer}")
        for name, value in said:
            who: Row = (
                {"annotator": name} if name != self.answer else {**row, "annotator": row.get(self.annotator)} if self.annotator else row
            )
            answer = Said(((self.answer.replace("[0-9]+", "…"), value),), self.names, self.choices)
            yield reading(first, second, answer, row, source, kind, as_shown=True, who=who)

    def _annotators(self, row: Row) -> list[Any] | None:
        """Return the row's list of annotators; None without one, or if the user named `answer` as the answer."""
        named = row.renamed.values() if isinstance(row, Columns) else ()
        found = dict.get(row, self.several[0]) if self.several is not None and self.answer not in named else None
        return found if isinstance(found, list) and found else None


_DATA_SETS = (
    # PKU-Alignment/PKU-SafeRLHF: better_response_id is the index of the more helpful response.
    _Shape("pku", ("prompt",), ("response_0", "response_1"), "better_response_id", Choices({"0": 1.0, "1": 0.0})),
    # stanfordnlp/SHP: labels is 1 if A is preferred, 0 if B is.
    _Shape("shp", ("history",), ("human_ref_A", "human_ref_B"), "labels", Choices({"1": 1.0, "0": 0.0})),
    # nvidia/HelpSteer3: -3 is "Response 1 is much better than Response 2", 3 the opposite, 0 "about the same". It doesn't name annotators:
    # the first of one row isn't that of another.
    _Shape(
        "helpsteer3",
        ("context", "prompt"),
        ("response1", "response2"),
        "overall_preference",
        Choices(scale=(-3.0, 3.0)),
        several=("individual_preference", "score"),
    ),
    # nvidia/HelpSteer2, preference: as in HelpSteer3.
    _Shape("helpsteer2", ("prompt",), ("response_1", "response_2"), "preference_strength", Choices(scale=(-3.0, 3.0))),
    # WeOpenML/PandaLM, human-annotated test set: 0 is a tie, 1 and 2 are the better response.
    _Shape("pandalm", ("instruction",), ("response1", "response2"), "annotator[0-9]+", Choices({"0": 0.5, "1": 1.0, "2": 0.0})),
    # lmsys/mt_bench_human_judgments and chatbot_arena_conversations.
    _Shape("arena", (), ("conversation_a", "conversation_b"), "winner", Choices({"model_a": 1.0, "model_b": 0.0}), "judge"),
)
FORMATS = PairFormats("published", tuple(PairFormat(s.name, s.recognise, s.read, s.answer) for s in _DATA_SETS))
