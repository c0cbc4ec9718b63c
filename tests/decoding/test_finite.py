"""A NaN in a model or a reward stops every way of decoding; none of them ends with a normal-looking text.

What is not finite is planted where few hypotheses come by: at one prefix of a table, in one text's reward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding import best_of_n, sampling
from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.evolution import Evolution, generation
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, prefill, sample, sample_from
from dera_jax.decoding.search import Guide
from dera_jax.models.finite import check_params, check_values
from dera_jax.models.language_model import sequence_keys
from dera_jax.models.tabular import TabularLM
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.scoring import RewardScorer
from tests.decoding import worlds

VOCAB, EOS = 4, worlds.EOS
MODEL, (TABLE, OTHER) = worlds.tabular_tower(2, VOCAB)
REWARD = worlds.TextReward(VOCAB)
PROMPTS = worlds.whole([[0], [0]])  # two, alike
SOURCE = Source(PROMPTS)
LIMIT = Sampling(worlds.HORIZON)
NOT_FINITE = [np.nan, np.inf]


def planted(value: float, prefix: tuple[int, ...] = (3,)):
    """A table with one logit that is not finite."""
    return jnp.asarray(TABLE).at[0, worlds.prefix_number(prefix, VOCAB), 2].set(value)


def rewards(value: float | None = None, text: tuple[int, ...] = (3, EOS)) -> np.ndarray:
    """Of every text 0.1 times its number, but for one."""
    found = 0.1 * np.arange(MODEL.num_prefixes * VOCAB + 1, dtype=np.float32)
    if value is not None:
        found[worlds.prefix_number(text, VOCAB)] = value
    return found


def keys(num: int):
    return sequence_keys(0, np.arange(2), np.arange(num))


def guide(reward, values):
    return reward and Guide(RewardScorer(reward, values, str), SOURCE)


def bred(table, values, reward=REWARD, **settings):
    evolution = Evolution(LIMIT, population=16, period=1, survivors=8, **settings)
    own = jax.tree.map(lambda x: np.repeat(x[:, None], 16, axis=1), PROMPTS)
    return generation(MODEL, table, own, keys(16), evolution, guide(reward, values))


def searched(table, values, reward=REWARD, weight: float = 1.0, **settings):
    search = Search(worlds.HORIZON, beams=3, top_k=4, reward_weight=weight, **settings)
    return beam_search(MODEL, table, PROMPTS, keys(1), search, guide(reward, values))


def best(table, values):
    scorer = guide(REWARD, values)
    return best_of_n.best_of_n(MODEL, table, PROMPTS, keys(64), LIMIT, 4, scorer)


def sampled(table, _):
    return sample(MODEL, table, PROMPTS, keys(16), LIMIT)


def sampled_again(table, _):
    prefilled = prefill(MODEL, TABLE, PROMPTS, 16, LIMIT.max_length)
    return sample_from(MODEL, table, prefilled, keys(16), LIMIT)


METHODS = {
    "sample": sampled,
    "sample_from": sampled_again,
    "best_of_n": best,
    "beam_search": searched,
    "plain beam search": lambda table, _: searched(table, None, None, weight=0.0),
    "beam search with a period": lambda table, values: searched(table, values, period=2),
    "evolution": bred,
    "evolution with a lookahead": lambda table, values: bred(table, values, lookahead=1),
}
WITH_REWARD = [name for name in METHODS if "sample" not in name and "plain" not in name]


@pytest.mark.parametrize("name", METHODS)
def test_finite_numbers_pass(name):
    METHODS[name](TABLE, rewards())


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", METHODS)
def test_a_log_probability_that_is_not_finite_stops_decoding(name, value):
    with pytest.raises(
        FloatingPointError, match=r"the (sampling )?log-probability of input \d, .* is"
    ):
        METHODS[name](planted(value), rewards())


@pytest.mark.parametrize("value", [*NOT_FINITE, -np.inf])
@pytest.mark.parametrize("name", WITH_REWARD)
def test_a_reward_that_is_not_finite_stops_decoding_and_is_named(name, value):
    with pytest.raises(
        FloatingPointError, match=r"the reward TextReward\(vocab_size=4\) of input \d, "
    ):
        METHODS[name](TABLE, rewards(value, (0, EOS) if name == "best_of_n" else (3, EOS)))


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_no_λ_hides_the_other_model(lam):
    """0·NaN is NaN: at λ = 0 the aligned model is not left out."""
    pair, prompts = Realigned(MODEL, (MODEL,)), worlds.whole([[0], [0]], lam)
    for params in ((TABLE, planted(np.nan)), (planted(np.nan), OTHER)):
        with pytest.raises(FloatingPointError, match=rf"hypothesis \d+, token \d, λ = {lam} "):
            sample(pair, params, prompts, keys(16), LIMIT)


def test_inside_of_jit_what_is_not_finite_comes_out_of_a_search():
    """There nothing can be raised, so that it must be seen outside."""
    table, values = planted(np.nan), rewards(np.nan)
    found = jax.jit(searched)(table, rewards())
    assert np.isnan(found.scores).all() and np.isnan(found.pool.log_probs).all()
    assert np.isfinite(found.pool.rewards).all()
    found = jax.jit(searched)(TABLE, values)
    assert np.isnan(found.scores).all() and np.isnan(found.pool.rewards).all()
    assert np.isfinite(found.pool.log_probs).all()


def test_one_search_of_many_is_named():
    """The other input's search is sound."""
    model, table = TabularLM(VOCAB, worlds.HORIZON, num_inputs=2), jnp.tile(TABLE, (2, 1, 1))
    search = Search(worlds.HORIZON, beams=3, top_k=4)
    arguments = worlds.whole([[0], [1]]), keys(1), search
    with pytest.raises(FloatingPointError, match="of input 1, search 0, .* 3 of 6 values"):
        beam_search(model, table.at[1, 0, 2].set(jnp.nan), *arguments)


