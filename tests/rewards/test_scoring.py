"""Host rewards, sums of rewards, and the one way to score a round of texts with any of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.rewards import host as host_rewards
from dera_jax.rewards.combined import Combined, Part, Statistics
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import RewardScorer
from tests import prompts

SOURCE = Source(prompts.whole(np.ones((2, 3))))
TOKENS = np.array([[[5, 6, 1], [7, 1, 0]], [[8, 9, 5], [1, 0, 0]]])
LENGTHS = np.array([[3, 2], [3, 1]])
FINISHED = np.array([[True, True], [False, True]])
ROUND = (SOURCE, ["first document", "second document"], TOKENS, LENGTHS, FINISHED)


def to_text(ids) -> str:
    return " ".join(str(i) for i in ids)


@dataclasses.dataclass(frozen=True)
class FirstToken(Reward):
    """A compiled reward with parameters: their value at the first token."""

    def load(self, resources):
        return jnp.asarray(resources)

    def __call__(self, params, source, tokens, lengths, finished):
        return params[tokens[..., 0]]


def scorer(reward, resources=None) -> RewardScorer:
    return RewardScorer(reward, reward.load(resources), to_text)


def text_length(documents, texts):
    return [len(document) + len(text) for document, text in zip(documents, texts, strict=True)]


def test_a_host_reward_sees_every_text_beside_its_document_once():
    calls = []

    def remember(documents, texts):
        calls.append((list(documents), list(texts)))
        return range(len(texts))

    total, parts = scorer(HostReward(remember))(*ROUND)
    np.testing.assert_array_equal(total, [[0, 1], [2, 3]])
    assert parts == {} and total.dtype == np.float32
    documents = ["first document"] * 2 + ["second document"] * 2
    assert calls == [(documents, ["5 6 1", "7 1", "8 9 5", "1"])]  # once, padding left out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0, 3.0], r"give returned values of shape \(3,\) for 4 texts"),
        (7.0, r"give must return one float for each text; found 7.0"),
        ([[1], [2, 3]], r"give must return one float for each text"),
        ([1, 2, float("nan"), 4], r"returned nan for the text '8 9 5'; rewards must be finite"),
        ([1, float("inf"), 3, 4], r"returned inf for the text '7 1'"),
    ],
)
def test_wrong_answers_of_a_host_reward_are_refused(values, message):
    def give(documents, texts):
        return values

    with pytest.raises(ValueError, match=message):
        scorer(HostReward(give))(*ROUND)


def test_sources_of_rewards_in_python_are_found_in_what_holds_them():
    host = HostReward(text_length)
    both = Combined((Part("a", host), Part("b", LengthInRange(1, 2))))
    expected = {f"{__name__}.text_length": host.source_sha256}
    assert host_rewards.sources_of((both, 3, {"x": 1})) == expected
    assert host_rewards.sources_of(LengthInRange(1, 2)) == {}


def test_what_a_reward_in_python_holds_is_part_of_it():
    """Numbers and strings are; a cache that fills is not."""

    def near(number, cache):
        return lambda documents, texts: [-abs(number - len(x)) + 0 * len(cache) for x in texts]

    class Near:
        def __init__(self, number):
            self.number = number

        def __call__(self, documents, texts):
            return [-abs(self.number - len(x)) for x in texts]

    def partial(number):
        return functools.partial(
            lambda documents, texts, number: [number] * len(texts), number=number
        )

    for make in (lambda x: near(x, {}), Near, partial):
        five, six = HostReward(make(5)).source_sha256, HostReward(make(6)).source_sha256
        assert five == HostReward(make(5)).source_sha256 != six
    assert HostReward(near(5, {})).source_sha256 == HostReward(near(5, {"a": 1})).source_sha256


@pytest.mark.parametrize("fn", [lambda texts: texts, lambda a, b, c: a, lambda a, *, texts: a])
def test_a_host_reward_takes_two_arguments(fn):
    with pytest.raises(
        ValueError, match="must take two arguments, the lists `documents` and `texts`"
    ):
        HostReward(fn)
    for may in (lambda a, b, c=1: a, lambda *a: a, functools.partial(lambda a, b, c: a, c=1), max):
        HostReward(may)


def test_an_exception_in_a_host_reward_comes_with_its_own_traceback():
    def divide(documents, texts):
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        scorer(HostReward(divide))(*ROUND)
    assert caught.traceback[-1].name == "divide"


def test_a_host_reward_inside_a_compiled_program_is_refused():
    with pytest.raises(TypeError, match="text_length cannot be called inside a compiled program"):
        HostReward(text_length)(None, SOURCE, TOKENS, LENGTHS, FINISHED)


COMPILED = Combined(
    (Part("length", LengthInRange(1, 1), 2.0), Part("first", FirstToken(), -0.5)),
)


def test_a_sum_is_weighted_and_its_parts_are_told_apart():
    values = np.arange(10.0) ** 2
    total, parts = scorer(COMPILED, Both(values))(*ROUND)
    np.testing.assert_array_equal(parts["length"], [[-1, 0], [-1, -1]])
    np.testing.assert_array_equal(parts["first"], [[25, 49], [64, 1]])
    np.testing.assert_allclose(total, 2 * parts["length"] - 0.5 * parts["first"])


class Both:
    """Resources that are an array, for `FirstToken`."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_a_sum_may_have_parts_in_python():
    mixed = Combined((*COMPILED.terms, Part("host", HostReward(text_length), 0.1)))
    assert mixed.on_host and not COMPILED.on_host
    values = Both(np.arange(10.0) ** 2)
    total, parts = scorer(mixed, values)(*ROUND)
    compiled, _ = scorer(COMPILED, values)(*ROUND)
    np.testing.assert_array_equal(parts["host"], [[19, 17], [20, 16]])
    np.testing.assert_allclose(total, compiled + 0.1 * parts["host"], rtol=1e-6)


