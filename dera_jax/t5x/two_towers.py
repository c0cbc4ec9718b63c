"""Combines a reference and an aligned model in one flax module with the methods that T5X calls.

Its parameters are {"reference": T5X's tree, "aligned": T5X's tree}, and `params_axes` has the same
structure, so that T5X's partitioner shards both models as it shards one. An unmodified
t5x.models.EncoderDecoderModel can sample, search and score with the module, whose logits are those
of the realigned policy (Liu et al., 2024, arXiv 2402.02992).

Axes: B sequences (T5X repeats inputs for several decodes), S input length, N tokens fed, L cache
slots, H heads, D head_dim, E emb_dim, V vocabulary.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from dera_jax.decoding.realign import realign_logits
from dera_jax.models.t5 import T5Config, Transformer

TOWERS = ("reference", "aligned")


class TwoTowers(nn.Module):
    """Computes the logits (1 − λ)·h_ref + λ·h_aligned of two T5 models of the same sizes.

    Attributes:
        config: configuration of each model.
        lam: mixing coefficient λ.
    """

    config: T5Config
    lam: float = 1.0

    def setup(self):
        """Creates the two models as submodules, see `flax.linen.Module.setup`."""
        self.reference = Transformer(self.config)
        self.aligned = Transformer(self.config)

    def _towers(self) -> tuple[Transformer, Transformer]:
        return self.reference, self.aligned

    def __call__(
        self,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        **packing: Array | None,
    ) -> Array:
        """Return logits [B, N, V] for decoder_input_tokens[B, N] and encoder_input_tokens[B, S].

        With `decode` it only creates an empty cache for N tokens, when T5X initializes the module.

        Raises:
            ValueError: the examples are packed.
        """
        _check_not_packed(packing)
        encoded = self.encode(encoder_input_tokens, enable_dropout)
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            enable_dropout=enable_dropout,
            decode=decode,
        )

    def encode(self, encoder_input_tokens: Array, enable_dropout: bool = True) -> Array:
        """Return both encoders' outputs as one array [B, 2, S, E], since T5X repeats it over decodes."""
        inputs = encoder_input_tokens.astype(jnp.int32)  # t5x.eval initializes with floats
        return jnp.stack(
            [x.encode(inputs, inputs > 0, enable_dropout) for x in self._towers()], axis=1
        )

    def decode(
        self,
        encoded: Array,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
    ) -> Array:
        """Return logits [B, N, V]; with `decode`, feed one token (N = 1) and update the cache."""
        del decoder_target_tokens, max_decode_length
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
        """Return the realigned logits [B, N, V] of tokens[B, 1, N]."""
        logits = []
        for i, (name, tower) in enumerate(zip(TOWERS, self._towers(), strict=True)):
            cross = tower.cross_keys_values(encoded[:, i])
            caches = self._caches(name) if cached else None
            hidden, caches = tower.decode(tokens, positions, cross, mask, caches, enable_dropout)
            if cached:
                self._store_caches(name, caches)
            logits.append(tower.logits(hidden[:, 0]))
        return realign_logits(logits[0], logits[1:], jnp.array([self.lam]))

    def _make_cache(self, rows: int, length: int) -> None:
        config = self.config
        empty = jnp.zeros((rows, 1, config.num_heads, length, config.head_dim), config.dtype)
        self.put_variable("cache", "cache_index", jnp.zeros((), jnp.int32))
        for name in TOWERS:
            self._store_caches(name, [(empty, empty)] * config.num_decoder_layers)

    def _caches(self, name: str) -> tuple[tuple[Array, Array], ...]:
        layers = range(self.config.num_decoder_layers)
        get = lambda kind, i: self.get_variable("cache", f"{name}_layers_{i}_cached_{kind}")
        return tuple((get("key", i), get("value", i)) for i in layers)

    def _store_caches(self, name: str, caches) -> None:
        """Stores keys and values under flat names, since T5X reorders each array of the cache."""
        for i, (key, value) in enumerate(caches):
            self.put_variable("cache", f"{name}_layers_{i}_cached_key", key)
            self.put_variable("cache", f"{name}_layers_{i}_cached_value", value)


def _check_not_packed(packing: Mapping[str, Array | None]) -> None:
    """Raises ValueError for segment ids; positions of examples that are not packed say nothing."""
    unknown = [name for name in packing if not name.endswith(("_segment_ids", "_positions"))]
    if unknown:
        raise TypeError(f"TwoTowers has no arguments {unknown}")
    if any(x is not None for name, x in packing.items() if name.endswith("_segment_ids")):
        raise ValueError(
            "TwoTowers: packed examples are not supported; set DatasetConfig.pack = False"
        )
