"""Typed JSONL: every complaint has file and line, and a file appears whole or not at all."""

import errno
import gzip
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cai.core.jsonl
from cai.constitution.documents import read_document
from cai.constitution.load import load_constitution
from cai.constitution.outdated import last_used
from cai.core.jsonl import (
    append_record,
    atomic_file,
    atomic_folder,
    count_records,
    disk_error,
    read_file,
    read_lines,
    read_records,
    record_writer,
    remove_unfinished,
    write_records,
    write_text,
)
from cai.core.manifest import read_manifest
from cai.core.workspace import init_workspace
from cai.core.yaml_source import load_yaml
from cai.data.rows import read_rows
from cai.errors import CaiError, DataError, RecipeError, StoreError
from cai.judge.calibration import read_calibration
from cai.models.local.folders import json_mapping
from cai.records import Failure

ONE, TWO = Failure("respond", "a", "empty_reply"), Failure("critique", "ü", "timeout", "line\nbreak")


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "f.jsonl"
    assert write_records(path, iter([ONE, TWO])) == 2
    assert list(read_records(path, Failure)) == [ONE, TWO]
    assert path.read_bytes().count(b"\n") == 2


def test_nothing_written_is_an_empty_file(tmp_path: Path) -> None:
    assert write_records(tmp_path / "f.jsonl", []) == 0
    assert list(read_records(tmp_path / "f.jsonl", Failure)) == []


def test_gzip_is_read_as_it_is_and_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    with gzip.open(path, "wb") as f:
        f.write(b'\n  \n{"stage": "s", "item_id": "i", "reason": "r"}\r\n\n{"stage": 1}\n')
    records = read_records(path, Failure)
    assert next(records) == Failure("s", "i", "r")
    with pytest.raises(DataError, match=r"f\.jsonl\.gz:5: not a Failure record: .*`\$\.stage`"):
        next(records)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"stage": "s", "item_id": "i"}', "missing required field `reason`"),
        (b'{"stage": "s", "item_id": 3, "reason": "r"}', r"Expected `str`, got `int` - at `\$\.item_id`"),
        (b'{"stage": "s", "item_id": "i", "reason": "r"', "truncated"),
        (b'"just text"', "Expected `object`"),
        (b'{"stage": "\xff", "item_id": "i", "reason": "r"}', "[Uu][Tt][Ff]"),
        (b'{"stage": "\\ud800", "item_id": "i", "reason": "r"}', "surrogate"),
        (b"\x00\x01binary", "malformed"),
        (b"[" * 100_000, "(Expected|recursion)"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"stage": "s", "item_id": "i", "reason": "r"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl:3: not a Failure record: .*{said}"):
        list(read_records(path, Failure))


@given(st.binary(max_size=200))
def test_any_bytes_give_records_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("f.jsonl", "f.jsonl.gz"):
        (folder / name).write_bytes(content)
        for tail in ("error", "drop"):
            try:
                list(read_records(folder / name, Failure, torn_tail=tail))  # type: ignore[arg-type]
            except DataError as e:
                assert str(e).startswith(str(folder / name))


def test_a_torn_tail_is_an_error_unless_it_may_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_records(path, [ONE])
    path.write_bytes(path.read_bytes() + b'{"stage": "cri')
    with pytest.raises(DataError, match=r"f\.jsonl:2"):
        list(read_records(path, Failure))
    assert list(read_records(path, Failure, torn_tail="drop")) == [ONE]


def test_a_bad_line_that_is_not_torn_is_never_dropped(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"stage": "cri\n')
    with pytest.raises(DataError, match=r"f\.jsonl:1"):
        list(read_records(path, Failure, torn_tail="drop"))


def test_a_whole_last_line_without_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_records(path, [ONE, TWO])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert list(read_records(path, Failure, torn_tail="drop")) == [ONE, TWO]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_appending_after_a_torn_line_loses_only_that_line(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "failures.jsonl"
    for _ in range(kept):
        append_record(path, ONE)
    with path.open("ab") as f:
        f.write(b'{"stage": "' + b"x" * 200_000)
    append_record(path, TWO)
    append_record(path, TWO)
    assert list(read_records(path, Failure, torn_tail="drop")) == [ONE] * kept + [TWO, TWO]


def test_a_huge_line_is_refused_by_number_without_reading_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cai.core.jsonl, "MAX_LINE_BYTES", 1024)
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"{}\n" + b"x" * 1023 + b"\n" + b"y" * 5000)
    lines = read_lines(path)
    assert [next(lines)[0], next(lines)[0]] == [1, 2]
    with pytest.raises(DataError, match=r"f\.jsonl:3: line is longer than"):
        next(lines)


def test_a_gzip_bomb_is_stopped_at_the_line_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cai.core.jsonl, "MAX_LINE_BYTES", 1 << 16)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"0" * (1 << 24)))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz:1"):
        list(read_lines(path))


@pytest.mark.parametrize("damage", ["cut", "flip", "plain"])
def test_damaged_gzip_is_a_data_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f.jsonl.gz"
    whole = gzip.compress(b'{"stage": "s", "item_id": "i", "reason": "r"}\n' * 2000)
    path.write_bytes({"cut": whole[:-20], "flip": whole[:30] + b"\xff" * 40 + whole[70:], "plain": b"{}\n"}[damage])
    with pytest.raises(DataError, match="not a whole gzip file"):
        list(read_records(path, Failure))


