"""Models in the format of Hugging Face's transformers: T5, T5 1.1, Flan-T5, mT5 and ByT5.

config.json                     sizes and architecture
model.safetensors               parameters, or shards of them with model.safetensors.index.json

What else is there says what the ids mean: `hugging_face_tokenizer`.

Kernels are stored [out, in], the table of relative positions [buckets, heads]; T5X has both the
other way round.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.flax

from dera_jax import json_files
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
from dera_jax.models.layers import MAX_DISTANCE, NUM_BUCKETS
from dera_jax.models.t5 import T5Config, is_size

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack")
_KNOWN = ("t5", "mt5")
_ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}
_FIXED = {
    "relative_attention_num_buckets": NUM_BUCKETS,
    "relative_attention_max_distance": MAX_DISTANCE,
    "layer_norm_epsilon": 1e-6,
}
_SIZES = (
    "vocab_size", "d_model", "num_heads", "num_layers", "num_decoder_layers", "d_kv", "d_ff",
)  # fmt: skip
# Some old files hold these beside what is used.
_UNUSED = (
    "lm_head.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
_EMBEDDING, _LOGITS = "token_embedder/embedding", "decoder/logits_dense/kernel"


def config_of(folder: Folder) -> T5Config:
    """The sizes in config.json, and the start and end token.

    Raises:
        FileNotFoundError, ValueError: no such file, another architecture, or one of its settings
            that T5 here does not have.
    """
    settings = _settings(folder)
    with naming(folder.path(CONFIG)):
        return _config(settings, *special_ids(folder))


def open_hugging_face(folder: Folder) -> tuple[T5Config, dict[str, StoredArray]]:
    """The sizes, and the parameters under T5X's names.

    Raises:
        FileNotFoundError: a file that config or index name is missing.
        ValueError: as `config_of`; a file that is damaged; or an array too few or too many.
    """
    config, stored = config_of(folder), _arrays(folder)
    found, places = {}, set(_UNUSED)
    for ours, theirs, transposed in _names(config):
        places.update(theirs)
        name = next((name for name in theirs if name in stored), None)
        if name is None:
            raise ValueError(f"{folder.where}: the parameters lack {theirs[0]!r}")
        found[ours] = stored[name].transposed() if transposed else stored[name]
    parameters = {name for name, x in stored.items() if x.dtype in REAL}  # the others are buffers
    if left := sorted(parameters - places):
        raise ValueError(
            f"{folder.where}: a model of the sizes in {CONFIG} has no place for {left[0]!r}"
        )
    if config.logits_via_embedding and "lm_head.weight" in stored:
        _check_tied(found[_EMBEDDING], stored["lm_head.weight"], folder)
    return config, found


def save_hugging_face(
    folder: Path, config: T5Config, vocabulary: Vocabulary | None, params: PyTree, dtype: str
) -> None:
    """Writes a folder that transformers loads as T5ForConditionalGeneration, complete or not at all.

    Args:
        folder: to be made.
        config: the model's sizes.
        vocabulary: what its ids mean, if that is known.
        params: T5X's tree.
        dtype: of the stored parameters, 'float32' or 'bfloat16'.

    Raises:
        FileExistsError: the folder is there already.
        FloatingPointError: a parameter is NaN or infinite.
        ValueError: activations that transformers has no name for.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another folder, or remove it")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {
        theirs[0]: jnp.asarray(flat[ours].T if transposed else flat[ours], dtype)
        for ours, theirs, transposed in _names(config)
    }
    check_params(arrays, f"the model to be written to {folder}")
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    safetensors.flax.save_file(arrays, draft / WEIGHTS, metadata={"format": "pt"})
    ids = _special_ids(config)
    json_files.write(draft / CONFIG, _described(config, dtype) | ids, sort_keys=True)
    json_files.write(draft / GENERATION, ids, sort_keys=True)
    if vocabulary is not None:
        save_tokenizer(draft, vocabulary)
    draft.rename(folder)


