"""Registers seqio tasks of documents without summaries, for alignment.

`aclsum_paragraphs` has paragraphs of the full text of ACLSum's training papers (`aclsum_corpus`). The
splits `train` and `validation` divide these papers, so that both are of the split `train` of the task
`aclsum`. `aclsum_documents` has, for training, the abstracts of all training papers and
SOME_PARAGRAPHS of their paragraphs, at equal distances; for validation the abstracts of the validation
papers. All targets are empty.

The prompt template is the instruction for the outcome of a paper, so that a policy that is aligned on
these documents is aligned for that prompt.
"""

import numpy as np
import seqio

from dera_jax.data import aclsum
from dera_jax.tasks import aclsum_corpus, jsonl

SOME_PARAGRAPHS = 220


def register(name: str, template: str) -> seqio.Task:
    """Registers the task with another template.

    Raises:
        ValueError: the template has no slot {document}, or the name is already registered.
    """
    return jsonl.register_pairs(name, _columns, aclsum_corpus.SPLITS, template)


def _columns(split: str) -> dict[str, list[str]]:
    paragraphs = aclsum_corpus.corpus()[split]
    return {
        "document": [x.text for x in paragraphs],
        "summary": [""] * len(paragraphs),
        "paper": [x.paper for x in paragraphs],
        "section": [x.section for x in paragraphs],
    }


def _abstracts_and_some_paragraphs(split: str) -> dict[str, list[str]]:
    abstracts = [x.document for x in aclsum.examples(split, ("outcome",))]
    documents = abstracts + (_some_paragraphs() if split == "train" else [])
    return {"document": documents, "summary": [""] * len(documents)}


def _some_paragraphs() -> list[str]:
    paragraphs = [x.text for rows in aclsum_corpus.corpus().values() for x in rows]
    places = np.linspace(0, len(paragraphs) - 1, SOME_PARAGRAPHS).round().astype(int)
    return [paragraphs[i] for i in places]


register("aclsum_paragraphs", aclsum.INSTRUCTIONS["outcome"])
jsonl.register_pairs(
    "aclsum_documents",
    _abstracts_and_some_paragraphs,
    ("train", "validation"),
    aclsum.INSTRUCTIONS["outcome"],
)
