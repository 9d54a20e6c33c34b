"""Rows of CSV files: a fault costs its row, not the file; a file in another encoding or with another delimiter is named with a hint."""

import gzip
from pathlib import Path

import pytest

from cai.core.jsonl import MAX_LINE_BYTES
from cai.data.rows import Row, read_rows
from cai.errors import DataError

HEADER = "prompt,answer\n"


def rows(tmp_path: Path, content: str | bytes, name: str = "f.csv") -> list[Row]:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(tmp_path / name))


def found(read: list[Row]) -> list[tuple[int, str | None]]:
    """Line and prompt of every row; None for a row with a fault."""
    assert all(bool(r.fault) == (r.value is None) for r in read)
    return [(int(r.where.rpartition(":")[2]), r.value and r.value["prompt"]) for r in read]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,1\n\nb,2\n", [(2, "a"), (4, "b")]),
        ('"a\n\nb","say ""hi"", please"\nc,2', [(2, "a\n\nb"), (5, "c")]),
        ('a,1\n"b "quoted" b",2\nc,3\n', [(2, "a"), (3, None), (4, "c")]),
        ('a,1\n"b,2\nc,3\nd,4\n', [(2, "a"), (3, None), (4, "c"), (5, "d")]),
        ('a,1\nb,"2\nc,3\n"d\ne",4\nf,5\n', [(2, "a"), (3, None), (4, "c"), (5, "d\ne"), (7, "f")]),
        ("a,1\nb,2,3\nc\nd,4\n", [(2, "a"), (3, None), (4, None), (5, "d")]),
        ("a,1\nb\0,2\nc,3\n", [(2, "a"), (3, None), (4, "c")]),
        ('a 5" screen,1\nb,2\n', [(2, 'a 5" screen'), (3, "b")]),
    ],
)
def test_a_faulty_row_costs_itself_only(tmp_path: Path, content: str, expected: list[tuple[int, str | None]]) -> None:
    assert found(rows(tmp_path, HEADER + content)) == expected
    assert found(rows(tmp_path, (HEADER + content).replace("\n", "\r\n"))) == [(n, p and p.replace("\n", "\r\n")) for n, p in expected]


def test_a_cell_may_be_as_long_as_a_line_of_json(tmp_path: Path) -> None:
    long, too_long = "word " * 50_000, "x" * (MAX_LINE_BYTES + 1)
    assert found(rows(tmp_path, f'{HEADER}"{long}",1\n{too_long},2\nc,3\n')) == [(2, long), (3, None), (4, "c")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz"])
def test_line_ends_a_byte_order_mark_and_gzip_make_no_difference(tmp_path: Path, end: str, name: str) -> None:
    content = b"\xef\xbb\xbf" + f"{HEADER}a,1\nb,2\n".replace("\n", end).encode()
    assert found(rows(tmp_path, gzip.compress(content, mtime=0) if name.endswith(".gz") else content, name)) == [(2, "a"), (3, "b")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("f.csv", "prompt;answer\na;1\n", r"separated by ';'\. Save it with commas"),
        ("f.csv", "prompt|answer\na|1\n", r"separated by '\|'"),
        ("f.csv", "prompt\tanswer\na\t1\n", r"separated by tabs\. Name it \.tsv"),
        ("f.tsv", "prompt,answer\na,1\n", r"separated by commas\. Name it \.csv"),
        ("f.csv", "prompt,prompt\na,1\n", "'prompt' more than once"),
        ("f.csv", "prompt,answer\na,1\n".encode("utf-16"), "is UTF-16 text.*iconv"),
        ("f.jsonl", '{"prompt": "a"}\n'.encode("utf-16-le"), "is UTF-16 text"),
        ("f.txt", "a prompt".encode("utf-32"), "is UTF-32 text"),
        ("f.csv", "prompt,answer\nOù?,1\n".encode("latin-1"), r"f\.csv:2: not UTF-8 text \(byte 0xf9\).*Windows-1252.*iconv"),
        ("f.csv", gzip.compress(b"prompt,answer\n", mtime=0), r"compressed with gzip\. Add \.gz"),
        ("f.csv", b"PK\x03\x04xl/workbook.xml", "a ZIP archive, perhaps a spreadsheet"),
        ("f.jsonl", b"PAR1....", r"Name it \.parquet"),
    ],
)
def test_a_file_that_is_something_else_is_named_with_a_hint(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        rows(tmp_path, content, name)


def test_a_line_of_json_in_another_encoding_says_so(tmp_path: Path) -> None:
    read = rows(tmp_path, '{"prompt": "Où?"}\n'.encode("latin-1") + b'{"prompt": "a"}\n', "f.jsonl")
    assert "Windows-1252" in read[0].fault and read[1].value == {"prompt": "a"}
