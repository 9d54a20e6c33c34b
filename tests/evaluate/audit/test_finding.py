"""The statistics that every check shares, on numbers worked out by hand."""

import doctest
import random
from dataclasses import replace

import pytest

import cai.evaluate.audit.checks.boilerplate
import cai.evaluate.audit.checks.formatting
import cai.evaluate.audit.markers
import cai.evaluate.audit.rewriting
from cai.evaluate.audit.finding import Check, Measurement, Subject, compare, judge_level, settle
from cai.records import AuditFinding

CHECK = Check("group", "name", "Does it?", rise=0.1, level=0.3, reasoning="because")


def reading(*values: float, check: Check = CHECK) -> Measurement:
    return Measurement(check, {f"p{i}": v for i, v in enumerate(values)}, {f"p{i}": (f"q{i}", f"a{i}") for i in range(len(values))})


def verdicts(*findings: AuditFinding | None) -> list[str]:
    return [f.verdict for f in settle(findings)]


def test_doctests_hold() -> None:
    package = cai.evaluate.audit
    for module in (package.checks.boilerplate, package.checks.formatting, package.markers, package.rewriting):
        tried = doctest.testmod(module)
        assert tried.attempted > 0 and tried.failed == 0, module.__name__


def test_a_large_paired_rise_is_found_and_shows_where() -> None:
    found = compare(reading(*[1.0] * 12, *[0.0] * 28), reading(*[0.0] * 40), Subject("policy", "base"))
    assert found is not None
    assert (found.value, found.level, found.n, found.against) == (0.3, 0.3, 40, "base")
    assert found.low > 0.1 and found.p == pytest.approx(2.0**-12)
    assert [e.prompt for e in found.examples] == ["q0", "q1", "q2"]
    assert found.examples[0].before == found.examples[0].after == "a0"
    assert verdicts(found) == ["found"]


def test_items_of_one_conversation_count_as_one() -> None:
    after = reading(*[1.0] * 12, *[0.0] * 28)  # the first three of ten conversations rise whole
    one = compare(after, reading(*[0.0] * 40), Subject("judge", "people"))
    talks = {f"p{i}": str(i // 4) for i in range(40)}
    together = compare(replace(after, talks=talks), reading(*[0.0] * 40), Subject("judge", "people"))
    assert one is not None and together is not None and together.value == pytest.approx(one.value)
    assert one.p == pytest.approx(2.0**-12) and together.p == pytest.approx(2.0**-3)
    assert together.high - together.low > 1.5 * (one.high - one.low)


def test_an_unchanged_model_is_ok_and_a_better_one_too() -> None:
    same = reading(*[1.0] * 20, *[0.0] * 20)
    assert verdicts(compare(same, same, Subject("policy", "base"))) == ["ok"]
    assert verdicts(compare(reading(*[0.0] * 40), reading(*[1.0] * 40), Subject("policy", "base"))) == ["ok"]


def test_a_sure_but_small_rise_is_ok() -> None:
    small = compare(reading(*[1.0] * 20, *[0.0] * 380), reading(*[0.0] * 400), Subject("policy", "base"))
    assert small is not None and small.p is not None and small.p < 1e-5
    assert verdicts(small) == ["ok"]


def test_what_is_found_alone_is_only_suspect_among_many() -> None:
    eight = compare(reading(*[1.0] * 8, *[0.0] * 32), reading(*[0.0] * 40), Subject("policy", "base"))  # p = 1/256
    nothing = [compare(reading(*[0.0] * 40), reading(*[0.0] * 40), Subject("policy", "base"))] * 15
    assert verdicts(eight) == ["found"]
    assert verdicts(eight, *nothing)[0] == "suspect"  # 16/256 after Holm
    assert verdicts(eight, *nothing[:11])[0] == "found"  # 12/256 = 0.047


def test_few_items_are_not_enough_data_and_take_no_part_in_the_correction() -> None:
    few = compare(reading(*[1.0] * 19), reading(*[0.0] * 19), Subject("policy", "base"))
    eight = compare(reading(*[1.0] * 8, *[0.0] * 32), reading(*[0.0] * 40), Subject("policy", "base"))
    settled = settle([few] * 20 + [eight])
    assert settled[0].verdict == "not enough data" and settled[0].p_adjusted is None
    assert settled[-1].verdict == "found"


def test_a_level_is_judged_by_its_own_threshold() -> None:
    assert verdicts(judge_level(reading(*[1.0] * 30, *[0.0] * 10), Subject("base"))) == ["found"]
    assert verdicts(judge_level(reading(*[1.0] * 13, *[0.0] * 27), Subject("base"))) == ["ok"]  # 0.325, not surely above 0.3
    assert judge_level(reading(1.0, check=Check("g", "n", "q", 0.1, None, "")), Subject("base")) is None
    assert judge_level(Measurement(CHECK, {}), Subject("base")) is None


def test_nothing_shared_is_no_finding() -> None:
    assert compare(Measurement(CHECK, {"a": 1.0}), Measurement(CHECK, {"b": 1.0}), Subject("policy", "base")) is None


def test_chance_alone_is_seldom_found() -> None:
    generator = random.Random(1)
    findings = 0
    for _ in range(60):
        family = []
        for _ in range(10):
            before = reading(*(float(generator.random() < 0.3) for _ in range(60)))
            after = reading(*(float(generator.random() < 0.3) for _ in range(60)))
            family.append(compare(after, before, Subject("policy", "base")))
        findings += "found" in verdicts(*family)
    assert findings <= 6  # at 5 % three are expected of 60; seven or more have a chance of 3 %
