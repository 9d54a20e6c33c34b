import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cai.data.filters import prompt_key, texts_key
from cai.data.mixture import Mixture, mix
from cai.errors import DataError
from cai.labels.load import load_human
from cai.recipe import GoldConfig, HumanSource, KindShares, PreferencesConfig, SourceMix
from cai.records import Judgment, Message, Preference, Prompt, Provenance, ResponsePair

ALL = PreferencesConfig(held_out_fraction=0.0)


def prompt(text: str) -> Prompt:
    return Prompt(f"id-{text}", "harmful", (Message("user", text),), "s")


def pair(text: str = "q", a: str = "good", b: str = "bad", source: str = "sampled", p_a: float | None = None) -> ResponsePair:
    return ResponsePair(prompt(text), a, b, source, Provenance("policy", ("made-under",)), p_a)


def judged(p: ResponsePair, p_a: float | None, protocol: str = "pairwise") -> Judgment:
    failure = "no_verdict" if p_a is None else None
    return Judgment(p.id, ("kind", "honest"), protocol, p_a, p_a, p_a, failure, Provenance("judge", template_hash="t"))


def human(text: str, chosen: str, rejected: str, weight: float = 2.0) -> Preference:
    return Preference(prompt(text), chosen, rejected, 1.0, weight, "human:f.jsonl", (), Provenance(""))


def reasons(mixture: Mixture) -> list[str]:
    return [f.reason for f in mixture.dropped]


def test_the_judges_favourite_is_chosen_whichever_side_it_is_on() -> None:
    first, second = pair("q1"), pair("q2")
    mixture = mix(ALL, [first, second], [judged(second, 0.2), judged(first, 0.9)])
    assert [(p.chosen, p.rejected, p.p_chosen) for p in mixture.train] == [("good", "bad", 0.9), ("bad", "good", 0.8)]
    one = mixture.train[0]
    assert (one.source, one.principle_ids, one.provenance.model, one.provenance.template_hash) == (
        "ai:pairwise",
        ("kind", "honest"),
        "judge",
        "t",
    )


def test_kinds_of_prompts_have_their_shares_however_many_pairs_and_whoever_labelled_them() -> None:
    shares = KindShares(harmful=0.5, helpful=0.0)
    config = PreferencesConfig(held_out_fraction=0.0, ai=SourceMix(weight=3.0), shares=shares)
    pairs = [pair(f"q{i}") for i in range(8)]
    for i, kind in ((1, "helpful"), (2, "borderline"), (3, "borderline")):
        pairs[i] = replace(pairs[i], prompt=Prompt(f"id-q{i}", kind, (Message("user", f"q{i}"),), "s"))  # type: ignore[arg-type]
    mixture = mix(config, pairs, [judged(p, 0.9) for p in pairs], [human("h", "yes", "no", 2.0)])
    assert reasons(mixture) == ["zero_weight"]
    weights = {p.prompt.id: p.weight for p in mixture.train}
    harmful, borderline = weights.keys() - {"id-q2", "id-q3"}, {"id-q2", "id-q3"}
    assert len(harmful) == 6 and sum(weights.values()) == pytest.approx(7 * 3 + 2), "the mean weight stays"
    assert sum(weights[i] for i in borderline) == pytest.approx(2 * sum(weights[i] for i in harmful))
    assert weights["id-h"] / weights["id-q0"] == pytest.approx(2 / 3), "within a kind, weights are what they were"
    assert mix(PreferencesConfig(held_out_fraction=0.0), pairs, [judged(p, 0.9) for p in pairs]).train[0].weight == 1.0
    apart = mix(
        config,
        pairs,
        [judged(p, 0.9) for p in pairs],
        gold=GoldConfig(fraction=0.0),
        gold_human=[replace(human("g", "yes", "no"), prompt=Prompt("g", "helpful", prompt("g").messages, "s"))],
    )
    assert [p.prompt.kind for p in (*apart.gold_train, *apart.gold_held_out)] == ["helpful"], "the gold model's labels are left alone"


def test_swapping_every_pair_and_its_judgment_changes_no_preference() -> None:
    rng = random.Random(0)
    pairs = [pair(f"q{i}", f"a{i}", f"b{i}", source=rng.choice(["sampled", "revision"])) for i in range(50)]
    p_a = [rng.choice([0.1, 0.3, 0.7, 0.95]) for _ in pairs]
    swapped = [p.swapped() for p in pairs]
    straight = mix(ALL, pairs, [judged(p, x) for p, x in zip(pairs, p_a, strict=True)])
    turned = mix(ALL, swapped, [judged(p, 1.0 - x) for p, x in zip(swapped, p_a, strict=True)])
    assert [(p.chosen, p.rejected, p.source) for p in straight.train] == [(p.chosen, p.rejected, p.source) for p in turned.train]
    assert [p.p_chosen for p in straight.train] == pytest.approx([p.p_chosen for p in turned.train])


