"""Decoders of the T5X plug-in, without T5X: against golden tokens, single models and best-of-n."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.resources import RunResources
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import sequence_keys
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.length import LengthInRange
from dera_jax.t5x.decoders import (
    EvolutionDecoder,
    SampleDecoder,
    SearchDecoder,
    Task,
    example_ids,
)
from dera_jax.t5x.two_towers import TOWERS
from tests.t5x.pairs import pair

LENGTH = 16
REWARD = LengthInRange(3, 9)


@functools.lru_cache(maxsize=1)
def world():
    config, params, g = pair()
    return Realigned(T5(config), (T5(config),)), tuple(params[x] for x in TOWERS), g


def task(rows=slice(None), columns=slice(None)) -> Task:
    _, _, g = world()
    inputs = jnp.asarray(g["encoder_input_tokens"][rows][:, columns])
    resources = RunResources(ByteVocabulary())
    return Task(inputs, g["decoder_target_tokens"][rows], LENGTH, (1,), resources)


def decode(decoder, asked: Task):
    """Compiled, as T5X compiles its step."""
    model, params, _ = world()
    return jax.jit(lambda p, t: decoder(model, p, t))(params, asked)


def test_lam_0_and_1_are_the_single_models():
    model, params, _ = world()
    both = decode(SampleDecoder(lams=(0.0, 1.0), num_samples=2, seed=3), task())
    keys = sequence_keys(3, example_ids(task().inputs), np.arange(2))
    for i, p in enumerate(params):
        single = sample(model.reference, p, task().prompts(), keys, Sampling(LENGTH))
        rows = slice(2 * i, 2 * i + 2)
        np.testing.assert_array_equal(both.tokens[:, rows], single.tokens)
        name = ("reference_log_prob", "aligned_log_prob")[i]
        np.testing.assert_allclose(
            both.aux[name][:, rows], single.scores.log_prob.sum(-1), rtol=1e-5
        )
        np.testing.assert_allclose(both.aux["scores"][:, rows], both.aux[name][:, rows], rtol=1e-6)
    np.testing.assert_allclose(both.aux["kl"][:, :2], 0, atol=1e-4)
    assert (both.aux["kl"][:, 2:] > 0.5).all()
    np.testing.assert_array_equal(both.aux["lam"], [[0, 0, 1, 1]] * 4)


def test_greedy_and_unguided_search_are_t5x():
    _, _, g = world()
    greedy = decode(SampleDecoder(lams=(0.0,), greedy=True), task())
    np.testing.assert_array_equal(greedy.tokens[:, 0], g["greedy16_tokens"])
    found = decode(SearchDecoder(lam=0.0), task())
    np.testing.assert_array_equal(found.tokens, g["beam4_tokens"])
    np.testing.assert_allclose(found.aux["search_score"], g["beam4_scores"], rtol=1e-5)


def test_texts_do_not_depend_on_the_batch_or_its_padding():
    decoder = SampleDecoder(lams=(0.5,), seed=1)
    together = decode(decoder, task())
    alone = decode(decoder, task(slice(2, 3), slice(0, 40)))
    np.testing.assert_array_equal(together.tokens[2:3], alone.tokens)
    other = decode(dataclasses.replace(decoder, seed=2), task())
    assert (other.tokens != together.tokens).any(axis=(1, 2)).all()


def test_example_ids_are_of_tokens_and_their_places():
    rows = jnp.array([[5, 6, 0, 0], [6, 5, 0, 0], [5, 6, 0, 5]])
    ids = example_ids(rows)
    assert len(set(ids.tolist())) == 3
    np.testing.assert_array_equal(ids[:2], example_ids(rows[:2, :2]))


@pytest.mark.slow
def test_a_reward_moves_the_search_and_is_reported():
    weigh = lambda **more: decode(SearchDecoder(lam=0.5, reward=REWARD, **more), task())
    plain, guided = weigh(), weigh(reward_weight=50.0, lookahead=4)
    assert guided.aux["reward"][:, -1].sum() > plain.aux["reward"][:, -1].sum()
    inside = (
        guided.aux["finished"] & (3 <= guided.aux["length"] - 1) & (guided.aux["length"] - 1 <= 9)
    )
    np.testing.assert_array_equal(guided.aux["reward"], np.where(inside, 0.0, -1.0))
    best = guided.aux["search_score"]
    assert (np.diff(best) >= 0).all()


@pytest.mark.slow
def test_evolution_without_instructions_or_replacement_is_best_of_n():
    """An empty instruction leaves the input as it is; a period beyond the text replaces nothing."""
    model, params, _ = world()
    n, asked = 4, task()
    decoder = EvolutionDecoder(
        REWARD, ("",), 0.5, seed=7, population=n, period=LENGTH, survivors=1, temperature=1.0,
        top_k=None,
    )  # fmt: skip
    found = decode(decoder, asked)
    keys = sequence_keys(7, example_ids(asked.inputs), np.arange(1 + n))
    prompts = asked.prompts(np.full((4, 1), 0.5, np.float32))
    out = sample(model, params, prompts, keys, Sampling(LENGTH))
    rewards = REWARD(None, asked.source, out.tokens, out.lengths, out.finished)
    best = np.argmax(rewards, axis=1)
    assert len(set(best.tolist())) > 1
    np.testing.assert_array_equal(found.tokens[:, 0], out.tokens[np.arange(4), best])
    np.testing.assert_array_equal(found.aux["reward"][:, 0], rewards[np.arange(4), best])
    np.testing.assert_array_equal(found.aux["individual"][:, 0], best - 1)
    np.testing.assert_allclose(
        found.aux["scores"][:, 0],
        out.scores.log_prob.sum(-1)[np.arange(4), best],
        rtol=1e-4,
    )


def test_instructions_stand_before_the_inputs_each_once_in_turn():
    decoder = EvolutionDecoder(REWARD, ("\x05", "\x06\x07"), population=5)  # bytes: ids 8, 9 10
    keys = sequence_keys(0, np.arange(4), [0])[:, 0]
    asked = task()
    found = jax.tree.map(np.asarray, decoder._instructed(asked, keys))
    assert found.tokens.shape == (4, 5, 2 + asked.inputs.shape[1])
    for *row, given in zip(found.tokens, found.lengths, np.asarray(asked.inputs), strict=True):
        given = given[given > 0].tolist()
        heads = [x[:n].tolist() for x, n in zip(*row, strict=True)]
        expected = ([8, *given], [9, 10, *given])
        assert all(x in expected for x in heads)
        assert sorted(expected.index(x) for x in heads[:4]) == [0, 0, 1, 1]


def test_a_document_of_rewards_is_the_input_without_its_end():
    inputs = jnp.array([[5, 6, 1, 0], [5, 6, 7, 8], [5, 1, 1, 0]])
    source = dataclasses.replace(task(), inputs=inputs).source
    np.testing.assert_array_equal(source.prompts.lengths, [3, 4, 3])
    np.testing.assert_array_equal(source.document.lengths, [2, 4, 2])
    np.testing.assert_array_equal(source.document.tokens, inputs)


def test_an_empty_bank_is_refused():
    with pytest.raises(ValueError, match="instructions must be a non-empty tuple"):
        EvolutionDecoder(REWARD, ())
