"""The contract, for every model that claims it: cached decoding is teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.realign import Realigned, with_lam
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    length_mask,
    next_token_logits,
    pad_sequences,
    rewind,
    score,
    score_sequences,
    select,
    sequence_keys,
    take,
)
from dera_jax.models.llama_lm import Llama
from dera_jax.models.tabular import TabularLM
from tests import golden, tiny
from tests.compiled import compiled
from tests.compiled import start as begin
from tests.decoding import worlds

B, K, T = 2, 3, 6


def t5():
    model, params, g = golden.load("v1_1")
    return model, params, golden.prompts(g, slice(1, 3))


def realigned_t5():
    """Two aligned models; λ of each hypothesis."""
    model, params, prompts = t5()
    other = jax.tree.map(lambda x: x * 1.1, params)
    lam = np.random.default_rng(0).uniform(-0.5, 1.5, (B, K, 2)).astype(np.float32)
    return Realigned(model, (model, model)), (params, other, params), prompts.replace(lam=lam)


def llama():
    model = Llama(tiny.LLAMA)
    return (
        model,
        tiny.params(model),
        Prompts(*pad_sequences([list(range(2, 11)), list(range(20, 28))], 9)),
    )


def tabular():
    model = TabularLM(vocab_size=3, horizon=T + 1, num_inputs=2)
    return model, model.init(jax.random.key(0)), worlds.whole([[0], [1]])


MODELS = {"t5": t5, "realigned_t5": realigned_t5, "llama": llama, "tabular": tabular}


def start(model, params, prompts, num_hypotheses=K, max_len=T + 2):
    return begin(model, params, prompts, num_hypotheses, max_len)


@pytest.fixture(params=MODELS)
def world(request):
    """model, params, prompts of B, state, tokens [B, K, T]."""
    model, params, prompts = MODELS[request.param]()
    tokens = np.random.default_rng(1).integers(0, model.vocab_size, (B, K, T))
    return model, params, prompts, start(model, params, prompts), tokens


def feed(model, params, state, tokens):
    """Steps through the first token and then tokens[B, K, T]: logits [B, K, T + 1, V], state."""
    step, logits = compiled(model, "step"), []
    first = np.broadcast_to(state.first_token[:, None], tokens.shape[:2])
    for token in [first, *np.moveaxis(tokens, -1, 0)]:
        output, state = step(params, state, token)
        logits.append(output.logits)
    return np.stack(logits, axis=2), state


def with_first(state, tokens):
    """tokens[B, K, T] after the first one that is fed: [B, K, T + 1]."""
    first = np.broadcast_to(state.first_token[:, None, None], (*tokens.shape[:2], 1))
    return np.concatenate([first, tokens], axis=-1)


def test_stepping_is_teacher_forcing(world):
    model, params, _, state, tokens = world
    logits, _ = feed(model, params, state, tokens)
    forced = compiled(model, "teacher_forced")(params, state, tokens).logits
    np.testing.assert_allclose(logits[:, :, :T], forced, atol=1e-4)


@pytest.mark.parametrize("num", [4, T + 1])
def test_extend_is_stepping(world, num):
    model, params, _, state, tokens = world
    output, extended = compiled(model, "extend")(
        params, state, with_first(state, tokens)[..., :num]
    )
    logits, _ = feed(model, params, state, tokens)
    np.testing.assert_allclose(output.logits, logits[:, :, num - 1], atol=1e-4)
    assert int(extended.position) == num
    if num <= T:  # ... and so is what follows it
        output, _ = compiled(model, "step")(params, extended, tokens[..., num - 1])
        np.testing.assert_allclose(output.logits, logits[:, :, num], atol=1e-4)


def test_extend_in_two_parts_is_extend_in_one(world):
    model, params, _, state, tokens = world
    fed, extend = with_first(state, tokens), compiled(model, "extend")
    once, whole = extend(params, state, fed)
    _, half = extend(params, state, fed[..., :4])
    twice, both = extend(params, half, fed[..., 4:])
    np.testing.assert_allclose(once.logits, twice.logits, atol=1e-4)
    assert int(whole.position) == int(both.position) == T + 1


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize("num", [1, 2])
def test_behind_a_full_cache_logits_are_nan(name, num):
    """Instead of those of a cache whose last tokens were overwritten."""
    model, params, prompts = MODELS[name]()
    state = start(model, params, prompts, K, 3)
    block = lambda n: np.full((B, K, n), 5)
    output, state = compiled(model, "extend")(params, state, block(3 - num // 2))
    assert np.isfinite(output.logits).all()
    output, _ = compiled(model, "extend")(params, state, block(num))
    assert np.isnan(output.logits).all()


def test_rewind_forgets_the_tokens_and_keeps_the_prompt(world):
    model, params, _, state, tokens = world
    _, fed = feed(model, params, state, tokens)
    again, _ = feed(model, params, rewind(fed), tokens[..., ::-1])
    fresh, _ = feed(model, params, state, tokens[..., ::-1])
    np.testing.assert_array_equal(again, fresh)


def test_select_copies_and_reorders_hypotheses_and_their_lambda(world):
    model, params, prompts, state, tokens = world
    _, fed = feed(model, params, state, tokens[..., :3])
    index = np.array([[2, 2, 0], [1, 0, 1]])
    output, _ = compiled(model, "step")(params, select(fed, index), tokens[:, 0, 3:4].repeat(K, 1))
    reordered = np.take_along_axis(tokens, index[..., None], axis=1)
    reordered[..., 3] = tokens[:, 0, 3:4]
    if prompts.lam is not None:
        prompts = prompts.replace(lam=np.take_along_axis(prompts.lam, index[..., None], axis=1))
    expected, _ = feed(model, params, start(model, params, prompts), reordered[..., :4])
    np.testing.assert_allclose(output.logits, expected[:, :, 4], atol=1e-4)


def test_select_to_another_number_of_hypotheses(world):
    model, params, _, state, tokens = world
    logits, _ = feed(model, params, state, tokens)
    _, fed = feed(model, params, state, tokens[..., :3])
    index = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    wide = select(fed, index)
    output, _ = compiled(model, "step")(params, wide, np.take_along_axis(tokens[..., 3], index, 1))
    expected = np.take_along_axis(logits[:, :, 4], index[..., None], axis=1)
    np.testing.assert_allclose(output.logits, expected, atol=1e-4)


def test_take_gathers_whole_prompts_within_their_groups(world):
    """Four prompts, two in each group; three of each group are taken."""
    model, params, prompts, _, tokens = world
    turned = lambda x: np.concatenate([x, np.asarray(x)[::-1]])
    prompts, tokens = jax.tree.map(turned, (prompts, tokens))
    index = np.array([[1, 1, 0], [0, 1, 0]])
    rows = (index + np.array([[0], [2]])).ravel()
    state = start(model, params, prompts)
    logits, _ = feed(model, params, state, tokens)
    _, fed = feed(model, params, state, tokens[..., :3])
    taken = take(fed, index)
    np.testing.assert_array_equal(taken.first_token, np.asarray(fed.first_token)[rows])
    output, _ = compiled(model, "step")(params, taken, tokens[rows][..., 3])
    np.testing.assert_allclose(output.logits, logits[rows][:, :, 4], atol=1e-4)
    assert int(taken.position) == 4
    # ... and after a rewind the prompts are still those
    again, _ = feed(model, params, rewind(taken), tokens[rows])
    np.testing.assert_allclose(again, logits[rows], atol=1e-4)


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


@pytest.mark.parametrize("name", ["t5", "tabular"])
def test_the_training_contract_is_teacher_forcing(name):
    model, params, prompts = MODELS[name]()
    tokens = np.random.default_rng(2).integers(0, model.vocab_size, (B, K, T))
    state, lengths = start(model, params, prompts), np.array([[6, 4, 1], [2, 6, 5]])
    forced = compiled(model, "teacher_forced")(params, state, tokens).logits
    logits = jax.jit(next_token_logits, static_argnums=0)(model, params, prompts, tokens)
    np.testing.assert_allclose(logits, forced, atol=1e-4)
    found = jax.jit(score_sequences, static_argnums=0)(model, params, prompts, tokens, lengths)
    expected = jax.jit(score, static_argnums=0)(model, params, state, tokens, lengths)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Entry t of the hidden states has read t tokens, so the last one has read them all.
    hidden = compiled(model, "hidden")(params, prompts, tokens)
    assert hidden.shape == (B, K, T + 1, model.emb_dim)
    stepped, _ = feed(model, params, state, tokens)
    np.testing.assert_allclose(model.logits(params, hidden), stepped, atol=1e-4)
    assert model.embedding(params).shape == (model.vocab_size, model.emb_dim)


# Padding


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pad", [1, 7])
def test_no_id_is_padding_by_its_value(name, pad):
    """Prompts that contain 0 and the padding id give what they give when padded with 0."""
    model, params, prompts = MODELS[name]()
    tokens = np.random.default_rng(3).integers(0, model.vocab_size, (B, K, T))
    if name == "tabular":  # ids of its prompts are numbers of its tables
        prompts, pad = worlds.whole([[0, 0], [1, 0]]).replace(lengths=np.array([1, 1])), 1
    else:
        inside = np.array(prompts.tokens)
        inside[:, 2:4] = 0, pad
        prompts = prompts.replace(tokens=inside, lengths=prompts.lengths - 5)
    mask = np.asarray(prompts.mask)
    assert not mask[:, -1].any()
    by_zero = prompts.replace(tokens=np.where(mask, prompts.tokens, 0))
    by_other = prompts.replace(tokens=np.where(mask, prompts.tokens, pad))
    assert (by_zero.tokens != by_other.tokens).any()
    outputs = [feed(model, params, start(model, params, x), tokens)[0] for x in (by_zero, by_other)]
    np.testing.assert_array_equal(*outputs)
    keys = sequence_keys(0, np.arange(B), np.arange(K))
    end = Sampling(T, end_ids=(-1,))
    found = [sample(model, params, x, keys, end).tokens for x in (by_zero, by_other)]
    np.testing.assert_array_equal(*found)
    if name == "tabular":
        return
    shorter = by_zero.replace(lengths=by_zero.lengths - 1)  # the lengths do say where prompts end
    assert (feed(model, params, start(model, params, shorter), tokens)[0] != outputs[0]).any()


@pytest.mark.parametrize("length", [0, -1])
def test_a_prompt_without_a_token_is_an_error(world, length):
    model, params, prompts, *_ = world
    lengths = np.array(prompts.lengths)
    lengths[1] = length
    keys = sequence_keys(0, np.arange(B), np.arange(K))
    with pytest.raises(ValueError, match=rf"lengths must be in \[1, .*; found {length} at \[1\]"):
        sample(model, params, prompts.replace(lengths=lengths), keys, Sampling(T))


def test_padded_sequences_keep_their_lengths():
    tokens, lengths = pad_sequences([[5, 0, 7], [], [0]], 4)
    np.testing.assert_array_equal(tokens, [[5, 0, 7, 0], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(lengths, [3, 0, 1])
    expected = [[True, True, True, False], [False] * 4, [True, False, False, False]]
    np.testing.assert_array_equal(Padded(tokens, lengths).mask, expected)
    np.testing.assert_array_equal(Prompts(tokens, lengths).mask, expected)
    np.testing.assert_array_equal(length_mask(jnp.array([[0, 2]]), 2), [[[False] * 2, [True] * 2]])


# λ


def test_lambda_of_a_group_reaches_its_adjacent_hypotheses():
    table, params = worlds.tabular_tower(3)
    model, prompts = Realigned(table, (table, table)), worlds.whole([[0], [0]])
    tokens = np.random.default_rng(4).integers(0, 4, (B, 4, 2))
    lam = np.random.default_rng(5).uniform(-0.5, 1.5, (B, 2, 2)).astype(np.float32)
    grouped = start(model, params, prompts.replace(lam=lam), 4)
    np.testing.assert_array_equal(grouped.kept.lam, np.repeat(lam, 2, axis=1))
    logits = feed(model, params, grouped, tokens)[0]
    for k in range(4):  # each hypothesis alone, at the λ of its group
        alone = start(model, params, prompts.replace(lam=lam[:, k // 2, None]), 1)
        expected = feed(model, params, alone, tokens[:, k : k + 1])[0]
        np.testing.assert_array_equal(logits[:, k : k + 1], expected)
    with pytest.raises(ValueError, match=r"\(2, 2, 2\); expected .* G divides the 3"):
        model.start(params, prompts.replace(lam=lam), 3, T)


def test_with_lam_is_a_fresh_start_at_that_lambda():
    model, params, prompts = realigned_t5()
    tokens = np.random.default_rng(6).integers(0, model.vocab_size, (B, K, T))
    lam = np.random.default_rng(7).uniform(-0.5, 1.5, (B, 1, 2)).astype(np.float32)
    state = start(model, params, prompts)
    other = with_lam(state, lam)
    fresh = start(model, params, prompts.replace(lam=lam))
    jax.tree.map(np.testing.assert_array_equal, other, fresh)
    expected = feed(model, params, fresh, tokens)[0]
    np.testing.assert_array_equal(feed(model, params, other, tokens)[0], expected)
    assert (feed(model, params, state, tokens)[0] != expected).any()
    with pytest.raises(ValueError, match=r"lam has shape \(2, 2, 2\); expected"):
        with_lam(state, np.ones((B, 2, 2), np.float32))


# Keys


def test_keys_depend_on_seed_example_and_number_alone():
    key = lambda *args: jax.random.key_data(sequence_keys(*args)).tolist()
    assert key(0, [7, 9], [0, 1])[1][1] == key(0, [9], [1])[0][0]
    assert key(0, [7], [0, 0])[0][0] == key(0, [7], [0, 0])[0][1]
    assert key(0, [7, 9], [[0, 1], [2, 3]])[1][0] == key(0, [9], [2])[0][0]
    different = [key(0, [7], [0]), key(1, [7], [0]), key(0, [8], [0]), key(0, [7], [1])]
    assert len({str(k) for k in different}) == 4
