from dataclasses import replace

from cai.evaluate.adherence import measure_adherence, prompts_for
from cai.evaluate.adherence_table import adherence_rows, in_words
from cai.models.requests import Completion, Reply, Request
from cai.models.scripted import default_script
from cai.recipe import ModelSpec, Recipe
from cai.records import Constitution, EvalResult, Prompt, Provenance, Response, ResponseCheck
from cai.session import Session
from tests.judge.judging import principle
from tests.sessions import ScriptedSession, prompts

BRIEF = replace(principle("brief", applies_to=("helpful",)), statement="Answer in two words.", check=(ResponseCheck(max_words=2),))
JUDGED = principle("kind", applies_to=("helpful",))
COLOUR = replace(principle("colour", applies_to=("helpful",)), check=(ResponseCheck(contains_any=("red",)),))
CONSTITUTION, CONTROLS = Constitution("c", "C", "", (BRIEF, JUDGED)), Constitution("d", "D", "", (COLOUR,))
PROMPTS = prompts(60)


def answers(text: str, last: str = "") -> list[Response]:
    return [Response(p, last if last and i < 12 else text, False, Provenance("m")) for i, p in enumerate(PROMPTS)]


def obedient(request: Request) -> Reply:
    told = "Answer in two words." in request.messages[-1].content
    return Completion("Two words." if told else "More than two words.", False, 5, 5)


def measured(policy: list[Response]) -> list[EvalResult]:
    session = ScriptedSession(obedient, recipe=Recipe(name="adherence"))

    async def work(opened: Session) -> list[EvalResult]:
        said = {"base": answers("More than two words.", "No."), "policy": policy}
        return await measure_adherence(opened, CONSTITUTION, CONTROLS, said, ModelSpec(path="scripted"), None)

    return session.ask(work)


def test_rates_changes_and_verdicts_per_principle() -> None:
    brief, colour = adherence_rows(measured(answers("Fine.")))
    assert {m: r.value for m, r in brief.rates.items()} == {"base": 0.2, "policy": 1.0, "told": 1.0}
    assert brief.rates["told"].n == 48 and brief.rates["policy"].n == 60
    assert (brief.changes["policy"].value, brief.verdict) == (0.8, "learned")
    assert colour.control and colour.rates["base"].value == colour.rates["policy"].value == 0 and colour.verdict == "out of reach"
    assert in_words(brief) == "brief: 20% → 100% [94, 100] of 60 held-out prompts; told so in context: 100%. Learned."
    assert in_words(colour).endswith("Not trained on; no certain change.")


def test_what_is_not_learned_lost_or_was_followed_before() -> None:
    assert adherence_rows(measured(answers("More than two words.", "No.")))[0].verdict == "not learned"
    assert adherence_rows(measured(answers("More than two words.")))[0].verdict == "lost"

    def row(base: float, low: float, high: float = 0.1) -> str | None:
        rates = [EvalResult("adherence:p", m, v, 50, v, v) for m, v in (("base", base), ("sft", base), ("told", base))]
        change = [EvalResult("adherence:p_change", m, 0.0, 50, low, high, p_adjusted=1.0) for m in ("sft", "told")]
        return adherence_rows([*rates, *change])[0].verdict

    assert (row(0.9, -0.1), row(0.2, -0.1), row(0.2, 0.05)) == ("already followed", "out of reach", "not learned")
    assert row(0.9, -0.3, -0.01) == "followed less", "a fall that is not certain after correction isn't passed over"
    assert row(0.7, -0.1) == "not learned", "what is followed more often than not isn't out of reach"


def test_what_is_learned_for_some_prompts_is_measured_on_the_others_too() -> None:
    risk = replace(principle("risk", applies_to=("borderline",)), check=(ResponseCheck(contains_any=("risk",)),))
    usual = replace(principle("usual", applies_to=("borderline",)), check=(ResponseCheck(contains_any=("more",)),))
    everywhere = replace(principle("all"), check=(ResponseCheck(contains_any=("risk",)),))
    mixed = [replace(p, kind="borderline") if i < 20 else p for i, p in enumerate(PROMPTS)]

    def said(text: str) -> list[Response]:
        return [Response(p, text, False, Provenance("m")) for p in mixed]

    async def work(opened: Session) -> list[EvalResult]:
        constitution = Constitution("c", "C", "", (risk, usual, everywhere))
        return await measure_adherence(
            opened, constitution, None, {"base": said("No more."), "policy": said("A risk.")}, ModelSpec(path="scripted"), None
        )

    rows = adherence_rows(ScriptedSession(obedient, recipe=Recipe(name="adherence")).ask(work))
    assert [row.id for row in rows] == ["risk", "usual", "all", "risk elsewhere"], "the base model says `more` to all prompts"
    assert rows[-1].control and rows[-1].rates["policy"].n == 40 and rows[-1].changes["policy"].value == 1.0
    assert in_words(rows[-1]) == "risk elsewhere: 0% → 100% [91, 100] of 40 held-out prompts. Not trained on; changed."


def test_a_principle_without_a_check_needs_a_judge() -> None:
    def judging(request: Request) -> Reply:
        return obedient(request) if type(request).__name__ == "CompleteRequest" else default_script(request)

    session = ScriptedSession(judging, recipe=Recipe(name="adherence"))

    async def work(opened: Session) -> list[EvalResult]:
        judge = opened.judge(CONSTITUTION)
        return await measure_adherence(opened, CONSTITUTION, None, {"base": answers("Fine.")}, ModelSpec(path="scripted"), judge)

    assert {r.name for r in session.ask(work)} == {"adherence:brief", "adherence:kind", "adherence:brief_change", "adherence:kind_change"}


def test_prompts_of_a_principle_are_those_of_its_checks_kinds() -> None:
    both = replace(BRIEF, applies_to=("helpful", "harmful"), check=(ResponseCheck(kinds=("harmful",), max_words=2),))
    mixed: list[Prompt] = [*PROMPTS, *(replace(p, id=f"h{p.id}", kind="harmful") for p in PROMPTS)]
    assert {p.kind for p in prompts_for(both, mixed, 9, 0)} == {"harmful"} and len(prompts_for(both, mixed, 9, 0)) == 9
    assert prompts_for(both, mixed, 9, 0) == [p for p in mixed if p in prompts_for(both, mixed, 9, 0)]
