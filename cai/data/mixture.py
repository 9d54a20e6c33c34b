"""Combines judged pairs and human labels into a training set and a held-out set of preferences.

Each pair is either in the mixture or in `dropped`, with a reason. A human label replaces an AI label of the same texts. Several labels of
the same texts are pooled into one example. If the recipe has a gold reward model, its prompts are set aside before the others are split. No
two of training, held-out, gold and evaluation prompts share a conversation or are near-copies (`cai.data.splits`).
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from cai.data.filters import normalise, pooled, preference_key, softened, split_by_prompt, texts_key
from cai.data.splits import SIMILARITY, split_groups
from cai.errors import DataError
from cai.ids import at_most
from cai.recipe import GoldConfig, KindShares, PreferencesConfig, SourceMix
from cai.records import Failure, Judgment, Preference, Prompt, ResponsePair

STAGE = "preferences"
_REASONS = {
    "not_judged": "no judgment of this pair",
    "judge_failed": "the judge gave no usable answer",
    "tie": "the judge finds both equally good",
    "small_margin": "|p - 0.5| is below min_margin",
    "identical": "both responses are the same text",
    "empty": "a response is empty",
    "zero_weight": "its source, or the kind of its prompt, has weight 0",
    "pooled": "its label is pooled with another one of the same two texts",
    "human_labelled": "an annotator labelled the same two texts",
    "over_limit": "its source has reached its limit",
    "in_evaluate": "its prompt is an evaluation prompt, a near-copy of one, or of the same conversation",
    "in_gold": "its prompt is reserved for the gold reward model, or a near-copy or the same conversation as one that is",
}


def mix(
    config: PreferencesConfig,
    pairs: Iterable[ResponsePair],
    judgments: Iterable[Judgment],
    human: Sequence[Preference] = (),
    seed: int = 0,
    evaluate: Iterable[Prompt] = (),
    gold: GoldConfig | None = None,
    gold_human: Sequence[Preference] = (),
    fitted: Iterable[Prompt] = (),
    fitted_texts: Collection[str] = (),
    similarity: float | None = SIMILARITY,
    warn: Callable[[str], None] = lambda text: None,
) -> "Mixture":
    """Combine pairs with their judgments and human labels, set aside the gold reward model's pairs, and split by prompt.

    Pairs labelled by construction (`contrast`) keep their label and need no judgment. Exact ties are dropped.

    Args:
        config: settings of each source, margin and held-out fraction.
        pairs: pairs of all sources.
        judgments: judgments in any order, matched by `pair_id`; at most one usable judgment per pair.
        human: human labels from `load_human`, with weights applied.
        seed: seed of the split.
        evaluate: prompts to exclude from training.
        gold: settings of the gold reward model, or None.
        gold_human: the gold reward model's own labels from `load_human`.
        fitted: prompts whose human labels the judge's calibration or probe was fitted on. They may be trained on, but never held out.
        fitted_texts: `texts_key`s of pairs that it was fitted on, for calibrations that don't hold their prompts.
        similarity: as for `split_groups`.
        warn: as for `split_groups`.

    Raises:
        DataError: a pair has two different judgments, or no preference is left to train the reward models or the gold reward model on.
    """
    pairs, by_pair = list(pairs), _by_pair(judgments)
    labelled_texts = {preference_key(p) for p in human if p.source.startswith("human:")}
    made = [
        *((p.id, p, True) for p in gold_human),
        *((p.id, p, False) for p in human),
        *((pair.id, _preference(pair, by_pair.get(pair.id), config), False) for pair in pairs),
    ]
    evaluate, fitted = list(evaluate), list(fitted)
    prompts = (p.prompt for _, p, _ in made if isinstance(p, Preference))
    group_of = split_groups((*evaluate, *fitted, *prompts), similarity, warn)
    excluded = {group_of(p) for p in evaluate}
    not_held_out = {group_of(p) for p in fitted}
    dropped: dict[int, Failure] = {}
    same: dict[tuple[bool, bool, str], list[int]] = {}

    for number, (item_id, preference, is_gold) in enumerate(made):
        if isinstance(preference, Failure):
            dropped[number] = preference
            continue
        key, by_person = preference_key(preference), preference.source.startswith("human:")
        if key in fitted_texts:
            not_held_out.add(group_of(preference.prompt))
        if problem := _problem(preference, group_of(preference.prompt) in excluded, None if is_gold else config.shares):
            dropped[number] = _drop(item_id, problem)
        elif not is_gold and not by_person and key in labelled_texts:
            dropped[number] = _drop(item_id, "human_labelled")
        else:
            same.setdefault((is_gold, by_person, key), []).append(number)

    cut = {text for _, p, _ in made if isinstance(p, Preference) for text in _cut_texts(p)}
    cut |= {text for pair in pairs for text in _cut_texts(pair)}
    kept: list[tuple[int, Preference]] = []
    gold_kept: list[Preference] = []
    for (is_gold, _, key), numbers in sorted(same.items(), key=lambda item: item[1][0]):
        first = numbers[0]
        one = pooled([p for p in (made[n][1] for n in numbers) if isinstance(p, Preference)])
        chosen_cut, rejected_cut = ((key, normalise(text)) in cut for text in (one.chosen, one.rejected))  # a person's label doesn't say it
        one = replace(one, chosen_truncated=chosen_cut, rejected_truncated=rejected_cut)
        dropped |= {n: _drop(made[n][0], "pooled") for n in numbers[1:]}
        if problem := _indecision(one, config):
            dropped[first] = _drop(made[first][0], problem)
        elif is_gold:
            gold_kept.append(one)
        else:
            kept.append((first, one))
    over = _over_limit([p for _, p in kept], config, seed)
    gold_groups = {group_of(p.prompt) for p in gold_kept}
    left: list[Preference] = []
    for number, p in kept:
        if p.id in over:
            dropped[number] = _drop(made[number][0], "over_limit")
        elif group_of(p.prompt) in gold_groups:
            dropped[number] = _drop(made[number][0], "in_gold")
        else:
            left.append(p)

    def split(preferences: Sequence[Preference], fraction: float, salt: str) -> tuple[list[Preference], list[Preference]]:
        free = [p for p in preferences if group_of(p.prompt) not in not_held_out]
        held_out = {id(p) for p in split_by_prompt(free, fraction, salt, group_of)[1]}
        return [p for p in preferences if id(p) not in held_out], [p for p in preferences if id(p) in held_out]

    if gold is not None:
        left, moved = split_by_prompt(left, gold.fraction, f"gold:{seed}", group_of)
        gold_kept += moved
    gold_train, gold_held_out = split(gold_kept, gold.held_out_fraction if gold else 0.0, f"gold-held-out:{seed}")
    left = with_shares(left, config.shares)
    train, held_out = split(left, config.held_out_fraction, f"held-out:{seed}")
    reasons = Counter(f.reason for f in dropped.values())
    if not train:
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "none (no input)"
        raise DataError(f"no preference is left to train on: {len(held_out)} held out; dropped: {why}")
    if gold is not None and not gold_train:
        raise DataError(
            f"no preference is left to train the gold reward model on: {len(gold_held_out)} are held out, and {len(train)} are the reward "
            "models'.\nFix: name label files in gold.human, or raise gold.fraction"
        )
    counts = {
        "train": len(train),
        "held_out": len(held_out),
        "gold_train": len(gold_train),
        "gold_held_out": len(gold_held_out),
        "dropped": len(dropped),
        **{f"dropped_{r}": n for r, n in reasons.items()},
    }
    return Mixture(
        tuple(train), tuple(held_out), counts, tuple(dropped[n] for n in sorted(dropped)), tuple(gold_train), tuple(gold_held_out)
    )


def _cut_texts(pair: Preference | ResponsePair) -> list[tuple[str, str]]:
    """Return a pair's responses that were cut off at the token limit, each with the key of the pair."""
    if isinstance(pair, Preference):
        cuts = ((pair.chosen, pair.chosen_truncated), (pair.rejected, pair.rejected_truncated))
    else:
        cuts = ((pair.response_a, pair.truncated_a), (pair.response_b, pair.truncated_b))
    if not any(was_cut for _, was_cut in cuts):
        return []
    key = texts_key(pair.prompt, *(text for text, _ in cuts))
    return [(key, normalise(text)) for text, was_cut in cuts if was_cut]


