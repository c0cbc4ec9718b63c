"""The recursions over trees against sums over every text."""

import numpy as np
import pytest

from dera_jax.experiments import trees
from tests.decoding import worlds

VOCAB, HORIZON = 4, worlds.HORIZON
TEXTS = worlds.texts(VOCAB)
BETA, LAM = 0.5, 0.6


@pytest.fixture(scope="module")
def tables():
    _, params = worlds.tabular_tower(2, VOCAB)
    return [np.asarray(p, np.float64)[0] for p in params]


@pytest.fixture(scope="module")
def rewards():
    """A different reward for every text."""
    values = np.random.default_rng(0).normal(size=len(TEXTS))
    by_text = dict(zip(TEXTS, values, strict=True))
    ended = [
        np.array([by_text.get((*prefix(n, t), worlds.EOS), 0.0) for n in range(VOCAB**t)])
        for t in range(HORIZON)
    ]
    cut = np.array([by_text.get(prefix(n, HORIZON), 0.0) for n in range(VOCAB**HORIZON)])
    return values, trees.Rewards(ended, cut)


def prefix(number: int, depth: int) -> tuple[int, ...]:
    """The tokens of row `number` at `depth`."""
    return tuple(number // VOCAB ** (depth - 1 - t) % VOCAB for t in range(depth))


def enumerated(table: np.ndarray) -> np.ndarray:
    return worlds.text_probabilities(lambda p: table[worlds.prefix_number(p, VOCAB)], TEXTS)


def of_tree(policy: trees.Policy) -> np.ndarray:
    """The policy's probability of each of TEXTS, a product of conditionals."""

    def probability(text) -> float:
        rows = [sum(v * VOCAB ** (t - 1 - i) for i, v in enumerate(text[:t])) for t in range(9)]
        return float(np.exp(sum(policy[t][rows[t], v] for t, v in enumerate(text))))

    return np.array([probability(text) for text in TEXTS])


def normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def test_a_policy_is_its_table(tables):
    policy = trees.policy_of(tables[0], HORIZON)
    np.testing.assert_allclose(of_tree(policy), enumerated(tables[0]), rtol=1e-12)


def test_the_optimum_is_that_of_whole_texts(tables, rewards):
    values, tree_rewards = rewards
    found = trees.optimal_policy(trees.policy_of(tables[0], HORIZON), tree_rewards, BETA)
    expected = normalised(enumerated(tables[0]) * np.exp(values / BETA))
    np.testing.assert_allclose(of_tree(found), expected, rtol=1e-10)


def test_the_sequence_mixture_is_that_of_whole_texts(tables):
    policies = [trees.policy_of(table, HORIZON) for table in tables]
    found = of_tree(trees.sequence_mixture(*policies, LAM))
    reference, aligned = map(enumerated, tables)
    expected = normalised(reference ** (1 - LAM) * aligned**LAM)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.abs(of_tree(trees.token_mixture(*policies, LAM)) - expected).max() > 1e-3


def test_the_token_mixture_is_what_dera_samples(tables):
    policies = [trees.policy_of(table, HORIZON) for table in tables]
    found = of_tree(trees.token_mixture(*policies, LAM))
    mixed = (1 - LAM) * tables[0] + LAM * tables[1]
    np.testing.assert_allclose(found, enumerated(mixed), rtol=1e-10)


def test_the_sequence_mixture_of_the_optimum_is_the_optimum_at_a_weaker_kl(tables, rewards):
    reference = trees.policy_of(tables[0], HORIZON)
    aligned = trees.optimal_policy(reference, rewards[1], BETA)
    for lam in (0.25, 1.0, 3.0):
        mixture = trees.sequence_mixture(reference, aligned, lam)
        retrained = trees.optimal_policy(reference, rewards[1], BETA / lam)
        assert abs(trees.kl(mixture, retrained)) < 1e-12
        assert (
            trees.kl(mixture, trees.optimal_policy(reference, rewards[1], 1.1 * BETA / lam)) > 1e-5
        )


def test_kl_and_reward_are_sums_over_texts(tables, rewards):
    values, tree_rewards = rewards
    p, q = (trees.policy_of(table, HORIZON) for table in tables)
    a, b = map(enumerated, tables)
    assert trees.kl(p, q) == pytest.approx(np.sum(a * np.log(a / b)), rel=1e-10)
    assert trees.mean_reward(p, tree_rewards) == pytest.approx(a @ values, rel=1e-10)


def test_length_rewards_count_tokens_before_the_end(tables):
    rewards = trees.length_rewards(1, 1, VOCAB, HORIZON)
    good = np.array([text[-1] == worlds.EOS and len(text) == 2 for text in TEXTS])
    policy = trees.policy_of(tables[0], HORIZON)
    expected = enumerated(tables[0])[good].sum() - 1
    assert trees.mean_reward(policy, rewards) == pytest.approx(expected, rel=1e-10)
