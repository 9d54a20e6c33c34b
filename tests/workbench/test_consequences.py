"""An edit changes the revisions and labels under its principle, and costs only that principle's calls."""

from dataclasses import replace

import pytest

from cai.constitution.load import load_constitution
from cai.errors import DataError, ReplyError
from cai.ids import rendezvous_order
from cai.models.requests import ChoicesRequest, CompleteRequest
from cai.models.scripted import default_script
from cai.session import Session
from cai.workbench.consequences import Calls, LabelShift, compare_on_sample, consequences, label_shift, with_change
from cai.workbench.sample import sample_trial_data
from cai.workbench.settings import settings
from tests.judge.judging import CONSTITUTION, hashed, log_odds_reply, principle
from tests.sessions import ScriptedSession, prompts
from tests.workspaces import make_workspace, run_data

KIND = CONSTITUTION.principle("kind")
EDITED = replace(
    CONSTITUTION,
    principles=tuple(
        replace(p, critique="Where is it NEW?", ask_positive="Is it NEW?") if p is KIND else p for p in CONSTITUTION.principles
    ),
)
N = 16


def compared(before, after, session):
    async def work(opened):
        return await consequences(before, after, await sample_trial_data(prompts(N), opened), opened)

    return session.ask(work)


def drawn_first(constitution):
    weights = [(p.id, p.weight) for p in constitution.principles]
    return [rendezvous_order(p.id, weights, 0)[0] for p in prompts(N)]


def test_the_second_constitution_costs_only_the_changed_principles_calls(tmp_path):
    workspace = make_workspace(tmp_path / "w", adapters=False)
    compared(CONSTITUTION, replace(CONSTITUTION, principles=(principle("other"),)), ScriptedSession(workspace=workspace))
    again = ScriptedSession(workspace=workspace)
    found = compared(CONSTITUTION, EDITED, again)
    under_kind = drawn_first(CONSTITUTION).count("kind")
    assert 0 < under_kind < N
    asked = again.asked
    judged = [r for r in asked if isinstance(r, ChoicesRequest)]
    written = [r for r in asked if isinstance(r, CompleteRequest)]
    assert len(judged) == 2 * N and all("Is it NEW?" in r.messages[-1].content for r in judged), "both texts of every pair, one question"
    assert len(written) == 2 * under_kind, "a critique and a revision for each prompt that drew it"
    assert found.calls["sample"] == Calls(0, 3 * N)
    assert found.calls["before"] == Calls(0, 2 * under_kind + 12 * N), "prompts that draw another principle are not asked about"
    assert found.calls["after"] == Calls(2 * N + 2 * under_kind, 12 * N - 2 * N)
    assert "attribution" not in found.calls


def test_only_revisions_under_the_changed_principle_change():
    found = compared(CONSTITUTION, EDITED, ScriptedSession())
    drew_it = {p.id for p, first in zip(prompts(N), drawn_first(CONSTITUTION), strict=True) if first == "kind"}
    assert {c.prompt.id for c in found.revision_changes} == drew_it
    assert all(c.principles_before == c.principles_after == ("kind",) and c.before != c.after for c in found.revision_changes)
    assert (found.prompts, found.revisions, found.revision_rate, found.revision_high) == (N, len(drew_it), 1.0, 1.0)
    assert found.labels.n == N == found.labels.changed and len(found.causes) == 1
    assert (found.causes[0].cause, found.causes[0].mean_shift) == ("kind", found.labels.mean_shift)


def answers_by_letter(request):
    """Says Yes with log-odds +3 of texts that hold an early letter more often than a late one, and -1 to anything about NEW."""
    if not isinstance(request, ChoicesRequest):
        return default_script(request)
    content = request.messages[-1].content
    text = content[content.index("Assistant:") : content.index("Question:")]
    good = 3.0 if text.count("a") > text.count("o") else -3.0
    return log_odds_reply(-good if "NEW" in content else good)


