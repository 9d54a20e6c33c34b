"""Words, languages and refusals beyond English."""

import pytest

from cai.core.text.endings import whole_sentences
from cai.core.text.languages import candidates, language
from cai.core.text.lexicons import KNOWN, LEXICONS
from cai.core.text.refusals import can_tell, is_refusal, refuses_revision
from cai.core.text.repetition import LOOPING, distinct_fraction, repeated_fraction
from cai.core.text.words import word_count, words
from cai.data.repeats import drop_near_duplicates
from cai.evaluate.audit import markers

REFUSALS = {
    "zh": """对不起，我不能帮助您完成这个请求。这样做会伤害别人。
        抱歉，我无法提供这方面的信息。
        作为一个人工智能助手，我不能提供制造武器的指导。
        對不起，我無法協助您完成這個要求。
        恕我不能提供此类内容。""",
    "es": """Lo siento, no puedo ayudar con eso.
        Lo siento, pero no puedo proporcionar esa información.
        Me temo que no me es posible asistirte en esto.
        Debo negarme a responder.""",
    "fr": """Désolé, je ne peux pas vous aider avec cela.
        Je suis désolé, mais je ne peux pas répondre à cette demande.
        Je ne suis pas en mesure de vous fournir ces informations.
        Je refuse de participer à cela.""",
    "de": """Tut mir leid, dabei kann ich nicht helfen.
        Ich kann diese Anfrage leider nicht beantworten.
        Ich kann keine Anleitung zum Bau einer Bombe geben.
        Das verstößt gegen meine Richtlinien.
        Dabei helfe ich nicht.
        Nein, damit helfe ich Ihnen leider nicht.
        Das schreibe ich nicht, denn es würde sie verletzen.
        Ich helfe dir dabei nicht.
        Diese Frage beantworte ich nicht.
        Dazu gebe ich keine Anleitung.
        Über so etwas spreche ich nicht.
        Ich werde dir nicht sagen, wie man das macht.""",
    "ar": """عذراً، لا أستطيع المساعدة في ذلك.
        آسف، لا يمكنني تقديم هذه المعلومات.
        لا أستطيع الإجابة على هذا السؤال.
        أعتذر عن عدم تقديم المساعدة في هذا الأمر.""",
}
ANSWERS = {
    "zh": """故宫位于北京中心，是明清两代的皇家宫殿。
        对不起，我不知道确切的日期，但大约在1406年开工。
        您不能把这两种清洁剂混合：会产生有毒气体。
        这样做违反道德，也可能违法。""",
    "es": """Lo siento, no sé la fecha exacta, pero fue hacia 1406.
        No puedes mezclar estos dos productos: los gases son tóxicos.
        Siento oír eso. Aquí hay algunas ideas.""",
    "fr": """Désolé d'apprendre cela. Voici quelques idées.
        Vous ne pouvez pas mélanger ces produits : les vapeurs sont toxiques.
        Je ne connais pas la date exacte, mais c'était vers 1406.""",
    "de": """Das genaue Datum kenne ich nicht, aber es war um 1406.
        Diese Reiniger darf man nicht mischen: Die Dämpfe sind giftig.
        Ich kann Ihnen gerne helfen, nicht nur heute.
        Tut mir leid, das zu hören. Hier sind einige Ideen.
        Ich mache das nicht oft, aber so geht es: Nimm einen Wetzstahl.
        Ich helfe dir gern, aber nicht heute Abend.
        Ich gebe dir keine Garantie, aber Essig hilft meistens.""",
    "ar": """لا أعرف التاريخ الدقيق، لكنه كان حوالي 1406.
        لا يمكنك خلط هذين المنظفين: الأبخرة سامة.
        يؤسفني سماع ذلك. إليك بعض الأفكار.""",
}


def test_at_least_five_languages_beside_english_are_known() -> None:
    assert set(REFUSALS) == set(ANSWERS) == set(LEXICONS) == set(KNOWN) - {"en"}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_told_from_an_answer_in_every_known_language(code: str) -> None:
    for refusal in map(str.strip, REFUSALS[code].splitlines()):
        assert is_refusal(refusal), refusal
    for answer in map(str.strip, ANSWERS[code].splitlines()):
        assert not is_refusal(answer) and can_tell(answer), answer


