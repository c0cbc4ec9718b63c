"""A reference and an aligned model as one flax module with the methods T5X calls.

Its parameters are {"reference": T5X's tree, "aligned": T5X's tree}, and `params_axes` nests alike, so
that T5X's partitioner treats both as it treats one. An unmodified t5x.models.EncoderDecoderModel can
predict, search and score with it: T5X sees one network, whose logits are the realigned ones.

Axes: B rows (T5X repeats them for several decodes), S input length, N tokens fed, L cache slots,
H heads, D head_dim, E emb_dim, V vocabulary.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from dera_jax.decoding.realign import realign_logits
from dera_jax.models.t5 import T5Config, Transformer

TOWERS = ("reference", "aligned")


class TwoTowers(nn.Module):
    """Logits (1 − λ)·h_ref + λ·h_aligned of two T5s of the same sizes.

    Attributes:
        config: of each.
        lam: λ.
    """

    config: T5Config
    lam: float = 1.0

    def setup(self):
        self.reference = Transformer(self.config)
        self.aligned = Transformer(self.config)

    def _towers(self) -> tuple[Transformer, Transformer]:
        return self.reference, self.aligned

    def __call__(
        self,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        encoder_positions: Array | None = None,
        decoder_positions: Array | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
    ) -> Array:
        """Logits [B, N, V] of decoder_input_tokens[B, N] after encoder_input_tokens[B, S].

        With `decode` it only makes an empty cache for N tokens.
        """
        del encoder_positions
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout)
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout=enable_dropout,
            decode=decode,
        )

    def encode(
        self,
        encoder_input_tokens: Array,
        encoder_segment_ids: Array | None = None,
        enable_dropout: bool = True,
    ) -> Array:
        """Both encoders' outputs, [B, 2, S, E]: one array, since T5X repeats it over decodes."""
        _check_not_packed(encoder_segment_ids)
        inputs = encoder_input_tokens.astype(jnp.int32)  # t5x.eval initialises with floats
        return jnp.stack(
            [x.encode(inputs, inputs > 0, enable_dropout) for x in self._towers()], axis=1
        )

    def decode(
        self,
        encoded: Array,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        decoder_positions: Array | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
    ) -> Array:
        """Logits [B, N, V]. With `decode` the next token, N = 1, is read into the cache."""
        del decoder_target_tokens, decoder_positions, max_decode_length
        _check_not_packed(encoder_segment_ids, decoder_segment_ids)
        tokens = decoder_input_tokens.astype(jnp.int32)[:, None]
        mask = encoder_input_tokens > 0
        if not decode:
            return self._mixture(
                encoded, tokens, jnp.arange(tokens.shape[-1]), mask, enable_dropout
            )
        if not self.has_variable("cache", "cache_index"):
            self._make_cache(*decoder_input_tokens.shape)
            return jnp.zeros((*decoder_input_tokens.shape, self.config.vocab_size))
        index = self.get_variable("cache", "cache_index")
        self.put_variable("cache", "cache_index", index + 1)
        return self._mixture(encoded, tokens, index[None], mask, enable_dropout, cached=True)

    def _mixture(self, encoded, tokens, positions, mask, enable_dropout, cached=False) -> Array:
        """tokens[B, 1, N] -> logits [B, N, V]."""
        logits = []
        for i, (name, tower) in enumerate(zip(TOWERS, self._towers(), strict=True)):
            cross = tower.cross_keys_values(encoded[:, i])
            caches = self._caches(name) if cached else None
            hidden, caches = tower.decode(tokens, positions, cross, mask, caches, enable_dropout)
            if cached:
                self._keep(name, caches)
            logits.append(tower.logits(hidden[:, 0]))
        return realign_logits(logits[0], logits[1:], jnp.array([self.lam]))

    def _make_cache(self, rows: int, length: int) -> None:
        config = self.config
        empty = jnp.zeros((rows, 1, config.num_heads, length, config.head_dim), config.dtype)
        self.put_variable("cache", "cache_index", jnp.zeros((), jnp.int32))
        for name in TOWERS:
            self._keep(name, [(empty, empty)] * config.num_decoder_layers)

    def _caches(self, name: str) -> tuple[tuple[Array, Array], ...]:
        layers = range(self.config.num_decoder_layers)
        get = lambda kind, i: self.get_variable("cache", f"{name}_layers_{i}_cached_{kind}")
        return tuple((get("key", i), get("value", i)) for i in layers)

    def _keep(self, name: str, caches) -> None:
        """Keys and values under flat names: T5X reorders every array of the cache by its row."""
        for i, (key, value) in enumerate(caches):
            self.put_variable("cache", f"{name}_layers_{i}_cached_key", key)
            self.put_variable("cache", f"{name}_layers_{i}_cached_value", value)


def _check_not_packed(*segment_ids: Array | None) -> None:
    if any(x is not None for x in segment_ids):
        raise ValueError(
            "TwoTowers: packed examples are not supported; set DatasetConfig.pack False"
        )
