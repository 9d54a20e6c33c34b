"""One prompt through the loop: steps in order, earlier rounds never paid twice, and the judge's own opinions."""

import math
from dataclasses import replace

import pytest

from cai.errors import ConstitutionError
from cai.judge.calibration import Calibration, write_calibration
from cai.models.requests import ChoicesRequest, CompleteRequest, Completion
from cai.models.scripted import ScriptedEngine, default_script
from cai.workbench.terminal import show_step
from cai.workbench.trial import Answered, JudgedRevision, Revised, chosen, steps
from tests.judge.judging import CONSTITUTION
from tests.sessions import ScriptedSession


def tried(session, rounds=1, constitution=CONSTITUTION, kind="helpful"):
    async def work(opened):
        return [s async for s in steps("How do I bake bread?", constitution, opened, kind=kind, rounds=rounds)]

    return session.ask(work)


def calibrated(path, protocol, principles):
    """A session whose recipe names a calibration, fitted for its model under this protocol and way of drawing principles."""
    fingerprint = ScriptedEngine(default_script, default_script.__name__).fingerprint
    write_calibration(path, Calibration(protocol, principles, 1, fingerprint, "", scale=3.0, pooling="probabilities"))
    return ScriptedSession(calibration=str(path))


def test_the_steps_of_two_rounds():
    session = ScriptedSession()
    answered, first, second, judged = tried(session, rounds=2)
    assert (
        isinstance(answered, Answered) and isinstance(first, Revised) and isinstance(second, Revised) and isinstance(judged, JudgedRevision)
    )
    assert first.principle != second.principle and first.revision != second.revision
    written = [r for r in session.asked if isinstance(r, CompleteRequest)]
    assert len(written) == 1 + 2 * 2, "the first round is not asked again for the second"
    assert any(first.revision in m.content for m in written[3].messages), "the second critique is of the first revision"
    assert len([r for r in session.asked if isinstance(r, ChoicesRequest)]) == 4 * 3
    assert judged.failure is None and {o.principle_id for o in judged.opinions} == {"kind", "true", "brief"}
    assert min(o.p_revised for o in judged.opinions) < judged.p_revised < max(o.p_revised for o in judged.opinions)
    assert [abs(o.p_revised - 0.5) for o in judged.opinions] == sorted((abs(o.p_revised - 0.5) for o in judged.opinions), reverse=True)


def test_one_principle_is_used_for_every_round_and_for_the_verdict():
    only = chosen(CONSTITUTION, ["true"])
    _, first, second, judged = tried(ScriptedSession(), rounds=2, constitution=only)
    assert first.principle.id == second.principle.id == "true"
    assert [o.principle_id for o in judged.opinions] == ["true"] and judged.opinions[0].p_revised == judged.p_revised


def test_a_calibration_weighs_the_label_and_no_single_opinion(tmp_path):
    plain = tried(ScriptedSession())[-1]
    weighed = tried(calibrated(tmp_path / "c.json", "pointwise-contrast", "ensemble"))[-1]
    log_odds = math.log(plain.p_revised / (1 - plain.p_revised))
    assert weighed.p_revised == pytest.approx(1 / (1 + math.exp(-3 * log_odds))) != plain.p_revised
    assert weighed.opinions == plain.opinions and weighed.calibration == "weighed by feedback.calibration" and plain.calibration == ""


def test_a_calibration_for_another_judge_is_left_out_and_named(tmp_path):
    judged = tried(calibrated(tmp_path / "c.json", "pairwise", "sample"))[-1]
    assert judged.p_revised == tried(ScriptedSession())[-1].p_revised
    assert judged.calibration.startswith("uncalibrated: protocol: fitted for pairwise, this judge has pointwise-contrast; principles:")
    assert judged.calibration in show(judged)


def show(step):
    return "\n".join(str(part) for part in show_step(step))


def test_an_unknown_principle_is_named_with_those_there_are():
    with pytest.raises(ConstitutionError, match="no principle cruel; it has: kind true brief"):
        chosen(CONSTITUTION, ["true", "cruel"])
    assert chosen(CONSTITUTION, []) is CONSTITUTION


def test_a_revision_that_breaks_a_rule_ends_the_rounds_and_says_which():
    def refuses(request):
        if isinstance(request, CompleteRequest) and "Make it" in str(request.messages):
            return Completion("I can't help with rewriting that.", False, 1, 1)
        return default_script(request)

    found = tried(ScriptedSession(refuses), rounds=3)
    assert [type(s) for s in found] == [Answered, Revised, JudgedRevision]
    assert found[1].dropped == "refused_request"


def test_a_kind_without_principles_is_an_error():
    narrow = replace(CONSTITUTION, principles=tuple(replace(p, applies_to=("harmful",)) for p in CONSTITUTION.principles))
    with pytest.raises(ConstitutionError, match="no principle applies to helpful"):
        tried(ScriptedSession(), constitution=narrow)
    assert len(tried(ScriptedSession(), constitution=narrow, kind="other")) == 3
