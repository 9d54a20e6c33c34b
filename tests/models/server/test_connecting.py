"""Connecting to a server: which model is taken, its fingerprint, and addresses that can't be used."""

from typing import Any

import httpx2
import pytest

from cai.errors import ModelError
from cai.models.requests import Completion
from tests.models.fake_vllm import FakeVllm
from tests.models.server.asking import COMPLETE, URL, ask_one, connect, llamacpp, on


def test_the_only_model_is_taken_and_named() -> None:
    name, fingerprint = connect(FakeVllm())
    assert name == f"{URL} toy"
    assert fingerprint.startswith("server:")


def test_several_models_need_a_name_and_are_listed() -> None:
    server = FakeVllm()
    server.cards.append(server.cards[0] | {"id": "other"})
    with pytest.raises(ModelError, match=r"serves 2 models: toy, other\. Set model\.name"):
        connect(server)
    assert connect(server, name="other")[0].endswith(" other")


def test_an_adapter_is_no_second_model_and_replaces_the_name() -> None:
    server = FakeVllm()
    server.cards.append(server.cards[0] | {"id": "tuned", "root": "/adapters/tuned", "parent": "toy"})
    assert connect(server)[0].endswith(" toy")
    ask_one(server, COMPLETE, adapter="tuned")
    assert server.bodies("/v1/chat/completions")[0]["model"] == "tuned"
    assert connect(server)[1] != connect(server, adapter="tuned")[1]


@pytest.mark.parametrize(("spec", "fix"), [({"name": "gone"}, "correct model.name"), ({"adapter": "gone"}, "--lora-modules NAME=FOLDER")])
def test_a_model_that_is_not_served(spec: dict[str, str], fix: str) -> None:
    with pytest.raises(ModelError, match=r"doesn't serve 'gone'; it serves: toy") as e:
        connect(FakeVllm(), **spec)
    assert fix in str(e.value)


def test_moving_the_server_keeps_the_fingerprint_and_other_weights_change_it() -> None:
    here = connect(FakeVllm())[1]
    assert connect(FakeVllm(created=2), path="https://elsewhere.test/v1")[1] == here
    assert connect(FakeVllm(root="/models/toy-2"))[1] != here
    assert connect(FakeVllm(max_model_len=1024))[1] != here
    assert connect(FakeVllm(id="toy-2"))[1] != here


def test_fingerprints_are_those_of_earlier_versions() -> None:
    """Call stores were filled under these: a change would throw every paid answer away."""
    adapted = FakeVllm()
    adapted.cards.append(adapted.cards[0] | {"id": "tuned", "root": "/adapters/tuned", "parent": "toy"})
    unlisted = FakeVllm([on("/v1/models", lambda _: httpx2.Response(404))])
    assert connect(FakeVllm())[1] == "server:746ce465467d9984bb56ab52ddae95a0"
    assert connect(FakeVllm(owned_by="llamacpp", meta={"n_params": 135000000, "n_ctx_train": 2048}))[1] == (
        "server:d200f0123249bd4e69ed6c87934bc0fc"
    )
    assert connect(adapted, adapter="tuned")[1] == "server:b86bc9d87bf4f935d0d387d27765d19d"
    assert connect(unlisted, name="big")[1] == "server:62b7aad86d6b8a17e56f9b57cb50ceca"


def test_another_chat_template_changes_the_fingerprint_and_another_day_does_not() -> None:
    def strings(*tokens: str) -> FakeVllm:
        reply = {"tokens": [1], "token_strs": list(tokens)}
        return FakeVllm([lambda request, _: httpx2.Response(200, json=reply) if request.url.path == "/tokenize" else None])

    monday = connect(strings("Today", " Date", ": ", "23", " Nov", " 2026", "<user>", "Hi"))[1]
    assert connect(strings("Today", " Date", ": ", "24", " Nov", " 2026", "<user>", "Hi"))[1] == monday
    assert connect(strings("Today", " Date", ": ", "23", " Nov", " 2026", "[INST]", "Hi"))[1] != monday
    assert connect(llamacpp())[1] != connect(llamacpp(opens="<think>\n"))[1]


def test_a_hosted_api_without_a_model_list_is_taken_at_its_word() -> None:
    server = FakeVllm([on("/v1/models", lambda _: httpx2.Response(404))])
    assert connect(server, name="big")[0].endswith(" big")
    with pytest.raises(ModelError, match=r"answered 404.*\n.*end in /v1"):
        connect(server)