def test_what_cannot_be_opened_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_lines(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="can't be read"):
        list(read_lines(tmp_path))


def interrupted() -> Iterator[Failure]:
    yield ONE
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_records(path, [TWO])
    with pytest.raises(KeyboardInterrupt):
        write_records(path, interrupted())
    assert list(read_records(path, Failure)) == [TWO]
    assert [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]


def test_the_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "half"
    write_text(path, "whöle")
    assert path.read_text(encoding="utf-8") == "whöle"


def test_an_error_of_the_block_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^store is locked$"), atomic_file(tmp_path / "f"):
        raise StoreError("store is locked")


@pytest.mark.parametrize("write", [lambda p: write_records(p, [ONE]), lambda p: append_record(p, ONE), lambda p: write_text(p, "x")])
def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path, write: object) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        write(tmp_path / "file" / "f.jsonl")  # type: ignore[operator]


def test_a_full_disk_says_that_nothing_is_lost() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(StoreError, match=r"/dev/full: the disk is full\. Free some space and run the same command again"):
        append_record(Path("/dev/full"), ONE)


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EROFS, "write permission"), (errno.EIO, "Input/output error")],
)
def test_disk_errors_say_what_to_do(number: int, said: str) -> None:
    assert said in str(disk_error(OSError(number, os.strerror(number)), Path("f")))


def test_a_writer_shows_its_file_when_all_is_written_and_leaves_nothing_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "data" / "failures.jsonl"
    with record_writer(path) as write:
        write(ONE)
        assert not path.exists()
        write(TWO)
    assert list(read_records(path, Failure)) == [ONE, TWO]
    assert count_records(path) == 2
    with pytest.raises(RuntimeError), record_writer(path) as write:
        write(ONE)
        raise RuntimeError
    assert list(read_records(path, Failure)) == [ONE, TWO]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (".traces.jsonl.0123abcd", "deep/.manifest.json.89efabcd", ".lock", ".gitignore", ".my.notes", "traces.jsonl"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".gitignore", ".lock", ".my.notes", "traces.jsonl"]


@pytest.mark.attack
@pytest.mark.parametrize(("mask", "new"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_what_the_umask_leaves_and_a_replaced_one_keeps_its_mode(tmp_path: Path, mask: int, new: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "new", "x")
        for mode in (0o600, 0o640, 0o444, 0o666):
            (tmp_path / "old").unlink(missing_ok=True)
            (tmp_path / "old").touch()
            (tmp_path / "old").chmod(mode)
            with atomic_file(tmp_path / "old") as temporary:
                assert temporary.stat().st_mode & 0o077 == mode & 0o077  # nobody reads a private file while it is written
                temporary.write_text("y")
            assert (tmp_path / "old").stat().st_mode & 0o777 == mode
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "weights").touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == (tmp_path / "folder" / "weights").stat().st_mode & 0o777 == new
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "new", "old"]


@pytest.mark.attack
def test_a_log_is_not_appended_to_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("my own")
    (tmp_path / "failures.jsonl").symlink_to(mine)
    with pytest.raises(StoreError, match=r"failures\.jsonl: is a link"):
        append_record(tmp_path / "failures.jsonl", Failure("s", "i", "r", "d"))
    assert mine.read_text() == "my own"


@pytest.mark.attack
@pytest.mark.parametrize(
    "read",
    [
        lambda path: list(read_lines(path)),
        lambda path: list(read_rows(path, "parquet")),
        lambda path: load_yaml(path, RecipeError),
        lambda path: load_constitution(path),
        lambda path: read_manifest(path),
        lambda path: read_calibration(path),
        lambda path: json_mapping(path),
        lambda path: read_document(path),
    ],
)
def test_a_pipe_in_a_folder_is_not_waited_for_and_a_huge_file_not_read_whole(tmp_path: Path, read: Callable[[Path], object]) -> None:
    pipe, huge = tmp_path / "pipe", tmp_path / "huge"
    os.mkfifo(pipe)
    with pytest.raises(CaiError, match=r"pipe.*not a regular file"):
        read(pipe)
    with huge.open("wb") as f:
        f.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(CaiError, match=r"huge.*(larger|longer) than|huge.*not valid|huge.*Parquet"):
            read(huge)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.attack
def test_other_runs_manifests_that_are_none_are_left_out(tmp_path: Path) -> None:
    init_workspace(tmp_path / "w")
    runs = tmp_path / "w" / "runs"
    for name in ("pipe", "dangling", "folder", "huge"):
        (runs / name).mkdir()
    os.mkfifo(runs / "pipe" / "manifest.json")
    (runs / "dangling" / "manifest.json").symlink_to("nowhere")
    (runs / "folder" / "manifest.json").mkdir()
    with (runs / "huge" / "manifest.json").open("wb") as f:
        f.truncate(1 << 40)
    found = last_used("starter", tmp_path / "w" / "constitution" / "starter.yaml")
    assert found is not None and found[0] == "the constitution that cai ships"


def test_what_a_shell_pipes_in_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"[1]")
    os.close(writing)
    assert read_file(Path(f"/dev/fd/{reading}")) == b"[1]"
    os.close(reading)