def _settings(folder: Folder) -> Mapping:
    settings, where = folder.read_json(CONFIG), folder.path(CONFIG)
    kind = settings.get("model_type")
    if kind not in _KNOWN:
        raise ValueError(
            f"{where}: unknown architecture {kind!r}; model_type must be one of {', '.join(_KNOWN)} "
            "(T5, T5 1.1, Flan-T5, mT5, ByT5)"
        )
    for name, expected in _FIXED.items():
        if settings.get(name, expected) != expected:
            raise ValueError(f"{where}: {name} is {settings[name]}; only {expected} is supported")
    if settings.get("feed_forward_proj", "relu") not in list(_ACTIVATIONS):
        raise ValueError(
            f"{where}: feed_forward_proj is {settings['feed_forward_proj']!r}; supported are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    if settings.get("num_decoder_layers") is None:  # as transformers writes it for the same number
        settings = {**settings, "num_decoder_layers": settings.get("num_layers")}
    for name in _SIZES:
        if not is_size(settings.get(name)):
            raise ValueError(
                f"{where}: {name} is {settings.get(name)!r}; it must be an integer of at least 1"
            )
    for name in ("scale_decoder_outputs", "tie_word_embeddings"):
        if not isinstance(settings.get(name, True), bool):
            raise ValueError(  # noqa: TRY004 (of a file)
                f"{where}: {name} is {settings[name]!r}; it must be true or false"
            )
    return settings


def _config(settings: Mapping, start_token: int, end_token: int | None) -> T5Config:
    return T5Config(
        vocab_size=settings["vocab_size"],
        emb_dim=settings["d_model"],
        num_heads=settings["num_heads"],
        num_encoder_layers=settings["num_layers"],
        num_decoder_layers=settings["num_decoder_layers"],
        head_dim=settings["d_kv"],
        mlp_dim=settings["d_ff"],
        mlp_activations=_ACTIVATIONS[settings.get("feed_forward_proj", "relu")],
        logits_via_embedding=_is_scaled(settings),
        dropout_rate=settings.get("dropout_rate", 0.1),
        start_token=start_token,
        end_token=end_token,
    )


def _is_scaled(settings: Mapping) -> bool:
    """Whether logits are divided by sqrt(E), as T5 1.0 does with its tied table.

    What is tied does not tell: transformers 5 ties 1.1 and mT5 too when it makes them, without
    dividing. Such a table is read twice, as embedding and as the logits' kernel.
    """
    if settings["model_type"] == "mt5":
        return False
    return settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))


def _described(config: T5Config, dtype: str) -> dict[str, object]:
    """config.json of a model."""
    forward = [name for name, x in _ACTIVATIONS.items() if x == config.mlp_activations]
    if not forward:
        raise ValueError(f"transformers has no T5 with the activations {config.mlp_activations}")
    return _FIXED | {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "feed_forward_proj": forward[0],
        "tie_word_embeddings": config.logits_via_embedding,
        "dropout_rate": config.dropout_rate,
    }


def _special_ids(config: T5Config) -> dict[str, int | None]:
    """Under the names of transformers; null for an end token that nobody knows."""
    return {
        "decoder_start_token_id": config.start_token,
        "eos_token_id": config.end_token,
        "pad_token_id": 0,
    }


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


def _names(config: T5Config) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Of every parameter: T5X's name, theirs (the first is written), whether it is transposed."""
    table = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    yield _EMBEDDING, table, False
    for stack, layers in (
        ("encoder", config.num_encoder_layers),
        ("decoder", config.num_decoder_layers),
    ):
        yield f"{stack}/{stack}_norm/scale", (f"{stack}.final_layer_norm.weight",), False
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"{stack}/relpos_bias/rel_embedding", (bias,), True
        for i in range(layers):
            for ours, theirs, transposed in _layer(stack, len(config.mlp_activations)):
                yield (
                    f"{stack}/layers_{i}/{ours}",
                    (f"{stack}.block.{i}.layer.{theirs}",),
                    transposed,
                )
    if not config.logits_via_embedding:
        yield _LOGITS, ("lm_head.weight", *table), True


def _layer(stack: str, num_wi: int) -> Iterator[tuple[str, str, bool]]:
    own = "attention" if stack == "encoder" else "self_attention"
    parts = [(own, "SelfAttention")]
    if stack == "decoder":
        parts.append(("encoder_decoder_attention", "EncDecAttention"))
    norms = {own: own, "encoder_decoder_attention": "cross_attention"}
    for at, (ours, theirs) in enumerate(parts):
        yield f"pre_{norms[ours]}_layer_norm/scale", f"{at}.layer_norm.weight", False
        for name in ("query", "key", "value", "out"):
            short = {"out": "o"}.get(name, name[0])
            yield f"{ours}/{name}/kernel", f"{at}.{theirs}.{short}.weight", True
    at = len(parts)
    yield "pre_mlp_layer_norm/scale", f"{at}.layer_norm.weight", False
    for name in [*(["wi"] if num_wi == 1 else [f"wi_{i}" for i in range(num_wi)]), "wo"]:
        yield f"mlp/{name}/kernel", f"{at}.DenseReluDense.{name}.weight", True


def _check_tied(table: StoredArray, head: StoredArray, folder: Folder) -> None:
    everything = tuple(slice(0, size) for size in table.shape)
    same = table.shape == head.shape
    if not (same and np.array_equal(table.read(everything), head.read(everything))):
        raise ValueError(
            f"{folder.path(CONFIG)}: the logits are said to use the embedding (tie_word_embeddings), "
            "but lm_head.weight is another table"
        )
