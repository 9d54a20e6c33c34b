"""A constitution in the editor: live lint, drafts, saving, and several tabs."""

import json
import os
import re
import signal
import sys
import threading
import time
from html import unescape
from pathlib import Path

import httpx2
import pytest

from cai.constitution.editing import UNWRITTEN
from cai.core.workspace import Workspace
from cai.errors import ConstitutionError, RecipeError
from cai.models.requests import Completion, Request
from cai.studio.drafts import ChangedElsewhereError, Drafts
from cai.studio.serving import serve
from tests.studio.serving import Served
from tests.workspaces import script, start_cai

NAME = "general"
BASE = f"/constitutions/{NAME}"


def edited(text: str) -> str:
    assert text.count("Keep\n      whatever is safe and useful.") == 1
    return text.replace("Keep\n      whatever is safe and useful.", "Keep\n      what is useful.  # not a comment in here")


@pytest.fixture
def drafts(workspace: Workspace) -> Drafts:
    return Drafts(workspace)


@pytest.fixture
def file(workspace: Workspace) -> Path:
    return workspace.root / "constitution" / f"{NAME}.yaml"


def test_an_edit_changes_its_own_characters_and_no_other(drafts: Drafts, file: Path) -> None:
    before = file.read_bytes()
    now = drafts.open(NAME)
    assert before.decode() == now.text and before.count(b"#") > 3 and not now.is_draft
    kept = drafts.write(NAME, edited(now.text), now.version)
    assert kept.is_draft and file.read_bytes() == before, "a draft leaves the file alone"
    saved = drafts.save(NAME, kept.version)
    assert file.read_bytes() == edited(before.decode()).encode() and not saved.is_draft
    assert drafts.open(NAME) == saved


