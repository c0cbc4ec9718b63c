"""Llama as a `language_model.TrainableModel`, built on the network of `llama.py`."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax.log import warn_once
from dera_jax.models import llama
from dera_jax.models.language_model import (
    Output,
    Prompts,
    PyTree,
    State,
    check_single,
    mask_unused_logits,
    shard_prompts,
)
from dera_jax.models.llama_config import LlamaConfig
from dera_jax.partitioning import constrain

PREFILL_CHUNK = 512  # tokens of a long prompt that are prefilled at once


@dataclasses.dataclass(frozen=True)
class Llama:
    """A decoder-only model. Methods without docstrings implement those of `TrainableModel`.

    Each prompt's last token is fed first, into slot 0, and all tokens before it are prefilled.
    `num_ids` is the size of the vocabulary if the embedding table has more rows, None otherwise.
    The ids from `num_ids` on, and `unused_ids`, are never produced: their logits are
    `language_model.UNUSED_LOGIT`.

    With `components` C > 1 it is several models that share a base and differ in their adapters
    (`lora.attach`); `extend_components` then returns the logits of each.

    State.shared = (for each layer the prompts' keys and values [B, C·G, S, D], prompt tokens before
    slot 0 [B]); State.cache = for each layer keys and values [B, K, C·G, L, D].
    """

    config: LlamaConfig
    num_ids: int | None = None
    remat: str | None = None
    components: int = 1
    unused_ids: tuple[int, ...] = ()

    @property
    def block_sizes(self) -> Mapping[str, int]:
        return {}

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.config.end_ids

    @property
    def start_token(self) -> None:
        return None

    @property
    def ends_prompts(self) -> bool:
        return False

    @property
    def emb_dim(self) -> int:
        return self.config.emb_dim

    def init(self, key: Array) -> PyTree:
        """Returns random parameters, see `llama.init`."""
        return llama.init(self.config, key)

    def param_axes(self) -> Mapping[str, tuple[str, ...]]:
        return dict(llama.param_axes(self.config))

    def param_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields name and shape of each parameter, see `llama.param_shapes`."""
        return llama.param_shapes(self.config)

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        del num_hypotheses
        check_single(prompts, self.num_ids or self.vocab_size, self.unused_ids)

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        self._warn_of_positions(prompts, max_len)
        keys_values = self._prefill_chunks(params, shard_prompts(prompts).tokens)
        rows = len(prompts.tokens), num_hypotheses
        empty = llama.empty_cache(self.config, rows, self.components, max_len)
        return self._started(prompts, keys_values, ((empty, empty),) * self.config.num_layers)

    def _warn_of_positions(self, prompts: Prompts, num_tokens: int) -> None:
        """Warns if prompts and further tokens may exceed the positions that the model is meant for."""
        size, most = prompts.tokens.shape[-1], self.config.max_positions
        if most and size + num_tokens > most:
            warn_once(
                f"prompts of up to {size} tokens and {num_tokens} further ones exceed the {most} positions "
                "that this model is meant for (max_position_embeddings); what it writes there may be worthless",
                about=("max_positions", most),
            )

    def _started(self, prompts: Prompts, keys_values: PyTree, cache: PyTree) -> State:
        """Returns the state after the prefill of prompts, whose keys and values are given."""
        before = prompts.lengths - 1
        first_token = jnp.take_along_axis(prompts.tokens, before[:, None], axis=1)[:, 0]
        shared = jax.tree.map(lambda x: x[:, 0], keys_values), before
        return State(jnp.zeros((), jnp.int32), first_token, shared, kept=(), cache=cache)

    def _prefill(self, params: PyTree, tokens: Array) -> PyTree:
        """Returns for each layer the keys and values [B, 1, C·G, S, D] of prompts tokens[B, S].

        Those of the last token and of the padding are computed too, but never attended to.
        """
        size, none = tokens.shape[1], jnp.zeros(len(tokens), jnp.int32)
        context = llama.context(self.config, jnp.arange(size), size, none, 0)
        options = {"remat": self.remat, "components": self.components}
        return llama.decode(self.config, params, tokens[:, None], context, **options)[1]

    def _prefill_chunks(self, params: PyTree, tokens: Array) -> PyTree:
        """Computes `_prefill` in chunks of PREFILL_CHUNK tokens, which bounds the memory of scores."""
        rows, size = tokens.shape
        if size <= PREFILL_CHUNK:
            return self._prefill(params, tokens)
        num_chunks, none = -(-size // PREFILL_CHUNK), jnp.zeros(rows, jnp.int32)
        room = num_chunks * PREFILL_CHUNK
        padded = jnp.pad(tokens, ((0, 0), (0, room - size)))
        empty = llama.empty_cache(self.config, (rows, 1), self.components, room)

        def add(cache: PyTree, chunk: Array) -> tuple[PyTree, None]:
            slots = chunk * PREFILL_CHUNK + jnp.arange(PREFILL_CHUNK)
            context = llama.context(self.config, slots, room, none, 0)
            new = jnp.take(padded, slots, axis=1)[:, None]
            options = {"cache": cache, "components": self.components}
            return llama.decode(self.config, params, new, context, **options)[1], None

        cache = ((empty, empty),) * self.config.num_layers
        cache, _ = jax.lax.scan(add, cache, jnp.arange(num_chunks))
        return jax.tree.map(lambda x: x[..., :size, :], cache)

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        return self.extend(params, state, tokens[..., None])

    def extend(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        logits, state = self.extend_components(params, state, tokens)
        return Output(logits[0]), state

    def extend_components(self, params: PyTree, state: State, tokens: Array) -> tuple[Array, State]:
        """Feeds tokens[B, K, N] to all components; see `realign.ComponentModel`."""
        slots = state.position + jnp.arange(tokens.shape[-1])
        hidden, cache = self._decode(params, state, tokens, slots, state.cache)
        last = jnp.moveaxis(hidden[..., -1, :], 2, 0)
        # Replicated over V, else each operation of token selection would need its own collective.
        logits = constrain(self.logits(params, last), None, "batch", None, None)
        return logits, state.replace(cache=cache, position=state.position + tokens.shape[-1])

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        return Output(self.forced_components(params, state, tokens)[0])

    def forced_components(self, params: PyTree, state: State, tokens: Array) -> Array:
        """Returns logits that predict tokens[B, K, T]; see `realign.ComponentModel`."""
        hidden = self._forced(params, state, tokens[..., :-1])
        return self.logits(params, jnp.moveaxis(hidden, 2, 0))

    def hidden(
        self, params: PyTree, prompts: Prompts, tokens: Array, dropout_key: Array | None = None
    ) -> Array:
        """See `TrainableModel`; there is no dropout, so `dropout_key` has no effect."""
        del dropout_key
        self._warn_of_positions(prompts, tokens.shape[-1])
        keys_values = self._prefill(params, shard_prompts(prompts).tokens)
        state = self._started(prompts, keys_values, cache=())
        return self._forced(params, state, tokens)[:, :, 0]

    def logits(self, params: PyTree, hidden: Array) -> Array:
        output = Output(llama.logits(self.config, params, hidden))
        return mask_unused_logits(output, self).logits

    def embedding(self, params: PyTree) -> Array:
        return params["token_embedder"]["embedding"]

    def with_temperature(self, params: PyTree, temperature: float) -> PyTree:
        """Returns parameters with logits divided by `temperature`, via the final norm's scale."""
        norm = jax.tree.map(lambda scale: scale / temperature, params["final_norm"])
        return {**params, "final_norm": norm}

    def _forced(self, params: PyTree, state: State, tokens: Array) -> Array:
        """Returns hidden states [B, K, C, N + 1, E] of the first token followed by tokens[B, K, N]."""
        first = jnp.broadcast_to(state.first_token[:, None, None], (*tokens.shape[:2], 1))
        fed = jnp.concatenate([first, tokens], axis=-1)
        return self._decode(params, state, fed, jnp.arange(fed.shape[-1]), remat=self.remat)[0]

    def _decode(
        self, params: PyTree, state: State, tokens: Array, slots: Array, cache=None, remat=None
    ):
        """Returns hidden states [B, K, C, N, E] of tokens[B, K, N] at slots[N], and the new cache."""
        prompt, before = state.shared
        num_slots = cache[0][0].shape[3] if cache else len(slots)
        prompt_size = prompt[0][0].shape[2]
        context = llama.context(self.config, slots, num_slots, before, prompt_size)
        return llama.decode(
            self.config, params, tokens, context, prompt, cache, remat, self.components
        )
