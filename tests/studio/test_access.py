"""Links for several people: signed, limited in time, revoked at once, and each role gets what it may do and nothing else."""

import os
import re
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer
from typer.testing import CliRunner

from cai.cli import app
from cai.core.jsonl import read_records, write_records
from cai.core.workspace import Workspace
from cai.errors import DataError, StoreError
from cai.labels.pooling import ADJUDICATOR
from cai.records import HumanLabel
from cai.studio.access import KEY_BYTES, LinkError, Links
from cai.studio.app import make_app, studio_for
from cai.studio.serving import origins
from tests.studio.conftest import serving
from tests.studio.principle_runs import add_run
from tests.studio.queues import pair
from tests.studio.serving import Served

pytestmark = pytest.mark.enable_socket


CHANGE = "POST /constitutions/{name}/"
LEAST = {
    "GET /": "label",
    "GET /static/{name}": "label",
    "GET /constitutions/{name}": "edit",
    "GET /constitutions/{name}/text": "edit",
    "GET /constitutions/{name}/history": "edit",
    "GET /constitutions/{name}/principles/{id}": "edit",
    "POST /constitutions": "edit",
    **{CHANGE + change: "edit" for change in ("draft", "principle", "arrange", "restore", "save", "discard")},
    **{CHANGE + change: "edit" for change in ("preview", "compare", "word", "worded")},
    "GET /jobs/{id}": "edit",
    "POST /jobs/{id}/stop": "edit",
    "GET /label": "label",
    "GET /label/begin": "label",
    "GET /label/{queue}": "label",
    "GET /label/{queue}/results": "edit",
    "POST /label/queues": "admin",
    "POST /label/{queue}/next": "label",
    "POST /label/{queue}/answer": "label",
    "POST /label/{queue}/undo": "label",
    "GET /runs": "edit",
    "POST /runs": "admin",
    "POST /plan": "admin",
    "POST /runs/{name}/stop": "admin",
    "POST /runs/{name}/resume": "admin",
    "GET /runs/{name}/texts": "edit",
    "GET /runs/{name}": "edit",
    "GET /runs/{name}/stages": "edit",
    "GET /runs/{name}/report": "edit",
    "GET /compare": "edit",
}
"""The least role for each route. A new route belongs here, and into `cai/studio/access.py` unless its default is right."""
NAMES = {"/static/{name}": "app.js", "/runs/{name}": "r1", "{name}": "general", "{id}": "none", "{queue}": "q-jsonl"}


def concrete(path: str) -> str:
    """An address of a route."""
    for pattern, name in NAMES.items():
        path = path.replace(pattern, pattern.replace("{name}", name) if "/" in pattern else name)
    return path


def add_queue(workspace: Workspace, n: int = 3) -> None:
    write_records(workspace.root / "labels" / "queues" / "q.jsonl", [{"pair": pair(i)} for i in range(n)])


@pytest.fixture
def links(workspace: Workspace) -> Links:
    return Links(workspace)


@pytest.fixture(scope="module")
def module_links(tmp_path_factory: pytest.TempPathFactory) -> Links:
    return Links(Workspace(tmp_path_factory.mktemp("links")))


