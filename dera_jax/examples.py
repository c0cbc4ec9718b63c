"""Examples as arrays, and the batches of training and evaluation that are made of them.

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
from dera_jax.models.language_model import Padded, Prompts, check_padded, narrowed
from dera_jax.partitioning import global_batch, mesh_in_use
from dera_jax.prompts import Prompt

Batch = dict[str, object]
_COLUMNS = ("inputs", "targets", "example_id", "document", "rejected", "keywords", "weight")


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of token ids end to end; rows of it are padded when they are taken.

    Documents are not cut, and one of them may be a hundred times as long as most.

    Attributes:
        ids: int32 [total].
        ends: int64 [n], where each ends.
    """

    ids: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """Of n sequences."""
        ids = np.fromiter(itertools.chain.from_iterable(sequences), np.int32)
        return cls(ids, np.cumsum([len(x) for x in sequences], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, rows: np.ndarray) -> Padded:
        """Rows [B], padded to [B, D] with the longest of all n."""
        lengths = np.diff(self.ends, prepend=0)
        place = np.arange(max(int(lengths.max(initial=0)), 1))
        at = (self.ends - lengths)[rows, None] + place
        found = self.ids[np.minimum(at, len(self.ids) - 1)] if len(self.ids) else np.zeros_like(at)
        inside = place < lengths[rows, None]
        return Padded(np.where(inside, found, 0).astype(np.int32), lengths[rows].astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Examples:
    """One pass over a task, in the task's order.

    Attributes:
        inputs: prompts [n, S].
        targets: [n, T].
        example_id: int32 [n], all different: the task's own where they first occur, or the position
            if the task has none.
        asked: n prompts as text, with their documents uncut.
        summaries: n texts, the uncut targets.
        notes: every other string field of the task, by name, n texts each.
        document: the ids of the uncut documents, without the prompt around them.
        rejected: [n, T], of tasks of pairs (`tasks.preferences`), where `targets` is chosen.
        keywords: uint8 [n, W, L] in UTF-8, of tasks with a field `keywords`, a keyword per line.
        weight: float32 [n], how much each counts in training, of tasks with a field `weight`; None: 1.

    Raises:
        ValueError: an array of another type or shape, a length beyond its row, an input without a
            token, another number of texts, or a weight that is negative or not finite.
    """

    inputs: Prompts
    targets: Padded
    example_id: np.ndarray
    asked: list[Prompt]
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
                    "Examples.weight must be finite numbers of at least 0; found "
                    f"{self.weight[wrong[0]]} for the example {self.example_id[wrong[0]]}."
                )
        texts = {"asked": self.asked, "summaries": self.summaries, **self.notes}
        for name, column in texts.items():
            if isinstance(column, str) or len(column) != n:
                raise ValueError(f"Examples: {name} must be n = {n} texts, as many as inputs.")

    def __len__(self) -> int:
        return len(self.example_id)

    @property
    def documents(self) -> list[str]:
        """The texts of the documents."""
        return [prompt.document for prompt in self.asked]

    def at(self, rows: np.ndarray | slice) -> "Examples":
        """The examples of these rows."""
        numbers = np.arange(len(self))[rows]
        pick = lambda texts: [texts[i] for i in numbers]
        columns = {
            name: None if x is None else jax.tree.map(lambda y: y[numbers], x)
            for name, x in _columns(self).items()
        }
        return Examples(
            asked=pick(self.asked),
            summaries=pick(self.summaries),
            notes={name: pick(texts) for name, texts in self.notes.items()},
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
    """Yields this process's rows of the batches of `start_step`, `start_step + 1`, ... for ever.

    Row i of step s is example s·B + i of the endless sequence epoch 0, epoch 1, ...: batches
    straddle epochs and every example comes once per epoch. Each epoch is read anew with a seed of
    its own, so that spans are corrupted differently, and put in an order of its own. (A mixture may
    hold a few examples more or fewer in a later epoch than in epoch 0, whose size counts: then so
    many are left out, or come twice.)

    Starting costs one pass over the examples, or two if `start_step` lies beyond epoch 0.

    Args:
        read: the examples of an epoch with a seed of its own.
        batch_size: B, rows of all processes together.
        seed: of the order and of the preprocessors.
        start_step: the first step wanted, from 0.
        with_documents: keep the texts in memory and yield them too.
        process: index and number of processes; JAX's own by default.

    Yields:
        inputs (`Prompts`), targets (`Padded`), example_id int32 and weight float32 of B / processes
        examples, if the examples have them `document`, `rejected` and `keywords`, and if wanted `documents`, texts; the
        processes' rows, concatenated, are the batch. Inputs are as wide as the longest of the whole batch
        needs, see `narrowed`.

    Raises:
        ValueError: as `read`, or `batch_size` not divisible by the processes.
    """
    rows = _process_rows(batch_size, process)
    seed = checks.check("train_batches.seed", seed, checks.SEED)

    @functools.lru_cache(maxsize=1)  # positions only grow, so one epoch at a time is enough
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
            longest = max(_longest(*shuffled(int(e)), places) for e, places in whole)
            number, offset = number[rows.start : rows.stop], offset[rows.start : rows.stop]
            parts = [_take(*shuffled(int(e)), offset[number == e]) for e in np.unique(number)]
            yield _narrowed(_join(parts), longest)

    size = len(shuffled(0)[1])  # before the first batch is asked for, so that errors come early
    return batches()


def eval_batches(
    examples: Examples,
    batch_size: int,
    process: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Yields this process's rows of the batches of one pass, in order, each example exactly once.

    Row i of batch b is example b·B + i. The last batch is filled up with copies of the last example.

    Yields:
        As `train_batches`, and `valid` bool [B / processes], false for the filling.

    Raises:
        ValueError: `batch_size` not divisible by the processes.
    """
    rows = _process_rows(batch_size, process)
    arrays = _arrays(examples)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(examples), batch_size):
            index = start + np.arange(rows.start, rows.stop)
            some = jax.tree.map(lambda x: x[np.minimum(index, len(examples) - 1)], arrays)  # noqa: B023
            longest = int(np.max(examples.inputs.lengths[start : start + batch_size]))
            yield _narrowed(some, longest) | {"valid": index < len(examples)}

    return batches()


def spread_batches(examples: Examples, batch_size: int) -> Iterator[Batch]:
    """Those of `eval_batches`, whole and spread over the mesh in use, which must divide them."""
    mesh = mesh_in_use()
    return (global_batch(batch, mesh) for batch in eval_batches(examples, batch_size))


def only(batches: Iterator[Batch], *names: str) -> Iterator[Batch]:
    """The batches with these of their columns; what a step does not read need not be moved."""
    return ({name: batch[name] for name in names} for batch in batches)


def unweighted(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of a training that samples its own texts, in which examples have no weights.

    Raises:
        ValueError: one has.
    """
    for batch in batches:
        weight = batch.pop("weight", None)
        if weight is not None and np.any(weight != 1):
            raise ValueError(
                "the task's examples have weights, which PPO and distillation do not read; leave the "
                "field 'weight' out"
            )
        yield batch


def _process_rows(batch_size: int, process: tuple[int, int] | None) -> range:
    """The rows of a batch of B that belong to one process."""
    index, count = process or (jax.process_index(), jax.process_count())
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
    return {name: getattr(examples, name) for name in _COLUMNS}


def _arrays(examples: Examples) -> Batch:
    return {name: x for name, x in _columns(examples).items() if x is not None}


def _take(arrays: Batch, order: np.ndarray, offset: np.ndarray) -> Batch:
    index = order[offset % len(order)]
    return jax.tree.map(lambda x: x[index], arrays)


def _longest(arrays: Batch, order: np.ndarray, offset: np.ndarray) -> int:
    return int(np.max(arrays["inputs"].lengths[order[offset % len(order)]]))


def _narrowed(batch: Batch, longest: int) -> Batch:
    """All processes' shares of a batch have one width."""
    return batch | {"inputs": narrowed(batch["inputs"], longest)}


def _join(parts: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
