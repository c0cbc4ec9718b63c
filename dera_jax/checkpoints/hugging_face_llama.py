"""Imports and exports decoder-only models in Hugging Face's format: Llama, Mistral, Qwen 2, Qwen 3.

Kernels are stored [out, in], with all heads of a projection in one axis.

Not supported, with a ValueError: RoPE scaled otherwise than in Llama 3, biases of the output projection
or of the feed-forward layers, and activations other than SiLU.
"""

from collections.abc import Iterator, Mapping

from dera_jax import checks
from dera_jax.checkpoints.hugging_face_tokenizer import end_ids
from dera_jax.checkpoints.storage import Folder
from dera_jax.models.llama_config import LlamaConfig, RopeScaling

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
CLASSIFIERS = tuple(
    name.replace("ForCausalLM", "ForSequenceClassification") for name in CLASSES.values()
)
MODEL_TYPES = tuple(CLASSES)
UNUSED = ()
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_SIZES = {
    "vocab_size": "vocab_size",
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
}
_SCALING = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "context": "original_max_position_embeddings",
}
_POSITIONS = "max_position_embeddings"
_FULL, _SLIDING = "full_attention", "sliding_attention"


def token_ids(folder: Folder) -> dict[str, object]:
    """Returns the end ids of a folder's files; a decoder-only model is fed no start or padding token.

    Base and chat models may name different ends, which are joined; a chat template's end of turn comes in
    `loading`.

    Raises:
        ValueError: as `hugging_face_tokenizer.end_ids`.
    """
    return {"end_ids": end_ids(folder, joined=True)}


def config_of(settings: Mapping, where: str, end_ids: tuple[int, ...]) -> LlamaConfig:
    """Returns the configuration that a config.json describes.

    Args:
        settings: content of the file.
        where: path of the file, for error messages.
        end_ids: the folder's end-of-sequence ids.

    Raises:
        ValueError: the value of a key is not supported.
    """
    for name, expected in _FIXED.items():
        if settings.get(name, expected) != expected:
            raise ValueError(
                f"{where}: {name} is {settings[name]!r}; only {expected!r} is supported"
            )
    sizes = {ours: _size(settings, theirs, where) for ours, theirs in _SIZES.items()}
    kv_heads, head_dim = settings.get("num_key_value_heads"), settings.get("head_dim")
    base, scaling = _rope(settings, where)
    if head_dim is None and sizes["emb_dim"] % sizes["num_heads"]:
        raise ValueError(
            f"{where}: no head_dim, and hidden_size is no multiple of num_attention_heads"
        )
    return LlamaConfig(
        **sizes,
        num_kv_heads=sizes["num_heads"] if kv_heads is None else kv_heads,
        head_dim=sizes["emb_dim"] // sizes["num_heads"] if head_dim is None else head_dim,
        rope_base=base,
        rope_scaling=scaling,
        qkv_bias=settings["model_type"] == "qwen2",
        head_norms=settings["model_type"] == "qwen3",
        layer_windows=_windows(settings, sizes["num_layers"], where),
        norm_epsilon=settings.get("rms_norm_eps", 1e-6),
        logits_via_embedding=settings.get("tie_word_embeddings", False),
        end_ids=end_ids,
        max_positions=_size(settings, _POSITIONS, where) if settings.get(_POSITIONS) else None,
    )


def described(config: LlamaConfig, dtype: str) -> dict[str, object]:
    """Returns the content of the config.json that describes a model.

    Raises:
        ValueError: no architecture of transformers has these options.
    """
    kind = _kind(config)
    return _FIXED | {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "dtype": dtype,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_base,
        **({_POSITIONS: config.max_positions} if config.max_positions else {}),
        **_described_scaling(config),
        **_described_windows(config, kind),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.logits_via_embedding,
    }


def _kind(config: LlamaConfig) -> str:
    """Returns the model_type that has the options of the configuration."""
    if config.qkv_bias and config.head_norms:
        raise ValueError("no architecture of transformers has both qkv_bias and head_norms")
    if config.qkv_bias or config.head_norms:
        return "qwen2" if config.qkv_bias else "qwen3"
    if not any(config.layer_windows):
        return "llama"
    if len(config.windows) > 1:
        raise ValueError(
            "no architecture of transformers without biases and norms of heads has windows in some "
            f"layers only; found layer_windows {config.layer_windows}"
        )
    return "mistral"


