"""T5 1.0 and 1.1 in flax.linen, with the parameter tree and logical axis names of T5X.

The decoder takes tokens [B, K, N]: the K hypotheses of an input share its cross-attention keys and
values, which are computed once and never tiled. Teacher forcing is one pass without a cache.

Axes: B inputs, K hypotheses, S input length, N new tokens, L cache slots, H heads, D head_dim,
E emb_dim, V vocab_size.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen import partitioning
from jax import Array

from dera_jax import checks
from dera_jax.models.layers import (
    MASKED,
    NUM_BUCKETS,
    Attention,
    Dense,
    LayerNorm,
    Mlp,
    RelativeBias,
    einsum,
    write_cache,
)
from dera_jax.partitioning import constrain

KeysValues = tuple[Array, Array]
ACTIVATIONS = ("relu", "gelu", "silu", "swish", "tanh", "sigmoid", "linear")
# Parameter names of a layer's attentions, and the names of the norms before them.
_ENCODER_ATTENTIONS = {"attention": "attention"}
_DECODER_ATTENTIONS = {
    "self_attention": "self_attention",
    "encoder_decoder_attention": "cross_attention",
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5, named as in T5X's T5Config.

    Attributes:
        vocab_size: rows of the embedding table.
        emb_dim, head_dim, mlp_dim: widths of the model, an attention head, the feed-forward layers.
        num_heads, num_encoder_layers, num_decoder_layers: numbers of attention heads and layers.
        mlp_activations: ('relu',) in T5 1.0, ('gelu', 'linear') in T5 1.1.
        logits_via_embedding: whether the embedding table computes the logits; True in T5 1.0.
        dropout_rate: rate of dropout in training.
        dtype: type of activations and of operands of matrix products; attention logits and softmax
            are float32, and parameters keep their own type.
        start_token: the id that is fed to the decoder first.
        end_ids: ids that end a sequence; empty until a vocabulary is known (T5X, models to be trained).

    Raises:
        ValueError: naming an invalid field and what it accepts.
    """

    vocab_size: int
    emb_dim: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    head_dim: int = 64
    mlp_dim: int = 2048
    mlp_activations: Sequence[str] = ("relu",)
    logits_via_embedding: bool = False
    dropout_rate: float = 0.1
    dtype: str = "float32"
    start_token: int = 0
    end_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"):
            self._require(
                name, checks.is_size(getattr(self, name)), f"an integer from 1 to {checks.LARGEST}"
            )
        for name, least in (("num_encoder_layers", 0), ("num_decoder_layers", 1)):
            allowed = checks.is_size(getattr(self, name), least)
            self._require(name, allowed, f"an integer from {least} to {checks.LARGEST}")
        names = self.mlp_activations
        known = isinstance(names, Sequence) and not isinstance(names, str) and len(names) > 0
        known = known and all(name in ACTIVATIONS for name in names)
        self._require("mlp_activations", known, f"one or more of {', '.join(ACTIVATIONS)}")
        object.__setattr__(self, "mlp_activations", tuple(names))
        tied, dropout = self.logits_via_embedding, self.dropout_rate
        self._require("logits_via_embedding", isinstance(tied, bool), "True or False")
        number = isinstance(dropout, (int, float)) and not isinstance(dropout, bool)
        self._require("dropout_rate", number and 0 <= dropout < 1, "a number from 0, below 1")
        self._require("dtype", self.dtype in ("float32", "bfloat16"), "'float32' or 'bfloat16'")
        for name in ("start_token", "end_ids"):
            value = getattr(self, name)
            ids = value if name == "end_ids" else (value,)
            known = isinstance(ids, Sequence) and all(checks.is_size(token, 0) for token in ids)
            in_table = known and all(token < self.vocab_size for token in ids)
            kind = "ids" if name == "end_ids" else "an id"
            self._require(name, in_table, f"{kind} below vocab_size, {self.vocab_size}")
        object.__setattr__(self, "end_ids", tuple(self.end_ids))

    def _require(self, name: str, allowed: bool, words: str) -> None:
        if not allowed:
            raise ValueError(f"T5Config.{name} must be {words}; found {getattr(self, name)!r}.")


