"""Reads the parameters of T5X checkpoints, without T5X.

legacy   a msgpack file with the parameter tree; large arrays are zarr folders next to it
orbax    one OCDBT store in the folder `state`, with a description of the tree in `_METADATA`

Both hold a whole train state or only parameters; the parameters are below `target`. Neither holds
the model's sizes or vocabulary; the sizes are inferred from the arrays' shapes.

Source: t5x/checkpoints.py (google-research/t5x), for the format that T5X writes.
"""

from collections.abc import Mapping, Sequence

import flax.traverse_util
import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts
from flax import serialization

from dera_jax.checkpoints.mismatch import Shape
from dera_jax.checkpoints.storage import (
    Folder,
    Index,
    StoredArray,
    explain_read_errors,
    in_memory,
    prefix_errors,
)
from dera_jax.models.t5 import T5Config

LEGACY, ORBAX = "checkpoint", "state"  # a file and a folder
_ORBAX_TREE = "_METADATA"
_OLDEST = 2  # oldest supported version of legacy checkpoints
_PARAMETERS = "target"
_HALF = ml_dtypes.bfloat16
# Raised by msgpack and flax for damaged files.
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def is_orbax(folder: Folder) -> bool:
    """Returns whether a folder is a T5X checkpoint in orbax format."""
    return folder.inside(ORBAX).has(_ORBAX_TREE)


def open_legacy(folder: Folder, name: str = LEGACY) -> dict[str, StoredArray]:
    """Opens a checkpoint in legacy format.

    Args:
        folder: folder of the checkpoint.
        name: name of the msgpack file.

    Returns:
        The parameters by path, joined by '/'.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no T5X checkpoint, or its version is too old.
    """
    where = folder.path(name)
    try:
        content = serialization.msgpack_restore(folder.read(name))
    except (msgpack.exceptions.UnpackException, *_DAMAGE) as error:
        raise ValueError(f"{where}: half written or damaged ({error!r:.300})") from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < _OLDEST:
        raise ValueError(f"{where}: no T5X checkpoint of version {_OLDEST} or later")
    optimizer = content.get("optimizer")
    tree = optimizer.get(_PARAMETERS) if isinstance(optimizer, dict) else None
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{where}: no parameters (no 'optimizer/{_PARAMETERS}')")
    flat = flax.traverse_util.flatten_dict(tree, sep="/", is_leaf=lambda _, x: _is_spec(x))
    specs = {path: leaf for path, leaf in flat.items() if _is_spec(leaf)}
    stored = _open_all({p: _zarr(folder, spec) for p, spec in specs.items()}, folder)
    inline = {
        path: in_memory(_native(np.asarray(x)), f"{where}: array {path}")
        for path, x in flat.items()
        if path not in stored
    }
    return {path: stored.get(path) or inline[path] for path in flat}