def _described_scaling(config: LlamaConfig) -> dict[str, object]:
    """Returns the entry of config.json about the scaling of RoPE."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    values = {theirs: getattr(scaling, ours) for ours, theirs in _SCALING.items()}
    return {"rope_scaling": {"rope_type": "llama3"} | values}


def _described_windows(config: LlamaConfig, kind: str) -> dict[str, object]:
    """Returns the entries of config.json about attention windows."""
    windows = [x for x in config.windows if x is not None]
    if not windows:
        return {} if kind == "llama" else {"sliding_window": None, "use_sliding_window": False}
    if len(windows) > 1:
        raise ValueError(
            f"transformers has one window for all layers; found {config.layer_windows}"
        )
    entries = {"sliding_window": windows[0]}
    if kind == "mistral":
        return entries
    types = [_FULL if x is None else _SLIDING for x in config.layer_windows]
    return entries | {"use_sliding_window": True, "layer_types": types}


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
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            attention = f"layers_{i}/attention/{name}", f"model.layers.{i}.self_attn.{short}"
            if config.qkv_bias:
                yield f"{attention[0]}/bias", (f"{attention[1]}_proj.bias",), -1
            if config.head_norms and name != "value":
                yield f"{attention[0]}_norm/scale", (f"{attention[1]}_norm.weight",), 0
    yield "final_norm/scale", ("model.norm.weight",), 0
    if not config.logits_via_embedding:
        yield "logits/kernel", ("lm_head.weight",), 1


def _size(settings: Mapping, name: str, where: str) -> int:
    if not checks.is_size(settings.get(name)):
        raise ValueError(
            f"{where}: {name} is {settings.get(name)!r}; it must be an integer of at least 1"
        )
    return settings[name]


def _rope(settings: Mapping, where: str) -> tuple[float, RopeScaling | None]:
    """Returns base and scaling of RoPE; transformers 5 writes both into `rope_parameters`.

    Earlier versions write `rope_theta`, and `rope_scaling` with `rope_type`, or `type` before that.
    """
    given = [settings[x] for x in ("rope_parameters", "rope_scaling") if settings.get(x)]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(
            f"{where}: rope_parameters and rope_scaling are {given[0]!r} and {given[1]!r}; keep one of them"
        )
    parameters = given[0] if given else {}
    if not isinstance(parameters, Mapping) or parameters.keys() & {_FULL, _SLIDING}:
        raise ValueError(
            f"{where}: rope_parameters is {parameters!r}; it must be one object for all layers"
        )
    if parameters.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1)) != 1:
        raise ValueError(f"{where}: partial_rotary_factor is not supported; RoPE turns whole heads")
    base = parameters.get("rope_theta", settings.get("rope_theta", 10_000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise ValueError(
            f"{where}: RoPE is scaled by {kind!r}; supported are 'default' and 'llama3'"
        )
    missing = [theirs for theirs in _SCALING.values() if theirs not in parameters]
    if missing:
        raise ValueError(f"{where}: RoPE is scaled by 'llama3', and {missing[0]!r} is missing")
    return base, RopeScaling(**{ours: parameters[theirs] for ours, theirs in _SCALING.items()})


def _windows(settings: Mapping, num_layers: int, where: str) -> tuple[int | None, ...]:
    """Returns the window of each layer; empty if none has one.

    Llama has none, whatever its config.json says of one, as in transformers. Qwen uses its window
    where `use_sliding_window` says so, and then in the layers that `layer_types` names, or in those
    from `max_window_layers` on. Absent keys mean what they mean in transformers.
    """
    window, kind = settings.get("sliding_window", 4096), settings["model_type"]
    switched_off = kind.startswith("qwen") and not settings.get("use_sliding_window", False)
    if kind == "llama" or switched_off or not window:
        return ()
    types = settings.get("layer_types")
    if types is not None:
        if len(types) != num_layers or not set(types) <= {_FULL, _SLIDING}:
            raise ValueError(
                f"{where}: layer_types is {types!r}; expected {num_layers} times {_FULL!r} or {_SLIDING!r}"
            )
        windows = tuple(window if x == _SLIDING else None for x in types)
    else:
        first = settings.get("max_window_layers", 28) if kind.startswith("qwen") else 0
        windows = tuple(window if i >= first else None for i in range(num_layers))
    return windows if any(windows) else ()
