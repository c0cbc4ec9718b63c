"""Registers the seqio tasks of ACLSum: papers with human summaries of one sentence by aspect.

    aclsum                                      abstracts, all three aspects
    aclsum_outcome, _approach, _challenge       abstracts, one aspect
    aclsum_introduction, aclsum_conclusion      another section, all three aspects
    aclsum_outcome_introduction, ...            another section, one aspect

Each aspect has its own instruction. The examples are those of `dera_jax.data.aclsum.examples`, and
need the package that it names. Every split has summaries.
"""

import functools
from collections.abc import Sequence

import seqio
import tensorflow as tf

from dera_jax.data import aclsum
from dera_jax.tasks import jsonl


def register(
    name: str, aspects: Sequence[str], sections: Sequence[str] = ("abstract",)
) -> seqio.Task:
    """Registers a task that summarizes each paper, once for each aspect.

    Args:
        name: of the task.
        aspects, sections: see `aclsum.examples`.

    Raises:
        ValueError: an aspect or a section is unknown, or the name is already registered.
    """
    aclsum.check_names(aspects, sections)
    rows = functools.partial(_columns, aspects=tuple(aspects), sections=tuple(sections))
    return jsonl.register_columns(name, rows, list(aclsum.SPLITS), [_to_example])


def _columns(split: str, **which: Sequence[str]) -> dict[str, list[str]]:
    examples = aclsum.examples(split, **which)
    names = ("document", "template", "summary", "paper", "aspect")
    columns = {name: [getattr(x, name) for x in examples] for name in names}
    return columns | {"example_id": [str(x.example_id) for x in examples]}


@seqio.map_over_dataset
def _to_example(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    others = {name: row[name] for name in ("document", "template", "paper", "aspect")}
    return others | {
        "inputs": jsonl.render(row["template"], row["document"]),
        "targets": row["summary"],
        "example_id": tf.strings.to_number(row["example_id"], tf.int32),
    }


for _section in aclsum.SECTIONS:
    _suffix = "" if _section == "abstract" else f"_{_section}"
    register(f"aclsum{_suffix}", aclsum.ASPECTS, (_section,))
    for _aspect in aclsum.ASPECTS:
        register(f"aclsum_{_aspect}{_suffix}", (_aspect,), (_section,))
