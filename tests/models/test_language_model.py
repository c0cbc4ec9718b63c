"""The contract, for every model that claims it: cached decoding is teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import rewind, score, select, streams
from dera_jax.models.tabular import TabularLM
from tests import golden
from tests.compiled import compiled

B, K, T = 2, 3, 6


def t5():
    model, params, g = golden.load("v1_1")
    return model, params, g["encoder_input_tokens"][1:3]


def realigned_t5():
    model, params, inputs = t5()
    other = jax.tree.map(lambda x: x * 1.1, params)
    return Realigned(model, (model, model)), (params, other, params), inputs


def tabular():
    model = TabularLM(vocab_size=3, horizon=T + 1, num_inputs=2)
    return model, model.init(jax.random.key(0)), jnp.array([[0], [1]])


MODELS = {"t5": t5, "realigned_t5": realigned_t5, "tabular": tabular}


@pytest.fixture(params=MODELS)
def world(request):
    """model, params, inputs [B, S], state, tokens [B, K, T]."""
    model, params, inputs = MODELS[request.param]()
    rng = np.random.default_rng(0)
    lam = rng.uniform(-0.5, 1.5, (B, K, 2)).astype(np.float32)
    stream = streams(0, np.arange(B), np.arange(K))
    state = compiled(model, "start", 4)(params, inputs, lam, stream, T + 2)
    return model, params, inputs, state, rng.integers(0, model.vocab_size, (B, K, T))


def feed(model, params, state, tokens):
    """Steps through the start token and then tokens[B, K, T]: logits [B, K, T + 1, V], state."""
    step, logits = compiled(model, "step"), []
    for token in [np.full((B, K), model.start_token), *np.moveaxis(tokens, -1, 0)]:
        output, state = step(params, state, token)
        logits.append(output.logits)
    return np.stack(logits, axis=2), state


def test_stepping_is_teacher_forcing(world):
    model, params, _, state, tokens = world
    logits, _ = feed(model, params, state, tokens)
    forced = compiled(model, "teacher_forced")(params, state, tokens).logits
    np.testing.assert_allclose(logits[:, :, :T], forced, atol=1e-4)


def test_ragged_extend_is_stepping(world):
    model, params, _, state, tokens = world
    lengths = np.array([[1, 6, 3], [5, 2, 6]])  # tokens fed, the start token included
    fed = np.concatenate([np.zeros((B, K, 1), int), tokens], axis=-1)
    output, extended = compiled(model, "extend")(params, state, fed[..., :6], lengths)
    logits, _ = feed(model, params, state, tokens)
    rows = np.ix_(range(B), range(K))
    np.testing.assert_allclose(output.logits, logits[(*rows, lengths - 1)], atol=1e-4)
    # ... and so is what follows it, from rows that now stand at different positions.
    following = np.take_along_axis(tokens, lengths[..., None] - 1, axis=-1)[..., 0]
    output, _ = compiled(model, "step")(params, extended, following)
    np.testing.assert_allclose(output.logits, logits[(*rows, lengths)], atol=1e-4)
    np.testing.assert_array_equal(extended.lengths, lengths)


def test_extend_in_two_parts_is_extend_in_one(world):
    model, params, _, state, tokens = world
    once, _ = compiled(model, "extend")(params, state, tokens, np.full((B, K), T))
    _, half = compiled(model, "extend")(
        params, state, tokens[..., :4], np.array([[4, 2, 3], [1, 4, 2]])
    )
    rest = np.stack(
        [[np.roll(tokens[b, k], -int(half.lengths[b, k])) for k in range(K)] for b in range(B)]
    )
    twice, _ = compiled(model, "extend")(params, half, rest, T - half.lengths)
    np.testing.assert_allclose(once.logits, twice.logits, atol=1e-4)


def test_rewind_forgets_the_text_and_keeps_the_input(world):
    model, params, _, state, tokens = world
    _, fed = feed(model, params, state, tokens)
    again, _ = feed(model, params, rewind(fed), tokens[..., ::-1])
    fresh, _ = feed(model, params, state, tokens[..., ::-1])
    np.testing.assert_array_equal(again, fresh)


def test_select_copies_and_reorders_texts_but_not_streams(world):
    model, params, inputs, state, tokens = world
    _, fed = feed(model, params, state, tokens[..., :3])
    index = np.array([[2, 2, 0], [1, 0, 1]])
    output, _ = compiled(model, "step")(params, select(fed, index), tokens[:, 0, 3:4].repeat(K, 1))
    reordered = np.take_along_axis(tokens, index[..., None], axis=1)
    reordered[..., 3] = tokens[:, 0, 3:4]
    lam = jnp.take_along_axis(state.lam, index[..., None], axis=1)
    fresh = compiled(model, "start", 4)(params, inputs, lam, state.stream, T + 2)
    expected, _ = feed(model, params, fresh, reordered[..., :4])
    np.testing.assert_allclose(output.logits, expected[:, :, 4], atol=1e-4)
    np.testing.assert_array_equal(
        jax.random.key_data(select(fed, index).stream), jax.random.key_data(state.stream)
    )


def test_select_to_another_number_needs_streams(world):
    model, params, _, state, _ = world
    index = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    with pytest.raises(ValueError, match=r"from \(2, 3\) to \(2, 4\) hypotheses needs `stream`"):
        select(state, index)
    wide = select(state, index, streams(1, np.arange(B), np.arange(4)))
    output, _ = compiled(model, "step")(params, wide, np.zeros((B, 4), int))
    assert output.logits.shape == (B, 4, model.vocab_size)


def test_score_sums_the_log_probabilities_of_the_steps(world):
    model, params, _, state, tokens = world
    lengths = np.array([[6, 4, 1], [2, 6, 5]])
    log_probs = jax.jit(score, static_argnums=0)(model, params, state, tokens, lengths)
    logits, _ = feed(model, params, state, tokens)
    expected = np.take_along_axis(jax.nn.log_softmax(logits[:, :, :T]), tokens[..., None], -1)[
        ..., 0
    ]
    expected = np.where(np.arange(T) < lengths[..., None], expected, 0)
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_streams_depend_on_seed_example_and_number_alone():
    key = lambda *args: jax.random.key_data(streams(*args)).tolist()
    assert key(0, [7, 9], [0, 1])[1][1] == key(0, [9], [1])[0][0]
    assert key(0, [7], [0, 0])[0][0] == key(0, [7], [0, 0])[0][1]
    different = [key(0, [7], [0]), key(1, [7], [0]), key(0, [8], [0]), key(0, [7], [1])]
    assert len({str(k) for k in different}) == 4
