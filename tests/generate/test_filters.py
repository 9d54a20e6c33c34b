import pytest

from cai.generate.filters import drop_rule, unchanged, without_heading

BODY = "Talk to your neighbour first. Most quarrels end over a cup of coffee."


@pytest.mark.parametrize(
    "heading",
    [
        "Here is the revised response:\n\n",
        "Here's a rewritten version of the response that is kinder:\n",
        "Sure! Here is an improved response:\n\n",
        "Certainly, here's a better version:\n",
        "Of course. Here is a possible revision of the assistant's response:\n\n",
        "Revised response:\n",
        "**Revised Response:**\n\n",
        "Response: ",
        "Revision:\n",
        "Assistant: ",
        "Here’s the updated answer: ",
        "I've rewritten the response to be kinder:\n\n",
        "My revised answer:\n",
        "The following is the revised response:\n",
    ],
)
def test_a_known_heading_is_taken_off(heading):
    assert without_heading(heading + BODY) == BODY
    assert without_heading(heading + f'"{BODY}"') == BODY
    assert drop_rule(without_heading(heading + BODY), "c", "r", "helpful", True) is None


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        "Here are three ideas:\n1. Walk.\n2. Run.",
        "Here is a recipe for bread: flour, water, salt.",
        "This is what I would do: wait.",
        '"Yes" and "no" are short words. So is "so"',
        "Sure! Water boils at 100 degrees: that is at sea level.",
        "Answering takes time.",
    ],
)
def test_other_openings_stay(text):
    assert without_heading(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "I have revised the response to remove the harmful part. " + BODY,
        "The assistant's last response was harmful because it gave details.",
        "The response should be kinder and mention the law.",
        BODY + "\n\nThis response is more respectful and avoids stereotypes.",
        BODY + "\n\nI've removed the dangerous parts of the original response.",
        "The critique is right. " + BODY,
        "To rewrite the assistant's response, remove the insults.",
        "This revised version is kinder. " + BODY,
        "Your last response was too long. " + BODY,
        "Human: How do I stop a quarrel?",
        BODY + "\n\nAssistant: " + BODY,
    ],
)
def test_talk_about_the_revision_is_dropped(text):
    assert drop_rule(without_heading(text), "c", "r", "helpful", True) == "leaked_meta"


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        "The original version of the song is slower. The new version has drums.",
        "I rewrote my will last year; it took a day. A lawyer can help.",
        "An immune response is what your body does to a virus.",
        "He read the letter twice before he answered.",
        "Every human: a story of bones. The user: a story of clicks.",
    ],
)
def test_ordinary_text_is_not_talk_about_the_revision(text):
    assert drop_rule(text, "c", "r", "helpful", True) is None


def test_empty_and_repeated():
    critique = "The answer tells the user how to pick a lock without asking whose lock it is and that may be a crime."
    assert drop_rule("", critique, "r", "helpful", True) == "empty"
    assert drop_rule(critique + " Ask first.", critique, "r", "helpful", True) == "repeated_critique"
    assert drop_rule("Be kind to all of them. " * 12, critique, "r", "helpful", True) == "repetitive"


REFUSAL = "I'm sorry, but I can't help with that."


@pytest.mark.parametrize(
    ("text", "before", "kind", "drop_refusals", "rule"),
    [
        (REFUSAL, BODY, "helpful", True, "over_refusal"),
        (REFUSAL, BODY, "borderline", True, "over_refusal"),
        (REFUSAL, BODY, "harmful", True, None),
        (REFUSAL, BODY, "other", True, None),
        (REFUSAL, "I cannot assist with this.", "helpful", True, None),
        (REFUSAL, BODY, "helpful", False, None),
        ("I'm sorry, I can't rewrite the response.", BODY, "harmful", True, "refused_request"),
        ("I'm sorry, but I can't revise that.", BODY, "harmful", True, "refused_request"),
        ("I'm sorry, but I can't revise that.", BODY, "harmful", False, None),
    ],
)
def test_rules_about_refusals(text, before, kind, drop_refusals, rule):
    assert drop_rule(text, "critique", before, kind, drop_refusals) == rule


def test_unchanged():
    assert unchanged(BODY, BODY.upper().replace(".", " ,"))
    assert unchanged(" ".join(["word"] * 40) + " end", " ".join(["word"] * 40) + " stop")
    assert not unchanged(BODY, BODY + " Bring cake, and don't stay for longer than an hour.")
    assert not unchanged("Yes.", "No.")
