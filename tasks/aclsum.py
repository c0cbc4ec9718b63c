"""Registers the seqio tasks of ACLSum: papers with human summaries of one sentence by aspect.

aclsum                                         abstracts, all three aspects, each with its instruction
aclsum_outcome, aclsum_approach, aclsum_challenge   abstracts, one aspect

Needs the package aclsum (`dera_jax.data.aclsum`).
"""

import functools
from collections.abc import Sequence

import seqio
import tensorflow as tf

from dera_jax.data import aclsum
from tasks import jsonl


def register(name: str, aspects: Sequence[str], section: str = "abstract") -> seqio.Task:
    """Registers a task that summarizes a section of each paper, once for each aspect.

    Args:
        name: of the task.
        aspects: some of `aclsum.ASPECTS`.
        section: one of `aclsum.SECTIONS`, the document.
    """
    rows = functools.partial(_columns, aspects=tuple(aspects), section=section)
    return jsonl.register_columns(name, rows, list(aclsum.SPLITS), [_to_example])


def _columns(split: str, aspects: Sequence[str], section: str) -> dict[str, list[str]]:
    pairs = [(paper, aspect) for paper in aclsum.papers(split) for aspect in aspects]
    return {
        "document": [paper.sections[section] for paper, _ in pairs],
        "summary": [paper.summaries[aspect] for paper, aspect in pairs],
        "template": [aclsum.INSTRUCTIONS[aspect] for _, aspect in pairs],
        "paper": [paper.id for paper, _ in pairs],
        "aspect": [aspect for _, aspect in pairs],
    }


@seqio.map_over_dataset
def _to_example(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    key = tf.strings.join([row["aspect"], row["document"]], "\x1f")
    number = tf.strings.to_hash_bucket_fast(key, 2**31 - 1)
    others = {name: value for name, value in row.items() if name != "summary"}
    return others | {
        "inputs": jsonl.render(row["template"], row["document"]),
        "targets": row["summary"],
        "example_id": tf.cast(number, tf.int32),
    }


register("aclsum", aclsum.ASPECTS)
for aspect in aclsum.ASPECTS:
    register(f"aclsum_{aspect}", (aspect,))
