"""Checks of single values: what is accepted, what is refused, and in which words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import checks


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        (checks.integer(1), 3, 3),
        (checks.integer(1), np.int64(3), 3),
        (checks.integer(1), jnp.int32(3), 3),
        (checks.number(above=0), 2, 2),
        (checks.number(above=0), np.float32(0.5), 0.5),
        (checks.FLAG, np.True_, True),
        (checks.optional(checks.integer(1)), None, None),
        (checks.sequence(checks.number(), "(0.5,)"), [0.5, 1], (0.5, 1)),
        (checks.sequence(checks.number(), "(0.5,)"), np.array([0.5, 1.0]), (0.5, 1.0)),
        (
            checks.sequence(checks.sequence(checks.number(), "(1,)"), "((1,),)"),
            [[1], [2]],
            ((1,), (2,)),
        ),
        (checks.SEED, 2**32 - 1, 2**32 - 1),
    ],
)
def test_a_valid_value_is_kept_as_plain_python(kind, value, kept):
    found = checks.check("here", value, kind)
    assert found == kept and type(found) is type(kept)


WHOLE, POSITIVE = checks.integer(1, 8), checks.number(above=0)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        *((WHOLE, x, "an integer in [1, 8]") for x in (True, 2.0, "3", None, 0, 9, 10**30, (3,))),
        *((POSITIVE, x, "a finite number above 0") for x in (True, "0.5", None, 0, -1, 10**400)),
        *((POSITIVE, float(x), "a finite number above 0") for x in ("nan", "inf", "-inf")),
        (checks.number(above=0, most=1), 1.5, "a finite number in (0, 1]"),
        (checks.number(least=0, below=1), 1, "a finite number in [0, 1)"),
        *((checks.FLAG, x, "True or False") for x in ("no", 1, 0.0, None)),
        (checks.TEXT, "", "a non-empty string"),
        (checks.PATH, ["a"], "a path, as a non-empty string"),
        (checks.PATHS, "folder", "non-empty tuple or list such as ['a/folder'], each entry a path"),
        (checks.PATHS, [], "a non-empty tuple or list"),
        *((checks.SEED, x, "an integer in [0, 4294967295]") for x in (-1, 2**32, "a")),
        (checks.optional(WHOLE), 0, "an integer in [1, 8], or None"),
    ],
)
def test_an_invalid_value_is_named(kind, value, words):
    with pytest.raises(ValueError) as error:
        checks.check("Here.field", value, kind)
    assert str(error.value).startswith("Here.field must be ") and words in str(error.value)
    assert f"found {value!r}."[:40] in str(error.value)


def test_a_seed_of_more_than_32_bits_would_draw_like_another():
    """Why `SEED` ends where it does."""
    keys = [jax.random.key_data(jax.random.key(seed)) for seed in (7, 2**32 + 7)]
    np.testing.assert_array_equal(*keys)


def test_fields_of_a_frozen_class_become_plain():
    @dataclasses.dataclass(frozen=True)
    class Some:
        sizes: tuple[int, ...]

        def __post_init__(self):
            checks.check_fields(self, sizes=checks.sequence(checks.integer(1), "(1,)"))

    assert Some([1, np.int32(2)]) == Some((1, 2)) and hash(Some([1])) == hash(Some((1,)))
    with pytest.raises(ValueError, match=r"^Some.sizes must be .* found \[0\]\.$"):
        Some([0])


def test_long_values_are_cut_to_one_line():
    with pytest.raises(ValueError) as error:
        checks.check("Here.field", "a\nb" * 1000, WHOLE)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


KEYS = jax.random.split(jax.random.key(0), (2, 3))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([[1, 2], [3, 4]], r"found \[\[1, 2\], \[3, 4\]\]"),
        ("text", "found 'text'"),
        (np.zeros((2, 3)), r"found float64 of shape \(2, 3\)"),
        (np.zeros(2, int), r"found int64 of shape \(2,\)"),
        (np.array([["a"]]), "found <U1"),
        (np.zeros((3, 2), int), r"found int64 of shape \(3, 2\)"),
        (KEYS, r"found key<fry> of shape \(2, 3\)"),
    ],
)
def test_an_array_that_does_not_fit_is_named(value, found):
    expected = rf"ids must be an array \[B, S\] of token ids with B = 2; {found}"
    with pytest.raises(ValueError, match=expected):
        checks.check_array("ids", value, "token ids", jnp.integer, B=2, S=None)


def test_traced_arrays_have_shapes_and_no_values():
    seen = []

    def call(ids):
        seen.append(checks.check_array("ids", ids, "token ids", jnp.integer, B=None, S=None))
        checks.check_token_ids("ids", ids, 1)
        return ids

    jax.jit(call)(np.full((2, 3), 5))
    assert seen == [(2, 3)]


@pytest.mark.parametrize("wrong", [-1, 9, 2**31 - 1])
def test_an_id_beyond_the_table_is_named_with_its_place(wrong):
    ids = np.array([[8, 0], [1, wrong]], np.int32)
    for some in (ids, jnp.asarray(ids)):
        with pytest.raises(
            ValueError, match=rf"ids must be in \[0, 9\).*; found {wrong} at \[1, 1\]"
        ):
            checks.check_token_ids("ids", some, 9)
    with pytest.raises(ValueError, match=r"found 8 at \[0, 0\]"):
        checks.check_token_ids("ids", np.array([[8, 0], [1, 2]]), 9, unused=(5, 8))
