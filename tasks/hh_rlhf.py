"""Registers the helpful and harmless dialogues that Anthropic published (Bai et al., 2022,
"Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback", arXiv
2204.05862).

Task `hh_rlhf` reads `train.jsonl.gz` and `test.jsonl.gz`, or the unpacked files, from the folder
named by `DERA_JAX_HH_RLHF` (local or `gs://`), one of the published folders such as `helpful-base`.
Lines are objects `{"chosen", "rejected"}`, two dialogues that differ in the last response only:

    "\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nHuman: ...\\n\\nAssistant: ..."

The document is the dialogue up to and including the last "Assistant:"; the two last responses are
the preference pair. Long dialogues are truncated at their beginning. The published data have no
validation split. 5 % of the training dialogues are used for it, selected by a hash of the first
turn, so that all pairs of one conversation are in the same split.

A line raises ValueError if its dialogues differ earlier, or if a response is empty or both are the
same. To train on files with such lines, use `register` with `leave_out_bad`.

TensorFlow Datasets does not have this data set. Use `register` for your own folder, under another
name.
"""

import functools
import os
from collections.abc import Callable

import seqio
import tensorflow as tf

from dera_jax.data import text_columns
from dera_jax.prompts import DOCUMENT
from dera_jax.tasks import jsonl, preferences

SPLITS = ("train", "validation", "test")
VALIDATION_FRACTION = 0.05
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def register(
    name: str,
    folder: str,
    validation_fraction: float = VALIDATION_FRACTION,
    leave_out_bad: bool = False,
) -> seqio.Task:
    """Registers a task over a folder of published files.

    Args:
        name: see `jsonl.register`.
        folder: with `train.jsonl` and `test.jsonl`, or with `train.jsonl.gz` and `test.jsonl.gz`.
        validation_fraction: fraction of the conversations in the training file to use for validation.
        leave_out_bad: skip invalid lines with a warning, instead of raising an error.

    Raises:
        ValueError: the fraction is not between 0 and 1, or the name is already registered. Reading
            a split raises as `text_columns.read_pairs`.
    """
    preferences.check_fractions(_fractions(validation_fraction))
    rows = functools.partial(_rows, folder, validation_fraction, leave_out_bad)
    return _register(name, rows)


def _register(name: str, rows: Callable[[str], dict[str, list[str]]]) -> seqio.Task:
    return preferences.register_pairs(name, rows, SPLITS, DOCUMENT, key=_opening, keep_end=True)


def _fractions(validation_fraction: float) -> dict[str, float]:
    return {"train": 1 - validation_fraction, "validation": validation_fraction}


def _rows(
    folder: str, validation_fraction: float, leave_out_bad: bool, split: str
) -> dict[str, list[str]]:
    path = _file(folder, "test" if split == "test" else "train")
    columns = text_columns.read_columns(path, _parse, leave_out_bad)
    if split == "test":
        return columns
    return preferences.split_rows(columns, _fractions(validation_fraction), key=_opening)[split]


def _file(folder: str, name: str) -> str:
    plain = os.path.join(folder, f"{name}.jsonl")
    return plain if tf.io.gfile.exists(plain) else f"{plain}.gz"


def _opening(document: str) -> str:
    """Return the first turn, which all pairs of a conversation share."""
    return document.partition(_ASSISTANT)[0]


def _parse(row: dict[str, object], where: str) -> list[dict[str, str]]:
    (prompt, chosen), (other, rejected) = (
        _divide(text_columns.text_of(row, key, where), key, where) for key in ("chosen", "rejected")
    )
    if prompt != other:
        raise ValueError(
            f"{where}: 'chosen' and 'rejected' differ before their last response, "
            f"from {_difference(prompt, other)!r} on"
        )
    return [text_columns.pair(prompt, chosen, rejected, where)]


def _divide(dialogue: str, key: str, where: str) -> tuple[str, str]:
    """Split a dialogue into (dialogue up to and including the last "Assistant:", last response)."""
    before, marker, answer = dialogue.rpartition(_ASSISTANT)
    if not marker or not dialogue.startswith(_HUMAN):
        raise ValueError(
            f"{where}: {key!r} must start with {_HUMAN!r} and contain {_ASSISTANT!r}, "
            f"found {dialogue[:60]!r}"
        )
    if _HUMAN in answer:
        raise ValueError(f"{where}: {key!r} must end with the assistant's response")
    if not answer.strip():
        raise ValueError(f"{where}: the last response of {key!r} is empty")
    return (before + marker).strip(), answer.strip()


def _difference(one: str, other: str) -> str:
    return one[len(os.path.commonprefix([one, other])) :][:60]


def _default_rows(split: str) -> dict[str, list[str]]:
    folder = jsonl.folder_of("DERA_JAX_HH_RLHF", "hh_rlhf", "train.jsonl.gz and test.jsonl.gz")
    return _rows(folder, VALIDATION_FRACTION, False, split)


_register("hh_rlhf", _default_rows)
