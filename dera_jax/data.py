"""From a seqio task to examples as arrays, read as a whole (int32 ids, 4 bytes a token).

A task yields texts, which the model's tokenizer encodes (all of ours do), or ids of a vocabulary that
must be the model's. The batch of a step is a pure function of (task, split, sizes, seed, step): the
same whatever the number of processes, and wherever a run was killed and resumed.

A task registers itself when its module is imported (`import tasks`), as everywhere in seqio.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio

from dera_jax import checks, encoding
from dera_jax.checkpoints.tokenizer import EncodedPrompt, Tokenizer
from dera_jax.checkpoints.vocabulary import VOCABULARY, Vocabulary, check_same
from dera_jax.encoding import KEYWORDS, Ids, Sizes, Texts
from dera_jax.examples import Batch, Examples, train_batches
from dera_jax.log import warn_once
from dera_jax.prompts import DOCUMENT, Prompt
from dera_jax.prompts import KEYWORDS as SLOT
from dera_jax.seqio_tasks import (
    REJECTED,
    check_pairs,
    check_task,
    find_task,
    known_vocabulary,
    yields_text,
)

_COMPLETIONS = ("targets", REJECTED)
WEIGHT = "weight"  # of an example in training, a number or how one is written
_TEXTS = ("inputs", *_COMPLETIONS, "document", "template", WEIGHT)  # all others are notes
_PROMPT_FIELDS = ("document", "template", "keep_end")
_MIXED_FIELDS = (*_PROMPT_FIELDS, WEIGHT)
_AS_TEXT = "_pretokenized"

Row = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Data:
    """A seqio task to train on.

    Attributes:
        task: its name.
        inputs: tokens of an input, control tokens included.
        targets: tokens of a target, likewise.
        batch_size: examples of a step.
        split: to train on.
        vocabulary: what the ids of a model mean whose checkpoint does not say it: T5X's, and new ones.

    Raises:
        ValueError: unknown task or split, or a size that is not positive.
    """

    task: str
    inputs: int
    targets: int
    batch_size: int
    split: str = "train"
    vocabulary: Vocabulary | None = None

    def __post_init__(self):
        sizes = dict.fromkeys(("inputs", "targets", "batch_size"), checks.whole(1))
        checks.check_fields(
            self,
            task=checks.TEXT,
            split=checks.TEXT,
            vocabulary=checks.optional(VOCABULARY),
            **sizes,
        )
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
        """The task and its sizes, for the card of a model."""
        fields = dataclasses.fields(self)
        return {x.name: getattr(self, x.name) for x in fields if x.name != "vocabulary"}

    def known_vocabulary(self) -> Vocabulary | None:
        """See `known_vocabulary`."""
        return known_vocabulary(self.task, self.vocabulary)

    def encoded_by(self, tokenizer: Tokenizer) -> "EncodedData":
        """The data as a model with this tokenizer reads them."""
        return EncodedData(self, tokenizer)


@dataclasses.dataclass(frozen=True)
class EncodedData:
    """Data as a model reads them.

    Attributes:
        data: the task and its sizes.
        tokenizer: of the model.
    """

    data: Data
    tokenizer: Tokenizer

    def read(self, split: str, seed: int = 0) -> Examples:
        """One pass over a split; raises as `epoch`."""
        sizes = Sizes(self.data.inputs, self.data.targets)
        return epoch(self.data.task, split, self.tokenizer, sizes, seed)

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
            found = self.read(self.data.split, seed)
            if not checked:
                check_documents(found.documents)
                checked = True
            return found

        return train_batches(read, self.data.batch_size, seed, start_step, with_documents)

    def left_out(self) -> dict[str, dict[str, int]]:
        """By split and reason the examples that were left out, see `encoding`."""
        splits = self.data.split, "validation", "test"
        counts = {x: encoding.left_out(_name(self.data.task, x)) for x in splits}
        return {split: reasons for split, reasons in counts.items() if reasons}


def epoch(
    task_name: str, split: str, tokenizer: Tokenizer, sizes: Sizes, seed: int = 0
) -> Examples:
    """Reads one pass of a seqio task or mixture.

    Args:
        task_name: a registered seqio task or mixture with features `inputs` and `targets`.
        split: one of its splits.
        tokenizer: of the model that reads the examples.
        sizes: to which they are cut. Targets that are cut still end with the end token.
        seed: for preprocessors that draw (span corruption); others ignore it.

    Returns:
        The examples. What is cut is reported, and so are examples that are left out since nothing
        would be left of them, see `encoding`.

    Raises:
        ValueError: unknown task or split, no example in the split, none of which cutting leaves
            something, or ids of another vocabulary than the model's.
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


def _compare_ends(task: seqio.Task | seqio.Mixture, tokenizer: Tokenizer) -> None:
    """Warns of prompts that are not as the model was trained to read them; ids are used as they are."""
    ends = task.output_features["inputs"].add_eos
    if ends != tokenizer.ends_prompts:
        found, expected = ("end", "do not") if ends else ("do not end", "do")
        warn_once(
            f"task {task.name!r} yields ids, and its prompts {found} with the end token (add_eos={ends} of "
            f"its feature 'inputs'), while those of this kind of model {expected}: they are used as "
            "they are. Register it with the other add_eos, or as texts, which the model encodes"
        )


def _name(task: str, split: str) -> str:
    return f"{task}, {split}"


