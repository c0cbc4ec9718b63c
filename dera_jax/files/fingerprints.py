"""Hashes arrays, texts and configurations, so that a resumed run can compare its inputs."""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def hash_arrays(tree: object) -> str:
    """Return one SHA-256 over all arrays of a pytree, with their paths, dtypes and shapes.

    The arrays are copied to the host one after the other.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def hash_strings(*columns: Sequence[str]) -> str:
    """Return one SHA-256 over columns of strings of equal length."""
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        for text in row:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


def describe(value: object) -> object:
    """Convert a configuration to JSON values; equal ones give equal values in all processes.

    Dataclasses become their type name and fields, functions their names, arrays their hashes.
    """
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no such number
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | jax.Array):
        return hash_arrays(value)
    if isinstance(value, Mapping):
        return {str(key): describe(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [describe(part) for part in value]
    if isinstance(value, functools.partial):
        return ["partial", describe(value.func), describe(value.args), describe(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__qualname__} | fields
    if hasattr(value, "__qualname__"):  # a function, method or class
        return f"{value.__module__}.{value.__qualname__}"
    return _ADDRESS.sub("", repr(value))
