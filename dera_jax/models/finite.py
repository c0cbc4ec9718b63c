"""Checks for NaN and infinite values in parameters, log-probabilities, rewards and losses.

The checks run where the numbers are produced or loaded. A NaN that passes there would end as a
sequence, a rank or a mean that looks like any other.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 2**18  # values checked at a time, so that no mask as large as the array is allocated


def count_not_finite(array: np.ndarray) -> int:
    """Returns how many values of an array of real numbers are NaN or infinite."""
    flat = array.ravel(order="K")  # a view for transposed arrays too, not a copy
    blocks = (np.isfinite(flat[i : i + _BLOCK]) for i in range(0, flat.size, _BLOCK))
    return sum(x.size - np.count_nonzero(x) for x in blocks)


def check_params(params: object, where: str) -> None:
    """Checks that parameters are finite; every process checks the shards on its own devices.

    Args:
        params: tree of arrays of any shape; leaves that are not floating point are skipped.
        where: the origin of the parameters, such as a path, with which the message starts.

    Raises:
        FloatingPointError: naming the first array with values that are NaN or infinite.
    """
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        bad = sum(count_not_finite(shard) for shard, _ in _local_shards(x))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise FloatingPointError(
                f"{where}: {bad:,} of {x.size:,} values of {name} are NaN or infinite"
            )


def check_values(values: Mapping[str, jax.Array], axes: Sequence[str], lam: object = None) -> None:
    """Checks that the results of a compiled call are finite; values traced by a jit are skipped.

    Args:
        values: arrays by their name in the message; None is skipped.
        axes: names of the leading axes of all arrays, such as ('input', 'hypothesis').
        lam: λ [B, G] or [B, G, M], which the message names too: B is the arrays' first axis, and
            each of the G values belongs to an equal number of adjacent entries of the second axis.

    Raises:
        FloatingPointError: naming the first array with a value that is NaN or infinite, its indices
            and λ.
    """
    for name, x in values.items():
        if x is None or isinstance(x, jax.core.Tracer):
            continue
        for shard, begin in _local_shards(x):
            if count_not_finite(shard):
                if lam is not None:
                    lam = np.repeat(lam, x.shape[1] // lam.shape[1], axis=1)
                raise FloatingPointError(_message(name, shard, begin, axes, lam))


def _message(name: str, shard: np.ndarray, begin: Sequence[int], axes, lam) -> str:
    """Describes the first value of a shard that is not finite; lam is [B, K] or [B, K, M]."""
    bad = np.argwhere(~np.isfinite(shard))
    index = tuple(int(i) for i in bad[0] + np.array(begin, int))
    labels = [f"{axis} {i}" for axis, i in zip(axes, index, strict=False)]
    if lam is not None:
        labels.append(f"λ = {np.asarray(lam)[index[:2]].tolist()}")
    return (
        f"the {name} of {', '.join(labels)} (counted from 0) is {shard[tuple(bad[0])]}; "
        f"{len(bad):,} of {shard.size:,} values in this shard of the batch are NaN or infinite"
    )


def _local_shards(x: jax.Array | np.ndarray) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """Returns the distinct shards of an array on this process, each with its first index."""
    if not isinstance(x, jax.Array):
        return [(x, (0,) * x.ndim)]
    shards = {tuple(axis.start or 0 for axis in s.index): s.data for s in x.addressable_shards}
    return [(np.asarray(shard), begin) for begin, shard in shards.items()]
