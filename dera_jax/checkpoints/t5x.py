"""Checkpoints that T5X wrote, read without T5X.

legacy   a msgpack file that holds the tree; its large arrays are zarr folders beside it
orbax    one OCDBT store in the folder `state`, with the tree's description in `_METADATA`

Both hold a whole train state or only parameters; the parameters are below `target`. Neither holds
the model's sizes or vocabulary: the sizes follow from the arrays' shapes.

Source: t5x/checkpoints.py (google-research/t5x) for what is written.
"""

from collections.abc import Mapping, Sequence

import flax.traverse_util
import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts
from flax import serialization

from dera_jax.checkpoints.mismatch import Shape
from dera_jax.checkpoints.storage import Folder, Index, StoredArray, explained, in_memory, naming
from dera_jax.models.t5 import T5Config

LEGACY, ORBAX = "checkpoint", "state"  # the file, the folder
_ORBAX_TREE = "_METADATA"
_OLDEST = 2  # version of legacy checkpoints that is still read
_PARAMETERS = "target"
_HALF = ml_dtypes.bfloat16
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # of msgpack and flax


def is_orbax(folder: Folder) -> bool:
    """Whether T5X wrote an orbax checkpoint there."""
    return folder.inside(ORBAX).has(_ORBAX_TREE)


def open_legacy(folder: Folder, name: str = LEGACY) -> dict[str, StoredArray]:
    """The parameters by their path, joined by '/'.

    Args:
        folder: of the checkpoint.
        name: of the msgpack file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged, is no T5X checkpoint, or is too old.
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
    """As `open_legacy`, of a checkpoint that T5X wrote with orbax."""
    inside = folder.inside(ORBAX)
    described = inside.read_json(_ORBAX_TREE)
    try:
        entries = described["tree_metadata"].values()
        paths = [[str(step["key"]) for step in entry["key_metadata"]] for entry in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{inside.path(_ORBAX_TREE)}: no description of a tree") from error
    paths = [path[1:] for path in paths if path[:1] == [_PARAMETERS]]
    if not paths:
        raise ValueError(f"{inside.path(_ORBAX_TREE)}: no parameters (no {_PARAMETERS!r})")
    # Without this setting, orbax leaves out what is 0 throughout.
    complete = described.get("store_array_data_equal_to_fill_value", False)
    base = {"driver": "ocdbt", "base": dict(inside.store)}
    specs = {
        "/".join(path): {
            "driver": "zarr3" if described.get("use_zarr3") else "zarr",
            "kvstore": {**base, "path": ".".join([_PARAMETERS, *path]) + "/"},
        }
        | ({"fill_missing_data_reads": False} if complete else {})
        for path in paths
    }
    return _open_all(specs, inside)


def _is_spec(leaf: object) -> bool:
    return isinstance(leaf, dict) and {"driver", "kvstore", "metadata"} <= leaf.keys()


def _zarr(folder: Folder, spec: Mapping) -> dict[str, object]:
    """tensorstore's spec of a leaf. The checkpoint may have been moved since it was written, so only
    the last part of its path counts, and neither its bucket nor its driver."""
    kvstore = spec["kvstore"]
    path = (kvstore.get("path") if isinstance(kvstore, dict) else None) or spec.get("path")
    name = str(path or "").rstrip("/").rpartition("/")[2]
    # T5X writes every chunk, so one that is missing is lost; tensorstore would take it for zeros.
    missing = {"fill_missing_data_reads": False}
    return {"driver": "zarr", "kvstore": dict(folder.inside(name).store), **missing}


def _open_all(specs: Mapping[str, Mapping], folder: Folder) -> dict[str, StoredArray]:
    """Opens arrays side by side: in a bucket each takes a while. Only their sizes are read."""
    # One chunk is unpacked at a time: every thread that does so keeps memory of a chunk's size.
    context = ts.Context(
        {x: {"limit": 1} for x in ("data_copy_concurrency", "file_io_concurrency")}
    )
    opening = {
        path: ts.open(dict(spec), open=True, context=context) for path, spec in specs.items()
    }
    found = {}
    for path, future in opening.items():
        with explained(f"{folder.where}: array {path}"):
            found[path] = _stored(future.result(), f"{folder.where}: array {path}")
    return found


def _stored(store: ts.TensorStore, where: str) -> StoredArray:
    def read(index: Index) -> np.ndarray:
        _check_room(store[index].shape, store.dtype.numpy_dtype, where)
        with explained(where):
            return _native(store[index].read().result())

    stored = store.dtype.numpy_dtype
    dtype = np.dtype(_HALF if stored == np.uint16 else stored)
    return StoredArray(tuple(store.shape), dtype, read, where)


def _check_room(shape: Sequence[int], dtype: np.dtype, where: str) -> None:
    """Raises ValueError for an array that memory cannot hold: tensorstore would end the process."""
    try:
        np.empty(shape, dtype)  # reserved, not filled
    except (MemoryError, ValueError) as error:
        raise ValueError(f"{where}: more than memory holds ({error})") from error


def _native(array: np.ndarray) -> np.ndarray:
    """Version 2 kept the bits of bfloat16 numbers as 16-bit integers."""
    return array.view(_HALF) if array.dtype == np.uint16 else array


def config_of(shapes: Mapping[str, Shape], where: str) -> T5Config:
    """The sizes of the T5 that has arrays of these shapes.

    Raises:
        ValueError: they are not those of a T5 1.0 or 1.1.
    """
    try:
        vocab_size, emb_dim = shapes["token_embedder/embedding"]
        num_heads, _ = shapes["decoder/relpos_bias/rel_embedding"]
        _, joined = shapes["decoder/layers_0/self_attention/query/kernel"]
        gated = "decoder/layers_0/mlp/wi_0/kernel" in shapes
        _, mlp_dim = shapes[f"decoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel"]
    except (KeyError, ValueError) as error:
        some = ", ".join(sorted(shapes)[:3])
        raise ValueError(
            f"{where}: unknown architecture: it has no array {error} as T5 1.0 and 1.1 do (its first "
            f"arrays are {some}); T5X's other networks, stacked layers too, cannot be read"
        ) from error
    with naming(where):
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
