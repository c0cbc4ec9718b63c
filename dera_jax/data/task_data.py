"""Reads a split of a seqio task into arrays of examples (int32 ids, 4 bytes per token).

A task yields text, which the model's tokenizer encodes, or ids of the model's vocabulary. A user's
own files (`own_files`) are read in place of a task, without seqio. The batch of a step is a pure function of (task, split, sizes, seed, step). It does
not depend on the number of processes, nor on where a run was killed and resumed.

As usual in seqio, a task is registered when its module is imported; see `seqio_tasks.find_task`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import EncodedPrompt, Tokenizer
from dera_jax.checkpoints.vocabulary import VOCABULARY, Vocabulary, check_begins
from dera_jax.data import encoding, text_rows
from dera_jax.data.encoding import EncodedExamples, Sizes, TextExamples
from dera_jax.data.examples import Batch, Examples, train_batches
from dera_jax.data.own_files import OwnFiles
from dera_jax.data.seqio_tasks import (
    REJECTED,
    check_pairs,
    check_task,
    find_task,
    is_mixture,
    known_vocabulary,
    yields_text,
)
from dera_jax.data.text_rows import AS_TEXT, COMPLETIONS, WEIGHT, Row
from dera_jax.log import warn_once
from dera_jax.prompts import DOCUMENT, Prompt

if TYPE_CHECKING:
    import seqio

_PROMPT_FIELDS = ("document", "template", "keep_end")
_MIXED_FIELDS = (*_PROMPT_FIELDS, WEIGHT)


@dataclasses.dataclass(frozen=True)
class SeqioTask:
    """A seqio task as a source of examples, with the methods of `OwnFiles`.

    Attributes:
        label: name of the task.
    """

    label: str

    @property
    def name(self) -> str:
        """Return the name of the task for error messages."""
        return f"task {self.label!r}"

    def check(self, *splits: str, pairs: bool = False, summaries: bool = False) -> None:
        """Raise ValueError unless the task has these splits and, if `pairs`, preference pairs.

        Whether it has summaries is known when it is read.
        """
        del summaries
        check_task(self.label, *splits)
        if pairs:
            check_pairs(self.label, splits[0])

    def title(self, split: str) -> str:
        """Return the name of a split for messages."""
        return f"{self.label}, {split}"

    def known_vocabulary(self, named: Vocabulary | None) -> Vocabulary | None:
        """Return the vocabulary of the task's ids, see `seqio_tasks.known_vocabulary`."""
        return known_vocabulary(self.label, named)

    def epoch(self, split: str, tokenizer: Tokenizer, sizes: Sizes, seed: int = 0) -> Examples:
        """Read one pass over a split, see `epoch`."""
        return epoch(self.label, split, tokenizer, sizes, seed)


def source_of(task: str | None, files: OwnFiles | None) -> SeqioTask | OwnFiles:
    """Return a user's own files, or the task if there are none."""
    return SeqioTask(task) if files is None else files


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Configures the seqio task, or the user's own files, that a model is trained on.

    Attributes:
        task: name of the task; not read if there are `files`.
        inputs: maximum tokens of a prompt, including control tokens; longer documents are truncated, with a warning.
        targets: maximum tokens of a target (a summary or response), including control tokens.
        batch_size: examples per step.
        split: the split to train on.
        vocabulary: of models whose checkpoints hold none (those of T5X), and of new models.
        files: the user's own files; None for the task.

    Raises:
        ValueError: the task or split is unknown, or a size is not positive.
    """

    task: str | None
    inputs: int
    targets: int
    batch_size: int
    split: str = "train"
    vocabulary: Vocabulary | None = None
    files: OwnFiles | None = None

    def __post_init__(self):
        sizes = dict.fromkeys(("inputs", "targets", "batch_size"), checks.integer(1))
        checks.check_fields(
            self,
            task=checks.TEXT if self.files is None else checks.optional(checks.TEXT),
            split=checks.TEXT,
            files=checks.optional(checks.instance(OwnFiles)),
            vocabulary=checks.optional(VOCABULARY),
            **sizes,
        )
        self.check(self.split)

    def check(self, *splits: str, pairs: bool = False, summaries: bool = False) -> None:
        """Check the split to train on and others, see `check` of `source`."""
        known = {self.split: None} | dict.fromkeys(splits)
        self.source.check(*known, pairs=pairs, summaries=summaries)

    @property
    def source(self) -> SeqioTask | OwnFiles:
        """Return what is read."""
        return source_of(self.task, self.files)

    @property
    def name(self) -> str:
        """Return the name of the data for error messages."""
        return self.source.name

    def described(self) -> dict[str, object]:
        """Return the task or the files, and the sizes, for the model card."""
        names = ("inputs", "targets", "batch_size", "split")
        read = {"task": self.task} if self.files is None else {"files": self.files.described()}
        return read | {name: getattr(self, name) for name in names}

    def known_vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of the task's ids, see `seqio_tasks.known_vocabulary`."""
        return self.source.known_vocabulary(self.vocabulary)

    def encoded_by(self, tokenizer: Tokenizer) -> "EncodedTask":
        """Return the task as a model with this tokenizer reads it."""
        return EncodedTask(self, tokenizer)


