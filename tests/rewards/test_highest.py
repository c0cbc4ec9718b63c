"""`Reward.highest`: no text scores more, and where a text can score it, some text does."""

import dataclasses

import numpy as np
import pytest

from dera_jax.models.language_model import Padded
from dera_jax.rewards.combined import Combined, Part, Statistics
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import score
from dera_jax.rewards.tokens import LengthNear, Repetition, TokenOverlap
from dera_jax.rewards.word_hashes import keyword_bytes
from dera_jax.rewards.words import Faithfulness, KeywordCoverage, WordsInRange
from tests import prompts

EOS, B, K, T = 1, 3, 400, 8
LETTERS = [b"a", b" ", b"b", b"c", b" "]


class Letters:
    """A vocabulary of padding, the end token and few letters, so that good texts come by chance."""

    end_id = EOS

    def pieces(self):
        return [b"", b"", *LETTERS]


@dataclasses.dataclass(frozen=True)
class Unbounded(Reward):
    def __call__(self, params, source, tokens, lengths, finished):
        return 1e3 * lengths


def random_texts(seed: int):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 2 + len(LETTERS), (B, K, T))
    finished = rng.random((B, K)) < 0.8
    lengths = np.where(finished, rng.integers(1, T + 1, (B, K)), T)
    place, last = np.arange(T), lengths[..., None] - 1
    tokens = np.where(place <= last, tokens, 0)
    tokens = np.where((place == last) & finished[..., None], EOS, tokens)
    targets = rng.integers(2, 2 + len(LETTERS), (B, 3))
    inputs = rng.integers(2, 2 + len(LETTERS), (B, 6))
    inputs[:, :2] = 4, 3  # "b ", so that every document has a content word
    keywords = keyword_bytes([["a", "b"], ["c"], ["a b"]])
    document = Padded(inputs, np.full(B, inputs.shape[1]))
    targets = prompts.zero_padded_targets(targets)
    return (
        Source(prompts.whole(np.ones((B, 1))), targets, keywords, document),
        tokens,
        lengths,
        finished,
    )


def rewards_of(reward, seed: int = 0) -> np.ndarray:
    total, _ = score(reward, reward.load(Letters()), *random_texts(seed))
    assert total.shape == (B, K)
    return np.asarray(total)


RANGE, ALL = Part("length", LengthInRange(2, 7), 2.0), Part("cover", KeywordCoverage(), 0.5)
SCALES = (Statistics("length", -0.5, 0.25), Statistics("cover", 0.4, 0.2))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (LengthInRange(2, 4), 0),
        (LengthNear(3), 0),
        (Repetition(1), 0),
        (Repetition(2), 0),
        (TokenOverlap(), 1),
        (KeywordCoverage(), 1),
        (KeywordCoverage(hard=True), 1),
        (Faithfulness(), 1),
        (WordsInRange(2, 3), 0),
        (WordsInRange(high=1), 0),
        (WordsInRange(2, 3, hard=True), 0),
        (Combined((RANGE, ALL)), 2 * 0 + 0.5 * 1),
        (Combined((RANGE, ALL), SCALES), 2 * (0 + 0.5) / 0.25 + 0.5 * (1 - 0.4) / 0.2),
        (Combined((ALL, dataclasses.replace(RANGE, weight=0.0))), 0.5),
    ],
    ids=repr,
)
def test_no_text_scores_more_and_some_as_much(reward, expected):
    assert isinstance(reward.highest, float) and reward.highest == pytest.approx(expected)
    found = rewards_of(reward)
    assert len(np.unique(found)) > 1  # not all as good
    np.testing.assert_allclose(found.max(axis=-1), expected, rtol=1e-6)  # of every document


def test_a_part_without_weight_needs_no_bound():
    unbounded = Part("unbounded", Unbounded(), 0.0)
    scales = (*SCALES, Statistics("unbounded", 3.0, 0.1))
    for statistics in (None, scales):
        reward = Combined((RANGE, unbounded, ALL), statistics)
        bound = Combined((RANGE, ALL), statistics and SCALES).highest
        assert reward.highest == pytest.approx(bound)
        np.testing.assert_allclose(rewards_of(reward).max(), bound, rtol=1e-6)
    nothing = Combined((dataclasses.replace(RANGE, weight=-0.0), unbounded))
    assert nothing.highest == 0 and not rewards_of(nothing).any()


@pytest.mark.parametrize(
    "reward",
    [
        Unbounded(),
        HostReward(lambda documents, texts: [0.0] * len(texts)),
        Combined((RANGE, Part("unbounded", Unbounded()))),
        Combined((RANGE, Part("host", HostReward(max), 0.1))),
        Combined((RANGE, Part("cover", KeywordCoverage(), -0.5))),
        Combined((RANGE, Part("cover", KeywordCoverage(), -0.5)), SCALES),
    ],
    ids=repr,
)
def test_where_no_bound_is_known_there_is_none(reward):
    assert reward.highest is None


def test_a_negative_weight_turns_a_part_s_best_into_its_worst():
    """Why there is no bound then: what `total` gives at the parts' best is not the most."""
    reward = Combined((RANGE, Part("cover", KeywordCoverage(), -0.5)))
    assert rewards_of(reward).max() > reward.total({"length": 0.0, "cover": 1.0})