def open_orbax(folder: Folder) -> dict[str, StoredArray]:
    """Opens a checkpoint in orbax format.

    Returns:
        The parameters by path, joined by '/'.

    Raises:
        ValueError: a file is damaged, or the checkpoint has no parameters.
    """
    state = folder.inside(ORBAX)
    metadata = state.read_json(_ORBAX_TREE)
    try:
        entries = metadata["tree_metadata"].values()
        paths = [[str(part["key"]) for part in entry["key_metadata"]] for entry in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{state.path(_ORBAX_TREE)}: no description of a tree") from error
    paths = [path[1:] for path in paths if path[:1] == [_PARAMETERS]]
    if not paths:
        raise ValueError(f"{state.path(_ORBAX_TREE)}: no parameters (no {_PARAMETERS!r})")
    # Without this option, orbax omits chunks that are 0 throughout.
    complete = metadata.get("store_array_data_equal_to_fill_value", False)
    base = {"driver": "ocdbt", "base": dict(state.store)}
    specs = {
        "/".join(path): {
            "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
            "kvstore": {**base, "path": ".".join([_PARAMETERS, *path]) + "/"},
        }
        | ({"fill_missing_data_reads": False} if complete else {})
        for path in paths
    }
    return _open_all(specs, state)


def _is_spec(leaf: object) -> bool:
    return isinstance(leaf, dict) and {"driver", "kvstore", "metadata"} <= leaf.keys()


def _zarr(folder: Folder, spec: Mapping) -> dict[str, object]:
    """Return the tensorstore specification of a leaf.

    Only the last component of the stored path is used, since the checkpoint may have been moved.
    """
    kvstore = spec["kvstore"]
    path = (kvstore.get("path") if isinstance(kvstore, dict) else None) or spec.get("path")
    name = str(path or "").rstrip("/").rpartition("/")[2]
    # T5X writes every chunk, so a missing chunk means damage; tensorstore would read zeros.
    missing = {"fill_missing_data_reads": False}
    return {"driver": "zarr", "kvstore": dict(folder.inside(name).store), **missing}


def _open_all(specs: Mapping[str, Mapping], folder: Folder) -> dict[str, StoredArray]:
    """Open arrays concurrently, for the latency of buckets, and read only their metadata."""
    # Chunks are decompressed one at a time, since each thread that does so retains memory.
    context = ts.Context(
        {x: {"limit": 1} for x in ("data_copy_concurrency", "file_io_concurrency")}
    )
    opening = {
        path: ts.open(dict(spec), open=True, context=context) for path, spec in specs.items()
    }
    arrays = {}
    for path, future in opening.items():
        with explain_read_errors(f"{folder.where}: array {path}"):
            arrays[path] = _stored(future.result(), f"{folder.where}: array {path}")
    return arrays


def _stored(store: ts.TensorStore, where: str) -> StoredArray:
    def read(index: Index) -> np.ndarray:
        _check_room(store[index].shape, store.dtype.numpy_dtype, where)
        with explain_read_errors(where):
            return _native(store[index].read().result())

    stored = store.dtype.numpy_dtype
    dtype = np.dtype(_HALF if stored == np.uint16 else stored)
    return StoredArray(tuple(store.shape), dtype, read, where)


def _check_room(shape: Sequence[int], dtype: np.dtype, where: str) -> None:
    """Raise ValueError for an array larger than memory; tensorstore would abort the process."""
    try:
        np.empty(shape, dtype)  # reserves memory without filling it
    except (MemoryError, ValueError) as error:
        raise ValueError(f"{where}: the array does not fit into memory ({error})") from error


def _native(array: np.ndarray) -> np.ndarray:
    """Convert the 16-bit integers as which version 2 stores bfloat16 values."""
    return array.view(_HALF) if array.dtype == np.uint16 else array


def config_of(shapes: Mapping[str, Shape], where: str) -> T5Config:
    """Infers the configuration of a T5 from the shapes of its parameters, by name.

    Raises:
        ValueError: the parameters are not those of a T5 1.0 or 1.1.
    """
    try:
        vocab_size, emb_dim = shapes["token_embedder/embedding"]
        num_heads, _ = shapes["decoder/relpos_bias/rel_embedding"]
        _, joined = shapes["decoder/layers_0/self_attention/query/kernel"]
        gated = "decoder/layers_0/mlp/wi_0/kernel" in shapes
        _, mlp_dim = shapes[f"decoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel"]
    except (KeyError, ValueError) as error:
        examples = ", ".join(sorted(shapes)[:3])
        raise ValueError(
            f"{where}: unknown architecture: it has no array {error} as T5 1.0 and 1.1 do (its first "
            f"arrays are {examples}); other T5X networks and scanned layers are not supported"
        ) from error
    with prefix_errors(where):
        return T5Config(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=num_heads,
            num_encoder_layers=_num_layers(shapes, "encoder"),
            num_decoder_layers=_num_layers(shapes, "decoder"),
            head_dim=joined // max(num_heads, 1),
            mlp_dim=mlp_dim,
            mlp_activations=("gelu", "linear") if gated else ("relu",),
            logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
        )


def _num_layers(shapes: Mapping[str, Shape], stack: str) -> int:
    return len({path.split("/")[1] for path in shapes if path.startswith(f"{stack}/layers_")})