@dataclasses.dataclass(frozen=True)
class EncodedTask:
    """Reads the examples of a task with the tokenizer of a model.

    Attributes:
        data: the task and its sizes.
        tokenizer: of the model.
    """

    data: TaskData
    tokenizer: Tokenizer

    def read(self, split: str, seed: int = 0) -> Examples:
        """Read one pass over a split; raises as `epoch`."""
        sizes = Sizes(self.data.inputs, self.data.targets)
        return self.data.source.epoch(split, self.tokenizer, sizes, seed)

    def batches(
        self,
        seed: int,
        start_step: int,
        with_documents: bool = False,
        check_documents: Callable[[Sequence[str]], None] | None = None,
    ) -> Iterator[Batch]:
        """Return the endless iterator of training batches, see `examples.train_batches`.

        `check_documents`, for example the check of a reward, is called once with the documents of
        the first epoch that is read.
        """
        checked = check_documents is None

        def read(seed: int) -> Examples:
            nonlocal checked
            examples = self.read(self.data.split, seed)
            if not checked:
                check_documents(examples.documents)
                checked = True
            return examples

        return train_batches(read, self.data.batch_size, seed, start_step, with_documents)

    def left_out(self) -> dict[str, dict[str, int]]:
        """Return the number of dropped examples by split and reason, see `encoding`."""
        splits = self.data.split, "validation", "test"
        counts = {x: encoding.dropped_counts(self.data.source.title(x)) for x in splits}
        return {split: reasons for split, reasons in counts.items() if reasons}


def epoch(
    task_name: str, split: str, tokenizer: Tokenizer, sizes: Sizes, seed: int = 0
) -> Examples:
    """Read one pass over a split of a seqio task or mixture.

    Args:
        task_name: a registered seqio task or mixture with features `inputs` and `targets`.
        split: one of its splits.
        tokenizer: of the model that reads the examples.
        sizes: maximum lengths. Truncated targets still end with the end token.
        seed: of random preprocessors (span corruption); others ignore it.

    Returns:
        The examples. Truncated and dropped examples are counted in warnings, see `encoding`.

    Raises:
        ValueError: the task or split is unknown, the split has no usable example, or the task's ids
            belong to another vocabulary than the model's.
    """
    task = find_task(task_name, split)
    rows = _rows(task, split, sizes, seed)
    if yields_text(task):
        texts, ids = text_rows.encoded(
            text_rows.TextRows(map(text_rows.scalars, rows)), tokenizer, sizes
        )
    else:
        own, name = known_vocabulary(task_name), f"task {task_name!r}"
        check_begins(tokenizer.vocabulary, own, "the model", name)
        _compare_ends(task, tokenizer)
        texts, ids = _of_ids(task, rows, sizes)
    return encoding.examples_of(
        texts, ids, sizes, tokenizer.decode, SeqioTask(task_name).title(split)
    )


def _compare_ends(task: "seqio.Task | seqio.Mixture", tokenizer: Tokenizer) -> None:
    """Warn if prompts end otherwise than the model expects; the ids are not changed."""
    ends = task.output_features["inputs"].add_eos
    if ends != tokenizer.ends_prompts:
        found, expected = ("end", "do not") if ends else ("do not end", "do")
        warn_once(
            f"task {task.name!r} yields ids, and its prompts {found} with the end token (add_eos={ends} "
            f"of its feature 'inputs'), while prompts of this model {expected}. The ids are used "
            f"unchanged. Register the task with add_eos={not ends}, or as a task of text, which the "
            "model encodes"
        )


