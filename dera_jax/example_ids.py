"""Ids of examples: what all random draws for an example depend on, so that each needs its own."""

import collections
import hashlib

import numpy as np

from dera_jax.log import warn_once


def distinct(ids: np.ndarray, where: str) -> np.ndarray:
    """The ids [n], where one occurs again with another one: random draws belong to an example's id.

    A new id depends on the old one and on how often that occurred before.
    """
    _, first = np.unique(ids, return_index=True)
    repeated = np.setdiff1d(np.arange(len(ids)), first)
    if not len(repeated):
        return ids
    message = f"{where}: {len(repeated)} of {len(ids)} examples repeat the id of an earlier one "
    message += "(the same document, as a rule) and got ids of their own; they count as examples of "
    warn_once(f"{message}their own in intervals", about=(where, len(ids)))
    ids, taken, seen = ids.copy(), set(ids.tolist()), collections.Counter()
    for row in repeated:
        old = ids[row].item()
        while ids[row] in taken:
            seen[old] += 1
            digest = hashlib.sha256(f"{old} {seen[old]}".encode()).digest()
            ids[row] = int.from_bytes(digest[:4], "big") >> 1
        taken.add(ids[row].item())
    return ids
