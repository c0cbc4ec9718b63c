"""T5 as a `language_model.TrainableModel`, built on the flax module of `t5.py`."""

import dataclasses
from collections.abc import Iterator, Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jax import Array

from dera_jax.models.language_model import (
    Output,
    Prompts,
    PyTree,
    State,
    check_single,
    mask_unused_logits,
    shard_prompts,
)
from dera_jax.models.t5 import T5Config, Transformer, param_shapes
from dera_jax.partitioning import constrain


@dataclasses.dataclass(frozen=True)
class T5:
    """A T5 model. Methods without docstrings implement those of `TrainableModel`.

    State.shared = (for each layer cross-attention keys and values [B, C, H, S, D], mask [B, S]);
    State.cache = for each layer self-attention keys and values [B, K, C, H, L, D].

    Attributes:
        config: configuration of the network.
        num_ids: size of the vocabulary if the embedding table, which is padded to a round size, has
            more rows; None otherwise. The ids from `num_ids` on are never produced: their logits
            are `language_model.UNUSED_LOGIT`.
        remat: policy of `jax.checkpoint_policies` that selects which activations of each layer are
            stored for the backward pass; None stores all.
        components: C, number of models that share a base and differ in their adapters
            (`lora.attach`), see `realign.ComponentModel`. The module has the components of a
            prompt, or of a hypothesis, as adjacent rows.
        unused_ids: further ids that are never produced.
    """

    config: T5Config
    num_ids: int | None = None
    remat: str | None = None
    components: int = 1
    unused_ids: tuple[int, ...] = ()

    @property
    def block_sizes(self) -> Mapping[str, int]:
        return {"joined_kv": self.config.head_dim}

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.config.end_ids

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def start_token(self) -> int:
        return self.config.start_token

    @property
    def ends_prompts(self) -> bool:
        return True

    @property
    def emb_dim(self) -> int:
        return self.config.emb_dim

    def init(self, key: Array) -> PyTree:
        """Returns random float32 parameters in T5X's parameter tree."""
        return jax.jit(self._variables)(key)["params"]

    def param_axes(self) -> Mapping[str, tuple[str, ...]]:
        axes = jax.eval_shape(self._variables, jax.random.key(0))["params_axes"]
        names = flax.traverse_util.flatten_dict(partitioning.get_axis_names(axes), sep="/")
        return {path: tuple(spec) for path, spec in names.items()}

    def param_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields name and shape of each parameter, see `t5.param_shapes`."""
        return param_shapes(self.config)

    def _variables(self, key: Array) -> PyTree:
        tokens = jnp.ones((1, 2), jnp.int32)
        inputs = tokens, tokens > 0, tokens[:, None]
        return Transformer(self.config).init(key, *inputs, method="teacher_forced")

    def _apply(self, params: PyTree, method: str, *args):
        return Transformer(self.config).apply({"params": params}, *args, method=method)

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        del num_hypotheses
        check_single(prompts, self.num_ids or self.vocab_size, self.unused_ids)

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        prompts = shard_prompts(prompts)
        config, batch = self.config, len(prompts.tokens)
        tokens, mask = (
            jnp.repeat(x, self.components, axis=0) for x in (prompts.tokens, prompts.mask)
        )
        cross = self._apply(
            params, "cross_keys_values", self._apply(params, "encode", tokens, mask)
        )
        rows = batch, num_hypotheses, self.components
        empty = jnp.zeros((*rows, config.num_heads, max_len, config.head_dim), config.dtype)
        empty = constrain(empty, "batch", None, None, "heads", None, None)
        return State(
            position=jnp.zeros((), jnp.int32),
            first_token=jnp.full(batch, self.start_token, jnp.int32),
            shared=(self._by_component(cross), prompts.mask),
            kept=(),
            cache=((empty, empty),) * config.num_decoder_layers,
        )

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        return self.extend(params, state, tokens[..., None])

    def extend(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        logits, state = self.extend_components(params, state, tokens)
        return Output(logits[0]), state

    def extend_components(self, params: PyTree, state: State, tokens: Array) -> tuple[Array, State]:
        """Feeds tokens[B, K, N] to all components; see `realign.ComponentModel`."""
        positions = state.position + jnp.arange(tokens.shape[-1])
        hidden, cache = self._decode(params, state, tokens, positions, state.cache)
        # Replicated over V, else each operation of token selection would need its own collective.
        logits = constrain(self.logits(params, hidden[..., -1, :]), None, "batch", None, None)
        return logits, state.replace(cache=cache, position=state.position + tokens.shape[-1])

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        return Output(self.forced_components(params, state, tokens)[0])

    def forced_components(self, params: PyTree, state: State, tokens: Array) -> Array:
        """Returns logits that predict tokens[B, K, T]; see `realign.ComponentModel`."""
        inputs, positions = self._decoder_inputs(tokens[..., :-1]), jnp.arange(tokens.shape[-1])
        return self.logits(params, self._decode(params, state, inputs, positions)[0])

    def _decode(
        self, params: PyTree, state: State, tokens: Array, positions: Array, cache: PyTree = None
    ) -> tuple[Array, PyTree]:
        """Returns hidden states [C, B, K, N, E] of tokens[B, K, N] at positions[N], and the new cache."""
        (batch, hypotheses, size), components = tokens.shape, self.components
        cross, mask = state.shared
        cross = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), cross)
        cache = jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[3:]), cache)
        tokens, mask = jnp.repeat(tokens, components, axis=1), jnp.repeat(mask, components, axis=0)
        hidden, cache = self._apply(params, "decode", tokens, positions, cross, mask, cache)
        hidden = hidden.reshape(batch, hypotheses, components, size, -1)
        cache = jax.tree.map(
            lambda x: x.reshape(batch, hypotheses, components, *x.shape[2:]), cache
        )
        return jnp.moveaxis(hidden, 2, 0), cache

    def _by_component(self, tree: PyTree) -> PyTree:
        """Reshapes leaves [B·C, ...] to [B, C, ...]."""
        return jax.tree.map(lambda x: x.reshape(-1, self.components, *x.shape[1:]), tree)

    def hidden(
        self, params: PyTree, prompts: Prompts, tokens: Array, dropout_key: Array | None = None
    ) -> Array:
        prompts = shard_prompts(prompts)
        inputs = prompts.tokens, prompts.mask, self._decoder_inputs(tokens)
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        module, train = Transformer(self.config, self.remat), dropout_key is not None
        return module.apply({"params": params}, *inputs, train=train, rngs=rngs)

    def logits(self, params: PyTree, hidden: Array) -> Array:
        output = Output(self._apply(params, "logits", hidden))
        return mask_unused_logits(output, self).logits

    def embedding(self, params: PyTree) -> Array:
        return params["token_embedder"]["embedding"]

    def with_temperature(self, params: PyTree, temperature: float) -> PyTree:
        """Returns parameters with logits divided by `temperature`, via the final norm's scale."""
        decoder = params["decoder"]
        norm = jax.tree.map(lambda scale: scale / temperature, decoder["decoder_norm"])
        return {**params, "decoder": {**decoder, "decoder_norm": norm}}

    def _decoder_inputs(self, tokens: Array) -> Array:
        """Prepends the start token to tokens[B, K, N]: [B, K, N + 1]."""
        padding = [(0, 0), (0, 0), (1, 0)]
        return jnp.pad(tokens, padding, constant_values=self.start_token)
