"""Normative sentences are found with their places, and taken apart only where the rules can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.constitution.narrative import Norm, demands, name_of_assistant, sentences_of

DOCUMENT = """\
---
title: never read this
---
# Iris

Iris should be *kind*. It must never
invent a book.

The assistant must not:

- Reveal **loans**, e.g. to staff.
  Never joke about them.
- I-P addresses

Next
----
```
You must not read code.
```
<!-- You must not
read comments. -->
| You must not | read tables |
> Avoid [jargon](https://example.org/must).
1. Say [one](x) thing.
"""


def test_sentences_and_where_they_stand() -> None:
    found = [(s.text, s.line, s.end_line, s.section) for s in sentences_of(DOCUMENT)]
    assert found == [
        ("Iris should be kind.", 6, 6, "Iris"),
        ("It must never invent a book.", 6, 7, "Iris"),
        ("The assistant must not reveal loans, e.g. to staff.", 11, 11, "Iris"),
        ("Never joke about them.", 12, 12, "Iris"),
        ("The assistant must not I-P addresses", 13, 13, "Iris"),
        ("Avoid jargon.", 23, 23, "Next"),
        ("Say one thing.", 24, 24, "Next"),
    ]


@pytest.mark.parametrize(
    ("sentence", "norm"),
    [
        ("The assistant should name its sources.", Norm(False, "name its sources")),
        ("It must not guess.", Norm(True, "guess")),
        ("The model should never lie.", Norm(True, "lie")),
        ("You shouldn't flatter people.", Norm(True, "flatter people")),
        ("The AI may not give doses.", Norm(True, "give doses")),
        ("The assistant cannot claim to be human.", Norm(True, "claim to be human")),
        ("We ought to be brief.", Norm(False, "be brief")),
        ("The assistant should also always stay calm.", Norm(False, "stay calm")),
        ("Never lie.", Norm(True, "lie")),
        ("Please don't lecture anyone.", Norm(True, "lecture anyone")),
        ("Always answer first.", Norm(False, "answer first")),
        ("Avoid jargon.", Norm(False, "avoid jargon")),
        ("Be kind.", Norm(False, "be kind")),
        ("If a reader is upset, the assistant should be calm.", Norm(False, "be calm", "If a reader is upset")),
        ("Responses must fit on a page.", Norm(False, "fit on a page", "", True)),
        ("Iris should be kind.", Norm(False, "be kind")),
        ("The assistant should answer, and must not guess.", Norm(False, "")),
        ("Sources should be named.", Norm(False, "")),
        ("Iris never lies.", Norm(True, "")),
        ("However, the assistant should wait.", Norm(False, "wait")),
        (
            "If it can't be done, or users must wait, the assistant should say so.",
            Norm(False, "say so", "If it can't be done, or users must wait"),
        ),
        ("We want Iris to be brief.", Norm(False, "")),
    ],
)
def test_demands(sentence: str, norm: Norm) -> None:
    assert demands(sentence, "Iris") == norm


@pytest.mark.parametrize("sentence", ["Users must be over 18.", "The reader should decide.", "There should be peace.", "Books must wait."])
def test_what_is_asked_of_others_is_left_out_with_a_reason(sentence: str) -> None:
    assert str(demands(sentence)).startswith("it is about “")


@pytest.mark.parametrize(
    "sentence", ["Should it lie?", "The library opened in 1909.", "", "“”", "Berries never freeze here.", "Mustard is yellow."]
)
def test_what_demands_nothing(sentence: str) -> None:
    assert demands(sentence, "Iris") is None


def test_a_sentence_without_end_is_not_read() -> None:
    assert demands("the model should " * 3000) == "it is longer than 1000 characters"
    assert demands("la " * 3000) is None


@given(st.text(alphabet='ab.!? \n#*_`[](){}^>|-1"“”:,~', max_size=80))
def test_any_text_gives_sentences_on_its_own_lines(text: str) -> None:
    for s in sentences_of(text):
        assert 1 <= s.line <= s.end_line <= max(1, len(text.splitlines())) and s.text
        demands(s.text)


def test_the_name_of_the_assistant_stands_three_times_before_a_verb_of_duty() -> None:
    text = "Iris should read. Iris must wait. {} This should do. This must do. This will do."
    assert name_of_assistant(text.format("Iris never sleeps.")) == "Iris"
    assert name_of_assistant(text.format("")) == ""