@pytest.fixture
def command(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call `cai studio …` in the workspace, and return what it prints."""
    monkeypatch.chdir(workspace.root)

    def call(*args: str) -> str:
        done = CliRunner().invoke(app, ["studio", *args], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output.strip()

    return call


@pytest.fixture(scope="module")
def labelled(shared_port: tuple[Workspace, int]) -> None:
    add_queue(shared_port[0])
    add_run(shared_port[0], "r1")


@pytest.mark.attack
def test_a_changed_token_opens_nothing(workspace: Workspace, links: Links, tmp_path: Path) -> None:
    token = links.token("ben", "label", 1)
    payload, _, signature = token.partition(".")
    admin = links.token("ben", "admin", 1)
    other = Links(Workspace(tmp_path / "other"))
    stated = {"name": "ben", "role": "admin", "until": int(time.time()) + 99, "made": time.time()}
    key = (workspace.root / "runs" / ".studio" / "key").read_bytes()
    for wrong in (
        "",
        ".",
        payload,
        f"{payload}.",
        f".{signature}",
        f"{admin.partition('.')[0]}.{signature}",
        f"{payload[:-2]}xx.{signature}",
        f"{payload}.{signature[::-1]}",
        token.swapcase(),
        token * 2,
        f"{token}\x00",
        "x" * 100_000,
        other.token("ben", "admin", 1),
        URLSafeSerializer(b"", salt="cai-studio-link").dumps(stated),
        URLSafeSerializer(key, salt="another use").dumps(stated),
    ):
        with pytest.raises(LinkError, match=r"^This link is not valid: its token is wrong\."):
            links.read(wrong)
    assert links.read(token).role == "label" and links.read(admin).name == "ben"


@pytest.mark.attack
@given(text=st.text(), at=st.integers(0, 60), new=st.characters(exclude_categories=["Cs"]))
def test_no_text_is_a_token_by_chance(module_links: Links, text: str, at: int, new: str) -> None:
    token = module_links.token("a", "admin", 1)
    for wrong in {text, f"{text}.{text}", f"{token[:at]}{new}{token[at + 1 :]}"} - {token}:
        with pytest.raises(LinkError):
            module_links.read(wrong)


@pytest.mark.parametrize("stated", [{"name": "ben"}, {"role": "root"}, {"until": "never"}, {"more": 1}, [], None, "admin"])
def test_a_signed_statement_of_another_form_opens_nothing(links: Links, stated: Any) -> None:
    good = {"name": "ben", "role": "admin", "until": int(time.time()) + 99, "made": time.time()}
    signer = links._signer
    assert links.read(signer.dumps(good)).name == "ben"
    whole = good | stated if isinstance(stated, dict) and "name" not in stated else stated
    with pytest.raises(LinkError):
        links.read(signer.dumps(whole))


def test_a_name_is_a_raters(links: Links) -> None:
    assert links.read(links.token("  Ben   of  Ur ", "label", 1)).name == "Ben of Ur"
    for bad in ("", "  ", "x" * 61, "a\x00b", "a\u202eb"):
        with pytest.raises(DataError, match="a rater's name"):
            links.token(bad, "label", 1)
        with pytest.raises(DataError, match="a rater's name"):
            links.revoke(bad)


@pytest.mark.attack
def test_the_key_is_its_owners_alone_and_never_in_git(workspace: Workspace) -> None:
    before = os.umask(0)
    try:
        token = Links(workspace).token("ben", "label", 1)
    finally:
        os.umask(before)
    key = workspace.root / "runs" / ".studio" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == KEY_BYTES
    subprocess.run(["git", "init", "--quiet"], cwd=workspace.root, check=True)
    ignored = subprocess.run(["git", "check-ignore", "runs/.studio/key", "runs/.studio/revoked.jsonl"], cwd=workspace.root, check=False)
    assert ignored.returncode == 0
    made = key.read_bytes()
    assert Links(workspace).read(token).name == "ben" and key.read_bytes() == made


def test_two_processes_at_once_make_one_key(workspace: Workspace) -> None:
    with ThreadPoolExecutor(8) as pool:
        every = list(pool.map(lambda n: Links(workspace), range(8)))
    token = every[0].token("ben", "label", 1)
    assert {links.read(token).name for links in every} == {"ben"}


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * (KEY_BYTES + 1)])
def test_a_damaged_key_is_an_error_that_says_what_to_do(workspace: Workspace, links: Links, damage: bytes) -> None:
    token, key = links.token("ben", "label", 1), workspace.root / "runs" / ".studio" / "key"
    key.write_bytes(damage)
    with pytest.raises(StoreError, match=r"studio/key: .* is damaged\. Restore it, or delete it and start again: all links end then\."):
        Links(workspace)
    assert key.read_bytes() == damage
    key.unlink()
    with pytest.raises(LinkError):
        Links(workspace).read(token)


def test_a_key_that_cannot_be_read_is_an_error_that_says_what_to_do(workspace: Workspace) -> None:
    (workspace.root / "runs" / ".studio" / "key").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"can't be read or written \(Is a directory\)\. Restore it, or delete it"):
        Links(workspace)


def test_a_tab_goes_on_after_a_restart(workspace: Workspace) -> None:
    with httpx2.Client(trust_env=False, timeout=20) as tab:
        with serving(workspace) as port:
            other = Served(tab, port, workspace)
            tab.base_url = httpx2.URL(other.origin)
            other.enter()
            now = tab.get("/constitutions/general/text").json()
        with pytest.raises(httpx2.HTTPError):
            tab.get("/")
        with serving(workspace, port):
            assert other.post("/constitutions/general/draft", text=f"{now['text']}# mine", version=now["version"])["is_draft"]


def test_a_link_ends_when_it_says(shared: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    token = shared.links.token("ben", "label", 7)
    client = shared.enter(token)
    for days, status in ((6.99, 200), (7.01, 401)):
        later = time.time() + days * 24 * 60 * 60
        monkeypatch.setattr("cai.studio.access.time", SimpleNamespace(time=lambda now=later: now))
        for answer in (client.get("/label"), client.get(f"/enter?token={token}")):
            assert answer.status_code == status
            assert status == 200 or answer.text == "This link has expired. Ask for a new one.\n"


@pytest.mark.attack
def test_a_revoked_link_ends_at_once_in_a_running_server(served: Served, command: Any) -> None:
    with served.visit("ben", "edit") as ben, served.visit("Ben", "label") as another:
        old = served.links.token("ben", "admin", 30)
        assert ben.client.get("/").status_code == 200
        assert command("revoke", "ben").startswith("All links that were made for ben so far have ended.")
        for answer in (
            ben.client.get("/"),
            ben.client.post("/constitutions", json={"name": "x"}),
            served.client.get(f"/enter?token={old}"),
        ):
            assert (answer.status_code, answer.text) == (401, "This link has been revoked. Ask for a new one.\n")
        assert another.client.get("/label").status_code == served.enter().get("/").status_code == 200, "only of that name"
        ben.enter(command("invite", "ben").partition("token=")[2])
        assert ben.client.get("/label").status_code == 200, "a link that was made later is good"


@pytest.mark.attack
def test_while_revocations_cannot_be_read_nobody_enters(served: Served) -> None:
    client = served.enter()
    revoked = served.workspace.root / "runs" / ".studio" / "revoked.jsonl"
    revoked.write_text('{"name": 1}\n')
    assert client.get("/").status_code == client.get(f"/enter?token={served.token}").status_code == 503
    assert client.get("/enter?token=x").status_code == 401
    revoked.unlink()
    assert client.get("/").status_code == 200


def test_an_invitation_needs_no_running_server(command: Any, links: Links) -> None:
    link = command("invite", "Ana Lia", "--role", "edit", "--days", "3", "--port", "9000")
    found = re.fullmatch(r"http://127\.0\.0\.1:9000/enter\?token=([\w.-]+)", link)
    assert found
    stated = links.read(found[1])
    assert (stated.name, stated.role) == ("Ana Lia", "edit") and 0 <= stated.until - time.time() - 3 * 86400 + 5 <= 10
    assert command("invite", "ben", "--url", "https://labels.example.org/").startswith("https://labels.example.org/enter?token=")
    assert links.read(command("invite", "ben").partition("token=")[2]).role == "label"


@pytest.mark.attack
def test_every_route_has_a_least_role(workspace: Workspace, links: Links) -> None:
    routes = make_app(studio_for(workspace), 1, links, origins(1))._app.routes
    assert {f"{method} {route.path}" for route in routes for method in route.methods - {"HEAD"}} == set(LEAST)  # type: ignore[attr-defined]


@pytest.mark.attack
@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize("role", ["label", "edit", "admin"])
def test_a_role_gets_what_it_may_do_and_nothing_else(shared: Served, role: Any) -> None:
    ranks = ["label", "edit", "admin"]
    with shared.visit("ben", role) as ben:
        for request, least in LEAST.items():
            method, path = request.split()
            answer = ben.client.request(method, concrete(path), json={} if method == "POST" else None)
            allowed = ranks.index(role) >= ranks.index(least)
            assert (answer.status_code != 403) == allowed and answer.status_code < 500, (request, answer.status_code)
            assert allowed or f"Your link has the role {role}, which does not allow this." in answer.text
            assert allowed or "general" not in answer.text, "an error page tells nothing else"
        for method, least in (("GET", "edit"), ("HEAD", "edit"), ("POST", "admin"), ("DELETE", "admin")):
            for path in ("/runs/r1/new", "/label/q-jsonl/new"):
                allowed = ranks.index(role) >= ranks.index(least)
                answer = ben.client.request(method, path, json={} if method in ("POST", "DELETE") else None)
                assert answer.status_code == (404 if allowed else 403), (method, path)
        assert ben.client.head("/label").status_code == 200


@pytest.mark.usefixtures("labelled")
def test_who_only_labels_is_shown_no_way_elsewhere(shared: Served) -> None:
    with shared.visit("ben", "label") as ben:
        start = ben.client.get("/")
        assert (start.status_code, start.headers["location"]) == (303, "/label")
        for path in ("/label", "/label/q-jsonl", "/label/q-jsonl?rater=eve", "/label/none"):
            page = ben.client.get(path, headers={"accept": "text/html"}).text
            hrefs = set(re.findall(r'href="(/[^"]*)"', page)) | set(re.findall(r'action="([^"]*)"', page))
            assert {"/", "/label"} <= hrefs
            for address in hrefs | set(re.findall(r'src="([^"]*)"', page)):
                assert ben.client.get(address).status_code != 403, (path, address)
        page = ben.client.get("/label").text
        assert 'value="ben" readonly' in page and 'id="rater"' not in page and "new-queue" not in page and "Labelled by" not in page
    with shared.visit("eva", "edit") as eva:
        page = eva.client.get("/label").text
        assert 'value="eva" readonly' in page and "new-queue" not in page and "Labelled by" in page
        assert (
            'href="/runs"' not in eva.client.get("/").text and 'id="stop"' not in eva.client.get("/runs/r1").text.split("<span hidden>")[0]
        )
    page = shared.enter().get("/label").text
    assert 'id="rater"' in page and "new-queue" in page
    assert 'href="/runs"' in shared.client.get("/").text and "<span hidden>" not in shared.client.get("/runs/r1").text


@pytest.mark.attack
@pytest.mark.parametrize("role", ["label", "edit", "admin"])
def test_labels_are_stored_under_the_links_own_name_only(served: Served, role: Any) -> None:
    add_queue(served.workspace)
    with served.visit("ben", role) as ben:
        begun = ben.client.get("/label/begin?queue=q-jsonl")
        assert begun.status_code == 303 and "rater=ben" in begun.headers["location"]
        key = ben.post("/label/q-jsonl/next", rater="ben")["key"]
        others = ["eve", "Ben", "ben2", "adjudicatio", *([] if role == "admin" else [ADJUDICATOR])]
        for name in others:
            said = ben.post("/label/q-jsonl/answer", 403, rater=name, key=key, choice="a")["error"]
            assert said == f"Your link is for ben. You can't label as {name}."
            ben.post("/label/q-jsonl/next", 403, rater=name)
            ben.post("/label/q-jsonl/undo", 403, rater=name, key=key)
            assert ben.client.get("/label/q-jsonl", params={"rater": name}).status_code == 403
            assert ben.client.get("/label/begin", params={"queue": "q-jsonl", "rater": name}).status_code == 403
        assert not list((served.workspace.root / "labels").glob("*.jsonl"))
        assert ben.post("/label/q-jsonl/answer", rater=" ben ", key=key, choice="a")["kept"]
        if role == "admin":
            assert ben.post("/label/q-jsonl/answer", rater=ADJUDICATOR, key=key, choice="a")["kept"]
    served.enter()
    assert served.post("/label/q-jsonl/answer", rater="anyone", key=key, choice="a")["kept"], "the owner types any name"


def test_two_raters_label_by_two_links(served: Served, command: Any) -> None:
    add_queue(served.workspace)
    for name, choice in (("ana", "a"), ("Ben Ali", "b")):
        link = command("invite", name, "--port", str(served.port))
        with httpx2.Client(trust_env=False, timeout=20, headers={"origin": served.origin}, follow_redirects=True) as client:
            entered = client.get(link, headers={"sec-fetch-site": "cross-site"})
            onward = re.search(r'href="([^"]+)"', entered.text)
            assert onward
            start = client.get(f"{served.origin}{onward[1]}")
            assert f'value="{name}" readonly' in start.text
            page = client.get(f"{served.origin}/label/begin?queue=q-jsonl&rater={name}&guide=general")
            assert page.status_code == 200 and "guidelines for raters" in page.text
            base = f"{served.origin}/label/q-jsonl"
            shown = client.post(f"{base}/next", json={"rater": name}).json()
            while shown["key"]:
                shown = client.post(f"{base}/answer", json={"rater": name, "key": shown["key"], "choice": choice}).json()
            assert (shown["done"], shown["total"]) == (3, 3)
            assert client.get(f"{base}/results").status_code == 403, "labelling is blind"
    labels = [label for file in (served.workspace.root / "labels").glob("*.jsonl") for label in read_records(file, HumanLabel)]
    assert sorted((label.annotator, label.p_a) for label in labels) == [("Ben Ali", 0.0)] * 3 + [("ana", 1.0)] * 3
    results = {}
    for role in ("edit", "admin"):
        with served.visit("eva", role) as eva:  # type: ignore[arg-type]
            results[role] = eva.client.get("/label/q-jsonl/results").text
    assert all("Ben Ali" in page and '<article class="sample"' in page for page in results.values())
    assert ['class="decide"' in results[role] for role in ("edit", "admin")] == [False, True], "who edits decides nothing"
