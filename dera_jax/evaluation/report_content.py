"""Holds what a run found as its report shows it: tables, sentences, and the folders of its outputs.

folder/report.json    the content of a folder with more than the records of one sweep or method
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dera_jax.evaluation.tables import align_columns, printed_width
from dera_jax.files import json_files

FILE = "report.json"
WIDTH = 110  # characters of a printed line below a table


@dataclasses.dataclass(frozen=True)
class ReportTable:
    """A table: its title, its head and lines as texts, and a note below it."""

    title: str
    cells: Sequence[Sequence[str]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class OutputSource:
    """Outputs to be shown under one label; sources with the same label are joined.

    Attributes:
        label: name of the method or policy; empty for the samples of a sweep.
        folder: folder of the records (`record_store`), relative to that of the run.
        best_of: n, if only the best of every n samples is shown; 1 shows all.
    """

    label: str
    folder: str
    best_of: int = 1


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """What a run found.

    Attributes:
        title: title of the report.
        tables: tables of means.
        findings: sentences computed from the numbers.
        sources: the outputs, in the order in which a reader selects them.
    """

    title: str
    tables: Sequence[ReportTable]
    findings: Sequence[str]
    sources: Sequence[OutputSource]

    def text(self, width: int | None = None) -> str:
        """Formats tables and findings as text; `width` as of `tables.align_columns`."""
        parts = []
        for table in self.tables:
            heading = [f"{table.title}:"] if len(self.tables) > 1 else []
            note = [textwrap.fill(table.note, min(width or WIDTH, WIDTH))] if table.note else []
            parts += [*heading, align_columns(table.cells, width), *note]
        return "\n".join([*parts, *self.findings])


def conclude(content: ReportContent, folder: Path) -> None:
    """Writes the content of a run's report to its folder, and prints tables and findings."""
    json_files.write(folder / FILE, dataclasses.asdict(content))
    print(content.text(printed_width()))


def read(folder: Path) -> ReportContent | None:
    """Reads the content that a run wrote; None if it wrote none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    found = json_files.loads(path.read_bytes(), str(path))
    try:
        return ReportContent(
            found["title"],
            [ReportTable(**table) for table in found["tables"]],
            found["findings"],
            [OutputSource(**source) for source in found["sources"]],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the content of a report ({error!r}); remove it and {folder}/result.json, and "
            "start the run again to write them anew"
        ) from error