def test_flips_and_shifts_are_counted_per_principle():
    both = replace(EDITED, principles=tuple(replace(p, weight=4.0) if p.id == "true" else p for p in EDITED.principles))
    found = compared(CONSTITUTION, both, ScriptedSession(answers_by_letter, protocol="pointwise"))
    causes = {c.cause: c for c in found.causes}
    assert set(causes) == {"kind", "true"} and found.calls["attribution"].made == 0, "a weight costs no call"
    told_apart = [c for c in found.label_changes if abs(c.before - 0.5) > 0.1]
    assert told_apart and causes["true"].changed == 0, "all said the same before, so weights alone moved nothing"
    assert causes["kind"].changed == len(told_apart) and causes["kind"].flipped == 0, "1 of 3.5 of the weight can't turn a label"
    # log-odds 6 under all three (weights 1, 2, .5) before; kind says -6 after: 6 * (2.5 - 1) / 3.5
    assert min(told_apart[0].before, 1 - told_apart[0].before) == pytest.approx(1 / (1 + 2.718281828**6), rel=1e-6)
    only = with_change(CONSTITUTION, both, found.text.principles[0])
    assert [p.weight for p in only.principles if p.id == "true"] == [2.0] and len(only.principles) == 3


def test_a_label_turns_when_the_principle_that_decides_it_turns():
    heavy = replace(EDITED, principles=tuple(replace(p, weight=9.0) if p.id == "kind" else p for p in EDITED.principles))
    found = compared(CONSTITUTION, heavy, ScriptedSession(answers_by_letter, protocol="pointwise"))
    assert 0 < found.labels.flipped == found.labels.changed
    assert all(c.flipped for c in found.label_changes)
    assert found.labels.flip_low < found.labels.flip_rate < found.labels.flip_high


def test_label_shift_by_hand():
    found = label_shift("x", {"a": 0.4, "b": 0.9, "c": 0.5, "gone": 0.1}, {"a": 0.6, "b": 0.9, "c": 0.7, "new": 0.2}, 0, {})
    assert isinstance(found, LabelShift)
    assert (found.n, found.changed, found.flipped) == (3, 2, 2), "from a tie is a flip too"
    assert found.mean_shift == pytest.approx(0.4 / 3) and found.shift_low <= found.mean_shift <= found.shift_high
    assert label_shift("x", {"a": 0.1}, {"b": 0.2}, 0, {}) is None


def test_added_and_removed_principles_are_attributed():
    after = replace(CONSTITUTION, principles=(*CONSTITUTION.principles[1:], principle("new")))
    found = compared(CONSTITUTION, after, ScriptedSession())
    assert {c.cause for c in found.causes} == {"kind", "new"}
    assert all(c.n == N and c.changed == N for c in found.causes)
    moved = {c.prompt.id for c in found.revision_changes}
    before, now = drawn_first(CONSTITUTION), drawn_first(after)
    assert moved == {p.id for p, a, b in zip(prompts(N), before, now, strict=True) if a != b}, "the others' draws stay"


def test_prompts_that_one_side_has_no_principle_for_are_left_out_and_counted():
    after = replace(CONSTITUTION, principles=tuple(replace(p, applies_to=("harmful",)) for p in CONSTITUTION.principles))

    async def work(opened):
        asked = [*prompts(4, "harmful"), *(replace(p, id=f"h{p.id}") for p in prompts(N))]
        return await consequences(CONSTITUTION, after, await sample_trial_data(asked, opened), opened)

    found = ScriptedSession().ask(work)
    assert (found.uncovered, found.revisions, found.labels) == (N, 0, None)
    assert found.no_labels == f"no pair of the {N + 4} sampled prompts is judged by a changed principle"
    with pytest.raises(DataError, match="no principle for any helpful prompt"):
        compared(CONSTITUTION, after, ScriptedSession())


def test_failures_are_counted_and_the_rest_is_compared():
    def mute_once(request):
        if isinstance(request, ChoicesRequest) and "NEW" in request.messages[-1].content and "Question 7?" in request.messages[-1].content:
            raise ReplyError("too_long")
        return default_script(request)

    found = compared(CONSTITUTION, EDITED, ScriptedSession(mute_once))
    assert found.labels.n == N - 1
    assert [(f.stage, f.reason) for f in found.failures] == [("test", "too_long")]


def test_a_sampled_ensemble_keeps_its_draws_where_nothing_changed():
    found = compared(CONSTITUTION, EDITED, ScriptedSession(principles="sample", per_label=1))
    assert 0 < found.labels.changed < N


