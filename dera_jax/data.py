"""From a seqio task to examples as arrays, read as a whole (int32 ids, 4 bytes a token).

The batch of a step is a pure function of (task, split, lengths, seed, step): the same whatever the
number of processes, and wherever a run was killed and resumed.

A task registers itself when its module is imported (`import tasks`), as everywhere in seqio.

Axes: n examples of one epoch, S input length, T target length, W keywords, L bytes.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import seqio
import tensorflow as tf

from dera_jax import checks, truncation
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary, check_end, check_same
from dera_jax.example_ids import distinct
from dera_jax.examples import Batch, Examples, train_batches
from dera_jax.models.language_model import Prompts
from dera_jax.rewards.word_hashes import keyword_bytes

_FEATURES = ("inputs", "targets")
_REJECTED = "rejected"  # what tasks of pairs have beside their targets
_KEYWORDS = "keywords"  # a task's text field: one keyword per line

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Data:
    """A seqio task to train on.

    Attributes:
        task: its name.
        inputs: tokens of an input, the end of sequence included.
        targets: tokens of a target, likewise.
        batch_size: examples of a step.
        split: to train on.

    Raises:
        ValueError: unknown task or split, or a size that is not positive.
    """

    task: str
    inputs: int
    targets: int
    batch_size: int
    split: str = "train"

    def __post_init__(self):
        sizes = dict.fromkeys(("inputs", "targets", "batch_size"), checks.whole(1))
        checks.check_fields(self, task=checks.TEXT, split=checks.TEXT, **sizes)
        self.check(self.split)

    def check(self, *splits: str, pairs: bool = False) -> None:
        """Raises ValueError unless the task has these splits, and is one of pairs if it is to be."""
        check_task(self.task, *splits)
        if pairs:
            check_pairs(self.task, self.split)

    @property
    def name(self) -> str:
        """For messages."""
        return f"task {self.task!r}"

    def described(self) -> dict[str, object]:
        """The attributes, for the card of a model."""
        return dataclasses.asdict(self)

    def vocabulary(self) -> Vocabulary:
        """See `vocabulary_of`."""
        return vocabulary_of(self.task)

    def read(self, split: str, seed: int = 0) -> Examples:
        """One pass over a split; raises as `epoch`."""
        return epoch(self.task, split, {"inputs": self.inputs, "targets": self.targets}, seed)

    def batches(
        self,
        seed: int,
        start_step: int,
        with_documents: bool = False,
        check_documents: Callable[[Sequence[str]], None] | None = None,
    ) -> Iterator[Batch]:
        """The endless batches of training, see `examples.train_batches`.

        `check_documents` is called once with the texts of the first epoch, such as a reward's.
        """
        checked = check_documents is None

        def read(seed: int) -> Examples:
            nonlocal checked
            found = self.read(self.split, seed)
            if not checked:
                check_documents(found.documents)
                checked = True
            return found

        return train_batches(read, self.batch_size, seed, start_step, with_documents)

    def left_out(self) -> dict[str, dict[str, int]]:
        """By split and reason the examples that were left out, see `truncation`."""
        counts = {x: truncation.left_out(self.task, x) for x in (self.split, "validation", "test")}
        return {split: reasons for split, reasons in counts.items() if reasons}


def epoch(task_name: str, split: str, lengths: Mapping[str, int], seed: int) -> Examples:
    """Reads one pass of a seqio task or mixture.

    Args:
        task_name: a registered seqio task or mixture with features `inputs` and `targets`.
        split: one of its splits.
        lengths: S under `inputs` and T under `targets`, in tokens, the end of sequence included.
        seed: for preprocessors that draw (span corruption); others ignore it.

    Returns:
        The examples. What is too long is cut, still ends in EOS if the feature does, and is
        reported once per task, split and feature. Examples of which cutting leaves nothing are left
        out and reported with their ids, see `truncation`.

    Raises:
        ValueError: unknown task or split, a length missing or not positive, no example in the
            split, none of which cutting leaves something, or a vocabulary without an end token.
    """
    _check_lengths(lengths)
    task = _task(task_name, split)
    lengths = {name: lengths[name] for name in _FEATURES}
    if _REJECTED in task.output_features:
        lengths[_REJECTED] = lengths["targets"]
    for name in lengths:  # their errors say more than TensorFlow's graph
        check_end(as_stored(task.output_features[name].vocabulary), f"task {task_name!r}")
    dataset = task.get_dataset(
        lengths,
        split,
        shuffle=False,
        seed=seed,
        num_epochs=1,  # a mixture would otherwise repeat for ever
        trim_output_features=False,
        try_in_mem_cache=False,  # what is read is kept here
    )
    rows = list(dataset.as_numpy_iterator())
    if not rows:
        raise ValueError(f"task {task_name!r} has no example in split {split!r}")
    ids = {
        name: truncation.fit(task, name, rows, length, split) for name, length in lengths.items()
    }
    example_id = distinct(
        np.array([row.get("example_id", i) for i, row in enumerate(rows)], np.int32),
        f"{task_name}, {split}",
    )
    kept = truncation.leave_out(task, split, lengths, rows, ids)
    if not kept.all():
        rows = [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]
        example_id, ids = jax.tree.map(lambda x: x[kept], (example_id, ids))
    rows = truncation.drop_lost_keywords(task, split, rows, ids["inputs"])
    notes = _notes(rows)
    return Examples(
        inputs=Prompts(ids["inputs"].tokens, ids["inputs"].lengths),
        targets=ids["targets"],
        example_id=example_id,
        documents=_texts(task, "inputs", rows),
        summaries=_texts(task, "targets", rows),
        notes=notes,
        rejected=ids.get(_REJECTED),
        keywords=_keywords(notes),
    )


def vocabulary_of(task_name: str) -> Vocabulary:
    """The vocabulary of a task, as model folders store it.

    Raises:
        ValueError: unknown task, features of different vocabularies, as `as_stored`, or no end
            token.
    """
    features = _task(task_name).output_features
    found = as_stored(features["targets"].vocabulary)
    check_end(found, f"task {task_name!r}")
    for name in (*_FEATURES, _REJECTED):
        if name in features and features[name].vocabulary != features["targets"].vocabulary:
            theirs = as_stored(features[name].vocabulary)
            check_same(found, theirs, f"targets of task {task_name!r}", f"{name} of it")
    return found


def check_task(task_name: str, *splits: str) -> None:
    """Checks that a task has features `inputs` and `targets`, and these splits; reads nothing.

    Raises:
        ValueError: unknown task, with near matches, or split.
    """
    _task(task_name, *splits)


def as_stored(vocabulary: seqio.Vocabulary) -> Vocabulary:
    """A seqio vocabulary as model folders store it.

    Raises:
        ValueError: it is neither SentencePiece's, nor bytes, nor a model's own
            (`tasks.vocabularies.of_model`), or its file cannot be read.
    """
    if hasattr(vocabulary, "stored"):
        return vocabulary.stored
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
    """Reads the file, and makes it first where that is done on first use."""
    try:
        vocabulary.vocab_size  # noqa: B018
    except (OSError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError: SentencePiece's
        file = getattr(vocabulary, "sentencepiece_model_file", "")
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the task's vocabulary {file} cannot be read ({reason}). For tasks with T5's public "
            "vocabulary, such as 'xsum', set DERA_JAX_T5_VOCABULARY to a local copy of its "
            "sentencepiece.model (tasks/xsum.py says where the texts go); or set TASK to another "
            "task: docstrings and newswire need no files"
        ) from error


def check_pairs(task_name: str, split: str) -> None:
    """Raises ValueError unless the task is one of pairs, with a feature `rejected`."""
    features = _task(task_name, split).output_features
    if _REJECTED not in features:
        raise ValueError(
            f"task {task_name!r} has no pairs: expected a feature {_REJECTED!r} (see "
            f"tasks.preferences), found {sorted(features)}"
        )


def _check_lengths(lengths: Mapping[str, int]) -> None:
    for name in _FEATURES:
        if name not in lengths:
            raise ValueError(
                f"lengths: expected the keys {list(_FEATURES)}, found {sorted(lengths)}; "
                f"add a number of tokens for {name!r}"
            )
        checks.check(f"lengths[{name!r}]", lengths[name], checks.whole(1))


def _task(name: str, *splits: str) -> seqio.Task | seqio.Mixture:
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
    missing = [feature for feature in _FEATURES if feature not in task.output_features]
    if missing:
        raise ValueError(
            f"task {name!r}: expected the features {list(_FEATURES)}, "
            f"found {sorted(task.output_features)}"
        )
    return task


def _texts(task: seqio.Task | seqio.Mixture, name: str, rows: list[Row]) -> list[str]:
    if f"{name}_pretokenized" in rows[0]:
        return [row[f"{name}_pretokenized"].decode() for row in rows]
    vocabulary = task.output_features[name].vocabulary
    return [vocabulary.decode(row[name].tolist()) for row in rows]


def _notes(rows: list[Row]) -> dict[str, list[str]]:
    names = [
        name
        for name, value in rows[0].items()
        if isinstance(value, bytes) and not name.endswith("_pretokenized")
    ]
    return {name: [row[name].decode() for row in rows] for name in names}


def _keywords(notes: dict[str, list[str]]) -> np.ndarray | None:
    if _KEYWORDS not in notes:
        return None
    return keyword_bytes([text.split("\n") if text else [] for text in notes[_KEYWORDS]])
