"""Conversations in the terminal."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cai.errors import ReplyError
from cai.models.base import CompleteRequest, Completion, Reply, Request
from cai.workbench.chat import chat_loop
from tests.workspaces import script


def converse(monkeypatch: pytest.MonkeyPatch, lines: list[str | type[BaseException]], system: str | None = None) -> list[CompleteRequest]:
    """Type lines to a scripted model; return what it was asked."""
    asked: list[CompleteRequest] = []
    typed: Iterator[str | type[BaseException]] = iter(lines)

    def answer(request: Request) -> Reply:
        assert isinstance(request, CompleteRequest)
        asked.append(request)
        if request.messages[-1].content == "fail":
            raise ReplyError("refused")
        return Completion(f"[red]answer[/red] {len(asked)} \x1b[2J", False, 1, 1)

    def read(prompt: str = "") -> str:
        line = next(typed, EOFError)
        if isinstance(line, str):
            return line
        raise line

    script(monkeypatch, answer)
    monkeypatch.setattr("rich.console.Console.input", lambda self, prompt: read())
    chat_loop("scripted", None, system, 20, 0.5, 0)
    return asked


def test_a_model_sees_the_conversation_so_far(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = converse(monkeypatch, ["one", "two", "/reset", "three"], system="Be kind.")
    texts = [[m.content for m in request.messages] for request in asked]
    first = "[red]answer[/red] 1 \x1b[2J"
    assert texts == [["Be kind.", "one"], ["Be kind.", "one", first, "two"], ["Be kind.", "three"]]
    assert len({request.seed for request in asked}) == 3
    shown = capsys.readouterr().out
    assert "[red]answer[/red] 1 \\x1b[2J" in shown and "\x1b[2J" not in shown


def test_what_got_no_answer_is_told_and_not_remembered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = converse(monkeypatch, ["fail", "again"])
    assert [[m.content for m in request.messages] for request in asked] == [["fail"], ["again"]]
    assert "[no answer: refused]" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["/exit", "/quit", EOFError, KeyboardInterrupt])
def test_it_ends(monkeypatch: pytest.MonkeyPatch, end: str | type[BaseException]) -> None:
    assert len(converse(monkeypatch, ["one", end, "never"])) == 1


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    from cai.errors import ModelError

    with pytest.raises(ModelError, match="no such model folder"):
        chat_loop(str(tmp_path / "none"), None, None, 20, 0.5, 0)