def test_sources_and_weights_follow_how_the_pair_was_made() -> None:
    config = PreferencesConfig(
        held_out_fraction=0.0, ai=SourceMix(weight=0.5), revision=SourceMix(weight=0.25), contrast=SourceMix(weight=3.0)
    )
    sampled, revised, contrast = pair("q1"), pair("q2", source="revision"), pair("q3", source="contrast", p_a=0.1)
    mixture = mix(config, [sampled, revised, contrast], [judged(sampled, 0.9), judged(revised, 0.9, "pointwise")], [human("q4", "x", "y")])
    assert {p.source: p.weight for p in mixture.train} == {
        "ai:pairwise": 0.5,
        "revision:pointwise": 0.25,
        "contrast": 3.0,
        "human:f.jsonl": 2.0,
    }
    (by_construction,) = [p for p in mixture.train if p.source == "contrast"]
    assert (by_construction.chosen, by_construction.p_chosen, by_construction.principle_ids) == ("bad", 0.9, ("made-under",))


def test_what_is_not_a_preference_is_dropped_by_name() -> None:
    ok = pair("ok")
    cases = [
        (pair("a"), None, "not_judged"),
        (pair("b"), judged(pair("b"), None), "judge_failed"),
        (pair("c"), judged(pair("c"), 0.5), "tie"),
        (pair("d", b=" GOOD "), judged(pair("d", b=" GOOD "), 0.9), "identical"),
        (pair("e", b=""), judged(pair("e", b=""), 0.9), "empty"),
        (pair("f"), judged(pair("f"), 0.55), "small_margin"),
        (replace(ok), judged(ok, 0.9), "pooled"),
        (pair("h", source="revision"), judged(pair("h", source="revision"), 0.9), "zero_weight"),
        (pair("held"), judged(pair("held"), 0.9), "in_evaluate"),
    ]
    config = PreferencesConfig(held_out_fraction=0.0, min_margin=0.1, revision=SourceMix(weight=0.0))
    pairs = [ok, pair("edge"), *(p for p, _, _ in cases)]
    judgments = [judged(ok, 0.9), judged(pair("edge"), 0.6), *(j for _, j, _ in cases if j)]
    mixture = mix(config, pairs, judgments, evaluate=[prompt(" HELD ")])
    assert [p.prompt.messages[0].content for p in mixture.train] == ["ok", "edge"]
    assert reasons(mixture) == [reason for _, _, reason in cases]
    assert mixture.counts["dropped"] == len(cases) and mixture.counts["dropped_tie"] == 1
    assert mixture.counts["train"] + mixture.counts["held_out"] + mixture.counts["dropped"] == len(pairs)


def test_people_outrank_the_judge_on_the_same_texts_and_are_pooled_whichever_they_prefer() -> None:
    same = pair("q", "x", "y")
    people = [human("q", "y", "x"), human("q", "x", "y"), human(" Q ", "y", "x", weight=4.0)]
    mixture = mix(ALL, [same], [judged(same, 0.9)], people)
    (p,) = mixture.train
    assert (p.chosen, p.p_chosen, p.weight, p.source) == ("y", pytest.approx(6 / 8), pytest.approx(8 / 3), "human:f.jsonl")
    assert reasons(mixture) == ["pooled", "pooled", "human_labelled"]


def test_two_judgments_of_the_same_texts_are_one_example() -> None:
    pairs = [pair("q", "x", "y"), pair("q", "y", "x", source="revision")]
    mixture = mix(ALL, pairs, [judged(p, x) for p, x in zip(pairs, (0.9, 0.3), strict=True)])
    assert [(p.chosen, p.p_chosen) for p in mixture.train] == [("x", pytest.approx(0.8))] and reasons(mixture) == ["pooled"]


LONG = "Please tell me how I can bake a loaf of rye bread at home in an oven without any steam"


def followed(text: str, then: str) -> Prompt:
    return Prompt(f"{text}-{then}", "other", (Message("user", text), Message("assistant", "Yes."), Message("user", then)), "s")


