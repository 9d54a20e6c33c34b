"""Under which addresses the studio is opened: behind a proxy, with TLS, from links on other pages."""

import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cai.core.workspace import Workspace
from cai.errors import RecipeError
from cai.studio.serving import origins, serve
from tests.browser import needs_browser, title_after_load
from tests.studio.conftest import serving
from tests.studio.serving import Served
from tests.workspaces import start_cai

pytestmark = pytest.mark.enable_socket


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory, shared_port: tuple[Workspace, int]) -> Iterator[int]:
    """The port of the module's workspace, served behind a proxy at labels.example.org."""
    with serving(shared_port[0], url="https://labels.example.org") as port:
        yield port


@pytest.mark.attack
def test_behind_a_proxy_only_the_public_address_is_answered(shared: Served, public: int) -> None:
    site = {"host": "labels.example.org", "origin": "https://labels.example.org"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{public}", trust_env=False, timeout=20) as client:
        entered = client.get(f"/enter?token={shared.token}", headers=site)
        cookie = entered.headers["set-cookie"]
        assert (
            cookie.startswith(f"__Host-cai-studio-{public}=") and "; Secure" in cookie and "HttpOnly" in cookie and "Domain" not in cookie
        )
        kept = {"cookie": cookie.partition(";")[0]}
        client.cookies.clear()

        def stop(**headers: str) -> int:
            return client.post("/jobs/none/stop", json={}, headers=kept | site | headers).status_code

        assert client.get("/label", headers=kept | site).status_code == 200 and stop() == 404
        for origin in (
            "http://labels.example.org",
            "https://labels.example.org:8788",
            "https://evil.example.org",
            f"http://127.0.0.1:{public}",
        ):
            assert stop(origin=origin) == 403, origin
        for host in (
            "example.org",
            "evil.example.org",
            "labels.example.org.evil.example",
            "labels.example.org:8788",
            "labels.example.org.",
        ):
            assert stop(host=host) == client.get("/label", headers=kept | {"host": host}).status_code == 421, host
        assert client.get("/label", headers=kept | site | {"sec-fetch-site": "same-site"}).status_code == 403, "a neighbour's page"
        assert client.get("/label", headers=kept).status_code == 401, "the cookie is the public address's"
        plain = client.get(f"/enter?token={shared.token}").headers["set-cookie"]
        assert plain.startswith(f"cai-studio-{public}=") and "Secure" not in plain
        assert client.get("/label").status_code == 200, "and the machine's own address goes on"


def test_without_a_url_the_public_address_is_unknown(shared: Served) -> None:
    client = shared.enter()
    assert client.get("/label", headers={"host": "labels.example.org"}).status_code == 421
    assert client.get("/label", headers={"host": f"0.0.0.0:{shared.port}"}).status_code == 421


@pytest.mark.parametrize(
    "url",
    [
        "http://labels.example.org",
        "labels.example.org",
        "https://",
        "https://a b",
        "https://me@labels.example.org",
        "https://labels.example.org/path",
        "https://labels.example.org?x",
        "https://labels.example.org:port",
        "https://*.example.org",
        "https://a,https://b",
        "javascript:alert(1)",
        "",
    ],
)
def test_a_url_is_https_and_a_host(workspace: Workspace, url: str) -> None:
    with pytest.raises(RecipeError, match=r"--url .*expected https://"):
        serve(0, workspace.root, lambda address: None, url=url)


def test_addresses_are_spelled_as_browsers_spell_them() -> None:
    assert origins(8788, url="HTTPS://Labels.Example.ORG:443/")[-1] == "https://labels.example.org"
    assert origins(8788, url="https://[2001:db8::1]:8443")[-1] == "https://[2001:db8::1]:8443"
    assert origins(8788, "2001:db8::1", tls=True)[-1] == "https://[2001:db8::1]:8788"
    assert origins(443, "::", True, "https://a.example")[-2:] == ["https://127.0.0.1", "https://a.example"]
    assert origins(80)[-1] == "http://127.0.0.1"


@pytest.mark.attack
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "192.168.1.5", "127.0.0.2", "localhost", ""])  # noqa: S104
@pytest.mark.parametrize("url", [None, "https://labels.example.org"])
def test_no_other_address_is_listened_to_without_tls(
    workspace: Workspace, host: str, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.studio.serving.listening", lambda *args: pytest.fail("listened"))
    with pytest.raises(RecipeError) as said:
        serve(8788, workspace.root, lambda address: None, host=host, url=url)
    assert "--certificate FILE --private-key FILE" in str(said.value) and "ssh -L 8788:127.0.0.1:8788 HOST" in str(said.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.2, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.2", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_tls_needs_files_that_belong_together(workspace: Workspace, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    good, key = certificate
    (tmp_path / "text").write_text("no certificate")
    for files in ({"certificate": good}, {"private_key": key}):
        with pytest.raises(RecipeError, match="needs both"):
            serve(0, workspace.root, lambda address: None, **files)
    for cert, private in ((good, good), (key, key), (tmp_path / "none", key), (tmp_path / "text", key)):
        with pytest.raises(RecipeError, match="can't be used"):
            serve(0, workspace.root, lambda address: pytest.fail("served"), certificate=cert, private_key=private)
    with pytest.raises(RecipeError, match=r"all addresses.*--url"):
        serve(0, workspace.root, lambda address: None, host="::", certificate=good, private_key=key)


def test_tls_for_real(workspace: Workspace, certificate: tuple[Path, Path]) -> None:
    files = ("--certificate", str(certificate[0]), "--private-key", str(certificate[1]))
    process = start_cai(workspace.root, "studio", "--port", "0", "--host", "127.0.0.2", *files)
    try:
        assert process.stdout is not None
        link = process.stdout.readline().removeprefix("Open ").strip()
        origin = link.partition("/enter")[0]
        assert re.fullmatch(r"https://127\.0\.0\.2:\d+", origin)
        trusted = ssl.create_default_context(cafile=str(certificate[0]))
        with httpx2.Client(base_url=origin, verify=trusted, trust_env=False, timeout=20, headers={"origin": origin}) as client:
            entered = client.get(link)
            assert entered.status_code == 200 and "__Host-" in entered.headers["set-cookie"]
            assert client.get("/").status_code == 200
            assert client.post("/jobs/none/stop", json={}).status_code == 404
            plain = origin.replace("https", "http")
            assert client.post("/jobs/none/stop", json={}, headers={"origin": plain}).status_code == 403
        with httpx2.Client(trust_env=False, timeout=20) as client, pytest.raises(httpx2.HTTPError):
            client.get(f"{plain}/label")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@needs_browser[1]
@pytest.mark.parametrize(("role", "title"), [("label", "Label – cai studio"), ("edit", "Workspace – cai studio")])
def test_a_link_on_a_page_of_another_site_leads_in(shared: Served, tmp_path: Path, role: Any, title: str) -> None:
    link = f"{shared.origin}/enter?token={shared.links.token('ben', role, 1)}"
    mail = tmp_path / "mail.html"
    mail.write_text(f'<!doctype html><title>Mail</title><a href="{link}">Label</a><script>document.querySelector("a").click()</script>')
    assert title_after_load(mail, flags=["virtual-time-budget=5000"]) == title
