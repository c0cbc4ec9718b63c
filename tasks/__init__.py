"""Registers all seqio tasks of this package on `import dera_jax.tasks`.

docstrings, prose: text of installed packages; newswire: generated reports. docstrings_pairs,
docstrings_entailment, newswire_pairs, newswire_entailment: derived from these by `corruptions`.
aclsum, its variants by aspect and section, and aclsum_paragraphs: papers in the package aclsum.
xsum, tldr, tldr_pairs, hh_rlhf, commongen, arguments: published data in local files, see their
modules. newswire_instructed, docstrings_instructed, xsum_instructed: with instructions, see
`instructions`. Register your own files with `dera_jax.tasks.jsonl.register`, preference pairs with
`dera_jax.tasks.preferences.register`.

The package has this one name in a clone, in a wheel and in gin files. In the clone, `dera_jax/tasks` is
a link to this folder. A package `tasks` at the top of site-packages, or in the working directory, may
be somebody else's.
"""

if __name__ != "dera_jax.tasks":  # seqio allows each task to be registered once
    raise ImportError(
        f"the tasks of dera_jax are the package dera_jax.tasks: import that, not {__name__!r}, so that "
        "each task is registered once",
        name=__name__,
    )

from dera_jax.data import seqio_extra  # noqa: F401 (before a task imports TensorFlow)
from dera_jax.tasks import (
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
