"""Decoder-only networks: RoPE, grouped-query attention, RMSNorm, SwiGLU.

One configuration covers Llama (1 to 3), Mistral, Qwen 2 and Qwen 3, which differ in the biases of their
projections, norms of heads, attention windows and the scaling of RoPE.

Plain functions of a nested dict of parameters. One function, `decode`, runs all passes: prefill of
a prompt, whose keys and values are stored once for all K hypotheses, decoding steps with a cache,
and teacher forcing without a cache. A query attends to the keys of the prompt and of its own
hypothesis under one softmax; only the attention scores of the two are concatenated, never the keys.

The network runs C component models at once, which differ in their LoRA adapters (`lora.attach`) and share
all other parameters; a single model is the case C = 1. Their keys and values are stored as C·G heads.

Axes: B prompts, K hypotheses, C component models, S prompt length, N new tokens, L slots of a
hypothesis, E emb_dim, H query heads, G key and value heads, R = H/G queries of one key, D head_dim,
V vocab_size.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dera_jax.models.layers import MASKED, einsum, low_rank, rematerialised, write_cache
from dera_jax.models.llama_config import LlamaConfig, RopeScaling
from dera_jax.partitioning import constrain

KeysValues = tuple[Array, Array]
_HEADS = "batch", None, "kv_heads", None, None, None  # logical axes of keys and values by component
Params = Mapping[str, "Params | Array"]


def param_axes(config: LlamaConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields name (path joined by '/') and logical axes of each parameter."""
    biases = (
        ("attention/query/bias", ("heads", "kv")),
        ("attention/key/bias", ("kv_heads", "kv")),
        ("attention/value/bias", ("kv_heads", "kv")),
    )
    norms = ("attention/query_norm/scale", ("kv",)), ("attention/key_norm/scale", ("kv",))
    yield "token_embedder/embedding", ("vocab", "embed")
    for i in range(config.num_layers):
        for name, axes in (
            ("pre_attention_norm/scale", ("embed",)),
            ("attention/query/kernel", ("embed", "heads", "kv")),
            ("attention/key/kernel", ("embed", "kv_heads", "kv")),
            ("attention/value/kernel", ("embed", "kv_heads", "kv")),
            *(biases if config.qkv_bias else ()),
            *(norms if config.head_norms else ()),
            ("attention/out/kernel", ("heads", "kv", "embed")),
            ("pre_mlp_norm/scale", ("embed",)),
            ("mlp/gate/kernel", ("embed", "mlp")),
            ("mlp/up/kernel", ("embed", "mlp")),
            ("mlp/down/kernel", ("mlp", "embed")),
        ):
            yield f"layers_{i}/{name}", axes
    yield "final_norm/scale", ("embed",)
    if not config.logits_via_embedding:
        yield "logits/kernel", ("embed", "vocab")


