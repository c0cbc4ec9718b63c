"""Ids beyond the vocabulary, which pad a model's tables, are never produced and count in no sum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import UNUSED_LOGIT, Prompts, sequence_keys
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5

IDS, ROWS, K = 17, 24, 6
CONFIG = T5Config(ROWS, 16, 2, 1, 1, 8, 16, end_ids=(1,))
LAMS = (0.0, 1.0, 0.5, 3.0, -2.0)
PROMPTS = Prompts(np.array([[3, 4, 5, 1], [9, 1, 0, 0]]), np.array([4, 2]))
KEYS = sequence_keys(0, [0, 1], np.arange(K))


def drawn(seed: int):
    """Parameters under which the unused rows have by far the largest logits."""
    params = T5(CONFIG).init(jax.random.key(seed))
    kernel = params["decoder"]["logits_dense"]["kernel"]
    kernel = kernel.at[:, IDS:].multiply(30.0)
    return {**params, "decoder": {**params["decoder"], "logits_dense": {"kernel": kernel}}}


@pytest.fixture(scope="module")
def pair():
    return [(T5(CONFIG, IDS), drawn(seed)) for seed in (0, 1)]


def mixture(pair):
    models, params = zip(*pair, strict=True)
    return Realigned(models[0], models[1:]), params


def without_unused_rows(params):
    """The model whose tables end with the vocabulary, and its parameters."""
    decoder = params["decoder"]
    kernel = decoder["logits_dense"]["kernel"][:, :IDS]
    embedding = params["token_embedder"]["embedding"][:IDS]
    params = params | {
        "token_embedder": {"embedding": embedding},
        "decoder": {**decoder, "logits_dense": {"kernel": kernel}},
    }
    return T5(dataclasses.replace(CONFIG, vocab_size=IDS)), params


def at(lam: float | None) -> Prompts:
    """The prompts at one λ; None for a single model."""
    return PROMPTS.replace(lam=None if lam is None else np.full((2, 1), lam, np.float32))


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("lam", [None, *LAMS])
def test_they_are_never_sampled(pair, lam, greedy):
    model, params = pair[0] if lam is None else mixture(pair)
    out = sample(model, params, at(lam), KEYS, Sampling(8, greedy=greedy))
    assert out.tokens.max() < IDS
    everything = jax.tree.leaves(out.scores)
    assert all(np.isfinite(x).all() for x in everything) and out.scores.log_prob.min() > -50


def test_without_the_limit_they_would_be(pair):
    out = sample(T5(CONFIG), pair[0][1], PROMPTS, KEYS, Sampling(8))
    assert (np.asarray(out.tokens) >= IDS).mean() > 0.5


@pytest.mark.parametrize("lam", [None, *LAMS])
def test_probabilities_are_those_of_a_model_without_these_rows(pair, lam):
    tokens = jnp.asarray(np.random.default_rng(0).integers(2, IDS, (2, K, 5)))
    cut = [without_unused_rows(params) for _, params in pair]
    outputs = []
    for models in (pair, cut):
        model, params = models[0] if lam is None else mixture(models)
        state = model.start(params, at(lam), K, 5)
        outputs.append(model.teacher_forced(params, state, tokens))
    whole, expected = outputs
    for found, right in zip(jax.tree.leaves(whole), jax.tree.leaves(expected), strict=True):
        assert (found[..., IDS:] == UNUSED_LOGIT).all()
        log_probs = jax.nn.log_softmax(found)[..., :IDS]
        np.testing.assert_allclose(log_probs, jax.nn.log_softmax(right), atol=1e-4)


def test_no_search_finds_them(pair):
    model, params = mixture(pair)
    found = beam_search(model, params, at(2.0), KEYS[:, :1], Search(6, beams=4, top_k=8))
    assert found.pool.tokens.max() < IDS
    assert found.pool.log_probs[found.pool.lengths > 0].min() > -50


def test_end_tokens_are_the_model_s_unless_another_is_given(pair):
    """The end token of a model ends its texts in sampling and search."""
    _, params = pair[0]
    model = T5(dataclasses.replace(CONFIG, end_ids=(5,)), IDS)
    by_model = sample(model, params, PROMPTS, KEYS, Sampling(8))
    given = sample(T5(CONFIG, IDS), params, PROMPTS, KEYS, Sampling(8, end_ids=(5,)))
    np.testing.assert_array_equal(by_model.tokens, given.tokens)
    assert by_model.finished.any()
    last = np.take_along_axis(by_model.tokens, by_model.lengths[..., None] - 1, -1)[..., 0]
    np.testing.assert_array_equal(last == 5, by_model.finished)


@pytest.mark.parametrize("settings", [Sampling(8), Search(8)])
def test_a_model_that_does_not_say_its_end_token_is_refused(pair, settings):
    model = T5(dataclasses.replace(CONFIG, end_ids=()))
    decode = sample if isinstance(settings, Sampling) else beam_search
    with pytest.raises(ValueError, match=f"{type(settings).__name__}.end_ids is not given"):
        decode(model, pair[0][1], PROMPTS, KEYS, settings)
