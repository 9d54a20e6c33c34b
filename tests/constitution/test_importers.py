"""Foreign files in, clean principles out; and YAML that reads back as the same constitution."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai.constitution.importers import dump_yaml, import_constitution
from cai.constitution.lint import lint
from cai.constitution.load import language_of, load_constitution
from cai.errors import ConstitutionError
from cai.records import WORDINGS, Constitution, Principle

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there: the real files are not part of the repository")

REQUESTS = {
    "gloomy0": {
        "prompt": ["\n\nCritiqueRequest: Name what is gloomy in the assistant's last response.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Please rewrite the assistant response to remove all gloomy or bitter content.\n\nRevision:",
    },
    "gloomy1": {
        "prompt": ["\n\nCritiqueRequest: Say whether the assistant complained.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Revise the assistant's response so as to refrain from complaining about rain.\n\nRevision:",
    },
}
COMPARISONS = ["\nPlease choose the response that is the most cheerful. Options:", "\nWhich response would a clown prefer? Options:"]
SWARM = {
    "constitutions": [
        {"critic": "Is the response dull? Say where.", "revision": "Please rewrite the response so that it is livelier."},
        {"critic": "Find rhymes in the response.", "revision": "Write a new response that does not have any trace of rhyme or metre."},
        {"critic": "Say what is odd about it.", "revision": "Less odd, please."},
        {"critic": "Say what is stale.", "revision": "Write a new version of the response that sounds fresh. Keep the rest."},
    ],
    "system_chat": [],
}


def save(tmp_path: Path, name: str, data: object) -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(data))
    return path


def test_paper_requests_and_comparisons_together(tmp_path):
    files = [save(tmp_path, "My_RequestsFile.json", REQUESTS), save(tmp_path, "comparisons.json", COMPARISONS)]
    constitution = import_constitution(files)
    assert constitution.id == "my-requests-file"
    assert [p.id for p in constitution.principles] == ["gloomy-0", "gloomy-1", "comparison-0", "comparison-1"]
    first, second, third, fourth = constitution.principles
    assert first.critique == "Name what is gloomy in the assistant's last response."
    assert first.revision == "Please rewrite the assistant response to remove all gloomy or bitter content."
    assert first.statement == "The response must not contain gloomy or bitter content."
    assert first.source == "My_RequestsFile.json: gloomy0 (statement derived from its revision request)"
    assert first.own_wording.keys() == {"critique", "revision"}, "its questions are the usual ones, about the statement"
    assert second.statement == "The response must refrain from complaining about rain."
    assert third.compare == "Please choose the response that is the most cheerful. Which response should be chosen?"
    assert fourth.compare == "Which response would a clown prefer?"
    assert "“Please choose the response that is the most cheerful.”" in third.statement and third.own_wording.keys() == {"compare"}
    assert third.source.endswith("(statement derived from its comparison)")
    assert [f for f in lint(constitution) if f.severity == "error"] == []


def test_llm_swarm(tmp_path):
    constitution = import_constitution(save(tmp_path, "swarm.json", SWARM))
    first, second, third, fourth = constitution.principles
    assert (first.id, first.critique) == ("principle-0", "Is the response dull? Say where.")
    assert first.statement.endswith("nobody has to ask for this: “Please rewrite the response so that it is livelier.”")
    assert second.statement == "The response must not contain rhyme or metre."
    assert third.statement.endswith("“Less odd, please.”")
    assert fourth.statement.endswith("“Write a new version of the response that sounds fresh. Keep the rest.”")
    assert first.applies_to == ("harmful", "borderline", "helpful")
    assert [f for f in lint(constitution) if f.severity == "error"] == []


def test_same_file_twice_gets_distinct_ids(tmp_path):
    path = save(tmp_path, "r.json", REQUESTS)
    assert [p.id for p in import_constitution([path, path]).principles] == ["gloomy-0", "gloomy-1", "gloomy-0-2", "gloomy-1-2"]


def test_all_problems_of_all_files_are_listed(tmp_path):
    bad = {
        "constitutions": [
            {"critic": "Find faults.", "revision": ""},
            "x",
            {"critic": "\n\nHuman: a\n\nAssistant: b", "revision": "Mend it."},
        ]
    }
    files = [save(tmp_path, "bad.json", bad), save(tmp_path, "c.json", ["", "\n\nHuman: Hi\n\nAssistant: Ho"]), save(tmp_path, "n.json", 3)]
    (tmp_path / "broken.json").write_text('{"a":\n oops}')
    with pytest.raises(ConstitutionError) as caught:
        import_constitution([*files, tmp_path / "broken.json", tmp_path / "absent.json"])
    message = str(caught.value)
    assert "nothing imported: 8 problems" in message
    assert "bad.json: constitutions[0]: expected a text under 'revision'" in message
    assert "bad.json: constitutions[1]: expected a text under 'critic' and 'revision'" in message
    assert "bad.json: constitutions[2]: expected a text under 'critic'" in message
    assert "c.json: [0]: expected a comparison instruction" in message
    assert "c.json: [1]: expected a comparison instruction" in message
    assert "n.json: unknown format" in message
    assert "broken.json:2: not valid JSON" in message
    assert "absent.json: can't be read" in message


@pytest.mark.parametrize(
    "data", [{}, [], None, {"constitutions": []}, {"constitutions": {}}, {"constitutions": 3}, {"a": 1}, [[["x"]]], "\ud800", ["\ud800"]]
)
def test_nothing_to_import(tmp_path, data):
    with pytest.raises(ConstitutionError):
        import_constitution(save(tmp_path, "x.json", data))


def test_text_that_no_constitution_may_hold_is_refused_at_import(tmp_path):
    with pytest.raises(ConstitutionError, match="too long"):
        import_constitution(save(tmp_path, "x.json", {"a": {"prompt": "x" * 5000, "edit_request": "Mend it."}}))


@needs_data
def test_real_files():
    paper = import_constitution([DATA / "paper_CritiqueRevisionInstructions.json", DATA / "paper_RLMadisonInstructions.json"])
    swarm = import_constitution(DATA / "llm_swarm_constitution.json")
    assert (len(paper.principles), len(swarm.principles)) == (32, 16)
    for constitution in (paper, swarm):
        assert [f for f in lint(constitution) if f.severity == "error"] == []
        for p in constitution.principles:
            assert "Request:" not in p.critique + p.revision and "Options:" not in p.compare
    near = {f.principle_id: f.message for f in lint(paper) if f.rule == "near-duplicate"}
    assert "harmful-0" in near["harmful-6"]  # the paper repeats itself
    with pytest.raises(ConstitutionError, match="5 problems"):
        import_constitution(DATA / "paper_CritiqueRevisionFewShotPrompts.json")


@pytest.mark.parametrize("path", sorted((ROOT / "constitution").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_files_round_trip_in_readable_yaml(path, tmp_path):
    constitution = load_constitution(path)
    text = dump_yaml(constitution)
    copy = tmp_path / "copy.yaml"
    copy.write_text(text)
    assert load_constitution(copy) == constitution
    assert text.startswith("# yaml-language-server: $schema=schema.json\nid: ")
    assert max(map(len, text.splitlines())) <= 130
    assert "\\" not in text and "\n\n  - id: " in text
    assert text.count("weight:") == sum(p.weight != 1 for p in constitution.principles)


stripped = (
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=200).map(str.strip).filter(bool)
)
sentence = st.lists(
    st.sampled_from(["word", "#", "- a", "key: value", "'", '"', "\\n", "é", "|", ">-", "%", "🙂", "---", "{x}", "null"]),
    min_size=1,
    max_size=60,
)
texts = st.one_of(
    stripped,
    sentence.map(" ".join),
    st.sampled_from(["yes", "1.0", "~", "null", "2001-01-01", "1e5", "0o17", ".inf", "True", "a\n\n b", "x\n", "= 1", "<<"]).map(str.strip),
)
names = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,2}", fullmatch=True)
kinds = st.sampled_from([("harmful",), ("borderline", "helpful"), ("harmful", "borderline", "helpful")])
principles = st.builds(
    Principle, names, *[texts] * 6, applies_to=kinds, weight=st.floats(0, 1000, exclude_min=True), source=st.one_of(st.just(""), texts)
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.builds(Constitution, names, texts, texts, st.lists(principles, min_size=1, max_size=3, unique_by=lambda p: p.id).map(tuple)))
def test_any_constitution_round_trips_exactly(tmp_path, constitution):
    if len(constitution.name) > 120:
        return
    path = tmp_path / "c.yaml"
    path.write_bytes(dump_yaml(constitution).encode())
    assert load_constitution(path) == constitution


def test_a_draft_in_another_language_with_comments_loads_as_it_is(tmp_path):
    one, two = (Principle(name, f"Antworte {name}.", **WORDINGS["de"]) for name in ("kurz", "klar"))
    constitution = Constitution("c", "C", "D", (one, replace(two, critique="Was ist unklar?", source="learned")))
    text = dump_yaml(constitution, "de", ("agrees in 60%", "agrees in\n55% \x1b[2J"))
    assert "language: de\n" in text and text.count("critique:") == 1 and "ask_positive" not in text
    assert "  # agrees in 60%\n  - id: kurz\n" in text and "  # agrees in 55% \\x1b[2J\n  - id: klar\n" in text
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert load_constitution(path) == constitution and language_of(path) == "de"
    path.write_text(dump_yaml(constitution))
    assert load_constitution(path) == constitution and language_of(path) == "en"
