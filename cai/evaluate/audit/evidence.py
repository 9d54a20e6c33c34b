"""Audits a run's files without model calls: its responses to the evaluation prompts, its labels, and its judge's verdicts."""

from collections.abc import Iterable, Sequence

from cai.core.text.words import word_count
from cai.evaluate.audit.battery import audit_model
from cai.evaluate.audit.check import Answers
from cai.evaluate.audit.finding import Check, Measurement, Subject, judge_level, settle
from cai.evaluate.audit.judge_bias import order_flips
from cai.evaluate.audit.labels import label_readings
from cai.evaluate.audit.probes import Probes
from cai.evaluate.policies import AGAINST
from cai.records import AuditFinding, Judgment, Preference, Provenance, Response, ResponsePair, Sample

PREFERS_LONGER = Check(
    "verbosity",
    "reward_prefers_longer",
    "Scores the longer of two answers to a prompt higher",
    rise=0.0,
    level=0.65,
    reasoning="answers of different models to the same prompt; one half means that length has no effect on the score. The threshold is "
    "about two in three, because the longer answer is sometimes the better one.",
)


def audit_samples(samples: Sequence[Sample], seed: int = 0) -> list[AuditFinding]:
    """Audit every model's responses to the evaluation prompts: the base model by its levels, the others against the base model."""
    models = list(dict.fromkeys(m for s in samples for m in s.responses))
    answers = {m: Answers(prompts=responses_of(samples, m)) for m in models}
    base = answers.get(AGAINST)
    return [
        f
        for m, mine in answers.items()
        for f in audit_model(Probes(), mine, None if m == AGAINST or base is None else base, Subject(m, AGAINST, seed))
    ]


def audit_labels(preferences: Sequence[Preference], seed: int = 0) -> list[AuditFinding]:
    """Audit the training labels for surface traits that predict the preferred response."""
    return settle(judge_level(r, Subject("labels", seed=seed)) for r in label_readings(preferences))


def audit_judgments(judgments: Iterable[Judgment], pairs: Sequence[ResponsePair], seed: int = 0) -> list[AuditFinding]:
    """Audit verdicts given in both presentation orders; empty for pointwise protocols."""
    return settle([judge_level(order_flips(judgments, {p.id: p for p in pairs}), Subject("judge", seed=seed))])


def length_in_scores(samples: Sequence[Sample]) -> Measurement:
    """Measure for each prompt whether the reward model scores the longest response above the shortest."""
    values: dict[str, float] = {}
    shown: dict[str, tuple[str, str]] = {}
    for s in samples:
        words = {m: word_count(text) for m, text in s.responses.items() if m in s.scores}
        if not words:
            continue
        short, long = (choose(words, key=lambda m: words[m]) for choose in (min, max))
        if words[short] < words[long] and s.scores[short] != s.scores[long]:
            values[s.prompt.id] = float(s.scores[long] > s.scores[short])
            shown[s.prompt.id] = (s.prompt.messages[-1].content, s.responses[long])
    return Measurement(PREFERS_LONGER, values, shown)


def responses_of(samples: Sequence[Sample], model: str) -> dict[str, Response]:
    """Return one model's responses by prompt id."""
    return {s.prompt.id: Response(s.prompt, s.responses[model], False, Provenance("")) for s in samples if model in s.responses}