def test_no_two_parts_share_a_conversation_or_a_near_copy() -> None:
    """Conversations of one opening, an edited opening, and a system turn: all of a group are in the same part."""

    def group(i: int) -> list[Prompt]:
        text = f"{LONG} number {i}{i}{i} of my cookery book for bakers {i}"
        return [
            prompt(text),
            prompt(f"{text} today"),
            followed(text.upper(), "And without salt?"),
            followed(f"{text} then", "What do I do if it burns, and who eats it after all of this work that I did?"),
            Prompt(f"sys-{i}", "other", (Message("system", "Be terse."), Message("user", text)), "s"),
        ]

    def words(i: int) -> str:
        return " ".join(f"{w}{i}" for w in "how do bakers like to make good bread".split())

    groups = [[prompt(words(i)), prompt(words(i) + " now"), followed(words(i), "And then?")] for i in range(60)]
    people = [Preference(p, "x", "y", 1.0, 1.0, "human:f", (), Provenance("")) for g in groups for p in g]
    gold = GoldConfig(fraction=0.3, held_out_fraction=0.4)
    mixture = mix(PreferencesConfig(held_out_fraction=0.3), [], [], people, evaluate=[groups[0][2]], gold=gold)
    parts = (mixture.train, mixture.held_out, mixture.gold_train, mixture.gold_held_out)
    assert all(parts) and sum(map(len, parts)) == 3 * 59 and reasons(mixture) == ["in_evaluate"] * 3
    where = {p.prompt.id: n for n, part in enumerate(parts) for p in part}
    assert all(len({where[p.id] for p in g}) == 1 for g in groups[1:])
    one = group(1)
    people = [Preference(p, "x", "y", 1.0, 1.0, "human:f", (), Provenance("")) for p in (*one, prompt("other"))]
    for evaluated in one:
        assert [p.prompt.id for p in mix(ALL, [], [], people, evaluate=[evaluated]).train] == ["id-other"]


def test_labels_that_fitted_a_calibration_are_trained_on_but_never_held_out() -> None:
    people = [human(f"q{i}", "x", "y") for i in range(100)]
    fitted = [followed(f"Q{i}", "And then?") for i in range(50)]
    mixture = mix(PreferencesConfig(held_out_fraction=0.5), [], [], people, fitted=fitted)
    held_out = {p.prompt.id for p in mixture.held_out}
    assert len(mixture.train) + len(held_out) == 100 and 10 < len(held_out) < 40
    assert not held_out & {f"id-q{i}" for i in range(50)}
    old = mix(PreferencesConfig(held_out_fraction=0.5), [], [], people, fitted_texts={texts_key(p.prompt, "y", "x") for p in people[:50]})
    assert {p.prompt.id for p in old.held_out} == held_out


def test_a_retried_judgment_replaces_a_failure_and_a_second_opinion_is_refused() -> None:
    p = pair()
    assert mix(ALL, [p], [judged(p, None), judged(p, 0.8), judged(p, None)]).train[0].p_chosen == 0.8
    with pytest.raises(DataError, match="two judgments"):
        mix(ALL, [p], [judged(p, 0.8), judged(p, 0.2)])


def test_held_out_prompts_are_never_trained_on() -> None:
    pairs = [pair(text, f"a{i}", f"b{i}") for i in range(150) for text in (f"q{i}", f" Q{i}")]
    mixture = mix(PreferencesConfig(held_out_fraction=0.3), pairs, [judged(p, 0.9) for p in pairs], seed=1)
    assert mixture.train and mixture.held_out
    assert not {prompt_key(p.prompt) for p in mixture.train} & {prompt_key(p.prompt) for p in mixture.held_out}
    again = mix(PreferencesConfig(held_out_fraction=0.3), pairs[::-1], [judged(p, 0.9) for p in pairs], seed=1)
    assert {prompt_key(p.prompt) for p in again.held_out} == {prompt_key(p.prompt) for p in mixture.held_out}


def test_temperature_calms_and_noise_caps_what_a_source_says() -> None:
    # Log-odds of 0.9 are log 9; halved, log 3: 0.75. A tenth of noise: 0.8 · 0.75 + 0.1 = 0.7. Contrast: 0.8 · 1 + 0.1.
    mixed = SourceMix(temperature=2.0, noise=0.1)
    config = PreferencesConfig(held_out_fraction=0.0, ai=mixed, contrast=mixed)
    sampled, contrast, revised = pair("q1"), pair("q2", source="contrast", p_a=1.0), pair("q3", source="revision")
    mixture = mix(config, [sampled, contrast, revised], [judged(sampled, 0.1), judged(revised, 0.9)])
    assert [(p.chosen, p.p_chosen) for p in mixture.train] == [
        ("bad", pytest.approx(0.7)),
        ("good", pytest.approx(0.9)),
        ("good", pytest.approx(0.9)),
    ]


