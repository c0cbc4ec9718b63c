"""Rewards that count and compare token ids, against plain loops."""

from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dera_jax.models.language_model import Padded
from dera_jax.rewards.protocol import Source, check_limit
from dera_jax.rewards.tokens import LengthNear, Repetition, TokenOverlap
from tests import prompts

EOS, K, T = 1, 40, 9


def batch(seed=0):
    """Texts of few ids, 0 among them, so that they repeat; what comes after a text is anything."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice([0, 2, 3, 4], (3, K, T))
    finished = rng.random((3, K)) < 0.7
    lengths = np.where(finished, rng.integers(1, T + 1, (3, K)), rng.integers(0, T + 1, (3, K)))
    for index in np.argwhere(finished):
        tokens[(*index, lengths[tuple(index)] - 1)] = EOS
    targets = rng.choice([0, 2, 3, 4, 5, 6], (3, 7))
    targets[0, 3], targets[1, -1] = EOS, EOS
    source = Source(prompts.whole(np.ones((3, 4))), Padded(targets, np.array([4, 7, 0])))
    return source, tokens, lengths, finished


def assert_scores(reward, loop, seed=0, params=None):
    """The reward of a batch, eagerly and compiled, is loop(text, target) for each text."""
    source, tokens, lengths, finished = arguments = batch(seed)
    expected = np.zeros((3, K))
    for b, k in np.ndindex(3, K):
        text = tokens[b, k, : lengths[b, k] - finished[b, k]].tolist()
        target = source.targets.tokens[b, : source.targets.lengths[b]].tolist()
        expected[b, k] = loop(text, [x for x in target if x != EOS])
    assert len(np.unique(expected)) > 4
    for function in (reward, jax.jit(reward)):
        found = function(params, *arguments)
        assert found.shape == (3, K) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_length_near_falls_with_the_distance_to_the_target():
    assert_scores(LengthNear(4), lambda text, _: -abs(len(text) - 4) / 4)


def test_length_near_needs_room_for_a_text_that_is_too_long():
    check_limit(LengthNear(4), 6)
    with pytest.raises(ValueError, match="max_length must be at least 6 .* found 5"):
        check_limit(LengthNear(4), 5)


def repeated_share(text: list[int], n: int) -> float:
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    repeated = [gram in grams[:i] for i, gram in enumerate(grams)]
    return -sum(repeated) / len(grams) if grams else 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_repetition_counts_n_grams_the_text_has_had(n):
    assert_scores(Repetition(n), lambda text, _: repeated_share(text, n), seed=n)


@pytest.mark.parametrize(("n", "expected"), [(1, -2 / 3), (2, -0.5), (3, 0), (4, 0), (9, 0)])
def test_repetition_of_a_text_of_one_token(n, expected):
    # Followed by the end token and padding, which would repeat as well.
    tokens = np.array([[[7, 7, 7, EOS, 0, 0, 0, 0]]])
    found = Repetition(n)(None, None, tokens, np.array([[4]]), np.array([[True]]))
    np.testing.assert_allclose(found, [[expected]], atol=1e-6)


def f1(text: list[int], target: list[int]) -> float:
    shared = sum((Counter(text) & Counter(target)).values())
    return 2 * shared / (len(text) + len(target)) if text and target else 0


def test_token_overlap_is_the_f1_of_multisets():
    assert_scores(TokenOverlap(), f1, params=EOS)


def test_token_overlap_of_another_end_token():
    source = Source(prompts.whole([[1]]), prompts.zero_padded_targets([[1, 5, 9, 0]]))
    tokens, lengths = np.array([[[1, 5, 9, 9], [9, 0, 0, 0]]]), np.array([[3, 1]])
    params = TokenOverlap().load(SimpleNamespace(end_id=9))
    found = TokenOverlap()(params, source, tokens, lengths, np.ones((1, 2), bool))
    np.testing.assert_array_equal(found, [[1, 0]])


def test_a_task_without_targets_is_refused():
    _, *arguments = batch()
    with pytest.raises(ValueError, match="these documents have none: add the column `summary`"):
        TokenOverlap()(None, Source(prompts.whole(np.ones((3, 4)))), *arguments)


@pytest.mark.parametrize(
    ("make", "found"),
    [(lambda: LengthNear(0), 0), (lambda: Repetition(n=0), 0)],
)
def test_settings_that_mean_nothing_are_refused(make, found):
    with pytest.raises(ValueError, match=f"an integer of at least [01]; found {found}"):
        make()
