"""Prompts are as wide as the longest of their batch needs: S, S/2, S/4 or S/8."""

import dataclasses

import numpy as np
import pytest

from dera_jax.data.examples import Examples, eval_batches, train_batches
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    pad_sequences,
    sequence_keys,
    trim_padding,
)
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.prompts import Prompt
from tests import tiny
from tests.conformance.test_conformance import compilations

LIMIT = 16


def prompts(lengths: list[int], size: int = LIMIT) -> Prompts:
    rng = np.random.default_rng(0)
    return Prompts(*pad_sequences([rng.integers(3, 20, n).tolist() for n in lengths], size))


@pytest.mark.parametrize(
    ("longest", "limit", "width"),
    [(1, 16, 2), (2, 16, 2), (3, 16, 4), (4, 16, 4), (5, 16, 8), (9, 16, 16), (16, 16, 16),
     (1, 80, 10), (11, 80, 20), (41, 80, 80), (1, 3, 1), (2, 3, 2), (3, 3, 3), (1, 1, 1)],
)  # fmt: skip
def test_the_smallest_width_that_holds_the_longest(longest, limit, width):
    given = prompts([1, longest], limit)
    found = trim_padding(given)
    assert found.tokens.shape == (2, width)
    np.testing.assert_array_equal(found.tokens, given.tokens[:, :width])
    np.testing.assert_array_equal(found.lengths, given.lengths)


LENGTHS = [1, 2, 9, 2, 3, 4, 1, 16]


@pytest.fixture(scope="module")
def examples() -> Examples:
    targets = Padded(np.full((8, 3), 5, np.int32), np.full(8, 3, np.int32))
    asked, texts = [Prompt(str(i)) for i in range(8)], ["a"] * 8
    return Examples(prompts(LENGTHS), targets, np.arange(8), asked, texts, {})


def widths(batches, number: int) -> list[int]:
    return [
        batch["inputs"].tokens.shape[1] for batch, _ in zip(batches, range(number), strict=False)
    ]


def test_batches_keep_their_order_and_each_takes_its_width(examples):
    batches = train_batches(lambda seed: examples, 2, 0, 0, process=(0, 1))
    for batch, _ in zip(batches, range(12), strict=False):
        longest = max(LENGTHS[i] for i in batch["example_id"])
        assert batch["inputs"].tokens.shape[1] == next(w for w in (2, 4, 8, 16) if w >= longest)
        own = examples.inputs.tokens[batch["example_id"], : batch["inputs"].tokens.shape[1]]
        np.testing.assert_array_equal(batch["inputs"].tokens, own)
    assert widths(eval_batches(examples, 2, process=(0, 1)), 4) == [2, 16, 4, 16]


@pytest.mark.parametrize("of", [train_batches, eval_batches])
def test_all_processes_take_the_same_width(examples, of):
    """That of the whole batch: its longest prompt may be another process's."""
    if of is eval_batches:
        read = lambda process: of(examples, 4, process=process)
    else:
        read = lambda process: of(lambda seed: examples, 4, 7, 3, process=process)
    alone, first, second = (widths(read(x), 2) for x in ((0, 1), (0, 2), (1, 2)))
    assert alone == first == second


SIZES = T5Config(64, 16, 2, 1, 1, 8, 32, ("relu",), True, end_ids=(1,))
MODELS = [T5(SIZES), Llama(dataclasses.replace(tiny.LLAMA, end_ids=(1,)))]


@pytest.mark.parametrize("model", MODELS, ids=["t5", "llama"])
def test_texts_are_those_of_the_full_width_and_a_width_is_compiled_once(model):
    params = tiny.params(model)
    decode = lambda prompts: sample(
        model, params, prompts, sequence_keys(0, np.arange(2), [0]), Sampling(5)
    )
    whole = [prompts([1, n]) for n in (2, 3, 7, 2, 4, 8)]
    expected = [decode(x) for x in whole]
    for width in (2, 4, 8):  # what is compiled beside the decoding itself, once
        decode(trim_padding(prompts([1, width])))
    with compilations() as programs:
        found = [decode(trim_padding(x)) for x in whole]
    assert not programs
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.scores.log_prob, theirs.scores.log_prob, atol=1e-5)
