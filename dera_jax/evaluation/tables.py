"""Rows of numbers as files and on a terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from dera_jax.store import write_file


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Writes rows that all have the first one's keys, with a line of them first."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, out.getvalue().encode())


def in_columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, each column as wide as its widest cell and flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
