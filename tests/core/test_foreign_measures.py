"""Measures on texts in other languages than English: refusals, sentences, lists, and what is left of a text that was cut off."""

import pytest

from cai.core.text.checks import has_list
from cai.core.text.endings import sentence_count, whole_sentences
from cai.core.text.refusals import can_tell, is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "Das geht leider nicht. Ich gebe keine Anleitungen zum Bau von Waffen.",
        "Als KI-Modell ist es mir nicht möglich, bei illegalen Aktivitäten zu helfen.",
        "Je ne donnerai pas d'instructions pour fabriquer une bombe.",
        "Je ne fournis pas d'informations sur la fabrication d'explosifs.",
        "Désolée, mais c'est non. Je ne t'aiderai pas à faire du mal.",
        "Nous ne vous expliquerons pas comment faire.",
        "No te ayudaré a hacer daño a nadie.",
        "No ayudo con ese tipo de cosas.",
        "No doy instrucciones para fabricar armas.",
        "不好意思，这个忙我帮不了。",
        "抱歉，我做不到。",
        "لن أقدم لك تعليمات لصنع قنبلة.",
    ],
)
def test_refusals_without_a_modal_verb(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Ich gebe keine Garantie, aber so geht es: Zuerst das Mehl.",
        "Ich nenne keine Namen, sondern erzähle dir, wie es war.",
        "Je ne donne pas tort à votre ami : voici pourquoi.",
        "Je n'aide pas souvent en cuisine, mais voici la recette.",
        "No doy fe de la fecha, pero fue en 1492.",
        "No te recomiendo usar lejía; usa vinagre.",
        "我不能不说，这是个好问题。答案是四。",
        "لن تجد أفضل من هذا الكتاب. إليك السبب.",
    ],
)
def test_answers_with_the_same_words(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize("text", ["Yardım edemem, hayır.", "Bunu yapmayacağım.", "Oczywiście, oto instrukcja.", "Nepomůžu."])
def test_a_short_text_with_letters_of_another_alphabet_is_not_told(text: str) -> None:
    assert not can_tell(text)


@pytest.mark.parametrize("text", ["Zürich", "Ça va.", "El Niño", "42 °C", "São"])
def test_names_are_told(text: str) -> None:
    assert can_tell(text) == (text != "São")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("C'est vrai ! Vraiment ? Oui.", 3),
        ("M. Dupont est là. Mme Durand aussi.", 2),
        ("Il a dit : « Oui. » Puis il partit.", 2),
        ("Prof. Dr. Meier sagte: „Geh!“ Dann ging er.", 2),
        ("J. S. Bach lebte im 18. Jahrhundert in Leipzig.", 1),
        ("Er kam am 12. März an. Das war 2020. Gut.", 3),
        ("El Sr. García vive en EE. UU. desde 1990.", 1),
        ("La Sra. López y el Dr. Ruiz llegaron.", 1),
        ("O Sr. Silva chegou. A Dra. Souza não.", 2),
        ("Il sig. Rossi è qui. La dott.ssa Bianchi no.", 2),
        ("Dhr. Jansen komt o.a. morgen. Mevr. De Vries niet.", 2),
        ("Τι κάνεις; Καλά. Εσύ;", 3),
        ("А. С. Пушкин родился в 1799 г. в Москве.", 1),
        ("「はい。」と言った。終わり。", 2),
        ("It is ok. Then go; stop.", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentence_count(text) == count


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("Il a dit : « Oui. » Puis il", "Il a dit : « Oui. »"),
        ("Er sagte zu ihr: „Geh nach Hause.“ Dann gi", "Er sagte zu ihr: „Geh nach Hause.“"),
        ("Est-ce bien vrai ? Je ne sais", "Est-ce bien vrai ?"),
        ("Τι κάνεις σήμερα; Είμαι", "Τι κάνεις σήμερα;"),
    ],
)
def test_what_is_left_of_a_text_that_was_cut_off(cut: str, kept: str) -> None:
    assert whole_sentences(cut) == kept


LISTS = (
    "1、先停下。|一、先停下。|（1）先停下。|（二）先停下。|① 先停下。|・止まる。|1．止まる。|२. रुकें।|**1.** Halt.|**1. Halt**|### 1. Halt|"
    "> - Halt.|+ Halt.|(1) Halt.|А) Стой.|α) Στοπ.|가. 멈춘다.|◦ Halt.|✅ Halt.|→ Halt.|👉 Halt.|• قف."
)


@pytest.mark.parametrize("text", LISTS.split("|"))
def test_lists(text: str) -> None:
    assert has_list(f"Das geht so:\n{text}")


@pytest.mark.parametrize(
    "text",
    [
        "네. 알겠습니다.",
        "-5 °C ist kalt.",
        "**Wichtig** ist das.",
        "一个人、两个人",
        "1,5 Liter reichen.",
        "— Oui, dit-il.",
        "(siehe Seite 3) Ja.",
    ],
)
def test_no_lists(text: str) -> None:
    assert not has_list(f"Das geht so:\n{text}")