def param_shapes(config: T5Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields name (path joined by '/') and shape of each parameter, without tracing.

    This allows a check of a file's arrays against its configuration, however large they are.
    """
    E, V = config.emb_dim, config.vocab_size
    yield "token_embedder/embedding", (V, E)
    for stack, layers, attentions in (
        ("encoder", config.num_encoder_layers, _ENCODER_ATTENTIONS),
        ("decoder", config.num_decoder_layers, _DECODER_ATTENTIONS),
    ):
        yield f"{stack}/relpos_bias/rel_embedding", (config.num_heads, NUM_BUCKETS)
        yield f"{stack}/{stack}_norm/scale", (E,)
        for i in range(layers):
            for name, shape in _layer_shapes(config, attentions):
                yield f"{stack}/layers_{i}/{name}", shape
    if not config.logits_via_embedding:
        yield "decoder/logits_dense/kernel", (E, V)


def _layer_shapes(
    config: T5Config, attentions: Mapping[str, str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields name and shape of each parameter of an encoder or decoder layer."""
    E, M, joined = config.emb_dim, config.mlp_dim, config.num_heads * config.head_dim
    for name, norm in attentions.items():
        yield f"pre_{norm}_layer_norm/scale", (E,)
        for part in ("query", "key", "value"):
            yield f"{name}/{part}/kernel", (E, joined)
        yield f"{name}/out/kernel", (joined, E)
    yield "pre_mlp_layer_norm/scale", (E,)
    gated = len(config.mlp_activations) > 1
    for i in range(len(config.mlp_activations)):
        yield f"mlp/{f'wi_{i}' if gated else 'wi'}/kernel", (E, M)
    yield "mlp/wo/kernel", (M, E)


def _attention(config: T5Config) -> Attention:
    sizes = config.num_heads, config.head_dim, config.emb_dim
    return Attention(*sizes, config.dropout_rate, config.dtype)


def _mlp(config: T5Config) -> Mlp:
    return Mlp(config.mlp_dim, config.mlp_activations, config.dropout_rate, config.dtype)


def _shared_dropout(config: T5Config) -> nn.Dropout:
    """Returns dropout with one mask for all positions of a sequence."""
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


class TokenEmbedder(nn.Module):
    """The embedding table, which also computes the logits if they are tied to it."""

    config: T5Config

    def setup(self):
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = partitioning.param_with_axes(
            "embedding", nn.initializers.normal(1.0), shape, jnp.float32, axes=("vocab", "embed")
        )

    def __call__(self, tokens: Array) -> Array:
        x = self.embedding[tokens].astype(self.config.dtype)
        return constrain(x, "batch", *[None] * tokens.ndim)

    def logits(self, hidden: Array) -> Array:
        """Returns logits[..., V] of hidden[..., E]/√E, the scale of T5X for tied tables."""
        rows = hidden.reshape(-1, hidden.shape[-1]) / jnp.sqrt(self.config.emb_dim)
        logits = einsum("ne,ve->nv", rows, self.embedding, self.config.dtype)
        return logits.reshape(*hidden.shape[:-1], -1)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each with a norm before it and a residual."""

    config: T5Config

    def setup(self):
        self.pre_attention_layer_norm = LayerNorm(self.config.dtype)
        self.attention = _attention(self.config)
        self.pre_mlp_layer_norm = LayerNorm(self.config.dtype)
        self.mlp = _mlp(self.config)
        self.dropout = _shared_dropout(self.config)

    def __call__(self, x: Array, bias: Array, train: bool) -> Array:
        y = self.pre_attention_layer_norm(x)
        y = self.attention.attend(y, *self.attention.keys_values(y), bias, train)
        x = x + self.dropout(y, deterministic=not train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train)
        return x + self.dropout(y, deterministic=not train)


class T5Encoder(nn.Module):
    """The stack of encoder layers and the final norm."""

    config: T5Config
    remat: str | None = None

    def setup(self):
        self.relpos_bias = RelativeBias(self.config.num_heads, bidirectional=True)
        layer = _rematerialised(EncoderLayer, self.remat)
        self.layers = [layer(self.config) for _ in range(self.config.num_encoder_layers)]
        self.encoder_norm = LayerNorm(self.config.dtype)
        self.dropout = _shared_dropout(self.config)
        self.final_dropout = nn.Dropout(self.config.dropout_rate)

    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Encodes embeddings x[B, S, E], padded where mask[B, S] is False; returns [B, S, E]."""
        # As an outer product its gradient is a product too: a sum over the batch is slow on CPUs.
        bias = jnp.einsum("b,hnl->bhnl", jnp.ones(len(x)), self.relpos_bias.between(x.shape[1]))
        bias = bias + jnp.where(mask[:, None, None, :], 0.0, MASKED)
        x = self.dropout(x, deterministic=not train)
        for layer in self.layers:
            x = layer(x, bias, train)
        return self.final_dropout(self.encoder_norm(x), deterministic=not train)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward network, each with norm and residual."""

    config: T5Config

    def setup(self):
        self.pre_self_attention_layer_norm = LayerNorm(self.config.dtype)
        self.self_attention = _attention(self.config)
        self.pre_cross_attention_layer_norm = LayerNorm(self.config.dtype)
        self.encoder_decoder_attention = _attention(self.config)
        self.pre_mlp_layer_norm = LayerNorm(self.config.dtype)
        self.mlp = _mlp(self.config)
        self.dropout = _shared_dropout(self.config)

    def __call__(self, x, context: "DecoderContext", cross: KeysValues, cache, train: bool):
        """Applies the layer to x[B, K, N, E]; returns [B, K, N, E] and the updated cache.

        `cross` are the layer's cross-attention keys and values [B, H, S, D], `cache` its
        self-attention keys and values [B, K, H, L, D]; None without a cache.
        """
        y = self.pre_self_attention_layer_norm(x)
        new = self.self_attention.keys_values(y)
        cache = context.remember(cache, new)
        y = _attend_own(self.self_attention, y, cache, context.self_bias, train)
        x = x + self.dropout(y, deterministic=not train)
        y = self.pre_cross_attention_layer_norm(x)
        y = _attend_shared(self.encoder_decoder_attention, y, cross, context.cross_bias, train)
        x = x + self.dropout(y, deterministic=not train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train)
        return x + self.dropout(y, deterministic=not train), cache


@struct.dataclass
class DecoderContext:
    """Inputs of one decoder pass that are the same for all layers.

    Attributes:
        positions: int32 [N], positions of the new tokens, the same for all hypotheses.
        self_bias: [1, H, N, L], relative position bias and causal mask.
        cross_bias: [B, 1, 1, S], mask of the prompts' padding.
    """

    positions: Array
    self_bias: Array
    cross_bias: Array

    def remember(self, cache: KeysValues | None, new: KeysValues) -> KeysValues:
        """Writes new keys and values [B, K, H, N, D] into a cache; returns them if it is None."""
        if cache is None:
            return new
        return tuple(write_cache(old, x, self.positions) for old, x in zip(cache, new, strict=True))


def _rematerialised(layer: type[nn.Module], remat: str | None) -> type[nn.Module]:
    """Wraps a layer class, whose last argument is `train`, with the checkpoint policy `remat`."""
    if remat is None:
        return layer
    train = len(inspect.signature(layer.__call__).parameters) - 1
    policy = getattr(jax.checkpoint_policies, remat)
    return nn.remat(layer, policy=policy, static_argnums=(train,))


def _attend_own(
    attention: Attention, x, keys_values: KeysValues, bias: Array, train: bool
) -> Array:
    """Attends from each of the B·K hypotheses to its own keys [B, K, H, L, D]."""
    keys, values = (y.reshape(-1, *y.shape[2:]) for y in keys_values)
    return attention.attend(x.reshape(-1, *x.shape[2:]), keys, values, bias, train).reshape(x.shape)


def _attend_shared(attention: Attention, x, keys_values: KeysValues, bias: Array, train: bool):
    """Attends from the queries x[B, K·C, N, E] to the keys of their input and component [B·C, H, S, D]."""
    batch, rows, size, _ = x.shape
    components = len(keys_values[0]) // batch
    split = batch, rows // components, components, size, x.shape[-1]
    queries = jnp.swapaxes(x.reshape(split), 1, 2)  # [B, C, K, N, E]
    flat = queries.reshape(batch * components, -1, x.shape[-1])
    out = attention.attend(flat, *keys_values, bias, train).reshape(queries.shape)
    return jnp.swapaxes(out, 1, 2).reshape(x.shape)


class T5Decoder(nn.Module):
    """The stack of decoder layers, the final norm, and the output kernel if it is not tied."""

    config: T5Config
    remat: str | None = None

    def setup(self):
        self.relpos_bias = RelativeBias(self.config.num_heads, bidirectional=False)
        layer = _rematerialised(DecoderLayer, self.remat)
        self.layers = [layer(self.config) for _ in range(self.config.num_decoder_layers)]
        self.decoder_norm = LayerNorm(self.config.dtype)
        self.dropout = _shared_dropout(self.config)
        if not self.config.logits_via_embedding:
            axes = ("embed", "vocab")
            self.logits_dense = Dense(self.config.vocab_size, axes, self.config.dtype)

    def cross_keys_values(self, encoded: Array) -> tuple[KeysValues, ...]:
        """Projects encoded[B, S, E] to each layer's cross keys and values [B, H, S, D]."""
        return tuple(x.encoder_decoder_attention.keys_values(encoded) for x in self.layers)

    def context(self, positions: Array, num_slots: int, mask: Array) -> DecoderContext:
        """Returns the context of tokens at positions[N], for L slots and prompt mask[B, S]."""
        visible = positions[:, None] >= jnp.arange(num_slots)
        self_bias = self.relpos_bias.at(positions[None], num_slots)
        self_bias = self_bias + jnp.where(visible, 0.0, MASKED)
        return DecoderContext(positions, self_bias, jnp.where(mask[:, None, None], 0.0, MASKED))

    def __call__(self, x, context: DecoderContext, cross, caches, train: bool):
        """Maps x[B, K, N, E] to hidden states [B, K, N, E] after the final norm, and new caches."""
        x = self.dropout(x, deterministic=not train)
        updated = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, context, cross[i], caches and caches[i], train)
            updated.append(cache)
        hidden = self.dropout(self.decoder_norm(x), deterministic=not train)
        return hidden, tuple(updated)