def test_line_breaks_stay_as_the_file_has_them(drafts: Drafts, file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    now = drafts.open(NAME)
    shown = now.text.replace("\r\n", "\n")  # what a textarea gives back
    assert not drafts.write(NAME, shown, now.version).is_draft
    kept = drafts.write(NAME, edited(shown), now.version)
    drafts.save(NAME, kept.version)
    assert file.read_bytes() == edited(shown).replace("\n", "\r\n").encode()


def test_what_no_run_could_read_is_kept_and_not_saved(drafts: Drafts, file: Path) -> None:
    before = file.read_bytes()
    now = drafts.open(NAME)
    broken = drafts.write(NAME, now.text.replace("name: General", "nome: General"), now.version)
    assert [(f.rule, f.line) for f in broken.findings] == [("schema", 1), ("schema", 3)] and broken.fault
    with pytest.raises(ConstitutionError, match="Not saved, because the text is not a valid constitution"):
        drafts.save(NAME, broken.version)
    twice = drafts.write(NAME, now.text.replace("id: no-weapon-recipes", "id: no-help-with-violence"), broken.version)
    assert [f.rule for f in twice.findings] == ["duplicate-id"], "no finding says schema, and yet it can't be loaded"
    with pytest.raises(ConstitutionError, match="duplicate id"):
        drafts.save(NAME, twice.version)
    torn = drafts.write(NAME, now.text[:300] + "\n\t: [", twice.version)
    assert [f.rule for f in torn.findings] == ["schema"] and torn.form == ()
    assert file.read_bytes() == before and drafts.open(NAME) == torn
    assert drafts.discard(NAME, torn.version) == now


def test_advice_does_not_keep_a_person_from_saving(drafts: Drafts, file: Path) -> None:
    now = drafts.open(NAME)
    kept = drafts.write(NAME, now.text.replace("Does the response contain anything", "Contain anything"), now.version)
    assert {f.rule for f in kept.findings} == {"not-a-question", "no-subject"} and not kept.fault
    drafts.save(NAME, kept.version)
    assert "Contain anything" in file.read_text()


def test_two_tabs_do_not_overwrite_each_other(drafts: Drafts) -> None:
    now = drafts.open(NAME)
    first = drafts.write(NAME, f"{now.text}# one\n", now.version)
    for act in (lambda: drafts.write(NAME, f"{now.text}# two\n", now.version), lambda: drafts.save(NAME, now.version)):
        with pytest.raises(ChangedElsewhereError):
            act()
    assert drafts.open(NAME) == first


def test_a_file_that_an_editor_changed_is_not_overwritten_unseen(drafts: Drafts, file: Path) -> None:
    now = drafts.open(NAME)
    kept = drafts.write(NAME, f"{now.text}# mine\n", now.version)
    assert not kept.is_overtaken
    file.write_text(f"{now.text}# theirs\n")
    with pytest.raises(ChangedElsewhereError):
        drafts.save(NAME, kept.version)
    again = drafts.open(NAME)
    assert again.is_overtaken and again.text.endswith("# mine\n")
    assert drafts.write(NAME, f"{now.text}# mine, too\n", again.version).is_overtaken
    assert drafts.discard(NAME, drafts.open(NAME).version).text.endswith("# theirs\n")


@pytest.mark.enable_socket
def test_the_editor_hears_of_a_fault_with_its_line(served: Served) -> None:
    client = served.enter()
    now = client.get(f"{BASE}/text").json()
    assert "No problems found" in now["html"] and now["lines"] == {}
    text = now["text"].replace("id: no-weapon-recipes", "id: no-help-with-violence")
    line = text[: text.rindex("id: no-help-with-violence")].count("\n") + 1
    kept = served.post(f"{BASE}/draft", text=text, version=now["version"])
    assert kept["lines"] == {str(line): "error"} and f'data-line="{line}"' in kept["html"] and "already has this id" in kept["html"]
    assert served.post(f"{BASE}/draft", status=409, text="x", version=now["version"])["error"].startswith("general was changed")
    assert served.post(f"{BASE}/draft", status=400, text=3, version=kept["version"])["error"].startswith("invalid request body")
    assert "1 error" in client.get("/").text and "unsaved draft" in client.get("/").text


@pytest.mark.enable_socket
def test_text_of_a_constitution_is_never_markup(served: Served) -> None:
    served.enter()
    evil = "</textarea><script>alert(1)</script><img src=x onerror=alert(1)>"
    now = served.client.get(f"{BASE}/text").json()
    kept = served.post(f"{BASE}/draft", text=now["text"].replace("id: no-weapon-recipes", f"id: '{evil}'"), version=now["version"])
    assert evil in kept["text"] and "&lt;script&gt;" in kept["html"] and "<script" not in kept["html"] and "<img" not in kept["html"]


@pytest.mark.enable_socket
def test_of_two_writers_at_once_one_wins_and_the_other_is_told(served: Served) -> None:
    served.enter()
    now = served.client.get(f"{BASE}/text").json()
    answers: dict[str, int] = {}

    def write(mark: str) -> None:
        body = {"text": f"{now['text']}# {mark}\n", "version": now["version"]}
        headers = {"origin": served.origin}
        with httpx2.Client(base_url=served.origin, cookies=served.client.cookies, headers=headers, trust_env=False, timeout=20) as client:
            answers[mark] = client.post(f"{BASE}/draft", json=body).status_code

    threads = [threading.Thread(target=write, args=(f"tab {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers.values()) == [200, 409, 409, 409]
    winner = next(mark for mark, status in answers.items() if status == 200)
    assert served.client.get(f"{BASE}/text").json()["text"].endswith(f"# {winner}\n")


@pytest.mark.enable_socket
def test_the_command_serves_and_a_killed_one_has_lost_nothing(workspace: Workspace, file: Path) -> None:
    process = start_cai(workspace.root, "studio", "--port", "0")
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("Open ").strip()
        origin = address.partition("/enter")[0]
        with httpx2.Client(base_url=origin, trust_env=False, timeout=20, headers={"origin": origin}) as client:
            assert client.get(address, follow_redirects=True).status_code == 200
            now = client.get(f"{BASE}/text").json()
            client.post(f"{BASE}/draft", json={"text": edited(now["text"]), "version": now["version"]}).raise_for_status()
        before = file.read_text()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert before == now["text"]
    assert Drafts(workspace).open(NAME).text == edited(before)
    kept = next((workspace.root / "runs" / ".studio" / "drafts").iterdir())
    assert json.loads(kept.read_text())["text"] == edited(before)


def test_a_missing_package_is_named_with_what_to_type(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "itsdangerous", None)
    with pytest.raises(RecipeError, match=r"itsdangerous\. Install .* pip install 'cai\[studio\]'"):
        serve(0, workspace.root, lambda address: None)


@pytest.mark.enable_socket
def test_a_file_that_is_no_text_spoils_only_its_own_page(served: Served) -> None:
    (served.workspace.root / "constitution" / "odd.yaml").write_bytes(b"\xff\xfe")
    client = served.enter()
    home = client.get("/")
    assert home.status_code == 200 and "not UTF-8 text" in home.text and "27 principles" in home.text
    assert "not UTF-8 text" in client.get("/constitutions/odd/text").json()["error"]


@pytest.mark.enable_socket
def test_a_taken_port_is_a_persons_error(served: Served) -> None:
    process = start_cai(served.workspace.root, "studio", "--port", str(served.port))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "can't listen on port" in err and out == ""


MINE = """\
id: mine
name: Mine
description: For tests.
principles:
  # about sources
  - id: sources
    statement: Name the source of every claim.
  - id: short
    statement: Be short.
"""


@pytest.fixture
def mine(served: Served) -> str:
    (served.workspace.root / "constitution" / "mine.yaml").write_text(MINE)
    served.enter()
    return "/constitutions/mine"


@pytest.mark.enable_socket
def test_the_form_and_the_text_are_in_step(served: Served, mine: str) -> None:
    now = served.client.get(f"{mine}/text").json()
    assert [(p["id"], p["statement"]) for p in now["form"]] == [("sources", "Name the source of every claim."), ("short", "Be short.")]
    assert now["form"][0]["applies_to"] == ["harmful", "borderline", "helpful"] and now["form"][0]["wording"] == {}
    values = {"statement": "Be brief.", "compare": "Which response is shorter?", "applies_to": ["helpful"]}
    now = served.post(f"{mine}/principle", version=now["version"], index=1, values=values)
    assert "# about sources" in now["text"] and "    statement: Be brief.\n" in now["text"] and now["is_draft"]
    assert now["form"][1]["wording"] == {"compare": "Which response is shorter?"} and now["form"][1]["applies_to"] == ["helpful"]
    back = {"statement": "Be short.", "compare": "", "applies_to": ["helpful", "harmful", "borderline"]}
    now = served.post(f"{mine}/principle", version=now["version"], index=1, values=back)
    assert now["text"] == MINE and not now["is_draft"]
    text = MINE.replace("Be short.", "Be blunt.")
    now = served.post(f"{mine}/draft", version=now["version"], text=text)
    assert now["form"][1]["statement"] == "Be blunt."


@pytest.mark.enable_socket
def test_a_fault_is_said_at_its_principle(served: Served, mine: str) -> None:
    now = served.client.get(f"{mine}/text").json()
    now = served.post(f"{mine}/principle", version=now["version"], index=1, values={"id": "Not an id"})
    assert now["form"][0]["problems"] == [] and not now["is_loadable"]
    assert "lowercase kebab case" in now["form"][1]["problems"][0]["text"]
    said = served.post(f"{mine}/principle", 400, version=now["version"], index=1, values={"statement": ""})
    assert "needs an id and a statement" in said["error"]
    served.post(f"{mine}/principle", 400, version=now["version"], index=9, values={"statement": "x"})
    served.post(f"{mine}/principle", 400, version=now["version"], index=0, values={"nothing": "x"})
    served.post(f"{mine}/principle", 409, version="other", index=0, values={"statement": "x"})


@pytest.mark.enable_socket
def test_what_is_wrong_is_said_at_its_field_in_words(served: Served, mine: str) -> None:
    version = served.client.get(f"{mine}/text").json()["version"]
    rows = [{"rule": "max_words", "value": "few"}, {"rule": "max_wrods", "value": 3}, {"rule": "contains_any", "value": ["x", ""]}]
    now = served.post(f"{mine}/principle", version=version, index=1, values={"weight": -1, "compare": "x" * 4000}, check=rows)
    said = [(p["field"], p["text"]) for p in now["form"][1]["problems"]]
    assert now["form"][1]["check"] == [{**row, "kinds": []} for row in rows] and now["form"][1]["weight"] == -1
    assert ("weight", "must be a number above 0 and at most 1000; found -1") in said
    assert ("check", "max_words: must be a whole number, at least 1; found 'few'") in said
    assert ("check", "unknown rule 'max_wrods'. Did you mean 'max_words'?") in said
    assert ("check", "contains_any 2: must not be empty") in said
    now = served.post(f"{mine}/principle", version=now["version"], index=1, values={"weight": "", "compare": None}, check=[])
    assert now["text"] == MINE
    now = served.post(f"{mine}/principle", version=now["version"], index=1, examples={"good": [" "], "bad": ["So long an answer."]})
    assert now["form"][1]["examples"] == {"good": [], "bad": ["So long an answer."]} and "good" not in now["text"]
    served.post(f"{mine}/principle", 400, version=now["version"], index=1, check=[{"rule": "max_words"}])


@pytest.mark.enable_socket
def test_principles_are_added_moved_and_removed(served: Served, mine: str) -> None:
    def act(**body: object) -> list[str]:
        version = served.client.get(f"{mine}/text").json()["version"]
        return [p["id"] for p in served.post(f"{mine}/arrange", version=version, **body)["form"]]

    assert act(action="add") == ["sources", "short", "principle-1"]
    assert act(action="add") == ["sources", "short", "principle-1", "principle-2"]
    assert act(action="move", index=3, to=0) == ["principle-2", "sources", "short", "principle-1"]
    assert act(action="remove", index=0) == ["sources", "short", "principle-1"]


@pytest.mark.enable_socket
def test_text_that_is_no_yaml_has_no_form(served: Served, mine: str) -> None:
    now = served.client.get(f"{mine}/text").json()
    now = served.post(f"{mine}/draft", version=now["version"], text=MINE + "\t: [")
    assert now["form"] == [] and not now["is_loadable"]
    for text in ("id: mine\n", "id: mine\nprinciples: []\n", ""):
        now = served.post(f"{mine}/draft", version=now["version"], text=text)
        assert now["form"] == [] and not now["is_loadable"], "no principle is left"


@pytest.mark.enable_socket
def test_an_earlier_version_is_shown_and_restored(served: Served, mine: str) -> None:
    assert "No earlier version yet" in served.client.get(f"{mine}/history").json()["html"]
    for statement in ("Be brief.", "Be terse."):
        now = served.client.get(f"{mine}/text").json()
        now = served.post(f"{mine}/principle", version=now["version"], index=1, values={"statement": statement})
        now = served.post(f"{mine}/save", version=now["version"])
    html = served.client.get(f"{mine}/history").json()["html"]
    assert html.count("<summary>until ") == 2
    assert "<del>-    statement: Be short.</del>" in html and "<ins>+    statement: Be terse.</ins>" in html
    oldest = re.findall('data-key="([^"]+)"', html)[-1]
    now = served.post(f"{mine}/restore", version=now["version"], key=oldest)
    assert now["text"] == MINE and now["is_draft"]
    assert "Be terse." in (served.workspace.root / "constitution" / "mine.yaml").read_text(), "a restored text is a draft"
    served.post(f"{mine}/restore", 400, version=now["version"], key="../../x")


@pytest.mark.enable_socket
def test_a_model_drafts_the_wording_of_a_principle(served: Served, mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = (
        "Name the source.\nCritique: Point out every claim in your last response that names no source.\n"
        "Revision: Rewrite your last response so that every claim names its source.\nFollows: Does the response name its sources?\n"
        "Breaks: Does the response make a claim without naming a source?\nCompare: Which tastes better?"
    )
    script(monkeypatch, lambda request: Completion(reply, False, 1, 1))
    job = served.post(f"{mine}/word", index=0)
    while not job["over"]:
        time.sleep(0.05)
        job = served.client.get(f"/jobs/{job['id']}").json()
    now = served.client.get(f"{mine}/text").json()
    assert not any(principle["wording"] for principle in now["form"]), "the page decides when"
    served.post(f"{mine}/worded", 404, version=now["version"], job=job["id"], part=1)
    served.post(f"{mine}/worded", 404, version=now["version"], job="none", part=0)
    served.post(f"{mine}/worded", 409, version="old", job=job["id"], part=0)
    now = served.post(f"{mine}/principle", version=now["version"], index=0, values={"id": "renamed"})
    served.post(f"{mine}/worded", version=now["version"], job=job["id"], part=0)
    assert (
        job["state"] == "done"
        and "drafted 4 of 5 texts; nothing usable for the question about two responses, which stays as it was" in job["html"]
    )
    [sources, _] = served.client.get(f"{mine}/text").json()["form"]
    assert set(sources["drafted"]) == set(sources["wording"]) == {"critique", "revision", "ask_positive", "ask_negative"}
    now = served.client.get(f"{mine}/text").json()
    edited = {"critique": "Point out each claim in your last response without a source."}
    now = served.post(f"{mine}/principle", version=now["version"], index=0, values=edited)
    assert "critique" not in now["form"][0]["drafted"], "a person's text is not marked as drafted"


@pytest.mark.enable_socket
def test_what_is_missing_is_drafted_and_what_a_person_wrote_stays(served: Served, mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(request: Request) -> Completion:
        about = "brevity" if "Be short" in request.messages[-1].content else "source"
        words = {"brevity": "Point out what is not short in your last response.", "source": "Point out each claim without a source."}
        return Completion(f"x\nCritique: {words[about]}\nRevision: Rewrite your last response so that it is short.", False, 1, 1)

    def word(**body: object) -> str:
        job = served.post(f"{mine}/word", **body)
        while not job["over"]:
            time.sleep(0.05)
            job = served.client.get(f"/jobs/{job['id']}").json()
        assert job["state"] == "done", job["html"]
        for part in range(job["html"].count('class="worded"')):
            served.post(f"{mine}/worded", version=served.client.get(f"{mine}/text").json()["version"], job=job["id"], part=part)
        return str(job["html"])

    script(monkeypatch, reply)
    now = served.client.get(f"{mine}/text").json()
    now = served.post(f"{mine}/arrange", version=now["version"], action="add")
    assert now["form"][2]["statement"] == UNWRITTEN and "still to be written" in now["form"][2]["problems"][0]["text"]
    own = "Ask yourself what each claim rests on, and say it."
    served.post(f"{mine}/principle", version=now["version"], index=0, values={"critique": own})
    assert word().count("drafted ") == 1, "of three, one has a text of its own, and one no statement yet"
    form = served.client.get(f"{mine}/text").json()["form"]
    assert form[1]["drafted"] == ["critique", "revision"] and form[0]["wording"] == {"critique": own} and not form[2]["wording"]
    word(index=0)
    assert served.client.get(f"{mine}/text").json()["form"][0]["wording"]["critique"] == own
    assert "Write the statement first" in served.post(f"{mine}/word", 400, index=2)["error"]


@pytest.mark.enable_socket
def test_what_is_left_out_is_in_the_constitutions_language(served: Served, mine: str) -> None:
    now = served.client.get(f"{mine}/text").json()
    assert now["language"] == "en"
    assert served.post(f"{mine}/draft", version=now["version"], text=f"language: de\n{MINE}")["language"] == "de"
    assert "Folgt die Antwort dem Grundsatz?" in unescape(served.client.get(mine).text)


@pytest.mark.enable_socket
def test_a_new_constitution_is_created_once(served: Served) -> None:
    served.enter()
    assert served.post("/constitutions", name="our-rules") == {"page": "/constitutions/our-rules"}
    now = served.client.get("/constitutions/our-rules/text").json()
    assert [p["id"] for p in now["form"]] == ["principle-1"] and now["is_loadable"]
    assert "exists already" in served.post("/constitutions", 400, name="our-rules")["error"]
    for name in ("Our Rules", "../x", ""):
        assert "kebab" in served.post("/constitutions", 400, name=name)["error"]
