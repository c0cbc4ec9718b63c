"""Writes tables as CSV files and formats them for a terminal."""

import csv
import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dera_jax.files.store import write_file

_WIDTH = 100  # characters of a printed line


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Writes a CSV file with a header line; the header has the keys of the first row, which has all."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, out.getvalue().encode())


def printed_width() -> int | None:
    """Returns the columns of the terminal that stdout is; None if it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def align_columns(lines: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Formats lines of cells as text, each column right-aligned to its widest cell.

    Args:
        lines: the head and the lines, of equally many cells.
        width: maximum width; the columns of a wider table go below each other, each block with the first
            column. None for no maximum.
    """
    first, *columns = [
        [cell.rjust(max(map(len, column))) for cell in column]
        for column in zip(*lines, strict=True)
    ]
    blocks = [[first]]
    for column in columns:
        used = sum(len(x[0]) + 2 for x in blocks[-1]) + len(column[0])
        if width is not None and used > width and len(blocks[-1]) > 1:
            blocks.append([first])
        blocks[-1].append(column)
    return "\n\n".join("\n".join("  ".join(x) for x in zip(*y, strict=True)) for y in blocks)


def side_by_side(record: Mapping, label: Callable[[Mapping], str]) -> str:
    """Formats a document, its human summary and its first sample at every λ for a terminal.

    Args:
        record: of a sweep.
        label: returns what stands before a sample.
    """
    first = [sample for sample in record["samples"] if sample["sample"] == 0]
    summaries = {"human": record["summary"]} | {label(x): x["text"] for x in first}
    width = max(map(len, summaries))
    lines = ["", textwrap.fill(record["document"], _WIDTH)]
    for name, text in summaries.items():
        indents = f"  {name:>{width}}  ", " " * (width + 4)
        filled = textwrap.fill(text, _WIDTH, initial_indent=indents[0], subsequent_indent=indents[1])  # fmt: skip
        lines.append(filled or indents[0].rstrip())  # of an empty output
    return "\n".join(lines)
