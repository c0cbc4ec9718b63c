"""Reads the documents of a command, and writes the rows that it returns.

Documents are lines of text, JSON Lines if the first one begins with a brace or the name of the file says
so, or the rows of a CSV or Parquet file. Rows are a table on a
terminal, and JSON Lines elsewhere.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_FIELDS = ("document", "summary", "keywords")
_TABLES = (".csv", ".csv.gz", ".parquet")
_JSON = (".jsonl", ".jsonl.gz", ".json")
_SHOWN = 300  # characters of a document in a table


def read(path: str | None) -> list[dict]:
    """Returns the documents of a file, or of stdin for None, as `dera_jax.api` takes them.

    Raises:
        OSError: the file cannot be read.
        TypeError, ValueError: there is no document, or a line is not UTF-8 or not valid.
    """
    from dera_jax.data import json_lines, tables

    if path and path.endswith(_TABLES):
        return _documents([(where, parse()) for where, parse in tables.rows(path)], path)
    numbered = json_lines.lines(path) if path else _stdin_lines()
    lines = [(where, x) for where, x in numbered if json_lines.decode(x, where).strip()]
    if not lines:
        raise ValueError(f"{path or 'stdin'}: no documents")
    first = json_lines.decode(lines[0][1], lines[0][0]).lstrip()
    if first.startswith("{") or (path and path.endswith(_JSON)):
        return _documents([(where, json_lines.read_object(x, where)) for where, x in lines], path)
    return [{"document": json_lines.decode(line, where).strip()} for where, line in lines]


def _stdin_lines() -> Iterator[tuple[str, bytes]]:
    for i, line in enumerate(sys.stdin.buffer, start=1):
        yield f"stdin, line {i}", line


def _documents(rows: Sequence[tuple[str, dict]], path: str | None) -> list[dict]:
    """Return the documents of rows with their places; print the columns not read, which may be misspelt."""
    names = dict.fromkeys(name for _, row in rows for name in row if name not in _FIELDS)
    if names:
        print(
            f"{path or 'stdin'}: not read: {', '.join(names)}; known are {', '.join(_FIELDS)}",
            file=sys.stderr,
        )
    return [_document(row, where) for where, row in rows]


def _document(row: dict, where: str) -> dict:
    """Return the fields of a document, which must be there and valid."""
    from dera_jax.data import text_columns

    for name in ("document", *(["summary"] if row.get("summary", "") != "" else [])):
        text_columns.text_of(row, name, where)
    text_columns.keywords_of(row, where)
    return {name: x for name, x in row.items() if name in _FIELDS}


def write(rows: Sequence[Mapping], output: str | None, command: str) -> None:
    """Writes rows to a file and, unless that suffices, to stdout.

    Args:
        rows: rows of a method of `dera_jax.api`.
        output: path of the file; None for stdout alone.
        command: the command; `sweep` has a table of its own.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is not None:
        Path(output).write_text(lines, encoding="utf-8")
    if sys.stdout.isatty():
        print(_sweep_table(rows) if command == "sweep" else table(rows, _columns()))
    elif output is None:
        sys.stdout.write(lines)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def table(rows: Sequence[Mapping], columns: int) -> str:
    """Formats outputs for a terminal: each document once, and its outputs with λ, reward and length."""
    labels = [_label(row) for row in rows]
    width, lines, document = max(map(len, labels)), [], None
    for row, label in zip(rows, labels, strict=True):
        if row["document"] != document:
            document = row["document"]
            lines += [
                "",
                textwrap.fill(textwrap.shorten(document, _SHOWN, placeholder=" …"), columns),
            ]
        indents = f"  {label:{width}}  ", " " * (width + 4)
        text = textwrap.fill(row["text"], columns, initial_indent=indents[0], subsequent_indent=indents[1])  # fmt: skip
        lines.append(text or indents[0].rstrip())  # of an empty output
    return "\n".join(lines[1:])


def _label(row: Mapping) -> str:
    parts = [] if row["lam"] is None else [f"λ = {row['lam']:g}"]
    if "reward" in row:
        parts.append(f"reward {row['reward']:.2f}")
    return ", ".join([*parts, f"{row['length']} tokens"])


def _sweep_table(rows: Sequence[Mapping]) -> str:
    from dera_jax.evaluation.sweep_tables import format_table

    return format_table(rows)
