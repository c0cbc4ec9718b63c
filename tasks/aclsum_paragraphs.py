"""Registers the seqio task `aclsum_paragraphs`: documents without summaries, for alignment.

The documents are paragraphs of the full text of ACLSum's training papers (`aclsum_corpus`). The
splits `train` and `validation` divide these papers, so that both are of the split `train` of the task
`aclsum`. All targets are empty.

The prompt template is the instruction for the outcome of a paper, so that a policy that is aligned on
paragraphs is aligned for that prompt.
"""

import seqio

from dera_jax.data import aclsum
from dera_jax.tasks import aclsum_corpus, jsonl


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


register("aclsum_paragraphs", aclsum.INSTRUCTIONS["outcome"])
