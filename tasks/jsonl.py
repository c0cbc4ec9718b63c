"""A seqio task over a user's own files of `{"document": ..., "summary": ...}` lines.

    from tasks import jsonl
    jsonl.register(
        "my_news",
        {"train": "news/train.jsonl", "validation": "news/dev.jsonl", "test": "news/test.jsonl"},
    )

in a module that the gin file imports. The task yields texts, as all tasks here do: the model that
reads them encodes them. A line may also have `"keywords": ["solar power", ...]`, which
the reward for keyword coverage reads, and `"weight": 0.5`, how much it counts in training (else 1);
other keys are ignored. A bad line stops the run, with its file
and number: nothing is skipped. What a file may look like: `tasks.json_lines`.

Summaries: every line of a file has one, or none has. Files without can be sampled from, and their
targets are empty; `train` and `validation` must have summaries.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import seqio
import tensorflow as tf

from dera_jax.log import warn_once
from dera_jax.prompts import DOCUMENT, check_template
from dera_jax.rewards.segmentation import words_of
from tasks import json_lines

NEED_SUMMARIES = ("train", "validation")
SUMMARIZE = "summarize: {document}"  # as T5 was trained
_SUMMARY = {"targets": "summary"}
_MOST_REASONS = 10  # shown in the log, of lines that were left out

Row = dict[str, str]
Parse = Callable[[dict[str, object], str], Iterable[Row]]


def register(name: str, paths: Mapping[str, str], template: str = SUMMARIZE) -> seqio.Task:
    """Registers a task that reads one JSONL file per split.

    Args:
        name: of the task; each name can be registered once.
        paths: file by split, local or `gs://`; read when the split is, not before.
        template: what the model is asked about each document, with one slot {document}.

    Raises:
        ValueError: no split, no slot, or the name is taken. Reading a split raises as `read`.
    """
    check_paths(name, paths)
    return register_pairs(name, functools.partial(_rows, dict(paths)), list(paths), template)


def check_paths(name: str, paths: Mapping[str, str]) -> None:
    """Raises ValueError if there is no file at all."""
    if not paths:
        raise ValueError(f"task {name!r}: `paths` has no split; expected split -> file")


def register_pairs(
    name: str,
    rows: Callable[[str], Mapping[str, list[str]]],
    splits: Iterable[str],
    template: str,
    identity: Sequence[str] = ("document",),
) -> seqio.Task:
    """Registers a task over columns of text held in memory.

    Args:
        rows: for a split, equally long columns `document` and `summary`; further ones are kept.
        name, template: see `register`.
        identity: the columns whose hash is an example's id; where a document occurs several times,
            these have to tell its rows apart.
    """
    return register_columns(name, rows, splits, preprocessors(template, identity=identity))


def register_columns(
    name: str,
    rows: Callable[[str], Mapping[str, list[str]]],
    splits: Iterable[str],
    steps: Sequence[Callable[..., tf.data.Dataset]],
    names: Sequence[str] = ("inputs", "targets"),
) -> seqio.Task:
    """As `register_pairs`, for other `preprocessors`, and names of features, than a summary's."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # the order is the file's; the loader shuffles
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
    """From rows of columns to examples as `dera_jax.data` reads them.

    Args:
        template: see `register`.
        outputs: column by feature; the document is the column `document`.
        identity: the columns whose hash is an example's id.
        keep_end: of documents that are too long cut the beginning, not the end.
    """
    check_template(template, "the task")
    settings = {"template": template, "outputs": outputs, "identity": identity}
    return [functools.partial(_to_example, **settings, keep_end=keep_end)]


def features(names: Sequence[str] = ("inputs", "targets")) -> dict[str, seqio.Feature]:
    """Features that are texts."""
    text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
    return dict.fromkeys(names, text)


def render(template: tf.Tensor, document: tf.Tensor) -> tf.Tensor:
    """The feature `inputs`: a template with its document, as text."""
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
    """Reads and checks a file of `{"document", "summary"}` lines.

    Returns:
        The columns `document` and `summary`, the latter of empty texts if the file has none, and if
        it has them `keywords`, one on each line of a text, and `weight`.

    Raises:
        FileNotFoundError: no such file.
        TypeError: with file and line number: not an object, a value that is not a text, keywords
            that are no list of texts, a weight that is no number.
        ValueError: with file and line number: not JSON, a key missing, an empty document or
            summary, a keyword without a letter or digit, a weight that is negative, or a summary,
            keywords or a weight in some lines only.
    """

    def parse(row: dict[str, object], where: str) -> list[Row]:
        keys = ["document", "summary"] if "summary" in row or need_summaries else ["document"]
        more = keywords_of(row, where) | weight_of(row, where)
        return [{key: text_of(row, key, where) for key in keys} | more]

    return with_summaries(read_columns(path, parse))


