"""What decoding functions are given: arrays of other types, shapes and values are named, at once."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.data.documents import Documents
from dera_jax.decoding import best_of_n as choosing
from dera_jax.decoding import sampling as drawing
from dera_jax.decoding import search as searching
from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.best_of_n import best_of_n, winners
from dera_jax.decoding.evolution import Evolution, generation
from dera_jax.decoding.realign import Realigned, realign_logits
from dera_jax.decoding.sampling import Sampling, prefill, sample, sample_from, sweep_hypotheses
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    score,
    score_sequences,
    sequence_keys,
)
from dera_jax.models.tabular import TabularLM
from dera_jax.prompts import Prompt
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.protocol import Reward, Source, call_reward
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.rewards.tokens import Repetition

B, K, V = 2, 3, 5
ONE = TabularLM(V, 3, num_inputs=V)
MODEL = Realigned(ONE, (ONE,))
PROMPTS = Prompts(
    tokens=np.array([[1, 4, 0], [2, 0, 0]], np.int32),
    lengths=np.array([2, 1], np.int32),
    lam=np.full((B, K), 0.5, np.float32),
)
KEYS = sequence_keys(0, np.arange(B), np.arange(K))
REWARD = Repetition()
GUIDE = Guide(RewardScorer(REWARD, None, str), Source(PROMPTS))


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """Whatever is refused here, is refused before a compiled call."""
    for module, names in (
        (drawing, ("_sample", "_start", "_sample_from")),
        (searching, ("_compiled", "_begin")),
        (choosing, ("_best_of_n",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("compiled"))


def call_sample(prompts, keys):
    return sample(MODEL, None, prompts, keys, Sampling(3))


def call_search(prompts, keys):
    return beam_search(MODEL, None, prompts, keys, Search(3, 2, 2))


def call_best_of_n(prompts, keys):
    return best_of_n(MODEL, None, prompts, keys, Sampling(3), K, GUIDE)


def call_generation(prompts, keys):
    """Every individual has a prompt of its own, and one λ."""
    if isinstance(prompts, Prompts):
        each = lambda x: np.repeat(x[:, None], K, axis=1) if isinstance(x, np.ndarray) else x
        lam = prompts.lam
        lam = lam[..., None] if isinstance(lam, np.ndarray) else lam
        prompts = Prompts(each(prompts.tokens), each(prompts.lengths), lam)
    evolution = Evolution(Sampling(3), K, survivors=2)
    return generation(MODEL, None, prompts, keys, evolution, GUIDE)


CALLS = [call_sample, call_search, call_best_of_n, call_generation]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokens": PROMPTS.tokens.tolist()},
            r"prompts.tokens must be an array \[B, .*S\] of token ids; found \[\[",
        ),
        ({"tokens": ["a text"]}, r"prompts.tokens must be an array .*; found \['a text'\]"),
        ({"tokens": "a text"}, "prompts.tokens must be an array .*; found 'a text'"),
        (
            {"tokens": np.float32(PROMPTS.tokens)},
            r"prompts.tokens .* of token ids; found float32 of shape",
        ),
        ({"tokens": PROMPTS.tokens - 2}, r"prompts.tokens .* in \[0, 5\), .*; found -1 at \["),
        ({"tokens": PROMPTS.tokens + 3}, r"prompts.tokens .* in \[0, 5\), .*; found 7 at \["),
        ({"lengths": np.array([2, 0])}, r"prompts.lengths must be in \[1, 3\], .*; found 0 at \[1"),
        ({"lengths": np.array([4, 1])}, r"prompts.lengths must be in \[1, 3\], .*; found 4 at \[0"),
        ({"lengths": np.array([[2], [1]])}, r"prompts.lengths must be an array .* of shape \(2,"),
        ({"lengths": np.array([2, 1, 1])}, r"prompts.lengths must be an array .* with B = 2"),
        ({"lengths": np.array([1.0, 2.0])}, r"prompts.lengths must be an array .*found float64"),
        ({"lam": 0.5}, r"lam must be an array of numbers \[B, G\], .*found 0\.5|must begin with"),
        ({"lam": "0.5"}, r"lam must be an array of numbers \[B, G\]|must begin with"),
        ({"lam": None}, r"lam must be an array of numbers \[B, G\]"),
        (
            {"lam": PROMPTS.lam[:, :2]},
            r"lam has shape \(2, 2\); expected \[B, G\] = \[2, G\]|must begin with \[B, N\]",
        ),
        ({"lam": PROMPTS.lam * np.inf}, "lam must be finite; found inf"),
        ({"keys": np.zeros((B, K))}, r"keys must be an array \[B, K\] of PRNG keys"),
        ({"keys": [[0]]}, r"keys must be an array \[B, K\] of PRNG keys .*; found \[\[0\]\]"),
        ({"keys": KEYS[0]}, r"keys must be .*; found key<fry> of shape \(3,\)"),
        ({"keys": KEYS[:1]}, r"keys must be .* with B = 2; found|\(2, 3\); found .* and \(1, 3\)"),
        ({"prompts": PROMPTS.tokens}, r"prompts must be a Prompts; found"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call, change, message):
    of_prompts = {name: x for name, x in change.items() if name not in ("keys", "prompts")}
    prompts = change.get("prompts", PROMPTS.replace(**of_prompts))
    with pytest.raises(ValueError, match=message):
        call(prompts, change.get("keys", KEYS))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": PROMPTS.tokens + 3},
        {"lengths": np.array([2, 0])},
        {"lam": None},
        {"lam": PROMPTS.lam[:, :2]},
    ],
)
def test_prompts_are_checked_before_they_are_prefilled(change):
    with pytest.raises(ValueError, match=r"prompts\.|lam "):
        prefill(MODEL, None, PROMPTS.replace(**change), K, 3)


@pytest.mark.parametrize("sizes", [(0, 3), (K, 0), (1.5, 3)])
def test_sizes_of_a_prefill_are_whole_numbers(sizes):
    with pytest.raises(ValueError, match="(num_hypotheses|max_length) must be an integer of at l"):
        prefill(MODEL, None, PROMPTS, *sizes)


@pytest.mark.parametrize("call", CALLS)
def test_other_ranks_are_named(call):
    tokens = PROMPTS.tokens[0] if call is not call_generation else PROMPTS.tokens.tolist()
    sentence = r"prompts.tokens must be an array \[B, .*S\] of token ids; found"
    with pytest.raises(ValueError, match=sentence):
        call(PROMPTS.replace(tokens=tokens), KEYS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": 2.5}, r"Sampling.top_k must be an integer in \[1, 5\], or None; found 2.5"),
        ({"top_k": np.array([[1, 6]])}, r"top_k must be an integer in \[1, 5\].*\[\[1, 6\]\]"),
        ({"temperature": np.inf}, "Sampling.temperature must be a finite number above 0"),
        ({"temperature": np.array([[1.0, np.nan]])}, "temperature must be .* above 0 .*nan"),
        ({"temperature": "0.5"}, "Sampling.temperature must be .*; found '0.5'"),
        ({"greedy": "no"}, "Sampling.greedy must be True or False; found 'no'"),
        ({"end_ids": (1, -5)}, r"end_ids must .* an integer in \[-1, 4\].*; found \(1, -5\)"),
        ({"end_ids": (1.5,)}, r"end_ids must .* an integer in \[-1, 4\].*; found \(1.5,\)"),
        ({"end_ids": (99_999,)}, r"end_ids must .* an integer in \[-1, 4\].*; found \(99999,\)"),
        ({"end_ids": 1}, r"end_ids must be a non-empty tuple .*; found 1"),
        ({"end_ids": ()}, r"Sampling.end_ids is not given|must be a non-empty"),
        ({"max_length": 2.0}, "Sampling.max_length must be an integer of at least 1; found 2.0"),
        ({"min_length": 4}, r"Sampling.min_length must be an integer in \[0, 3\]; found 4"),
    ],
)
def test_invalid_settings_are_named(setting, message):
    """Also by functions that are compiled as a whole, where values are not seen."""
    sampling = Sampling(**{"max_length": 3} | setting)
    with pytest.raises(ValueError, match=message):
        sample(MODEL, None, PROMPTS, KEYS, sampling)
    with pytest.raises(ValueError, match=message):
        best_of_n(MODEL, None, PROMPTS, KEYS, sampling, K, GUIDE)
    with pytest.raises(ValueError, match=message):
        sample_from(MODEL, None, None, KEYS, sampling)


def test_settings_may_differ_by_row_and_be_traced(monkeypatch):
    """Traced ones are not looked at, whatever their values."""
    drawn = lambda *arguments: SimpleNamespace(scores=None, tokens=arguments[-1].temperature)
    monkeypatch.setattr(drawing, "_sample", drawn)
    monkeypatch.setattr(drawing, "check_scores", lambda *_: None)
    by_row = Sampling(3, temperature=np.full((B, K), 0.5), top_k=np.full((B, K), 2))
    assert sample(MODEL, None, PROMPTS, KEYS, by_row).tokens.shape == (B, K)
    call = jax.jit(lambda sampling: sample(MODEL, None, PROMPTS, KEYS, sampling).tokens)
    assert float(call(Sampling(3, temperature=-1.0))) == -1.0
    jax.tree.map(lambda _: object(), by_row)  # leaves of any kind


@pytest.mark.parametrize("shape", [(B,), (K,), (B, 1), (1, K), (1, 1)])
def test_settings_by_row_have_the_shape_of_the_keys(shape):
    """Others would be broadcast, along an axis that was not meant."""
    for name in ("temperature", "top_k", "top_p", "min_length"):
        sampling = Sampling(3).replace(**{name: np.ones(shape, int)})
        message = rf"Sampling.{name} must be one number, or an array .*\(2, 3\); found shape \("
        for call in (sample, lambda *x: best_of_n(*x, K, GUIDE)):
            with pytest.raises(ValueError, match=message):
                call(MODEL, None, PROMPTS, KEYS, sampling)
    for name in ("reward_weight", "length_penalty"):
        search = Search(3, 2, 2, reward_weight=1.0).replace(**{name: np.ones(shape)})
        with pytest.raises(ValueError, match=rf"Search.{name} must be one number, or an array"):
            beam_search(MODEL, None, PROMPTS, KEYS, search, GUIDE)


@pytest.mark.parametrize("ids", [np.array([[1]]), np.array([1.0])])
def test_traced_end_tokens_are_integers_in_a_row(ids):
    call = jax.jit(lambda ids: sample(MODEL, None, PROMPTS, KEYS, Sampling(3, end_ids=ids)))
    with pytest.raises(ValueError, match=r"Sampling.end_ids must be an array \[E\] of token ids"):
        call(ids)


TARGETS = Padded(np.ones((B, 4), np.int32), np.array([4, 0]))
WRONG_TARGETS = [
    ({"tokens": np.ones((B, 4))}, r"tokens must be an array \[.*\] of token ids .*found float64"),
    ({"tokens": np.ones((1, 4), int)}, r"tokens must be an array .* = 2; found .*\(1, 4\)"),
    ({"tokens": np.ones(B, int)}, r"tokens must be an array .* = 2; found .*\(2,\)"),
    ({"lengths": np.array([5, 0])}, r"lengths must be in \[0, 4\], .*; found 5 at \[0\]"),
    ({"lengths": np.array([4, -1])}, r"lengths must be in \[0, 4\], .*; found -1 at \[1\]"),
    ({"lengths": np.array([[4], [0]])}, r"lengths must be an array .*found int64 of shape \(2, 1"),
]


def call_guided_search(prompts, keys):
    return beam_search(MODEL, None, prompts, keys, Search(3, 2, 2), GUIDE)


@pytest.mark.parametrize("call", [call_guided_search, call_best_of_n, call_generation])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": Source(PROMPTS.replace(tokens=PROMPTS.tokens[:1]))}, "prompts.tokens .* B = 2"),
        ({"source": Source(PROMPTS.replace(lengths=np.ones(1, int)))}, "prompts.lengths .* B = 2"),
        *(
            ({"source": Source(PROMPTS, TARGETS.replace(**x))}, f"source.targets.{message}")
            for x, message in WRONG_TARGETS
        ),
        (
            {"source": Source(PROMPTS, TARGETS, np.zeros((B, 3), np.uint8))},
            r"Guide.source.keywords must be an array \[B, W, L\] of bytes with B = 2",
        ),
        ({"source": Source(PROMPTS, TARGETS, np.zeros((B, 3, 4)))}, "keywords .* found float64"),
        (
            {"documents": ["a"] * 3},
            "Guide.documents must be a list of at most B = 2 texts; found 3",
        ),
        ({"documents": "ab"}, "Guide.documents must be .*; found one string"),
    ],
)
def test_a_guide_is_of_as_many_documents_as_prompts(monkeypatch, call, change, message):
    monkeypatch.setitem(globals(), "GUIDE", dataclasses.replace(GUIDE, **change))
    with pytest.raises(ValueError, match=message):
        call(PROMPTS, KEYS)


@dataclasses.dataclass(frozen=True)
class Gives(Reward):
    """A user's reward that gives ones of some shape."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __call__(self, params, source, tokens, lengths, finished):
        return jnp.ones(self.shape, self.dtype)


