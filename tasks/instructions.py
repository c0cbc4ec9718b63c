"""Puts instructions before the inputs of a task, so that a model learns to follow them.

    from dera_jax.tasks import instructions
    instructions.register("my_news_instructed", "my_news", short=8, long=16)

Tasks `newswire_instructed`, `docstrings_instructed` and `xsum_instructed` are the tasks of the same
names without `_instructed`, but their inputs may begin with an instruction: "briefly, summarize:
...". The other fields of an example, including its id, are unchanged. About a third of the inputs
are unchanged, and a third get an instruction of `NEUTRAL`. The others get one that fits the length
of their target: of `SHORT` or `LONG`, or of `NEUTRAL` if the target is neither short nor long.
Instructions therefore depend on the target's length, in held-out splits too.
"""

import functools

import seqio
import tensorflow as tf

from dera_jax.data import seqio_tasks
from dera_jax.data.instruction_bank import LONG, NEUTRAL, SHORT, SLOT
from dera_jax.tasks import docstrings, jsonl, newswire, xsum  # noqa: F401 (they register tasks)

_FIELDS = ("template", "document", "targets", "example_id")


def register(name: str, of: str, short: int, long: int) -> seqio.Task:
    """Registers a task that is `of` with instructions before its inputs.

    Args:
        name: of the new task; each name can be registered once.
        of: the name of a registered task of text (not a mixture) with the fields that `add_instructions`
            needs.
        short, long: see `add_instructions`.

    Raises:
        ValueError: `of` is not such a task, the name is already registered, or as `add_instructions`.
    """
    _check(short, long)
    task = seqio.TaskRegistry.get(of)
    if not seqio_tasks.yields_text(task):
        raise ValueError(
            f"task {of!r} yields ids, into which no instruction can be put; give a task of text"
        )
    return seqio.TaskRegistry.add(
        name,
        source=task.source,
        preprocessors=[
            *task.preprocessors,
            functools.partial(add_instructions, short=short, long=long),
        ],
        output_features=task.output_features,
    )


def add_instructions(dataset: tf.data.Dataset, short: int, long: int) -> tf.data.Dataset:
    """Puts instructions before the inputs, the same ones in every run, as the module describes.

    Args:
        dataset: examples with the strings `template`, `document` and `targets` and the integer
            `example_id`.
        short: maximum number of words (separated by white space) of a target that gets an
            instruction of `SHORT`. Empty targets, as in splits without summaries, count as short.
        long: minimum number of words of a target that gets an instruction of `LONG`.

    Raises:
        ValueError: 0 < short < long does not hold, or a field is missing.
    """
    _check(short, long)
    missing = [name for name in _FIELDS if name not in dataset.element_spec]
    if missing:
        raise ValueError(
            f"instructions need the fields {', '.join(_FIELDS)}; the examples have no "
            f"{', '.join(missing)}, only {', '.join(sorted(dataset.element_spec))}"
        )

    def instructed(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        before, after = tf.unstack(tf.strings.split(_template(row, short, long), SLOT), num=2)
        template = tf.strings.join([before, row["template"], after])
        return row | {"template": template, "inputs": jsonl.render(template, row["document"])}

    return dataset.map(instructed)


def _check(short: int, long: int) -> None:
    if not 0 < short < long:
        raise ValueError(
            f"expected 0 < short < long, numbers of words; found short={short}, long={long}"
        )


def _template(row: dict[str, tf.Tensor], short: int, long: int) -> tf.Tensor:
    # A hash of the id, not a random generator: the result must not depend on epoch or order.
    number = tf.strings.to_hash_bucket_fast(tf.strings.as_string(row["example_id"]), 2**31 - 1)
    third, index = number % 3, number // 3
    words = tf.size(tf.strings.split(row["targets"]))
    neutral = _pick(NEUTRAL, index)
    fitting = tf.where(words >= long, _pick(LONG, index), neutral)
    fitting = tf.where(words <= short, _pick(SHORT, index), fitting)
    return tf.gather([SLOT, neutral, fitting], third)


def _pick(templates: tuple[str, ...], index: tf.Tensor) -> tf.Tensor:
    return tf.gather(templates, index % len(templates))


# Limits that come nearest to thirds, by `len(target.split())`: of newswire's training targets 32 %
# have at most 8 words and 35 % at least 16; of those of docstrings 30 % have at most 6 and 31 % at
# least 10. The limits of XSum are a choice, on either side of its published mean of 23 words.
register("newswire_instructed", "newswire", short=8, long=16)
register("docstrings_instructed", "docstrings", short=6, long=10)
register("xsum_instructed", "xsum", short=20, long=26)