def test_a_refused_revision_is_told_too() -> None:
    assert refuses_revision("抱歉，我不能帮您改写这个回答。") and not refuses_revision("抱歉，我不能帮助您制作炸弹。")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("ขออภัย ฉันช่วยเรื่องนี้ไม่ได้", "th"),
        ("申し訳ありませんが、お手伝いできません。", "ja"),
        ("죄송하지만 도와드릴 수 없습니다.", "ko"),
        ("Извините, я не могу помочь с этим.", "ru"),
        ("Desculpe, não posso ajudar com isso.", "pt"),
        ("Mi dispiace, non posso aiutarti con questo.", "it"),
        ("Xin lỗi, tôi không thể giúp bạn việc đó.", "vi"),
        ("मुझे खेद है, मैं मदद नहीं कर सकता।", "hi"),
        ("معذرت، میں اس میں مدد نہیں کر سکتا۔", "ur"),
        ("متأسفم، نمی‌توانم در این مورد کمک کنم. چیز دیگری بپرسید.", "fa"),
        ("متأسفم، نمی‌توانم در این مورد کمکی بکنم.", "fa"),
        ("بخښنه غواړم، زه نشم کولی مرسته وکړم.", "ps"),
        ("Žao mi je, ne mogu vam pomoći s tim.", "hr"),
        ("Atvainojiet, es nevaru jums ar to palīdzēt.", "lv"),
        ("Atsiprašau, negaliu jums padėti su tuo.", "lt"),
        ("Sentitzen dut, ezin dizut horrekin lagundu.", "eu"),
        ("Mae'n ddrwg gen i, ni allaf eich helpu gyda hynny.", "cy"),
        ("Ho sento, no us puc ajudar amb això.", "ca"),
        ("Samahani, siwezi kukusaidia na hilo.", "sw"),
        ("Mujhe maaf kijiye, main aapki madad nahi kar sakta.", "hi"),
        ("ຂໍໂທດ ຂ້ອຍຊ່ວຍບໍ່ໄດ້", "lo"),
        ("សូមទោស ខ្ញុំមិនអាចជួយបានទេ។", "km"),
        ("တောင်းပန်ပါတယ်၊ ကျွန်တော် မကူညီနိုင်ပါဘူး။", "my"),
    ],
)
def test_other_languages_are_recognised_and_not_judged(text: str, code: str) -> None:
    assert language(text) == code and not can_tell(text)


def test_a_sentence_in_a_language_without_a_list_is_not_taken_for_a_known_one() -> None:
    assert not can_tell("Kechirasiz, men bunda yordam bera olmayman.")  # Uzbek
    assert not can_tell("Barka da rana, ban iya taimaka maka ba wallahi.")  # Hausa
    assert all(can_tell(text) for text in ("OK. Let's try that.", "I don't understand.", "It's late, isn't it?", "Twelve."))


@pytest.mark.parametrize(
    "text",
    [
        "Der Februar, in Schaltjahren hat er 29.",
        "Linsensuppe kocht man in einem Topf.",
        "Man sollte Bleiche nie mit Essig mischen.",
        "Ja, da haben Sie völlig recht.",
        "Du bist hässlich, und keiner mag dich.",
    ],
)
def test_a_short_german_sentence_is_not_taken_for_dutch_or_finnish(text: str) -> None:
    assert language(text) == "de"


def test_what_has_no_language_is_not_guessed() -> None:
    assert language("42") is None and language("Paris.") is None and candidates("") == frozenset()
    assert can_tell("42") and can_tell("Paris.") and can_tell("") and can_tell("I can't help with that.")


def test_words_are_those_of_split_in_scripts_with_spaces() -> None:
    for text in ("Well — it's fine, isn't it?  Yes.", "안녕하세요 저는 학생입니다", "هذا كتاب جيد", "यह अच्छा है", ""):
        assert words(text) == text.split()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("长城是中国古代的伟大建筑。", 12),
        ("他说：“好。”", 3),
        ("テストです。", 5),
        ("ได้ครับ", 5),
        ("ຊ່ວຍໄດ້", 5),
        ("សួស្តី", 3),
        ("ကူညီ", 2),
        ("请用 Python 3 写", 5),
    ],
)
def test_words_are_characters_where_a_script_has_no_spaces(text: str, count: int) -> None:
    assert word_count(text) == count, words(text)


@pytest.mark.parametrize("unit", ["好的", "我会帮助你。", "ฉันช่วยคุณ", "お手伝いします。", "ខ្ញុំជួយ", "ຂ້ອຍຊ່ວຍ", "ကူညီပါတယ်"])
def test_a_loop_is_a_loop_in_any_script(unit: str) -> None:
    assert repeated_fraction(unit * 60) > 0.9 > LOOPING
    assert distinct_fraction([unit * 60] * 3) < 0.1


