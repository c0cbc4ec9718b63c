"""Reads the rows of data files: JSON Lines, CSV and Parquet.

The name of a file says what it is: `.csv` or `.csv.gz`, `.parquet`, and JSON Lines otherwise
(`json_lines`). The first line of a CSV file names the columns, cells are separated by commas, and
a cell of the column `keywords` holds keywords separated by semicolons. Parquet files are read with
the package pyarrow; a null is a missing value.
"""

import csv
import functools
from collections.abc import Callable, Iterator, Mapping

from dera_jax.data import json_lines
from dera_jax.data.data_files import open_data

# Characters; Python's default of 131,072 is less than some documents have.
_LONGEST_CELL = 2**31 - 1

Row = dict[str, object]
Rows = Iterator[tuple[str, Callable[[], Row]]]


def rows(path: str, names: Mapping[str, str] | None = None) -> Rows:
    """Yields (where, parse) for each row, with `where` as in "file, line 3".

    `parse` returns the row, or raises TypeError or ValueError, naming `where`, if it is invalid.

    Args:
        path: of the file, local or a URL.
        names: the file's name of a column by the name in the result, such as `{"document":
            "article"}`; all other columns keep their names.

    Raises:
        FileNotFoundError: the file does not exist.
        ModuleNotFoundError: a Parquet file, and pyarrow is not installed.
        ValueError: the file has no row or is damaged.
    """
    read = _reader(path)
    for where, parse in read(path):
        yield where, functools.partial(_row, parse, names or {}, where, read is _csv_rows)


def first_row(path: str, names: Mapping[str, str] | None = None) -> tuple[str, Row]:
    """Returns the place of the first row of a file, and the row; raises as `rows` and its `parse`."""
    where, parse = next(rows(path, names))
    return where, parse()


def _row(parse: Callable[[], Row], names: Mapping[str, str], where: str, is_text: bool) -> Row:
    row = _renamed(parse(), names, where)
    return _typed(row, where) if is_text else row


def _reader(path: str) -> Callable[[str], Rows]:
    if path.lower().endswith((".csv", ".csv.gz")):
        return _csv_rows
    return _parquet_rows if path.lower().endswith(".parquet") else _json_rows


def _json_rows(path: str) -> Rows:
    for where, line in json_lines.lines(path):
        yield where, functools.partial(json_lines.read_object, line, where)


def _csv_rows(path: str) -> Rows:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((json_lines.decode(*line) for line in _named_lines(path)), strict=True)
    header, found = None, False
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: not valid CSV: {error}") from error
        if cells is None:
            break
        if header is None:
            header = _header(cells, where)
            continue
        found = True
        yield where, functools.partial(_csv_row, header, cells, where)
    if not found:
        raise ValueError(f"{path}: the file has a line of column names, but no row")


def _named_lines(path: str) -> Iterator[tuple[bytes, str]]:
    return ((line, where) for where, line in json_lines.lines(path))


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if not name or names.count(name) > 1:
            raise ValueError(
                f"{where}: expected the names of the columns, each once and separated by commas, "
                f"found {names}"
            )
    return names


def _csv_row(header: list[str], cells: list[str], where: str) -> Row:
    if not cells:
        raise ValueError(f"{where}: the line is blank, but other lines follow")
    if len(cells) != len(header):
        raise ValueError(
            f"{where}: {len(cells)} cells, expected {len(header)} ({', '.join(header)}); put cells "
            "with commas, quotes or line breaks in double quotes"
        )
    return dict(zip(header, cells, strict=True))


def _parquet_rows(path: str) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: Parquet files are read with the package pyarrow: pip install pyarrow",
            name="pyarrow",
        ) from error
    number = 0
    with open_data(path) as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    known = {name: value for name, value in row.items() if value is not None}
                    yield f"{path}, row {number}", functools.partial(dict, known)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a Parquet file, or damaged: {error}") from error
    if not number:
        raise ValueError(f"{path}: the file has no row")


def _renamed(row: Row, names: Mapping[str, str], where: str) -> Row:
    for name, column in names.items():
        if column not in row:
            raise ValueError(
                f"{where}: no column {column!r}, which is named for {name!r}; found {sorted(row)}"
            )
    replaced = {*names, *names.values()}
    kept = {name: value for name, value in row.items() if name not in replaced}
    return kept | {name: row[column] for name, column in names.items()}


def _typed(row: Row, where: str) -> Row:
    """Return a row of strings with keywords and weight in the types that JSON Lines have."""
    typed = {}
    if "keywords" in row:
        typed["keywords"] = [x.strip() for x in row["keywords"].split(";") if x.strip()]
    if "weight" in row:
        try:
            typed["weight"] = float(row["weight"])
        except ValueError as error:
            raise ValueError(
                f"{where}: 'weight' must be a number, found {row['weight']!r}"
            ) from error
    return row | typed
