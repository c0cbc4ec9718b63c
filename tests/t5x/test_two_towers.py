"""The flax module that T5X sees, called as T5X calls it; the golden data are T5X's own outputs."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.realign import realign_logits
from dera_jax.models.t5_lm import T5
from dera_jax.t5x.two_towers import TwoTowers
from tests import golden
from tests.compiled import start
from tests.t5x.pairs import pair

flat = lambda tree: flax.traverse_util.flatten_dict(tree, sep="/")


def t5x_greedy(module: TwoTowers, params, inputs, length: int, decodes: int = 1) -> np.ndarray:
    """T5X's loop: a cache from a call with `decode`, `encode` once, `decode` for every token.

    With several decodes T5X repeats the encoder's output and every array of the cache. int32
    tokens [B * decodes, length].
    """
    variables, ones = {"params": params}, jnp.ones_like
    targets = jnp.zeros((len(inputs), length), jnp.int32)
    _, made = module.apply(
        variables,
        encoder_input_tokens=ones(inputs),
        decoder_input_tokens=ones(targets),
        decoder_target_tokens=ones(targets),
        mutable=["cache"],
        decode=True,
        enable_dropout=False,
    )
    encoded = module.apply(variables, inputs, enable_dropout=False, method=module.encode)
    many = lambda x: jnp.repeat(x, decodes, axis=0) if x.ndim else x
    cache, encoded, inputs = jax.tree.map(many, (made["cache"], encoded, jnp.asarray(inputs)))

    @jax.jit
    def step(cache, token):
        return module.apply(
            {"params": params, "cache": cache},
            encoded,
            inputs,
            token,
            token,
            enable_dropout=False,
            decode=True,
            max_decode_length=length,
            mutable=["cache"],
            method=module.decode,
        )

    token, done, tokens = jnp.zeros((len(inputs), 1), jnp.int32), False, []
    for _ in range(length):
        logits, changed = step(cache, token)
        cache = changed["cache"]
        token = jnp.where(done, 0, jnp.argmax(logits, axis=-1))
        done = done | (token == 1)
        tokens.append(token[:, 0])
    return np.stack(tokens, axis=1)


def logits_of(module: TwoTowers, params, g) -> np.ndarray:
    batch = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    return module.apply({"params": params}, *(g[x] for x in batch), enable_dropout=False)


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_parameters_and_axes_are_two_of_t5x(version):
    config, params, _ = pair(version)
    tokens = jnp.ones((1, 4))  # floats, as t5x.eval has them
    init = lambda key: TwoTowers(config).init(
        key,
        tokens,
        tokens,
        tokens,
        encoder_positions=None,
        decoder_positions=None,
        encoder_segment_ids=None,
        decoder_segment_ids=None,
        decode=False,
        enable_dropout=False,
    )
    variables = jax.eval_shape(init, jax.random.key(0))
    assert set(variables) == {"params", "params_axes"}
    assert jax.tree.map(np.shape, variables["params"]) == jax.tree.map(np.shape, params)
    axes = {name: x.names for name, x in flat(variables["params_axes"]).items()}
    assert axes.keys() == {f"{name}_axes" for name in flat(params)}
    for tower in ("reference", "aligned"):
        layer = f"{tower}/decoder/layers_0"
        assert axes[f"{layer}/self_attention/query/kernel_axes"] == ("embed", "joined_kv")
        assert axes[f"{layer}/mlp/wo/kernel_axes"] == ("mlp", "embed")
        assert axes[f"{tower}/token_embedder/embedding_axes"] == ("vocab", "embed")


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_teacher_forced_logits_are_mixed_and_those_of_t5x_at_the_ends(version):
    config, params, g = pair(version)
    real = g["decoder_target_tokens"] > 0
    at = {lam: logits_of(TwoTowers(config, lam), params, g)[real] for lam in (0.0, 0.5, 1.0)}
    swapped = {"reference": params["aligned"], "aligned": params["reference"]}
    np.testing.assert_allclose(at[0.0], g["logits"][real], atol=1e-4)
    other = logits_of(TwoTowers(config, 0.0), swapped, g)[real]
    assert np.abs(other - g["logits"][real]).max() > 1
    np.testing.assert_allclose(at[1.0], other, atol=1e-5)
    np.testing.assert_allclose(at[0.5], (at[0.0] + at[1.0]) / 2, atol=1e-4)


@pytest.mark.parametrize("version", golden.VERSIONS)
@pytest.mark.parametrize("decodes", [1, 3])
def test_decoding_by_t5x_gives_the_tokens_of_t5x(version, decodes):
    config, params, g = pair(version)
    tokens = t5x_greedy(TwoTowers(config, 0.0), params, g["encoder_input_tokens"], 16, decodes)
    np.testing.assert_array_equal(tokens, np.repeat(g["greedy16_tokens"], decodes, axis=0))


def test_cached_steps_equal_teacher_forcing_of_the_mixture():
    config, params, g = pair()
    module, inputs = TwoTowers(config, 0.5), g["encoder_input_tokens"]
    tokens = jnp.asarray(t5x_greedy(module, params, inputs, 16))
    model = T5(config)
    parts = [
        model.teacher_forced(p, start(model, p, golden.prompts(g)), tokens[:, None]).logits[:, 0]
        for p in (params["reference"], params["aligned"])
    ]
    mixture = realign_logits(parts[0], parts[1:], jnp.array([0.5]))
    ended = np.cumsum(tokens == 1, axis=1) - (tokens == 1) > 0
    np.testing.assert_array_equal(np.where(ended, 0, jnp.argmax(mixture, axis=-1)), tokens)
    assert not np.array_equal(tokens, g["greedy16_tokens"])


def test_packed_examples_are_refused():
    config, params, g = pair()
    batch = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    apply = lambda **packing: TwoTowers(config).apply(
        {"params": params}, *(g[x] for x in batch), enable_dropout=False, **packing
    )
    with pytest.raises(ValueError, match="packed examples are not supported"):
        apply(encoder_segment_ids=g["encoder_input_tokens"])
    with pytest.raises(TypeError, match="no arguments .'prefill'"):
        apply(prefill=True)
