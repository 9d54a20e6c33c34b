"""Records: frozen, swapped into their own inverse, and the same after a trip through JSON."""

import dataclasses
import inspect
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cai.records
from cai.records import (
    PROMPT_KINDS,
    Constitution,
    Critique,
    Judgment,
    Message,
    Preference,
    Principle,
    Prompt,
    Provenance,
    ResponseCheck,
    ResponsePair,
    Revision,
    RevisionTrace,
    Round,
)

RECORDS = [c for _, c in inspect.getmembers(cai.records, dataclasses.is_dataclass)]
PROBABILITIES = st.floats(0, 1)
st.register_type_strategy(ResponseCheck, st.builds(ResponseCheck, json_schema=st.none() | st.just({"type": "object"})))
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
PAIRS = st.builds(ResponsePair, p_a=st.none() | PROBABILITIES)
PREFERENCES = st.builds(Preference, p_chosen=PROBABILITIES)
BY = Provenance("model")
PROMPT = Prompt("p", "harmful", (Message("user", "Hi"),), "test")


def principle(name: str, **changes: Any) -> Principle:
    texts = dict.fromkeys(("statement", "critique", "revision", "ask_positive", "ask_negative", "compare"), "text")
    return Principle(**({"id": name} | texts | changes))


def test_every_record_is_found() -> None:
    assert len(RECORDS) == 27


@pytest.mark.parametrize("record", RECORDS, ids=lambda c: c.__name__)
def test_records_are_frozen_and_slotted_and_documented(record: type) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(record)
    assert record.__doc__ and not record.__doc__.startswith(f"{record.__name__}(")
    field = dataclasses.fields(record)[0].name
    one = object.__new__(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field, "x")


@pytest.mark.parametrize("record", RECORDS, ids=lambda c: c.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_records_are_the_same_after_a_trip_through_json(record: type, data: st.DataObject) -> None:
    one = data.draw(st.from_type(record))
    encoded = msgspec.json.encode(one)
    assert msgspec.json.decode(encoded, type=record) == one
    assert b"\n" not in encoded


@given(PAIRS)
def test_a_swapped_pair_is_its_own_inverse(pair: ResponsePair) -> None:
    swapped = pair.swapped()
    assert (swapped.response_a, swapped.response_b) == (pair.response_b, pair.response_a)
    back = swapped.swapped()
    assert dataclasses.replace(back, p_a=None) == dataclasses.replace(pair, p_a=None)
    assert back.id == pair.id
    if pair.p_a is None:
        assert swapped.p_a is None and back.p_a is None
    else:
        assert swapped.p_a == 1.0 - pair.p_a
        assert back.p_a == pytest.approx(pair.p_a, abs=2**-53)


@given(PREFERENCES)
def test_a_swapped_preference_is_its_own_inverse(preference: Preference) -> None:
    swapped = preference.swapped()
    assert (swapped.chosen, swapped.rejected) == (preference.rejected, preference.chosen)
    assert swapped.p_chosen == 1.0 - preference.p_chosen
    back = swapped.swapped()
    assert dataclasses.replace(back, p_chosen=0.5) == dataclasses.replace(preference, p_chosen=0.5)
    assert back.p_chosen == pytest.approx(preference.p_chosen, abs=2**-53)


@given(st.floats(0.5, 1), st.booleans())
def test_swapping_twice_is_exact_for_every_label_that_cai_makes(p: float, contrast: bool) -> None:
    pair = ResponsePair(PROMPT, "a", "b", "contrast", BY, p if contrast else None)
    assert pair.swapped().swapped() == pair
    preference = Preference(PROMPT, "a", "b", p, 1.0, "ai:pairwise", (), BY)
    assert preference.swapped().swapped() == preference


def test_ids_follow_the_texts_and_their_order_only() -> None:
    pair = ResponsePair(PROMPT, "a", "b", "sampled", BY)
    assert pair.id != pair.swapped().id
    assert pair.id == dataclasses.replace(pair, source="contrast", p_a=0.9, provenance=Provenance("other")).id
    assert pair.id != dataclasses.replace(pair, prompt=dataclasses.replace(PROMPT, id="q")).id
    assert pair.id == Preference(PROMPT, "a", "b", 1.0, 1.0, "human:f", (), BY).id
    trace = RevisionTrace(PROMPT, "r", (), None, None, BY)
    assert trace.id == dataclasses.replace(trace, dropped="same", p_revised=0.4).id
    assert trace.id != dataclasses.replace(trace, response="s").id


def test_the_final_text_of_a_trace_is_its_last_revision() -> None:
    rounds = tuple(Round(Critique("p", f"c{i}"), Revision("p", f"r{i}")) for i in range(2))
    assert RevisionTrace(PROMPT, "first", rounds, None, None, BY).final == "r1"
    assert RevisionTrace(PROMPT, "first", (), None, None, BY).final == "first"


def test_principles_apply_by_kind_and_unlabelled_prompts_take_all() -> None:
    one, two = principle("one", applies_to=("harmful",)), principle("two", applies_to=("helpful", "borderline"))
    constitution = Constitution("c", "C", "", (one, two))
    assert [[p.id for p in constitution.for_kind(kind)] for kind in PROMPT_KINDS] == [["one"], ["two"], ["two"], ["one", "two"]]
    assert constitution.principle("two") is two
    with pytest.raises(KeyError):
        constitution.principle("three")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Principle)])
def test_every_field_of_a_principle_is_in_the_constitutions_hash(field: str) -> None:
    one = principle("one")
    other: Any = {"weight": 2.0, "applies_to": ("harmful",)}.get(field, "changed")
    before, after = (Constitution("c", "C", "", (p,)).hash for p in (one, dataclasses.replace(one, **{field: other})))
    assert before != after


@pytest.mark.parametrize(
    "text", ['{"pair_id": "x", "p_a": "high"}', '{"role": "robot", "content": ""}', '{"role": "user", "content": null}']
)
def test_wrong_fields_are_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Judgment if "pair_id" in text else Message)
