"""Looks up seqio tasks by name and checks their features and vocabularies, without reading data.

The functions import seqio, the module does not: jobs that read no task do not need the extra
`seqio`. Without it, each of them raises ModuleNotFoundError, see `seqio_extra`.
"""

import difflib
import importlib
from typing import TYPE_CHECKING

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary, check_end, check_same

if TYPE_CHECKING:
    import seqio

FEATURES = ("inputs", "targets")
REJECTED = "rejected"  # the additional feature of preference tasks
_OUR_TASKS = "dera_jax.tasks"  # the package that registers this library's tasks when it is imported


def check_task(task_name: str, *splits: str) -> None:
    """Check that a task has the features `inputs` and `targets` and these splits.

    Raises:
        ValueError: the task is unknown (the message lists similar names), or a feature or a split
            is missing.
    """
    find_task(task_name, *splits)


def is_mixture(task: "seqio.Task | seqio.Mixture") -> bool:
    """Return whether this is a mixture of tasks."""
    from dera_jax.data.seqio_extra import seqio

    return isinstance(task, seqio.Mixture)


def yields_text(task: "seqio.Task | seqio.Mixture") -> bool:
    """Return whether a task yields text, which the model's tokenizer encodes, and not token ids."""
    from dera_jax.data.seqio_extra import tf

    return tf.as_dtype(task.output_features["inputs"].dtype) == tf.string


def known_vocabulary(task_name: str, named: Vocabulary | None = None) -> Vocabulary | None:
    """Return the vocabulary of a task that yields ids, or `named` if the task yields text.

    Args:
        task_name: name of a registered task.
        named: the vocabulary bound to VOCABULARY in the run, if any.

    Raises:
        ValueError: the task is unknown, its features have different vocabularies, its vocabulary is
            not supported (see `as_stored`), has no end token, or differs from `named`.
    """
    task = find_task(task_name)
    if yields_text(task):
        return named
    features = task.output_features
    vocabulary = as_stored(features["targets"].vocabulary)
    check_end(vocabulary, f"task {task_name!r}")
    for name in (*FEATURES, REJECTED):
        if name in features and features[name].vocabulary != features["targets"].vocabulary:
            other = as_stored(features[name].vocabulary)
            check_same(
                vocabulary, other, f"targets of task {task_name!r}", f"{name} of the same task"
            )
    if named is not None:
        check_same(vocabulary, named, f"task {task_name!r}", "VOCABULARY")
    return vocabulary


def as_stored(vocabulary: "seqio.Vocabulary") -> Vocabulary:
    """Convert a seqio vocabulary to the form that model folders store.

    Raises:
        ValueError: it is neither a SentencePiece nor a byte vocabulary, or its file cannot be read.
    """
    from dera_jax.data.seqio_extra import seqio

    _read(vocabulary)
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return SentencePieceVocabulary(vocabulary.sentencepiece_model_file, vocabulary.extra_ids)
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteVocabulary(vocabulary.extra_ids)
    raise ValueError(
        f"vocabularies of type {type(vocabulary).__name__} are not supported, since they do not "
        "map ids to text; use seqio.SentencePieceVocabulary or seqio.ByteVocabulary"
    )


def _read(vocabulary: "seqio.Vocabulary") -> None:
    """Load the vocabulary file, so that errors are raised here."""
    from dera_jax.data.seqio_extra import tf

    try:
        vocabulary.vocab_size  # noqa: B018
    except (OSError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError: SentencePiece's
        file = getattr(vocabulary, "sentencepiece_model_file", "")
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the task's vocabulary {file} cannot be read ({reason}); register the task with a "
            "local copy of the file, or use a task of text (dera_jax.tasks.jsonl), which the model encodes"
        ) from error


def check_pairs(task_name: str, split: str) -> None:
    """Raise ValueError unless the task is a preference task, with a feature `rejected`."""
    features = find_task(task_name, split).output_features
    if REJECTED not in features:
        raise ValueError(
            f"task {task_name!r} has no preference pairs: expected a feature {REJECTED!r} (see "
            f"dera_jax.tasks.preferences), found {sorted(features)}"
        )


def find_task(name: str, *splits: str) -> "seqio.Task | seqio.Mixture":
    """Return a registered task or mixture; raises as `check_task`.

    The tasks of this library are registered when the first one is looked up, so that runs on a
    user's own files need no TensorFlow.
    """
    from dera_jax.data.seqio_extra import seqio

    if name not in _names():
        importlib.import_module(_OUR_TASKS)
    known = _names()
    if name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise ValueError(
            f"unknown task {name!r}; registered tasks: {', '.join(near) or 'none'}. Import the "
            "module that registers your task in the gin file; files of your own need no task: set "
            "TRAIN, VALIDATION and TEST"
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


def _names() -> list[str]:
    """Return the names of all registered tasks and mixtures, sorted."""
    from dera_jax.data.seqio_extra import seqio

    return sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
