"""Imports and exports Llama in Hugging Face's format.

Kernels are stored [out, in], with all heads of a projection in one axis.

Not supported, with a ValueError: scaled RoPE, biases and activations other than SiLU.
"""

from collections.abc import Iterator, Mapping

from dera_jax import checks
from dera_jax.checkpoints.storage import StoredArray
from dera_jax.models.llama import LlamaConfig

CLASS = "LlamaForCausalLM"
MODEL_TYPES, GGUF = ("llama",), ("llama",)
UNUSED = ()
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_SIZES = {
    "vocab_size": "vocab_size",
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
}


def config_of(
    settings: Mapping, where: str, start_token: int, end_ids: tuple[int, ...]
) -> LlamaConfig:
    """Returns the configuration that a config.json describes.

    Args:
        settings: content of the file.
        where: path of the file, for error messages.
        start_token: not used, since a decoder-only model is fed the prompt's last token first.
        end_ids: the folder's end-of-sequence ids.

    Raises:
        ValueError: the value of a key is not supported.
    """
    del start_token
    for name, expected in _FIXED.items():
        if settings.get(name, expected) != expected:
            raise ValueError(
                f"{where}: {name} is {settings[name]!r}; only {expected!r} is supported"
            )
    sizes = {ours: _size(settings, theirs, where) for ours, theirs in _SIZES.items()}
    kv_heads, head_dim = settings.get("num_key_value_heads"), settings.get("head_dim")
    if head_dim is None and sizes["emb_dim"] % sizes["num_heads"]:
        raise ValueError(
            f"{where}: no head_dim, and hidden_size is no multiple of num_attention_heads"
        )
    return LlamaConfig(
        **sizes,
        num_kv_heads=sizes["num_heads"] if kv_heads is None else kv_heads,
        head_dim=sizes["emb_dim"] // sizes["num_heads"] if head_dim is None else head_dim,
        rope_base=_rope_base(settings, where),
        norm_epsilon=settings.get("rms_norm_eps", 1e-6),
        logits_via_embedding=settings.get("tie_word_embeddings", False),
        end_ids=end_ids,
    )


def described(config: LlamaConfig, dtype: str) -> dict[str, object]:
    """Returns the content of the config.json that describes a model."""
    return _FIXED | {
        "architectures": [CLASS],
        "model_type": "llama",
        "dtype": dtype,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.logits_via_embedding,
    }


def special_ids(config: LlamaConfig) -> dict[str, object]:
    """Returns the special token ids by their keys in config.json; None for an unknown end token."""
    ends = config.end_ids
    return {"eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None)}


def names_of(config: LlamaConfig) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yields (dera_jax name, transformers names, number of input axes); see `importers`."""
    yield "token_embedder/embedding", ("model.embed_tokens.weight",), 0
    for i in range(config.num_layers):
        for ours, theirs, inputs in (
            ("pre_attention_norm/scale", "input_layernorm", 0),
            ("attention/query/kernel", "self_attn.q_proj", 1),
            ("attention/key/kernel", "self_attn.k_proj", 1),
            ("attention/value/kernel", "self_attn.v_proj", 1),
            ("attention/out/kernel", "self_attn.o_proj", 2),
            ("pre_mlp_norm/scale", "post_attention_layernorm", 0),
            ("mlp/gate/kernel", "mlp.gate_proj", 1),
            ("mlp/up/kernel", "mlp.up_proj", 1),
            ("mlp/down/kernel", "mlp.down_proj", 1),
        ):
            yield f"layers_{i}/{ours}", (f"model.layers.{i}.{theirs}.weight",), inputs
    yield "final_norm/scale", ("model.norm.weight",), 0
    if not config.logits_via_embedding:
        yield "logits/kernel", ("lm_head.weight",), 1


def check(
    config: LlamaConfig, found: Mapping[str, StoredArray], stored: Mapping[str, StoredArray]
) -> None:
    """Does nothing, since no array of a Llama checkpoint has a duplicate to compare with."""
    del config, found, stored


def _size(settings: Mapping, name: str, where: str) -> int:
    if not checks.is_size(settings.get(name)):
        raise ValueError(
            f"{where}: {name} is {settings.get(name)!r}; it must be an integer of at least 1"
        )
    return settings[name]


def _rope_base(settings: Mapping, where: str) -> float:
    """Return the base of RoPE, which transformers 5 writes into `rope_parameters`."""
    parameters = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"{where}: rope_parameters is {parameters!r}; it must be an object")  # noqa: TRY004
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ValueError(f"{where}: RoPE is scaled by {kind!r}; only plain RoPE is supported")
    return parameters.get("rope_theta", settings.get("rope_theta", 10_000.0))