def with_shares(preferences: Sequence[Preference], shares: KindShares | None) -> list[Preference]:
    """Return preferences whose weights sum up to the shares of their prompts' kinds. The mean weight stays; None changes nothing.

    Args:
        preferences: preferences of kinds whose share isn't 0.
        shares: relative to each other; those of kinds without a pair don't count.
    """
    if shares is None:
        return list(preferences)
    totals: dict[str, float] = {}
    for p in preferences:
        totals[p.prompt.kind] = totals.get(p.prompt.kind, 0.0) + p.weight
    wanted = {kind: getattr(shares, kind) for kind in totals}
    factor = {kind: wanted[kind] / sum(wanted.values()) * sum(totals.values()) / total for kind, total in totals.items()}
    return [replace(p, weight=p.weight * factor[p.prompt.kind]) for p in preferences]


def source_of(pair: ResponsePair, protocol: str | None) -> str:
    """Return a preference's `source`: how the pair was made, and the protocol that judged it.

    >>> from cai.records import Prompt, Provenance
    >>> pair = ResponsePair(Prompt("p", "other", (), ""), "a", "b", "sampled", Provenance("m"))
    >>> source_of(pair, "pairwise")
    'ai:pairwise'
    """
    if protocol is None:
        return pair.source
    return f"{pair.source if pair.source in ('revision', 'distilled') else 'ai'}:{protocol}"


