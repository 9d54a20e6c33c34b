"""What servers do differently with a request that the protocol allows: known of some kinds, learned from a refusal of the others.

A refusal may say what is wrong (`learned_from`). Chat templates refuse turns in words of their own, so it is tried which turns were wrong
(`guesses`). Each difference is one field of `Capabilities`. A call's key in the store doesn't depend on them.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

TOP = 20
_REFUSED_FIELD = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|not accept|extra (?:input|field)|forbidden"
    r"|not implemented|incompatible|must be|deprecated|invalid (?:request )?(?:argument|parameter|field)|\bboth\b"
)
_LEAST = re.compile(r"max_\w*tokens.*(?:>=|at least|minimum|greater than(?: or equal to)?)\D{0,20}(\d{1,3})\b", re.DOTALL)
_LEFT_OUT = ("seed", "top_p", "temperature")
"""Fields of a completion that some servers refuse. Temperature and top-p of 1 are what they do without the field."""
_CONTINUING = ("vllm", "sglang", "llamacpp")
_SAMPLING = {
    "vllm": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
}


@dataclass(frozen=True)
class Capabilities:
    """How one server wants to be asked."""

    sampling: dict[str, Any]
    """Goes with every completion: servers add habits of their own (llama.cpp's top-k 40, a model's generation_config), and the recipe's
    sampling is the whole story."""
    flags: dict[str, Any]
    """Goes with a conversation whose last turn is left open."""
    continues: bool
    """Whether it goes on from an assistant turn that has begun. Others are told the opening in words."""
    echoes: bool = False
    """Whether its replies begin with the turn that it goes on from, as those of newer llama.cpp do, streams excepted."""
    limit: str = "max_tokens"
    """The field that bounds a completion."""
    least: int = 1
    """The fewest tokens that it can be asked for."""
    top: int = TOP
    """The most likely tokens that it lists."""
    counts: bool = False
    """Whether `logprobs` is their number, as in the older protocol, and not whether to list them."""
    system: bool = True
    """Whether it takes a system turn. Others are told in the next user turn."""
    joins: bool = False
    """Whether consecutive turns of one role must be sent as one."""
    without: frozenset[str] = frozenset()
    """Fields that it refuses. They are left out, unless the request needs them."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Its words, by the field here that it was about."""


def thinking_switch(thinking: bool | None) -> dict[str, Any]:
    """Return what tells vLLM, SGLang and llama.cpp whether to let the model think first, by the names that templates give it."""
    return {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking, "thinking": thinking}}


def of_owner(owner: str) -> Capabilities:
    """Return what is known of a kind of server, by `owned_by` in its list of models."""
    flags = {"continue_final_message": True, "add_generation_prompt": False} if owner in ("vllm", "sglang") else {}
    return Capabilities(_SAMPLING.get(owner, {}), flags, owner in _CONTINUING, owner == "llamacpp")


def without(body: dict[str, Any], can: Capabilities) -> dict[str, Any]:
    """Return a request without the fields that a server refuses, except those that change the answer: temperature and top-p other than 1.

    >>> refused = frozenset({"temperature", "top_p", "seed"})
    >>> without({"temperature": 0.0, "top_p": 1.0, "seed": 3}, Capabilities({}, {}, False, without=refused))
    {'temperature': 0.0}
    """
    return {k: v for k, v in body.items() if k not in can.without or (k in ("temperature", "top_p") and v != 1.0)}


def learned_from(refusal: str, asked: Capabilities) -> dict[str, Any]:
    """Return what a server's refusal says of its capabilities, as changes to what it was asked with; nothing, if it says nothing.

    >>> learned_from("400: top_logprobs must be at most 5", of_owner("someone"))
    {'top': 5}
    >>> learned_from("Unsupported parameter: 'seed'", of_owner("someone"))
    {'without': frozenset({'seed'})}
    """
    said = refusal.lower()
    if asked.limit == "max_tokens" and "max_completion_tokens" in said:
        return {"limit": "max_completion_tokens"}
    if "logprob" in said:
        most = max((n for n in map(int, re.findall(r"\b\d{1,2}\b", said)) if 0 < n < asked.top), default=0)
        if most:
            return {"top": most}
        if not asked.counts and "integer" in said:
            return {"counts": True}
    if (least := _LEAST.search(said)) and int(least[1]) > asked.least:
        return {"least": int(least[1])}
    if _REFUSED_FIELD.search(said):
        named = {f for f in (*_LEFT_OUT, *asked.sampling) if re.search(rf"\b{f}\b", said)} - asked.without
        return {"without": asked.without | named} if named else {}
    return {}


def guesses(refusal: str, asked: Capabilities, taken: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what may be wrong with a request's turns, as changes to what the server was asked with: one, then several together.

    Args:
        refusal: the server's words.
        asked: how it was asked.
        taken: fields that it has taken before: these are not what it refuses, unless it says so.

    >>> list(guesses("400: the last turn must be the user's", of_owner("vllm"), ()))
    [{'continues': False}, {'system': False}, {'continues': False, 'system': False}]
    >>> list(guesses("400: the prompt was filtered", of_owner("vllm"), ("continues", "system")))
    []
    """
    said = refusal.lower()
    ways: list[tuple[str, bool]] = []
    if not asked.joins and "alternat" in said:
        ways.append(("joins", True))
    if asked.continues and ("continues" not in taken or "prefill" in said):
        ways.append(("continues", False))
    if asked.system and ("system" not in taken or "system" in said):
        ways.append(("system", False))
    for count in range(1, len(ways) + 1):
        yield from map(dict, combinations(ways, count))
