"""A small finished run directory with texts of the test's choice in every place where a run holds foreign text."""

from pathlib import Path

from cai.core.jsonl import write_records
from cai.core.manifest import ConstitutionCard, JudgeCard, Manifest, StageEntry, write_manifest
from cai.judge.bench import ProtocolResult
from cai.records import (
    AuditExample,
    AuditFinding,
    Critique,
    EvalResult,
    Failure,
    Judgment,
    Message,
    Preference,
    Principle,
    Prompt,
    PromptKind,
    Provenance,
    ResponsePair,
    Revision,
    RevisionTrace,
    Round,
    Sample,
    ScoredPair,
    SFTExample,
)
from cai.train.reward.ensemble import aggregate_scores
from cai.train.reward.metrics import measure_scores

BY = Provenance("model")


def prompt(index: int, text: str = "How do I do it?", kind: PromptKind = "harmful") -> Prompt:
    return Prompt(f"p{index}", kind, (Message("user", "Hello"), Message("assistant", text), Message("user", text)), "test")


def principle(id: str, text: str) -> Principle:
    return Principle(id, text, text, text, text, text, text)


def before_after(name: str, before: float, after: float, moved: tuple[float, float, float], n: int = 100) -> list[EvalResult]:
    """Return a measure of base and policy, and its change."""
    return [
        EvalResult(name, "base", before, n, before - 0.05, before + 0.05),
        EvalResult(name, "policy", after, n, after - 0.05, after + 0.05),
        EvalResult(f"{name}_change", "policy", moved[0], n, moved[1], moved[2]),
    ]


def results(text: str = "") -> list[EvalResult]:
    return [
        *before_after("harmful_compliance", 0.8, 0.3, (-0.5, -0.6, -0.4)),
        *before_after("over_refusal", 0.1, 0.12, (0.02, -0.03, 0.07)),
        EvalResult("response_words", "base", 60.0, 100, 55.0, 65.0),
        EvalResult("response_words", "policy", 90.0, 100, 80.0, 99.0),
        EvalResult("response_words_ratio", "policy", 1.5, 100, 1.3, 1.7, text),
        EvalResult("win_rate_by_judge", "policy", 0.7, 100, 0.6, 0.78, text),
        EvalResult("win_rate_by_judge:like_length", "policy", 0.5, 20, 0.3, 0.7),
        EvalResult("reward_accuracy", "reward-0", 0.66, 60, 0.53, 0.77, text),
    ]


def scored_pairs(text: str = "") -> list[ScoredPair]:
    """Three members who disagree more the less they know, on forty pairs of two sources; the last ten are training pairs."""
    pairs = []
    for i in range(40):
        noise = (i * 7 % 10) / 5
        members = tuple(0.6 + noise * wobble for wobble in (-1.2, 0.3, (-1.0) ** i))
        sides = aggregate_scores(members), aggregate_scores((0.0,) * 3)
        kind: PromptKind = "harmful" if i % 3 else "helpful"
        source = f"ai:{text[:40]}" if i % 2 else "human:file"
        pairs.append(ScoredPair(f"pair{i}", f"p{i}", kind, source, 0.9, i < 30, 50 + 30 * (i % 7), 120, *sides))
    return pairs


def findings(text: str = "") -> list[AuditFinding]:
    """Return one finding that stands out, with an example, and one that is ok."""
    example = AuditExample(text, text, text)
    numbers = {"n": 40, "threshold": 0.1, "reasoning": text, "p": 0.0001, "question": "Flatters", "note": text[:40]}
    return [
        AuditFinding(
            "sycophancy",
            "flatters",
            subject="policy",
            against="base",
            value=0.4,
            low=0.2,
            high=0.6,
            level=0.5,
            p_adjusted=0.0004,
            verdict="found",
            examples=(example,),
            **numbers,
        ),
        AuditFinding(
            "over-refusal",
            "over_refusal",
            subject="base",
            against="",
            value=0.1,
            low=0.0,
            high=0.2,
            level=0.1,
            p_adjusted=1.0,
            verdict="ok",
            **numbers,
        ),
    ]


