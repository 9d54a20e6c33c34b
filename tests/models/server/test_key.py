"""The API key: where it is sent, and that it is never shown."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cai.errors import ModelError, ReplyError
from cai.models.requests import Completion
from cai.models.server.address import config_dir
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from tests.models.fake_vllm import FakeVllm
from tests.models.server.asking import COMPLETE, always_chat, ask_one, chat, connect


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTHER_API_KEY", " sk-verysecret\n")
    caplog.set_level(logging.DEBUG)
    plain = connect(FakeVllm())
    server = FakeVllm()
    assert connect(server, api_key_env="OTHER_API_KEY") == plain
    assert {h["authorization"] for h in server.headers} == {"Bearer sk-verysecret"}
    for status in (400, 401, 404, 429, 500, 200):
        with pytest.raises(ModelError) as e:
            ask_one(always_chat(lambda s=status: httpx2.Response(s, text="bad key sk-verysecret")), COMPLETE, api_key_env="OTHER_API_KEY")
        assert "sk-verysecret" not in f"{e.value!r} {e.value} {e.value.__dict__}"
        assert "***" in str(e.value)
    assert "sk-verysecret" not in caplog.text


def test_without_a_key_no_header_is_sent_nor_anything_meant_for_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAI_API_KEY", raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-of-another")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.test/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer secret-of-another")
    server = FakeVllm()
    ask_one(server, COMPLETE)
    assert len(server.headers) == 3 and {h["host"] for h in server.headers} == {"fake.test:8000"}
    assert not any("authorization" in h or "secret-of-another" in str(h.raw) for h in server.headers)


def test_a_key_in_a_servers_words_is_cut_out_of_replies_and_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-verysecret")
    for message, finish in (
        ({"content": {"x": "sk-verysecret" * 1000}}, "stop"),
        ({"content": None, "refusal": "sk-verysecret" * 1000}, "stop"),
    ):
        with pytest.raises(ReplyError) as e:
            ask_one(always_chat(lambda m=message, f=finish: chat(m, f)), COMPLETE)
        assert "sk-verysecret" not in str(e.value) and "***" in str(e.value) and len(str(e.value)) < 600
    assert "sk-verysecret" not in connect(FakeVllm(id="toy-sk-verysecret"))[0]


@pytest.mark.attack
def test_a_key_that_a_server_echoes_is_cut_out_of_texts_however_it_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-/very-secret")
    escaped = "".join(f"\\u{ord(c):04X}" for c in "sk-/very-secret")
    for spelled in ("sk-/very-secret", "sk-\\/very-secret", escaped):
        body = json.dumps({"choices": [{"message": {"content": "KEY", "reasoning": "KEY"}, "finish_reason": "stop"}]}).replace(
            "KEY", spelled
        )
        reply = ask_one(always_chat(lambda body=body: httpx2.Response(200, content=body)), COMPLETE)
        assert isinstance(reply, Completion) and (reply.text, reply.reasoning) == ("***", "***")
    monkeypatch.setenv("CAI_API_KEY", "EMPTY")  # a placeholder, as local servers want one
    assert ask_one(always_chat(lambda: chat({"content": "EMPTY"})), COMPLETE).text == "EMPTY"


@pytest.mark.attack
def test_a_key_goes_only_to_the_host_it_was_first_used_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(path: str, variable: str) -> str:
        server = FakeVllm()
        asyncio.run(ServerEngine.connect(ModelSpec(path=path, api_key_env=variable), server.transport))
        return str(server.headers[0].get("authorization"))

    for name in ("CAI_API_KEY", "B_API_KEY", "PATH_TO_SECRET"):
        monkeypatch.setenv(name, "sk-verysecret")
    assert asked("http://127.0.0.1:1/v1", "CAI_API_KEY") == "Bearer sk-verysecret"  # this machine is no host to remember
    assert asked("https://a.test/v1", "CAI_API_KEY") == asked("https://a.test:8000/v1", "CAI_API_KEY") == "Bearer sk-verysecret"
    assert asked("https://b.test/v1", "B_API_KEY") == "Bearer sk-verysecret"
    for path in ("https://b.test/v1", "http://a.test/v1"):
        with pytest.raises(ModelError, match=r"CAI_API_KEY was first used with https://a\.test and would now be sent to .*CAI_KEY_HOSTS="):
            asked(path, "CAI_API_KEY")
    for path in ("https://a.test/v1", "http://127.0.0.1:1/v1"):
        with pytest.raises(ModelError, match=r"Only variables named …_API_KEY"):
            asked(path, "PATH_TO_SECRET")
    monkeypatch.setenv("CAI_KEY_HOSTS", "CAI_API_KEY=b.test,PATH_TO_SECRET=127.0.0.1")
    assert asked("https://b.test/v1", "CAI_API_KEY") == asked("http://127.0.0.1:1/v1", "PATH_TO_SECRET") == "Bearer sk-verysecret"
    (config_dir() / "key_hosts.json").write_text("{")
    with pytest.raises(ModelError, match=r"key_hosts\.json: can't be read"):
        asked("https://a.test/v1", "CAI_API_KEY")


@pytest.mark.parametrize(("host", "through"), [("127.0.0.1", False), ("localhost", False), ("gpu-0.test", True)])
def test_a_server_on_this_machine_is_never_asked_through_a_proxy(host: str, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def note(transport: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        asked.append("proxy" if proxied[id(transport)] else "direct")
        raise httpx2.ConnectError("no network")

    proxied: dict[int, bool] = {}
    plain = httpx2.AsyncHTTPTransport.__init__

    def make(transport: httpx2.AsyncHTTPTransport, *args: Any, **options: Any) -> None:
        proxied[id(transport)] = options.get("proxy") is not None
        plain(transport, *args, **options)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "__init__", make)
    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", note)
    for name in ("NO_PROXY", "no_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")

    async def run() -> None:
        await ServerEngine.connect(ModelSpec(path=f"http://{host}:8000/v1"))

    with pytest.raises(ModelError, match="can't reach"):
        asyncio.run(run())
    assert set(asked) == {"proxy" if through else "direct"}


def test_a_key_that_is_no_header_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-vérysecret")
    with pytest.raises(ModelError, match=r"\$CAI_API_KEY") as e:
        connect(FakeVllm())
    assert "vérysecret" not in str(e.value)
