"""Finite numbers are checked where they enter: parameters, log-probabilities, rewards, losses.

A NaN that is not seen there ends as a text, a rank or a mean that looks like any other.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 2**18  # values looked at together, so that no mask as large as the array is made


def count_not_finite(array: np.ndarray) -> int:
    """How many of an array's real numbers are NaN or infinite."""
    flat = array.ravel(order="K")  # of a transposed array too a view, no copy
    blocks = (np.isfinite(flat[i : i + _BLOCK]) for i in range(0, flat.size, _BLOCK))
    return sum(x.size - np.count_nonzero(x) for x in blocks)


def check_params(params: object, where: str) -> None:
    """Check a tree of arrays; every process looks at the parts that its devices hold.

    Args:
        params: the tree; leaves that are no real numbers are passed over.
        where: what they are, for the message.

    Raises:
        FloatingPointError: naming the first array with values that are NaN or infinite.
    """
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        bad = sum(count_not_finite(part) for part, _ in _parts(x))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise FloatingPointError(
                f"{where}: {bad:,} of {x.size:,} values of {name} are NaN or infinite"
            )


def check_values(values: Mapping[str, jax.Array], axes: Sequence[str], lam: object = None) -> None:
    """Check what a compiled call gave back; values that an outer jit traces are passed over.

    Args:
        values: arrays by what they are called in the message; None is passed over.
        axes: names of the leading axes of all arrays, such as ('input', 'hypothesis').
        lam: λ [B, G] or [B, G, M] of the places along the first two axes, each of adjacent places
            along the second, to be named too.

    Raises:
        FloatingPointError: naming the first array with a value that is NaN or infinite, and where.
    """
    for name, x in values.items():
        if x is None or isinstance(x, jax.core.Tracer):
            continue
        for part, begin in _parts(x):
            if count_not_finite(part):
                each = None if lam is None else np.repeat(lam, x.shape[1] // lam.shape[1], axis=1)
                raise FloatingPointError(_sentence(name, part, begin, axes, each))


def _sentence(name: str, part: np.ndarray, begin: Sequence[int], axes, lam) -> str:
    bad = np.argwhere(~np.isfinite(part))
    at = tuple(int(i) for i in bad[0] + np.array(begin, int))
    places = [f"{axis} {i}" for axis, i in zip(axes, at, strict=False)]
    if lam is not None:
        places.append(f"λ = {np.asarray(lam)[at[:2]].tolist()}")
    return (
        f"the {name} of {', '.join(places)} (counted from 0) is {part[tuple(bad[0])]}; "
        f"{len(bad):,} of {part.size:,} values of this batch are NaN or infinite"
    )


def _parts(x: jax.Array | np.ndarray) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """The different parts of an array that this process holds, and where each begins."""
    if not isinstance(x, jax.Array):
        return [(x, (0,) * x.ndim)]
    parts = {tuple(axis.start or 0 for axis in s.index): s.data for s in x.addressable_shards}
    return [(np.asarray(part), begin) for begin, part in parts.items()]