def test_a_sources_limit_only_adds_and_touches_no_other_source() -> None:
    pairs = [pair(f"q{i}") for i in range(30)] + [pair(f"r{i}", source="revision") for i in range(5)]
    judgments = [judged(p, 0.9) for p in pairs]

    def kept(limit: int) -> set[str]:
        mixture = mix(PreferencesConfig(held_out_fraction=0.0, ai=SourceMix(limit=limit)), pairs, judgments)
        assert reasons(mixture) == ["over_limit"] * (30 - limit)
        return {p.id for p in mixture.train}

    few, more = kept(10), kept(20)
    assert len(few) == 15 and len(more) == 25 and few < more


def test_nothing_left_says_why() -> None:
    pairs = [pair(f"q{i}") for i in range(3)]
    with pytest.raises(DataError, match="2 tie, 1 judge_failed"):
        mix(ALL, pairs, [judged(pairs[0], 0.5), judged(pairs[1], 0.5), judged(pairs[2], None)])


def test_human_sources_bring_their_weight_and_limit(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "x", "rejected": "y"} for i in range(9)]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"prompt": "t", "chosen": "x", "rejected": "x"}]))
    preferences, failures = load_human([HumanSource(path="h.jsonl", weight=4.0, noise=0.2, limit=5, kind="harmful")], tmp_path, 0)
    assert len(preferences) == 5 and {p.weight for p in preferences} == {4.0} and {p.prompt.kind for p in preferences} == {"harmful"}
    assert {p.p_chosen for p in preferences} == {0.8}
    assert [f.reason for f in failures] == ["identical"]
    with pytest.raises(DataError, match=r"(?s)one\.jsonl.*two\.jsonl"):
        load_human([HumanSource(path="one.jsonl"), HumanSource(path="two.jsonl")], tmp_path, 0)


def test_gold_has_prompts_of_its_own() -> None:
    pairs = [pair(f"q{i}") for i in range(200)] + [pair(f"q{i}", "better", "worse") for i in range(200)]
    judgments = [judged(p, 0.9) for p in pairs]
    mixture = mix(PreferencesConfig(held_out_fraction=0.2), pairs, judgments, gold=GoldConfig(fraction=0.3, held_out_fraction=0.25))
    parts = (mixture.train, mixture.held_out, mixture.gold_train, mixture.gold_held_out)
    prompts = [{prompt_key(p.prompt) for p in part} for part in parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 200
    assert [len(part) == 2 * len(keys) for part, keys in zip(parts, prompts, strict=True)] == [True] * 4
    assert 0.2 < (len(prompts[2]) + len(prompts[3])) / 200 < 0.4
    assert 0.1 < len(prompts[3]) / (len(prompts[2]) + len(prompts[3])) < 0.4
    assert (mixture.counts["gold_train"], mixture.counts["gold_held_out"]) == (len(parts[2]), len(parts[3]))
    assert {p.source for p in (*parts[2], *parts[3])} == {"ai:pairwise"}


def test_golds_own_labels_push_the_same_prompts_out_of_the_proxys() -> None:
    pairs = [pair("shared"), pair("mine")]
    people = [human(" SHARED", "yes", "no"), human("other", "yes", "no")]
    own = [human("Shared ", "yes", "no"), human("gold only", "x", "y"), human("asked in evaluation", "x", "y")]
    mixture = mix(
        ALL,
        pairs,
        [judged(p, 0.9) for p in pairs],
        people,
        evaluate=[prompt("asked in evaluation")],
        gold=GoldConfig(held_out_fraction=0.0),
        gold_human=own,
    )
    assert sorted(p.prompt.id for p in mixture.train) == ["id-mine", "id-other"]
    assert sorted(p.prompt.id for p in mixture.gold_train) == ["id-Shared ", "id-gold only"]
    assert sorted(reasons(mixture)) == ["in_evaluate", "in_gold", "in_gold"]


def test_a_gold_model_without_pairs_is_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)no preference is left to train the gold reward model on.*gold\.fraction"):
        mix(ALL, [pair()], [judged(pair(), 0.9)], gold=GoldConfig())


@pytest.mark.parametrize("is_judged", [True, False])
def test_a_persons_label_of_a_cut_response_keeps_that_it_was_cut(is_judged: bool) -> None:
    cut = replace(pair("q", "Cut off her", "Whole."), truncated_a=True)
    judgments = [judged(cut, 0.9)] if is_judged else []
    mixture = mix(ALL, [cut, pair("r")], [*judgments, judged(pair("r"), 0.9)], [human("q", "cut off her", "Whole.")])
    [one] = [p for p in mixture.train if p.source == "human:f.jsonl"]
    assert (one.chosen_truncated, one.rejected_truncated) == (True, False)
    [other] = [p for p in mixture.train if p.source != "human:f.jsonl"]
    assert (other.chosen_truncated, other.rejected_truncated) == (False, False)
