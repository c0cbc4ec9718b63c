"""Registers a seqio task over a user's own files of `{"document": ..., "summary": ...}` lines.

    from dera_jax.tasks import jsonl
    jsonl.register(
        "my_news",
        {"train": "news/train.jsonl", "validation": "news/dev.jsonl", "test": "news/test.jsonl"},
    )

Call it in a module that the gin file imports. The task yields text, which the model's tokenizer
encodes. A line may also have `"keywords": ["solar power", ...]`, which the keyword coverage reward
reads, and `"weight": 0.5`, the weight of the example in training (1 by default); other keys are
ignored. An invalid line raises an error with its file and line number; no line is skipped.
`dera_jax.tasks.json_lines` describes the accepted files.

Either every line of a file has a summary or none has. A file without summaries can be used for
sampling; its targets are empty. The splits `train` and `validation` must have summaries.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import seqio
import tensorflow as tf

from dera_jax.log import warn_once
from dera_jax.prompts import DOCUMENT, SUMMARIZE, check_template
from dera_jax.rewards.segmentation import words_of
from dera_jax.tasks import json_lines

NEED_SUMMARIES = ("train", "validation")
_SUMMARY = {"targets": "summary"}
_MAX_REASONS = 10  # errors of skipped lines that the warning shows

Row = dict[str, str]
Parse = Callable[[dict[str, object], str], Iterable[Row]]


def register(name: str, paths: Mapping[str, str], template: str = SUMMARIZE) -> seqio.Task:
    """Registers a task that reads one JSONL file per split.

    Args:
        name: of the task; each name can be registered once.
        paths: file of each split, local or `gs://`; a file is read when its split is read.
        template: the prompt template, with one slot {document}.

    Raises:
        ValueError: `paths` is empty, the template has no slot, or the name is already registered.
            Reading a split raises as `read`.
    """
    check_paths(name, paths)
    return register_pairs(name, functools.partial(_rows, dict(paths)), list(paths), template)


def check_paths(name: str, paths: Mapping[str, str]) -> None:
    """Raise ValueError if `paths` is empty."""
    if not paths:
        raise ValueError(
            f"task {name!r}: `paths` has no split; expected a dictionary from split to file"
        )


def register_pairs(
    name: str,
    rows: Callable[[str], Mapping[str, list[str]]],
    splits: Iterable[str],
    template: str,
    identity: Sequence[str] = ("document",),
) -> seqio.Task:
    """Registers a task over columns of strings in memory.

    Args:
        rows: returns, for a split, the columns `document` and `summary` of equal length; further
            columns are kept as fields.
        name, template: see `register`.
        identity: columns whose hash is the example id; if a document occurs in several rows, these
            columns must distinguish them.
    """
    return register_columns(name, rows, splits, preprocessors(template, identity=identity))


def register_columns(
    name: str,
    rows: Callable[[str], Mapping[str, list[str]]],
    splits: Iterable[str],
    steps: Sequence[Callable[..., tf.data.Dataset]],
    names: Sequence[str] = ("inputs", "targets"),
) -> seqio.Task:
    """Registers a task as `register_pairs` does, with other preprocessors and feature names."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # rows keep the file's order; the data loader shuffles
        columns = {key: tf.constant(column, tf.string) for key, column in rows(split).items()}
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=splits),
        preprocessors=steps,
        output_features=features(names),
    )


def preprocessors(
    template: str,
    outputs: Mapping[str, str] = _SUMMARY,
    identity: Sequence[str] = ("document",),
    keep_end: bool = False,
) -> list[Callable[..., tf.data.Dataset]]:
    """Return preprocessors that convert rows of columns to the examples that `dera_jax.data` reads.

    Args:
        template: see `register`.
        outputs: column of each output feature; the document is the column `document`.
        identity: columns whose hash is the example id.
        keep_end: truncate documents that are too long at their beginning, not at their end.
    """
    check_template(template, "the task")
    settings = {"template": template, "outputs": outputs, "identity": identity}
    return [functools.partial(_to_example, **settings, keep_end=keep_end)]


