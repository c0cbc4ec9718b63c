"""Value networks: one number for each prefix, blind to what comes after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.models.heads import (
    CriticHead,
    Pooling,
    TabularCritic,
    TabularValue,
    ValueHead,
    value_of_sequences,
)
from dera_jax.models.t5 import Transformer
from dera_jax.models.tabular import TabularLM
from tests import golden
from tests.compiled import compiled
from tests.decoding import worlds

K, T = 3, 6


@pytest.fixture(scope="module")
def t5_world():
    """(value model, params with a random head, prompts of 2, tokens [2, K, T])."""
    trunk, params, g = golden.load("v1_1")
    model = ValueHead(trunk)
    params = model.init(params)
    kernel = jax.random.normal(jax.random.key(0), params["head"]["kernel"].shape)
    params["head"] = {"kernel": kernel, "bias": jnp.float32(0.5)}
    tokens = np.random.default_rng(0).integers(2, trunk.vocab_size, (2, K, T))
    return model, params, golden.prompts(g, slice(2), 30), tokens


def test_a_new_value_network_gives_zero(t5_world):
    model, params, prompts, tokens = t5_world
    values = compiled(model, "values")(model.init(params["trunk"]), prompts, tokens)
    np.testing.assert_array_equal(values, np.zeros((2, K, T + 1), np.float32))


def test_a_value_is_the_head_of_the_decoder_state_after_so_many_tokens(t5_world):
    model, params, prompts, tokens = t5_world
    values = compiled(model, "values")(params, prompts, tokens)
    assert values.shape == (2, K, T + 1) and values.dtype == jnp.float32
    fed = np.concatenate([np.zeros((2, 1), int), tokens[:, 1]], axis=-1)[:, None]
    module = Transformer(model.trunk.config)
    apply = jax.jit(lambda params, *args: module.apply({"params": params}, *args))
    hidden = np.asarray(apply(params["trunk"], prompts.tokens, prompts.mask, fed), np.float64)
    expected = hidden[:, 0] @ np.asarray(params["head"]["kernel"], np.float64) + 0.5
    np.testing.assert_allclose(values[:, 1], expected, rtol=1e-4, atol=1e-4)


def test_a_value_sees_only_the_tokens_that_it_has_read(t5_world):
    model, params, prompts, tokens = t5_world
    changed = tokens.copy()
    changed[..., 3] = 2 + changed[..., 3] % 5
    before = np.asarray(compiled(model, "values")(params, prompts, tokens))
    after = np.asarray(compiled(model, "values")(params, prompts, changed))
    np.testing.assert_array_equal(before[..., :4], after[..., :4])
    assert np.all(before[..., 4] != after[..., 4])


def test_the_tabular_value_is_that_of_the_prefix():
    model = TabularValue(TabularLM(vocab_size=3, horizon=4, num_inputs=2))
    assert not np.any(model.init())
    table = np.arange(model.init().size, dtype=np.float32).reshape(model.init().shape)
    tokens = np.array([[[2, 0, 1]], [[0, 2, 2]]])
    values = model.values(jnp.asarray(table), worlds.whole([[0], [1]]), jnp.asarray(tokens))
    expected = [
        [[table[b, worlds.prefix_number(row[0][:t], 3), 0] for t in range(4)]]
        for b, row in enumerate(tokens.tolist())
    ]
    np.testing.assert_array_equal(values, expected)


def test_the_value_of_a_sequence_is_the_mean_over_its_prefixes():
    """Those beyond a sequence's length do not count, whatever ids are there."""
    model = TabularValue(TabularLM(vocab_size=3, horizon=4))
    table = np.arange(model.init().size, dtype=np.float32).reshape(model.init().shape)
    tokens, lengths = jnp.array([[[2, 0, 1], [2, 0, 1], [2, 0, 1]]]), jnp.array([[0, 2, 3]])
    values = [table[0, worlds.prefix_number([2, 0, 1][:t], 3), 0] for t in range(4)]
    found = value_of_sequences(model, jnp.asarray(table), worlds.whole([[0]]), tokens, lengths)
    np.testing.assert_allclose(found[0], [values[0], np.mean(values[:3]), np.mean(values)])


class LastValue(TabularValue):
    pooling = Pooling("last", padding_id=1)


def test_the_value_at_the_last_token_that_is_no_padding():
    """It skips the padding id at the end only, and reads the prompt if there is nothing else."""
    model = LastValue(TabularLM(vocab_size=3, horizon=4))
    table = np.arange(model.init().size, dtype=np.float32).reshape(model.init().shape)
    tokens = jnp.array([[[2, 1, 0], [2, 1, 0], [1, 1, 2], [2, 1, 0]]])
    lengths = jnp.array([[3, 2, 2, 0]])
    read = [[2, 1, 0], [2], [], []]
    expected = [table[0, worlds.prefix_number(ids, 3), 0] for ids in read]
    found = value_of_sequences(model, jnp.asarray(table), worlds.whole([[0]]), tokens, lengths)
    np.testing.assert_array_equal(found[0], expected)


def test_a_critic_head_scores_all_tokens_as_it_scores_one():
    model, params, g = golden.load("v1_1")
    critic = CriticHead(model, max_length=5)
    params = critic.init(params)
    prompts = golden.prompts(g, slice(2), 20)
    tokens = np.random.default_rng(0).integers(2, model.vocab_size, (2, 3, 5))
    log_odds = compiled(critic, "log_odds")
    assert not np.any(log_odds(params, prompts, tokens))
    shapes = {name: x.shape for name, x in params["head"].items()}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))
    params["head"] = {name: jax.random.normal(keys[name], shapes[name]) for name in shapes}
    every = log_odds(params, prompts, tokens)
    assert every.shape == (2, 3, 5, model.vocab_size)
    expected = np.take_along_axis(np.asarray(every), tokens[..., None], axis=-1)[..., 0]
    found = compiled(critic, "log_odds_of")(params, prompts, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_critic_head_is_told_the_place():
    """The same state has other log-odds elsewhere, by what the head holds for that place alone."""
    model, params, g = golden.load("v1_1")
    critic = CriticHead(model, max_length=T)
    params = critic.init(params)
    params["head"]["c"] = jnp.arange(T, dtype=jnp.float32)
    prompts = golden.prompts(g, slice(1), 20)
    found = compiled(critic, "log_odds")(params, prompts, np.full((1, 1, T), 2))
    np.testing.assert_array_equal(found[0, 0, :, 7], np.arange(T))


def test_the_tabular_critic_is_the_row_of_the_prefix():
    critic = TabularCritic(TabularLM(vocab_size=3, horizon=2, num_inputs=1))
    table = jnp.arange(critic.init().size, dtype=jnp.float32).reshape(critic.init().shape)
    prompts, tokens = worlds.whole([[0]]), jnp.array([[[2, 1]]])
    np.testing.assert_array_equal(critic.log_odds(table, prompts, tokens)[0, 0], table[0, [0, 3]])
    np.testing.assert_array_equal(critic.log_odds_of(table, prompts, tokens)[0, 0], [2, 10])
