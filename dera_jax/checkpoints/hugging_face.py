"""Reads and writes model folders in the format of Hugging Face's transformers.

config.json                     sizes and architecture
model.safetensors               parameters, or shards of them with model.safetensors.index.json

The other files define the tokenizer and are read by `hugging_face_tokenizer`. Each model family has
a module of its own for what differs between families, see `importers`.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.flax
from jax import Array

from dera_jax.checkpoints import hugging_face_classifier, importers
from dera_jax.checkpoints.hugging_face_tokenizer import (
    CONFIG,
    GENERATION,
    has_tokenizer,
    save_tokenizer,
)
from dera_jax.checkpoints.safetensors_file import open_safetensors
from dera_jax.checkpoints.storage import REAL, Folder, StoredArray, prefix_errors
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.files import json_files
from dera_jax.models.finite import check_params
from dera_jax.models.heads import Pooling, ValueHead
from dera_jax.models.language_model import PyTree
from dera_jax.models.registry import model_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack")
_HEAD = "lm_head.weight"  # some checkpoints store it although it is tied to the embedding
_BUFFER = ".rotary_emb.inv_freq"  # RoPE's frequencies in old checkpoints; config.json has the base


def config_of(folder: Folder) -> object:
    """Reads the model's configuration from config.json, with the folder's special token ids.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: the architecture or the value of a key is not supported.
    """
    settings, where = folder.read_json(CONFIG), folder.path(CONFIG)
    importer = importers.by_model_type(settings.get("model_type"), where)
    ids = importer.token_ids(folder)
    with prefix_errors(where):
        return importer.config_of(settings, where, **ids)


def open_hugging_face(folder: Folder) -> tuple[object, dict[str, StoredArray], Pooling | None]:
    """Returns the configuration, and the parameters by their names in dera_jax.

    The parameters are read on request, see `StoredArray`. Of a reward model they are those of a
    `ValueHead`, with the third result as its pooling; the third is None for a language model.

    Raises:
        FileNotFoundError: config.json or a shard that the index names is missing.
        ValueError: as in `config_of`; a file is damaged; an array is missing or superfluous; or as
            in `hugging_face_classifier.pooling_of`.
    """
    config, stored = config_of(folder), _stored_arrays(folder)
    importer = importers.importer_of(config)
    pooling = hugging_face_classifier.pooling_of(
        folder.read_json(CONFIG), importer, folder.path(CONFIG)
    )
    model, names = model_of(config), importer.names_of(config)
    if pooling:
        config = hugging_face_classifier.without_logits(config)
        model = ValueHead(model_of(config), pooling)
        names = hugging_face_classifier.names_of(config, importer)
    arrays, accepted, shapes = {}, set(importer.UNUSED), dict(model.param_shapes())
    is_tied = not pooling and config.logits_via_embedding
    if is_tied:
        accepted.add(_HEAD)
    for ours, theirs, inputs in names:
        accepted.update(theirs)
        name = next((name for name in theirs if name in stored), None)
        if name is None:
            raise ValueError(f"{folder.where}: the parameters lack {theirs[0]!r}")
        arrays[ours] = _imported(stored[name], inputs, shapes[ours])
    parameters = {
        name for name, x in stored.items() if x.dtype in REAL and not name.endswith(_BUFFER)
    }  # the other arrays are buffers
    if unexpected := sorted(parameters - accepted):
        raise ValueError(
            f"{folder.where}: a model of the sizes in {CONFIG} has no place for {unexpected[0]!r}"
        )
    if is_tied and _HEAD in stored:
        _check_tied(arrays["token_embedder/embedding"], stored[_HEAD])
    if pooling:
        arrays |= hugging_face_classifier.bias(folder.where)
    return config, arrays, pooling


def save_hugging_face(
    folder: Path,
    config: object,
    vocabulary: Vocabulary | None,
    params: PyTree,
    dtype: str,
    chat_template: str | None = None,
) -> None:
    """Writes a model folder that transformers can load, completely or not at all.

    Args:
        folder: folder to create.
        config: the model's configuration.
        vocabulary: the model's vocabulary; with None, no tokenizer files are written.
        params: the model's parameters.
        dtype: dtype of the stored parameters, 'float32' or 'bfloat16'.
        chat_template: source of the model's chat template; None for a model without one.

    Raises:
        FileExistsError: the folder exists.
        FloatingPointError: a parameter is NaN or infinite.
        ValueError: transformers cannot express the configuration or the vocabulary.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another folder, or remove it")
    flat, importer = flax.traverse_util.flatten_dict(params, sep="/"), importers.importer_of(config)
    arrays = {
        theirs[0]: jnp.asarray(_exported(flat[ours], inputs), dtype)
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
        save_tokenizer(draft, vocabulary, chat_template)
    draft.rename(folder)


def _imported(array: StoredArray, inputs: int, shape: tuple[int, ...]) -> StoredArray:
    """Convert a stored array to the shape of its parameter; see `importers` for `inputs`."""
    array = array.transposed() if inputs > 0 else array
    fits = math.prod(array.shape) == math.prod(shape)  # `check_shapes` reports a wrong size
    return array if array.shape == shape or not fits else array.reshaped(shape)


def _exported(array: Array, inputs: int) -> Array:
    """Convert a dera_jax parameter to the shape in which transformers stores it."""
    if inputs <= 0:
        return array.reshape(-1) if inputs else array
    return array.reshape(math.prod(array.shape[:inputs]), -1).T


def _check_tied(table: StoredArray, head: StoredArray) -> None:
    """Raises ValueError unless the stored output kernel is the embedding, as config.json says."""
    full_index = tuple(slice(0, size) for size in table.shape)
    same = table.shape == head.shape
    if not (same and np.array_equal(table.read(full_index), head.read(full_index))):
        raise ValueError(
            f"{head.where}: {CONFIG} ties the logits to the embedding (tie_word_embeddings), but this is "
            "another table; if it belongs to the model, set tie_word_embeddings to false"
        )


def shards_by_array(folder: Folder) -> dict[str, str]:
    """Returns the name of the file with each array, from the index of a sharded model.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: the index is not valid.
    """
    index = folder.read_json(INDEX).get("weight_map")
    names = index.values() if isinstance(index, dict) else [None]
    if not index or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder.path(INDEX)}: no weight_map from names of arrays to files")
    return index


def no_safetensors(folder: Folder, where: str, source: str, others: Sequence[str]) -> str:
    """Returns an error message for a model without parameters in the safetensors format.

    Args:
        folder: the model's configuration and tokenizer.
        where: the model, for the message.
        source: the model as arguments of transformers' from_pretrained.
        others: names of its files of parameters in other formats.
    """
    start = f"{where} is no complete model: it has no {WEIGHTS}"
    if not others or not folder.has(CONFIG):
        return start
    classes = [importers.transformers_class(folder.read_json(CONFIG), where)]
    if has_tokenizer(folder):
        classes.append("AutoTokenizer")
    saved = [f"{x}.from_pretrained({source}).save_pretrained('converted')" for x in classes]
    return (
        f"{start}, but {others[0]}, which is not read here (a pickle can run arbitrary code). Convert "
        f'it once, if you trust its source: python -c "from transformers import {", ".join(classes)}; '
        f'{"; ".join(saved)}"'
    )


def _stored_arrays(folder: Folder) -> dict[str, StoredArray]:
    """Open the arrays of one file, or of all shards that the index names."""
    if not folder.has(INDEX):
        return open_safetensors(folder, WEIGHTS)
    index, shards = shards_by_array(folder), {}
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
