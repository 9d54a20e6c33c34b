"""Chat templates in the manner of model families, written for these tests: what goes in comes out once, in its place, and ended rightly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cai.core.text.reasoning import opens_reasoning
from cai.errors import ModelError, ReplyError
from cai.models.local.encoding import Encoder
from cai.models.local.engine import template_limits
from cai.models.local.fingerprint import model_fingerprint
from cai.models.local.loading import load_tokenizer
from cai.recipe import ModelSpec
from cai.records import Message


@dataclass(frozen=True)
class Family:
    """A template, the tokens that it writes, and the ones that end a turn and a text."""

    name: str
    template: str
    markers: tuple[str, ...]
    end: str
    eos: str


def header(text: str) -> str:
    """Return the template of a header that is written where the assistant is to go on."""
    return "{% if add_generation_prompt %}" + text + "{% endif %}"


def refusing(condition: str, words: str) -> str:
    """Return the template of a refusal."""
    return f"{{% if {condition} %}}{{{{ raise_exception('{words}') }}}}{{% endif %}}"


EVERY = "{% for m in messages %}"
ODD = "(m.role == 'user') != (loop.index0 % 2 == 0)"
ALTERNATE = EVERY + refusing(ODD, "Conversation roles must alternate user/assistant/user/assistant/...") + "{% endfor %}"
NO_SYSTEM = refusing("messages[0].role == 'system'", "System role not supported")
SPLIT = "{% set told, rest = (messages[0].content, messages[1:]) if messages[0].role == 'system' else ('', messages) %}"
CHATML = EVERY + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = header("<|im_start|>assistant\n")
IM = ("<|im_start|>", "<|im_end|>")
GEMMA = "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
GEMMA_TOKENS = ("<start_of_turn>", "<end_of_turn>", "<eos>")
LLAMA = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
QWEN3 = (
    "{% set ns = namespace(last=0) %}" + EVERY + "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set text = m.content %}{% if m.role == 'assistant' %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last and loop.last %}<think>\n\n</think>\n\n{% endif %}{% endif %}{{ text }}<|im_end|>\n{% endfor %}"
    + header("<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}")
)
FAMILIES = (
    Family(
        "qwen2.5",
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML + ASSISTANT,
        IM,
        "<|im_end|>",
        "<|im_end|>",
    ),
    Family("qwen3", QWEN3, IM, "<|im_end|>", "<|im_end|>"),
    Family(
        "qwen3-thinking",
        EVERY + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + header("<|im_start|>assistant\n<think>\n"),
        IM,
        "<|im_end|>",
        "<|im_end|>",
    ),
    Family(
        "deepseek-r1",
        "{{ bos_token }}" + EVERY + "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
        + header("<｜Assistant｜><think>\n"),
        ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    Family(
        "gemma2",
        "{{ bos_token }}"
        + NO_SYSTEM
        + ALTERNATE
        + EVERY
        + GEMMA
        + "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        + header("<start_of_turn>model\n"),
        GEMMA_TOKENS,
        "<end_of_turn>",
        "<eos>",
    ),
    Family(
        "gemma3",
        "{{ bos_token }}"
        + SPLIT
        + "{% for m in rest %}"
        + refusing(ODD, "Conversation roles must alternate")
        + GEMMA
        + "{% if loop.first and told %}{{ told }}\n\n{% endif %}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        + header("<start_of_turn>model\n"),
        GEMMA_TOKENS,
        "<end_of_turn>",
        "<eos>",
    ),
    Family(
        "mistral-0.1",
        "{{ bos_token }}" + ALTERNATE + EVERY + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
        "{{ m.content }}{{ eos_token }} {% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
        "{% endfor %}",
        ("</s>",),
        "</s>",
        "</s>",
    ),
    Family(
        "mistral-0.3",
        SPLIT
        + "{{ bos_token }}{% for m in rest %}"
        + refusing(ODD, "After the optional system message, roles must alternate")
        + "{% if m.role == 'user' %}[INST] {% if loop.last and told %}{{ told }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]", "</s>"),
        "</s>",
        "</s>",
    ),
    Family(
        "llama3",
        "{{ bos_token }}" + SPLIT + "<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n{{ told | trim }}<|eot_id|>"
        "{% for m in rest %}" + LLAMA + "{% endfor %}" + header("<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "<|end_of_text|>",
    ),
    Family(
        "phi3",
        EVERY + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|end|>",
        "<|endoftext|>",
    ),
    Family(
        "gpt-oss",
        SPLIT + "{% if told %}<|start|>developer<|message|># Instructions\n\n{{ told }}<|end|>{% endif %}{% for m in rest %}"
        "{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}<|start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}" + header("<|start|>assistant"),
        ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>"),
        "<|return|>",
        "<|return|>",
    ),
    Family(
        "vicuna",
        SPLIT + "{% if told %}{{ told }} {% endif %}{% for m in rest %}{% if m.role == 'user' %}USER: {{ m.content }} "
        "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}" + header("ASSISTANT:"),
        ("</s>",),
        "</s>",
        "</s>",
    ),
    Family(
        "granite",
        EVERY + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
        "{% if thinking %}Think first.{% endif %}" + header("<|start_of_role|>assistant<|end_of_role|>"),
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
        "<|end_of_text|>",
    ),
    Family(
        "vision",
        EVERY + "<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}" + ASSISTANT,
        IM,
        "<|im_end|>",
        "<|im_end|>",
    ),
)
NAMED = {family.name: family for family in FAMILIES}
TOLD = (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "Because."), Message("user", "Really?"))


def tokenizer_of(family: Family) -> Any:
    """Return a tokenizer with a token for each byte and each marker."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",  # noqa: S106
        eos_token=family.eos,
        pad_token="<pad>",  # noqa: S106
        additional_special_tokens=[m for m in family.markers if m != family.eos],
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
    )


