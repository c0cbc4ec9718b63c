"""Registers tasks of writing prose that states a given list of pro and con arguments and no others.

Task `arguments` reads `train.jsonl`, `validation.jsonl` and `test.jsonl` from the folder named by
`DERA_JAX_ARGUMENTS` (local or `gs://`): lines of `{"topic": "Ban cars", "pro": ["Quiet streets."],
"con": ["Villages have no trains."], "text": "Quiet streets speak for it, but ..."}`. The data of
DeRa's hallucination experiment (Liu et al., 2024, arXiv 2402.02992) are not published; this file
format is our own. Lists of arguments can be made from data sets such as the 30,000 arguments of IBM
(Gretz et al., 2020, arXiv 1911.11408), which TensorFlow Datasets does not have. In the split
`test`, all lines may omit `text`.

The document is the list, "topic: Ban cars pro: Quiet streets. con: Villages have no trains.", after
"rewrite: "; the summary is the prose. Use `register` for your own folder, under another name, and
`register_one_file` for one file that holds all splits.
"""

import functools
import os
from collections.abc import Mapping

import seqio

from dera_jax.data import text_columns
from dera_jax.tasks import jsonl, preferences

SPLITS = ("train", "validation", "test")
TEMPLATE = "rewrite: {document}"


def register(name: str, folder: str) -> seqio.Task:
    """Registers a task over a folder with one JSONL file per split.

    Raises:
        ValueError: the name is already registered. Reading a split raises ValueError or TypeError,
            with file and line number, for a missing or empty string, a value that should be a list,
            or a line without arguments.
    """
    rows = functools.partial(_rows, folder)
    return jsonl.register_pairs(name, rows, SPLITS, TEMPLATE)


def register_one_file(name: str, path: str, fractions: Mapping[str, float]) -> seqio.Task:
    """Registers a task over one file, whose documents are divided among the splits.

    Args:
        fractions: fraction of the documents of each split, such as `{"train": 0.6, "validation": 0.2,
            "test": 0.2}`.

    Raises:
        ValueError: the fractions do not add up to 1, or the name is already registered; and as
            `register`.
    """
    preferences.check_fractions(fractions)

    def rows(split: str) -> dict[str, list[str]]:
        return preferences.split_rows(_read(path, need_text=True), fractions)[split]

    return jsonl.register_pairs(name, rows, list(fractions), TEMPLATE)


def _rows(folder: str, split: str) -> dict[str, list[str]]:
    return _read(
        os.path.join(folder, f"{split}.jsonl"), need_text=split in text_columns.NEED_SUMMARIES
    )


def _read(path: str, need_text: bool) -> dict[str, list[str]]:
    parse = functools.partial(_parse, need_text=need_text)
    return text_columns.with_summaries(text_columns.read_columns(path, parse))


def _parse(row: dict[str, object], where: str, need_text: bool) -> list[dict[str, str]]:
    topic = text_columns.text_of(row, "topic", where).strip()
    sides = [(side, argument) for side in ("pro", "con") for argument in _list(row, side, where)]
    if not sides:
        raise ValueError(f"{where}: 'pro' and 'con' are empty; give at least one argument")
    document = " ".join([f"topic: {topic}", *(f"{side}: {text}" for side, text in sides)])
    if not need_text and "text" not in row:
        return [{"document": document}]
    return [{"document": document, "summary": text_columns.text_of(row, "text", where).strip()}]


def _list(row: dict[str, object], side: str, where: str) -> list[str]:
    arguments = row.get(side, [])
    if not isinstance(arguments, list):
        raise TypeError(f"{where}: {side!r} must be a list of strings, found {arguments!r}")
    return [text_columns.text_of({side: text}, side, where).strip() for text in arguments]


def _default_rows(split: str) -> dict[str, list[str]]:
    files = ", ".join(f"{name}.jsonl" for name in SPLITS)
    return _rows(jsonl.folder_of("DERA_JAX_ARGUMENTS", "arguments", files), split)


jsonl.register_pairs("arguments", _default_rows, SPLITS, TEMPLATE)
