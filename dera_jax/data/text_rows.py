"""Converts rows of text to examples: fields of seqio tasks of text, and rows of data files.

A row has the fields `inputs` (the template filled with the document) and `targets`, and may have
`rejected`, `document`, `template`, `keep_end`, `example_id`, `keywords` (one per line) and `weight`.
Every other string is a note.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import encoding
from dera_jax.data.encoding import KEYWORDS, EncodedExamples, Sizes, TextExamples
from dera_jax.data.seqio_tasks import REJECTED
from dera_jax.prompts import DOCUMENT, Prompt
from dera_jax.prompts import KEYWORDS as SLOT

COMPLETIONS = ("targets", REJECTED)
WEIGHT = "weight"  # field with an example's weight in training, a number or its decimal string
AS_TEXT = "_pretokenized"  # ends the name of a field that seqio adds
_KNOWN_FIELDS = ("inputs", *COMPLETIONS, "document", "template", WEIGHT)  # all others are notes

Row = dict[str, object]


class TextRows(tuple):
    """TextRows as a key of the cache of encoded epochs; most tasks yield equal rows in each epoch."""

    def __hash__(self) -> int:
        return len(self)


def scalars(row: Row) -> Row:
    """Return the strings and numbers of a row; arrays cannot be compared as keys of a cache."""
    return {name: x for name, x in row.items() if isinstance(x, str | np.generic)}


@functools.lru_cache(maxsize=2)
def encoded(
    rows: TextRows, tokenizer: Tokenizer, sizes: Sizes
) -> tuple[TextExamples, EncodedExamples]:
    """Return the examples of rows as text and as ids; raises ValueError for invalid fields."""
    columns = {name: [row[name] for row in rows] for name in COMPLETIONS if name in rows[0]}
    texts = texts_of(rows, [_prompt(row) for row in rows], columns)
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
    return Prompt(document, template, keywords_of(row), bool(row.get("keep_end", False)))


def keywords_of(row: Row) -> tuple[str, ...]:
    """Return the keywords of a row; none if it has no string of them."""
    joined = row.get(KEYWORDS)
    return tuple(joined.split("\n")) if isinstance(joined, str) and joined else ()


def texts_of(
    rows: Sequence[Row], prompts: list[Prompt], completions: Mapping[str, list[str]]
) -> TextExamples:
    """Return examples of rows, with their prompts and with `targets` and `rejected` by name."""
    notes = [
        name
        for name, value in rows[0].items()
        if isinstance(value, str) and name not in _KNOWN_FIELDS and not name.endswith(AS_TEXT)
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
