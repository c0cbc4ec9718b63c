"""Writes the rows that a command returns: a table on a terminal, and JSON Lines elsewhere."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dera_jax.texts import Rows

_SHOWN = 300  # characters of a document in a table


def write(rows: "Rows", output: str | None, command: str) -> None:
    """Writes rows to a file and, unless that suffices, to stdout.

    Args:
        rows: rows of a method of `dera_jax.api`.
        output: path of the file; None for stdout alone.
        command: the command; `sweep` has a table of its own.
    """
    if output is not None:
        rows.to_jsonl(output)
    if sys.stdout.isatty():
        print(_sweep_table(rows) if command == "sweep" else table(rows, _columns()))
    elif output is None:
        sys.stdout.write(rows.lines())


def _columns() -> int:
    return shutil.get_terminal_size().columns


def table(rows: Sequence[Mapping], columns: int) -> str:
    """Formats outputs for a terminal: each document once, and its outputs with λ, reward, KL and length."""
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
    from dera_jax.evaluation.sweep_tables import lam_text

    parts = [] if row["lam"] is None else [f"λ = {lam_text(row['lam'])}"]
    if "reward" in row:
        parts.append(f"reward {row['reward']:.2f}")
    if "kl" in row:
        parts.append(f"KL {row['kl']:.2f}")
    return ", ".join([*parts, f"{row['length']} tokens"])


def _sweep_table(rows: Sequence[Mapping]) -> str:
    from dera_jax.evaluation.sweep_tables import format_table

    return format_table(rows, _columns())
