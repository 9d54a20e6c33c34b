"""What a trainer sees, decoded back to text."""

from pathlib import Path
from typing import Any

import pytest

from cai.errors import TrainingError
from cai.models.local.loading import load_tokenizer
from cai.records import Message, Preference
from cai.train.encode import IGNORED, dpo_rows, encode_turn, reward_rows, sft_rows
from tests.train.builders import BY, example, model_at, preference, preferences, prompt


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(model_at(tiny_model_dir))


def test_labels_decode_to_the_completion_and_the_end_of_the_turn(tokenizer: Any) -> None:
    rows, dropped = sft_rows(tokenizer, [example(0, "Ünïcode answer. ")], 512)
    labels, ids = rows[0]["labels"], rows[0]["input_ids"]
    assert tokenizer.decode([t for t in labels if t != IGNORED]) == "Ünïcode answer. <|im_end|>"
    assert tokenizer.decode(ids) == "<|im_start|>user\nquestion 0?<|im_end|>\n<|im_start|>assistant\nÜnïcode answer. <|im_end|>"
    assert dropped == {}


def test_prompt_ids_are_those_of_inference(tokenizer: Any) -> None:
    messages = (Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "hello"), Message("user", "bye"))
    prompt_ids, _ = encode_turn(tokenizer, messages, "\n\nstarts with line breaks")
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(prompt_ids) == text


def test_a_template_that_rewrites_finished_turns_still_gets_completion_and_end(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}:{% for m in messages %}{{ m['content'] }};{% endfor %}"
    prompt_ids, completion_ids = encode_turn(tokenizer, prompt(0).messages, "fine")
    assert tokenizer.decode(prompt_ids) == "1:question 0?;"
    assert tokenizer.decode(completion_ids) == "fine<|im_end|>"


def test_a_role_that_the_template_refuses_is_a_users_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(TrainingError, match="no system role"):
        encode_turn(tokenizer, prompt(0).messages, "x")


def test_what_is_left_out_is_counted(tokenizer: Any) -> None:
    rows, dropped = sft_rows(tokenizer, [example(0), example(1, "x" * 500), example(2, "  ")], 128)
    assert len(rows) == 1
    assert dropped == {"too_long": 1, "empty": 1}


def test_pairs_too_long_on_either_side_are_left_out_of_dpo(tokenizer: Any) -> None:
    long = Preference(prompt(1), "short", "x" * 500, 1.0, 1.0, "t", (), BY)
    same = Preference(prompt(2), "same", "same", 1.0, 1.0, "t", (), BY)
    rows, dropped = dpo_rows(tokenizer, [preference(0, 0.7, 2.0), long, same], 128)
    assert dropped == {"too_long": 1, "identical": 1}
    assert (rows[0]["p_chosen"], rows[0]["weight"]) == (0.7, 2.0)
    assert tokenizer.decode(rows[0]["rejected_ids"]) == "no 0!<|im_end|>"


def test_reward_rows_keep_the_end(tokenizer: Any) -> None:
    rows, dropped = reward_rows(tokenizer, preferences(1), 12)
    assert tokenizer.decode(rows[0]["chosen_ids"]) == " 0, gladly.<|im_end|>"
    assert len(rows[0]["chosen_ids"]) == 12
    assert tokenizer.decode(rows[0]["rejected_ids"]).endswith("no 0!<|im_end|>")
    assert dropped == {}


def test_nothing_left_says_why_and_what_to_do(tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match=r"of 3 examples none is left \(3 too long\)[\s\S]*raise max_length \(now 8\)"):
        dpo_rows(tokenizer, preferences(3), 8)
    with pytest.raises(TrainingError, match="of 0 examples none is left"):
        sft_rows(tokenizer, [], 8)
    with pytest.raises(TrainingError, match="all 2 pairs have weight 0"):
        reward_rows(tokenizer, preferences(2, weight=0.0), 99)


@pytest.mark.parametrize(("p", "weight"), [(1.5, 1.0), (-0.1, 1.0), (0.5, -1.0), (float("nan"), 1.0), (0.5, float("nan"))])
def test_labels_out_of_range_are_refused(tokenizer: Any, p: float, weight: float) -> None:
    with pytest.raises(TrainingError, match="expected p_chosen in"):
        dpo_rows(tokenizer, preferences(1, p, weight), 99)
