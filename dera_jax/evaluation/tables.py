"""Writes tables as CSV files and formats them for a terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from dera_jax.files.store import write_file


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Writes a CSV file with a header line; every row must have exactly the first row's keys."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, out.getvalue().encode())


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Formats lines of cells as text, each column right-aligned to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
