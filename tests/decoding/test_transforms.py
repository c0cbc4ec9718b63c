"""Truncation without a sort, against sorting."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dera_jax.decoding.transforms import NEVER, forbid, top_k, top_p

rows_of_logits = st.lists(st.integers(-400, 400), min_size=6, max_size=6, unique=True)


@settings(deadline=None, max_examples=50)
@given(rows_of_logits, st.integers(1, 6))
def test_top_k_keeps_the_k_largest(values, k):
    logits = np.array(values, np.float32) / 7
    kept = np.flatnonzero(np.asarray(top_k(jnp.array(logits), jnp.float32(k))) > NEVER)
    assert set(kept) == set(np.argsort(-logits)[:k])


@settings(deadline=None, max_examples=50)
@given(rows_of_logits, st.floats(0.05, 0.99))
def test_top_p_keeps_the_smallest_nucleus(values, p):
    logits = np.array(values, np.float32) / 100
    order = np.argsort(-logits)
    mass = np.cumsum(np.exp(logits[order].astype(float)) / np.exp(logits.astype(float)).sum())
    if np.abs(mass - p).min() < 1e-4:
        return  # float32 may round either way at the boundary
    kept = np.flatnonzero(np.asarray(top_p(jnp.array(logits), jnp.float32(p))) > NEVER)
    assert set(kept) == set(order[: np.searchsorted(mass, p) + 1])


def test_nothing_is_cut_at_the_ends_of_the_range():
    logits = jnp.array([[-50.0, 0.0, 50.0, -0.0]])
    np.testing.assert_array_equal(top_p(logits, jnp.float32(1.0)), logits)
    np.testing.assert_array_equal(top_k(logits, jnp.float32(4)), logits)


def test_truncation_may_differ_by_row():
    logits = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    kept = np.asarray(top_k(logits, jnp.array([1.0, 2.0]))) > NEVER
    assert kept.tolist() == [[False, False, True], [False, True, True]]


@pytest.mark.parametrize("token", [0, 2])
def test_forbid_rules_out_one_token_where_told(token):
    out = forbid(jnp.zeros((2, 3)), token, jnp.array([True, False]))
    assert (np.asarray(out[0]) == NEVER).tolist() == [v == token for v in range(3)]
    assert not out[1].any()
