"""Imports decoder-only models from GGUF files: configuration and parameters.

Queries and keys of the architecture "llama" are stored with the two halves of each head interleaved,
as llama.cpp rotates neighbouring pairs; those of Qwen are stored as in transformers.
"""

from collections.abc import Iterator

import numpy as np

from dera_jax.checkpoints.gguf_file import GgufFile
from dera_jax.checkpoints.storage import StoredArray
from dera_jax.models import llama
from dera_jax.models.llama_config import LlamaConfig, RopeScaling

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA_3 = {"low": 1.0, "high": 4.0, "context": 8192}  # the same in all models with scaled RoPE
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

    Raises:
        ValueError: the architecture or a value is not supported, or a tensor is missing or superfluous.
    """
    config = _config(file, end_ids)
    permuted = file.field("general.architecture") == "llama"
    shapes, arrays = dict(llama.param_shapes(config)), {}
    used = {_ROPE_FACTORS} if config.rope_scaling else set()
    for ours, theirs, is_matrix in _names_of(config):
        if theirs not in file.tensors:
            raise ValueError(f"{file.where}: the file lacks the tensor {theirs!r}")
        used.add(theirs)
        array, name = file.tensors[theirs], ours.rpartition("/")[0]
        if permuted and name.endswith(("query", "key")):
            array = _unpermuted(array, config.head_dim)
        array = array.transposed() if is_matrix else array
        arrays[ours] = array.reshaped(shapes[ours]) if _same_size(array, shapes[ours]) else array
    if unexpected := sorted(file.tensors.keys() - used):
        raise ValueError(f"{file.where}: a model of these sizes has no place for {unexpected[0]!r}")
    return config, arrays


def _config(file: GgufFile, end_ids: tuple[int, ...]) -> LlamaConfig:
    kind = file.field("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"{file.where}: unknown architecture {kind!r}; general.architecture must be one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    need = lambda name: file.field(f"{kind}.{name}")
    have = lambda name, default: file.fields.get(f"{kind}.{name}", default)
    heads, width = need("attention.head_count"), need("embedding_length")
    head_dim = have("attention.key_length", width // heads)
    expected = {
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.scaling.type": "none",
        "expert_count": 0,
        "attention.causal": True,
    }
    for name, value in expected.items():
        if have(name, value) != value:
            raise ValueError(
                f"{file.where}: {kind}.{name} is {have(name, None)!r}; only {value!r} is supported"
            )
    layers, window = need("block_count"), have("attention.sliding_window", None)
    base = have("rope.freq_base", 10_000.0)  # llama.cpp's default
    return LlamaConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0]
        if "token_embd.weight" in file.tensors
        else need("vocab_size"),
        emb_dim=width,
        num_heads=heads,
        num_kv_heads=have("attention.head_count_kv", heads),
        num_layers=layers,
        head_dim=head_dim,
        mlp_dim=need("feed_forward_length"),
        rope_base=base,
        rope_scaling=_rope_scaling(file, base, head_dim),
        norm_epsilon=need("attention.layer_norm_rms_epsilon"),
        qkv_bias=kind == "qwen2",
        head_norms=kind == "qwen3",
        layer_windows=(window,) * layers if window else (),
        logits_via_embedding="output.weight" not in file.tensors,
        end_ids=end_ids,
    )


def _rope_scaling(file: GgufFile, base: float, head_dim: int) -> RopeScaling | None:
    """Returns the scaling of Llama 3.1, which a GGUF file stores as a divisor of each frequency.

    Raises:
        ValueError: the divisors are not those of Llama 3.1 for any factor.
    """
    if _ROPE_FACTORS not in file.tensors:
        return None
    stored = file.tensors[_ROPE_FACTORS]
    divisors = np.asarray(
        stored.read(tuple(slice(0, n) for n in stored.shape)), np.float32
    ).reshape(-1)
    scaling = RopeScaling(float(divisors.max()), **_LLAMA_3)
    frequencies = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    expected = frequencies / np.asarray(llama.scaled_frequencies(scaling, frequencies))
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(
            f"{stored.where} does not scale RoPE as Llama 3.1 does, which alone is supported"
        )
    return scaling


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


def _unpermuted(array: StoredArray, head_dim: int) -> StoredArray:
    """Returns a projection [heads·head_dim, ...] whose heads have their halves one after the other."""

    def read(index):
        full = tuple(slice(0, n) for n in array.shape)
        heads = array.read(full).reshape(-1, head_dim // 2, 2, *array.shape[1:])
        return np.swapaxes(heads, 1, 2).reshape(array.shape)[index]

    return StoredArray(array.shape, array.dtype, read, array.where)


def _same_size(array: StoredArray, shape: tuple[int, ...]) -> bool:
    return np.prod(array.shape) == np.prod(shape)  # `check_shapes` reports another size