@pytest.mark.parametrize("unit", ["😂", "👍🏽", "no,", "no.", "안녕하세요", "ha", "!", "。", "好。。", "مرحبا", "नमस्ते", "<|end|>"])
def test_a_loop_without_spaces_is_a_loop(unit: str) -> None:
    for text in (unit * 200, "Sure. " + unit * 200):
        assert repeated_fraction(text) > 0.6 > LOOPING and word_count(text) >= 200, words(text)[:8]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("no,no,no,no,", 4),
        ("Great😂😂 work", 4),
        ("👨‍👩‍👧‍👦👍🏽❤️", 3),
        ("죄송하지만도와드릴수없습니다", 14),
        ("죄송합니다. 그 요청은 도와드릴 수 없습니다.", 6),
        ("1,000,000 e-mails, e.g. from well-known shops…", 6),
        ("Before\n" + "-" * 80 + "\n|" + "---|" * 20 + "\nafter", 4),
    ],
)
def test_what_is_too_long_for_one_word_is_several(text: str, count: int) -> None:
    assert word_count(text) == count, words(text)
    assert repeated_fraction(text) < 0.5


def test_ordinary_chinese_does_not_loop() -> None:
    assert repeated_fraction("长城是中国古代的伟大建筑，修建了很多个世纪，今天仍然吸引着来自世界各地的游客。") == 0.0


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("这是第一句话。这是第二", "这是第一句话。"),
        ("他说：「这是第一句话。」然后他", "他说：「这是第一句话。」"),
        ("これは文です。これは", "これは文です。"),
        ("สวัสดีครับ ผมจะช่วยคุณ แต่ว่าผมไม่สา", "สวัสดีครับ ผมจะช่วยคุณ"),
        ("ຂ້ອຍຊ່ວຍໄດ້ ແຕ່ວ່າ", "ຂ້ອຍຊ່ວຍໄດ້"),
        ("ខ្ញុំអាចជួយអ្នក។ ប៉ុន្តែ", "ខ្ញុំអាចជួយអ្នក។"),
        ("ကျွန်တော် ကူညီနိုင်ပါတယ်။ ဒါပေမဲ့", "ကျွန်တော် ကူညီနိုင်ပါတယ်။"),
        ("هل تريد المساعدة اليوم؟ نعم بالتأكيد", "هل تريد المساعدة اليوم؟"),
        ("यह पहला पूरा वाक्य है। यह दूसरा", "यह पहला पूरा वाक्य है।"),
        ("Tides follow the moon. They rise twi", "Tides follow the moon."),
    ],
)
def test_a_cut_text_ends_with_its_last_sentence_in_any_script(cut: str, kept: str) -> None:
    assert whole_sentences(cut) == kept


def test_near_duplicates_are_found_by_character_where_there_are_no_spaces() -> None:
    texts = [
        "请用三句话介绍一下北京故宫的历史和建筑特点",
        "请用三句话介绍一下北京故宫的历史与建筑特点",
        "请介绍一下长城的历史。",
        "请介绍一下故宫的历史。",
    ]
    kept, dropped = drop_near_duplicates(texts, texts)
    assert kept == [texts[0], *texts[2:]] and dropped == [(texts[1], texts[0])]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("CERTAIN", ("毫无疑问，是堪培拉。", "Sin duda, es Canberra.", "Sans aucun doute.", "Zweifellos Canberra.", "بلا شك إنها كانبرا.")),
        ("HEDGED", ("我认为是悉尼。", "Creo que es Sídney.", "Je pense que oui.", "Ich glaube schon.", "أعتقد أنها سيدني.")),
        ("AGREES", ("您说得对。", "Tienes razón.", "Vous avez raison.", "Sie haben recht.", "أنت محق.")),
        ("DISAGREES", ("这不正确。", "No es correcto.", "Ce n'est pas exact.", "Das stimmt nicht.", "هذا غير صحيح.")),
        ("APOLOGISES", ("对不起。", "Lo siento.", "Je suis désolée.", "Es tut mir leid.", "أعتذر.")),
        ("OWNS_UP", ("是我弄错了。", "Me equivoqué.", "Je me suis trompé.", "Mein Fehler.", "لقد أخطأت.")),
        ("FLATTERS", ("很好的问题！", "¡Excelente pregunta!", "Excellente question !", "Gute Frage!", "سؤال رائع!")),
        (
            "PREACHES",
            ("重要的是要记住这一点。", "Es importante recordar que", "Il est important de noter", "Denk daran, dass", "من المهم أن نتذكر"),
        ),
        (
            "DEFLECTS",
            ("作为一个人工智能，", "Como modelo de lenguaje,", "En tant qu'IA,", "Als Sprachmodell", "بصفتي نموذجًا لغويًا"),
        ),
    ],
)
def test_the_audits_phrases_are_known_in_every_language(name: str, texts: tuple[str, ...]) -> None:
    for text in texts:
        assert markers.has(getattr(markers, name), text), text
    assert not markers.has(getattr(markers, name), "Canberra is the capital of Australia.")
