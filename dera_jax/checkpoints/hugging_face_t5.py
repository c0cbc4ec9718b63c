"""Imports and exports T5, T5 1.1, Flan-T5, mT5 and ByT5 in Hugging Face's format.

Kernels are stored [out, in] and the relative position biases [buckets, heads]; T5X and dera_jax
store both transposed.
"""

from collections.abc import Iterator, Mapping

from dera_jax import checks
from dera_jax.checkpoints.hugging_face_tokenizer import end_ids, start_id
from dera_jax.checkpoints.storage import Folder
from dera_jax.models.layers import MAX_DISTANCE, NUM_BUCKETS
from dera_jax.models.t5 import T5Config

CLASS = "T5ForConditionalGeneration"
CLASSES = {"t5": CLASS, "mt5": CLASS}
CLASSIFIERS = ()
MODEL_TYPES = tuple(CLASSES)
_ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}
_FIXED = {
    "relative_attention_num_buckets": NUM_BUCKETS,
    "relative_attention_max_distance": MAX_DISTANCE,
    "layer_norm_epsilon": 1e-6,
}
_SIZES = (
    "vocab_size", "d_model", "num_heads", "num_layers", "num_decoder_layers", "d_kv", "d_ff",
)  # fmt: skip
# Some old files hold this array, which the model does not use.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_EMBEDDING, _LOGITS = "token_embedder/embedding", "decoder/logits_dense/kernel"


def token_ids(folder: Folder) -> dict[str, object]:
    """Returns the ids of the decoder's start token and of the end tokens that a folder's files name.

    Raises:
        ValueError: as `hugging_face_tokenizer.end_ids` and `start_id`.
    """
    return {"start_token": start_id(folder), "end_ids": end_ids(folder, joined=False)}


def config_of(
    settings: Mapping, where: str, start_token: int, end_ids: tuple[int, ...]
) -> T5Config:
    """Returns the configuration that a config.json describes.

    Args:
        settings: content of the file.
        where: path of the file, for error messages.
        start_token, end_ids: the folder's special token ids.

    Raises:
        ValueError: the value of a key is not supported.
    """
    settings = _checked(settings, where)
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
        end_ids=end_ids,
    )


def _checked(settings: Mapping, where: str) -> Mapping:
    for name, expected in _FIXED.items():
        if settings.get(name, expected) != expected:
            raise ValueError(f"{where}: {name} is {settings[name]}; only {expected} is supported")
    if settings.get("feed_forward_proj", "relu") not in list(_ACTIVATIONS):
        raise ValueError(
            f"{where}: feed_forward_proj is {settings['feed_forward_proj']!r}; supported are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    if settings.get("num_decoder_layers") is None:  # null means num_layers
        settings = {**settings, "num_decoder_layers": settings.get("num_layers")}
    for name in _SIZES:
        if not checks.is_size(settings.get(name)):
            raise ValueError(
                f"{where}: {name} is {settings.get(name)!r}; it must be an integer of at least 1"
            )
    for name in ("scale_decoder_outputs", "tie_word_embeddings"):
        if not isinstance(settings.get(name, True), bool):
            raise ValueError(  # noqa: TRY004 (of a file)
                f"{where}: {name} is {settings[name]!r}; it must be true or false"
            )
    return settings


def _is_scaled(settings: Mapping) -> bool:
    """Return whether logits are divided by sqrt(E), as in T5 1.0 with its tied embedding table.

    `tie_word_embeddings` alone does not decide this: transformers 5 also ties newly initialized T5
    1.1 and mT5 models, without the division. Such a table is imported twice, as the embedding and
    as the kernel of the logits.
    """
    if settings["model_type"] == "mt5":
        return False
    return settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))


def described(config: T5Config, dtype: str) -> dict[str, object]:
    """Returns the content of the config.json that describes a model.

    Raises:
        ValueError: transformers has no name for the MLP activations.
    """
    forward = [name for name, x in _ACTIVATIONS.items() if x == config.mlp_activations]
    if not forward:
        raise ValueError(f"transformers has no T5 with the activations {config.mlp_activations}")
    return _FIXED | {
        "architectures": [CLASS],
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


def names_of(config: T5Config) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yields (dera_jax name, transformers names, number of input axes); see `importers`."""
    table = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    yield _EMBEDDING, table, 0
    for stack, layers in (
        ("encoder", config.num_encoder_layers),
        ("decoder", config.num_decoder_layers),
    ):
        yield f"{stack}/{stack}_norm/scale", (f"{stack}.final_layer_norm.weight",), 0
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"{stack}/relpos_bias/rel_embedding", (bias,), 1
        for i in range(layers):
            for ours, theirs, inputs in _layer(stack, len(config.mlp_activations)):
                yield (
                    f"{stack}/layers_{i}/{ours}",
                    (f"{stack}.block.{i}.layer.{theirs}",),
                    inputs,
                )
    if not config.logits_via_embedding:
        yield _LOGITS, ("lm_head.weight", *table), 1


def _layer(stack: str, num_wi: int) -> Iterator[tuple[str, str, int]]:
    own = "attention" if stack == "encoder" else "self_attention"
    parts = [(own, "SelfAttention")]
    if stack == "decoder":
        parts.append(("encoder_decoder_attention", "EncDecAttention"))
    norms = {own: own, "encoder_decoder_attention": "cross_attention"}
    for at, (ours, theirs) in enumerate(parts):
        yield f"pre_{norms[ours]}_layer_norm/scale", f"{at}.layer_norm.weight", 0
        for name in ("query", "key", "value", "out"):
            short = {"out": "o"}.get(name, name[0])
            yield f"{ours}/{name}/kernel", f"{at}.{theirs}.{short}.weight", 1
    at = len(parts)
    yield "pre_mlp_layer_norm/scale", f"{at}.layer_norm.weight", 0
    for name in [*(["wi"] if num_wi == 1 else [f"wi_{i}" for i in range(num_wi)]), "wo"]:
        yield f"mlp/{name}/kernel", f"{at}.DenseReluDense.{name}.weight", 1


def special_ids(config: T5Config) -> dict[str, object]:
    """Returns the special token ids by their keys in config.json; None for an unknown end token."""
    ends = config.end_ids
    return {
        "decoder_start_token_id": config.start_token,
        "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": 0,
    }
