"""Encode records as token ids for the trainers, exactly as the model sees them at inference.

`Encoder` encodes both prompt and completion, up to and including the end-of-turn token. TRL tokenizes them together, which can merge a
token across the border, and it truncates or drops long examples without counting them. Here every dropped example is counted, by reason.

A completion that was cut at a token limit has no end-of-turn token where the policy is trained to write it (SFT, DPO, KTO): the policy
would learn to stop there. Reward models read their score at that token, so their rows always have it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import Any

from cai.errors import ReplyError, TrainingError
from cai.models.local.encoding import Encoder
from cai.records import Message, Preference, SFTExample

IGNORED = -100
"""Label of a position that is not trained on (PyTorch's `ignore_index`)."""


def encode_turn(
    tokenizer: Any, messages: Sequence[Message], completion: str, *, ended: bool = True, reasoning: str = ""
) -> tuple[list[int], list[int]]:
    """Return the token ids of a conversation and of the assistant's next turn, as `Encoder.turn` does.

    Args:
        ended: False for a text that was cut at a token limit: the token that ends the turn is then left out.
    """
    try:
        return encoder_of(tokenizer).turn(messages, completion, ended=ended, reasoning=reasoning)
    except ReplyError as e:
        roles = " ".join(m.role for m in messages)
        raise TrainingError(
            f"the model's chat template can't render a conversation with the roles {roles}: {e.detail}\n"
            "Fix: remove the roles that the template doesn't support, or train a model whose template supports them"
        ) from e


def encoder_of(tokenizer: Any) -> Encoder:
    """Return the encoder of a tokenizer, the same one for its current template."""
    return _encoder(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=4)
def _encoder(tokenizer: Any, template: str) -> Encoder:
    return Encoder(tokenizer)


def sft_rows(
    tokenizer: Any, examples: Sequence[SFTExample], max_length: int, *, soft_targets: bool = False, thinking: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return rows with `input_ids` and `labels` (the prompt masked), and the number of dropped examples by reason.

    Args:
        max_length: longest prompt plus completion, in tokens. Longer examples are dropped, because a truncated completion teaches the
            model not to end its turn.
        soft_targets: whether rows also have `told` and `forced` (see `told_parts`), if any example has parts.
        thinking: whether the examples' reasoning is part of the completion. Such a completion is learned as its tokens, without a teacher.
    """
    rows, dropped = [], Counter[str]()
    soft_targets = soft_targets and any(e.parts for e in examples)
    for example in examples:
        reasoning = example.reasoning if thinking else ""
        messages, ended = example.prompt.messages, not example.truncated
        prompt_ids, completion_ids = encode_turn(tokenizer, messages, example.completion, ended=ended, reasoning=reasoning)
        if not example.completion.strip():
            dropped["empty"] += 1
        elif len(prompt_ids) + len(completion_ids) > max_length:
            dropped["too_long"] += 1
        else:
            row: dict[str, Any] = {"input_ids": prompt_ids + completion_ids, "labels": [IGNORED] * len(prompt_ids) + completion_ids}
            if soft_targets:
                told, forced = told_parts(tokenizer, replace(example, parts=()) if reasoning else example, completion_ids)
                row |= {"told": told, "forced": [1] * len(prompt_ids) + forced}
            rows.append(row)
    _require(rows, len(examples), dropped, max_length)
    return rows, dict(dropped)


def told_parts(tokenizer: Any, example: SFTExample, completion_ids: list[int]) -> tuple[list[dict[str, Any]], list[int]]:
    """Return what a teacher reads to predict a completion's tokens, and which of them it doesn't predict.

    The teacher is the model with principles in its context, which wrote the completion in parts. Tokens that it was made to begin with, and
    those that a text's border changes, are forced: they have no teacher.

    Args:
        completion_ids: its completion's tokens, T of them.

    Returns:
        For each part `ids` (its conversation and its tokens), and `start` and `end`: the last `start − end` of these tokens are the
        completion's, from `start` to `end` tokens before its end. And for each of the T tokens 1 if it is forced, else 0.
    """
    from cai.models.local.prefix import common_prefix

    told, forced = [], [1] * len(completion_ids)
    text, done = "", 0
    for number, part in enumerate(example.parts, 1):
        last = number == len(example.parts)
        text += part.text
        ended = last and not example.truncated
        _, so_far = encode_turn(tokenizer, example.prompt.messages, text, ended=ended)
        asked, said = encode_turn(tokenizer, part.messages, part.text.strip(), ended=ended)
        _, begun = encode_turn(tokenizer, part.messages, part.opening, ended=False) if part.opening else ([], [])
        if completion_ids[: len(so_far)] != so_far:  # the next part changes this one's last token
            continue
        free = min(common_prefix(so_far[done:][::-1], said[::-1]), len(said) - common_prefix(said, begun))
        if free:
            start = len(completion_ids) - len(so_far) + free
            told.append({"ids": asked + said, "start": start, "end": start - free})
            forced[len(so_far) - free : len(so_far)] = [0] * free
        done = len(so_far)
    return told, forced


def dpo_rows(tokenizer: Any, preferences: Sequence[Preference], max_length: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, `p_chosen` and `weight`, and the number of dropped pairs by reason.

    A pair is dropped if either side is longer than `max_length` tokens with its prompt: truncating only one side would bias the comparison.
    """
    rows, dropped = [], Counter[str]()
    for preference, prompt_ids, chosen_ids, rejected_ids in _encode_pairs(tokenizer, preferences, dropped, mask_cut=True):
        if len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) > max_length:
            dropped["too_long"] += 1
        else:
            ids = {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
            rows.append({**ids, "p_chosen": float(preference.p_chosen), "weight": float(preference.weight)})
    _require(rows, len(preferences), dropped, max_length)
    return rows, dict(dropped)


def reward_rows(
    tokenizer: Any, preferences: Sequence[Preference], max_length: int, margin: float = 0.0
) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """Return rows with `chosen_ids`, `rejected_ids`, `p_chosen` and `weight`, the number of dropped pairs by reason, and of truncated rows.

    A conversation longer than `max_length` tokens is truncated on the left, because the response, which is judged, is at the end.

    Args:
        max_length: longest conversation with its response, in tokens.
        margin: if above 0, rows also have a `margin`: |2p − 1| times this.
    """
    rows, dropped, truncated = [], Counter[str](), 0
    for preference, prompt_ids, chosen_ids, rejected_ids in _encode_pairs(tokenizer, preferences, dropped, mask_cut=False):
        chosen, rejected = (prompt_ids + chosen_ids)[-max_length:], (prompt_ids + rejected_ids)[-max_length:]
        if chosen == rejected:
            dropped["identical"] += 1
        else:
            labels = {"p_chosen": float(preference.p_chosen), "weight": float(preference.weight)}
            if margin > 0.0:
                labels["margin"] = margin * abs(2.0 * preference.p_chosen - 1.0)
            rows.append({"chosen_ids": chosen, "rejected_ids": rejected, **labels})
            truncated += len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) > max_length
    _require(rows, len(preferences), dropped, max_length)
    return rows, dict(dropped), truncated


def kto_rows(tokenizer: Any, preferences: Sequence[Preference], max_length: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return two rows per pair, and the number of dropped pairs by reason.

    Rows have `prompt_ids`, `completion_ids`, `p_desirable`, `weight`, and `KL_completion_ids`: a completion of another prompt, with which
    KTO estimates the KL to the reference. It is chosen here, not from neighbours in a batch, so that it does not depend on the batch size
    or the number of processes.

    Chosen is desirable with probability `p_chosen`, rejected with probability 1 − `p_chosen`. The same pairs are dropped as in `dpo_rows`.

    Args:
        max_length: longest prompt plus completion, in tokens.
        seed: decides the order of the rows, which TRL keeps.
    """
    pairs, dropped = dpo_rows(tokenizer, preferences, max_length)
    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "p_desirable": p, "weight": pair["weight"]}
        for pair in pairs
        for side, p in (("chosen_ids", pair["p_chosen"]), ("rejected_ids", 1.0 - pair["p_chosen"]))
    ]
    Random(seed).shuffle(rows)
    return [{**row, "KL_completion_ids": _mismatched_completion(rows, i)} for i, row in enumerate(rows)], dropped


def _mismatched_completion(rows: Sequence[dict[str, Any]], i: int) -> list[int]:
    """Return the completion of the nearest of the 8 rows before the i-th with another prompt; of the row before it if there is none."""
    before = [rows[(i - k) % len(rows)] for k in range(1, 9)]  # wraps around; a prompt rarely has more rows in sequence
    return next((row for row in before if row["prompt_ids"] != rows[i]["prompt_ids"]), before[0])["completion_ids"]  # type: ignore[no-any-return]


def _encode_pairs(tokenizer: Any, preferences: Sequence[Preference], dropped: Counter[str], *, mask_cut: bool) -> Any:
    """Yield each pair with its token ids. Count and drop pairs with identical sides.

    Args:
        mask_cut: leave the end-of-turn token out where a side was cut at a token limit.
    """
    for preference in preferences:
        messages = preference.prompt.messages
        ends = (not (mask_cut and preference.chosen_truncated), not (mask_cut and preference.rejected_truncated))
        prompt_ids, chosen_ids = encode_turn(tokenizer, messages, preference.chosen, ended=ends[0])
        _, rejected_ids = encode_turn(tokenizer, messages, preference.rejected, ended=ends[1])
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
        fix = f"raise max_length (now {max_length})" if dropped["too_long"] else "check what the earlier stages have dropped, and why"
        raise TrainingError(f"nothing to train on: of {given} examples none is left ({why}).\nFix: {fix}")
    if all(row.get("weight", 1.0) == 0.0 for row in rows):
        raise TrainingError(f"nothing to train on: all {len(rows)} pairs have weight 0.\nFix: give a source a weight above 0")
