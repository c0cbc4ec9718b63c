"""seqio tasks by their names: what they yield, and what their ids mean; nothing is read."""

import difflib

import seqio
import tensorflow as tf

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary, check_end, check_same

FEATURES = ("inputs", "targets")
REJECTED = "rejected"  # what tasks of pairs have beside their targets


def check_task(task_name: str, *splits: str) -> None:
    """Checks that a task has features `inputs` and `targets`, and these splits; reads nothing.

    Raises:
        ValueError: unknown task, with near matches, or split.
    """
    find_task(task_name, *splits)


def yields_text(task: seqio.Task | seqio.Mixture) -> bool:
    """Whether a task leaves it to the model to encode its texts."""
    return tf.as_dtype(task.output_features["inputs"].dtype) == tf.string


def known_vocabulary(task_name: str, named: Vocabulary | None = None) -> Vocabulary | None:
    """What the ids of a run mean, as far as its data say it.

    Args:
        task_name: of a task that yields ids, which says it, or texts, which does not.
        named: VOCABULARY of the run.

    Raises:
        ValueError: unknown task, features of different vocabularies, as `as_stored`, no end token, or
            another vocabulary than the one named.
    """
    task = find_task(task_name)
    if yields_text(task):
        return named
    features = task.output_features
    found = as_stored(features["targets"].vocabulary)
    check_end(found, f"task {task_name!r}")
    for name in (*FEATURES, REJECTED):
        if name in features and features[name].vocabulary != features["targets"].vocabulary:
            theirs = as_stored(features[name].vocabulary)
            check_same(found, theirs, f"targets of task {task_name!r}", f"{name} of it")
    if named is not None:
        check_same(found, named, f"task {task_name!r}", "VOCABULARY")
    return found


def as_stored(vocabulary: seqio.Vocabulary) -> Vocabulary:
    """A seqio vocabulary as model folders store it.

    Raises:
        ValueError: it is neither SentencePiece's nor bytes, or its file cannot be read.
    """
    _read(vocabulary)
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return SentencePieceVocabulary(vocabulary.sentencepiece_model_file, vocabulary.extra_ids)
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteVocabulary(vocabulary.extra_ids)
    raise ValueError(
        f"a vocabulary of the kind {type(vocabulary).__name__} does not say what text its ids stand "
        "for; supported are seqio.SentencePieceVocabulary and seqio.ByteVocabulary"
    )


def _read(vocabulary: seqio.Vocabulary) -> None:
    """Reads the file."""
    try:
        vocabulary.vocab_size  # noqa: B018
    except (OSError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError: SentencePiece's
        file = getattr(vocabulary, "sentencepiece_model_file", "")
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the task's vocabulary {file} cannot be read ({reason}); register the task with a local "
            "copy of it, or as texts (tasks.jsonl), which the model encodes"
        ) from error


def check_pairs(task_name: str, split: str) -> None:
    """Raises ValueError unless the task is one of pairs, with a feature `rejected`."""
    features = find_task(task_name, split).output_features
    if REJECTED not in features:
        raise ValueError(
            f"task {task_name!r} has no pairs: expected a feature {REJECTED!r} (see "
            f"tasks.preferences), found {sorted(features)}"
        )


def find_task(name: str, *splits: str) -> seqio.Task | seqio.Mixture:
    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise ValueError(
            f"unknown task {name!r}; registered: {', '.join(near) or 'none'}. A task is known "
            "once the module that registers it has been imported (`import tasks`)"
        )
    task = seqio.get_mixture_or_task(name)
    for split in splits:
        if split not in task.splits:
            raise ValueError(f"task {name!r} has no split {split!r}, only {sorted(task.splits)}")
    missing = [feature for feature in FEATURES if feature not in task.output_features]
    if missing:
        raise ValueError(
            f"task {name!r}: expected the features {list(FEATURES)}, "
            f"found {sorted(task.output_features)}"
        )
    return task
