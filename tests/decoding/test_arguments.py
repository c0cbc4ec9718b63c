"""What decoding functions are given: arrays of other types, shapes and values are named, at once."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dera_jax.decoding import beam_search as searching
from dera_jax.decoding import best_of_n as choosing
from dera_jax.decoding import evolution as evolving
from dera_jax.decoding import sampling as drawing
from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.best_of_n import best_of_n
from dera_jax.decoding.evolution import Evolution, generation
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, prefill, sample, sample_from, sweep_rows
from dera_jax.evaluation.sweep import Documents
from dera_jax.models.language_model import streams
from dera_jax.models.tabular import TabularLM
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.tokens import Repetition

B, K, V = 2, 3, 5
ONE = TabularLM(V, 3, num_inputs=V)
MODEL = Realigned(ONE, (ONE,))
INPUTS = np.array([[1, 4, 0], [2, 0, 0]], np.int32)
LAM = np.full((B, K), 0.5, np.float32)
STREAM = streams(0, np.arange(B), np.arange(K))
REWARD = Repetition()


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """Whatever is refused here, is refused before a compiled call."""
    for module, names in (
        (drawing, ("_sample", "_start", "_sample_from")),
        (searching, ("_search",)),
        (choosing, ("_best_of_n",)),
        (evolving, ("_generation",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("compiled"))


def call_sample(inputs, lam, stream):
    return sample(MODEL, None, inputs, lam, stream, Sampling(3))


def call_prefill(inputs, lam, stream):
    return prefill(MODEL, None, inputs, lam, stream, Sampling(3))


def call_search(inputs, lam, stream):
    return beam_search(MODEL, None, inputs, lam, stream, Search(3, 2, 2))


def call_best_of_n(inputs, lam, stream):
    return best_of_n(MODEL, None, REWARD, None, Source(inputs), lam, stream, Sampling(3), K)


def call_generation(inputs, lam, stream):
    """Every individual has an input of its own."""
    own = np.repeat(inputs[:, None], K, axis=1) if isinstance(inputs, np.ndarray) else inputs
    evolution = Evolution(Sampling(3), K, survivors=2)
    source = Source(INPUTS)
    return generation(MODEL, None, own, lam, stream, evolution, REWARD, None, source)


CALLS = [call_sample, call_prefill, call_search, call_best_of_n, call_generation]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inputs": INPUTS.tolist()},
            r"inputs must be an array \[B, .*S\] of token ids; found \[\[",
        ),
        ({"inputs": ["a text"]}, r"inputs must be an array .*; found \['a text'\]"),
        ({"inputs": "a text"}, "inputs must be an array .*; found 'a text'"),
        ({"inputs": np.float32(INPUTS)}, r"inputs .* of token ids; found float32 of shape"),
        ({"inputs": INPUTS - 1}, r"inputs must be in \[0, 5\), .*; found -1 at \["),
        ({"inputs": INPUTS + 3}, r"inputs must be in \[0, 5\), .*; found 7 at \["),
        (
            {"lam": 0.5},
            r"lam must be an array of numbers \[B, K\].*found .*0\.5|lam has shape \(\)",
        ),
        ({"lam": "0.5"}, r"lam must be an array of numbers \[B, K\]"),
        ({"lam": None}, r"lam must be an array of numbers \[B, K\]"),
        ({"lam": LAM[:, :2]}, r"lam has shape \(2, 2\); expected \(2, 3, 1\) or \(2, 3\)"),
        ({"lam": LAM * np.inf}, "lam must be finite; found inf"),
        ({"stream": np.zeros((B, K))}, r"stream must be an array \[B, K\] of PRNG keys"),
        ({"stream": [[0]]}, r"stream must be an array \[B, K\] of PRNG keys .*; found \[\[0\]\]"),
        ({"stream": STREAM[0]}, r"stream must be .*; found key<fry> of shape \(3,\)"),
        (
            {"stream": STREAM[:1]},
            r"stream must be .* with B = 2; found|\(2, 3\) and \(1, 3\)|= \(2, 3\)",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call, change, message):
    arguments = {"inputs": INPUTS, "lam": LAM, "stream": STREAM} | change
    with pytest.raises(ValueError, match=message):
        call(**arguments)


@pytest.mark.parametrize("call", CALLS)
def test_other_ranks_are_named(call):
    inputs = INPUTS[0] if call is not call_generation else INPUTS.tolist()
    with pytest.raises(ValueError, match=r"inputs must be an array \[B, .*S\] of token ids; found"):
        call(inputs, LAM, STREAM)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": 2.5}, r"Sampling.top_k must be an integer in \[1, 5\], or None; found 2.5"),
        ({"top_k": np.array([[1, 6]])}, r"top_k must be an integer in \[1, 5\].*\[\[1, 6\]\]"),
        ({"temperature": np.inf}, "Sampling.temperature must be a finite number above 0"),
        ({"temperature": np.array([[1.0, np.nan]])}, "temperature must be .* above 0 .*nan"),
        ({"temperature": "0.5"}, "Sampling.temperature must be .*; found '0.5'"),
        ({"greedy": "no"}, "Sampling.greedy must be True or False; found 'no'"),
        ({"eos_id": -5}, r"eos_id must be an integer in \[-1, 4\].*; found -5"),
        ({"eos_id": 1.5}, r"eos_id must be an integer in \[-1, 4\].*; found 1.5"),
        ({"eos_id": 99_999}, r"eos_id must be an integer in \[-1, 4\].*; found 99999"),
        ({"max_length": 2.0}, "Sampling.max_length must be an integer of at least 1; found 2.0"),
        ({"min_length": 4}, r"Sampling.min_length must be an integer in \[0, 3\]; found 4"),
    ],
)
def test_invalid_settings_are_named(setting, message):
    """Also by functions that are compiled as a whole, where values are not seen."""
    sampling = Sampling(**{"max_length": 3} | setting)
    arguments = INPUTS, LAM, STREAM, sampling
    with pytest.raises(ValueError, match=message):
        sample(MODEL, None, *arguments)
    with pytest.raises(ValueError, match=message):
        best_of_n(MODEL, None, REWARD, None, Source(INPUTS), LAM, STREAM, sampling, K)
    with pytest.raises(ValueError, match=message):
        sample_from(MODEL, None, None, LAM, STREAM, sampling)


def test_settings_may_differ_by_row_and_be_traced(monkeypatch):
    """Traced ones are not looked at, whatever their values."""
    drawn = lambda *arguments: SimpleNamespace(scores=None, tokens=arguments[-1].temperature)
    monkeypatch.setattr(drawing, "_sample", drawn)
    monkeypatch.setattr(drawing, "check_scores", lambda *_: None)
    by_row = Sampling(3, temperature=np.full((B, K), 0.5), top_k=np.full((B, K), 2))
    assert sample(MODEL, None, INPUTS, LAM, STREAM, by_row).tokens.shape == (B, K)
    call = jax.jit(lambda sampling: sample(MODEL, None, INPUTS, LAM, STREAM, sampling).tokens)
    assert float(call(Sampling(3, temperature=-1.0))) == -1.0
    jax.tree.map(lambda _: object(), by_row)  # leaves of any kind


@pytest.mark.parametrize("n", [0, -1, 1.0, "3", 2])
def test_a_number_of_samples_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match="n must be an integer of at least 1|a multiple of n"):
        best_of_n(MODEL, None, REWARD, None, Source(INPUTS), LAM, STREAM, Sampling(3), n)


@pytest.mark.parametrize("lams", [0.5, (), "0.5", ["a"], [np.nan], [[0.5, np.inf]]])
def test_rows_of_a_sweep_need_finite_lambdas(lams):
    with pytest.raises(ValueError, match="sweep_rows.lams must be a non-empty tuple or list"):
        sweep_rows(lams, 1, B)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0", None, True])
def test_a_seed_is_a_number_of_32_bits(seed):
    with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 4294967295\]"):
        streams(seed, [0], [0])


@pytest.mark.parametrize(("ids", "numbers"), [(0, [0]), ([0], 0), ([[0]], [0])])
def test_keys_need_ids_and_numbers_in_rows(ids, numbers):
    with pytest.raises(ValueError, match=r"example_ids \[B\] and numbers \[K\] or \[B, K\]; found"):
        streams(0, ids, numbers)


TEXTS = ["one", "two"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": INPUTS.tolist()}, r"Documents.inputs must be an array \[n, S\] of token ids"),
        ({"example_id": np.arange(3)}, r"Documents.example_id .*\[n\] of ids with n = 2; found"),
        ({"texts": "ab"}, "Documents.texts must be n = 2 texts"),
        ({"summaries": TEXTS * 2}, "Documents.summaries must be n = 2 texts"),
    ],
)
def test_documents_fit_each_other(change, message):
    fields = {"inputs": INPUTS, "example_id": np.arange(2), "texts": TEXTS, "summaries": TEXTS}
    with pytest.raises(ValueError, match=message):
        Documents(**fields | change)


@pytest.mark.parametrize("documents", ["one", ["one"], ["one"] * 3])
def test_a_judge_needs_one_document_for_each_input(documents):
    texts = np.zeros((B, K, 4), np.int32), np.full((B, K), 4), np.zeros((B, K), bool)
    with pytest.raises(ValueError, match="documents must be a list of B = 2 texts, one for each"):
        Judge(REWARD, None, str)(Source(INPUTS), documents, *texts)