def features(names: Sequence[str] = ("inputs", "targets")) -> dict[str, seqio.Feature]:
    """Return seqio features of type string."""
    text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
    return dict.fromkeys(names, text)


def render(template: tf.Tensor, document: tf.Tensor) -> tf.Tensor:
    """Insert a document into a template; the result is the feature `inputs`."""
    before, after = tf.unstack(tf.strings.split(template, DOCUMENT), num=2)
    return tf.strings.join([before, document, after])


@seqio.map_over_dataset
def _to_example(
    row: dict[str, tf.Tensor],
    template: str,
    outputs: Mapping[str, str],
    identity: Sequence[str],
    keep_end: bool,
) -> dict[str, tf.Tensor]:
    others = {key: value for key, value in row.items() if key not in outputs.values()}
    number = tf.strings.to_hash_bucket_fast(
        tf.strings.join([row[key] for key in identity], "\x1f"), 2**31 - 1
    )
    template = tf.constant(template)
    return (
        others
        | {"inputs": render(template, row["document"]), "template": template}
        | {feature: row[column] for feature, column in outputs.items()}
        | {"example_id": tf.cast(number, tf.int32), "keep_end": tf.constant(keep_end)}
    )


def read(path: str, need_summaries: bool) -> dict[str, list[str]]:
    """Reads and validates a file of `{"document", "summary"}` lines.

    Returns:
        The columns `document` and `summary`, which holds empty strings if the file has no
        summaries; if the file has them, also `keywords` (one keyword per line of the string) and
        `weight`.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: a line is not an object, a value is not a string, keywords are not a list of
            strings, or a weight is not a number.
        ValueError: a line is not valid JSON, lacks a key, has an empty document or summary, a
            keyword without a letter or digit, or a negative weight; or only some lines have a
            summary, keywords or a weight. These errors name the file and the line.
    """

    def parse(row: dict[str, object], where: str) -> list[Row]:
        keys = ["document", "summary"] if "summary" in row or need_summaries else ["document"]
        more = keywords_of(row, where) | weight_of(row, where)
        return [{key: text_of(row, key, where) for key in keys} | more]

    return with_summaries(read_columns(path, parse))


def with_summaries(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the columns with a column of empty summaries if they have none."""
    return columns | {"summary": columns.get("summary", [""] * len(columns["document"]))}


def read_columns(path: str, parse: Parse, leave_out_bad: bool = False) -> dict[str, list[str]]:
    """Reads a file of JSON objects, one per line; a file that ends in `.gz` is decompressed.

    Args:
        path: of the file.
        parse: maps an object and its place ("file, line 3") to rows; raises TypeError or
            ValueError, naming the place, for an invalid object.
        leave_out_bad: skip invalid lines with one warning, instead of raising an error.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError, ValueError: a line is invalid, its rows have other keys than the first row, or
            the file has no (valid) line.
    """
    rows: list[tuple[str, Row]] = []
    bad: list[str] = []
    for where, line in json_lines.lines(path):
        try:
            value = json_lines.read_object(line, where)
            rows += [(where, row) for row in parse(value, where)]
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


def folder_of(variable: str, task: str, files: str) -> str:
    """Return the folder that an environment variable names; raises ValueError if it is not set."""
    folder = os.environ.get(variable)
    if not folder:
        raise ValueError(f"task {task!r}: set {variable} to a folder with {files}")
    return folder


def _check_keys(row: Row, expected: Iterable[str], where: str) -> None:
    for key in sorted(row.keys() ^ set(expected)):
        raise ValueError(
            f"{where}: {'a' if key in row else 'no'} {key!r}, unlike the lines before; "
            "either all lines of a file or none must have this key"
        )


def _rows(paths: Mapping[str, str], split: str) -> dict[str, list[str]]:
    return read(paths[split], need_summaries=split in NEED_SUMMARIES)


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