def with_summaries(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """The columns, with one of empty summaries if there is none."""
    return columns | {"summary": columns.get("summary", [""] * len(columns["document"]))}


def read_columns(path: str, parse: Parse, leave_out_bad: bool = False) -> dict[str, list[str]]:
    """Reads a file of JSON objects, one per line; one that ends in `.gz` is unpacked on the way.

    Args:
        path: of the file.
        parse: from an object and where it stands ("file, line 3") to the rows it makes; raises
            TypeError or ValueError, with that place, for an object that it refuses.
        leave_out_bad: leave out the lines that are refused, which the log reports, instead of
            stopping at the first one.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: a line that is refused, or whose rows have other keys than the first;
            an empty file, or one of which no line is left.
    """
    found: list[tuple[str, Row]] = []
    bad: list[str] = []
    for where, line in json_lines.lines(path):
        try:
            row = json_lines.read_object(line, where)
            found += [(where, made) for made in parse(row, where)]
        except (TypeError, ValueError) as error:
            if not leave_out_bad:
                raise
            bad.append(str(error))
    if bad:
        shown = "\n".join(bad[:_MOST_REASONS])
        message = f"{path}: left out {len(bad)} lines, the first of them:\n{shown}"
        if not found:
            raise ValueError(f"{message}\nno line is left")
        warn_once(message)
    first = found[0][1].keys()
    for where, row in found:
        _check_keys(row, first, where)
    return {key: [row[key] for _, row in found] for key in first}


def folder_of(variable: str, task: str, files: str) -> str:
    """The folder that an environment variable names; raises ValueError if it is not set."""
    folder = os.environ.get(variable)
    if not folder:
        raise ValueError(f"task {task!r}: set {variable} to a folder with {files}")
    return folder


def _check_keys(row: Row, expected: Iterable[str], where: str) -> None:
    for key in sorted(row.keys() ^ set(expected)):
        raise ValueError(
            f"{where}: {'a' if key in row else 'no'} {key!r}, unlike the lines before; "
            "either every line of a file has one or none"
        )


def _rows(paths: Mapping[str, str], split: str) -> dict[str, list[str]]:
    return read(paths[split], need_summaries=split in NEED_SUMMARIES)


def text_of(row: dict[str, object], key: str, where: str) -> str:
    """The text under `key`, which has to be there and to say something."""
    if key not in row:
        raise ValueError(f"{where}: key {key!r} is missing, found {sorted(row)}")
    text = row[key]
    if not isinstance(text, str):
        raise TypeError(f"{where}: {key!r} must be a text, found {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{where}: {key!r} is empty")
    check_unicode(text, key, where)
    return text


def keywords_of(row: dict[str, object], where: str) -> Row:
    """The column `keywords` of a line that has a list of them, possibly an empty one."""
    if "keywords" not in row:
        return {}
    found = row["keywords"]
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise TypeError(f"{where}: 'keywords' must be a list of texts, found {found!r}")
    for keyword in found:
        check_unicode(keyword, "keywords", where)
        if not words_of(keyword):
            raise ValueError(f"{where}: the keyword {keyword!r} has no letter or digit")
    return {"keywords": "\n".join(" ".join(x.split()) for x in found)}


def weight_of(row: dict[str, object], where: str) -> Row:
    """The column `weight` of a line that has one, as text."""
    if "weight" not in row:
        return {}
    found = row["weight"]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError(f"{where}: 'weight' must be a number, found {found!r}")
    if not 0 <= found < float("inf"):
        raise ValueError(f"{where}: 'weight' must be a finite number of at least 0, found {found}")
    return {"weight": repr(float(found))}


def check_unicode(text: str, key: str, where: str) -> None:
    """Raises ValueError if a text has half a character, as JSON can spell it: "\\ud83d"."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {key!r} is not valid Unicode: {error}") from error
