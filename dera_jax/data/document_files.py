"""Reads the documents that `dera_jax.load`'s models decode: lines of text, JSON Lines, CSV or Parquet."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dera_jax.data import json_lines, tables, text_columns

_FIELDS = ("document", "summary", "keywords")
_TABLES = (".csv", ".csv.gz", ".parquet")
_JSON = (".jsonl", ".jsonl.gz", ".json")
FILE_NAMES = (*_TABLES, *_JSON, ".txt")  # how files of documents are usually called


class FileDocuments(list):
    """Holds the documents of a file as dicts.

    Attributes:
        path: path of the file, or 'stdin'.
        places: where each document stands, such as 'papers.jsonl, line 3'.
    """

    def __init__(self, documents: Iterable[dict], path: str, places: Sequence[str]):
        super().__init__(documents)
        self.path, self.places = path, places


def read_documents(path: str | Path | None) -> FileDocuments:
    """Returns the documents of a file, or of stdin for None, as the methods of `dera_jax.load`'s models take them.

    A file has one document in each line. If its first line begins with a brace, or its name ends in .jsonl,
    .jsonl.gz or .json, the lines are JSON objects with the string `document` and optionally `summary` and
    `keywords`. The rows of a CSV (.csv) or Parquet file (.parquet) have columns of these names. Other columns are named on stderr.

    Raises:
        OSError: the file cannot be read.
        TypeError, ValueError: there is no document, or a line is not UTF-8 or not valid.
    """
    name = "stdin" if path is None else str(path)
    rows = _read(None if path is None else name)
    return FileDocuments([row for _, row in rows], name, [where for where, _ in rows])


def _read(path: str | None) -> list[tuple[str, dict]]:
    """Return the documents with their places."""
    suffix = path.lower() if path else ""
    if suffix.endswith(_TABLES):
        return _documents([(where, parse()) for where, parse in tables.rows(path)], path)
    numbered = json_lines.lines(path) if path else _stdin_lines()
    lines = [(where, x) for where, x in numbered if json_lines.decode(x, where).strip()]
    if not lines:
        raise ValueError(f"{path or 'stdin'}: no documents")
    first = json_lines.decode(lines[0][1], lines[0][0]).lstrip()
    if re.match(r"\{|\[\s*\{", first) or suffix.endswith(_JSON):
        return _documents([(where, json_lines.read_object(x, where)) for where, x in lines], path)
    if columns := {x.strip().strip('"') for x in re.split("[,;\t]", first)} & set(_FIELDS):
        raise ValueError(
            f"{lines[0][0]}: {first.strip()!r} looks like the header of a table ({', '.join(sorted(columns))}); give a "
            "CSV file as a file whose name ends in .csv, and JSON Lines for everything else"
        )
    return [(where, {"document": json_lines.decode(x, where).strip()}) for where, x in lines]


def _stdin_lines() -> Iterator[tuple[str, bytes]]:
    for i, line in enumerate(sys.stdin.buffer, start=1):
        yield f"stdin, line {i}", line


def _documents(rows: Sequence[tuple[str, dict]], path: str | None) -> list[tuple[str, dict]]:
    """Return the documents of rows with their places; print the columns not read, which may be misspelt."""
    names = dict.fromkeys(name for _, row in rows for name in row if name not in _FIELDS)
    if names:
        print(
            f"{path or 'stdin'}: not read: {', '.join(names)}; known are {', '.join(_FIELDS)}",
            file=sys.stderr,
        )
    return [(where, _document(row, where)) for where, row in rows]


def _document(row: dict, where: str) -> dict:
    """Return the fields of a document, which must be there and valid; null is as if it were missing."""
    row = {name: x for name, x in row.items() if x is not None}
    for name in ("document", *(["summary"] if row.get("summary", "") != "" else [])):
        text_columns.text_of(row, name, where)
    text_columns.keywords_of(row, where)
    return {name: x for name, x in row.items() if name in _FIELDS}
