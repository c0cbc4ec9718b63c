"""Reads and writes JSON: files of one value, and files of one value per line (JSON lines).

A line ends at "\\n" and nowhere else. `str.splitlines` ends lines at U+2028, U+2029 and U+0085 too,
which JSON allows inside strings. These characters are written as escapes, so that no reader takes
them for the end of a line, and files are split at "\\n" only. NaN and infinities are not valid JSON
and raise FloatingPointError.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dera_jax.files.store import write_file

# Line separators, and surrogates, which UTF-8 cannot encode.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def dumps(value: object, where: str, indent: int | None = None, sort_keys: bool = False) -> str:
    """Serialize one JSON value to text.

    Args:
        value: a value that JSON can represent.
        where: the name of the destination file, for errors.
        indent: spaces per level of nesting; None puts the value on one line.
        sort_keys: whether to sort the keys of objects.

    Raises:
        FloatingPointError: a number is not finite; the message names its path in the value.
    """
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort_keys
        )
    except ValueError:
        for path, number in _not_finite(value, ""):
            raise FloatingPointError(
                f"{where}: {path.lstrip('.') or 'the value'} is {number}; only finite numbers can "
                "be written"
            ) from None
        raise
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_lines(rows: Iterable[object], where: str) -> bytes:
    """Serialize rows to JSON lines, one per row; raises as `dumps`."""
    return "".join(f"{dumps(row, where)}\n" for row in rows).encode()


def from_lines(content: bytes, where: str) -> list:
    """Parse JSON lines; a last line without "\\n" is dropped, since its write was interrupted.

    Raises:
        ValueError: a line is not valid JSON; the message names the file and the line.
    """
    lines = content.split(b"\n")[:-1]
    return [loads(line, f"{where}, line {i}") for i, line in enumerate(lines, start=1)]


def parse(text: str | bytes) -> object:
    """Parse one JSON value strictly.

    Raises:
        ValueError: the text is not valid JSON, contains NaN or an infinity, or an object repeats a
            key, of which Python's parser would silently keep the last one.
        RecursionError: the value is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} occurs more than once; keep one of them")
        result[key] = value
    return result


def _no_number(name: str) -> None:
    raise ValueError(f"not valid JSON: {name} is not a JSON value; write null, or omit the key")


def loads(content: bytes, where: str) -> object:
    """Parse one JSON value; raises ValueError naming `where`, as `parse` and if it is not UTF-8."""
    try:
        return parse(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: not valid JSON, perhaps incomplete or edited ({error})"
        ) from error


def write(path: Path, value: object, sort_keys: bool = False) -> None:
    """Writes an indented JSON file atomically.

    Raises:
        FloatingPointError: as `dumps`.
        OSError: the file cannot be written; the error names it.
    """
    write_file(path, f"{dumps(value, str(path), 1, sort_keys)}\n".encode())


def _not_finite(value: object, path: str) -> Iterable[tuple[str, float]]:
    """Yields the paths and values of all numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _not_finite(part, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _not_finite(part, f"{path}[{i}]")
