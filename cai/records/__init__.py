"""The records that flow between stages: frozen dataclasses, stored as one JSON object per line.

Vocabulary: a *principle* is one article of a *constitution*; a *critique* and *revision* are one round of self-correction; a
*pair* is two responses before judging (`response_a`, `response_b`); a *judgment* is a probability that A is better, with its
source; a *preference* is a judged pair (`chosen`, `rejected`, `p_chosen`). A failure is a record too, never a default value.
"""

from cai.records.base import LABELLED_KINDS, PROMPT_KINDS, Failure, Message, Prompt, PromptKind, Provenance, Role
from cai.records.constitution import DEFAULT_WORDING, WORDINGS, Constitution, Examples, Principle, ResponseCheck
from cai.records.measures import (
    AuditExample,
    AuditFinding,
    AuditVerdict,
    BlendPoint,
    EvalResult,
    MonitorPoint,
    RewardScore,
    Sample,
    ScoredPair,
)
from cai.records.pairs import HumanLabel, Judgment, Preference, ResponsePair
from cai.records.responses import Critique, Response, Revision, RevisionTrace, Round, SFTExample, ToldPart

__all__ = [
    "DEFAULT_WORDING",
    "LABELLED_KINDS",
    "PROMPT_KINDS",
    "WORDINGS",
    "AuditExample",
    "AuditFinding",
    "AuditVerdict",
    "BlendPoint",
    "Constitution",
    "Critique",
    "EvalResult",
    "Examples",
    "Failure",
    "HumanLabel",
    "Judgment",
    "Message",
    "MonitorPoint",
    "Preference",
    "Principle",
    "Prompt",
    "PromptKind",
    "Provenance",
    "Response",
    "ResponseCheck",
    "ResponsePair",
    "Revision",
    "RevisionTrace",
    "RewardScore",
    "Role",
    "Round",
    "SFTExample",
    "Sample",
    "ScoredPair",
    "ToldPart",
]
