"""Reads and writes JSON: files of one value, and files of one value per line (JSON lines).

A line ends at "\\n" and nowhere else. `str.splitlines` ends lines at U+2028, U+2029 and U+0085 too,
which JSON allows inside strings. They are written as escapes, so that no reader can take them for
the end of a line, and read by splitting at "\\n". NaN and infinities are not JSON and are not written.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dera_jax.store import write_file

# Line separators, and halves of characters, which UTF-8 cannot encode.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def dumps(value: object, where: str, indent: int | None = None, sort_keys: bool = False) -> str:
    """One JSON value as text.

    Args:
        value: what JSON can hold.
        where: the file that it is for, named in errors.
        indent: of nested values; None puts everything on one line.
        sort_keys: of objects.

    Raises:
        FloatingPointError: a number is not finite, naming it.
    """
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort_keys
        )
    except ValueError:
        for path, number in _not_finite(value, ""):
            raise FloatingPointError(
                f"{where}: {path.lstrip('.') or 'the value'} is {number}; only finite numbers are "
                "written"
            ) from None
        raise
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_lines(rows: Iterable[object], where: str) -> bytes:
    """JSON lines, one for each row; raises as `dumps`."""
    return "".join(f"{dumps(row, where)}\n" for row in rows).encode()


def from_lines(content: bytes, where: str) -> list:
    """The rows of JSON lines; a last line without an end was cut off by a kill and is left out.

    Raises:
        ValueError: a line is not JSON, naming the file and the line.
    """
    lines = content.split(b"\n")[:-1]
    return [loads(line, f"{where}, line {i}") for i, line in enumerate(lines, start=1)]


def parse(text: str | bytes) -> object:
    """One JSON value, read strictly.

    Raises:
        ValueError: it is no JSON, holds NaN or an infinity, or an object has a key twice: Python
            would keep the last one without a word.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there more than once; keep one of them")
        found[key] = value
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"not valid JSON: {name} is no JSON value; write null, or leave the key out")


def loads(content: bytes, where: str) -> object:
    """One JSON value; raises ValueError as `parse`, and if it is not UTF-8, naming `where`."""
    try:
        return parse(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON, half written or edited ({error})") from error


def write(path: Path, value: object, sort_keys: bool = False) -> None:
    """Writes an indented JSON file, complete or not at all.

    Raises:
        FloatingPointError: as `dumps`.
        OSError: the file cannot be written, naming it.
    """
    write_file(path, f"{dumps(value, str(path), 1, sort_keys)}\n".encode())


def _not_finite(value: object, path: str) -> Iterable[tuple[str, float]]:
    """Names and values of the numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _not_finite(part, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _not_finite(part, f"{path}[{i}]")
