"""Registers all seqio tasks of this package on `import tasks`.

docstrings, prose: text of installed packages; newswire: generated reports. docstrings_pairs,
docstrings_entailment, newswire_pairs, newswire_entailment: derived from these by `corruptions`.
aclsum, its variants by aspect and section, and aclsum_paragraphs: papers in the package aclsum.
xsum, tldr, tldr_pairs, hh_rlhf, commongen, arguments: published data in local files, see their
modules. newswire_instructed, docstrings_instructed, xsum_instructed: with instructions, see
`instructions`. Register your own files with `tasks.jsonl.register`, preference pairs with
`tasks.preferences.register`.
"""

from dera_jax.data import seqio_extra  # noqa: F401 (before a task imports TensorFlow)
from tasks import (
    aclsum,
    aclsum_paragraphs,
    arguments,
    commongen,
    corruptions,
    docstrings,
    hh_rlhf,
    instructions,
    newswire,
    preferences,
    pretraining,
    tldr,
    xsum,
)

__all__ = [
    "aclsum",
    "aclsum_paragraphs",
    "arguments",
    "commongen",
    "corruptions",
    "docstrings",
    "hh_rlhf",
    "instructions",
    "newswire",
    "preferences",
    "pretraining",
    "tldr",
    "xsum",
]
