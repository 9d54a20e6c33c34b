"""Learn principles from human-labelled pairs (Inverse Constitutional AI, Findeis et al. 2024, arXiv 2406.06560).

    half of the pairs ─▶ a rule for each choice ─▶ near-duplicates merged ─▶ judged as principles on the other half ─▶ draft

The halves share no conversation and no near-copy. A rule is worth a place in the draft of a constitution only if it agrees with people more
than the best trivial rule does (the longer or the shorter response), after Holm's correction for the number of rules.

Departures from the paper:
1. One rule is asked for each pair, under the label that people gave; the paper also asks which principles explain a rejected choice.
2. Near-duplicates are merged by their words, not by clusters of embeddings.
3. The rules are measured on pairs that they were not made from. The paper tests them on the same pairs.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cai.constitution.importers import kebab, with_unique_ids
from cai.constitution.proposals import drafted, fault_of
from cai.core.flow import in_words
from cai.data.filters import normalise
from cai.data.splits import conversation_id, split_groups
from cai.errors import DataError, ModelError, ReplyError
from cai.ids import derive_seed, split_fraction
from cai.judge.protocol import probability
from cai.models.requests import Sampling
from cai.records import WORDINGS, Constitution, Failure, Principle, ResponsePair
from cai.session import Session
from cai.stats import correctness, holm, sign_flip
from cai.workbench.proposing import group_alike, id_of
from cai.workbench.replies import single
from cai.workbench.sample import Calls, calls_of
from cai.workbench.validation import RULES, JudgedPair, LabelFile, ask_all, decided_pairs, measure

LEARNING = Sampling(96, 0.0)
MEASURED = 20
"""Number of rules that are measured, those of most pairs first: each costs the judge's questions about every held-out pair."""
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Baseline:
    """Agreement of a trivial rule with people's choices on the held-out pairs."""

    name: str
    agreement: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule that a model gave for some choices. The figures are None if it was not measured."""

    id: str
    statement: str
    gave: int
    """Number of pairs that gave it, or a near-duplicate."""
    n: int = 0
    """Number of held-out pairs that were judged under it."""
    agreement: float | None = None
    """Agreement of the judge's choices under it with people's, in [0, 1]; ties count half. Its 95 % interval is below."""
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    """Agreement minus that of the best trivial rule, on the same pairs."""
    p: float | None = None
    """One-sided p-value of the gain over conversations, after Holm's correction over all measured candidates."""
    beats_baselines: bool = False
    """Whether it agrees with people more than the best trivial rule does, beyond chance: p < `LEVEL`."""
    chosen: bool = False
    """Whether it is in the draft."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned from a file of pairs."""

    pairs: int
    skipped: int
    """Number of pairs that people left undecided."""
    shown: int
    """Number of pairs that a rule was asked about."""
    held_out: int
    """Number of pairs that were judged."""
    model: str
    judge: str
    protocol: str
    baselines: tuple[Baseline, ...]
    candidates: tuple[Candidate, ...]
    """Those measured by descending agreement, then the others by the number of pairs that gave them."""
    beating: int
    """Number of candidates that beat the best trivial rule."""
    calls: Calls
    failures: tuple[Failure, ...]
    constitution: Constitution | None = None
    """The draft; None if no candidate beats the best trivial rule."""
    comments: tuple[str, ...] = ()
    """What to say of each principle in the file."""


async def learn(pairs: LabelFile, session: Session, most: int, language: str = "en") -> Learned:
    """Learn up to `most` principles from labelled pairs.

    Args:
        pairs: file of human-labelled pairs.
        session: open session. Its model writes the rules, its judge measures them.
        most: maximum number of principles in the draft.
        language: of the rules' default questions (ISO 639-1).

    Raises:
        DataError: the pairs can't be read, or can't be split.
        ModelError: the model gave no usable rule, or can't go on.
        TemplateError: the template can't be read.
    """
    seed = session.recipe.seed
    decided, skipped = decided_pairs(pairs, session)
    shown, held_out = halves(decided, seed)
    if not held_out:
        raise DataError(
            f"{pairs.path}: all {len(decided)} usable pairs are of one conversation, so none is left to measure on. Give more pairs."
        )
    rules = await _rules(shown, session)
    if not rules:
        raise ModelError(
            f"{pairs.path}: {session.model.engine.name} gave no usable rule for {len(shown)} pairs: {in_words(session.failures)}. "
            "Name a larger model with --model."
        )
    found = merged(rules)
    ids = [p.id for p in with_unique_ids(_principle(statement, language) for statement, _ in found)]
    candidates = [Candidate(i, statement, gave) for i, (statement, gave) in zip(ids, found, strict=True)]
    principles = tuple(replace(_principle(c.statement, language), id=c.id) for c in candidates[:MEASURED])
    name = pairs.path.name.split(".")[0]
    whole = Constitution(
        kebab(f"learned-{name}")[:64].strip("-"),
        f"Learned from {pairs.path.name}"[:120],
        f"Learned from people's choices in {pairs.path.name[:200]} by {session.model.engine.name[-200:]}. A draft: read and edit it.",
        principles,
    )
    judged = await ask_all(held_out, whole, session)
    measured, baselines = _measured(candidates[:MEASURED], judged, whole, session)
    beating = [c for c in measured if c.beats_baselines]
    measured = [replace(c, chosen=c in beating[:most]) for c in measured]
    learned = Learned(
        len(decided),
        skipped,
        len(shown),
        len(judged),
        session.model.engine.name,
        session.judge_model.engine.name,
        session.recipe.feedback.protocol,
        baselines,
        (*measured, *candidates[MEASURED:]),
        len(beating),
        calls_of(session),
        tuple(session.failures),
    )
    return _with_draft(learned, whole, pairs.path.name) if beating else learned


