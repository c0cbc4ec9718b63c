"""Holds examples as arrays and forms the batches of training and evaluation from them.

Axes: n examples of one epoch, B examples of a batch, S input length, D document length, T target
length, W keywords, L bytes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.models.language_model import Padded, Prompts, check_padded, trim_padding
from dera_jax.partitioning import global_batch, mesh_in_use
from dera_jax.prompts import Prompt

Batch = dict[str, object]
_COLUMNS = ("inputs", "targets", "example_id", "document", "rejected", "keywords", "weight")


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Stores n sequences of token ids end to end and pads the rows that are indexed.

    Documents are not truncated, and one of them may be a hundred times as long as most, so that a
    padded array of all documents would waste memory.

    Attributes:
        ids: int32 [total], the concatenated sequences.
        ends: int64 [n], the end of each sequence in `ids`, exclusive.
    """

    ids: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """Concatenate n sequences of ids."""
        ids = np.fromiter(itertools.chain.from_iterable(sequences), np.int32)
        return cls(ids, np.cumsum([len(x) for x in sequences], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, rows: np.ndarray) -> Padded:
        """Return rows [B], padded to [B, D] where D is the longest length of all n sequences."""
        lengths = np.diff(self.ends, prepend=0)
        position = np.arange(max(int(lengths.max(initial=0)), 1))
        at = (self.ends - lengths)[rows, None] + position
        tokens = self.ids[np.minimum(at, len(self.ids) - 1)] if len(self.ids) else np.zeros_like(at)
        inside = position < lengths[rows, None]
        return Padded(np.where(inside, tokens, 0).astype(np.int32), lengths[rows].astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Holds the n examples of one pass over a task, in the task's order.

    Attributes:
        inputs: tokens [n, S] of the prompts.
        targets: tokens [n, T].
        example_id: int32 [n], all different: the id given by the task at its first occurrence, or
            the row number if the task has no ids.
        text_prompts: n prompts as text, with untruncated documents.
        summaries: the n untruncated targets as text.
        notes: every other string field of the task, by name, n strings each.
        document: tokens of the untruncated documents, without the prompt template.
        rejected: tokens [n, T] of rejected responses in preference tasks (`dera_jax.tasks.preferences`),
            where `targets` holds the chosen ones; None for other tasks.
        keywords: uint8 [n, W, L] in UTF-8, of tasks with a field `keywords`, one keyword per line.
        weight: float32 [n], weights in training losses, of tasks with a field `weight`; None if
            all are 1.

    Raises:
        ValueError: an array has the wrong dtype or shape, a length exceeds its row, an input has no
            token, a list has another length than n, or a weight is negative or not finite.
    """

    inputs: Prompts
    targets: Padded
    example_id: np.ndarray
    text_prompts: list[Prompt]
    summaries: list[str]
    notes: dict[str, list[str]]
    document: Ragged | Padded | None = None
    rejected: Padded | None = None
    keywords: np.ndarray | None = None
    weight: np.ndarray | None = None

    def __post_init__(self):
        n, _ = check_padded("Examples.inputs", self.inputs, least=1, n=None, S=None)
        _, size = check_padded("Examples.targets", self.targets, n=n, T=None)
        if self.rejected is not None:
            check_padded("Examples.rejected", self.rejected, n=n, T=size)
        array = checks.check_array
        array("Examples.example_id", self.example_id, "ids", np.integer, n=n)
        if self.keywords is not None:
            array("Examples.keywords", self.keywords, "bytes", np.uint8, n=n, W=None, L=None)
        if self.weight is not None:
            array("Examples.weight", self.weight, "numbers", np.floating, n=n)
            wrong = np.flatnonzero(~(np.isfinite(self.weight) & (self.weight >= 0)))
            if len(wrong):
                raise ValueError(
                    "Examples.weight must hold finite numbers of at least 0; found "
                    f"{self.weight[wrong[0]]} for the example with id {self.example_id[wrong[0]]}."
                )
        columns = {"text_prompts": self.text_prompts, "summaries": self.summaries, **self.notes}
        for name, column in columns.items():
            if isinstance(column, str) or len(column) != n:
                raise ValueError(f"Examples: {name} must hold n = {n} values, one for each input.")

    def __len__(self) -> int:
        return len(self.example_id)

    @property
    def documents(self) -> list[str]:
        """Return the n untruncated documents as strings."""
        return [prompt.document for prompt in self.text_prompts]

    @property
    def has_targets(self) -> bool:
        """Whether a target has more than its end token; False for documents without summaries."""
        return any(self.summaries) or bool(self.targets.lengths.max() > 1)

    def at(self, rows: np.ndarray | slice) -> "Examples":
        """Return the examples of these rows."""
        numbers = np.arange(len(self))[rows]
        pick = lambda column: [column[i] for i in numbers]
        columns = {
            name: None if x is None else jax.tree.map(lambda y: y[numbers], x)
            for name, x in _columns(self).items()
        }
        return Examples(
            text_prompts=pick(self.text_prompts),
            summaries=pick(self.summaries),
            notes={name: pick(column) for name, column in self.notes.items()},
            **columns,
        )


def train_batches(
    read: Callable[[int], Examples],
    batch_size: int,
    seed: int,
    start_step: int,
    with_documents: bool = False,
    process: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Yields this process's rows of the training batches from `start_step` on, without end.

    Row i of step s is example s·B + i of the concatenation of epoch 0, epoch 1, ... Batches may
    span two epochs, and every example occurs once per epoch. Each epoch is read again with its own
    seed, so that span corruption differs between epochs, and is shuffled in its own order. A
    mixture may have a few examples more or fewer in a later epoch than in epoch 0. The size of
    epoch 0 is used for all epochs, so that some examples of such an epoch are skipped or repeated.

    The first call costs one pass over the examples, or two if `start_step` lies beyond epoch 0.

    Args:
        read: maps the seed of an epoch to its examples.
        batch_size: B, the global batch size over all processes.
        seed: of shuffling and of the preprocessors.
        start_step: the first step to yield, from 0.
        with_documents: keep the documents as strings in memory and yield them too.
        process: index and number of processes; by default those of JAX.

    Yields:
        Dictionaries with inputs (`Prompts`), example_id int32 and weight float32 of B / processes
        examples, with targets (`Padded`), `document`, `rejected` and `keywords` where the examples
        have them, and with `documents` (strings) if requested. Concatenated over the
        processes, the rows are the batch. Inputs are padded to the smallest width that fits the
        longest input of the whole batch, see `language_model.trim_padding`.

    Raises:
        ValueError: as `read`, or `batch_size` is not divisible by the number of processes.
    """
    rows = _process_rows(batch_size, process)
    seed = checks.check("train_batches.seed", seed, checks.SEED)

    @functools.lru_cache(maxsize=1)  # steps only increase, so that one cached epoch is enough
    def shuffled(number: int) -> tuple[Batch, np.ndarray]:
        examples = read(_epoch_seed(seed, number))
        arrays = {"weight": np.ones(len(examples), np.float32)} | _arrays(examples)
        if with_documents:
            arrays["documents"] = np.array(examples.documents, object)
        return arrays, _order(len(examples), seed, number)

    def batches() -> Iterator[Batch]:
        for step in itertools.count(start_step):
            number, offset = np.divmod(step * batch_size + np.arange(batch_size), size)
            whole = [(e, offset[number == e]) for e in np.unique(number)]
            longest = max(_longest(*shuffled(int(e)), offsets) for e, offsets in whole)
            number, offset = number[rows.start : rows.stop], offset[rows.start : rows.stop]
            parts = [_take(*shuffled(int(e)), offset[number == e]) for e in np.unique(number)]
            yield _narrowed(_join(parts), longest)

    size = len(shuffled(0)[1])  # before the first `next`, so that errors are raised early
    return batches()


def eval_batches(
    examples: Examples,
    batch_size: int,
    process: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Yields this process's rows of the batches of one pass, in order, each example exactly once.

    Row i of batch b is example b·B + i. The last batch is padded with copies of the last example.

    Yields:
        Dictionaries as `train_batches`, with `valid` bool [B / processes], false for padding rows.

    Raises:
        ValueError: `batch_size` is not divisible by the number of processes.
    """
    rows = _process_rows(batch_size, process)
    arrays = _arrays(examples)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(examples), batch_size):
            index = start + np.arange(rows.start, rows.stop)
            batch = jax.tree.map(lambda x: x[np.minimum(index, len(examples) - 1)], arrays)  # noqa: B023
            longest = int(np.max(examples.inputs.lengths[start : start + batch_size]))
            yield _narrowed(batch, longest) | {"valid": index < len(examples)}

    return batches()


def spread_batches(examples: Examples, batch_size: int) -> Iterator[Batch]:
    """Yields whole batches of `eval_batches`, sharded over the mesh, which must divide them."""
    mesh = mesh_in_use()
    return (global_batch(batch, mesh) for batch in eval_batches(examples, batch_size))


def select_columns(batches: Iterator[Batch], *names: str) -> Iterator[Batch]:
    """Yields batches with these columns only, so that no unused array is moved to the devices."""
    return ({name: batch[name] for name in names} for batch in batches)


def unweighted(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields batches without weights, for training methods that sample their own responses.

    Raises:
        ValueError: an example has a weight other than 1.
    """
    for batch in batches:
        weight = batch.pop("weight", None)
        if weight is not None and np.any(weight != 1):
            raise ValueError(
                "the task's examples have weights, which PPO and distillation do not support; "
                "remove the field 'weight' from the task"
            )
        yield batch


def _process_rows(batch_size: int, process: tuple[int, int] | None) -> range:
    """Return the rows of a global batch of B that belong to one process."""
    index, count = process or (jax.process_index(), jax.process_count())
    batch_size = checks.check("batch_size", batch_size, checks.integer(1))
    if batch_size % count:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {count} processes; it must be a "
            "positive multiple of the number of processes"
        )
    local_size = batch_size // count
    return range(index * local_size, (index + 1) * local_size)


def _epoch_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _order(size: int, seed: int, number: int) -> np.ndarray:
    """Return the permutation int [n] of an epoch, from its number and the seed.

    It sorts raw random numbers, since numpy guarantees the output of its bit generators across
    versions, but not that of `permutation`.
    """
    draws = np.random.Philox(np.random.SeedSequence([seed, number])).random_raw(size)
    return np.argsort(draws, kind="stable")


def _columns(examples: Examples) -> dict[str, object]:
    return {name: getattr(examples, name) for name in _COLUMNS}


def _arrays(examples: Examples) -> Batch:
    """Return the columns that the examples have; documents without summaries have no targets."""
    absent = () if examples.has_targets else ("targets",)
    return {k: x for k, x in _columns(examples).items() if x is not None and k not in absent}


def _take(arrays: Batch, order: np.ndarray, offset: np.ndarray) -> Batch:
    index = order[offset % len(order)]
    return jax.tree.map(lambda x: x[index], arrays)


def _longest(arrays: Batch, order: np.ndarray, offset: np.ndarray) -> int:
    return int(np.max(arrays["inputs"].lengths[order[offset % len(order)]]))


def _narrowed(batch: Batch, longest: int) -> Batch:
    """Narrow the inputs to one width, the same in all processes."""
    return batch | {"inputs": trim_padding(batch["inputs"], longest)}


def _join(parts: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
