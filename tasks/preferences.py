"""Registers tasks of preference pairs: of two responses to a document, `chosen` is preferred.

    from dera_jax.tasks import preferences
    preferences.register(
        "my_pairs",
        {"train": "pairs/train.jsonl", "validation": "pairs/dev.jsonl", "test": "pairs/test.jsonl"},
    )

reads lines of `{"document": ..., "chosen": ..., "rejected": ...}`; `register_one_file` divides one
file among splits by given fractions. The features are `inputs` (the document in the template),
`targets` (the chosen response, so that the task can also be used for fine-tuning) and `rejected`.

Every preference task with a split `train` also has its two halves `train_a` and `train_b`, divided
by document, since a reward model and the model that evaluates the resulting policy should not be
trained on the same documents.

`"keywords"` may be a list of strings and `"weight"` a number, as in `dera_jax.tasks.jsonl`. Further keys
whose values are strings become fields of the task, and then every line must have them. Other values
are ignored. An invalid line raises an error with its file and line number. Whether a document
occurs in two files is not checked.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping

import seqio

from dera_jax.data import text_columns
from dera_jax.data.text_columns import PAIR, Columns
from dera_jax.tasks import jsonl, text

FEATURES = ("inputs", "targets", "rejected")
_OUTPUTS = {"targets": "chosen", "rejected": "rejected"}
_HALVES = {"train_a": 0.5, "train_b": 0.5}


def register(
    name: str,
    paths: Mapping[str, str],
    template: str = jsonl.SUMMARIZE,
    names: Mapping[str, str] | None = None,
) -> seqio.Task:
    """Registers a task that reads one file of pairs per split. Arguments as `jsonl.register`.

    Raises:
        ValueError: `paths` is empty, or the name is already registered. Reading a split raises as
            `text_columns.read_pairs`.
    """
    jsonl.check_paths(name, paths)
    files = dict(paths)
    return register_pairs(name, lambda split: _read(files[split], names), files, template)


def register_one_file(
    name: str,
    path: str,
    fractions: Mapping[str, float],
    template: str = jsonl.SUMMARIZE,
) -> seqio.Task:
    """Registers a task over one file of pairs, whose documents are divided among the splits.

    Args:
        name, template: see `register`.
        path: of the file, local or `gs://`; it is read when a split is read.
        fractions: fraction of the documents of each split, such as `{"train": 0.9, "validation":
            0.1}`.

    Raises:
        ValueError: as `split_rows`, or the name is already registered. Reading a split raises as
            `text_columns.read_pairs`.
    """
    check_fractions(fractions)
    rows = functools.partial(_rows_of_split, path, dict(fractions))
    return register_pairs(name, rows, list(fractions), template)


def register_pairs(
    name: str,
    rows: Callable[[str], Columns],
    splits: Iterable[str],
    template: str,
    key: Callable[[str], str] = str,
    keep_end: bool = False,
) -> seqio.Task:
    """Registers a task over columns of strings in memory.

    Args:
        rows: returns, for a split, the columns `document`, `chosen` and `rejected` of equal length;
            further columns are kept as fields.
        name, template: see `register`.
        key: maps a document to the string whose hash selects its half of `train`, by default
            itself.
        keep_end: truncate documents that are too long at their beginning, not at their end.
    """
    # A document may have several pairs, so that the id must depend on all three strings.
    steps = jsonl.preprocessors(template, _OUTPUTS, identity=PAIR, keep_end=keep_end)
    splits = list(splits)
    halves = list(_HALVES) if "train" in splits else []

    def columns(split: str) -> Columns:
        return split_rows(rows("train"), _HALVES, half)[split] if split in halves else rows(split)

    def half(document: str) -> str:  # differs from the hash that may have selected `train`
        return f"half of {key(document)}"

    return jsonl.register_columns(name, columns, splits + halves, steps, FEATURES)


def split_rows(
    rows: Columns, fractions: Mapping[str, float], key: Callable[[str], str] = str
) -> dict[str, dict[str, list[str]]]:
    """Divide rows among splits; all rows of one document go to the same split.

    The split is selected by a hash, so that adding or removing documents does not move others.

    Args:
        rows: columns, including `document`.
        fractions: fraction of the documents of each split; the order of the splits matters.
        key: maps a document to the string that is hashed, by default itself.

    Raises:
        ValueError: a fraction is not positive, or the fractions do not add up to 1.
    """
    check_fractions(fractions)
    where = [_split_of(key(document), fractions) for document in rows["document"]]
    return {
        split: {
            name: [value for value, other in zip(column, where, strict=True) if other == split]
            for name, column in rows.items()
        }
        for split in fractions
    }


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise ValueError if a fraction is not positive, or the fractions do not add up to 1."""
    for split, fraction in fractions.items():
        if not fraction > 0:
            raise ValueError(f"fractions[{split!r}]: expected a positive number, found {fraction}")
    if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise ValueError(
            f"fractions: expected numbers that add up to 1, found {dict(fractions)}, "
            f"which add up to {sum(fractions.values())}"
        )


def _read(path: str, names: Mapping[str, str] | None = None) -> Columns:
    return text_columns.with_ids(text_columns.read_pairs(path, names), PAIR)


def _rows_of_split(path: str, fractions: Mapping[str, float], split: str) -> Columns:
    return split_rows(_read(path), fractions)[split]


def _split_of(content: str, fractions: Mapping[str, float]) -> str:
    position = int(text.text_hash(content), 16) / 2**64  # in [0, 1)
    for split, fraction in fractions.items():
        position -= fraction
        if position < 0:
            return split
    return list(fractions)[-1]  # rounding: the fractions may add up to slightly less than 1