def test_without_documents_nothing_is_asked():
    """As on a process whose prompts all only fill the batch."""
    asked = HostReward(lambda documents, texts: pytest.fail("text_prompts"))
    source, _, *texts = ROUND
    nothing = jax.tree.map(lambda x: x[:0], source), [], *(x[:0] for x in texts)
    assert scorer(asked)(*nothing)[0].shape == (0, 2)
    mixed = Combined((*COMPILED.terms, Part("host", asked)))
    total, parts = scorer(mixed, Both(np.ones(10)))(*nothing)
    assert total.shape == (0, 2) and {x.shape for x in parts.values()} == {(0, 2)}


def test_standardised_parts_have_the_given_mean_and_spread():
    values = np.arange(10.0) ** 2
    statistics = (Statistics("first", 4.0, 3.0), Statistics("length", -0.5, 0.25))
    standard = dataclasses.replace(COMPILED, statistics=statistics)
    total, parts = scorer(standard, Both(values))(*ROUND)
    expected = 2 * (parts["length"] + 0.5) / 0.25 - 0.5 * (parts["first"] - 4) / 3
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_array_equal(parts["first"], [[25, 49], [64, 1]])  # as they are


def test_a_sum_needs_the_room_of_its_longest_part():
    assert COMPILED.min_limit == LengthInRange(1, 1).min_limit == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": ()}, r"distinct names; found \[\]"),
        ({"terms": COMPILED.terms[:1] * 2}, r"found \['length', 'length'\]"),
        ({"statistics": (Statistics("length", 0, 1),)}, r"statistics are those of \['length'\]"),
        (
            {"statistics": (Statistics("length", 0, 0), Statistics("first", 0, 1))},
            r"\['length'\] did not vary",
        ),
    ],
)
def test_bad_sums_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(COMPILED, **change)


def test_a_reward_that_is_not_finite_is_refused():
    values = np.where(np.arange(10) == 8, np.inf, 0.0)
    with pytest.raises(
        FloatingPointError, match=r"reward FirstToken\(\) of input \d, text \d .* is inf"
    ):
        scorer(FirstToken(), Both(values))(*ROUND)
