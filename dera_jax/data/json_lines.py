"""Reads text files by lines, and JSON Lines (UTF-8, one JSON object per line).

Errors name the file and the line.

A byte-order mark, lines that end in CR LF, a last line without a line end, blank lines at the end,
and gzip files (with a name that ends in `.gz`) are accepted too.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from dera_jax.data.data_files import open_data
from dera_jax.files import json_files

_EXPECTED = "expected one JSON object per line (JSON Lines)"
_BLANK = b" \t\r\n"
_BOM = "\ufeff".encode()
_UTF_16 = (
    b"\xff\xfe",
    b"\xfe\xff",
)  # these bytes occur at or near the beginning of UTF-32 files too
_GZIP = b"\x1f\x8b"


def lines(path: str) -> Iterator[tuple[str, bytes]]:
    """Yields (where, line), with `where` as in "file, line 3", without blank lines at the end.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a folder, or the file is empty, in UTF-16 or UTF-32, a broken gzip
            file, or a gzip file whose name does not end in `.gz`.
    """
    number, blank = 0, []
    with open_data(path) as file:
        try:
            for number, line in enumerate(_unpacked(file, path), start=1):
                if number == 1:
                    _check_start(line, path)
                blank.append((f"{path}, line {number}", line))
                if line.removeprefix(_BOM).strip(_BLANK):
                    yield from blank
                    blank = []
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: not a complete gzip file, {number} lines could be read: {error}"
            ) from error
    if number == len(blank):
        raise ValueError(f"{path}: the file is empty")


def read_object(line: bytes, where: str) -> dict[str, object]:
    """Parse the JSON object of a line.

    Raises:
        TypeError: the line is a JSON value, but not an object.
        ValueError: the line is blank, not UTF-8, not valid JSON (NaN is not), or an object repeats
            a key.
    """
    text = decode(line, where).strip(_BLANK.decode())
    if not text:
        raise ValueError(f"{where}: the line is blank, but other lines follow; {_EXPECTED}")
    try:
        row = json_files.parse(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {_reason(text, error)}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not valid JSON: lists or objects nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        hint = "; convert with `jq -c '.[]'`" if isinstance(row, list) else ""
        raise TypeError(f"{where}: {_EXPECTED}, found {type(row).__name__}{hint}")
    return row


def decode(line: bytes, where: str) -> str:
    """Return the text of a line without a byte-order mark; raises ValueError if it is not UTF-8."""
    try:
        return line.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at column "
            f"{error.start + 1}), perhaps Latin-1 or Windows-1252: convert the file, for example "
            "with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error


def _unpacked(file: BinaryIO, path: str) -> Iterator[bytes]:
    return gzip.GzipFile(fileobj=file) if path.lower().endswith(".gz") else file


def _check_start(line: bytes, path: str) -> None:
    if line.startswith(_GZIP):
        raise ValueError(f"{path}: the file is compressed by gzip; give it a name that ends in .gz")
    if line.startswith(_UTF_16) or b"\0" in line[:4]:
        raise ValueError(
            f"{path}: the file is in UTF-16 or UTF-32, expected UTF-8; convert it, for example "
            "with `iconv -f UTF-16 -t UTF-8`"
        )


def _reason(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data":
        return (
            f"not valid JSON: more than one value on the line; {_EXPECTED}. A file whose lines end "
            "in a carriage return alone is converted by `tr '\\r' '\\n'`"
        )
    if text.startswith("["):
        return f"not valid JSON: the line begins a list; {_EXPECTED}: convert with `jq -c '.[]'`"
    if text.startswith("{") and error.pos >= len(text):
        return (
            f"not valid JSON: the object does not end on its line; {_EXPECTED}. A file with line "
            "breaks within objects is converted by `jq -c .`"
        )
    return f"not valid JSON at column {error.colno}: {error.msg}; {_EXPECTED}"
