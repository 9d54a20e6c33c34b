"""The shipped prompt sets: as many as promised, each row usable, none in two sets, ids and kinds as the files say."""

from collections import Counter
from itertools import combinations

import pytest

from cai.data.filters import prompt_key
from cai.data.human import load_pairs
from cai.data.prompts import load_prompts
from cai.recipe import PromptSource
from tests.workspaces import ROOT

SETS = {
    "harmful": ("harmful", 200),
    "borderline": ("borderline", 100),
    "helpful": ("helpful", 150),
    "eval_harmful": ("harmful", 40),
    "eval_borderline": ("borderline", 40),
    "eval_helpful": ("helpful", 40),
}


def loaded(name: str):  # type: ignore[no-untyped-def]
    return load_prompts(PromptSource(path=f"prompts/{name}.jsonl", format="cai"), ROOT, 0)


def test_every_file_is_in_the_table() -> None:
    assert {p.stem for p in (ROOT / "prompts").glob("*.jsonl")} == {*SETS, "probe_pairs"}


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
    keys = {name: {prompt_key(p) for p in loaded(name).prompts} for name in SETS}
    ids = {name: {p.id for p in loaded(name).prompts} for name in SETS}
    for one, other in combinations(SETS, 2):
        assert not keys[one] & keys[other] and not ids[one] & ids[other], (one, other)


def test_the_probe_pairs_are_labelled_and_balanced_in_length() -> None:
    found = load_pairs(ROOT / "prompts" / "probe_pairs.jsonl")
    assert len(found.preferences) >= 80 and found.failures == ()
    kinds = Counter(p.prompt.kind for p in found.preferences)
    assert {"harmful", "borderline", "helpful"} <= kinds.keys()
    longer = sum(len(p.chosen) > len(p.rejected) for p in found.preferences) / len(found.preferences)
    assert 0.4 < longer < 0.6, "or the longer answer alone would look like a good judge"
    trained = {prompt_key(p) for name in SETS for p in loaded(name).prompts}
    assert not trained & {prompt_key(p.prompt) for p in found.preferences}
