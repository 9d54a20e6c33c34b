"""The journal of an unfinished stage: what is there is given back, and what can't be read is left to be made again."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cai.core.journal import Journal
from cai.errors import StoreError


@dataclass(frozen=True)
class Found:
    text: str


def journal(path: Path, of: str = "settings") -> Journal[Found]:
    return Journal(path, of, Found)


def fill(path: Path, *results: Found | None, of: str = "settings") -> None:
    kept = journal(path, of)
    assert list(kept.known()) == []
    for result in results:
        kept.add(result)
    kept.close()


def test_results_come_back_in_order_and_more_follow(tmp_path: Path) -> None:
    path = tmp_path / "unfinished" / "results.jsonl"
    fill(path, Found("a"), None, Found("c"))
    again = journal(path)
    assert list(again.known()) == [Found("a"), None, Found("c")]
    for text in ("a", "b", "c", "d"):  # the first three are there already, and what failed before stays to be tried again
        again.add(Found(text))
    again.close()
    assert list(journal(path).known()) == [Found("a"), None, Found("c"), Found("d")]


def test_a_journal_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    fill(path, Found("a"), of="other settings")
    fill(path, Found("b"))
    assert list(journal(path).known()) == [Found("b")]


@pytest.mark.parametrize("torn", [b'{"text":"b"}', b'{"te', b'{"text":1}\n{"text":"c"}\n', b"\x00" * 4096, b"\xff\n"])
def test_what_follows_the_first_line_that_cannot_be_read_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "results.jsonl"
    fill(path, Found("a"))
    with path.open("ab") as f:
        f.write(torn)
    again = journal(path)
    assert list(again.known()) == [Found("a")]
    again.add(Found("a"))
    again.add(Found("b"))
    again.close()
    assert list(journal(path).known()) == [Found("a"), Found("b")]


def test_a_torn_head_is_no_head(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'"settin')
    fill(path, Found("a"))
    assert list(journal(path).known()) == [Found("a")]


def test_a_disk_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "unfinished").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="unfinished"):
        list(journal(tmp_path / "unfinished" / "results.jsonl").known())
