"""Runs that used the principles of one small constitution."""

from cai.core.jsonl import write_records
from cai.core.manifest import ConstitutionCard, Manifest, write_manifest
from cai.core.workspace import RunDirectory, Workspace
from cai.records import (
    Critique,
    EvalResult,
    Judgment,
    Message,
    Principle,
    Prompt,
    PromptKind,
    Provenance,
    ResponseCheck,
    ResponsePair,
    Revision,
    RevisionTrace,
    Round,
    Sample,
    SFTExample,
)

BY = Provenance("model")
MINE = """\
id: mine
name: Mine
description: For tests.
principles:
  - id: short
    statement: Be short.
    applies_to: [helpful]
    weight: 3
    check: { max_words: 3 }
  - id: kind
    statement: Be kind.
"""
SHORT = Principle("short", "Be short.", applies_to=("helpful",), weight=3.0, check=(ResponseCheck(max_words=3),))
EVIL = "</p><script>alert(1)</script>"


def prompt(id: str, kind: PromptKind = "helpful") -> Prompt:
    return Prompt(id, kind, (Message("user", f"Asked by {id} {EVIL}"),), "test")


def adherence(name: str, told: float = 0.5) -> list[EvalResult]:
    rates = [
        EvalResult(name, model, value, 40, 0.0, 1.0) for model, value in (("base", 0.1), ("told", told), ("sft", 0.6), ("policy", 0.8))
    ]
    return [*rates, EvalResult(f"{name}_change", "policy", 0.7, 40, 0.55, 0.8, p=0.001, p_adjusted=0.002)]


def add_run(workspace: Workspace, name: str, short: Principle = SHORT, constitution: str = "mine") -> RunDirectory:
    """A run whose principle `short` was drawn by three prompts, and whose judge decided two pairs by `kind` alone."""
    run = workspace.run(name)
    write_manifest(
        run.manifest, Manifest(name, constitution=ConstitutionCard(constitution, "Mine", "h", (short, Principle("kind", "Be kind."))))
    )
    prompts = [prompt("a"), prompt("b"), prompt("c"), prompt("d", "harmful")]
    pairs = [ResponsePair(prompts[3], f"One {i}.", f"Two {i}.", "sampled", BY) for i in range(3)]
    both = [("kind",), ("kind",), ("kind", "short")]
    rounds = (Round(Critique("short", "Long."), Revision("short", "Done.")),)
    answers = {
        "x": ("One two three four.", "Yes."),
        "y": ("Yes.", "One two three four."),
        "z": ("One of two.", "One two."),
        "w": ("A b.", "A b c d."),
    }
    scores = {"x": 0.1, "y": 0.5, "z": 0.9, "w": 0.2}
    records = {
        "evaluation": [*adherence("adherence:short"), *adherence("control:kind")],
        "prompts": prompts,
        "traces": [RevisionTrace(prompts[0], "Long answer.", rounds, None, None, BY)],
        "distilled": [SFTExample(prompts[i], "Yes.", ("short",), "distilled", BY) for i in (0, 1)],
        "pairs": pairs,
        "judgments": [
            Judgment(p.id, ids, "pairwise", p_a, None, None, None, BY) for p, ids, p_a in zip(pairs, both, (0.3, 0.9, 1.0), strict=True)
        ],
        "samples": [
            Sample(prompt(key, "harmful" if key == "w" else "helpful"), {"base": base, "policy": policy}, {"policy": scores[key]})
            for key, (base, policy) in answers.items()
        ],
    }
    for file, rows in records.items():
        write_records(run.data(file), rows)
    return run
