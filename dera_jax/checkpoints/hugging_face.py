"""Models in the format of Hugging Face's transformers.

config.json                     sizes and architecture
model.safetensors               parameters, or shards of them with model.safetensors.index.json

What else is there says what the ids mean: `hugging_face_tokenizer`. What belongs to one family of
models is in a module of its own, see `importers`.
"""

import math
import shutil
from pathlib import Path

import flax.traverse_util
import jax.numpy as jnp
import safetensors.flax
from jax import Array

from dera_jax import json_files
from dera_jax.checkpoints import importers
from dera_jax.checkpoints.hugging_face_tokenizer import (
    CONFIG,
    GENERATION,
    save_tokenizer,
    special_ids,
)
from dera_jax.checkpoints.safetensors_file import open_safetensors
from dera_jax.checkpoints.storage import REAL, Folder, StoredArray, naming
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.models.finite import check_params
from dera_jax.models.language_model import PyTree
from dera_jax.models.registry import model_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack")


def config_of(folder: Folder) -> object:
    """The configuration in config.json, with the special ids of the folder.

    Raises:
        FileNotFoundError, ValueError: no such file, another architecture, or a setting that the
            family here does not have.
    """
    settings, where = folder.read_json(CONFIG), folder.path(CONFIG)
    importer = importers.by_model_type(settings.get("model_type"), where)
    with naming(where):
        return importer.config_of(settings, where, *special_ids(folder))


def open_hugging_face(folder: Folder) -> tuple[object, dict[str, StoredArray]]:
    """The configuration, and the parameters under our names.

    Raises:
        FileNotFoundError: a file that config or index name is missing.
        ValueError: as `config_of`; a file that is damaged; or an array too few or too many.
    """
    config, stored = config_of(folder), _arrays(folder)
    importer = importers.of(config)
    found, places, shapes = {}, set(importer.UNUSED), dict(model_of(config).param_shapes())
    for ours, theirs, inputs in importer.names_of(config):
        places.update(theirs)
        name = next((name for name in theirs if name in stored), None)
        if name is None:
            raise ValueError(f"{folder.where}: the parameters lack {theirs[0]!r}")
        found[ours] = _as_ours(stored[name], inputs, shapes[ours])
    parameters = {name for name, x in stored.items() if x.dtype in REAL}  # the others are buffers
    if left := sorted(parameters - places):
        raise ValueError(
            f"{folder.where}: a model of the sizes in {CONFIG} has no place for {left[0]!r}"
        )
    importer.check(config, found, stored)
    return config, found


def save_hugging_face(
    folder: Path, config: object, vocabulary: Vocabulary | None, params: PyTree, dtype: str
) -> None:
    """Writes a folder that transformers loads, complete or not at all.

    Args:
        folder: to be made.
        config: the model's configuration.
        vocabulary: what its ids mean, if that is known.
        params: the model's.
        dtype: of the stored parameters, 'float32' or 'bfloat16'.

    Raises:
        FileExistsError: the folder is there already.
        FloatingPointError: a parameter is NaN or infinite.
        ValueError: a setting that transformers has no name for.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another folder, or remove it")
    flat, importer = flax.traverse_util.flatten_dict(params, sep="/"), importers.of(config)
    arrays = {
        theirs[0]: jnp.asarray(_as_theirs(flat[ours], inputs), dtype)
        for ours, theirs, inputs in importer.names_of(config)
    }
    check_params(arrays, f"the model to be written to {folder}")
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    safetensors.flax.save_file(arrays, draft / WEIGHTS, metadata={"format": "pt"})
    ids = importer.special_ids(config)
    json_files.write(draft / CONFIG, importer.described(config, dtype) | ids, sort_keys=True)
    json_files.write(draft / GENERATION, ids, sort_keys=True)
    if vocabulary is not None:
        save_tokenizer(draft, vocabulary)
    draft.rename(folder)


def _as_ours(array: StoredArray, inputs: int, shape: tuple[int, ...]) -> StoredArray:
    """A stored array in our shape; see `importers` for `inputs`."""
    array = array.transposed() if inputs else array
    fits = math.prod(array.shape) == math.prod(shape)  # a wrong size is named by who compares them
    return array if array.shape == shape or not fits else array.reshaped(shape)


def _as_theirs(array: Array, inputs: int) -> Array:
    """One of our parameters as it is stored."""
    if not inputs:
        return array
    return array.reshape(math.prod(array.shape[:inputs]), -1).T


def _arrays(folder: Folder) -> dict[str, StoredArray]:
    """All arrays, of one file or of the shards that the index names."""
    if not folder.has(INDEX):
        return open_safetensors(folder, WEIGHTS)
    index = folder.read_json(INDEX).get("weight_map")
    names = index.values() if isinstance(index, dict) else [None]
    if not index or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder.path(INDEX)}: no weight_map from names of arrays to files")
    shards = {}
    for name in sorted(set(index.values())):
        if not folder.has(name):
            raise FileNotFoundError(
                f"no file {folder.path(name)}, a shard that {folder.path(INDEX)} names"
            )
        shards[name] = open_safetensors(folder, name)
    for key, name in index.items():
        if key not in shards[name]:
            raise ValueError(f"{folder.path(name)}: no array {key!r}, which {INDEX} places there")
    return {key: shards[name][key] for key, name in index.items()}
