"""Nobody but the person who was given the address gets an answer."""

import socket

import pytest

from cai.studio.guard import MAX_BODY_BYTES
from tests.studio.serving import Served

pytestmark = [pytest.mark.enable_socket, pytest.mark.attack]
PAGES = ("/", "/constitutions/general", "/constitutions/general/text", "/static/app.js", "/nothing")


@pytest.mark.parametrize("path", PAGES)
def test_without_the_token_there_is_nothing(shared: Served, path: str) -> None:
    answer = shared.client.get(path)
    assert answer.status_code == 401 and "token" in answer.text and "constitution" not in answer.text


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token={token}x", "?token={token}&token={token}"])
def test_a_wrong_token_opens_nothing(shared: Served, query: str) -> None:
    assert shared.client.get(f"/enter{query.format(token=shared.token)}").status_code == 401
    assert not shared.client.cookies


def test_the_token_is_kept_where_no_script_reads_it(shared: Served) -> None:
    answer = shared.client.get(f"/enter?token={shared.token}")
    assert answer.status_code == 200 and 'content="0; url=/"' in answer.text and shared.token not in answer.text
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and f"cai-studio-{shared.port}=" in cookie


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", ""])
def test_a_foreign_name_for_this_machine_is_refused(shared: Served, host: str) -> None:
    client = shared.enter()
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": f"localhost:{shared.port}"}).status_code == 200
    answer = client.get("/", headers={"host": host.format(port=shared.port)})
    assert answer.status_code == 421 and "general" not in answer.text
    assert client.get(f"/enter?token={shared.token}", headers={"host": host.format(port=shared.port)}).status_code == 421


def test_two_host_headers_are_refused(shared: Served) -> None:
    own = f"Host: 127.0.0.1:{shared.port}\r\n"
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\n{own}Host: evil.example\r\nCookie: cai-studio-{shared.port}={shared.token}\r\n\r\n".encode())
        first = connection.recv(4096).decode()
    assert first.split()[1] in ("400", "421")


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "http://localhost:{port}", "https://127.0.0.1:{port}"]
)
def test_only_the_apps_own_pages_change_anything(shared: Served, origin: str | None) -> None:
    client = shared.enter()
    version = client.get("/constitutions/general/text").json()["version"]
    del client.headers["origin"]
    headers = {} if origin is None else {"origin": origin.format(port=shared.port)}
    answer = client.post("/constitutions/general/draft", json={"text": "id: x", "version": version}, headers=headers)
    assert answer.status_code == 403
    assert client.get("/constitutions/general/text").json()["version"] == version


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_gets_no_answer_even_with_the_cookie(shared: Served, site: str) -> None:
    client = shared.enter()
    assert client.get("/constitutions/general/text", headers={"sec-fetch-site": site}).status_code == 403
    assert client.get("/constitutions/general/text", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_a_form_of_another_site_cannot_be_read_as_json(shared: Served) -> None:
    client = shared.enter()
    answer = client.post("/constitutions/general/save", content=b'{"version": "x"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_a_body_has_a_length_and_a_limit(shared: Served) -> None:
    client = shared.enter()
    long = client.post("/constitutions/general/draft", json={"text": "x" * MAX_BODY_BYTES, "version": ""})
    assert long.status_code == 413
    unsized = client.post("/constitutions/general/draft", content=iter([b"{}"]), headers={"content-type": "application/json"})
    assert unsized.status_code == 411


@pytest.mark.parametrize("path", ["/", "/constitutions/general", "/nothing", "/constitutions/general/text"])
def test_every_answer_forbids_what_its_page_does_not_need(shared: Served, path: str) -> None:
    answer = shared.enter().get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


def test_pages_have_no_script_or_style_inside(shared: Served) -> None:
    for path in ("/", "/constitutions/general"):
        html = shared.enter().get(path).text
        assert "<style" not in html and " style=" not in html and " onclick" not in html
        assert html.count("<script") == html.count('<script type="module" src="/static/')


def test_only_this_machine_is_listened_to(shared: Served) -> None:
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.2", shared.port))  # free: the app took 127.0.0.1 alone, not every address


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/studio.css%00",
        "/constitutions/..%2f..%2fetc%2fpasswd/text",
        "/constitutions/%2e%2e/text",
        "/constitutions/general.yaml/text",
        "/constitutions/schema/text",
    ],
)
def test_no_name_leads_out_of_the_workspace(shared: Served, path: str) -> None:
    assert shared.enter().get(path).status_code == 404