@pytest.mark.parametrize(
    "reward",
    [Gives((B, 1)), Gives((K,)), Gives((B,)), Gives(()), Gives((B, K), "int32")],
    ids=str,
)
def test_what_a_compiled_reward_gives_has_a_row_for_each_document(reward):
    """[B, 1] would be broadcast: all candidates of a document would have one reward."""
    texts = jnp.ones((B, K, 4), jnp.int32), jnp.ones((B, K), jnp.int32), jnp.ones((B, K), bool)
    sum_of = Combined((Part("one", reward), Part("other", Repetition())))
    message = r"the result of the reward Gives.* must be an array \[B, K\] of rewards with B = 2, K"
    for some, params in ((reward, None), (sum_of, (None, None))):
        with pytest.raises(ValueError, match=message):
            RewardScorer(some, params, str)(Source(PROMPTS), None, *texts)
        with pytest.raises(ValueError, match=message):
            call_reward(some, params, Source(PROMPTS), *texts)


@pytest.mark.parametrize("n", [0, -1, 1.0, "3", 2])
def test_a_number_of_samples_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match="n must be an integer of at least 1|a multiple of n"):
        best_of_n(MODEL, None, PROMPTS, KEYS, Sampling(3), n, GUIDE)


@pytest.mark.parametrize("lams", [0.5, (), "0.5", ["a"], [np.nan], [[0.5, np.inf]]])
def test_rows_of_a_sweep_need_finite_lambdas(lams):
    with pytest.raises(ValueError, match="sweep_hypotheses.lams must be a non-empty tuple or list"):
        sweep_hypotheses(lams, 1, B)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0", None, True])
