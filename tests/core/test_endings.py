import pytest

from cai.core.text.endings import sentence_count, whole_sentences


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("Tides follow the moon. They rise twi", "Tides follow the moon."),
        ('She said "no." Then he', 'She said "no."'),
        ("One. Two! Three? Fo", "One. Two! Three?"),
        ("The line one\nthe line two\nthe li", "The line one\nthe line two"),
        ("Steps you should take:\n1. Wash it well.\n2. Dry it.\n3. Pu", "Steps you should take:\n1. Wash it well.\n2. Dry it."),
        ("A long first sentence stands here.\n\n**Ingredients:**\n", "A long first sentence stands here."),
        ("A long first sentence stands here.\n\n4.", "A long first sentence stands here."),
        ("A long first sentence stands here.\n- ", "A long first sentence stands here."),
        ("It was in 1999. Then the y", "It was in 1999."),
        ("今天天气很好。我们去", "今天天气很好。"),
        ("Whole as it is.", "Whole as it is."),
        ("It costs 3.50 for two. And th", "It costs 3.50 for two."),
        ("Nimm etwas gegen Kalk. Gut ist z. B. Essi", "Nimm etwas gegen Kalk."),
        ("Take something sour. Good is e.g. vin", "Take something sour."),
    ],
)
def test_what_is_kept(cut, kept):
    assert whole_sentences(cut) == kept


@pytest.mark.parametrize("cut", ["", "  ", "No end at all here", "Hi. " + "and then on and on " * 5, "Steps:\n1."])
def test_too_little_left_is_none(cut):
    assert whole_sentences(cut) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Nimm z. B. Essig. Das hilft.", 2),
        ("Das kostet ca. 1.000 Euro, d.h. viel, bzw. zu viel.", 1),
        ("Frag Dr. Müller. Er weiß es.", 2),
        ("Mrs. Hill has fruit, e.g. apples. I saw Mr.", 2),
        ("Take plan B. Then go, etc. Stop.", 3),
    ],
)
def test_the_stop_of_an_abbreviation_ends_no_sentence(text, count):
    assert sentence_count(text) == count