def param_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields name and shape of each parameter, without tracing."""
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.emb_dim,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "kv": config.head_dim,
        "mlp": config.mlp_dim,
    }
    for name, axes in param_axes(config):
        yield name, tuple(sizes[axis] for axis in axes)


def init(config: LlamaConfig, key: Array) -> Params:
    """Returns random float32 parameters: norms 1, biases 0, others normal with deviation 1/√E."""
    params = {}
    for i, (name, shape) in enumerate(param_shapes(config)):
        if name.endswith(("scale", "bias")):
            params[name] = jnp.full(shape, float(name.endswith("scale")))
            continue
        normal = jax.random.normal(jax.random.fold_in(key, i), shape)
        params[name] = normal / math.sqrt(config.emb_dim)
    return flax.traverse_util.unflatten_dict(params, sep="/")


@struct.dataclass
class Context:
    """Inputs of one pass that are the same for all layers.

    Attributes:
        slots: int32 [N], cache slots of the new tokens, among the L of their hypothesis.
        rotation: cosines and sines of RoPE, float32 [B, 1, 1, N, 1, D/2].
        masks: bool [B, N, S + L] for each of `config.windows`, whether a token attends to each key
            of prompt and hypothesis.
    """

    slots: Array
    rotation: tuple[Array, Array]
    masks: tuple[Array, ...]


def context(
    config: LlamaConfig, slots: Array, num_slots: int, before: Array, prompt_size: int
) -> Context:
    """Returns the context of a pass over N new tokens.

    Args:
        config: sizes of the network.
        slots: int32 [N], see `Context`.
        num_slots: L.
        before: int32 [B], number of prompt tokens before slot 0: these are attended to, and the
            position of slot t is before + t.
        prompt_size: S, 0 for a pass over the prompt itself.
    """
    positions = before[:, None] + slots
    masks = tuple(
        _mask(positions, slots, num_slots, before, prompt_size, window) for window in config.windows
    )
    return Context(slots, _rotation(config, positions), masks)


def _mask(
    positions: Array,
    slots: Array,
    num_slots: int,
    before: Array,
    prompt_size: int,
    window: int | None,
) -> Array:
    """Returns bool [B, N, S + L], see `Context`; the other arguments are those of `context`."""
    prompt_slots, own_slots = jnp.arange(prompt_size), jnp.arange(num_slots)
    in_prompt = prompt_slots < before[:, None, None]  # [B, 1, S]
    causal = own_slots <= slots[:, None]  # [N, L]
    if window is not None:  # a window of W holds the token itself and the W − 1 keys before it
        in_prompt &= positions[..., None] - prompt_slots < window
        causal &= slots[:, None] - own_slots < window
    batch, new = positions.shape
    in_prompt = jnp.broadcast_to(in_prompt, (batch, new, prompt_size))
    return jnp.concatenate([in_prompt, jnp.broadcast_to(causal, (batch, new, num_slots))], axis=-1)


def _rotation(config: LlamaConfig, positions: Array) -> tuple[Array, Array]:
    """Returns RoPE's cosines and sines [B, 1, 1, N, 1, D/2] of positions[B, N], always in float32."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = config.rope_base**-exponents
    if config.rope_scaling is not None:
        frequencies = scaled_frequencies(config.rope_scaling, frequencies)
    angles = positions[:, None, None, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def scaled_frequencies(scaling: RopeScaling, frequencies: Array) -> Array:
    """Returns RoPE's frequencies [D/2] in radians per position after scaling, see `RopeScaling`."""
    turns = scaling.context * frequencies / (2 * math.pi)  # in the context of pre-training
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def decode(
    config: LlamaConfig,
    params: Params,
    tokens: Array,
    context: Context,
    prompt: Sequence[KeysValues] | None = None,
    cache: Sequence[KeysValues] | None = None,
    remat: str | None = None,
    components: int = 1,
) -> tuple[Array, tuple[KeysValues, ...]]:
    """Runs the network over new tokens.

    Args:
        config: sizes of the network.
        params: its parameters.
        tokens: int32 [B, K, N], the new tokens.
        context: their context, see `context`.
        prompt: for each layer the prompt's keys and values [B, C·G, S, D]; None for a pass over the
            prompt itself.
        cache: for each layer the hypotheses' keys and values [B, K, C·G, L, D], which the new tokens'
            are written to; None for a pass without a cache, where L = N and slots are 0 to N - 1.
        remat: see `language_model.TrainableModel`.
        components: C.

    Returns:
        Hidden states [B, K, C, N, E] after the final norm, and for each layer the hypotheses' keys
        and values [B, K, C·G, L, D], the new ones included.
    """
    x = params["token_embedder"]["embedding"][tokens].astype(config.dtype)[:, :, None]
    x = jnp.broadcast_to(x, (*x.shape[:2], components, *x.shape[3:]))
    x = constrain(x, "batch", None, None, None, None)
    # Under jit all layers share one trace, which is most of the time before a program is compiled.
    layer = jax.jit(rematerialised(functools.partial(_layer, config), remat))
    updated = []
    for i in range(config.num_layers):
        blocks = prompt and prompt[i], cache and cache[i]
        windowed = context.replace(masks=(context.masks[config.window_of(i)],))
        x, own = layer(params[f"layers_{i}"], x, windowed, *blocks)
        updated.append(own)
    return _norm(config, params["final_norm"], x), tuple(updated)


def logits(config: LlamaConfig, params: Params, hidden: Array) -> Array:
    """Returns float32 logits[..., V] of hidden[..., E]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    if config.logits_via_embedding:
        out = einsum("ne,ve->nv", rows, params["token_embedder"]["embedding"], config.dtype)
    else:
        out = einsum("ne,ev->nv", rows, params["logits"]["kernel"], config.dtype)
    return out.reshape(*hidden.shape[:-1], -1)


def _layer(
    config: LlamaConfig,
    params: Params,
    x: Array,
    context: Context,
    prompt: KeysValues | None,
    cache: KeysValues | None,
) -> tuple[Array, KeysValues]:
    """Applies one layer to x[B, K, C, N, E]; returns the same shape and the result of `_attention`.

    The context has one mask, that of the layer's window.
    """
    y = _norm(config, params["pre_attention_norm"], x)
    y, own = _attention(config, params["attention"], y, context, prompt, cache)
    x = x + y
    return x + _mlp(config, params["mlp"], _norm(config, params["pre_mlp_norm"], x)), own


def _norm(config: LlamaConfig, params: Params, x: Array) -> Array:
    """Applies RMSNorm to x[..., E] in float32, and the scale after rounding, as in transformers."""
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    y = x * lax.rsqrt(mean_square + config.norm_epsilon)
    return y.astype(config.dtype) * params["scale"].astype(config.dtype)


def _mlp(config: LlamaConfig, params: Params, x: Array) -> Array:
    """Applies SwiGLU to x[B, K, C, N, E]: down(silu(gate(x))·up(x))."""
    gate, up = (_project(config, params[name], x) for name in ("gate", "up"))
    hidden = constrain(jax.nn.silu(gate) * up, "batch", None, None, None, "mlp")
    return _project(config, params["down"], hidden)


def _attention(
    config: LlamaConfig,
    params: Params,
    x: Array,
    context: Context,
    prompt: KeysValues | None,
    cache: KeysValues | None,
) -> tuple[Array, KeysValues]:
    """Returns the output [B, K, C, N, E], and the hypotheses' keys and values [B, K, C·G, L, D]."""
    queries, keys, values = (
        _project(config, params[name], x) for name in ("query", "key", "value")
    )
    if config.head_norms:
        queries = _norm(config, params["query_norm"], queries)
        keys = _norm(config, params["key_norm"], keys)
    queries = constrain(
        _rotate(queries, context.rotation), "batch", None, None, None, "heads", None
    )
    keys, values = map(_heads_first, (_rotate(keys, context.rotation), values))
    own = _update_cache(cache, (keys, values), context.slots)
    blocks = [own] if prompt is None else [prompt, own]
    attended = _attend(config, _grouped(config, queries), blocks, context.masks[0])
    return _project(
        config, params["out"], _ungrouped(config, attended, queries.shape), num_axes=2
    ), own


def empty_cache(config: LlamaConfig, rows: tuple[int, int], components: int, size: int) -> Array:
    """Returns the keys, or values, of no tokens for rows (B, K): zeros [B, K, C·G, L, D], L = size."""
    shape = *rows, config.num_kv_heads, components, size, config.head_dim
    return _join_components(constrain(jnp.zeros(shape, config.dtype), *_HEADS))


def _heads_first(x: Array) -> Array:
    """Transposes projected keys or values x[B, K, C, N, G, D] to [B, K, C·G, N, D]."""
    return _join_components(constrain(jnp.transpose(x, (0, 1, 4, 2, 3, 5)), *_HEADS))


def _join_components(x: Array) -> Array:
    """Reshapes x[B, K, G, C, L, D] to [B, K, C·G, L, D]; heads are the outer axis, which a mesh splits."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])


def _grouped(config: LlamaConfig, queries: Array) -> Array:
    """Transposes queries[B, K, C, N, H, D] to [B, K, C·G, R·N, D], by the key head they attend to."""
    *rows, components, size, _, head_dim = queries.shape
    groups = config.num_kv_heads
    split = queries.reshape(*rows, components, size, groups, -1, head_dim)
    return jnp.transpose(split, (0, 1, 4, 2, 5, 3, 6)).reshape(
        *rows, groups * components, -1, head_dim
    )


def _ungrouped(config: LlamaConfig, attended: Array, shape: tuple[int, ...]) -> Array:
    """Inverts `_grouped`, to the shape (B, K, C, N, H, D)."""
    *rows, components, size, _, head_dim = shape
    split = attended.reshape(*rows, config.num_kv_heads, components, -1, size, head_dim)
    return jnp.transpose(split, (0, 1, 3, 5, 2, 4, 6)).reshape(shape)


def _attend(
    config: LlamaConfig, queries: Array, blocks: Sequence[KeysValues], mask: Array
) -> Array:
    """Attends to several blocks of keys under one softmax.

    Args:
        config: sizes of the network.
        queries: [B, K, C·G, R·N, D], grouped by the key head that they attend to.
        blocks: keys and values, [B, C·G, S, D] of prompts or [B, K, C·G, L, D] of hypotheses.
        mask: bool [B, N, all keys], whether a token attends to each key of the blocks.

    Returns:
        [B, K, C·G, R·N, D].
    """
    scores = [_product(config, "...qd,...ld->...ql", queries, keys) for keys, _ in blocks]
    scores = jnp.concatenate(scores, axis=-1) / math.sqrt(config.head_dim)
    mask = jnp.tile(mask, (1, queries.shape[3] // mask.shape[1], 1))[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED))
    boundaries = np.cumsum([keys.shape[-2] for keys, _ in blocks])[:-1]
    pairs = zip(jnp.split(weights, boundaries, axis=-1), blocks, strict=True)
    attended = [_product(config, "...ql,...ld->...qd", w, values) for w, (_, values) in pairs]
    return sum(attended).astype(config.dtype)


def _product(config: LlamaConfig, spec: str, x: Array, block: Array) -> Array:
    """Computes einsum of x[B, K, C·G, Q, ·] with the keys or values of a block, in float32.

    The hypotheses of a prompt are merged into one matrix, so that its block is not repeated.
    """
    if block.ndim == x.ndim:
        return einsum(spec, x, block, config.dtype)
    batch, hypotheses, heads, queries, _ = x.shape
    merged = jnp.moveaxis(x, 1, 2).reshape(batch, heads, hypotheses * queries, -1)
    out = einsum(spec, merged, block, config.dtype)
    return jnp.moveaxis(out.reshape(batch, heads, hypotheses, queries, -1), 2, 1)


def _update_cache(cache: KeysValues | None, new: KeysValues, slots: Array) -> KeysValues:
    """Writes new keys and values [B, K, C·G, N, D] into the cache; returns them if there is none."""
    if cache is None:
        return new
    return tuple(write_cache(old, x, slots) for old, x in zip(cache, new, strict=True))


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Applies RoPE to x[B, K, C, N, heads, D], with pairs (i, i + D/2) as in transformers."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _project(config: LlamaConfig, params: Params, x: Array, num_axes: int = 1) -> Array:
    """Contracts the last `num_axes` axes of x[B, K, C, N, inputs] with the first ones of the kernel.

    It is one product of two matrices for all components, whose adapters add their low-rank products;
    with more than two axes XLA on CPUs would transpose the kernel at every step.
    """
    kernel = params["kernel"]
    inputs = math.prod(kernel.shape[:num_axes])
    x = x.reshape(*x.shape[:4], inputs)
    out = einsum("ni,io->no", x.reshape(-1, inputs), kernel.reshape(inputs, -1), config.dtype)
    out = out.reshape(*x.shape[:4], -1) + low_rank(params, x, config.dtype)
    out = out.reshape(*x.shape[:4], *kernel.shape[num_axes:])
    if "bias" in params:
        out = out + params["bias"].astype(out.dtype)
    return out.astype(config.dtype)