def test_a_seed_is_a_number_of_32_bits(seed):
    with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 4294967295\]"):
        sequence_keys(seed, [0], [0])


@pytest.mark.parametrize(("ids", "numbers"), [(0, [0]), ([0], 0), ([[0]], [0])])
def test_keys_need_ids_and_numbers_in_rows(ids, numbers):
    with pytest.raises(ValueError, match=r"example_ids \[B\] and numbers \[K\] or \[B, K\]; found"):
        sequence_keys(0, ids, numbers)


@pytest.mark.parametrize(
    ("ids", "numbers", "found"),
    [
        ([0.5, 1], [0], "example_ids .*; found float64"),
        (jnp.ones(2), [0], "example_ids .*; found float32"),
        ([0, 2**32], [0], "example_ids .*; found int64"),  # would draw like 0
        ([0], np.array([1.0]), "numbers .*; found float64"),
        (["a"], [0], "example_ids .*; found <U1"),
    ],
)
def test_keys_need_integers(ids, numbers, found):
    with pytest.raises(ValueError, match=f"sequence_keys needs {found}"):
        sequence_keys(0, ids, numbers)


@pytest.mark.parametrize("rows", [1, 3])
def test_numbers_by_row_are_of_every_example(rows):
    with pytest.raises(ValueError, match=r"numbers \[K\] or \[B, K\]; found .* \(2,\) and"):
        sequence_keys(0, [0, 1], np.zeros((rows, 3), int))


