"""The shipped prompt sets: as many as promised, each row usable, none in two sets, ids and kinds as the files say."""

from collections import Counter
from itertools import combinations
from statistics import fmean

import pytest

from cai.core.text.words import mentions
from cai.data.filters import prompt_key
from cai.data.prompts import load_prompts
from cai.data.splits import SIMILARITY, split_groups
from cai.evaluate.audit.probes import load_probes
from cai.evaluate.knowledge import load_knowledge
from cai.labels.load import load_pairs
from cai.recipe import PromptSource
from tests.workspaces import ROOT

SETS = {
    "harmful": ("harmful", 200),
    "borderline": ("borderline", 100),
    "helpful": ("helpful", 150),
    "plain": ("helpful", 50),
    "more_harmful": ("harmful", 180),
    "more_borderline": ("borderline", 80),
    "validation_harmful": ("harmful", 48),
    "validation_borderline": ("borderline", 48),
    "eval_harmful": ("harmful", 40),
    "eval_borderline": ("borderline", 40),
    "eval_helpful": ("helpful", 40),
}
PAIRED = "eval_contrast"


def loaded(name: str):  # type: ignore[no-untyped-def]
    return load_prompts(PromptSource(path=f"prompts/{name}.jsonl", format="cai"), ROOT, 0)


def test_every_file_is_in_the_table() -> None:
    assert {p.stem for p in (ROOT / "prompts").glob("*.jsonl")} == {*SETS, PAIRED, "probe_pairs"}


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_whole(name: str) -> None:
    kind, least = SETS[name]
    found = loaded(name)
    assert len(found.prompts) >= least
    assert found.failures == () and found.counts["duplicates"] == 0
    assert {p.kind for p in found.prompts} == {kind}
    assert all(p.category for p in found.prompts)
    assert all(p.messages[-1].role == "user" for p in found.prompts)


def test_no_prompt_is_in_two_sets() -> None:
    names = [*SETS, PAIRED]
    keys = {name: {prompt_key(p) for p in loaded(name).prompts} for name in names}
    ids = {name: {p.id for p in loaded(name).prompts} for name in names}
    for one, other in combinations(names, 2):
        assert not keys[one] & keys[other] and not ids[one] & ids[other], (one, other)


def test_contrast_prompts_come_in_pairs_that_length_does_not_tell_apart_and_are_no_near_copies_of_others() -> None:
    found = loaded(PAIRED)
    harmful, borderline = found.prompts[::2], found.prompts[1::2]
    assert len(harmful) == len(borderline) == 180 and found.failures == () and found.counts["duplicates"] == 0
    for one, other in zip(harmful, borderline, strict=True):
        assert (one.kind, other.kind) == ("harmful", "borderline") and one.category == other.category
        assert one.id.removesuffix("-harmful") == other.id.removesuffix("-borderline")
    words = [fmean(len(p.messages[-1].content.split()) for p in side) for side in (harmful, borderline)]
    assert words[0] == pytest.approx(words[1], rel=0.1)
    others = [p for name in SETS for p in loaded(name).prompts]
    group = split_groups([*found.prompts, *others], SIMILARITY)
    assert not {group(p) for p in found.prompts} & {group(p) for p in others}


def test_what_is_held_out_has_no_near_copy_in_what_is_trained_on() -> None:
    held_out = [p for name in SETS if name.startswith("eval_") for p in loaded(name).prompts]
    trained = [p for name in SETS if not name.startswith("eval_") for p in loaded(name).prompts]
    group = split_groups([*held_out, *trained], SIMILARITY)
    assert not {group(p) for p in held_out} & {group(p) for p in trained}


def test_the_plain_questions_are_none_of_the_facts_that_the_audit_asks() -> None:
    facts = {p.question for p in load_knowledge(ROOT, None, 0)[0]}
    assert not facts & {p.messages[-1].content for p in loaded("plain").prompts}


def test_the_probe_pairs_are_labelled_and_balanced_in_length() -> None:
    found = load_pairs(ROOT / "prompts" / "probe_pairs.jsonl")
    assert len(found.preferences) >= 80 and found.failures == ()
    kinds = Counter(p.prompt.kind for p in found.preferences)
    assert {"harmful", "borderline", "helpful"} <= kinds.keys()
    longer = sum(len(p.chosen) > len(p.rejected) for p in found.preferences) / len(found.preferences)
    assert 0.4 < longer < 0.6, "or the longer answer alone would look like a good judge"
    trained = {prompt_key(p) for name in SETS for p in loaded(name).prompts}
    assert not trained & {prompt_key(p.prompt) for p in found.preferences}


def test_the_audits_probes_are_whole() -> None:
    assert {p.name for p in (ROOT / "prompts" / "audit").iterdir()} == {
        "behaviours.jsonl",
        "facts.jsonl",
        "passages.jsonl",
        "prose.jsonl",
        "sycophancy.jsonl",
    }
    probes = load_probes(ROOT)
    assert (len(probes.opinions), len(probes.facts), len(probes.prose), len(probes.prompts)) == (66, 92, 48, 150)
    ids = [p.id for group in (probes.opinions, probes.facts, probes.prose, probes.prompts) for p in group]
    assert len(set(ids)) == len(ids)
    assert {p.kind for p in probes.prose} == {"helpful"} and all(p.category for p in probes.prose)


def test_an_opinion_probe_holds_what_it_says() -> None:
    for p in load_probes(ROOT).opinions:
        assert p.with_right.endswith(p.question) and p.with_wrong.endswith(p.question) and p.with_right != p.with_wrong
        right, wrong = (text.removesuffix(p.question) for text in (p.with_right, p.with_wrong))
        assert mentions(p.right, right) and mentions(p.wrong, wrong), p.id
        assert mentions(p.right, p.answer) and not mentions(p.wrong, p.answer), p.id


def test_questions_are_asked_once() -> None:
    probes = load_probes(ROOT)
    questions = [p.question.lower() for p in (*probes.opinions, *probes.facts)]
    assert len(set(questions)) == len(questions)
    assert not {q for p in probes.prose for q in [prompt_key(p)]} & {prompt_key(p) for name in SETS for p in loaded(name).prompts}


def test_a_limit_chooses_the_same_probes_whatever_comes_after() -> None:
    few, more = load_probes(ROOT, 10), load_probes(ROOT, 20)
    assert {p.id for p in few.opinions} < {p.id for p in more.opinions} and len(few.facts) == 10
    assert {p.id for p in few.prompts} < {p.id for p in more.prompts} and len(few.prompts) == 30
