"""Scripted judges, and a small constitution to judge by."""

import asyncio
import math
from pathlib import Path

import numpy as np

from cai.judge.judge import Judge
from cai.judge.probe import Probe, ProbeFacts, weights_hash
from cai.models.base import TextModel
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, TextLogprob
from cai.models.scripted import ScriptedEngine, default_script
from cai.models.store import CallStore
from cai.models.templates import load_templates
from cai.recipe import FeedbackConfig
from cai.records import Constitution, Message, Principle, Prompt, Provenance, ResponsePair

TEMPLATES = load_templates(Path(__file__).parent.parent.parent / "prompts" / "templates")


def principle(name, weight=1.0, applies_to=("harmful", "borderline", "helpful")):
    return Principle(
        name, f"Be {name}.", f"How is it not {name}?", f"Make it {name}.", f"Is it {name}?", f"Is it UN{name}?", f"Which is more {name}?",
        applies_to, weight,
    )  # fmt: skip


CONSTITUTION = Constitution("test", "Test", "", (principle("kind"), principle("true", 2.0), principle("brief", 0.5)))


def pair(a="GOOD answer.", b="Another answer.", number=0, kind="helpful"):
    prompt = Prompt(f"p{number}", kind, (Message("user", f"Question number {number}?"),), "test")
    return ResponsePair(prompt, a, b, "sampled", Provenance("test"))


def log_odds_reply(first_over_second):
    p = 1 / (1 + math.exp(-first_over_second))
    return ChoiceLogprobs((math.log(p) - 0.1, math.log1p(-p) - 0.1), 10)


def graded(*probabilities):
    """Probabilities of the grades 1 to 5, of which the model would write other words in one case of ten."""
    return ChoiceLogprobs(tuple(math.log(0.9 * max(p, 1e-12)) for p in probabilities), 10)


GOOD_GRADES, OTHER_GRADES = (0.0, 0.0, 0.0, 0.2, 0.8), (0.5, 0.0, 0.0, 0.5, 0.0)


def shown_first(content):
    """The text between (A) and (B)."""
    return content[content.index("(A)") : content.index("(B)")]


def prefers_text(request):
    """Prefers the response that says GOOD, wherever it stands, with some bias for the first."""
    content = request.messages[-1].content
    if isinstance(request, CompleteRequest):
        verdict = "A" if "GOOD" in shown_first(content) else "B"
        return Completion(f"Both have merits. Answer: B at first sight. But one is clearer.\nAnswer: {verdict}", False, 10, 20)
    if isinstance(request, ChoicesRequest):
        if [choice.strip() for choice in request.choices] == ["A", "B"]:
            return log_odds_reply((2.0 if "GOOD" in shown_first(content) else -2.0) + 0.7)
        if len(request.choices) == 5:
            return graded(*(GOOD_GRADES if "GOOD" in content else OTHER_GRADES))
        yes = 2.0 if ("GOOD" in content) != ("UN" in content) else -2.0
        return log_odds_reply(yes + 3.0)
    told_good = "good assistant" in request.messages[0].content
    tokens = len(request.text.split())
    return TextLogprob(-2.0 * tokens + (0.1 if ("GOOD" in request.text) == told_good else 0.0) * tokens, tokens, 10)


def always_first(request):
    """Says A, or Yes, or the same likelihood, whatever it is shown."""
    if isinstance(request, CompleteRequest):
        return Completion("I like the first one. Answer: A", False, 10, 5)
    if isinstance(request, ChoicesRequest):
        return log_odds_reply(4.0) if len(request.choices) == 2 else graded(0.6, 0.1, 0.1, 0.1, 0.1)
    return TextLogprob(-12.0, len(request.text.split()), 10)


def judge_with(script, protocol, constitution=CONSTITUTION, run_seed=0, **config):
    model = TextModel(ScriptedEngine(script, name=script.__name__), CallStore(None), "feedback")
    return Judge(FeedbackConfig(protocol=protocol, **config), constitution, model, TEMPLATES, run_seed)


def judged(script, protocol, *pairs, **options):
    judge = judge_with(script, protocol, **options)

    async def go():
        return [await judge(p) for p in pairs]

    return asyncio.run(go())


def hashed(request):
    """Judges by a hash of the request; where it reasons, it ends in a verdict."""
    reply = default_script(request)
    if isinstance(request, CompleteRequest):
        return Completion(f"{reply.text}\nAnswer: {'AB'[len(reply.text) % 2]}", False, 10, 5)
    return reply


def made_probe(model="scripted:scripted", weights=(0.1, -0.2, 0.3, 0.1, -0.1, 0.2, 0.0, 0.3), **facts):
    """A probe as `cai judge fit` would write it."""
    numbers = tuple(float(w) for w in np.array(weights, "f4"))
    given = {"layer": 1, "layers": 2, "pooling": "mean", "strength": 1.0, "n": 50, "pairs": "people.jsonl", **facts}
    return Probe(ProbeFacts(model=model, model_name="scripted", precision="float32", weights_hash=weights_hash(numbers), **given), numbers)