class Transformer(nn.Module):
    """An encoder-decoder with T5X's parameter tree, and caches as arguments and results."""

    config: T5Config
    remat: str | None = None

    def setup(self):
        self.token_embedder = TokenEmbedder(self.config)
        self.encoder = T5Encoder(self.config, self.remat)
        self.decoder = T5Decoder(self.config, self.remat)

    def encode(self, tokens: Array, mask: Array, train: bool = False) -> Array:
        """Encodes tokens[B, S], padded where mask[B, S] is False; returns [B, S, E]."""
        return self.encoder(self.token_embedder(tokens), mask, train)

    def cross_keys_values(self, encoded: Array) -> tuple[KeysValues, ...]:
        """See `T5Decoder.cross_keys_values`."""
        return self.decoder.cross_keys_values(encoded)

    def decode(self, tokens, positions, cross, mask, caches=None, train: bool = False):
        """Returns hidden states [B, K, N, E] of decoder inputs tokens[B, K, N], and new caches.

        `positions` are int32 [N]. Without caches this is teacher forcing: positions are 0 to N - 1,
        and the causal mask is sufficient, since targets are padded on the right.
        """
        num_slots = caches[0][0].shape[3] if caches else tokens.shape[-1]
        context = self.decoder.context(positions, num_slots, mask)
        return self.decoder(self.token_embedder(tokens), context, cross, caches, train)

    def logits(self, hidden: Array) -> Array:
        """Returns float32 logits[..., V] of hidden[..., E]."""
        if self.config.logits_via_embedding:
            return self.token_embedder.logits(hidden)
        return self.decoder.logits_dense(hidden)

    def __call__(self, tokens, mask, decoder_inputs, train: bool = False) -> Array:
        """Returns hidden states [B, K, T, E] under teacher forcing.

        `tokens`[B, S] are the inputs, padded where mask[B, S] is False; decoder_inputs[B, K, T]
        begin with the start token.
        """
        cross = self.cross_keys_values(self.encode(tokens, mask, train))
        positions = jnp.arange(decoder_inputs.shape[-1])
        return self.decode(decoder_inputs, positions, cross, mask, train=train)[0]

    def teacher_forced(self, tokens, mask, decoder_inputs, train: bool = False) -> Array:
        """Returns logits [B, K, T, V] of the tokens that follow decoder_inputs[B, K, T]."""
        return self.logits(self(tokens, mask, decoder_inputs, train))
