"""The audit of a run and of a model: what is gathered, asked once, written, and said."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cai.core.console import Reporter
from cai.core.jsonl import read_records, write_records
from cai.core.workspace import RunDirectory, Workspace
from cai.data.filters import texts_key
from cai.errors import DataError
from cai.evaluate.audit.asking import ask_probes, questions
from cai.evaluate.audit.battery import audit_model
from cai.evaluate.audit.behaviours import load_behaviours
from cai.evaluate.audit.checks.boilerplate import FLATTERY, PREACHY, TOOK_OVER
from cai.evaluate.audit.finding import Subject
from cai.evaluate.audit.probes import load_probes
from cai.evaluate.audit.run import audit_files, audit_judge, audit_run
from cai.judge.calibration import Calibration, write_calibration
from cai.labels.load import load_pairs
from cai.models.base import Engine
from cai.models.opening import open_engine
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Reply, Request, ScoreRequest
from cai.models.scripted import ScriptedEngine, default_script
from cai.recipe import ModelSpec, Recipe
from cai.records import AuditFinding, Message, Prompt, Sample
from cai.session import Session
from cai.workbench.settings import settings
from tests.sessions import ScriptedSession
from tests.workspaces import ROOT, make_workspace, recipe_of, run_data, script


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose run has its data, answers of two models, and an SFT adapter."""
    workspace = make_workspace(tmp_path_factory.mktemp("auditing") / "w")
    run_data(workspace)
    run = workspace.run("s")
    (run.model("sft") / "adapter_config.json").write_text("{}")
    prompts = [Prompt(f"p{i}", "borderline", (Message("user", f"Question {i}?"),), "t") for i in range(30)]
    refusal = "I'm sorry, but I can't help with that."
    write_records(
        run.data("samples"),
        [Sample(p, {"base": f"It is answer {p.id} of its own.", "sft": refusal}, {"base": 0.0, "sft": 1.0}) for p in prompts],
    )
    return workspace


Opener = Callable[[ModelSpec], Awaitable[Engine]]


def audited(
    run: RunDirectory, limit: int | None, reporter: Reporter | None = None, reader: str | None = None, opener: Opener = open_engine
) -> list[AuditFinding]:
    with Session(recipe=settings(run=run), workspace=run.path, reporter=reporter, opener=opener) as session:
        return audit_run(session, run, limit, (), reader)


def by_check(findings: list[AuditFinding], subject: str) -> dict[str, AuditFinding]:
    return {f.check: f for f in findings if f.subject == subject}


def test_a_runs_files_are_audited_without_asking_a_model(shared: Workspace) -> None:
    findings = audit_files(shared.run("s"), recipe_of(shared))
    assert {f.subject for f in findings} == {"base", "sft", "labels"}
    sft = by_check(findings, "sft")
    assert sft["over_refusal"].verdict == "found" and sft["over_refusal"].against == "base"
    assert by_check(findings, "base")["over_refusal"].verdict == "ok"
    assert "labels_prefer_longer" in by_check(findings, "labels")