def write_run(run_dir: Path, text: str = "Plain words.", traces: int = 3, judge: JudgeCard | None = None) -> Path:
    """Write a run whose every foreign text is `text`, and return its directory."""
    data = run_dir / "data"
    rounds = (Round(Critique("kind", text), Revision("kind", text)), Round(Critique("frank", text), Revision("frank", text)))
    write_records(
        data / "traces.jsonl",
        [RevisionTrace(prompt(i, text), text, rounds[i % 2 :], None if i else "unchanged", 0.7, BY) for i in range(traces)],
    )
    write_records(data / "sft.jsonl", [SFTExample(prompt(1, text), text, ("kind",), "revision", BY)])
    write_records(data / "pairs.jsonl", [ResponsePair(prompt(1, text), text, "other", "sampled", BY)])
    write_records(
        data / "judgments.jsonl",
        [
            Judgment("x", ("kind",), "pairwise", 0.6, 0.8, 0.4, None, BY, text),
            Judgment("y", ("kind",), "pairwise", None, None, None, "no verdict", BY, text),
        ],
    )
    write_records(data / "preferences.jsonl", [Preference(prompt(1, text), text, "other", 0.6, 1.0, f"ai:{text[:40]}", ("kind",), BY)])
    write_records(data / "preferences_heldout.jsonl", [Preference(prompt(9), "a", "b", 1.0, 1.0, "human:file", (), BY)])
    write_records(data / "evaluation.jsonl", results(text))
    write_records(
        data / "samples.jsonl",
        [
            Sample(prompt(i, text, k), {"base": text, "policy": "Fine."}, {"base": -1.0, "policy": 1.0})
            for i, k in enumerate(("harmful", "helpful"))
        ],
    )
    write_records(data / "audit.jsonl", findings(text))
    write_records(
        data / "judge_bench.jsonl",
        [
            ProtocolResult(text[:40], 0.6, 0.5, 0.7, 90, 0.2, 1, {text[:40]: 1}, 0, 0.6, False, 0.04, -0.05, "longer"),
            ProtocolResult("longer", 0.56, 0.5, 0.61, 91, None, 0, {}, 2, 0.56, None, None, None, None),
        ],
    )
    write_records(run_dir / "failures.jsonl", [Failure("critique", f"p{i}", text[:60], text) for i in range(5)])
    write_records(
        run_dir / "metrics.jsonl", [{"stage": "reward", "step": i, "values": {"loss": 1 / i, "accuracy": 0.5}} for i in range(1, 6)]
    )
    (run_dir / "models" / "reward-0").mkdir(parents=True)
    (run_dir / "models" / "reward-0" / "metrics.json").write_text('{"accuracy": 0.66}')
    scored = scored_pairs(text)
    write_records(data / "reward_scores.jsonl", scored)
    write_records(data / "reward_measures.jsonl", measure_scores([p for p in scored if p.held_out], ("reward-0", "reward-1", "reward-2")))
    (run_dir / "recipe.yaml").write_text(f"name: {text!r}\n", encoding="utf-8")
    manifest = Manifest(
        run_dir.name,
        "hash",
        text,
        versions={"torch": text[:40]},
        git={"commit": text[:40]},
        machine={"platform": text[:40], "memory_bytes": 2**34},
    )
    manifest.constitution = ConstitutionCard(text[:40], text[:40], "hash", (principle("kind", text), principle("unused", "Never drawn.")))
    manifest.model = manifest.model_fingerprint = manifest.trained = manifest.judged_by = text[:40]
    manifest.judge = judge or JudgeCard("pairwise", True, text[:40], 0.7, 0.6, 0.8, 90, True, "longer", text)
    manifest.stages = [
        StageEntry("critique", "done", "f", "2026-01-01T00:00:00+00:00", 12.0, 10, 5, 100, 50, counts={"traces": traces}),
        StageEntry("sft", "failed", "f", message=text),
    ]
    write_manifest(run_dir / "manifest.json", manifest)
    return run_dir
