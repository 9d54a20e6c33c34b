"""Reasoning inside a text, in the forms that models write it."""

import signal

import pytest

from cai.core.text.reasoning import Spoken, closing_tag, opens_reasoning, split_reasoning


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nIs it?\n</think>\n\nYes.",
        "<THINK>Is it?</Think>Yes.",
        "Is it?\n</think>\n\nYes.",
        "<thinking>Is it?</thinking><answer>Yes.</answer>",
        "[THINK]Is it?[/THINK]Yes.",
        "◁think▷Is it?◁/think▷Yes.",
        "<seed:think>Is it?</seed:think>Yes.",
        "<|START_THINKING|>Is it?<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>",
        "<|begin_of_thought|>Is it?<|end_of_thought|>\n<|begin_of_solution|>Yes.<|end_of_solution|>",
        "<|channel|>analysis<|message|>Is it?<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        "analysisIs it?assistantfinalYes.",
        "<|channel>thought\nIs it?\n<channel|>Yes.",
        "<unused94>thought\nIs it?<unused95>Yes.",
        "<|inner_prefix|>Is it?<|inner_suffix|>Yes.",
        "Here is my thought process: Is it?\n\nHere is my response: Yes.",
        "Here's my thought process:\nIs it?\nHere's my response:\nYes.",
        "<think>Is it?</think>\n<|begin_of_box|>Yes.<|end_of_box|>",
    ],
)
def test_the_reasoning_is_set_apart(text: str) -> None:
    assert split_reasoning(text) == Spoken("Yes.", "Is it?")


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think>\nIs it", "Is it"),
        ("<think>a</think>\nYes.\n<think>But", "a\n\nBut"),
        ("<|channel|>analysis<|message|>Is it", "Is it"),
        ("analysisIs it", "Is it"),
        ("[THINK]Is it", "Is it"),
        ("<think>Is it?</think>\n", "Is it?"),
        ("<think time=3>Is it", "Is it"),
    ],
)
def test_a_reply_that_ends_inside_its_reasoning_has_no_answer(text: str, reasoning: str) -> None:
    assert split_reasoning(text) == Spoken("", reasoning)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a<think>b</think>c</think>Yes.", "Yes."),
        ("<think>a</think>\n<think>b</think>Yes.", "Yes."),
        ("a</think>b</think>Yes.", "Yes."),
        ("Sure.\n<think>a</think>\nYes.", "Sure.\n\nYes."),
        ("Sure! <think>\nThe user wants harm.\n</think>\nI can't.", "Sure! \nI can't."),
        ("Well <think>one\ntwo</think>yes.", "Well yes."),
        ("<think>a</think>X <think>b</think>Y", "X Y"),
        ("- <think>a</think>Yes.", "- Yes."),
        ("> <think>a</think>Yes.", "> Yes."),
        ("<think time=3>a</think>Yes.", "Yes."),
        ("<cot>a</cot>Yes.", "Yes."),
        ("<thought_process>a</thought_process>\nYes.", "Yes."),
    ],
)
def test_nested_and_repeated_blocks(text: str, answer: str) -> None:
    assert split_reasoning(text).answer == answer


@pytest.mark.parametrize("text", ["x <think> " * 40_000, "x <think> " * 40_000 + "</think>", "x </think> " * 40_000])
def test_a_text_of_nothing_but_tags_takes_one_pass(text: str) -> None:
    with_time = signal.alarm(20)  # a scan of the rest for each tag would take minutes
    assert with_time == 0
    try:
        split_reasoning(text)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(
    "text",
    [
        "Write <think> before it and </think> after it.",
        "Close it with `</think>`.",
        "To end a block write </think> and go on.",
        "Like this:\n```\n<think>\nhm\n</think>\n```\nThen go on.",
        "analysis of the matter",
        " Kept as it stands.\n",
    ],
)
def test_an_answer_without_reasoning_is_unchanged(text: str) -> None:
    assert split_reasoning(text) == Spoken(text)


def test_granites_beginning_is_a_reasoning_only_where_a_response_follows_or_the_limit_cut_it() -> None:
    text = "Here is my thought process: first I look at both."
    assert split_reasoning(text) == Spoken(text)
    assert split_reasoning(text, cut=True) == Spoken("", "first I look at both.")


@pytest.mark.parametrize("tag", ["<|channel>thought\n", "<|inner_prefix|>", "<unused94>thought\n"])
def test_a_reasoning_that_a_template_opens_is_closed_by_its_own_token(tag: str) -> None:
    assert opens_reasoning(f"<assistant>\n{tag}") == tag
    assert split_reasoning(f"{tag}Is it?{closing_tag(tag.strip())}Yes.") == Spoken("Yes.", "Is it?")
