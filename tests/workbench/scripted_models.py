"""Scripted models that give rules and write prompts, and the labels that the rules are learned from."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Reply, Request
from cai.workbench.validation import LabelFile

POLITE, TERSE = "Ask politely for what is missing.", "Use as few words as possible."


def labelled(folder: Path, n: int = 60, conversations: int | None = None) -> LabelFile:
    """Pairs in which people chose the polite response, which is the longer one in every other pair."""
    path = folder / "pairs.jsonl"
    rows = []
    for i in range(n):
        polite, rude = f"Please tell me, {i}.", f"Tell me number {i}" + (" at once, now and here." if i % 2 else ".")
        rows.append({"prompt": f"Question {i % (conversations or n)}?", "chosen": polite, "rejected": rude})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LabelFile(path)


def people(rule_of: Callable[[int], str]) -> Callable[[Request], Reply]:
    """A model that gives a rule by the number of the question, and judges politeness by "please" and everything else by a hash."""

    def script(request: Request) -> Reply:
        text = request.messages[-1].content
        if isinstance(request, CompleteRequest):
            assert "Preferred response: Please" in text, "people chose the polite one"
            return Completion(rule_of(int(re.findall(r"Question (\d+)", text)[0])), False, 1, 1)
        assert isinstance(request, ChoicesRequest)
        answer = text[text.index("Assistant:") :].split("Principle:")[0]
        follows = "Please" in answer if POLITE in text else len(answer) % 3 == 0
        yes = follows != ("break" in text)
        return ChoiceLogprobs((-0.1, -3.0) if yes else (-3.0, -0.1), 1)

    return script


def replying(text_of: Callable[[str, int], str], truncated: bool = False) -> Callable[[Request], Reply]:
    """A model that answers from the rule that it is shown and the request's seed."""

    def script(request: Request) -> Reply:
        assert isinstance(request, CompleteRequest)
        return Completion(text_of(request.messages[-1].content, request.seed), truncated, 1, 1)

    return script


def five(about: str, seed: int) -> str:
    """Five requests, others for every rule and seed."""
    return "\nRequest: ".join(f" What about number {seed % 9973} and thing {i} of {len(about)}?" for i in range(5))
