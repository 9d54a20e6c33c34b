"""Refuses files that are not UTF-8 text, and says what they are and what to do."""

from pathlib import Path

from cai.core.jsonl import read_start
from cai.errors import DataError


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say that a text isn't UTF-8, and how to convert it."""
    found = error.object[error.start : error.start + 1].hex()
    return (
        f"not UTF-8 text (byte 0x{found}). It may be Windows-1252 or Latin-1, or in another language WINDOWS-1250, WINDOWS-1251, GB18030 "
        "or SHIFT_JIS: save it as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8"
    )


def refuse_other_encodings(path: Path, prose: bool = False) -> None:
    """Raise `DataError` if a file's first bytes are those of another format or encoding than its name says (`_MAGIC`).

    Args:
        path: the file.
        prose: whether it may hold any text, markup too.
    """
    start = read_start(path, 64)
    if (path.suffix == ".parquet" and start.startswith(b"PAR1")) or (prose and start.startswith(b"<")):
        return
    named = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if named is None and len(start) >= 4 and any(start[:4:2]) != any(start[1:4:2]):
        named = "UTF-16 text. Save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8"
    if named:
        raise DataError(f"{path}: is {named}.")


_MAGIC = {
    b"\xff\xfe\0\0": "UTF-32 text. Save it as UTF-8, for example with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16 text. Save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text. Save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "compressed with gzip. Add .gz to its name",
    b"PK\x03\x04": "a ZIP archive, perhaps a spreadsheet. Export it as CSV in UTF-8",
    b"PAR1": "Parquet. Name it .parquet",
    b"BZh91AY&SY": "compressed with bzip2. Unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard. Unpack it, for example with zstd -d",
    b"\xfd7zXZ": "compressed with xz. Unpack it",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file. Fetch it with git lfs pull",
    b"<!DOCTYPE": "a web page, perhaps with an error. Download the file itself",
    b"<html": "a web page, perhaps with an error. Download the file itself",
}
"""First bytes of files that are not UTF-8 text, and what they are."""
