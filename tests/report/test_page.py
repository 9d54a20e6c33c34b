"""The report as a page: complete, self-contained, and unmoved by whatever models and people have written."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.data.balance import source_balance
from cai.records import Critique, Message, Preference, Prompt, Provenance, ResponsePair, Revision, RevisionTrace, Round, Sample, SFTExample
from cai.report.audit_view import audit_summary, families
from cai.report.collect import collect_report
from cai.report.formatting import word_changes
from cai.report.page import POLICY, render_report
from tests.report.page_reader import HOSTILE, Page
from tests.report.run_directory import BY, findings, prompt, write_run

SECTIONS = (
    "verdict",
    "policy",
    "audit",
    "samples",
    "trails",
    "principles",
    "judge",
    "labels",
    "reward",
    "pipeline",
    "failures",
    "reproduce",
)


def render(run_dir: Path) -> str:
    return render_report(collect_report(run_dir))


def test_a_finished_run_fills_every_section(tmp_path: Path) -> None:
    html = render(write_run(tmp_path / "run"))
    page = Page(html)
    assert [s["id"] for s in page.named("section")] == list(SECTIONS)
    assert "has not run" not in html
    assert "can't be read" not in html
    assert len(page.named("figure")) >= 8
    assert page.misnested == []
    assert page.open == []


def test_the_file_is_complete_in_itself(tmp_path: Path) -> None:
    page = Page(render(write_run(tmp_path / "run", "See https://example.com/x.png")))
    assert page.named("meta")[1] == {"http-equiv": "Content-Security-Policy", "content": POLICY}
    assert POLICY.startswith("default-src 'none'")
    assert "script" not in POLICY
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form", "base", "video", "use", "image"})
    assert all(a["href"] is not None and a["href"].startswith("#") for a in page.named("a"))
    assert not any(name in ("src", "srcset", "action", "style") or name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_the_page_begins_with_every_model_of_the_run(tmp_path: Path) -> None:
    html = render(write_run(tmp_path / "run", "some-model"))
    assert all(f"<span>{role} <b>some-model</b></span>" in html for role in ("model", "trained", "judge"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_foreign_text_is_shown_and_never_obeyed(tmp_path: Path, text: str) -> None:
    plain, hostile = (Page(render(write_run(tmp_path / name, t))) for name, t in (("plain", "Plain words."), ("hostile", text)))
    assert hostile.misnested == []
    assert {t for t, _ in hostile.tags} <= {t for t, _ in plain.tags}
    assert len(hostile.named("section")) == len(plain.named("section"))
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    shown = "".join(hostile.text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\ud800-\udfff\U000e0041]", shown)
    if text.strip() and text.isascii() and text.isprintable():
        assert text in shown


def test_what_a_reader_could_not_see_is_named(tmp_path: Path) -> None:
    html = render(write_run(tmp_path / "run", "a\x00b\u202ec"))
    assert "a␀b⟨U+202E⟩c" in html
    html.encode("utf-8")


def test_long_texts_are_folded_and_not_cut(tmp_path: Path) -> None:
    text = "word " * 20_000 + "the very end"
    html = render(write_run(tmp_path / "run", text, traces=1))
    assert text in html
    assert "Show all 20,003 words" in html
    assert len(html) < 40 * len(text)


def test_a_text_without_words_says_so(tmp_path: Path) -> None:
    assert "(empty)" in render(write_run(tmp_path / "run", "\n"))


def test_it_can_be_read_without_seeing_or_a_mouse(tmp_path: Path) -> None:
    page = Page(render(write_run(tmp_path / "run", traces=8)))
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("h1")) == 1
    assert len(page.named("main")) == 1
    assert all("scope" in th for th in page.named("th"))
    images = [svg for svg in page.named("svg") if svg.get("role") == "img"]
    assert len(images) == len(page.named("figure")) > 0
    assert all(svg["aria-label"] for svg in images)
    assert len(page.named("desc")) == len(images)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.named("a")} <= {f"#{i}" for i in ids}
    assert {s["aria-labelledby"] for s in page.named("section")} <= set(ids)


def test_a_folder_with_nothing_in_it_still_makes_a_report(tmp_path: Path) -> None:
    html = render(tmp_path)
    page = Page(html)
    assert [s["id"] for s in page.named("section")] == list(SECTIONS)
    assert html.count("has not run") >= 4
    assert "has not been evaluated yet" in html
    assert page.misnested == []


def test_stages_that_have_not_run_say_so(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    for name in ("evaluation", "samples", "audit"):
        (run_dir / "data" / f"{name}.jsonl").unlink()
    html = render(run_dir)
    assert html.count("The <code>evaluate</code> stage has not run") == 3
    assert "Critique 1" in html


def test_a_broken_file_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (run_dir / "data" / "traces.jsonl").write_text('{"prompt": 1}\n')
    (run_dir / "manifest.json").write_text("{")
    html = render(run_dir)
    assert "can&#39;t be read" in html or "can't be read" in html
    assert "traces.jsonl:1: not a RevisionTrace record" in html
    assert "manifest.json" in html
    assert "Before and after" in html


def test_a_failure_log_torn_by_a_kill_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    with (run_dir / "failures.jsonl").open("a") as f:
        f.write('{"stage": "crit')
    data = collect_report(run_dir)
    assert data.problems == ()
    assert data.failures[0].count == 5
    assert len(data.failures[0].examples) == 3


def test_the_audit_names_what_was_found_and_shows_it(tmp_path: Path) -> None:
    html = render(write_run(tmp_path / "run", "Said so."))
    assert "Found in policy: sycophancy. 2 checks in total" in html
    assert "<h3>policy, against base</h3>" in html and "Nothing found in 1 check." in html
    assert html.count("Threshold 0.10: Said so.") == 2 and html.count("Threshold 0.10") == 3  # the one found is in both tables
    [row] = set(re.findall(r'<td class="status failed">found</td>(.*)</tr>', html))
    assert re.findall(r">([^<]+)</td>", row) == ["0.10", "0.50", "+0.40", "+0.20 to +0.60", "40", "&lt;0.001"]
    assert "Examples: Flatters" in html


def test_trails_can_be_filtered_by_each_principle_that_occurs(tmp_path: Path) -> None:
    html = render(write_run(tmp_path / "run", traces=8))
    filters = re.findall(r"#trails:has\(#(tp\d+):checked\) \.trail:not\(\.\1\) \{ display: none; \}", html)
    classes = [c.split() for c in re.findall(r'<details class="trail ([^"]*)">', html)]
    assert filters == ["tp0", "tp1"]
    assert len(classes) == 8
    assert {mark for found in classes for mark in found} == set(filters)


def test_many_traces_are_all_counted_and_some_of_every_principle_shown(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", traces=300)
    data = collect_report(run_dir)
    assert data.traces == 300
    assert data.trails is not None
    assert len(data.trails) == 60
    first = [t.trace.rounds[0].critique.principle_id for t in data.trails]
    assert first.count("kind") == first.count("frank") == 30
    assert {u.id: u.critiques for u in data.principles} == {"kind": 150, "unused": 0, "frank": 300}


def test_labels_are_joined_to_trails_and_counted_by_source(tmp_path: Path) -> None:
    data = collect_report(write_run(tmp_path / "run"))
    assert data.labels is not None
    assert (data.labels.judgments, data.labels.both_orders, data.labels.flipped, data.labels.held_out) == (2, 1, 1, 1)
    assert [(s.source, s.n) for s in data.labels.sources] == [("ai:Plain words.", 1), ("human:file", 1)]
    assert data.trails is not None
    assert [len(t.labels) for t in data.trails if t.trace.prompt.id == "p1"] == [1]
    assert [u.labels for u in data.principles if u.id == "kind"] == [1]  # the failed judgment is no label


def test_of_many_labels_about_one_prompt_a_few_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    path = run_dir / "data" / "preferences.jsonl"
    path.write_bytes(path.read_bytes() * 9)
    data = collect_report(run_dir)
    assert data.trails is not None
    assert {(len(t.labels), t.label_count) for t in data.trails if t.trace.prompt.id == "p1"} == {(4, 9)}
    assert "5 more labels about this prompt" in render(run_dir)


def test_training_logs_in_model_folders_are_used_where_the_run_has_none(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    write_records(run_dir / "models" / "reward-0" / "training_log.jsonl", [{"step": 1, "loss": 9.0}])
    assert {c.points[0] for c in collect_report(run_dir).curves if c.metric == "loss"} == {(1.0, 1.0)}
    (run_dir / "metrics.jsonl").unlink()
    curves = collect_report(run_dir).curves
    assert [(c.stage, c.metric, c.points) for c in curves] == [("reward", "loss", ((1.0, 9.0),))]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", traces=9)
    assert render(run_dir) == render(run_dir)


def test_sources_that_pull_in_opposite_directions_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    long, short = "A long answer of several words", "Short"
    prompts = [Prompt(f"p{i}", "helpful", (Message("user", f"q{i}"),), "s") for i in range(20)]
    sides = {"human:f.jsonl": (short, long), "ai:<b>x</b>": (long, short)}
    both = [Preference(p, *texts, 0.9, 1.0, source, (), Provenance("")) for source, texts in sides.items() for p in prompts]
    write_records(run / "data" / "balance.jsonl", source_balance(both, ()))
    html = render_report(collect_report(run))
    assert "pull in opposite directions: the longer response is chosen in 100%" in html
    assert "ai:&lt;b&gt;x&lt;/b&gt;" in html and "n = 20" in html


def test_checks_with_too_little_data_are_not_taken_for_healthy() -> None:
    healthy = findings("Said so.")[1]
    short = replace(healthy, verdict="not enough data", p=None, p_adjusted=None)
    assert "None of 3 checks found a failure; 2 of them have too little data." in audit_summary([healthy, short, short])
    assert [f.undecided for f in families([healthy, short])] == ["; 1 of them has too little data"]
    assert [f.undecided for f in families([healthy])] == [""]


def test_distilled_responses_are_shown_beside_the_models_own(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    pairs = [
        ResponsePair(prompt(i), f"Told {i}.", f"Untold {i}.", "distilled", replace(BY, principle_ids=("kind", "frank"))) for i in range(70)
    ]
    write_records(run / "data" / "distilled_pairs.jsonl", pairs)
    page = render_report(collect_report(run))
    assert "70 responses with the principles in the model&#39;s context" in page.replace("'", "&#39;")
    assert "Told 59." in page and "Untold 0." in page and "Told 60." not in page and "in context: kind, frank" in page


def test_a_revision_shows_what_changed(tmp_path: Path) -> None:
    run = write_run(tmp_path, traces=0)
    rounds = (Round(Critique("kind", "Too blunt."), Revision("kind", "Please close the door, it is cold.")),)
    write_records(run / "data" / "traces.jsonl", [RevisionTrace(prompt(1), "Close the door, it is cold.", rounds, None, 0.7, BY)])
    page = render_report(collect_report(run))
    assert "What changed from the first response" in page and "<del>Close</del><ins>Please close</ins>" in page


@pytest.mark.parametrize("thinking", [False, True])
def test_what_the_model_thought_is_called_imitated_where_it_is(thinking: bool, tmp_path: Path) -> None:
    run = write_run(tmp_path, traces=0)
    critique, revision = Critique("kind", "Curt.", "What is curt?"), Revision("kind", "Gladly.", reasoning="Kinder, then.")
    trace = RevisionTrace(prompt(0), "No.", (Round(critique, revision),), None, None, BY, response_reasoning="I refuse.")
    write_records(run / "data" / "traces.jsonl", [trace])
    example = SFTExample(trace.prompt, "Gladly.", ("kind",), "revision", BY, False, reasoning=revision.reasoning if thinking else "")
    write_records(run / "data" / "sft.jsonl", [example])
    told = re.findall(r"thought first; not judged, ([a-z ]+)</summary><div[^>]*>([\w ]+)", render(run))
    assert told == [("not imitated", "I refuse"), ("not imitated", "What is curt"), ("imitated" if thinking else "not imitated", "Kinder")]


def test_answers_before_and_after_show_what_changed(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    texts = {"base": "Close the door, it is cold.", "sft": "Shut it.", "policy": "Please close the door, it is cold."}
    samples = [Sample(prompt(1), texts, {}), Sample(prompt(2), dict.fromkeys(texts, "Yes."), {}), Sample(prompt(3), {"base": "No."}, {})]
    write_records(run / "data" / "samples.jsonl", samples)
    page = render_report(collect_report(run))
    part = page[page.index('id="samples"') : page.index('id="trails"')]
    assert part.count("What changed from base to policy, word by word") == 1 and "<del>Close</del><ins>Please close</ins>" in part
    assert part.count("The two are the same, word for word.") == 1


def test_texts_without_much_in_common_or_too_long_are_not_marked_word_by_word() -> None:
    assert word_changes("One thing about cats.", "Nothing here is like it at all, as you may see.") == []
    assert word_changes("a " * 2000, "a " * 2001) == []
    assert word_changes("Be kind to all.", "Be fair to all.")[1:3] == [("removed", "kind"), ("added", "fair")]
