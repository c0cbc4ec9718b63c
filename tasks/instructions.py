"""Instructions before the inputs of a task, so that a model learns to heed them.

    from tasks import instructions
    instructions.register("my_news_instructed", "my_news", short=8, long=16)

Tasks `newswire_instructed`, `docstrings_instructed` and `xsum_instructed`: those without the
ending, whose inputs may begin with an instruction: "briefly, summarize: ...". The rest of an
example is as there, its id too. About a third of the inputs stay as they are and a third get one of
`NEUTRAL`; the others get what fits their target: one of `SHORT` or `LONG`, or `NEUTRAL` if it is
neither. So in held-out splits too an instruction tells something of the target's length.
"""

import functools

import seqio
import tensorflow as tf

from dera_jax import seqio_tasks
from tasks import docstrings, jsonl, newswire, xsum  # noqa: F401 (they register what is taken up here)

SLOT = "{prompt}"  # of the task's own template
SHORT = (
    "briefly, {prompt}",
    "in a few words, {prompt}",
    "as short as possible, {prompt}",
)
LONG = (
    "in detail, {prompt}",
    "at length, {prompt}",
    "with all the facts, {prompt}",
)
NEUTRAL = (
    "please {prompt}",
    "in plain words, {prompt}",
    "read this and {prompt}",
)
_FIELDS = ("template", "document", "targets", "example_id")


def bank(template: str = jsonl.SUMMARIZE) -> tuple[str, ...]:
    """A task's template with every instruction before it, first without any."""
    return tuple(x.replace(SLOT, template) for x in (SLOT, *NEUTRAL, *SHORT, *LONG))


def register(name: str, of: str, short: int, long: int) -> seqio.Task:
    """Registers a task that is `of` with instructions before its inputs.

    Args:
        name: of the new task; each name can be registered once.
        of: the name of a registered task of texts, no mixture, with the fields that `phrase` needs.
        short, long: see `phrase`.

    Raises:
        ValueError: `of` is no such task, the name is taken, or as `phrase`.
    """
    _check(short, long)
    task = seqio.TaskRegistry.get(of)
    if not seqio_tasks.yields_text(task):
        raise ValueError(f"task {of!r} yields ids, into which no instruction can be put")
    return seqio.TaskRegistry.add(
        name,
        source=task.source,
        preprocessors=[*task.preprocessors, functools.partial(phrase, short=short, long=long)],
        output_features=task.output_features,
    )


def phrase(dataset: tf.data.Dataset, short: int, long: int) -> tf.data.Dataset:
    """Puts instructions before the inputs, the same in every run: see the module.

    Args:
        dataset: of examples with the texts `template`, `document` and `targets` and the integer
            `example_id`.
        short: the most words, divided by white space, of a target that `SHORT` fits; it fits an
            empty target too, as in splits without summaries.
        long: the fewest words of a target that `LONG` fits.

    Raises:
        ValueError: not 0 < short < long, or a field is missing.
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
    # A hash of the id, not a generator: every epoch, split and order of reading gives the same.
    number = tf.strings.to_hash_bucket_fast(tf.strings.as_string(row["example_id"]), 2**31 - 1)
    third, place = number % 3, number // 3
    words = tf.size(tf.strings.split(row["targets"]))
    neutral = _pick(NEUTRAL, place)
    fitting = tf.where(words >= long, _pick(LONG, place), neutral)
    fitting = tf.where(words <= short, _pick(SHORT, place), fitting)
    return tf.gather([SLOT, neutral, fitting], third)


def _pick(templates: tuple[str, ...], place: tf.Tensor) -> tf.Tensor:
    return tf.gather(templates, place % len(templates))


# Of newswire's training targets 32 % have at most 8 words and 35 % at least 16, of the docstrings'
# 30 % at most 6 and 31 % at least 10: the limits nearest to thirds, from `len(target.split())`.
# XSum's are a choice, on either side of its published mean of 23 words.
register("newswire_instructed", "newswire", short=8, long=16)
register("docstrings_instructed", "docstrings", short=6, long=10)
register("xsum_instructed", "xsum", short=20, long=26)
