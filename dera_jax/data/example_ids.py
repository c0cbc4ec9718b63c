"""Makes ids of examples, which are unique, since the PRNG keys of an example are derived from its id."""

import collections
import hashlib

import numpy as np

from dera_jax.log import warn_once


def hashed_id(text: str) -> int:
    """Return an example id from a text, 31 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


def make_ids_unique(ids: np.ndarray, where: str) -> np.ndarray:
    """Replace repeated ids, so that all n ids differ; warn once about them.

    A new id is a hash of the old id and of how often that id was replaced before.

    Args:
        ids: int32 [n].
        where: task and split, for the warning.
    """
    _, first = np.unique(ids, return_index=True)
    repeated = np.setdiff1d(np.arange(len(ids)), first)
    if not len(repeated):
        return ids
    message = f"{where}: {len(repeated)} of {len(ids)} examples repeat the id of an earlier one "
    message += "(usually because the document is the same) and were given new ids; confidence "
    warn_once(f"{message}intervals count them as separate examples", about=(where, len(ids)))
    ids, taken, seen = ids.copy(), set(ids.tolist()), collections.Counter()
    for row in repeated:
        old = ids[row].item()
        while ids[row] in taken:
            seen[old] += 1
            digest = hashlib.sha256(f"{old} {seen[old]}".encode()).digest()
            ids[row] = int.from_bytes(digest[:4], "big") >> 1
        taken.add(ids[row].item())
    return ids
