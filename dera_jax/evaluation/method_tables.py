"""Tables of decoding methods: a folder of records for each, a row for each, and gaps between them.

    folder/methods/<name>                 the answers, see `shards`
    folder/<table>.json, .csv             the rows
    folder/samples.txt                    the first documents, every method's answer

A method's folder belongs to one study, which `shards` compares.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import json_files
from dera_jax.evaluation import methods, metrics, shards, sweep
from dera_jax.evaluation.bench import Bench
from dera_jax.evaluation.methods import Method
from dera_jax.evaluation.tables import in_columns, write_csv
from dera_jax.store import write_file

GAP = "gap_"
GUIDE = "guide"  # the part of what is measured that is the guiding reward itself
_COLUMNS = {
    "method": "method",
    "covered": "covered",
    "coverage": "coverage",
    "within": "within",
    "reward": "reward",
    "faithful": "faithful",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "length": "length",
    "positions": "positions",
}


def answered(bench: Bench, folder: Path, method: Method) -> dict:
    """The row of a method, once it has answered every document."""
    records = methods.run(method, bench, folder_of(folder, method.name))
    return {"method": method.name} | sweep.measure(records)


def folder_of(folder: Path, name: str) -> Path:
    """Where the records of the method of this name are."""
    return folder / "methods" / re.sub(r"[^\w.+-]+", "_", name.lower()).strip("_")


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError if two methods would share a folder."""
    folders = [folder_of(Path(), name) for name in names]
    if len(set(folders)) < len(folders):
        raise ValueError(f"methods need names that differ in letters and digits; found {names}")


def paired_gap(folder: Path, key: str, name: str, method: str, other: str) -> dict[str, float]:
    """How much more of the column `key` a method has than another, paired by document.

    Returns:
        gap_<name>, and half its 95 % interval as gap_<name>_ci95.
    """
    pairs = zip(_column(folder, key, method), _column(folder, key, other), strict=True)
    gap, interval = metrics.mean_interval([[ours - theirs] for ours, theirs in pairs])
    return {GAP + name: gap, f"{GAP}{name}_ci95": interval}


@functools.lru_cache
def _column(folder: Path, key: str, method: str) -> list[float]:
    """For each document the mean over a finished method's answers."""
    records = shards.read(folder_of(folder, method))
    return [float(np.mean(group)) for group in sweep.values(records)[key]]


def write(folder: Path, table: str, rows: Sequence[Mapping]) -> None:
    """Writes the rows as JSON and CSV, and prints them."""
    json_files.write(folder / f"{table}.json", rows)
    write_csv(folder / f"{table}.csv", rows)
    print(format_table(rows))


def write_samples(folder: Path, names: Sequence[str], documents: int = 5) -> None:
    """Writes samples.txt: the first documents with the first answer of each method."""
    found = {name: shards.read(folder_of(folder, name)) for name in names}
    lines = []
    for i, record in enumerate(found[names[0]][:documents]):
        lines += [f"document: {record['document']}", f"human: {record['summary']}"]
        if "keywords" in record:
            lines.append(f"keywords: {', '.join(record['keywords'])}")
        lines += [f"{name}: {found[name][i]['samples'][0]['text']}" for name in names]
        lines.append("")
    write_file(folder / "samples.txt", "\n".join(lines).encode())


def format_table(rows: Sequence[Mapping]) -> str:
    """For a terminal, with ± half widths of 95 % intervals."""
    columns = {key: title for key, title in _COLUMNS.items() if key in rows[0]}
    more = [x for x in rows[0] if x.startswith((sweep.PART, GAP)) and not x.endswith("_ci95")]
    columns |= {x: _title(x) for x in more if x != sweep.PART + GUIDE}
    lines = [
        [row[key] if key == "method" else sweep.cell(row, key) for key in columns] for row in rows
    ]
    return in_columns([list(columns.values()), *lines])


def _title(column: str) -> str:
    return column.removeprefix(sweep.PART).replace("_", " ")