def prompt_text(family: Family, *messages: Message, **options: Any) -> str:
    """Return what the model reads before it answers."""
    tokenizer = tokenizer_of(family)
    return str(tokenizer.decode(Encoder(tokenizer).prompt(messages, **options)[0]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_turn_is_written_once_and_the_system_turn_wherever_there_is_place(family: Family) -> None:
    text = prompt_text(family, *TOLD)
    assert [text.count(m.content) for m in TOLD] == [1, 1, 1, 1]
    assert text.index("Why?") < text.index("Because.") < text.index("Really?")
    assert text.count("<s>") <= 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_turns_end_with_the_familys_token_and_answers_follow_the_same_text_in_training(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    encoder = Encoder(tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoder.end_id) == family.end
    asked, answered = encoder.turn(TOLD, "Fine.")
    text = tokenizer.decode(answered)
    assert text.endswith(f"Fine.{family.end}") and text.count(family.end) == 1
    assert asked == encoder.prompt(TOLD)[0]
    assert asked + answered[:-1] == encoder.prompt(TOLD, "Fine.")[0]
    assert encoder.answer(answered[:-1]).strip() == "Fine."


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_no_choice_is_read_inside_a_reasoning(family: Family) -> None:
    text = prompt_text(family, *TOLD, answered=True)
    assert opens_reasoning(text) == ""
    assert text.count("<think>") == text.count("</think>")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_consecutive_turns_of_one_role_reach_the_model(family: Family) -> None:
    text = prompt_text(family, Message("user", "One."), Message("user", "Two."))
    assert text.index("One.") < text.index("Two.")


def test_what_strict_families_read() -> None:
    told = (Message("system", "Be brief."), Message("user", "Why?"))
    assert prompt_text(NAMED["gemma2"], *told) == "<s><start_of_turn>user\nBe brief.\n\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    assert prompt_text(NAMED["mistral-0.1"], *told) == "<s>[INST] Be brief.\n\nWhy? [/INST]"
    twice = (Message("user", "One."), Message("user", "Two."))
    assert prompt_text(NAMED["mistral-0.3"], *twice) == "<s>[INST] One.\n\nTwo.[/INST]"
    assert prompt_text(NAMED["deepseek-r1"], told[1], answered=True).endswith("<｜Assistant｜><think>\n\n</think>\n\n")
    with pytest.raises(ReplyError, match="must alternate"):
        prompt_text(NAMED["gemma2"], Message("assistant", "Hello."), Message("user", "Hi"))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("qwen2.5", []),
        ("vision", []),
        ("gemma2", ["no system turn", "alternate", "begin with the assistant"]),
        ("mistral-0.1", ["no system turn", "alternate", "begin with the assistant"]),
        ("gemma3", ["alternate", "begin with the assistant"]),
        ("qwen3-thinking", ["think before every answer"]),
        ("deepseek-r1", ["think before every answer"]),
    ],
)
def test_what_a_template_can_not_take_is_said(family: str, words: list[str]) -> None:
    limits = template_limits("m", tokenizer_of(NAMED[family]))
    assert len(limits) == len(words) and all(word in limit for word, limit in zip(words, limits, strict=True))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            EVERY + "{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + ASSISTANT,
            ["system", "leaves out assistant"],
        ),
        (
            refusing("messages | map(attribute='role') | unique | list | length > 1", "One question") + CHATML + ASSISTANT,
            ["system", "begin with", "with an assistant turn"],
        ),
        (CHATML, [r"no header before the answer: '<|im_start|>assistant\n' is missing"]),
        (CHATML + "<|im_start|>assistant\n", [r"an unfinished header before the answer: '\n' is missing"]),
        (CHATML + "{{ '<|im_start|>assistant\n' }}", []),
    ],
    ids=["drops answers", "refuses answers", "no header", "Jinja cuts the last newline", "always a header"],
)
def test_what_a_template_leaves_out_is_said(template: str, words: list[str]) -> None:
    tokenizer = tokenizer_of(NAMED["qwen2.5"])
    tokenizer.chat_template = template
    limits = template_limits("m", tokenizer)
    assert len(limits) == len(words) and all(word in limit for word, limit in zip(words, limits, strict=True))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0].text.strip() }}", "can't write this conversation: .*"),
        ("", "leaves out what the user says"),
        (EVERY + "<|im_start|>{{ m.role }}<|im_end|>{% endfor %}" + ASSISTANT, "leaves out what the user says"),
    ],
    ids=["fails", "empty", "roles alone"],
)
def test_a_template_that_can_write_nothing_is_refused_before_the_first_call(template: str, why: str) -> None:
    tokenizer = tokenizer_of(NAMED["qwen2.5"])
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=rf"m: .*{why}\.\nFix: correct the model's chat_template"):
        template_limits("m", tokenizer)