def test_a_runs_own_texts_and_calls_are_used(tmp_path):
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    old = load_constitution(workspace.root / "constitution" / "general.yaml")
    new = replace(
        old, principles=tuple(replace(p, ask_positive="Is the response NEW?") if p.id == "no-preaching" else p for p in old.principles)
    )
    run = workspace.run("s")

    def compare(sample):
        session = Session(recipe=settings(run=run), workspace=workspace)
        return session.run(lambda opened: compare_on_sample(old, new, opened, sample, run=run), "diff")

    found = compare(50)
    assert found.calls["sample"] == Calls(0, 0) and found.calls["before"].made == 0 and found.prompts == 12
    assert found.no_revisions == "critiques and revisions don't use ask_positive"
    assert found.labels.n == len(found.label_changes) > 0, "only pairs that are judged by the edited principle"
    assert found.calls["after"].made == 2 * found.labels.n
    with pytest.raises(DataError, match="own model and settings"):
        settings(model="embedded", run=run)
    with pytest.raises(DataError, match="nothing has run yet"):
        settings(run=workspace.run("nowhere"))


UNUSED = "critiques and revisions don't use"


def edit(**changes):
    return replace(CONSTITUTION, principles=tuple(replace(p, **changes) if p is KIND else p for p in CONSTITUTION.principles))


def test_an_edited_statement_alone_moves_revisions_and_labels_of_every_protocol():
    for protocol in ("pairwise", "pairwise-cot", "pointwise", "pointwise-contrast", "likelihood", "rubric"):
        found = compared(CONSTITUTION, edit(statement="Be NEW."), ScriptedSession(hashed, protocol=protocol))
        assert found.labels.n == N and found.labels.changed > N // 2, protocol
        assert len(found.revision_changes) == found.revisions > 0
        assert set(found.text.principles[0].outdated) == {"critique", "revision", "ask_positive", "ask_negative", "compare"}


@pytest.mark.parametrize(
    ("changes", "protocol", "no_revisions", "no_labels"),
    [
        ({"compare": "Which is NEW?"}, "pointwise", f"{UNUSED} compare", "pointwise doesn't ask compare"),
        ({"ask_negative": "Is it NEW?"}, "pointwise", f"{UNUSED} ask_negative", "pointwise doesn't ask ask_negative"),
        ({"critique": "Where is it NEW?"}, "likelihood", "", "likelihood doesn't ask critique"),
        ({"source": "a book"}, "pairwise", f"{UNUSED} source", "pairwise doesn't ask source"),
        ({}, "pairwise", "the principles are the same", "the principles are the same"),
    ],
)
def test_an_edit_that_can_have_no_effect_is_said_and_costs_nothing(changes, protocol, no_revisions, no_labels):
    session = ScriptedSession(protocol=protocol)
    found = compared(CONSTITUTION, edit(**changes), session)
    assert (found.no_revisions, found.no_labels, found.labels) == (no_revisions, no_labels, None)
    assert not any(isinstance(r, ChoicesRequest) for r in session.asked)


def test_the_sample_is_of_prompts_that_draw_the_edited_principle(tmp_path):
    workspace = make_workspace(tmp_path / "w", adapters=False)
    old = load_constitution(workspace.root / "constitution" / "general.yaml")
    edited = replace(old, principles=tuple(replace(p, statement="Be NEW.") if p.id == "no-preaching" else p for p in old.principles))
    session = Session("scripted", workspace=workspace)
    found = session.run(lambda opened: compare_on_sample(old, edited, opened, 6), "diff")
    assert found.prompts == found.revisions == 6 == len(found.revision_changes)
    same = Session("scripted", workspace=workspace).run(lambda opened: compare_on_sample(old, old, opened, 6), "diff")
    assert same.prompts == 6 and same.calls["sample"] == Calls(0, 0) and same.no_labels == "the principles are the same"


def test_a_larger_sample_only_adds(tmp_path):
    from cai.workbench.sample import load_sample

    workspace = make_workspace(tmp_path / "w", adapters=False)
    session = Session("scripted", workspace=workspace)
    few, more = (load_sample(None, session, n) for n in (5, 9))
    assert len(few) == 5 and len(more) == 9 and {p.id for p in few} < {p.id for p in more}


def test_pairs_of_one_conversation_are_not_independent() -> None:
    ids = [f"{talk}-{i}" for talk in range(10) for i in range(28)]
    before = dict.fromkeys(ids, 0.9)
    after = {i: 0.1 if int(i.split("-")[0]) < 5 else 0.9 for i in ids}  # half of the conversations flip whole
    apart, together = (label_shift("x", before, after, 0, talks) for talks in ({}, {i: i.split("-")[0] for i in ids}))
    assert apart is not None and together is not None and apart.flipped == together.flipped == 140
    assert together.flip_high - together.flip_low > 3 * (apart.flip_high - apart.flip_low)
    assert together.shift_high - together.shift_low > 3 * (apart.shift_high - apart.shift_low)