def test_a_bare_array_of_models_is_a_list_too() -> None:
    cards = [{"id": "m", "object": "model", "owned_by": "someone", "context_length": 4096}]
    assert connect(FakeVllm([on("/v1/models", lambda _: httpx2.Response(200, json=cards))]))[0] == f"{URL} m"


@pytest.mark.parametrize(
    ("listing", "name"),
    [
        ({"data": [{"id": "m", "max_model_len": "4096", "root": {}, "parent": 0, "owned_by": 3, "meta": "x"}]}, "m"),
        ({"data": [{"id": 7}]}, "7"),
        ({"data": [{"name": "m"}]}, "m"),
        ({"models": [{"name": "m", "model": "m"}]}, "m"),
        (["m"], "m"),
    ],
)
def test_of_a_list_of_models_only_the_names_are_needed(listing: Any, name: str) -> None:
    server = FakeVllm([on("/v1/models", lambda _: httpx2.Response(200, json=listing))])
    assert isinstance(ask_one(server, COMPLETE), Completion)
    assert server.bodies("/v1/chat/completions")[0]["model"] == name


@pytest.mark.parametrize("listing", [{"object": "list", "data": None}, {"data": [{}]}, {}, 3, {"data": "m"}])
def test_a_list_of_models_that_is_none_counts_as_empty_where_the_model_is_named(listing: Any) -> None:
    server = FakeVllm([on("/v1/models", lambda _: httpx2.Response(200, json=listing))])
    assert connect(server, name="big")[1] == connect(FakeVllm([on("/v1/models", lambda _: httpx2.Response(404))]), name="big")[1]
    with pytest.raises(ModelError, match="doesn't list models"):
        connect(server)


@pytest.mark.parametrize("sign", [{"has_more": True}, {"nextPageToken": "x"}, {"next": "http://fake.test/v1/models?page=2"}])
def test_of_a_list_in_pages_the_first_says_nothing_of_a_model_that_is_not_on_it(sign: dict[str, Any]) -> None:
    page = {"data": [{"id": "other"}], **sign}
    server = FakeVllm([lambda request, _: httpx2.Response(200, json=page) if request.url.path == "/v1/models" else None])
    assert connect(server, name="mine")[0].endswith(" mine")
    with pytest.raises(ModelError, match=r"serves more models than its list's first page has: other\. Set model\.name"):
        connect(server)


@pytest.mark.parametrize("status", [400, 422, 501])
def test_a_list_of_models_that_is_refused_counts_as_empty_where_the_model_is_named(status: int) -> None:
    server = FakeVllm([lambda request, _: httpx2.Response(status, text="no") if request.url.path == "/v1/models" else None])
    assert connect(server, name="mine")[0].endswith(" mine")
    with pytest.raises(ModelError, match="doesn't list models"):
        connect(server)


def test_a_models_length_is_a_number_however_it_is_written() -> None:
    assert connect(FakeVllm(max_model_len="512"))[1] == connect(FakeVllm())[1]


@pytest.mark.parametrize("page", [httpx2.Response(200, text="<html>Welcome</html>"), httpx2.Response(200, json={"models": []})])
def test_an_address_that_is_no_model_server_says_where_the_url_goes(page: httpx2.Response) -> None:
    with pytest.raises(ModelError, match=r"fake\.test:8000/v1/models doesn't list models.*Check model\.path: .* end in /v1"):
        connect(FakeVllm([on("/v1/models", lambda _: page)]))


def test_a_refused_key_is_told_at_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-old")
    server = FakeVllm([on("/v1/models", lambda _: httpx2.Response(401, json={"error": {"message": "key sk-old expired"}}))])
    with pytest.raises(ModelError, match=r"answered 401: key \*\*\* expired\nThe key in \$CAI_API_KEY is refused.*export CAI_API_KEY"):
        connect(server)


def test_several_urls_are_refused_with_the_router_to_put_in_front() -> None:
    with pytest.raises(ModelError, match=r"vllm-router --worker-urls http://gpu-0:8000 http://gpu-1:8000 .*\n.*--data-parallel-size N"):
        connect(FakeVllm(), path="http://gpu-0:8000/v1, http://gpu-1:8000/v1")


@pytest.mark.parametrize(
    "path",
    [
        "http://user:s3cret@fake.test/v1",
        "http://fake.test/v1?key=s3cret",
        "http://fake.test/v1#s3cret",
        "http://[::1/v1",
        "http://fake.test:99999/v1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_its_secret(path: str) -> None:
    with pytest.raises(ModelError, match=r"model\.path") as e:
        connect(FakeVllm(), path=path)
    assert "s3cret" not in str(e.value)
