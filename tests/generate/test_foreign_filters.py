"""Headings and talk about a revision in the languages of the shipped templates: German, Spanish and Chinese."""

import pytest

from cai.generate.filters import drop_rule, without_heading

DE = "Sprich zuerst mit deinem Nachbarn. Die meisten Streitigkeiten enden bei einer Tasse Kaffee."
ES = "Habla primero con tu vecino. La mayoría de las peleas terminan con una taza de café."
ZH = "先和邻居谈谈。大多数争吵都在一杯咖啡之后结束。"


@pytest.mark.parametrize(
    ("heading", "body"),
    [
        ("Hier ist die überarbeitete Antwort:\n\n", DE),
        ("Klar! Hier ist eine bessere Fassung:\n", DE),
        ("Überarbeitete Antwort: ", DE),
        ("**Überarbeitung:**\n\n", DE),
        ("Meine verbesserte Antwort:\n", DE),
        ("Antwort: ", DE),
        ("Ich habe die Antwort überarbeitet:\n", DE),
        ("Aquí tienes la respuesta revisada:\n\n", ES),
        ("Claro, aquí está una versión mejorada de la respuesta:\n", ES),
        ("**Respuesta revisada:** ", ES),
        ("Respuesta: ", ES),
        ("He reescrito la respuesta para que sea más amable:\n", ES),
        ("以下是修改后的回答：\n\n", ZH),
        ("好的，这是改进后的版本：", ZH),
        ("修改后的回答：", ZH),
        ("**回答：**\n", ZH),
        ("Revision：", ZH),
    ],
)
def test_a_heading_is_taken_off(heading: str, body: str) -> None:
    assert without_heading(heading + body) == body
    assert drop_rule(body, "c", "r", "helpful", True) is None


@pytest.mark.parametrize(
    "text",
    [
        f"Kritik: Der Ton war grob.\n\n{DE}",
        f"{DE}\n\nDiese Antwort vermeidet jede Beleidigung.",
        f"Ich habe die Antwort so umgeschrieben, dass sie höflich ist. {DE}",
        f"Deine letzte Antwort war zu lang. {DE}",
        f"Die Kritik ist berechtigt. {DE}",
        f"{DE}\n\nMensch: Und dann?",
        f"Crítica: el tono era brusco.\n\n{ES}",
        f"{ES}\n\nEsta respuesta evita los insultos.",
        f"He modificado mi respuesta para que sea amable. {ES}",
        f"Tu última respuesta era demasiado larga. {ES}",
        f"{ES}\n\nUsuario: ¿y luego?",
        f"批评：语气太粗鲁。\n\n{ZH}",
        f"上一个回答太长了。{ZH}",
        f"{ZH}\n\n这个回答更有礼貌。",
        f"根据上述批评，{ZH}",
        f"{ZH}\n用户：然后呢？",
        "Critique: the tone was rude.\n\nTalk to your neighbour first.",
    ],
)
def test_talk_about_the_revision_is_dropped(text: str) -> None:
    assert drop_rule(without_heading(text), "c", "r", "helpful", True) == "leaked_meta"


@pytest.mark.parametrize(
    "text",
    [
        "Die Antwort ist 42. Die neue Version des Liedes hat Trommeln.",
        "Ich habe die Wohnung verändert: jetzt ist sie hell.",
        "Hier ist ein Rezept für Brot: Mehl, Wasser, Salz.",
        "Der Entwurf sieht höhere Steuern vor. Kritik kam von allen Seiten.",
        "Das ist einfach: warten.",
        "La respuesta es 42. La nueva versión de la canción tiene tambores.",
        "Aquí tienes una receta de pan: harina, agua y sal.",
        "He quitado la mancha con vinagre. La crítica elogió la película.",
        "答案是42。新版本的歌曲有鼓声。",
        "以下是三个建议：散步、跑步、游泳。",
        "批评家称赞了这部电影。用户可以在设置里更改。",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert without_heading(text) == text and drop_rule(text, "c", "r", "helpful", True) is None