def halves(pairs: Sequence[ResponsePair], seed: int) -> tuple[list[ResponsePair], list[ResponsePair]]:
    """Split pairs into two halves that share no conversation and no near-copy of one. The second is empty if all belong together."""
    group_of = split_groups(p.prompt for p in pairs)
    groups: dict[str, list[ResponsePair]] = defaultdict(list)
    for p in pairs:
        groups[group_of(p.prompt)].append(p)
    first: list[ResponsePair] = []
    second: list[ResponsePair] = []
    for name in sorted(groups, key=lambda g: (split_fraction(g, f"learn:{seed}"), g)):
        (second if len(second) < len(first) else first).extend(groups[name])
    return first, second


def merged(rules: Sequence[str]) -> list[tuple[str, int]]:
    """Merge equal and nearly equal rules; return each with the number of pairs that gave it, the commonest first.

    >>> merged(["Be brief.", "Name your sources.", "be  brief."])
    [('Be brief.', 2), ('Name your sources.', 1)]
    """
    counts = Counter(normalise(rule) for rule in rules)
    first = {normalise(rule): rule for rule in reversed(rules)}
    ordered = [(first[key], count) for key, count in sorted(counts.items(), key=lambda item: -item[1])]
    groups = group_alike([statement for statement, _ in ordered])
    found = [(ordered[i][0], ordered[i][1] + sum(ordered[j][1] for j in repeats)) for i, repeats in groups.items()]
    return sorted(found, key=lambda rule: -rule[1])


async def _rules(pairs: Sequence[ResponsePair], session: Session) -> list[str]:
    """Ask of each pair which rule explains the choice of A."""
    [template] = session.named_templates("learn_rule")

    async def work(pair: ResponsePair) -> str:
        asked = template.render({"conversation": pair.prompt.messages, "preferred": pair.response_a, "other": pair.response_b})
        reply = await session.model.complete(asked.messages, LEARNING, derive_seed(session.recipe.seed, "learn", pair.id), asked.prefill)
        rule = single(reply, asked, template)
        if reason := fault_of(drafted(id_of(rule), rule)):
            raise ReplyError("the rule doesn't hold up", reason)
        return rule

    return await session.each(pairs, work, "choices to explain", may_all_fail=True)


def _measured(
    candidates: Sequence[Candidate], judged: Sequence[JudgedPair], constitution: Constitution, session: Session
) -> tuple[list[Candidate], tuple[Baseline, ...]]:
    """Return the candidates with their figures, by descending agreement, and the trivial rules."""
    seed = session.recipe.seed
    validation = measure(judged, constitution, session.recipe.feedback, seed)
    best = max(validation.rules, key=lambda rule: rule.accuracy).name
    by_rule = [correctness(probability(RULES[best](j.pair)), True) for j in judged]
    gains = {c.id: [correctness(probability(j.opinions[c.id]), True) - b for j, b in zip(judged, by_rule, strict=True)] for c in candidates}
    adjusted = holm([sign_flip(_by_conversation(gains[c.id], judged), seed) for c in candidates])
    results = {r.principle_id: r for r in validation.principles}
    found = [
        replace(
            c, n=r.n, agreement=r.agreement, low=r.low, high=r.high, gain=sum(gains[c.id]) / len(judged), p=p, beats_baselines=p < LEVEL
        )
        for c, p in zip(candidates, adjusted, strict=True)
        if (r := results.get(c.id))
    ]
    baselines = tuple(Baseline(rule.name, rule.accuracy) for rule in validation.rules)
    return sorted(found, key=lambda c: -(c.agreement or 0.0)), baselines


def _by_conversation(differences: Sequence[float], judged: Sequence[JudgedPair]) -> list[float]:
    """Return the sum of each conversation's differences: its pairs are not independent."""
    sums: dict[str, list[float]] = defaultdict(list)
    for j, difference in zip(judged, differences, strict=True):
        sums[conversation_id(j.pair.prompt)].append(difference)
    return [math.fsum(each) for each in sums.values()]


def _principle(statement: str, language: str) -> Principle:
    return replace(drafted(id_of(statement), statement), **WORDINGS[language])  # type: ignore[arg-type]


def _with_draft(learned: Learned, whole: Constitution, file: str) -> Learned:
    """Add the draft of the chosen candidates."""
    chosen = [c for c in learned.candidates if c.chosen]
    draft = tuple(
        replace(whole.principle(c.id), source=f"learned: the rule that {c.gave} of {learned.shown} choices in {file} gave") for c in chosen
    )
    comments = tuple(
        f"learned by {learned.model}, not yet read by a person: agrees with people in {c.agreement:.0%} [{100 * (c.low or 0):.0f}, "
        f"{100 * (c.high or 0):.0f}] of {c.n} held-out pairs as judged by {learned.judge}; {c.gave} of {learned.shown} pairs gave it"
        for c in chosen
    )
    return replace(learned, constitution=replace(whole, principles=draft), comments=comments)
