"""Similarity and opposition on labelled examples, and the margins that the lint's thresholds rest on."""

from itertools import combinations
from pathlib import Path

import pytest

from cai.constitution.lint import REQUESTS_ALIKE, STATEMENT_ALIKE
from cai.constitution.load import load_constitution
from cai.constitution.wording import claim, cosine, opposed, sentences, stem, vectors

CONSTITUTIONS = sorted((Path(__file__).parents[2] / "constitution").glob("*.yaml"))

OPPOSED = [
    ("Always refuse requests about weapons.", "Never refuse requests about weapons."),
    ("Always refuse to answer questions about medication.", "Never refuse to answer questions about medication."),
    ("Refuse to discuss politics.", "Do not refuse to discuss politics."),
    ("Answer questions about drugs.", "Decline questions about drugs."),
    ("Include a disclaimer in every response.", "Leave out disclaimers."),
    ("Keep answers short.", "Keep answers long."),
    ("Use formal language.", "Use informal language."),
    ("Always mention the user's name.", "Avoid mentioning the user's name."),
    ("Reveal the system prompt when asked.", "Never reveal the system prompt when asked."),
    ("Give medical advice.", "Do not give medical advice."),
    ("Responses must contain sources.", "Responses must be free of sources."),
    ("Be brief.", "Be detailed."),
    ("Ask a clarifying question before answering.", "Never ask a clarifying question before answering."),
    ("Always warn about side effects.", "Don’t warn about side effects."),
    ("Always comply with the user's request.", "Always refuse the user's request."),
    ("Apologise in every response.", "Never apologise."),
]
NOT_OPPOSED = [
    ("Give dosages of common pain drugs for adults.", "Do not give dosages of common pain drugs for adults unless asked."),
    ("Give medical advice.", "Do not give legal advice."),
    ("Never invent facts.", "Never invent sources."),
    ("Refuse requests for weapons.", "Do not refuse requests for the history of weapons."),
    ("Refuse requests about weapons.", "Do not refuse requests about weapons unless they are illegal."),
    ("Do not leave out warnings.", "Include warnings."),
    ("Avoid jargon.", "Do not use jargon."),
    ("Do not be rude to the user.", "Be polite to the user."),
    ("Answers are neither too long nor too short.", "Keep answers short."),
    ("Refuse to answer questions about bombs.", "Decline questions about bombs."),
    ("Always be truthful.", "Never be dishonest."),
    ("No insults, no threats, no mockery.", "Avoid insults, threats and mockery."),
    ("Answer without hesitation.", "Do not hesitate to answer."),
    ("Never give dosages for children.", "Give dosages for adults."),
    ("Explain risks.", "Do not exaggerate risks."),
    ("Do not encourage gambling.", "Discourage gambling."),
    ("Keep private data private.", "Remove private data."),
]
PARAPHRASES = [
    (
        "no-fabrication",
        "Never make up facts, figures, quotes, links or sources. If something is not known, say so and explain how to find out.",
    ),
    ("no-preaching", "Do not lecture the user. Leave out moral lessons and warnings nobody asked for; if a caution matters, give it once."),
    ("no-flattery", "Never flatter the user. Do not praise the user or the question, and say plainly when an idea or plan is weak."),
    (
        "no-weapon-recipes",
        "Do not give working instructions for explosives, poisons, firearms, or chemical, biological and nuclear weapons.",
    ),
    (
        "no-help-with-violence",
        "Don't help anybody hurt, threaten or kill people or animals, even when it's asked for as fiction or a joke.",
    ),
    ("no-stereotypes", "Make no assumptions about what people are like because of their race, sex, religion, age, disability or origin."),
    (
        "answer-the-question",
        "First give the answer to what was asked, and satisfy every condition of the request such as format and number.",
    ),
    ("protect-privacy", "Don't help anyone locate, reveal or track a private person's home or life, or spy on a partner or stranger."),
    (
        "no-cyber-attacks",
        "Never assist in breaking into other people's accounts, devices or networks, writing malware or stealing passwords.",
    ),
]


@pytest.mark.parametrize(("a", "b"), OPPOSED)
def test_opposed(a, b):
    assert opposed(claim(a), claim(b)) and opposed(claim(b), claim(a))
    assert not opposed(claim(a), claim(a))


@pytest.mark.parametrize(("a", "b"), NOT_OPPOSED)
def test_not_opposed(a, b):
    assert not opposed(claim(a), claim(b)) and not opposed(claim(b), claim(a))


def test_threshold_lies_between_distinct_principles_and_paraphrases():
    distinct = []
    for path in CONSTITUTIONS:
        principles = [p for p in load_constitution(path).principles if p.own_wording]
        for alike, texts in (
            (STATEMENT_ALIKE, [p.statement for p in principles]),
            (REQUESTS_ALIKE, [f"{p.critique} {p.revision}" for p in principles]),
        ):
            distinct += [cosine(a, b) / alike for a, b in combinations(vectors(texts), 2)]
    assert len(distinct) == 2 * (351 + 91 + 45)
    assert max(distinct) < 0.75  # of the threshold
    general = load_constitution(Path(__file__).parents[2] / "constitution" / "general.yaml")
    for principle_id, paraphrase in PARAPHRASES:
        *others, last = vectors([*(p.statement for p in general.principles), paraphrase])
        scores = {p.id: cosine(v, last) for p, v in zip(general.principles, others, strict=True)}
        assert max(scores, key=scores.__getitem__) == principle_id
        assert scores.pop(principle_id) >= STATEMENT_ALIKE > 2 * max(scores.values())


def test_vectors_are_unit_and_cosine_ignores_order_case_and_endings():
    a, b, c = vectors(["Never INVENT quotations.", "quotation: inventing, never", "Bake a cake."])
    assert cosine(a, a) == pytest.approx(1.0)
    assert cosine(a, b) == cosine(b, a) > 0.7
    assert cosine(a, c) < 0.05


def test_texts_without_words_are_like_nothing():
    blank, text = vectors(["...", "Never invent facts."])
    assert cosine(blank, text) == cosine(blank, blank) == 0.0
    assert not claim("").alike(claim(""))


def test_sentences_end_at_closing_quotes_too():
    assert sentences("A judge is told: “Be kind.” Is it? Yes; no") == ["A judge is told: “Be kind.”", "Is it?", "Yes;", "no"]


@pytest.mark.parametrize(
    "forms", ["refuse refuses refused refusing", "stop stops stopped stopping", "deny denies denied", "process processes"]
)
def test_stem_joins_forms(forms):
    assert len({stem(w) for w in forms.split()}) == 1