def test_ids_of_64_bits_are_those_of_32(monkeypatch):
    ids, numbers = np.arange(B, dtype=np.int64), np.arange(K, dtype=np.int64)
    assert bool(jnp.all(sequence_keys(0, ids, numbers) == KEYS))


@pytest.mark.parametrize("lam", [np.ones((2, 2)), np.ones(3), 0.5])
def test_a_mixture_needs_a_lambda_for_each_aligned_model(lam):
    """A second λ would be taken from the reference and given to nobody."""
    with pytest.raises(ValueError, match=r"lam \[..., M\] for M = 1 aligned models; found shape"):
        realign_logits(np.ones((2, V)), [np.ones((2, V))], lam)


@pytest.mark.parametrize("rewards", [[[1.0, 2.0]], np.ones(2), np.array([["a", "b"]])])
def test_winners_need_rewards_in_rows(rewards):
    with pytest.raises(ValueError, match=r"rewards must be an array \[B, K\] of numbers; found"):
        winners(rewards, 1)


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        (np.ones((B, 4), int), np.ones(B, int), r"sequences.tokens must be an array \[B, K, T\]"),
        (np.ones((B, K, 4)), np.ones((B, K), int), "sequences.tokens .*; found float64"),
        (np.ones((B, K, 4), int), np.ones((B, 1), int), "sequences.lengths .* with B = 2, K = 3"),
        (np.ones((B, K, 4), int), np.full((B, K), 5), r"sequences.lengths must be in \[0, 4\]"),
    ],
)
def test_sequences_to_score_are_in_rows(tokens, lengths, message):
    for call in (score, score_sequences):
        with pytest.raises(ValueError, match=message):
            call(ONE, None, PROMPTS, tokens, lengths)


