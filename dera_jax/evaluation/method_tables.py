"""Writes tables of decoding methods, a row for each, and paired differences between methods.

    folder/methods/<name>                 the records of a method, see `record_store`
    folder/<table>.json, .csv             the rows of a table
    folder/samples.txt                    the first documents with the outputs of all methods

Records can be resumed only with the settings that they were started with (see `record_store`).
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax.evaluation import methods, record_store, sweep, sweep_tables
from dera_jax.evaluation.method_setup import MethodSetup
from dera_jax.evaluation.methods import Method
from dera_jax.evaluation.report_content import OutputSource, ReportContent
from dera_jax.evaluation.tables import write_csv
from dera_jax.files import json_files
from dera_jax.files.store import write_file
from dera_jax.metrics import intervals

GAP = "gap_"
GUIDE = "guide"  # the part of the measured reward that is the guiding reward itself
_COLUMNS = {
    "method": "method",
    "reward": "reward",
    "covered": "all keywords",
    "coverage": "coverage",
    "in_range_rate": "in-range rate",
    "faithful": "faithful words",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "length": "length (tokens)",
    "forward_tokens": "tokens processed",
}


def run_method(setup: MethodSetup, folder: Path, method: Method) -> dict:
    """Runs a method on all documents and returns its row of `sweep_tables.mean_row`.

    Raises:
        FileExistsError, ValueError, OSError: as `record_store.write`.
    """
    records = methods.run(method, setup, method_folder(folder, method.name))
    return {"method": method.name} | sweep_tables.mean_row(records)


def method_folder(folder: Path, name: str) -> Path:
    """Returns the folder of the records of the method called `name`."""
    return folder / "methods" / re.sub(r"[^\w.+-]+", "_", name.lower()).strip("_")


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError if two methods would share a folder."""
    folders = [method_folder(Path(), name) for name in names]
    if len(set(folders)) < len(folders):
        raise ValueError(
            f"methods need names that differ in letters and digits (for folders); found {names}"
        )


def paired_difference(
    folder: Path, key: str, name: str, method: str, other: str
) -> dict[str, float]:
    """Returns the mean difference of two methods in the column `key`, paired by document.

    Returns:
        gap_<name>, the mean of `method` minus that of `other`, and gap_<name>_ci95, half the width
        of its 95 % confidence interval over documents.

    Raises:
        FileNotFoundError, ValueError: as `record_store.read`.
    """
    pairs = zip(_column(folder, key, method), _column(folder, key, other), strict=True)
    gap, interval = intervals.mean_interval([[ours - theirs] for ours, theirs in pairs])
    return {GAP + name: gap, f"{GAP}{name}_ci95": interval}


@functools.lru_cache
def _column(folder: Path, key: str, method: str) -> list[float]:
    """Returns, for each document, the mean of a column over the outputs of a finished method."""
    records = record_store.read(method_folder(folder, method))
    return [float(np.mean(group)) for group in sweep_tables.column_values(records)[key]]


def write(folder: Path, table: str, rows: Sequence[Mapping]) -> None:
    """Writes the rows as <table>.json and <table>.csv."""
    json_files.write(folder / f"{table}.json", rows)
    write_csv(folder / f"{table}.csv", rows)


def write_samples(folder: Path, names: Sequence[str], documents: int = 5) -> None:
    """Writes samples.txt: the first documents with the first output of each method."""
    records = {name: record_store.read(method_folder(folder, name)) for name in names}
    lines = []
    for i, record in enumerate(records[names[0]][:documents]):
        lines.append(f"document: {record['document']}")
        if record["summary"]:
            lines.append(f"human: {record['summary']}")
        if "keywords" in record:
            lines.append(f"keywords: {', '.join(record['keywords'])}")
        lines += [f"{name}: {records[name][i]['samples'][0]['text']}" for name in names]
        lines.append("")
    write_file(folder / "samples.txt", "\n".join(lines).encode())


def content(
    title: str, tables: Mapping[str, Sequence[Mapping]], headlines: Sequence[str] = ("reward",)
) -> ReportContent:
    """Returns what the report of a comparison shows.

    Args:
        title: title of the report.
        tables: rows of methods, by the title of their table.
        headlines: the columns of the first table that the sentences are about.
    """
    shown = [sweep_tables.table_of(name, cells(rows)) for name, rows in tables.items()]
    names = dict.fromkeys(row["method"] for rows in tables.values() for row in rows)
    sources = [OutputSource(name, str(method_folder(Path(), name))) for name in names]
    return ReportContent(title, shown, sentences(next(iter(tables.values())), headlines), sources)


def sentences(rows: Sequence[Mapping], headlines: Sequence[str]) -> list[str]:
    """Returns sentences on the methods with the highest values of columns, and on the cheapest one."""

    def line(what: str, row: Mapping, key: str) -> str:
        value = f"{_COLUMNS.get(key, _title(key))} {sweep_tables.format_cell(row, key)}"
        tokens = f"{row['forward_tokens']:,.0f} tokens processed per output"
        return f"{what}: {row['method']}, with {value} and {tokens}."

    highest = {key: max(rows, key=lambda row, key=key: row[key]) for key in headlines}
    cheapest = min(rows, key=lambda row: row["forward_tokens"])
    return [
        *(line(f"Highest {_COLUMNS.get(x, _title(x))}", row, x) for x, row in highest.items()),
        line("Fewest tokens", cheapest, headlines[0]),
    ]


def cells(rows: Sequence[Mapping]) -> list[list[str]]:
    """Returns the head and the lines of a table of methods, as texts."""
    columns = {key: title for key, title in _COLUMNS.items() if key in rows[0]}
    parts = [x for x in rows[0] if x.startswith((sweep.PART, GAP)) and not x.endswith("_ci95")]
    columns |= {x: _title(x) for x in parts if x != sweep.PART + GUIDE}
    lines = [
        [row[key] if key == "method" else sweep_tables.format_cell(row, key) for key in columns]
        for row in rows
    ]
    return [list(columns.values()), *lines]


def _title(column: str) -> str:
    return column.removeprefix(sweep.PART).replace("_", " ")
