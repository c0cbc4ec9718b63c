"""Registers a seqio task over a user's own files of `{"document": ..., "summary": ...}` lines.

    from dera_jax.tasks import jsonl
    jsonl.register(
        "my_news",
        {"train": "news/train.jsonl", "validation": "news/dev.jsonl", "test": "news/test.jsonl"},
    )

Call it in a module that the gin file imports. The task yields text, which the model's tokenizer
encodes. A line may also have `"keywords": ["solar power", ...]`, which the keyword coverage reward
reads, and `"weight": 0.5`, the weight of the example in training (1 by default); other keys are
ignored. An invalid line raises an error with its file and line number; no line is skipped. CSV and
Parquet files are accepted too (`dera_jax.data.tables`).

A run that reads one such file per split needs no task: see `dera_jax.data.own_files`.

Either every line of a file has a summary or none has. A file without summaries can be used for
sampling; its targets are empty. The splits `train` and `validation` must have summaries.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import seqio
import tensorflow as tf

from dera_jax.data import text_columns
from dera_jax.data.text_columns import NEED_SUMMARIES, Columns
from dera_jax.prompts import DOCUMENT, SUMMARIZE, check_template

_SUMMARY = {"targets": "summary"}


def register(
    name: str,
    paths: Mapping[str, str],
    template: str = SUMMARIZE,
    names: Mapping[str, str] | None = None,
) -> seqio.Task:
    """Registers a task that reads one file per split.

    Args:
        name: of the task; each name can be registered once.
        paths: file of each split, local or `gs://`; a file is read when its split is read.
        template: the prompt template, with one slot {document}.
        names: names of columns in the files, see `tables.rows`.

    Raises:
        ValueError: `paths` is empty, the template has no slot, or the name is already registered.
            Reading a split raises as `text_columns.read_summaries`.
    """
    check_paths(name, paths)
    rows = functools.partial(_rows, dict(paths), names)
    return register_pairs(name, rows, list(paths), template)


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
            columns are kept as fields. A column `example_id` holds the ids as decimal strings.
        name, template: see `register`.
        identity: columns whose hash is the example id, unless there is a column `example_id`; if a
            document occurs in several rows, these columns must distinguish them.
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
    template = tf.constant(template)
    return (
        others
        | {"inputs": render(template, row["document"]), "template": template}
        | {feature: row[column] for feature, column in outputs.items()}
        | {"example_id": _example_id(row, identity), "keep_end": tf.constant(keep_end)}
    )


def _example_id(row: dict[str, tf.Tensor], identity: Sequence[str]) -> tf.Tensor:
    if "example_id" in row:
        return tf.strings.to_number(row["example_id"], tf.int32)
    joined = tf.strings.join([row[key] for key in identity], "\x1f")
    return tf.cast(tf.strings.to_hash_bucket_fast(joined, 2**31 - 1), tf.int32)


def folder_of(variable: str, task: str, files: str) -> str:
    """Return the folder that an environment variable names; raises ValueError if it is not set."""
    folder = os.environ.get(variable)
    if not folder:
        raise ValueError(f"task {task!r}: set {variable} to a folder with {files}")
    return folder


def _rows(paths: Mapping[str, str], names: Mapping[str, str] | None, split: str) -> Columns:
    columns = text_columns.read_summaries(paths[split], split in NEED_SUMMARIES, names)
    return text_columns.with_ids(columns, text_columns.DOCUMENT)
