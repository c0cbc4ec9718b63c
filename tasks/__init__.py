"""The seqio tasks: `import tasks` registers all of them.

docstrings, prose: from the installed packages; newswire: generated. docstrings_pairs,
docstrings_entailment, newswire_pairs, newswire_entailment: made from these by `corruptions`. xsum,
tldr, tldr_pairs, hh_rlhf, commongen, arguments: local files of published data, see their modules.
newswire_instructed, docstrings_instructed, xsum_instructed: with instructions, see `instructions`.
A user's own files: `tasks.jsonl.register`, pairs: `tasks.preferences.register`.
"""

from tasks import (
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
