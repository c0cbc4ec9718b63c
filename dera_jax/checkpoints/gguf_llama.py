"""Imports decoder-only models from GGUF files: configuration and parameters.

Queries and keys of the architecture "llama" are stored with the two halves of each head interleaved,
as llama.cpp rotates neighbouring pairs; those of Qwen are stored as in transformers.

A key of the metadata that is not known here raises ValueError, since it may change what the model
computes. Source of the keys, tensor names and defaults: llama.cpp and its package `gguf`.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.gguf_file import GgufFile
from dera_jax.checkpoints.storage import StoredArray, prefix_errors
from dera_jax.models import llama
from dera_jax.models.llama_config import LlamaConfig, RopeScaling

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ROPE_BASE = 10_000.0  # of llama.cpp, for files without rope.freq_base
_ROPE_DIVISORS = "rope_freqs.weight"
_LLAMA_3 = {"low": 1.0, "high": 4.0, "context": 8192}  # the same in all models with scaled RoPE
_FIXED = {  # the only value that is supported, which is also the default
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,  # of older files
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "pooling_type": 0,
}
_USED = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.sliding_window", "rope.freq_base",
    "rope.dimension_count", "context_length",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "vocab_size", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "tensor_data_layout",
)  # fmt: skip
_NAMES = (
    ("pre_attention_norm/scale", "attn_norm.weight", 0),
    ("attention/query/kernel", "attn_q.weight", 1),
    ("attention/key/kernel", "attn_k.weight", 1),
    ("attention/value/kernel", "attn_v.weight", 1),
    ("attention/out/kernel", "attn_output.weight", 1),
    ("pre_mlp_norm/scale", "ffn_norm.weight", 0),
    ("mlp/gate/kernel", "ffn_gate.weight", 1),
    ("mlp/up/kernel", "ffn_up.weight", 1),
    ("mlp/down/kernel", "ffn_down.weight", 1),
)
_BIASES = tuple((f"attention/{x}/bias", f"attn_{x[0]}.bias", 0) for x in ("query", "key", "value"))
_HEAD_NORMS = tuple(
    (f"attention/{x}_norm/scale", f"attn_{x[0]}_norm.weight", 0) for x in ("query", "key")
)


def open_llama(
    file: GgufFile, end_ids: tuple[int, ...]
) -> tuple[LlamaConfig, dict[str, StoredArray]]:
    """Returns the configuration, and the parameters by their names in dera_jax.

    Args:
        file: the GGUF file.
        end_ids: the tokens that end a sequence.

    Raises:
        ValueError: the architecture or a value is not supported, or a tensor is missing or superfluous.
    """
    with prefix_errors(file.where):
        config = _config(file, end_ids)
        return config, _arrays(file, config)


def _arrays(file: GgufFile, config: LlamaConfig) -> dict[str, StoredArray]:
    is_interleaved = file.field("general.architecture") == "llama"
    used, arrays = {_ROPE_DIVISORS} if config.rope_scaling else set(), {}
    for ours, theirs, is_matrix in _names_of(config):
        array, parent = file.tensor(theirs), ours.rpartition("/")[0]
        used.add(theirs)
        if is_interleaved and parent.endswith(("query", "key")):
            array = _without_interleaving(array, config.head_dim)
        arrays[ours] = array.transposed() if is_matrix else array
    if unexpected := sorted(file.tensors.keys() - used):
        raise ValueError(f"a model of these sizes has no place for {unexpected[0]!r}")
    shapes = dict(llama.param_shapes(config))
    return {name: _in_shape(array, shapes[name]) for name, array in arrays.items()}


def _config(file: GgufFile, end_ids: tuple[int, ...]) -> LlamaConfig:
    kind = file.field("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {kind!r}; general.architecture must be one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    heads, width = (
        _size(file, f"{kind}.{x}") for x in ("attention.head_count", "embedding_length")
    )
    head_dim = _size(file, f"{kind}.attention.key_length", width // heads)
    _check_values(file, kind, head_dim)
    config = LlamaConfig(
        vocab_size=file.tensor("token_embd.weight").shape[0],
        emb_dim=width,
        num_heads=heads,
        num_kv_heads=_size(file, f"{kind}.attention.head_count_kv", heads),
        num_layers=_size(file, f"{kind}.block_count"),
        head_dim=head_dim,
        mlp_dim=_size(file, f"{kind}.feed_forward_length"),
        rope_base=file.fields.get(f"{kind}.rope.freq_base", _ROPE_BASE),
        norm_epsilon=file.field(f"{kind}.attention.layer_norm_rms_epsilon"),
        qkv_bias=kind == "qwen2",
        head_norms=kind == "qwen3",
        logits_via_embedding="output.weight" not in file.tensors,
        end_ids=end_ids,
        max_positions=file.fields.get(f"{kind}.context_length"),
    )
    window = _window(file, kind)
    return dataclasses.replace(
        config,
        rope_scaling=_rope_scaling(file, config),
        layer_windows=(window,) * config.num_layers if window else (),
    )


def _size(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.field(key) if default is None else file.fields.get(key, default)
    if not checks.is_size(value):
        raise ValueError(f"{key} is {value!r:.100}; it must be an integer of at least 1")
    return value


def _check_values(file: GgufFile, kind: str, head_dim: int) -> None:
    """Raise ValueError if the metadata contain a value or a key that is not supported."""
    if file.fields.get("general.type", "model") != "model":
        raise ValueError(
            f"general.type is {file.fields['general.type']!r}; only 'model' is supported"
        )
    fixed = _FIXED | dict.fromkeys(("attention.value_length", "rope.dimension_count"), head_dim)
    for key, value in file.fields.items():
        name = key.removeprefix(f"{kind}.")
        if name in fixed and value != fixed[name]:
            raise ValueError(f"{key} is {value!r}; only {fixed[name]!r} is supported")
        if name != key and name not in {*fixed, *_USED, *_WITHOUT_EFFECT}:
            raise ValueError(
                f"the key {key!r} ({value!r:.100}) is not known, and may change what the "
                "model computes; load the Hugging Face folder of the model"
            )


def _window(file: GgufFile, kind: str) -> int | None:
    """Returns the attention window of all layers; None for none."""
    window = file.fields.get(f"{kind}.attention.sliding_window")
    if window and kind != "llama":
        raise ValueError(
            f"{kind}.attention.sliding_window is {window!r}, and a GGUF file does not say in which layers "
            "of this architecture; load the Hugging Face folder of the model"
        )
    return window or None


def _rope_scaling(file: GgufFile, config: LlamaConfig) -> RopeScaling | None:
    """Returns the scaling of Llama 3.1, which a GGUF file stores as a divisor of each frequency.

    Raises:
        ValueError: the divisors are not those of Llama 3.1 for any factor.
    """
    if _ROPE_DIVISORS not in file.tensors:
        return None
    stored = file.tensors[_ROPE_DIVISORS]
    divisors = stored.read(tuple(slice(0, n) for n in stored.shape)).reshape(-1)
    if (
        divisors.size == config.head_dim // 2
        and np.isfinite(divisors).all()
        and divisors.min() >= 1
    ):
        scaling = RopeScaling(float(divisors.max()), **_LLAMA_3)
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        frequencies = config.rope_base**-exponents
        expected = frequencies / np.asarray(llama.scaled_frequencies(scaling, frequencies))
        if np.allclose(divisors, expected, rtol=1e-4):
            return scaling
    raise ValueError(
        f"the tensor {_ROPE_DIVISORS!r} does not scale RoPE as Llama 3.1 does, which alone is supported"
    )


def _names_of(config: LlamaConfig) -> Iterator[tuple[str, str, int]]:
    """Yields (dera_jax name, name in GGUF files, whether it is a matrix [out, in]) per parameter."""
    yield "token_embedder/embedding", "token_embd.weight", 0
    for i in range(config.num_layers):
        biases, norms = _BIASES * config.qkv_bias, _HEAD_NORMS * config.head_norms
        for ours, theirs, is_matrix in (*_NAMES, *biases, *norms):
            yield f"layers_{i}/{ours}", f"blk.{i}.{theirs}", is_matrix
    yield "final_norm/scale", "output_norm.weight", 0
    if not config.logits_via_embedding:
        yield "logits/kernel", "output.weight", 1


def _without_interleaving(array: StoredArray, head_dim: int) -> StoredArray:
    """Returns a projection [heads·head_dim, E] in which the second half of a head follows the first."""

    def read(index):
        full_index = tuple(slice(0, n) for n in array.shape)
        pairs = array.read(full_index).reshape(-1, head_dim // 2, 2, *array.shape[1:])
        return np.swapaxes(pairs, 1, 2).reshape(array.shape)[index]

    return StoredArray(array.shape, array.dtype, read, array.where)


def _in_shape(array: StoredArray, shape: tuple[int, ...]) -> StoredArray:
    """Returns the array in the shape of its parameter; `check_shapes` reports another size."""
    fits = math.prod(array.shape) == math.prod(shape)
    return array.reshaped(shape) if fits and array.shape != shape else array