def test_a_late_system_turn_keeps_its_place_where_the_role_is_folded() -> None:
    one, so, two = Message("user", "One?"), Message("assistant", "So."), Message("user", "Two?")
    told, late = Message("system", "Be brief."), Message("system", "Now shout.")
    asked = "<s><start_of_turn>user\n{}<end_of_turn>\n"
    answered = f"{asked}<start_of_turn>model\nSo.<end_of_turn>\n<start_of_turn>user\n{{}}<end_of_turn>\n"
    for turns, expected in (
        ((told, one, so, two), answered.format("Be brief.\n\nOne?", "Two?")),
        ((told, one, so, late, two), answered.format("Be brief.\n\nOne?", "Now shout.\n\nTwo?")),
        ((one, so, two, late), answered.format("One?", "Two?\n\nNow shout.")),
        ((one, late, two), asked.format("One?\n\nNow shout.\n\nTwo?")),
        ((one, late), asked.format("One?\n\nNow shout.")),
    ):
        assert prompt_text(NAMED["gemma2"], *turns) == f"{expected}<start_of_turn>model\n"


def test_the_thinking_switch_is_set_where_a_template_has_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file in tiny_model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(QWEN3)
    specs = [ModelSpec(path=str(folder), thinking=thinking) for thinking in (None, True, False)]
    texts = []
    for spec in specs:
        tokenizer = load_tokenizer(spec)
        texts.append(tokenizer.decode(Encoder(tokenizer).prompt([Message("user", "Hi")])[0]))
    assert texts[0] == texts[1] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts[2] == texts[0] + "<think>\n\n</think>\n\n"
    assert len({model_fingerprint(spec) for spec in specs}) == 3
    tokenizer.save_pretrained(folder)  # as training does, beside an adapter
    again = load_tokenizer(specs[1])
    assert again.decode(Encoder(again).prompt([Message("user", "Hi")])[0]) == texts[0]
    (folder / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(ModelError, match="no switch"):
        load_tokenizer(specs[2])
