"""Reads and validates the columns of data files: documents with summaries, and preference pairs.

An invalid row raises an error with its file and line number; no row is skipped silently. `tables`
describes the accepted files. Columns are lists of strings: keywords one per line of the string, and
weights as decimal strings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from dera_jax.data import tables
from dera_jax.data.example_ids import hashed_id
from dera_jax.log import warn_once
from dera_jax.rewards.segmentation import words_of

DOCUMENT = ("document",)
PAIR = ("document", "chosen", "rejected")
NEED_SUMMARIES = ("train", "validation")  # splits of the seqio tasks that read such files
_MAX_REASONS = 10  # errors of skipped rows that the warning shows
_OWN_FIELDS = ("inputs", "targets", "example_id", "template", "keep_end")

Row = dict[str, str]
Columns = dict[str, list[str]]
Parse = Callable[[dict[str, object], str], Iterable[Row]]


def read_summaries(
    path: str, need_summaries: bool, names: Mapping[str, str] | None = None
) -> Columns:
    """Reads and validates a file of documents and summaries.

    Args:
        path: of the file.
        need_summaries: whether a file without summaries raises an error.
        names: see `tables.rows`.

    Returns:
        The columns `document` and `summary`, which holds empty strings if the file has no
        summaries; if the file has them, also `keywords` (one keyword per line of the string) and
        `weight`.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: a line is not an object, a value is not a string, keywords are not a list of
            strings, or a weight is not a number.
        ValueError: a line cannot be read or lacks a key, has an empty document or summary, a
            keyword without a letter or digit, or a negative weight; or only some lines have a
            summary, keywords or a weight. These errors name the file and the line.
    """

    def parse(row: dict[str, object], where: str) -> list[Row]:
        keys = ["document", "summary"] if "summary" in row or need_summaries else ["document"]
        more = keywords_of(row, where) | weight_of(row, where)
        return [{key: text_of(row, key, where) for key in keys} | more]

    return with_summaries(read_columns(path, parse, names=names))


def with_summaries(columns: Columns) -> Columns:
    """Return the columns with a column of empty summaries if they have none."""
    return columns | {"summary": columns.get("summary", [""] * len(columns["document"]))}


def read_pairs(path: str, names: Mapping[str, str] | None = None) -> Columns:
    """Reads and validates a file of preference pairs: `document`, `chosen` and `rejected`.

    Args:
        path: of the file.
        names: see `tables.rows`.

    Returns:
        These columns, a column for every further key whose values are strings, and `keywords` and
        `weight` if the file has them.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: a line is not an object, or a value has the wrong type.
        ValueError: a line cannot be read, lacks a key, has an empty string, or the same response
            twice; or only some lines have a further key. These errors name the file and the line.
    """
    return read_columns(path, _parse_pair, names=names)


def pair(document: str, chosen: str, rejected: str, where: str) -> dict[str, str]:
    """Return the row of a pair; raises ValueError if both responses are the same."""
    if chosen.split() == rejected.split():
        raise ValueError(f"{where}: 'chosen' and 'rejected' are the same")
    return {"document": document, "chosen": chosen, "rejected": rejected}


def with_ids(columns: Columns, identity: Sequence[str]) -> Columns:
    """Return the columns with a column `example_id`, decimal strings of `example_ids.hashed_id`.

    Args:
        columns: columns of equal length.
        identity: names of the columns that identify an example.
    """
    parts = zip(*(columns[name] for name in identity), strict=True)
    return columns | {"example_id": [str(hashed_id("\x1f".join(x))) for x in parts]}


def read_columns(
    path: str,
    parse: Parse,
    leave_out_bad: bool = False,
    names: Mapping[str, str] | None = None,
) -> Columns:
    """Reads a file of rows, see `tables`.

    Args:
        path: of the file.
        parse: maps a row of the file and its place ("file, line 3") to rows of strings; raises
            TypeError or ValueError, naming the place, for an invalid row.
        leave_out_bad: skip invalid rows with one warning, instead of raising an error.
        names: see `tables.rows`.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError, ValueError: a line is invalid, its rows have other keys than the first row, or
            the file has no (valid) line.
    """
    rows: list[tuple[str, Row]] = []
    bad: list[str] = []
    for where, row_of_file in tables.rows(path, names):
        try:
            rows += [(where, row) for row in parse(row_of_file(), where)]
        except (TypeError, ValueError) as error:
            if not leave_out_bad:
                raise
            bad.append(str(error))
    if bad:
        shown = "\n".join(bad[:_MAX_REASONS])
        message = f"{path}: skipped {len(bad)} invalid lines, the first of them:\n{shown}"
        if not rows:
            raise ValueError(f"{message}\nthe file has no valid line")
        warn_once(message)
    first = rows[0][1].keys()
    for where, row in rows:
        _check_keys(row, first, where)
    return {key: [row[key] for _, row in rows] for key in first}


def _check_keys(row: Row, expected: Iterable[str], where: str) -> None:
    for key in sorted(row.keys() ^ set(expected)):
        raise ValueError(
            f"{where}: {'a' if key in row else 'no'} {key!r}, unlike the lines before; "
            "either all lines of a file or none must have this key"
        )


def text_of(row: dict[str, object], key: str, where: str) -> str:
    """Return the string under `key`; raises ValueError or TypeError if there is no valid one."""
    if key not in row:
        raise ValueError(f"{where}: key {key!r} is missing, found {sorted(row)}")
    text = row[key]
    if not isinstance(text, str):
        raise TypeError(f"{where}: {key!r} must be a string, found {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{where}: {key!r} is empty")
    check_unicode(text, key, where)
    return text


def keywords_of(row: dict[str, object], where: str) -> Row:
    """Return the column `keywords` of a line, or nothing if the line has no list of keywords."""
    if "keywords" not in row:
        return {}
    keywords = row["keywords"]
    if not isinstance(keywords, list) or not all(isinstance(x, str) for x in keywords):
        raise TypeError(f"{where}: 'keywords' must be a list of strings, found {keywords!r}")
    for keyword in keywords:
        check_unicode(keyword, "keywords", where)
        if not words_of(keyword):
            raise ValueError(f"{where}: the keyword {keyword!r} has no letter or digit")
    return {"keywords": "\n".join(" ".join(x.split()) for x in keywords)}


def weight_of(row: dict[str, object], where: str) -> Row:
    """Return the column `weight` of a line as a decimal string, or nothing if it has none."""
    if "weight" not in row:
        return {}
    weight = row["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"{where}: 'weight' must be a number, found {weight!r}")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"{where}: 'weight' must be a finite number of at least 0, found {weight}")
    return {"weight": repr(float(weight))}


def check_unicode(text: str, key: str, where: str) -> None:
    """Raise ValueError if a string has a lone surrogate, which JSON allows: "\\ud83d"."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {key!r} is not valid Unicode: {error}") from error


def _parse_pair(row: dict[str, object], where: str) -> list[dict[str, str]]:
    texts = pair(*(text_of(row, key, where) for key in PAIR), where)
    known = keywords_of(row, where) | weight_of(row, where)
    return [texts | known | _further(row, where)]


def _further(row: dict[str, object], where: str) -> dict[str, str]:
    texts = {key: value for key, value in row.items() if isinstance(value, str)}
    further = {key: value for key, value in texts.items() if key not in PAIR}
    for key, value in further.items():
        if key in _OWN_FIELDS or key.endswith("_pretokenized"):
            raise ValueError(f"{where}: key {key!r} is reserved for a field of the task; rename it")
        check_unicode(value, key, where)
    return further
