"""Reads a split of a seqio task into arrays of examples (int32 ids, 4 bytes per token).

A task yields text, which the model's tokenizer encodes, or ids of a vocabulary that must be equal
to the model's. The batch of a step is a pure function of (task, split, sizes, seed, step). It does
not depend on the number of processes, nor on where a run was killed and resumed.

As usual in seqio, a task is registered when its module is imported (`import dera_jax.tasks`).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import EncodedPrompt, Tokenizer
from dera_jax.checkpoints.vocabulary import VOCABULARY, Vocabulary, check_same
from dera_jax.data import encoding
from dera_jax.data.encoding import KEYWORDS, EncodedExamples, Sizes, TextExamples
from dera_jax.data.examples import Batch, Examples, train_batches
from dera_jax.data.seqio_tasks import (
    REJECTED,
    check_pairs,
    check_task,
    find_task,
    is_mixture,
    known_vocabulary,
    yields_text,
)
from dera_jax.log import warn_once
from dera_jax.prompts import DOCUMENT, Prompt
from dera_jax.prompts import KEYWORDS as SLOT

if TYPE_CHECKING:
    import seqio

_COMPLETIONS = ("targets", REJECTED)
WEIGHT = "weight"  # field with an example's weight in training, a number or its decimal string
_KNOWN_FIELDS = ("inputs", *_COMPLETIONS, "document", "template", WEIGHT)  # all others are notes
_PROMPT_FIELDS = ("document", "template", "keep_end")
_MIXED_FIELDS = (*_PROMPT_FIELDS, WEIGHT)
_AS_TEXT = "_pretokenized"

Row = dict[str, object]


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Configures the seqio task that a model is trained on.

    Attributes:
        task: name of the task.
        inputs: maximum tokens of a prompt, including control tokens.
        targets: maximum tokens of a target, including control tokens.
        batch_size: examples per step.
        split: the split to train on.
        vocabulary: of models whose checkpoints hold none (those of T5X), and of new models.

    Raises:
        ValueError: the task or split is unknown, or a size is not positive.
    """

    task: str
    inputs: int
    targets: int
    batch_size: int
    split: str = "train"
    vocabulary: Vocabulary | None = None

    def __post_init__(self):
        sizes = dict.fromkeys(("inputs", "targets", "batch_size"), checks.integer(1))
        checks.check_fields(
            self,
            task=checks.TEXT,
            split=checks.TEXT,
            vocabulary=checks.optional(VOCABULARY),
            **sizes,
        )
        self.check(self.split)

    def check(self, *splits: str, pairs: bool = False) -> None:
        """Raise ValueError unless the task has these splits and, if `pairs`, preference pairs."""
        check_task(self.task, *splits)
        if pairs:
            check_pairs(self.task, self.split)

    @property
    def name(self) -> str:
        """Return the name of the task for error messages."""
        return f"task {self.task!r}"

    def described(self) -> dict[str, object]:
        """Return the task and its sizes, for the model card."""
        fields = dataclasses.fields(self)
        return {x.name: getattr(self, x.name) for x in fields if x.name != "vocabulary"}

    def known_vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of the task's ids, see `seqio_tasks.known_vocabulary`."""
        return known_vocabulary(self.task, self.vocabulary)

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
        return epoch(self.data.task, split, self.tokenizer, sizes, seed)

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
        counts = {x: encoding.dropped_counts(_name(self.data.task, x)) for x in splits}
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
        texts, ids = _encoded(_Rows(map(_scalars, rows)), tokenizer, sizes)
    else:
        check_same(
            known_vocabulary(task_name), tokenizer.vocabulary, f"task {task_name!r}", "the model"
        )
        _compare_ends(task, tokenizer)
        texts, ids = _of_ids(task, rows, sizes)
    return encoding.examples_of(texts, ids, sizes, tokenizer.decode, _name(task_name, split))


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


def _name(task: str, split: str) -> str:
    return f"{task}, {split}"


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


class _Rows(tuple):
    """Rows as a key of the cache of encoded epochs; most tasks yield equal rows in each epoch."""

    def __hash__(self) -> int:
        return len(self)


def _scalars(row: Row) -> Row:
    """Return the strings and numbers of a row; arrays cannot be compared as keys of a cache."""
    return {name: x for name, x in row.items() if isinstance(x, str | np.generic)}


