"""From findings to what a practitioner should suspect: a name for the behaviour, the evidence, and what to change.

The table below is advice, not measurement: where in the pipeline such a behaviour usually comes from. Which principles of the constitution
speak of it is looked up in their words, so that it fits whatever constitution is used.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cai.records import AuditFinding, Constitution


@dataclass(frozen=True, slots=True)
class Advice:
    """What a group of findings means, and where to look for its cause."""

    suspicion: str
    stages: tuple[str, ...]
    """Of a run, the likeliest first."""
    change: str
    principles: str
    """A pattern that finds, in ids and statements, the principles that speak of it."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What to suspect, why, and what to change."""

    suspicion: str
    sure: bool
    """Found, not only suspect."""
    findings: tuple[AuditFinding, ...]
    stages: tuple[str, ...]
    change: str
    principles: tuple[str, ...]
    """Ids of the principles to look at; empty where the constitution says nothing about it."""


ADVICE: dict[str, Advice] = {
    "sycophancy": Advice(
        "It agrees too readily: it follows what the user believes, gives in when doubted, or flatters.",
        ("feedback", "preferences", "critique"),
        "Judge pairs that differ in agreement (contrast pairs under the principles named here), and check whether the labels and the "
        "reward prefer agreement (`cai audit`) before training on them again.",
        r"flatter|false premise|disagree|honest",
    ),
    "shallow confidence": Advice(
        "It is surer than it is right.",
        ("critique", "feedback", "reward"),
        "Let critiques ask for confidence that fits what is known, and look at the reward's probes `more_certain` and `hedged`.",
        r"confiden|uncertain|fabricat|doubt",
    ),
    "verbosity": Advice(
        "It answers at length.",
        ("feedback", "preferences", "policy"),
        "Compare the win rate with the length-controlled one; drop or down-weight labels that prefer length, train the reward "
        "models with `reward.balance_length`, or DPO with a length-desensitised loss.",
        r"length|concise|brief|long",
    ),
    "format gaming": Advice(
        "It formats for the look of it.",
        ("reward", "feedback"),
        "Look at the reward's probes `as_list`, `with_headings` and `with_bold`; strip formatting from pairs before they are judged, or "
        "add a principle on form.",
        r"format|list|prose|length",
    ),
    "over-refusal": Advice(
        "It refuses what is fine.",
        ("sft", "critique", "preferences"),
        "Mix more borderline and helpful prompts into the training prompts, and keep revisions that turn an answer to a harmless prompt "
        "into a refusal out of the SFT data (`critique.drop_refusals`).",
        r"good faith|meaning|evasi|refuse|sounds",
    ),
    "evasiveness": Advice(
        "It sends people away instead of answering.",
        ("critique", "feedback"),
        "Give the principles against evasion more weight, and judge helpful prompts under them too.",
        r"evasi|answer the question|specific",
    ),
    "harmful compliance": Advice(
        "It helps with harm.",
        ("critique", "sft", "policy"),
        "Add harmful prompts of the kinds shown, use more rounds of critique, and check that the judge tells harm from harmlessness "
        "(`cai judge bench`).",
        r"harm|violence|crime|weapon|attack|illegal",
    ),
    "preaching": Advice(
        "It preaches or comforts unasked.",
        ("feedback", "policy"),
        "Over-optimisation against a harmlessness judge sounds like this: train fewer steps or with a higher `beta`, and give the "
        "principle against preaching more weight.",
        r"preach|lectur|moralis|moraliz",
    ),
    "boilerplate": Advice(
        "Stock phrases took over.",
        ("policy", "reward"),
        "The policy has found what the reward likes whatever is asked: stop earlier, raise `beta`, use a reward ensemble, and look at the "
        "reward's probe `with_boilerplate`.",
        r"specific|preach|steady",
    ),
    "degeneration": Advice(
        "Its answers come apart.",
        ("policy", "sft"),
        "Train fewer steps, with a lower learning rate or a higher `beta`; check that SFT data isn't cut mid-sentence.",
        r"usable|answer the question",
    ),
}


def diagnose(findings: Iterable[AuditFinding], constitution: Constitution) -> list[Suspicion]:
    """Return what to suspect, what was found before what is only suspect; empty where nothing stands out.

    Args:
        findings: about one model.
        constitution: whose principles could be changed.
    """
    groups: dict[str, list[AuditFinding]] = {}
    for f in findings:
        if f.verdict in ("found", "suspect") and f.group in ADVICE:
            groups.setdefault(f.group, []).append(f)
    suspicions = [_suspicion(ADVICE[group], tuple(found), constitution) for group, found in groups.items()]
    return sorted(suspicions, key=lambda s: not s.sure)


def _suspicion(advice: Advice, findings: tuple[AuditFinding, ...], constitution: Constitution) -> Suspicion:
    pattern = re.compile(advice.principles, re.IGNORECASE)
    principles = tuple(p.id for p in constitution.principles if pattern.search(f"{p.id.replace('-', ' ')} {p.statement}"))
    sure = any(f.verdict == "found" for f in findings)
    return Suspicion(advice.suspicion, sure, findings, advice.stages, advice.change, principles)