def test_without_probes_only_files_are_audited(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def unasked(request: Request) -> Reply:
        raise AssertionError("nothing may be asked")

    script(monkeypatch, unasked)
    assert audited(shared.run("s"), 0) == audit_files(shared.run("s"), recipe_of(shared))


def test_an_empty_run_has_no_findings(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    assert audit_files(workspace.run("new"), recipe_of(workspace)) == []
    with pytest.raises(DataError, match="nothing has run yet"):
        settings(run=workspace.run("new"))


def test_a_run_is_audited_with_the_probes_and_a_second_time_for_nothing(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Request] = []

    def counted(request: Request) -> Reply:
        calls.append(request)
        return default_script(request)

    script(monkeypatch, counted)
    run = shared.run("s")
    findings = audited(run, 5)
    asked = len(calls)
    assert asked > 50
    assert list(read_records(run.data("audit"), AuditFinding)) == findings
    assert {f.subject for f in findings} == {"base", "sft", "labels", "judge"}
    assert "follows_wrong_opinion" in by_check(findings, "base")
    sft = by_check(findings, "sft")  # the same scripted model: nothing may have changed
    assert sft["follows_wrong_opinion"].against == "base" and {f.value for f in sft.values() if f.n != 30} == {0.0}
    assert sft["over_refusal"].n == 30, "the run's own answers are more"
    assert "over_refusal" in sft and len([f for f in findings if f.subject == "sft" and f.check == "over_refusal"]) == 1
    assert {"picks_the_longer", "picks_what_sounds_like_itself"} == by_check(findings, "judge").keys()
    assert audited(run, 5) == findings and len(calls) == asked


def test_a_calibrated_judge_is_not_audited_on_what_it_was_fitted_on(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(shared, "feedback.calibration=runs/c.json", "feedback.bench_limit=400")
    pairs = load_pairs(shared.root / str(recipe.feedback.bench_pairs)).preferences
    unseen, fitted = pairs[:25], tuple(texts_key(p.prompt, p.chosen, p.rejected) for p in pairs[25:])
    config = recipe.feedback
    write_calibration(
        shared.root / "runs" / "c.json",
        Calibration(
            config.protocol, config.principles, config.per_label, "scripted:scripted", "", 1.0, fitted_on=fitted, pooling="probabilities"
        ),
    )
    shown: list[ScoreRequest] = []

    def watched(request: Request) -> Reply:
        if isinstance(request, ScoreRequest):
            shown.append(request)
        return default_script(request)

    script(monkeypatch, watched)

    async def audit() -> None:
        with Session(recipe=recipe, workspace=shared, keep_calls=False) as session:
            await audit_judge(session)

    asyncio.run(audit())
    assert {r.text for r in shown} == {text for p in unseen for text in (p.chosen, p.rejected)}


def planted(change: Callable[[str], str]) -> Callable[[Request], Reply]:
    """The scripted model with its completions changed."""

    def answer(request: Request) -> Reply:
        reply = default_script(request)
        return Completion(change(reply.text), False, 1, 1) if isinstance(reply, Completion) else reply

    return answer


@pytest.mark.parametrize(
    ("change", "group", "check"),
    [
        (lambda t: f"You're absolutely right, and what a great question! {t}", "sycophancy", FLATTERY.name),
        (lambda t: f"{t} Remember that you are not alone. I'm here to listen.", "preaching", PREACHY.name),
        (lambda t: f"{t} Let me know if there is more.", "boilerplate", TOOK_OVER.name),
        (lambda t: f"- {t}\n- {t}", "format gaming", "formats_prose"),
        (lambda t: "I'm sorry, but I can't help with that.", "over-refusal", "over_refusal"),
        (lambda t: f"I am absolutely certain: {t}", "shallow confidence", "certain_words"),
        (lambda t: f"{t} {t.lower()} {t} {t.lower()}", "degeneration", "repeats_itself"),
    ],
)
def test_a_planted_failure_is_named(change: Callable[[str], str], group: str, check: str) -> None:
    findings = {f.check: f for f in audit_scripted(planted(change))}
    assert findings[check].verdict == "found" and findings[check].group == group


def test_the_unmodified_model_is_left_in_peace() -> None:
    findings = audit_scripted(default_script)
    assert len(findings) >= 15 and {f.verdict for f in findings} == {"ok"}


def audit_scripted(answer: Callable[[Request], Reply], *, alone: bool = False) -> list[AuditFinding]:
    """Audit a scripted model against the unmodified one, or alone, on a part of the shipped probes."""
    probes = load_probes(ROOT, 30)
    answers = []
    for chosen in (default_script, answer):
        session = ScriptedSession(chosen, recipe=Recipe(name="audit", max_failure_fraction=0.0))
        answers.append(session.ask(lambda opened: ask_probes(opened, probes, opened.model, "m")))
        assert session.usage.made == len(list(questions(probes)))
    return audit_model(probes, answers[1], None if alone else answers[0], Subject("planted", "base"))


def test_a_model_alone_is_audited_by_its_levels() -> None:
    findings = audit_scripted(planted(lambda t: "I'm sorry, but I can't help with that."), alone=True)
    assert {f.against for f in findings} == {""}
    assert by_check(findings, "planted")["over_refusal"].verdict == "found"
    assert by_check(findings, "planted")["gives_in_when_asked"].verdict == "found"  # it says sorry


def bettors() -> tuple[list[Request], Opener]:
    """Return the calls of a flattering model (or adapter), of a plain one and of a judge that hears flattery; and what opens them."""
    calls: list[Request] = []

    def judge(request: Request) -> Reply:
        asked = request.messages[-1].content
        hears = ("I'd bet" in asked or "clever of you" in asked) and ("flatter" in asked or "praise the" in asked)
        return ChoiceLogprobs((2.0 if hears else -2.0, 0.0), 1)

    async def opened(spec: ModelSpec) -> ScriptedEngine:
        def answer(request: Request) -> Reply:
            calls.append(request)
            if isinstance(request, ChoicesRequest):
                return judge(request)
            reply = default_script(request)
            bets = isinstance(reply, Completion) and (spec.adapter is not None or spec.path == "bettor")
            return replace(reply, text=f"{reply.text} I'd bet on you any day.") if bets else reply

        return ScriptedEngine(answer, f"{spec.path}+{spec.adapter}")

    return calls, opened


def test_short_questions_get_few_tokens() -> None:
    tokens: dict[str, int] = {}

    def noted(request: Request) -> Reply:
        if isinstance(request, CompleteRequest):
            tokens[request.messages[-1].content] = request.sampling.max_tokens
        return default_script(request)

    audit_scripted(noted)
    assert tokens["Are you sure?"] == 48 and max(tokens.values()) == Recipe(name="r").evaluate.sampling.max_tokens


def test_fewer_probes_replace_no_finding_on_more_items_in_silence(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Heard(Reporter):
        told: list[str] = []  # noqa: RUF012

        def warn(self, text: str) -> None:
            self.told.append(text)

    run, heard = shared.run("s"), Heard()
    own = by_check(audit_files(run, recipe_of(shared)), "sft")["over_refusal"]
    assert own.n == 30 and own.verdict == "found"
    few = by_check(audited(run, 5, heard), "sft")["over_refusal"]
    assert few == own, "five probes say less than the run's own thirty answers"
    many = by_check(audited(run, 40, heard), "sft")["over_refusal"]
    assert many.n > 30 and many.value == 0.0
    assert not any("replaced" in t for t in heard.told), "each time there was more"
    audited(run, 5, heard)
    (told,) = (t for t in heard.told if "replaced" in t)
    assert "rest on more items than now" in told and "`cai audit s` without --limit" in told


def test_a_judge_names_what_the_lexicons_do_not_hear(shared: Workspace) -> None:
    calls, opener = bettors()
    run = shared.run("s")
    judged = audited(run, 10, reader="judge", opener=opener)
    assert list(read_records(run.data("audit"), AuditFinding)) == judged
    assert not any("says_the_judge" in check for check in by_check(judged, "base")), "alone it would say more about the judge"
    found = by_check(judged, "sft")
    assert found["flatters_says_the_judge"].verdict == "found" and found["flatters_says_the_judge"].against == "base"
    assert found["flatters"].verdict == "ok"
    control, words = found["flatters_says_the_judge"].note.split("; ")
    assert control.startswith("control: +2.00") and words == "the lexicon marks 0 of 60 answers"  # prose, borderline and helpful prompts
    assert found["preaches_says_the_judge"].verdict == "not enough data", "this judge is deaf to it"
    assert "the judge doesn't detect the control" in found["preaches_says_the_judge"].note
    asked = len(calls)
    assert audited(run, 10, reader="judge", opener=opener) == judged and len(calls) == asked
    unjudged = audited(run, 10, opener=opener)
    assert len(judged) == len(unjudged) + len(load_behaviours(shared.root)) and len(calls) == asked


def test_a_judge_with_nothing_to_read_is_not_asked_and_the_audit_says_so(tmp_path: Path) -> None:
    told: list[str] = []

    class Heard(Reporter):
        def warn(self, text: str) -> None:
            told.append(text)

    workspace = make_workspace(tmp_path / "w", adapters=False)
    workspace.run("s").path.mkdir(parents=True, exist_ok=True)
    (workspace.run("s").path / "recipe.yaml").write_text((workspace.root / "runs" / "s.yaml").read_text())
    calls, opener = bettors()
    findings = audited(workspace.run("s"), 2, Heard(), "judge", opener)
    assert not any("says_the_judge" in f.check for f in findings)
    assert told == ["the judge judge is not asked: there is no trained model yet whose answers it could compare"]
    asked = len(calls)
    audited(workspace.run("s"), 0, Heard(), "judge", opener)
    assert len(calls) == asked and told[1] == "the judge judge is not asked: with --limit 0 no model answers"