TEXTS = ["one", "two"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": PROMPTS.tokens}, "Documents.prompts must be a Prompts; found"),
        (
            {"prompts": PROMPTS.replace(tokens=PROMPTS.tokens.tolist())},
            r"Documents.prompts.tokens must be an array \[n, S\] of token ids",
        ),
        (
            {"prompts": PROMPTS.replace(lengths=np.array([2, 0]))},
            r"prompts.lengths .* \[1, 3\].* 0",
        ),
        (
            {"prompts": PROMPTS.replace(lengths=np.ones((2, 1)))},
            "Documents.prompts.lengths must be",
        ),
        *(
            ({"targets": TARGETS.replace(**x)}, f"Documents.targets.{message}")
            for x, message in WRONG_TARGETS
        ),
        ({"keywords": np.zeros((B, 3), np.uint8)}, r"Documents.keywords must be .*\[B, W, L\]"),
        ({"example_id": np.arange(3)}, r"Documents.example_id .*\[n\] of ids with n = 2; found"),
        ({"text_prompts": TEXTS}, "Documents.text_prompts must hold n = 2 values of type Prompt"),
        ({"summaries": TEXTS * 2}, "Documents.summaries must hold n = 2 values of type str"),
    ],
)
def test_documents_fit_each_other(change, message):
    asked = [Prompt(text) for text in TEXTS]
    fields = {
        "prompts": PROMPTS,
        "example_id": np.arange(2),
        "text_prompts": asked,
        "summaries": TEXTS,
    }
    with pytest.raises(ValueError, match=message):
        Documents(**fields | change)


@pytest.mark.parametrize("documents", ["one", ["one"], ["one"] * 3])
def test_a_judge_needs_one_document_for_each_input(documents):
    texts = np.zeros((B, K, 4), np.int32), np.full((B, K), 4), np.zeros((B, K), bool)
    with pytest.raises(ValueError, match="documents must be a list of B = 2 texts, one for each"):
        RewardScorer(REWARD, None, str)(Source(PROMPTS), documents, *texts)


@pytest.mark.parametrize(
    ("at", "wrong", "message"),
    [
        (
            0,
            np.ones((B, 4), int),
            r"outputs.tokens must be an array \[B, K, T\] of token ids; found",
        ),
        (0, np.ones((B, K, 4)), "outputs.tokens must be .*; found float64"),
        (1, np.full((B, 1), 4), "outputs.lengths must be an array .* with B = 2, K = 3; found"),
        (1, np.full((B, K), 5), r"outputs.lengths must be in \[0, 4\]"),
        (2, np.zeros((B, K)), r"finished must be an array \[B, K\] of flags .*; found float64"),
    ],
)
def test_a_reward_scorer_needs_outputs_in_rows(at, wrong, message):
    texts = [np.zeros((B, K, 4), np.int32), np.full((B, K), 4), np.zeros((B, K), bool)]
    texts[at] = wrong
    with pytest.raises(ValueError, match=message):
        RewardScorer(REWARD, None, str)(Source(PROMPTS), TEXTS, *texts)