@functools.lru_cache(maxsize=2)
def _encoded(
    rows: _Rows, tokenizer: Tokenizer, sizes: Sizes
) -> tuple[TextExamples, EncodedExamples]:
    columns = {name: [row[name] for row in rows] for name in _COMPLETIONS if name in rows[0]}
    texts = _texts(rows, [_prompt(row) for row in rows], columns)
    return texts, encoding.encode(texts, tokenizer, sizes)


def _prompt(row: Row) -> Prompt:
    """Return the prompt of a row of text.

    If `inputs` is not the template filled with the document, `inputs` is taken as the document.
    """
    template, document = row.get("template", DOCUMENT), row.get("document", row["inputs"])
    if str(template).replace(DOCUMENT, str(document)) != row["inputs"]:
        template, document = DOCUMENT, row["inputs"]
    if SLOT in template and KEYWORDS not in row:
        raise ValueError(
            f"the template {template!r} has a slot {SLOT}, but the task's examples have no field "
            f"{KEYWORDS!r}; found {', '.join(sorted(row))}"
        )
    return Prompt(document, template, _keywords(row), bool(row.get("keep_end", False)))


def _keywords(row: Row) -> tuple[str, ...]:
    joined = row.get(KEYWORDS)
    return tuple(joined.split("\n")) if isinstance(joined, str) and joined else ()


def _texts(
    rows: Sequence[Row], prompts: list[Prompt], completions: Mapping[str, list[str]]
) -> TextExamples:
    notes = [
        name
        for name, value in rows[0].items()
        if isinstance(value, str) and name not in _KNOWN_FIELDS and not name.endswith(_AS_TEXT)
    ]
    return TextExamples(
        text_prompts=prompts,
        targets=completions["targets"],
        example_id=np.array([row.get("example_id", i) for i, row in enumerate(rows)], np.int32),
        rejected=completions.get(REJECTED),
        weight=_weights(rows) if WEIGHT in rows[0] else None,
        notes={name: [row[name] for row in rows] for name in notes},
    )


def _weights(rows: Sequence[Row]) -> np.ndarray:
    """Convert weights, numbers or their decimal strings, to float32 [n]."""
    try:
        return np.array([row[WEIGHT] for row in rows], np.float32)
    except ValueError as error:
        raise ValueError(
            f"the task's field {WEIGHT!r} must hold a number, the weight in training: {error}"
        ) from error


def _of_ids(
    task: "seqio.Task | seqio.Mixture", rows: Sequence[Row], sizes: Sizes
) -> tuple[TextExamples, EncodedExamples]:
    """Return the examples of a task that yields ids; text comes from its `_pretokenized` fields,
    or else from decoding the ids."""
    features = task.output_features
    names = [name for name in ("inputs", *_COMPLETIONS) if name in features]
    lengths = dict.fromkeys(names, sizes.targets) | {"inputs": sizes.inputs}
    ids = {x: [_uncut(row, x, features[x], lengths[x]) for row in rows] for x in names}
    text = {x: [_text(row, x, features[x]) for row in rows] for x in names}
    prompts = [
        Prompt(x, DOCUMENT, _keywords(row)) for x, row in zip(text["inputs"], rows, strict=True)
    ]
    ends = {x: [features[x].vocabulary.eos_id] * features[x].add_eos for x in names}
    end = ends["inputs"]
    encoded = [_truncated(x, end, sizes.inputs) for x in ids["inputs"]]
    return _texts(rows, prompts, text), EncodedExamples(
        prompts=encoded,
        bare=[x.cut > 0 and x.ids == end for x in encoded],
        documents=[x[: len(x) - len(end)] if x[-1:] == end else x for x in ids["inputs"]],
        targets=ids["targets"],
        rejected=ids.get(REJECTED),
        end_id=next(iter(ends["targets"]), None),
    )


def _text(row: Row, name: str, feature: "seqio.Feature") -> str:
    text = row.get(name + _AS_TEXT)
    return feature.vocabulary.decode(row[name].tolist()) if text is None else text


def _uncut(row: Row, name: str, feature: "seqio.Feature", size: int) -> list[int]:
    """Return the ids before the task itself truncated them (seqio's append_eos_after_trim does)."""
    ids, text = row[name].tolist(), row.get(name + _AS_TEXT)
    if len(ids) != size or text is None:
        return ids
    whole = feature.vocabulary.encode(text) + [feature.vocabulary.eos_id] * feature.add_eos
    return whole if whole[: size - 1] == ids[: size - 1] else ids


def _truncated(ids: list[int], end: list[int], size: int) -> EncodedPrompt:
    if len(ids) <= size:
        return EncodedPrompt(ids, 0)
    return EncodedPrompt(ids[: size - len(end)] + end, len(ids) - size)