def _rows(task: seqio.Task | seqio.Mixture, split: str, sizes: Sizes, seed: int) -> list[Row]:
    """Texts as str."""
    lengths = {"inputs": sizes.inputs, "targets": sizes.targets}
    if REJECTED in task.output_features:
        lengths[REJECTED] = sizes.targets
    # Of its tasks' fields a mixture drops all but features: dialogues would lose their ends.
    is_mixture = isinstance(task, seqio.Mixture) and yields_text(task)
    more = {"passthrough_features": _MIXED_FIELDS} if is_mixture else {}
    with _mixed(task):
        dataset = task.get_dataset(
            lengths,
            split,
            shuffle=False,
            seed=seed,
            num_epochs=1,  # a mixture would otherwise repeat for ever
            trim_output_features=False,
            try_in_mem_cache=False,  # what is read is kept here
            **more,
        )
    text = lambda x: x.decode() if isinstance(x, bytes) else x
    rows = [{k: text(x) for k, x in row.items()} for row in dataset.as_numpy_iterator()]
    if not rows:
        raise ValueError(f"task {task.name!r} has no example in split {split!r}")
    return rows


@contextlib.contextmanager
def _mixed(task: seqio.Task | seqio.Mixture) -> Iterator[None]:
    """Says what is wrong with a mixture whose tasks TensorFlow cannot join."""
    try:
        yield
    except TypeError as error:
        if not isinstance(task, seqio.Mixture):
            raise
        names = ", ".join(x.name for x in task.tasks)
        raise ValueError(
            f"mixture {task.name!r} mixes tasks whose examples have different fields or types ({names}): "
            f"of {', '.join(_MIXED_FIELDS)} all must yield the same"
        ) from error


class _Rows(tuple):
    """Rows to be compared with those of the epoch before: most tasks yield the same ones."""

    def __hash__(self) -> int:
        return len(self)


def _scalars(row: Row) -> Row:
    """What examples are made of; arrays have no equality that a cache could use."""
    return {name: x for name, x in row.items() if isinstance(x, str | np.generic)}


@functools.lru_cache(maxsize=2)
def _encoded(rows: _Rows, tokenizer: Tokenizer, sizes: Sizes) -> tuple[Texts, Ids]:
    columns = {name: [row[name] for row in rows] for name in _COMPLETIONS if name in rows[0]}
    texts = _texts(rows, [_asked(row) for row in rows], columns)
    return texts, encoding.encode(texts, tokenizer, sizes)


def _asked(row: Row) -> Prompt:
    """Of a row of texts; `inputs` are the document where they are not the template with one in it."""
    template, document = row.get("template", DOCUMENT), row.get("document", row["inputs"])
    if str(template).replace(DOCUMENT, str(document)) != row["inputs"]:
        template, document = DOCUMENT, row["inputs"]
    if SLOT in template and KEYWORDS not in row:
        raise ValueError(
            f"the template {template!r} asks for {SLOT}, and the task's examples have no field "
            f"{KEYWORDS!r}; found {', '.join(sorted(row))}"
        )
    return Prompt(document, template, _keywords(row), bool(row.get("keep_end", False)))


def _keywords(row: Row) -> tuple[str, ...]:
    found = row.get(KEYWORDS)
    return tuple(found.split("\n")) if isinstance(found, str) and found else ()


def _texts(rows: Sequence[Row], asked: list[Prompt], completions: Mapping[str, list[str]]) -> Texts:
    notes = [
        name
        for name, value in rows[0].items()
        if isinstance(value, str) and name not in _TEXTS and not name.endswith(_AS_TEXT)
    ]
    return Texts(
        asked=asked,
        targets=completions["targets"],
        example_id=np.array([row.get("example_id", i) for i, row in enumerate(rows)], np.int32),
        rejected=completions.get(REJECTED),
        weight=_weights(rows) if WEIGHT in rows[0] else None,
        notes={name: [row[name] for row in rows] for name in notes},
    )


def _weights(rows: Sequence[Row]) -> np.ndarray:
    """Numbers, or texts of numbers."""
    try:
        return np.array([row[WEIGHT] for row in rows], np.float32)
    except ValueError as error:
        raise ValueError(
            f"the task's field {WEIGHT!r} is how much an example counts: {error}"
        ) from error


def _of_ids(
    task: seqio.Task | seqio.Mixture, rows: Sequence[Row], sizes: Sizes
) -> tuple[Texts, Ids]:
    """The examples of a task that yields ids: its texts are what it says they were, or decoded."""
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
    encoded = [_cut(x, end, sizes.inputs) for x in ids["inputs"]]
    return _texts(rows, prompts, text), Ids(
        prompts=encoded,
        bare=[x.cut > 0 and x.ids == end for x in encoded],
        documents=[x[: len(x) - len(end)] if x[-1:] == end else x for x in ids["inputs"]],
        targets=ids["targets"],
        rejected=ids.get(REJECTED),
        end_id=next(iter(ends["targets"]), None),
    )


def _text(row: Row, name: str, feature: seqio.Feature) -> str:
    given = row.get(name + _AS_TEXT)
    return feature.vocabulary.decode(row[name].tolist()) if given is None else given


def _uncut(row: Row, name: str, feature: seqio.Feature, size: int) -> list[int]:
    """The ids, with those that the task itself cut off (seqio's append_eos_after_trim does)."""
    ids, text = row[name].tolist(), row.get(name + _AS_TEXT)
    if len(ids) != size or text is None:
        return ids
    whole = feature.vocabulary.encode(text) + [feature.vocabulary.eos_id] * feature.add_eos
    return whole if whole[: size - 1] == ids[: size - 1] else ids


def _cut(ids: list[int], end: list[int], size: int) -> EncodedPrompt:
    if len(ids) <= size:
        return EncodedPrompt(ids, 0)
    return EncodedPrompt(ids[: size - len(end)] + end, len(ids) - size)