def test_no_winner_among_rewards_that_are_not_finite():
    for value in NOT_FINITE:
        with pytest.raises(FloatingPointError, match="the reward of input 0, hypothesis 2"):
            best_of_n.winners(np.array([[0.0, 1.0, value, 2.0]]), 2)


def test_a_judge_names_reward_and_text():
    scorer, lengths = RewardScorer(REWARD, rewards(np.nan), str), np.full((2, 2), 2)
    tokens = np.array([[[2, EOS, 0], [2, 2, 0]], [[2, 2, 0], [3, EOS, 0]]])
    with pytest.raises(
        FloatingPointError, match=r"reward TextReward.* of input 1, text 1 .* is nan"
    ):
        scorer(SOURCE, None, tokens, lengths, lengths > 0)


def test_places_are_named_and_counted():
    x = np.zeros((2, 3), np.float32)
    check_values({"a": x, "b": None}, ("row", "column"))
    x[1, 2] = x[1, 1] = -np.inf
    sentence = r"the a of row 1, column 1, λ = 5.0 \(counted from 0\) is -inf; 2 of 6 values"
    for array in (x, jnp.asarray(x)):
        with pytest.raises(FloatingPointError, match=sentence):
            check_values({"b": np.ones(3), "a": array}, ("row", "column"), np.full((2, 3), 5.0))
    tree = {"int": jnp.arange(3), "w": [jnp.ones(2), jnp.asarray(x, "bfloat16")]}
    with pytest.raises(FloatingPointError, match="here: 2 of 6 values of w/1 are NaN or infinite"):
        check_params(tree, "here")


def test_scores_are_checked_once_per_batch(monkeypatch):
    calls = []
    monkeypatch.setattr(sampling, "check_scores", lambda *_: calls.append(1))
    sampled(TABLE, None)
    assert len(calls) == 1
