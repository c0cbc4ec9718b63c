"""From a seqio task to numpy batches that depend on the step alone.

The batch of a step is a pure function of (task, split, lengths, seed, step): the same whatever the
number of processes, and wherever a run was killed and resumed. To keep it so, each process builds
the whole epoch in memory (int32 ids, 4 bytes a token) and takes its own rows of every batch.

A task registers itself when its module is imported (`import tasks`), as everywhere in seqio.

Axes: n examples of one epoch, B batch rows, S input length, T target length, W keywords, L bytes.
"""

import dataclasses
import difflib
import functools
import itertools
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
from dera_jax.models.language_model import Padded, Prompts
from dera_jax.rewards.word_hashes import keyword_bytes

_FEATURES = ("inputs", "targets")
_REJECTED = "rejected"  # what tasks of pairs have beside their targets
_KEYWORDS = "keywords"  # a task's text field: one keyword per line

Batch = dict[str, np.ndarray]
Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Examples:
    """One pass over a task, in the task's order.

    Attributes:
        inputs: prompts [n, S].
        targets: [n, T].
        example_id: int32 [n], all different: the task's own where they first occur, or the position
            if the task has none.
        documents: n texts, the uncut `inputs_pretokenized` (decoded ids if the task has none).
        summaries: n texts, the same for the targets.
        notes: every other string field of the task, by name, n texts each.
        rejected: [n, T], of tasks of pairs (`tasks.preferences`), where `targets` is chosen.
        keywords: uint8 [n, W, L] in UTF-8, of tasks with a field `keywords`, a keyword per line.
    """

    inputs: Prompts
    targets: Padded
    example_id: np.ndarray
    documents: list[str]
    summaries: list[str]
    notes: dict[str, list[str]]
    rejected: Padded | None = None
    keywords: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.example_id)

    def at(self, rows: np.ndarray | slice) -> "Examples":
        """The examples of these rows."""
        numbers = np.arange(len(self))[rows]
        pick = lambda texts: [texts[i] for i in numbers]
        columns = {
            name: None if x is None else jax.tree.map(lambda y: y[numbers], x)
            for name, x in _columns(self).items()
        }
        return Examples(
            documents=pick(self.documents),
            summaries=pick(self.summaries),
            notes={name: pick(texts) for name, texts in self.notes.items()},
            **columns,
        )


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


def target_vocabulary(task_name: str) -> seqio.Vocabulary:
    """The vocabulary of a task's targets, seqio's own; raises ValueError as `vocabulary_of`."""
    return _task(task_name).output_features["targets"].vocabulary


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


def train_batches(
    task_name: str,
    split: str,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int | None = None,
    process_count: int | None = None,
    with_documents: bool = False,
    check_documents: Callable[[Sequence[str]], None] | None = None,
) -> Iterator[Batch]:
    """Yields this process's rows of the batches of `start_step`, `start_step + 1`, ... for ever.

    Row i of step s is example s·B + i of the endless sequence epoch 0, epoch 1, ...: batches
    straddle epochs and every example comes once per epoch. Each epoch is read anew with a seed of
    its own, so that spans are corrupted differently, and put in an order of its own. (A mixture may
    hold a few examples more or fewer in a later epoch than in epoch 0, whose size counts: then so
    many are left out, or come twice.)

    Starting costs one pass over the task, or two if `start_step` lies beyond epoch 0.

    Args:
        task_name, split, lengths: see `epoch`.
        batch_size: B, rows of all processes together.
        seed: of the order and of the preprocessors.
        start_step: the first step wanted, from 0.
        process_index, process_count: JAX's own by default.
        with_documents: keep the texts in memory and yield them too.
        check_documents: called once with the texts of the first epoch, such as a reward's.

    Yields:
        inputs (`Prompts`), targets (`Padded`) and example_id int32 of B / processes examples, if the
        task has them `rejected` and `keywords`, and if wanted `documents`,
        texts; the processes' rows, concatenated, are the batch.

    Raises:
        ValueError: as `epoch`, or `batch_size` not divisible by the processes.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    seed = checks.check("train_batches.seed", seed, checks.SEED)

    @functools.lru_cache(maxsize=1)  # positions only grow, so one epoch at a time is enough
    def shuffled(number: int) -> tuple[Batch, np.ndarray]:
        examples = epoch(task_name, split, lengths, _epoch_seed(seed, number))
        if check_documents and number == 0:
            check_documents(examples.documents)
        arrays = _arrays(examples)
        if with_documents:
            arrays["documents"] = np.array(examples.documents, object)
        return arrays, _order(len(examples), seed, number)

    def batches() -> Iterator[Batch]:
        for step in itertools.count(start_step):
            position = step * batch_size + np.arange(rows.start, rows.stop)
            number, offset = np.divmod(position, size)
            yield _join([_take(*shuffled(int(e)), offset[number == e]) for e in np.unique(number)])

    size = len(shuffled(0)[1])  # before the first batch is asked for, so that errors come early
    return batches()


def eval_batches(
    examples: Examples,
    batch_size: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Iterator[Batch]:
    """Yields this process's rows of the batches of one pass, in order, each example exactly once.

    Row i of batch b is example b·B + i. The last batch is filled up with copies of the last example.

    Yields:
        As `train_batches`, and `valid` bool [B / processes], false for the filling.

    Raises:
        ValueError: `batch_size` not divisible by the processes.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    arrays = _arrays(examples)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(examples), batch_size):
            index = start + np.arange(rows.start, rows.stop)
            some = jax.tree.map(lambda x: x[np.minimum(index, len(examples) - 1)], arrays)  # noqa: B023
            yield some | {"valid": index < len(examples)}

    return batches()


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


def _process_rows(batch_size: int, index: int | None, count: int | None) -> range:
    """The rows of a batch of B that belong to one process."""
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    batch_size = checks.check("batch_size", batch_size, checks.whole(1))
    if batch_size % count:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {count} processes: "
            "it must be a positive multiple of their number"
        )
    share = batch_size // count
    return range(index * share, (index + 1) * share)


def _epoch_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _order(size: int, seed: int, number: int) -> np.ndarray:
    """A permutation for (seed, epoch): int [n]. Sorted raw draws, since numpy keeps the streams of
    its bit generators from version to version, but not what `permutation` makes of them."""
    draws = np.random.Philox(np.random.SeedSequence([seed, number])).random_raw(size)
    return np.argsort(draws, kind="stable")


def _columns(examples: Examples) -> dict[str, object]:
    names = (*_FEATURES, "example_id", _REJECTED, _KEYWORDS)
    return {name: getattr(examples, name) for name in names}


def _arrays(examples: Examples) -> Batch:
    return {name: x for name, x in _columns(examples).items() if x is not None}


def _take(arrays: Batch, order: np.ndarray, offset: np.ndarray) -> Batch:
    index = order[offset % len(order)]
    return jax.tree.map(lambda x: x[index], arrays)


def _join(parts: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
