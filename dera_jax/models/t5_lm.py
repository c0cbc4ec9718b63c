"""T5 as a `LanguageModel`: the contract of `language_model.py` over the flax module of `t5.py`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax.models.language_model import Output, PyTree, State, shift_right, without_unused
from dera_jax.models.t5 import T5Config, Transformer


@dataclasses.dataclass(frozen=True)
class T5:
    """A T5 of the given sizes; its parameters are arguments of every method.

    `num_ids` is the number of ids that the vocabulary has, where the tables have more rows (they
    are padded to a round size); None where every row has a meaning. The other ids are never
    produced: their logits are `language_model.UNUSED`.

    State.shared = (cross keys and values of each layer [B, H, S, D], input mask [B, S]);
    State.cache = for each layer self-attention keys and values [B, K, H, L, D].
    """

    config: T5Config
    num_ids: int | None = None

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def start_token(self) -> int:
        return self.config.start_token

    @property
    def end_token(self) -> int | None:
        return self.config.end_token

    def init(self, key: Array) -> PyTree:
        """Random parameters, T5X's tree, float32."""
        tokens = jnp.ones((1, 2), jnp.int32)
        module = Transformer(self.config)
        init = jax.jit(
            lambda key: module.init(key, tokens, tokens[:, None], method="teacher_forced")
        )
        return init(key)["params"]

    def apply(self, params: PyTree, method: str, *args, dropout_key: Array | None = None):
        """Calls a method of the flax module; a dropout key turns dropout on."""
        if dropout_key is None:
            return Transformer(self.config).apply({"params": params}, *args, method=method)
        rngs = {"dropout": dropout_key}
        return Transformer(self.config).apply(
            {"params": params}, *args, train=True, rngs=rngs, method=method
        )

    def start(
        self, params: PyTree, inputs: Array, lam: Array, stream: Array, max_len: int
    ) -> State:
        config = self.config
        encoded = self.apply(params, "encode", inputs)
        cross = self.apply(params, "cross_keys_values", encoded)
        shape = (*stream.shape, config.num_heads, max_len, config.head_dim)
        empty = jnp.zeros(shape, config.dtype)
        return State(
            lengths=jnp.zeros(stream.shape, jnp.int32),
            stream=stream,
            lam=lam,
            shared=(cross, inputs > 0),
            cache=((empty, empty),) * config.num_decoder_layers,
        )

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        positions = state.lengths[0, 0][None] if state.lockstep else state.lengths[..., None]
        hidden, cache = self._decode(params, state, tokens[..., None], positions, state.cache)
        output = self._output(params, hidden[:, :, 0])
        return output, state.replace(cache=cache, lengths=state.lengths + 1)

    def extend(
        self, params: PyTree, state: State, tokens: Array, lengths: Array
    ) -> tuple[Output, State]:
        # Slots past a row's own length are written too; its next tokens overwrite them before
        # any query can see them.
        positions = state.lengths[..., None] + jnp.arange(tokens.shape[-1])
        hidden, cache = self._decode(params, state, tokens, positions, state.cache)
        last = jnp.take_along_axis(hidden, lengths[..., None, None] - 1, axis=2)[:, :, 0]
        state = state.replace(cache=cache, lengths=state.lengths + lengths, lockstep=False)
        return self._output(params, last), state

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        return self._output(params, self.hidden(params, state, tokens))

    def hidden(self, params: PyTree, state: State, tokens: Array) -> Array:
        """Final decoder states [B, K, T, E] that predict tokens[B, K, T]."""
        positions = jnp.arange(tokens.shape[-1])
        decoder_inputs = shift_right(tokens, self.start_token)
        return self._decode(params, state, decoder_inputs, positions, None)[0]

    def _output(self, params: PyTree, hidden: Array) -> Output:
        return without_unused(Output(self.apply(params, "logits", hidden)), self.num_ids)

    def _decode(self, params, state, tokens, positions, cache):
        cross, mask = state.shared
        return self.apply(params, "decode", tokens, positions, cross, mask, cache)


def decodable(model: T5) -> T5:
    """A model that says an end token: any will do where only shapes count, as in a dry run."""
    if model.end_token is not None:
        return model
    config = dataclasses.replace(model.config, end_token=model.start_token)
    return dataclasses.replace(model, config=config)


def with_vocab_size(model: T5, params: PyTree, size: int) -> tuple[T5, PyTree]:
    """The model without the ids from `size` on, which only padded its tables."""
    embedding = {"embedding": params["token_embedder"]["embedding"][:size]}
    cut = {**params, "token_embedder": embedding}
    if not model.config.logits_via_embedding:
        kernel = params["decoder"]["logits_dense"]["kernel"][:, :size]
        cut["decoder"] = {**params["decoder"], "logits_dense": {"kernel": kernel}}
    config = dataclasses.replace(model.config, vocab_size=size)
    num_ids = None if model.num_ids == size else model.num_ids
    return dataclasses.replace(model, config=config, num_ids=num_ids), cut
