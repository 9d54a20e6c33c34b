"""Conversations in the terminal."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cai.errors import ReplyError
from cai.models.requests import CompleteRequest, Completion, Reply, Request
from cai.workbench.chat import LiveAnswers, chat_loop
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


def test_an_answer_is_shown_while_it_is_written() -> None:
    console = Console(width=60, height=12, file=io.StringIO(), force_terminal=True)
    shown = LiveAnswers(console, ["one", "two"])
    with shown.loading("models/one"):
        assert "loading one" in text_of(console, shown)
    assert text_of(console, shown).count("thinking") == 2
    shown.add(0, "A beginning")
    assert "A beginning" in text_of(console, shown) and text_of(console, shown).count("thinking") == 1
    shown.add(0, "\n".join(f"line {n}" for n in range(30)))
    assert "line 29" in text_of(console, shown) and "line 3 " not in text_of(console, shown)


def text_of(console: Console, shown: LiveAnswers) -> str:
    with console.capture() as capture:
        console.print(shown.panels(console.height - 6))
    return capture.get()