def _rows(task: "seqio.Task | seqio.Mixture", split: str, sizes: Sizes, seed: int) -> list[Row]:
    """Read the rows of a split, with byte strings decoded to str."""
    lengths = {"inputs": sizes.inputs, "targets": sizes.targets}
    if REJECTED in task.output_features:
        lengths[REJECTED] = sizes.targets
    # By default a mixture drops all fields but the features; without `keep_end`, for example, the
    # ends of dialogues would be truncated.
    mixed = is_mixture(task) and yields_text(task)
    more = {"passthrough_features": _MIXED_FIELDS} if mixed else {}
    with _explained_mixture_error(task):
        dataset = task.get_dataset(
            lengths,
            split,
            shuffle=False,
            seed=seed,
            num_epochs=1,  # otherwise a mixture repeats without end
            trim_output_features=False,
            try_in_mem_cache=False,  # the rows are kept in memory here
            **more,
        )
    text = lambda x: x.decode() if isinstance(x, bytes) else x
    rows = [{k: text(x) for k, x in row.items()} for row in dataset.as_numpy_iterator()]
    if not rows:
        raise ValueError(f"task {task.name!r} has no example in split {split!r}")
    return rows


@contextlib.contextmanager
def _explained_mixture_error(task: "seqio.Task | seqio.Mixture") -> Iterator[None]:
    """Explain the TypeError of TensorFlow for a mixture whose tasks it cannot join."""
    try:
        yield
    except TypeError as error:
        if not is_mixture(task):
            raise
        names = ", ".join(x.name for x in task.tasks)
        raise ValueError(
            f"mixture {task.name!r} mixes tasks whose examples have different fields or types "
            f"({names}); of the fields {', '.join(_MIXED_FIELDS)}, all tasks must yield the same ones"
        ) from error


def _of_ids(
    task: "seqio.Task | seqio.Mixture", rows: Sequence[Row], sizes: Sizes
) -> tuple[TextExamples, EncodedExamples]:
    """Return the examples of a task that yields ids; text comes from its `_pretokenized` fields,
    or else from decoding the ids."""
    features = task.output_features
    names = [name for name in ("inputs", *COMPLETIONS) if name in features]
    lengths = dict.fromkeys(names, sizes.targets) | {"inputs": sizes.inputs}
    ids = {x: [_uncut(row, x, features[x], lengths[x]) for row in rows] for x in names}
    text = {x: [_text(row, x, features[x]) for row in rows] for x in names}
    prompts = [
        Prompt(x, DOCUMENT, text_rows.keywords_of(row))
        for x, row in zip(text["inputs"], rows, strict=True)
    ]
    ends = {x: [features[x].vocabulary.eos_id] * features[x].add_eos for x in names}
    end = ends["inputs"]
    encoded = [_truncated(x, end, sizes.inputs) for x in ids["inputs"]]
    return text_rows.texts_of(rows, prompts, text), EncodedExamples(
        prompts=encoded,
        bare=[x.cut > 0 and x.ids == end for x in encoded],
        documents=[x[: len(x) - len(end)] if x[-1:] == end else x for x in ids["inputs"]],
        targets=ids["targets"],
        rejected=ids.get(REJECTED),
        end_id=next(iter(ends["targets"]), None),
    )


def _text(row: Row, name: str, feature: "seqio.Feature") -> str:
    text = row.get(name + AS_TEXT)
    return feature.vocabulary.decode(row[name].tolist()) if text is None else text


def _uncut(row: Row, name: str, feature: "seqio.Feature", size: int) -> list[int]:
    """Return the ids before the task itself truncated them (seqio's append_eos_after_trim does)."""
    ids, text = row[name].tolist(), row.get(name + AS_TEXT)
    if len(ids) != size or text is None:
        return ids
    whole = feature.vocabulary.encode(text) + [feature.vocabulary.eos_id] * feature.add_eos
    return whole if whole[: size - 1] == ids[: size - 1] else ids


def _truncated(ids: list[int], end: list[int], size: int) -> EncodedPrompt:
    if len(ids) <= size:
        return EncodedPrompt(ids, 0)
    return EncodedPrompt(ids[: size - len(end)] + end, len(ids) - size)
