"""Rows of CSV files: a fault costs its row, not the file; a file in another encoding or with another delimiter is named with a hint."""

import contextlib
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from cai.core.jsonl import MAX_LINE_BYTES
from cai.data.prompts import load_prompts
from cai.data.rows import Row, read_rows
from cai.errors import DataError
from cai.labels.load import load_label_files, load_pairs
from cai.labels.people import load_people
from cai.labels.to_label import load_to_label
from cai.recipe import PromptSource

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


@contextlib.contextmanager
def peak(most: int) -> Iterator[None]:
    """Assert the most memory that Python and Arrow take in the block, in MiB."""
    tracemalloc.start()
    before = pyarrow.default_memory_pool().max_memory()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
        arrow = pyarrow.default_memory_pool().max_memory()
        assert taken + (arrow if arrow > before else 0) < most * 2**20
    finally:
        tracemalloc.stop()


def same_cells(path: Path, characters: int, rows: int) -> None:
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array(["x" * characters]))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), path, compression="zstd")


@pytest.mark.attack
def test_a_small_parquet_file_of_long_cells_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    same_cells(tmp_path / "f.parquet", 200_000, 65_536)
    assert (tmp_path / "f.parquet").stat().st_size < 1000
    with peak(700):
        assert [len(row.value["prompt"]) for row in islice(read_rows(tmp_path / "f.parquet"), 5)] == [200_000] * 5


@pytest.mark.attack
def test_a_parquet_column_that_unpacks_to_far_more_than_its_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    same_cells(tmp_path / "f.parquet", 80 * 2**20, 2)
    with peak(700), pytest.raises(DataError, match=r"column 'prompt' unpacks to 8\d,\d+,\d+ bytes, [\d,]+ times its size"):
        next(read_rows(tmp_path / "f.parquet"))


@pytest.mark.attack
def test_a_packed_csv_line_without_end_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "f.csv.gz"
    with gzip.open(path, "wb", 1) as f:
        f.write(b"prompt\n")
        for _ in range(100):
            f.write(b"a" * 2**20)
        f.write(b"\nfine\n")
    with peak(150):
        first, second = read_rows(path)
    assert first.fault == "longer than 32 MiB" and second.value == {"prompt": "fine"}


@pytest.mark.attack
def test_a_packed_array_of_many_items_is_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "f.json.gz"
    with gzip.open(path, "wb", 1) as f:
        f.write(b"[" + (b"{},\n" * 1_000_000) + b'{"prompt": 1}]')
    with peak(60):
        assert sum(1 for _ in islice(read_rows(path), 1_000)) == 1_000
    for bad in ("[1, 2", "[1 2]", "[1,]", "[1] 2", "[NaN]", "[" * 100_000, "[,1]"):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(DataError, match="not a valid JSON array"):
            list(read_rows(tmp_path / "bad.json"))
    for good, values in (("[]", []), (" [ ] ", []), ('[1 , [2],\n"]"]', [1, [2], "]"])):
        (tmp_path / "good.json").write_text(good)
        assert [row.value for row in read_rows(tmp_path / "good.json")] == values


@pytest.mark.attack
def test_a_quote_that_is_never_closed_takes_no_time_that_grows_with_its_square(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text('prompt,kind\n"' + '""\n' * 100_000)
    started = time.monotonic()
    assert all(row.fault for row in read_rows(path))
    assert time.monotonic() - started < 30  # minutes, when each line made all before it be read again


@pytest.mark.attack
def test_rows_without_end_that_cannot_be_used_are_not_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.data.kept.MAX_FAULTS", 100)
    path = tmp_path / "f.jsonl"
    path.write_text("x\n" * 1_000)
    for read in (lambda: load_prompts(PromptSource(path=str(path)), tmp_path, 0), lambda: load_pairs(path)):
        with pytest.raises(DataError, match="more than 100 rows can't be used"):
            read()


@pytest.mark.attack
def test_prompts_that_all_have_one_id_are_not_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.data.kept.MAX_FAULTS", 100)
    prompts = [{"id": "1", "kind": "helpful", "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(200)]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    with pytest.raises(DataError, match="more than 100 rows can't be used"):
        load_prompts(PromptSource(path="f.jsonl"), tmp_path, 0)


@pytest.mark.attack
def test_a_prompts_id_that_is_as_long_as_a_text_is_no_id(tmp_path: Path) -> None:
    prompts = [{"id": i, "kind": "helpful", "messages": [{"role": "user", "content": f"q{len(i)}"}]} for i in ("1", "x" * 100_000)]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    loaded = load_prompts(PromptSource(path="f.jsonl"), tmp_path, 0)
    assert [p.id for p in loaded.prompts] == ["1"] and [f.detail for f in loaded.failures] == ["`id` is longer than 500 characters"]


@pytest.mark.attack
def test_columns_without_end_are_not_all_kept(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "choice": "A"}
    wide = [row | {"prompt": f"q{i}"} | {f"{i}.{j}" + "c" * 1000: 1 for j in range(50)} for i in range(400)]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, wide)))
    loaded = load_pairs(tmp_path / "f.jsonl")
    assert len(loaded.preferences) == 400 and len(loaded.unused) < 1100 and max(map(len, loaded.unused)) == 60


@pytest.mark.attack
@pytest.mark.parametrize(
    ("row", "load"),
    [
        ('{"prompt":"q%d","response_a":"a","response_b":"b","choice":"A","annotator":"' + "p" * 50 + '"}', load_pairs),
        ('{"prompt":"q%d","chosen":"a","rejected":"b"}', load_pairs),
        ('{"prompt":"q%d","response_a":"a","response_b":"b","choice":"A"}', lambda path: load_label_files([path])),
        ('{"prompt":"q%d","response_a":"a","response_b":"b"}', load_to_label),
        ('{"prompt":"q%d"}', lambda path: load_prompts(PromptSource(path=str(path)), path.parent, 0)),
        ('{"annotator":"p%d","age":"9"}', load_people),
    ],
)
def test_a_small_packed_file_of_many_rows_is_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, load: Callable[[Path], object]
) -> None:
    monkeypatch.setattr("cai.data.kept.MAX_KEPT_BYTES", 20 * 2**20)
    path = tmp_path / "f.jsonl.gz"
    with gzip.open(path, "wt", 1) as f:
        f.writelines(row % i + "\n" for i in range(60_000))
    with peak(25), pytest.raises(DataError, match=r"f\.jsonl\.gz: its first 1\d,\d+ items take 20 MiB of memory"):
        load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt;one, two;choice\nq;a, b;A\n", "separated by ';'"),
        ("sep=,\nprompt,response_a,response_b,choice\nq,a,b,A\n", "Excel's note of the delimiter"),
    ],
)
def test_a_header_that_was_not_split_as_it_should_be_is_named(tmp_path, text, said):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        list(read_rows(path))
