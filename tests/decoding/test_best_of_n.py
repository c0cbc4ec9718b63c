"""Best-of-n against its distribution, which is known exactly for a model small enough to enumerate:

P(best of n is y) = P(r ≤ r(y))^n − P(r < r(y))^n, where no two texts have one reward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dera_jax.decoding.best_of_n import best_of_n, keep, kl_bound, winners
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import sequence_keys
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.scoring import RewardScorer
from tests.decoding import worlds

VOCAB = 3
TEXTS = worlds.texts(VOCAB)
SAMPLING = Sampling(worlds.HORIZON)
PROMPTS = worlds.whole([[0]])


@pytest.fixture(scope="module")
def world():
    """model, its table, each text's probability, each prefix's reward, each text's reward."""
    model, (table,) = worlds.tabular_tower(1, VOCAB)
    logits = np.asarray(table, np.float64)[0]
    p = worlds.text_probabilities(lambda prefix: logits[worlds.prefix_number(prefix, VOCAB)], TEXTS)
    by_prefix = np.random.default_rng(0).normal(size=40).astype(np.float32)
    rewards = np.array([by_prefix[worlds.prefix_number(text, VOCAB)] for text in TEXTS])
    return model, table, p, by_prefix, rewards


def guide(by_prefix, prompts=PROMPTS) -> Guide:
    return Guide(RewardScorer(worlds.TextReward(VOCAB), by_prefix, str), Source(prompts))


def exact(p: np.ndarray, rewards: np.ndarray, n: int) -> np.ndarray:
    upto = np.array([p[rewards <= r].sum() for r in rewards])
    return upto**n - (upto - p) ** n


def test_the_winners_have_the_exact_distribution(world):
    model, table, p, by_prefix, rewards = world
    n, groups = 4, 4000
    best = best_of_n(model, table, *worlds.rows(n * groups), SAMPLING, n, guide(by_prefix))
    assert best.samples.tokens.shape == (1, groups, worlds.HORIZON)
    counts = worlds.count(best.samples.tokens[0], best.samples.lengths[0], TEXTS)
    p_value = lambda n: _p_value(counts, exact(p, rewards, n))
    assert p_value(4) > 1e-3
    assert p_value(3) < 1e-6 and p_value(5) < 1e-6  # the test would catch another n


def _p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """χ², texts expected less than 5 times taken together."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    pool = lambda x: np.append(x[~rare], x[rare].sum())
    return stats.chisquare(pool(counts), pool(expected)).pvalue


def test_the_kl_is_within_the_bound(world):
    _, _, p, _, rewards = world
    for n in (1, 2, 4, 16):
        q = exact(p, rewards, n)
        kl = float(np.sum(np.where(q > 0, q * np.log(np.maximum(q, 1e-300) / p), 0)))
        assert kl <= kl_bound(n) + 1e-9
        assert kl >= 0.3 * kl_bound(n) - 1e-9  # 15 texts, so not tight; n = 1: both are 0
    # Tight where no text is likely: n·u^(n−1) over 10⁵ equally likely ranks.
    u = (np.arange(100_000) + 0.5) / 100_000
    assert np.mean(4 * u**3 * np.log(4 * u**3)) == pytest.approx(kl_bound(4), abs=1e-4)


def test_groups_do_not_mix_lambdas():
    """Best of 2 at each λ is the better of that λ's own two samples."""
    model, params = worlds.tabular_tower(2, VOCAB)
    pair = Realigned(model, (model,))
    prompts = worlds.whole([[0]], np.array([[0.0, 1.0]], np.float32))
    keys = sequence_keys(0, [0], np.arange(4))
    by_prefix = np.random.default_rng(0).normal(size=40).astype(np.float32)
    arguments = pair, tuple(params), prompts, keys, SAMPLING
    best, alone = best_of_n(*arguments, 2, guide(by_prefix)), sample(*arguments)
    for g in (0, 1):
        pick = int(best.index[0, g])
        assert pick // 2 == g
        assert best.rewards[0, pick] == best.rewards[0, 2 * g : 2 * g + 2].max()
        np.testing.assert_array_equal(best.samples.tokens[0, g], alone.tokens[0, pick])
        found, expected = best.samples.scores, alone.scores
        np.testing.assert_array_equal(found.kl[0, g], expected.kl[0, pick])
        np.testing.assert_array_equal(
            found.part_log_prob[:, 0, g], expected.part_log_prob[:, 0, pick]
        )


def test_best_of_one_is_sampling(world):
    model, table, _, by_prefix, _ = world
    arguments = model, table, *worlds.rows(6), SAMPLING
    best, alone = best_of_n(*arguments, 1, guide(by_prefix)), sample(*arguments)
    np.testing.assert_array_equal(best.samples.tokens, alone.tokens)
    np.testing.assert_array_equal(best.samples.scores.log_prob, alone.scores.log_prob)


def of_texts(by_prefix):
    """`TextReward` as a Python function, and the documents and texts of each call."""
    calls = []

    def reward(documents, texts):
        calls.append((list(documents), list(texts)))
        ids = [[int(token) for token in text.split()] for text in texts]
        return [float(by_prefix[worlds.prefix_number(x, VOCAB)]) for x in ids]

    return HostReward(reward), calls


def test_a_reward_in_python_chooses_as_a_compiled_one(world):
    model, table, _, by_prefix, _ = world
    prompts = worlds.whole([[0], [0], [0]])
    keys = sequence_keys(0, np.arange(3), np.arange(6))
    arguments = model, table, prompts, keys, SAMPLING, 3
    compiled = best_of_n(*arguments, guide(by_prefix, prompts))
    reward, calls = of_texts(by_prefix)
    scorer = RewardScorer(reward, None, lambda ids: " ".join(map(str, ids)))
    in_python = best_of_n(*arguments, Guide(scorer, Source(prompts), ["a", "b", "c"]))
    jax.tree.map(np.testing.assert_array_equal, in_python, compiled)
    assert [documents for documents, _ in calls] == [["a"] * 6 + ["b"] * 6 + ["c"] * 6]
    assert len({tuple(row) for row in compiled.index.tolist()}) > 1

    # Prompts beyond the documents fill the batch: unscored, and the first of each group is kept.
    shorter = best_of_n(*arguments, Guide(scorer, Source(prompts), ["a", "b"]))
    assert calls[1] == (["a"] * 6 + ["b"] * 6, calls[0][1][:12])
    np.testing.assert_array_equal(shorter.rewards[:2], compiled.rewards[:2])
    np.testing.assert_array_equal(shorter.index[:2], compiled.index[:2])
    np.testing.assert_array_equal(shorter.rewards[2], 0.0)
    np.testing.assert_array_equal(shorter.index[2], [0, 3])


def test_ties_go_to_the_first():
    rewards = jnp.array([[1.0, 2.0, 2.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(winners(rewards, 3), [[1, 3]])


def test_a_number_of_samples_that_n_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="n = 4: the 6 samples must be a multiple of n"):
        winners(jnp.zeros((1, 6)), 4)


def test_a_single_model_s_winners_have_no_parts(world):
    model, table, *_ = world
    samples = sample(model, table, *worlds.rows(4), SAMPLING)
    kept = keep(samples, jnp.array([[3, 3]]))
    assert kept.scores.part_log_prob is None
    np.testing.assert_array_equal(kept.tokens[0, 1], samples.tokens[0, 3])
