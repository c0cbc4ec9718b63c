"""A seqio task over a user's own files of `{"document": ..., "summary": ...}` lines.

    from tasks import jsonl, vocabularies
    jsonl.register(
        "my_news",
        {"train": "news/train.jsonl", "validation": "news/dev.jsonl", "test": "news/test.jsonl"},
        vocabularies.sentencepiece("news/pieces.model"),
    )

in a module that the gin file imports. Other keys of a line are ignored. A bad line stops the run,
with its file and number: nothing is skipped.

Summaries: every line of a file has one, or none has. Files without can be sampled from, and their
targets hold the end of sequence only; `train` and `validation` must have summaries.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping

import seqio
import tensorflow as tf

_NEED_SUMMARIES = ("train", "validation")


def register(
    name: str, paths: Mapping[str, str], vocabulary: seqio.Vocabulary, prefix: str = "summarize: "
) -> seqio.Task:
    """Registers a task that reads one JSONL file per split.

    Args:
        name: of the task; each name can be registered once.
        paths: file by split, local or `gs://`; read when the split is, not before.
        vocabulary: for documents and summaries.
        prefix: what the model sees before each document, T5's by default.

    Raises:
        ValueError: no split, or the name is taken. Reading a split raises as `read`.
    """
    if not paths:
        raise ValueError(f"task {name!r}: `paths` has no split; expected split -> file")
    return register_pairs(
        name, functools.partial(_rows, dict(paths)), list(paths), vocabulary, prefix
    )


def register_pairs(
    name: str,
    rows: Callable[[str], Mapping[str, list[str]]],
    splits: Iterable[str],
    vocabulary: seqio.Vocabulary,
    prefix: str,
) -> seqio.Task:
    """Registers a task over columns of text held in memory.

    Args:
        rows: for a split, equally long columns `document` and `summary`; further ones are kept.
        name, vocabulary, prefix: see `register`.
    """

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # the order is the file's; the loader shuffles
        columns = {key: tf.constant(column, tf.string) for key, column in rows(split).items()}
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=splits),
        preprocessors=preprocessors(prefix),
        output_features=features(vocabulary),
    )


def preprocessors(prefix: str) -> list[Callable[..., tf.data.Dataset]]:
    """From rows with `document` and `summary` to ids; an example's id is its document's hash."""
    return [
        functools.partial(_to_example, prefix=prefix),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim,
    ]


def features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """Inputs and targets in one vocabulary, both with an end of sequence."""
    return {
        name: seqio.Feature(vocabulary, add_eos=True, required=True)
        for name in ("inputs", "targets")
    }


@seqio.map_over_dataset
def _to_example(row: dict[str, tf.Tensor], prefix: str) -> dict[str, tf.Tensor]:
    others = {key: value for key, value in row.items() if key not in ("document", "summary")}
    identity = tf.strings.to_hash_bucket_fast(row["document"], 2**31 - 1)
    return others | {
        "inputs": tf.strings.join([prefix, row["document"]]),
        "targets": row["summary"],
        "example_id": tf.cast(identity, tf.int32),
    }


def read(path: str, need_summaries: bool) -> dict[str, list[str]]:
    """Reads and checks a file of `{"document", "summary"}` lines.

    Returns:
        The columns `document` and `summary`, the latter of empty texts if the file has none.

    Raises:
        FileNotFoundError: no such file.
        TypeError: with file and line number: not an object, a value that is not a text.
        ValueError: with file and line number: not JSON, a key missing, an empty document or
            summary, a summary in some lines only.
    """
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(f"{path}: no such JSONL file")
    documents: list[str] = []
    summaries: list[str] = []
    with tf.io.gfile.GFile(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            row = _object(line, where)
            documents.append(_text(row, "document", where))
            if "summary" in row or need_summaries:
                summaries.append(_text(row, "summary", where))
            if len(summaries) not in (0, len(documents)):
                raise ValueError(
                    f"{where}: {'a' if 'summary' in row else 'no'} 'summary', unlike the lines "
                    "before; either every line of a file has one or none"
                )
    return {"document": documents, "summary": summaries or [""] * len(documents)}


def _rows(paths: Mapping[str, str], split: str) -> dict[str, list[str]]:
    return read(paths[split], need_summaries=split in _NEED_SUMMARIES)


def _object(line: bytes, where: str) -> dict[str, object]:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both of this kind
        raise ValueError(f"{where}: not valid JSON in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise TypeError(f"{where}: expected an object, found {type(row).__name__}")
    return row


def _text(row: dict[str, object], key: str, where: str) -> str:
    if key not in row:
        raise ValueError(f"{where}: key {key!r} is missing, found {sorted(row)}")
    text = row[key]
    if not isinstance(text, str):
        raise TypeError(f"{where}: {key!r} must be a text, found {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{where}: {key!r} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a character, as in "\ud83d"
        raise ValueError(f"{where}: {key!r} is not valid Unicode: {error}") from error
    return text