def _by_pair(judgments: Iterable[Judgment]) -> dict[str, Judgment]:
    found: dict[str, Judgment] = {}
    for judgment in judgments:
        before = found.get(judgment.pair_id)
        if before is None or before.p_a is None:
            found[judgment.pair_id] = judgment
        elif judgment.p_a is not None and (judgment.p_a, judgment.protocol) != (before.p_a, before.protocol):
            raise DataError(
                f"pair {judgment.pair_id} has two judgments: {before.protocol} says {before.p_a}, {judgment.protocol} says {judgment.p_a}. "
                "Use the labels of one judge only."
            )
    return found


def _preference(pair: ResponsePair, judgment: Judgment | None, config: PreferencesConfig) -> Preference | Failure:
    p_a, protocol, principle_ids, provenance = pair.p_a, None, pair.provenance.principle_ids, pair.provenance
    if p_a is None:
        if judgment is None:
            return _drop(pair.id, "not_judged")
        if judgment.p_a is None:
            return _drop(pair.id, "judge_failed", judgment.failure or "")
        p_a, protocol, principle_ids, provenance = judgment.p_a, judgment.protocol, judgment.principle_ids, judgment.provenance
    labelled = Preference(
        prompt=pair.prompt,
        chosen=pair.response_a,
        rejected=pair.response_b,
        p_chosen=p_a,
        weight=1.0,
        source=source_of(pair, protocol),
        principle_ids=principle_ids,
        provenance=replace(provenance, principle_ids=principle_ids),
        chosen_truncated=pair.truncated_a,
        rejected_truncated=pair.truncated_b,
    )
    return softened(labelled if p_a >= 0.5 else labelled.swapped(), _mixes(config).get(_maker(labelled.source), config.ai))


def _mixes(config: PreferencesConfig) -> dict[str, SourceMix]:
    return {"ai": config.ai, "revision": config.revision, "distilled": config.distilled, "contrast": config.contrast}


def _maker(source: str) -> str:
    """Return the first part of a preference's source (`ai`, `revision`, `distilled`, `contrast`, `human`), for its `SourceMix`."""
    return source.partition(":")[0]


def _over_limit(kept: Sequence[Preference], config: PreferencesConfig, seed: int) -> set[str]:
    """Return the ids of preferences above their source's limit. Human sources were limited when they were loaded."""
    left_out: set[str] = set()
    for maker, mix in _mixes(config).items():
        mine = [p for p in kept if _maker(p.source) == maker]
        left_out |= {p.id for p in mine} - {p.id for p in at_most(mine, mix.limit, f"limit:{seed}")}
    return left_out


def _problem(preference: Preference, evaluated: bool, shares: KindShares | None) -> str | None:
    """Return the first reason to drop a label whatever it says, or None."""
    if not preference.chosen.strip() or not preference.rejected.strip():
        return "empty"
    if normalise(preference.chosen) == normalise(preference.rejected):
        return "identical"
    if preference.weight == 0 or (shares is not None and getattr(shares, preference.prompt.kind) == 0):
        return "zero_weight"
    return "in_evaluate" if evaluated else None


def _indecision(preference: Preference, config: PreferencesConfig) -> str | None:
    """Return why a pooled label decides too little, or None."""
    if preference.p_chosen == 0.5:
        return "tie"
    # Tolerance of 1e-9: 0.6 - 0.5 is slightly below 0.1 in floating point.
    return "small_margin" if abs(preference.p_chosen - 0.5) < config.min_margin - 1e-9 else None


def _drop(item_id: str, reason: str, detail: str = "") -> Failure:
    return Failure(STAGE, item_id, reason, f"{_REASONS[reason]}: {detail}" if detail else _REASONS[reason])


@dataclass(frozen=True, slots=True)
class Mixture:
    """Training preferences, held-out preferences and dropped pairs."""

    train: tuple[Preference, ...]
    held_out: tuple[Preference, ...]
    """No prompt of theirs shares a conversation with one of `train`, or nearly repeats it."""
    counts: dict[str, int]
    """`train`, `held_out`, `gold_train`, `gold_held_out`, `dropped`, and `dropped_REASON`."""
    dropped: tuple[Failure, ...]
    gold_train: tuple[Preference, ...] = ()
    """Training pairs of the gold reward model. Their prompts are not in `train` or `held_out`."""
    gold_held_out: tuple[Preference, ...] = ()
