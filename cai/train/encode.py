"""From records to token ids: what each trainer sees, exactly as the model sees it when it answers.

The prompt is rendered with the tokenizer's chat template and tokenized alone, as it is at inference; the completion follows, up to
and including the end of the turn. TRL tokenizes prompt and completion in one go instead and looks for where they part, which can
merge a token across the border; and it cuts or drops long examples without counting. Here whatever is left out is counted.
"""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from cai.errors import TrainingError
from cai.records import Message, Preference, SFTExample

IGNORED = -100
"""Label of a position that is not trained on (PyTorch's `ignore_index`)."""


def encode_turn(tokenizer: Any, messages: Sequence[Message], completion: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a conversation and of the assistant's next turn, which ends with the end-of-turn token.

    A template that renders a finished turn unlike an open one gets the completion and the tokenizer's end token, which is what the
    model writes at inference.

    Args:
        tokenizer: with a chat template.
        messages: the conversation up to the turn.
        completion: the turn's text.

    Raises:
        TrainingError: the template can't render the conversation.
    """
    chat = [{"role": m.role, "content": m.content} for m in messages]
    prompt = _render(tokenizer, chat, add_generation_prompt=True)
    full = _render(tokenizer, [*chat, {"role": "assistant", "content": completion}], add_generation_prompt=False)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not full.startswith(prompt):
        return prompt_ids, [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = tokenizer(full[len(prompt) :], add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id in ids:  # templates may write a line break after it, which the model never gets to write
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
    return prompt_ids, ids


def _render(tokenizer: Any, chat: list[dict[str, str]], add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as e:
        roles = " ".join(m["role"] for m in chat)
        raise TrainingError(
            f"the model's chat template can't render a conversation with the roles {roles}: {e}\n"
            "Fix: leave out the roles it doesn't know (often `system`), or train a model whose template knows them"
        ) from e


def sft_rows(tokenizer: Any, examples: Sequence[SFTExample], max_length: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return rows with `input_ids` and `labels` (the prompt masked), and how many examples were left out and why.

    Args:
        tokenizer: with a chat template.
        examples: what to imitate.
        max_length: longest prompt plus completion in tokens; longer ones are left out, because a completion that is cut teaches the
            model not to end.

    Raises:
        TrainingError: nothing is left.
    """
    rows, dropped = [], Counter[str]()
    for example in examples:
        prompt_ids, completion_ids = encode_turn(tokenizer, example.prompt.messages, example.completion)
        if not example.completion.strip():
            dropped["empty"] += 1
        elif len(prompt_ids) + len(completion_ids) > max_length:
            dropped["too_long"] += 1
        else:
            rows.append({"input_ids": prompt_ids + completion_ids, "labels": [IGNORED] * len(prompt_ids) + completion_ids})
    _require(rows, len(examples), dropped, max_length)
    return rows, dict(dropped)


def dpo_rows(tokenizer: Any, preferences: Sequence[Preference], max_length: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, `p_chosen` and `weight`, and how many pairs were left out and why.

    A pair is left out when either side is longer than `max_length` tokens with its prompt: a cut on one side only would shift the
    balance of the two.

    Raises:
        TrainingError: nothing is left.
    """
    rows, dropped = [], Counter[str]()
    for preference, prompt_ids, chosen_ids, rejected_ids in _encode_pairs(tokenizer, preferences, dropped):
        if len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) > max_length:
            dropped["too_long"] += 1
        else:
            ids = {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
            rows.append({**ids, "p_chosen": float(preference.p_chosen), "weight": float(preference.weight)})
    _require(rows, len(preferences), dropped, max_length)
    return rows, dict(dropped)


def reward_rows(
    tokenizer: Any, preferences: Sequence[Preference], max_length: int, margin: float = 0.0
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return rows with `chosen_ids`, `rejected_ids`, `p_chosen` and `weight`, and how many pairs were left out and why.

    A conversation longer than `max_length` tokens loses its beginning: the response, which is what is judged, is at the end.

    Args:
        tokenizer: with a chat template.
        preferences: judged pairs.
        max_length: longest conversation with its response, in tokens.
        margin: where it is above 0, rows have a `margin` too: |2p − 1| of it.

    Raises:
        TrainingError: nothing is left.
    """
    rows, dropped = [], Counter[str]()
    for preference, prompt_ids, chosen_ids, rejected_ids in _encode_pairs(tokenizer, preferences, dropped):
        chosen, rejected = (prompt_ids + chosen_ids)[-max_length:], (prompt_ids + rejected_ids)[-max_length:]
        if chosen == rejected:
            dropped["identical"] += 1
        else:
            labels = {"p_chosen": float(preference.p_chosen), "weight": float(preference.weight)}
            if margin > 0.0:
                labels["margin"] = margin * abs(2.0 * preference.p_chosen - 1.0)
            rows.append({"chosen_ids": chosen, "rejected_ids": rejected, **labels})
    _require(rows, len(preferences), dropped, max_length)
    return rows, dict(dropped)


def kto_rows(tokenizer: Any, preferences: Sequence[Preference], max_length: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return two rows of each pair, and how many pairs were left out and why.

    Rows have `prompt_ids`, `completion_ids`, `p_desirable`, `weight`, and `KL_completion_ids`: a completion of another prompt, from which
    KTO estimates how far the policy is from its reference. It is set here and not from neighbours in a batch, so that neither the size of
    batches nor the number of processes changes the estimate's terms.

    A label is taken for what it says of each side: chosen is desirable with probability `p_chosen`, rejected with the rest. Both are
    left out where `dpo_rows` would, so that both methods see the same pairs.

    Args:
        tokenizer: with a chat template.
        preferences: judged pairs.
        max_length: longest prompt plus completion in tokens.
        seed: of the rows' order, in which TRL takes them.

    Raises:
        TrainingError: nothing is left.
    """
    pairs, dropped = dpo_rows(tokenizer, preferences, max_length)
    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "p_desirable": p, "weight": pair["weight"]}
        for pair in pairs
        for side, p in (("chosen_ids", pair["p_chosen"]), ("rejected_ids", 1.0 - pair["p_chosen"]))
    ]
    Random(seed).shuffle(rows)
    return [{**row, "KL_completion_ids": _completion_from_elsewhere(rows, i)} for i, row in enumerate(rows)], dropped


def _completion_from_elsewhere(rows: Sequence[dict[str, Any]], i: int) -> list[int]:
    """Return the completion of the nearest row before the i-th that has another prompt, or of the one before it where none is near."""
    before = [rows[(i - k) % len(rows)] for k in range(1, 9)]  # before the first is the last; pairs of one prompt are rarely more
    return next((row for row in before if row["prompt_ids"] != rows[i]["prompt_ids"]), before[0])["completion_ids"]  # type: ignore[no-any-return]


def _encode_pairs(tokenizer: Any, preferences: Sequence[Preference], dropped: Counter[str]) -> Any:
    """Yield each pair with its ids; count those that carry no comparison."""
    for preference in preferences:
        prompt_ids, chosen_ids = encode_turn(tokenizer, preference.prompt.messages, preference.chosen)
        _, rejected_ids = encode_turn(tokenizer, preference.prompt.messages, preference.rejected)
        if not 0.0 <= preference.p_chosen <= 1.0 or not preference.weight >= 0.0:
            raise TrainingError(
                f"preference {preference.id}: p_chosen {preference.p_chosen} and weight {preference.weight}; "
                "expected p_chosen in [0, 1] and weight at least 0"
            )
        if chosen_ids == rejected_ids:
            dropped["identical"] += 1
        else:
            yield preference, prompt_ids, chosen_ids, rejected_ids


def _require(rows: list[dict[str, Any]], given: int, dropped: Counter[str], max_length: int) -> None:
    if not rows:
        why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in dropped.items()) or "none was given"
        fix = f"raise max_length (now {max_length})" if dropped["too_long"] else "look at what the stages before have dropped, and why"
        raise TrainingError(f"nothing to train on: of {given} examples none is left ({why}).\nFix: {fix}")
    if all(row.get("weight", 1.0) == 0.0 for row in rows):
        raise TrainingError(f"nothing to train on: all {len(rows)} pairs have weight 0.\nFix: give a source a weight above 0")
