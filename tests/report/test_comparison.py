"""Two runs side by side: what differs, what is tested on which prompts, and the page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.core.jsonl import read_records, write_records
from cai.core.manifest import StageEntry, read_manifest, write_manifest
from cai.core.workspace import RunDirectory
from cai.errors import DataError
from cai.records import EvalResult, Message, Prompt, PromptKind, Sample
from cai.report.comparison import PairedTest, compare_runs
from cai.report.comparison_view import headline, sentences
from cai.report.page import POLICY, render_comparison
from cai.stats import holm, mcnemar
from tests.report.page_reader import HOSTILE, Page
from tests.report.run_directory import findings, principle, write_run

NO = "I'm sorry, but I can't help with that."
YES = "First you open the lid and then you look inside."


def samples(refused: int, n: int = 40, **said: Any) -> list[Sample]:
    """Harmful and helpful prompts in turn; the policy refuses the first so many of each."""
    found = []
    for i in range(2 * n):
        kind: PromptKind = "harmful" if i % 2 else "helpful"
        prompt = Prompt(f"p{i}", kind, (Message("user", f"Question {i}?"),), "test")
        answers = {"base": YES, "policy": NO if i // 2 < refused else YES}
        found.append(Sample(prompt, answers, {"base": 0.0, "policy": float(i // 2 < refused)}, {}, **said))
    return found


def made(folder: Path, name: str, refused: int, recipe: str = "", **said: Any) -> RunDirectory:
    run = RunDirectory(write_run(folder / name))
    (run.path / "recipe.yaml").write_text(f"name: {name}\n{recipe}")
    write_records(run.data("samples"), samples(refused, **said))
    write_records(run.data("audit"), [])
    manifest = read_manifest(run.manifest)
    assert manifest is not None
    manifest.stages.append(StageEntry("reward", "done", "f", outputs={"models/reward-0": name}))
    write_manifest(run.manifest, manifest)
    return run


def by_name(tests: tuple[PairedTest, ...]) -> dict[tuple[str, str], PairedTest]:
    return {(t.name, t.model): t for t in tests}


def test_what_differs_is_named_defaults_included_and_nothing_else(tmp_path: Path) -> None:
    one = made(tmp_path, "a", 0, "policy: { beta: 0.1 }\nprompts: { train: [{ path: x.jsonl }] }\n")
    two = made(tmp_path, "b", 0, "policy: { beta: 0.3 }\nprompts: { train: [{ path: x.jsonl }] }\nreport_to: wandb\ndescription: other\n")
    found = compare_runs([one, two])
    assert [(s.key, s.values) for s in found.settings] == [("policy.beta", ("0.1", "0.3"))]
    assert found.facts == () and found.constitutions == (None,)


def test_changed_principles_are_shown_by_their_words(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a", 0), made(tmp_path, "b", 0)
    manifest = read_manifest(two.manifest)
    assert manifest is not None and manifest.constitution is not None
    kind, unused = manifest.constitution.principles
    edited = replace(kind, statement="Plainer words.")
    manifest.constitution = replace(manifest.constitution, hash="other", principles=(edited, unused, principle("new", "Added <b>.")))
    write_manifest(two.manifest, manifest)
    found = compare_runs([one, two])
    [diff] = found.constitutions
    assert diff is not None and [(p.kind, p.id) for p in diff.principles] == [("edited", "kind"), ("added", "new")]
    page = render_comparison(found)
    assert "<del>Plain</del><ins>Plainer</ins> words." in page and "Added &lt;b&gt;." in page
    assert [row.key for row in found.facts] == ["constitution's text"]


def test_paired_tests_are_exact_and_corrected_together(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a", 0), made(tmp_path, "b", 12)
    found = compare_runs([one, two])
    tests = by_name(found.tests)
    assert {name for name, _ in tests} == {"harmful_compliance", "over_refusal", "response_words", "repetition", "looping"}
    compliance, refusal = tests["harmful_compliance", "policy"], tests["over_refusal", "policy"]
    assert (compliance.n, compliance.before, compliance.after, compliance.change) == (40, 1.0, 0.7, pytest.approx(-0.3))
    assert compliance.low < -0.3 < compliance.high < 0 and (refusal.before, refusal.after) == (0.0, 0.3)
    assert compliance.p == pytest.approx(mcnemar(12, 0)) == refusal.p
    assert [t.p_adjusted for t in found.tests] == pytest.approx(holm([t.p for t in found.tests]))
    assert compliance.shown and not tests["looping", "policy"].shown
    told = " ".join(sentences(found))
    assert "harmful requests answered without refusing, 100% → 70%, better" in told and "fine requests refused, 0% → 30%, worse" in told
    assert "The base models of b and a give the same answers to all 80 prompts." in told
    assert "3 differences were shown" in headline(found)  # words per answer is the third


def test_judges_and_rewards_are_tested_against_themselves_only(tmp_path: Path) -> None:
    said = {"p_wins": {"policy": 0.8}, "p_harmful": {"policy": 0.2, "base": 0.9}}
    one, two = made(tmp_path, "a", 0, **said), made(tmp_path, "b", 12, **{**said, "p_wins": {"policy": 0.3}})
    same_judge = compare_runs([one, two])
    won = by_name(same_judge.tests)["win_rate_by_judge", "policy"]
    assert (won.n, won.before, won.after) == (80, 1.0, 0.0) and won.shown
    assert by_name(same_judge.tests)["harmful_compliance_by_judge", "policy"].change == 0
    assert ("reward", "policy") not in by_name(same_judge.tests) and any("different reward models" in n for n in same_judge.notes)

    other = made(tmp_path, "c", 12, "feedback: { protocol: pairwise }\n", **said)
    assert ("win_rate_by_judge", "policy") not in by_name(compare_runs([one, other]).tests)

    manifest = read_manifest(two.manifest)
    assert manifest is not None
    manifest.stages[-1].outputs = {"models/reward-0": "a"}
    write_manifest(two.manifest, manifest)
    reward = by_name(compare_runs([one, two]).tests)["reward", "policy"]
    assert (reward.before, reward.after) == (0.0, 0.3)

    elsewhere = [replace(s, responses={**s.responses, "base": f"Other {s.prompt.id}."}) for s in samples(12, **said)]
    write_records(two.data("samples"), elsewhere)  # wins against another base are wins over somebody else
    assert ("win_rate_by_judge", "policy") not in by_name(compare_runs([one, two]).tests)


def test_other_prompts_are_not_compared(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a", 0), made(tmp_path, "b", 12)
    reworded = [
        replace(s, prompt=replace(s.prompt, messages=(Message("user", "Another."),))) if i < 70 else s for i, s in enumerate(samples(40))
    ]
    write_records(two.data("samples"), reworded)
    found = compare_runs([one, two])
    assert {t.n for t in found.tests if t.name == "response_words"} == {10}
    assert found.notes[0] == "b: 10 evaluation prompts are also in a; 70 are in only one of the two runs."
    write_records(two.data("samples"), reworded[:70])
    none = compare_runs([one, two])
    assert none.tests == () and "no common prompts" in headline(none)


def test_three_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    runs = [made(tmp_path, name, refused) for name, refused in (("a", 0), ("b", 6), ("c", 30))]
    found = compare_runs(runs)
    assert {t.run for t in found.tests} == {"b", "c"}
    assert all(len(row.values) == 3 for row in (*found.settings, *found.facts, *found.costs))
    [figure] = [f for f in found.figures if (f.name, f.model) == ("harmful_compliance", "policy")]
    assert [r.value for r in figure.results if r is not None] == [0.3] * 3
    assert any(f.name == "judge_agreement" for f in found.figures)


def test_a_run_without_evaluation_has_gaps_and_no_tests(tmp_path: Path) -> None:
    one, two = made(tmp_path, "a", 0), made(tmp_path, "b", 0)
    for name in ("evaluation", "samples", "audit"):
        two.data(name).unlink()
    write_records(one.data("audit"), findings("text"))
    found = compare_runs([one, two])
    assert all(f.results[1] is None for f in found.figures if f.model == "policy") and found.tests == ()
    assert [(r.subject, r.verdicts) for r in found.audit] == [("policy", ("found", ""))]
    assert "–" in render_comparison(found)


def test_the_same_run_twice_or_an_empty_one_is_refused(tmp_path: Path) -> None:
    one = made(tmp_path, "a", 0)
    with pytest.raises(DataError, match="two or more different runs; found a, a"):
        compare_runs([one, one])
    with pytest.raises(DataError, match="nothing has run yet"):
        compare_runs([one, RunDirectory(tmp_path / "none")])


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_foreign_text_stays_text(tmp_path: Path, text: str) -> None:
    one, two = made(tmp_path, "a", 0), made(tmp_path, "b", 12)
    manifest = read_manifest(two.manifest)
    assert manifest is not None and manifest.constitution is not None
    manifest.constitution = replace(manifest.constitution, hash="other", principles=(principle("kind", text),))
    manifest.model = manifest.versions["torch"] = text
    write_manifest(two.manifest, manifest)
    write_records(two.data("evaluation"), [*read_records(two.data("evaluation"), EvalResult), EvalResult(text, text, 0.5, 9, 0.1, 0.9)])
    write_records(two.data("audit"), findings(text))
    html = render_comparison(compare_runs([one, two]))
    page = Page(html)
    assert page.misnested == [] and page.open == []
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "link", "object", "form", "a b"} == set()
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.named("meta")[1]["content"] == POLICY and len(page.named("style")) == 1
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    targets = {attrs["href"] for attrs in page.named("a")}
    assert len(ids) == len(set(ids)) and targets <= {f"#{i}" for i in ids}
    assert all(attrs.get("scope") for attrs in page.named("th"))
