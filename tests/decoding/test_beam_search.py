"""The compiled search, against T5X's, against every text, and against the plain-Python search.

In a world of tables every input is a world of its own, with its own table of a model and of a
reward. One compiled call searches them all, each in G ways that differ in λ, reward weight or
length penalty.

Axes: B inputs, G searches of each, N beams, k candidates of a beam, T output length, V vocabulary.
"""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import naive_search
from dera_jax.decoding import pools
from dera_jax.decoding import search as driver
from dera_jax.decoding.beam_search import BeamRules, Search, beam_search
from dera_jax.decoding.pools import EMPTY
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import Prompts, score, sequence_keys
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.models.tabular import TabularLM
from dera_jax.rewards import scoring
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.rewards.tokens import LengthNear, Repetition
from tests import golden
from tests.decoding import worlds

EOS = worlds.EOS
V, T, B, G = 4, 7, 12, 4
HIGHEST = -0.5  # reward of tables; all are negative, so that empty slots could seem better
DROWNING = 1e20  # a reward weight beside which no log-probability is seen: equal rewards are ties


@dataclasses.dataclass(frozen=True)
class PrefixReward(Reward):
    """Any reward of a world of tables: params[input, has ended, number of the text]."""

    vocab_size: int = V
    bound: float | None = None

    @property
    def highest(self):
        return self.bound

    def __call__(self, params, source, tokens, lengths, finished):
        number = jnp.zeros_like(lengths)
        for t in range(tokens.shape[-1]):
            longer = number * self.vocab_size + tokens[..., t] + 1
            number = jnp.where(t < lengths, longer, number)
        return params[source.prompts.tokens[:, :1], finished.astype(int), number]


class Tables:
    """Random tables of a model, and rewards of -1/2, -1 or -3/2 of all texts, for `num` inputs.

    In the last three the end token is rare, so that some searches find no text that ends.
    """

    def __init__(self, num=B, vocab_size=V, horizon=T, seed=0):
        self.model = TabularLM(vocab_size, horizon, num)
        self.table = self.model.init(jax.random.key(seed)).at[-3:, :, EOS].add(-4.0)
        self.prompts = worlds.whole(np.arange(num)[:, None])
        texts = sum(vocab_size**t for t in range(horizon + 1))
        rng = np.random.default_rng(seed)
        rewards = HIGHEST - rng.integers(0, 3, (num, 2, texts)) / 2
        self.rewards = rewards.astype(np.float32)

    def search(self, settings: Search, reward: Reward | None = None, **other):
        """`beam_search` of all prompts, G ways; `other` arguments instead of this world's."""
        prompts = other.pop("prompts", self.prompts)
        rewards = other.pop("reward_params", self.rewards)
        guide = reward and Guide(RewardScorer(reward, rewards, to_text), Source(prompts))
        given = {
            "params": self.table,
            "prompts": prompts,
            "keys": sequence_keys(0, np.arange(len(prompts.tokens)), np.arange(G)),
            "guide": guide,
        } | other
        return jax.device_get(beam_search(self.model, search=settings, **given))

    def naive(self, b: int, settings: naive_search.Settings, with_reward=True):
        """The plain search of input b, and how often its reward was asked."""
        log_probs = _log_softmax(np.asarray(self.table[b], np.float64))
        number = lambda text: worlds.prefix_number(text, self.model.vocab_size)
        calls = []

        def reward(texts, ended):
            calls.append(len(texts))
            pairs = zip(texts, ended, strict=True)
            return [float(self.rewards[b, int(end), number(text)]) for text, end in pairs]

        next_log_probs = lambda prefixes: log_probs[[number(prefix) for prefix in prefixes]]
        found = naive_search.search(next_log_probs, reward if with_reward else None, settings)
        return found, len(calls)


def _log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@functools.cache
def tables() -> Tables:
    return Tables()


T5_REWARD = Combined((Part("new", Repetition(1), 2.0), Part("length", LengthNear(4), 0.5)))
T5_SEARCH = Search(8, 3, 5, 2, period=2, reward_weight=1.5, length_penalty=0.6)
T5_LAMS = 0.0, 0.7


@functools.cache
def t5_pair():
    """A realigned pair, its parameters, and two prompts, both padded and one more so."""
    model, params, prompts, _ = worlds.realigned_t5()
    return model, params, jax.tree.map(lambda x: x[2:], prompts)


def search_t5(settings=T5_SEARCH, lams=T5_LAMS, rows=(0, 1), seed=0):
    model, params, prompts = t5_pair()
    prompts = jax.tree.map(lambda x: x[np.array(rows)], prompts)
    prompts = prompts.replace(lam=np.tile(np.float32(lams), (2, 1)))
    keys = sequence_keys(seed, np.array(rows), np.arange(2))
    guide = Guide(RewardScorer(T5_REWARD, (None, None), to_text), Source(prompts))
    return jax.device_get(beam_search(model, params, prompts, keys, settings, guide))


def texts_of(found, b: int, g: int) -> list[list[int]]:
    """The texts of one search, best first, without the slots where none is."""
    rows = zip(found.pool.tokens[b, g], found.pool.lengths[b, g], strict=True)
    return [tokens[:length].tolist() for tokens, length in rows if length]


def same(found, expected, **tolerance):
    """All that was found, but for the steps, which are those of the whole batch."""
    close = functools.partial(
        np.testing.assert_allclose, **{"rtol": 1e-6, "atol": 1e-5} | tolerance
    )
    jax.tree.map(close, found.replace(steps=expected.steps), expected)


def some(found, *at):
    """Of some inputs (and some of their searches)."""
    pick = lambda x: x[np.ix_(*at)] if np.ndim(x) else x
    return jax.tree.map(pick, found)


def check_texts(found, settings: Search, log_probs, rewards):
    """Texts are texts, and worth what they say; log_probs and rewards are their own, [B, G, N]."""
    texts = found.pool
    place, lengths = np.arange(settings.max_length), texts.lengths[..., None]
    assert not texts.tokens[place >= lengths].any()
    ends = np.isin(texts.tokens, settings.end_ids or (EOS,)) & (place < lengths)
    np.testing.assert_array_equal(ends.sum(-1), texts.finished)  # at most once ...
    np.testing.assert_array_equal((ends & (place == lengths - 1)).any(-1), texts.finished)  # last
    there = texts.lengths > 0
    assert (there[..., :-1] | ~there[..., 1:]).all() and there[..., 0].all()
    assert (texts.lengths[there & ~texts.finished] == settings.max_length).all()
    assert (texts.finished.any(-1) <= (texts.finished == there).all(-1)).all()  # all or none
    np.testing.assert_allclose(texts.log_probs[there], log_probs[there], atol=1e-4)
    np.testing.assert_allclose(texts.rewards[there], rewards[there], atol=1e-6)
    per_text = lambda x: np.broadcast_to(np.asarray(x)[..., None], there.shape)
    penalty = ((5 + texts.lengths) / 6) ** per_text(settings.length_penalty)
    worth = log_probs / np.where(texts.finished, penalty, 1)
    worth = worth + per_text(settings.reward_weight) * rewards
    np.testing.assert_allclose(found.scores[there], worth[there], atol=1e-4, rtol=1e-6)
    assert (found.scores[~there] == EMPTY).all() and (texts.log_probs[~there] == EMPTY).all()
    assert not texts.rewards[~there].any() and not texts.finished[~there].any()


def own_values(model, params, prompts, texts, reward, reward_params):
    """Log-probability by teacher forcing and reward of each text, [B, G, N] each."""
    batch, groups, n, max_length = texts.tokens.shape
    tokens = texts.tokens.reshape(batch, groups * n, max_length)
    lengths, finished = (x.reshape(batch, -1) for x in (texts.lengths, texts.finished))

    @jax.jit
    def teacher_forcing(params, prompts):
        state = model.start(params, prompts, groups * n, 1)
        return score(model, params, state, tokens, lengths).sum(-1)

    log_probs = teacher_forcing(params, prompts)
    rewards = reward(reward_params, Source(prompts), tokens, lengths, finished)
    return (np.asarray(x).reshape(batch, groups, n) for x in (log_probs, rewards))


# T5X's search


def compare_with_t5x(found, g: int, tokens, scores):
    """T5X has its best last, and about -1e7 where nothing is."""
    np.testing.assert_array_equal(found.pool.tokens[:, g], tokens[:, ::-1])
    expected, there = scores[:, ::-1], found.pool.lengths[:, g] > 0
    np.testing.assert_array_equal(there, expected > EMPTY / 2)
    np.testing.assert_allclose(found.scores[:, g][there], expected[there], atol=1e-3)
    assert (found.scores[:, g][~there] == EMPTY).all()


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_without_a_reward_it_is_t5x_s_search(version):
    model, params, g = golden.load(version)
    prompts, keys = golden.prompts(g), sequence_keys(0, np.arange(4), [0])
    search = functools.partial(beam_search, model, params, prompts, keys)
    found = search(Search(16, length_penalty=0.6))
    compare_with_t5x(found, 0, g["beam4_tokens"], g["beam4_scores"])
    live = version == "v1_1"
    assert found.pool.finished[:, 0, 0].tolist() == [True, not live, True, True]
    found = search(Search(16, length_penalty=0.6, end_ids=(-1,)))
    compare_with_t5x(found, 0, g["beam4_noeos_tokens"], g["beam4_noeos_scores"])
    assert (found.forward_tokens == 16 * 4).all() and found.steps == 16


def test_searches_at_several_lambdas_are_those_of_the_single_models():
    model, params, g = golden.load("v1_1")
    other = jax.tree.map(lambda x: 1.1 * x, params)
    pair, lam = Realigned(model, (model,)), np.broadcast_to(np.float32([0, 1]), (4, 2))
    prompts, keys = golden.prompts(g, lam=lam), sequence_keys(0, np.arange(4), [0, 0])
    both = beam_search(pair, (params, other), prompts, keys, Search(16, length_penalty=0.6))
    compare_with_t5x(both, 0, g["beam4_tokens"], g["beam4_scores"])
    prompts = prompts.replace(lam=None)
    alone = beam_search(model, other, prompts, keys[:, :1], Search(16, length_penalty=0.6))
    np.testing.assert_array_equal(both.pool.tokens[:, 1], alone.pool.tokens[:, 0])
    np.testing.assert_allclose(both.scores[:, 1], alone.scores[:, 0], atol=1e-4)
    assert (both.pool.tokens[:, 0] != both.pool.tokens[:, 1]).any()


# Every text


@pytest.mark.parametrize(
    ("lookahead", "realigned"), [(None, True), (0, False), (2, False), (2, True)]
)
def test_exhaustive_beams_find_every_text(lookahead, realigned):
    """What the lookahead says is moot where nothing is dropped. None: without a reward."""
    horizon, vocab = worlds.HORIZON, 3
    world, other = (Tables(6, vocab, horizon, seed) for seed in (0, 1))
    weights, penalties = np.float32([0, 3, 0, 3]), np.float32([0, 0, 0.6, 0.6])
    if lookahead is None:
        weights = np.zeros(4, np.float32)
    groups = lambda x: np.broadcast_to(x, (6, 4))
    settings = Search(
        horizon, beams=8, top_k=vocab, lookahead=lookahead or 0,
        reward_weight=groups(weights), length_penalty=groups(penalties),
    )  # fmt: skip
    logits, given = np.asarray(world.table, np.float64), {}
    if realigned:
        world.model = Realigned(world.model, (world.model,))
        logits = (logits + np.asarray(other.table)) / 2
        prompts = world.prompts.replace(lam=np.full((6, 1), 0.5, np.float32))
        given = {"params": (world.table, other.table), "prompts": prompts}
    reward = None if lookahead is None else PrefixReward(vocab)
    found = world.search(settings, reward, **given)

    texts = [text for text in worlds.texts(vocab) if text[-1] == EOS]
    number = lambda text: worlds.prefix_number(text, vocab)
    lengths = np.array([len(text) for text in texts])
    for b, g in itertools.product(range(6), range(4)):
        p = worlds.text_probabilities(lambda prefix, b=b: logits[b, number(prefix)], texts)
        rewards = world.rewards[b, 1, [number(text) for text in texts]]
        expected = np.log(p) / ((5 + lengths) / 6) ** penalties[g] + weights[g] * rewards
        order = np.argsort(-expected)
        assert texts_of(found, b, g) == [list(texts[i]) for i in order]
        there = slice(len(texts))
        np.testing.assert_allclose(found.scores[b, g, there], expected[order], atol=1e-5)
        np.testing.assert_allclose(found.pool.log_probs[b, g, there], np.log(p[order]), atol=1e-5)


# The plain search

# beams, top_k, lookahead, period, bound of the reward
SHAPES = [
    (1, 4, 2, 1, HIGHEST),
    (2, 3, 0, 3, HIGHEST),
    (3, 2, 2, 3, None),
    (3, 4, 1, 1, HIGHEST),
    (4, 2, 0, 1, None),
    (4, 3, 1, 2, HIGHEST),
]
CASES = [(shape, end_ids) for shape in SHAPES for end_ids in ((EOS,), (-1,))]
CASES += [((3, 4, 1, 1, HIGHEST), (0, EOS)), ((4, 3, 1, 2, HIGHEST), (0, EOS))]
CASES += [((2, 4, 0, 3, HIGHEST), (0, EOS, 3))]


def random_settings(shape, end_ids=(EOS,), seed=0) -> tuple[Search, PrefixReward]:
    """Group 0 has no weight, group 1 no length penalty; in group 3 equal rewards are ties."""
    beams, top_k, lookahead, period, bound = shape
    rng = np.random.default_rng([seed, *shape[:4]])
    weights = rng.uniform(0, 5, (B, G)).astype(np.float32)
    penalties = rng.uniform(0, 1, (B, G)).astype(np.float32)
    weights[:, 0], weights[:, 3], penalties[:, 1] = 0, DROWNING, 0
    settings = Search(
        T, beams, top_k, lookahead, period=period,
        reward_weight=weights, length_penalty=penalties, end_ids=end_ids,
    )  # fmt: skip
    return settings, PrefixReward(bound=bound)


@functools.cache
def both_searches(shape, end_ids):
    """The compiled search of B·G settings; of each the plain one's result and number of rounds."""
    settings, reward = random_settings(shape, end_ids)
    found, plain = tables().search(settings, reward), {}
    for b, g in itertools.product(range(B), range(G)):
        weight, penalty = settings.reward_weight[b, g], settings.length_penalty[b, g]
        plain[b, g] = tables().naive(
            b,
            naive_search.Settings(
                T, *shape[:2], end_ids, *shape[2:4], float(weight), float(penalty), shape[4]
            ),
        )
    return settings, found, plain


@pytest.mark.parametrize(("shape", "end_ids"), CASES)
def test_texts_are_those_of_the_plain_search(shape, end_ids):
    settings, found, plain = both_searches(shape, end_ids)
    for (b, g), (expected, _) in plain.items():
        assert texts_of(found, b, g) == expected.tokens
        there = slice(len(expected.tokens))
        close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-6)
        close(found.scores[b, g, there], expected.scores)
        close(found.pool.log_probs[b, g, there], expected.log_probs)
        close(found.pool.rewards[b, g, there], expected.rewards)
        assert (found.pool.finished[b, g, there] == expected.finished).all()
    world = tables()
    args = world.model, world.table, world.prompts, found.pool, PrefixReward(), world.rewards
    check_texts(found, settings, *own_values(*args))


@pytest.mark.parametrize(("shape", "end_ids"), CASES)
def test_work_is_that_of_the_plain_search(shape, end_ids):
    _, found, plain = both_searches(shape, end_ids)
    each = lambda number: np.reshape([number(*x) for x in plain.values()], (B, G))
    np.testing.assert_array_equal(found.rounds, each(lambda expected, rounds: rounds))
    assert found.steps == each(lambda expected, rounds: expected.steps).max()
    np.testing.assert_array_equal(
        found.forward_tokens, each(lambda expected, _: expected.forward_tokens)
    )


def test_the_plain_searches_are_of_many_kinds():
    """Some find nothing that ends, some less than N texts, and some stop early, at any step."""
    plain = [(shape[0], both_searches(shape, (EOS,))[2].values()) for shape in SHAPES]
    plain = [(beams, expected) for beams, results in plain for expected, _ in results]
    assert 0.1 < np.mean([not expected.finished for _, expected in plain]) < 0.5
    assert 0.02 < np.mean([len(expected.tokens) < beams for beams, expected in plain]) < 0.5
    assert len({expected.steps for _, expected in plain}) == T


def test_without_a_reward_texts_are_those_of_the_plain_search():
    """With a period. In input 0 all tokens are equally likely: of texts that tie, the earlier."""
    world, period = tables(), 2
    settings = Search(T, 3, 3, period=period, length_penalty=0.0)
    found = world.search(settings, params=world.table.at[0].set(0.0))
    plain = naive_search.Settings(T, 3, 3, period=period)
    for b in range(B):
        expected, _ = world.naive(b, plain, with_reward=False)
        if b == 0:
            even = lambda prefixes: np.full((len(prefixes), V), -np.log(V))
            expected = naive_search.search(even, None, plain)
        assert texts_of(found, b, 0) == expected.tokens
        assert found.forward_tokens[b, 0] == expected.forward_tokens


def test_where_there_are_fewer_texts_than_beams_slots_are_empty():
    """Two candidates of one token, none of which ends."""
    world = tables()
    found = world.search(Search(1, 4, 2, end_ids=(-1,)))
    for b in range(B):
        expected, _ = world.naive(b, naive_search.Settings(1, 4, 2, (-1,)), with_reward=False)
        assert texts_of(found, b, 0) == expected.tokens and len(expected.tokens) == 2
    assert not found.pool.tokens[:, :, 2:].any() and not found.pool.lengths[:, :, 2:].any()
    assert (found.scores[:, :, 2:] == EMPTY).all() and not found.pool.finished.any()


@pytest.mark.slow
def test_a_t5_pair_is_searched_as_each_row_alone_by_full_forward_passes():
    """A padded batch, with a period, a lookahead, a reward and two λ.

    So neither padding nor what a lookahead left in the caches is ever read.
    """
    model, params, prompts = t5_pair()
    found = search_t5()
    plain = naive_search.Settings(8, 3, 5, (1,), 2, 2, 1.5, 0.6, highest_reward=0.0)
    lengths = prompts.lengths.tolist()
    assert lengths[1] < lengths[0] < prompts.tokens.shape[1]

    def reward(texts, ended):
        tokens = np.zeros((1, 32, 8), np.int32)  # one shape for any number of texts
        for i, text in enumerate(texts):
            tokens[0, i, : len(text)] = text
        fill = lambda x: np.pad(x, (0, 32 - len(texts)))[None]
        arguments = tokens, fill([len(text) for text in texts]), fill(ended)
        source = Source(worlds.whole([[0]]))
        values, _ = scoring.score(T5_REWARD, (None, None), source, *arguments)
        return values[0, : len(texts)]

    for b, (g, lam) in itertools.product(range(2), enumerate(T5_LAMS)):
        row = worlds.whole(prompts.tokens[b : b + 1, : lengths[b]], lam)
        forward = naive_search.forward_of(model, params, row, 8, rows=16)
        expected = naive_search.search(forward, reward, plain)
        assert texts_of(found, b, g) == expected.tokens
        there = slice(len(expected.tokens))
        np.testing.assert_allclose(found.scores[b, g, there], expected.scores, atol=1e-4)
        log_probs = found.pool.log_probs[b, g, there]
        np.testing.assert_allclose(log_probs, expected.log_probs, atol=1e-4)


def test_the_parts_of_a_compiled_sum_are_its_rewards():
    found = search_t5()
    texts = pools.by_prompt(found.pool)
    assert set(found.parts) == {"new", "length"}
    for part in T5_REWARD.terms:
        expected = part.reward(None, Source(t5_pair()[2]), *texts).reshape(2, 2, 3)
        np.testing.assert_allclose(found.parts[part.name], expected, atol=1e-6)
    there, total = found.pool.lengths > 0, 2 * found.parts["new"] + 0.5 * found.parts["length"]
    np.testing.assert_allclose(found.pool.rewards[there], total[there], atol=1e-6)


# Several end tokens


@pytest.mark.parametrize("num_ends", [2, 3])
def test_where_all_end_tokens_are_the_likeliest_every_search_still_has_its_beams(num_ends):
    """All beams survive to the limit, and what is found is the best of every text there is."""
    horizon, n, vocab, end_ids = 4, 4, 2 + num_ends, tuple(range(2, 2 + num_ends))
    world = Tables(4, vocab, horizon, seed=1)
    world.table = world.table.at[..., 2:].set(6.0 + 0.5 * world.table[..., 2:])
    settings = Search(horizon, n, vocab, length_penalty=0.0, end_ids=np.array(end_ids))
    rules = BeamRules(settings, highest=None)
    keys = sequence_keys(0, np.arange(4), [0])
    beams = rules.begin(world.model, world.table, world.prompts, keys)
    for step in range(1, horizon + 1):
        explored, candidates = rules.explore(world.model, world.table, beams)
        rewards = jnp.zeros(candidates[1].shape)
        beams = rules.settle(world.model, world.table, explored, rewards)
        alive = (beams.live.log_probs > EMPTY).sum(-1)
        assert (alive == min(n, 2**step)).all()
        living = beams.live.log_probs > EMPTY
        assert not beams.live.finished[living].any() and (beams.live.lengths[living] == step).all()

    found = world.search(settings.replace(end_ids=end_ids))
    log_probs = _log_softmax(np.asarray(world.table, np.float64))
    number = lambda text: worlds.prefix_number(text, vocab)
    texts = [
        (*body, end)
        for length in range(horizon)
        for body in itertools.product((0, 1), repeat=length)
        for end in end_ids
    ]
    for b in range(4):
        of = lambda text, b=b: sum(
            log_probs[b, number(text[:t]), token] for t, token in enumerate(text)
        )
        best = sorted(texts, key=of, reverse=True)[:n]
        assert texts_of(found, b, 0) == [list(text) for text in best]
        np.testing.assert_allclose(found.pool.log_probs[b, 0], [of(x) for x in best], atol=1e-4)
        plain = naive_search.Settings(horizon, n, vocab, end_ids, highest_reward=None)
        assert world.naive(b, plain, with_reward=False)[0].tokens == texts_of(found, b, 0)


# The lookahead


def test_a_lookahead_turns_the_choice_and_is_thrown_away():
    """A is likelier, but the likeliest way on from B is the only one with a reward."""
    a, b, weight = 0, 2, 2.0
    model = TabularLM(3, 2)
    probabilities = np.full((5, 3), 1 / 3)
    probabilities[0] = 0.6, 0.1, 0.3
    probabilities[1 + a], probabilities[1 + b] = (0.5, 0.4, 0.1), (0.1, 0.4, 0.5)
    rewards = np.zeros((1, 2, 13), np.float32)
    rewards[0, 0, worlds.prefix_number((b, b), 3)] = 1
    prompts, keys = worlds.rows(1)
    guide = Guide(RewardScorer(PrefixReward(3), rewards, to_text), Source(prompts))

    def search(lookahead):
        settings = Search(2, 1, 3, lookahead, reward_weight=weight, length_penalty=0.0)
        return beam_search(model, np.log(probabilities)[None], prompts, keys, settings, guide)

    blind, seeing = search(0), search(1)
    assert texts_of(blind, 0, 0) == [[a, EOS]] and texts_of(seeing, 0, 0) == [[b, EOS]]
    np.testing.assert_allclose(blind.scores, np.log(0.6 * 0.4), rtol=1e-6)
    np.testing.assert_allclose(seeing.scores, np.log(0.3 * 0.4), rtol=1e-6)
    assert seeing.pool.rewards == 0  # B's own 1 was the lookahead's
    assert blind.forward_tokens == 2
    assert seeing.forward_tokens == 2 + 2  # A and B go on; then there is no room


CALLS = []


@dataclasses.dataclass(frozen=True)
class Counting(TabularLM):
    """A table that notes the rows of each step the compiled program makes."""

    def step(self, params, state, tokens):
        rows = tokens.shape
        jax.debug.callback(lambda: CALLS.append(rows))
        return super().step(params, state, tokens)


def test_steps_of_the_model_are_counted():
    """T = 5, scored at 2, 4 and 5 tokens, two searches of two beams with three candidates each.

    Every step feeds N = 2 texts of each search; a lookahead of two tokens feeds its 2·3 candidates:
    two from 2 tokens, one (to the limit) from 4, none from 5.
    """
    model = Counting(4, 3)
    prompts, keys = worlds.rows(2)
    guide = Guide(RewardScorer(LengthNear(3), None, to_text), Source(prompts))
    settings = Search(5, 2, 3, 2, period=2, reward_weight=1.0, end_ids=(-1,))
    CALLS.clear()
    found = beam_search(model, model.init(jax.random.key(0)), prompts, keys, settings, guide)
    jax.effects_barrier()
    assert collections.Counter(CALLS) == {(1, 2 * 2): 5, (1, 2 * 2 * 3): 3 * 2}
    assert (found.forward_tokens == 5 * 2 + (2 + 1 + 0) * 2 * 3).all()
    assert (found.rounds == 3).all() and found.steps == 5


def to_text(ids) -> str:
    return " ".join(map(str, ids))


SEEN = []


@dataclasses.dataclass(frozen=True)
class Noting(Reward):
    """1 for a text whose third token is 0; notes what it scores."""

    def __call__(self, params, source, tokens, lengths, finished):
        jax.debug.callback(lambda tokens: SEEN.append(np.asarray(tokens)), tokens, ordered=True)
        return (tokens[..., 2] == 0).astype(jnp.float32)


def test_a_sampled_lookahead_draws_every_token_anew_and_by_its_key_alone():
    """As the reward sees it, with 600 inputs of which nothing but the draws differs."""
    num, p = 600, np.array([0.4, 0.1, 0.3, 0.2])
    model, prompts = TabularLM(4, 1), worlds.whole(np.zeros((num, 1)))
    table = np.broadcast_to(np.log(p), (1, model.num_prefixes, 4)).astype(np.float32)
    settings = Search(3, 1, 4, 2, greedy=False, reward_weight=1.0, end_ids=(-1,))
    guide = Guide(RewardScorer(Noting(), None, to_text), Source(prompts))
    search = lambda keys: beam_search(model, table, prompts, keys, settings, guide)
    SEEN.clear()
    found = search(sequence_keys(0, np.arange(num), [0, 0, 1]))
    jax.effects_barrier()
    first, second = (tokens.reshape(num, 3, 4, 3) for tokens in SEEN[:2])
    assert (first[..., 0] == [0, 2, 3, 1]).all()  # the candidates, then two tokens of lookahead

    alike = lambda x, y: stats.binomtest(int((x == y).sum()), x.size, np.sum(p**2)).pvalue > 1e-3
    for at in (1, 2):
        drawn = first[:, 0, :, at]
        counts = np.bincount(drawn.ravel(), minlength=4)
        assert stats.chisquare(counts, p * drawn.size).pvalue > 1e-3
        assert alike(drawn, first[:, 2, :, at])  # keys
        assert alike(drawn, np.roll(drawn, 1, axis=0))  # inputs
        assert all(alike(drawn[:, 0], drawn[:, i]) for i in (1, 2, 3))  # candidates
    assert alike(first[:, 0, :, 1], first[:, 0, :, 2])  # tokens
    assert alike(first[:, 0, :, 2], second[:, 0, :, 2])  # steps: both see a third token

    np.testing.assert_array_equal(first[:, 0], first[:, 1])
    same(some(found, range(num), [0]), some(found, range(num), [1]))
    chosen = np.asarray(found.pool.tokens)
    assert np.mean((chosen[:, 0] != chosen[:, 2]).any(axis=(-1, -2))) > 0.2
    order = np.random.default_rng(0).permutation(num)
    mixed = search(sequence_keys(0, order, [1, 0, 0]))
    same(some(mixed, np.argsort(order), [2, 1, 0]), found, atol=0)


# Batches, groups and compilations


def test_calls_are_pure_and_rows_and_groups_do_not_see_each_other():
    found = search_t5()
    search_t5(T5_SEARCH.replace(reward_weight=0.1, end_ids=(7,)), lams=(2.0, 1.0))
    again = search_t5()
    jax.tree.map(np.testing.assert_array_equal, again, found)
    for rows, groups in (([1, 1], [1, 0]), ([1, 0], [0, 0])):
        lams = np.array(T5_LAMS)[groups]
        same(search_t5(lams=lams, rows=rows), some(found, rows, groups))


def test_a_search_that_is_decided_waits_for_the_others_unchanged():
    """Inputs that are done soon, with each other and beside three that go on to the end."""
    world, (settings, reward) = tables(), random_settings((4, 3, 1, 2, HIGHEST))
    order = np.array([*range(B - 3), 0, 1, 2])
    settings = settings.replace(reward_weight=np.full((B, G), 0.5, np.float32))
    table = world.table.at[:-3, :, EOS].add(6.0)
    beside = world.search(settings, reward, params=table)
    prompts = jax.tree.map(lambda x: x[order], world.prompts)
    among = world.search(settings, reward, params=table, prompts=prompts)
    assert among.steps < beside.steps == T
    same(some(among, range(B - 3)), some(beside, range(B - 3)))
    assert beside.rounds[:-3].max() < beside.rounds[-3:].min()


def test_stopping_early_changes_nothing_but_the_work():
    world, (settings, reward) = tables(), random_settings((1, 4, 2, 1, HIGHEST))
    early = world.search(settings, reward)
    never = world.search(settings, dataclasses.replace(reward, bound=None))
    same(early.replace(forward_tokens=never.forward_tokens, rounds=never.rounds), never)
    assert (early.forward_tokens <= never.forward_tokens).all() and (
        early.rounds <= never.rounds
    ).all()
    assert np.mean(early.rounds < never.rounds) > 0.2
    assert np.mean(early.forward_tokens < never.forward_tokens) > 0.2


def test_new_values_compile_nothing():
    search_t5()
    before = driver._compiled._cache_size()
    new = T5_SEARCH.replace(reward_weight=0.3, length_penalty=0.9, end_ids=(5,))
    search_t5(new, lams=(2.0, 0.1), seed=3)
    assert driver._compiled._cache_size() == before


def test_every_group_has_its_own_weight_and_penalty():
    world, weights, penalties = tables(), [0.0, 0.5, 2.0, 4.0], [0.0, 1.0, 0.6, 0.0]

    def search(weights, penalties):
        weights, penalties = (np.tile(np.float32(x), (B, 1)) for x in (weights, penalties))
        settings = Search(T, 2, 3, period=3, reward_weight=weights, length_penalty=penalties)
        return world.search(settings, PrefixReward(bound=HIGHEST))

    together = search(weights, penalties)
    for g in range(G):
        alone = search(G * [weights[g]], G * [penalties[g]])
        same(some(alone, range(B), [g]), some(together, range(B), [g]))


def test_weights_and_penalties_may_be_traced():
    world, (settings, reward) = tables(), random_settings((4, 2, 0, 1, None))
    keys = sequence_keys(0, np.arange(B), np.arange(G))
    guide = Guide(RewardScorer(reward, world.rewards, to_text), Source(world.prompts))

    def tokens(settings):
        found = beam_search(world.model, world.table, world.prompts, keys, settings, guide)
        return found.pool.tokens

    np.testing.assert_array_equal(jax.jit(tokens)(settings), tokens(settings))


# Rewards in Python


class Watched:
    """The reward of a world of tables as a Python function, and the texts of each call."""

    def __init__(self, rewards):
        self.rewards, self.calls = rewards, []

    def __call__(self, documents, texts):
        self.calls.append(list(texts))
        return [self.value(*pair) for pair in zip(documents, texts, strict=True)]

    def value(self, document: str, text: str) -> float:
        ids = [int(x) for x in text.split()]
        ended = int(ids[-1:] == [EOS])
        return self.rewards[int(document), ended, worlds.prefix_number(ids, V)]


@dataclasses.dataclass(frozen=True, repr=False)
class Bounded(HostReward):
    @property
    def highest(self):
        return HIGHEST


def search_in_python(reward, reward_params, settings, documents=B, **other):
    """`Tables.search` with a reward that is called from Python, given the first documents' texts."""
    prompts, texts = tables().prompts, [str(b) for b in range(documents)]
    guide = Guide(RewardScorer(reward, reward_params, to_text), Source(prompts), texts)
    return tables().search(settings, guide=guide, **other)


HOST_SHAPE = (4, 3, 1, 2, HIGHEST)
IN_A_ROUND = B * G * (4 * 3 + 4)  # candidates, and places for texts that ended in between


def test_a_reward_in_python_finds_what_a_compiled_one_does():
    world, (settings, reward) = tables(), random_settings(HOST_SHAPE)
    watched = Watched(world.rewards)
    driver._explore.clear_cache()
    found = search_in_python(Bounded(watched), None, settings)
    assert driver._explore._cache_size() == 1  # for the first round as for the others
    same(found, world.search(settings, reward))
    assert [len(texts) for texts in watched.calls] == [IN_A_ROUND] * 4  # at 2, 4, 6 and 7 tokens
    assert found.parts == {} and found.rounds.max() == 4


def test_a_reward_in_python_with_a_bound_stops_early_and_new_values_compile_nothing():
    world, (settings, reward) = tables(), random_settings(HOST_SHAPE)
    table, watched = world.table.at[..., EOS].add(6.0), Watched(world.rewards)
    settings = settings.replace(reward_weight=np.full((B, G), 0.5, np.float32))
    found = search_in_python(Bounded(watched), None, settings, params=table)
    same(found, world.search(settings, reward, params=table))
    assert len(watched.calls) == found.rounds.max() < 4 and found.steps < T

    compiled = driver._begin, driver._explore, driver._settle, driver._result
    before = [x._cache_size() for x in compiled]
    new = settings.replace(length_penalty=0.1 + settings.length_penalty, end_ids=(2,))
    keys = sequence_keys(5, np.arange(B), np.arange(G))
    search_in_python(Bounded(watched), None, new, keys=keys)
    assert [x._cache_size() for x in compiled] == before


def test_prompts_beyond_the_documents_only_fill_the_batch():
    """They are not scored, and change nothing for the others."""
    world, (settings, _), num = tables(), random_settings(HOST_SHAPE), B - 3
    watched = Watched(world.rewards)
    found = search_in_python(Bounded(watched), None, settings, documents=num)
    whole = search_in_python(Bounded(Watched(world.rewards)), None, settings)
    same(some(found, range(num)), some(whole, range(num)))
    assert {len(texts) for texts in watched.calls} == {IN_A_ROUND // B * num}
    assert not found.pool.rewards[num:].any() and whole.pool.rewards[num:].any()


def test_a_sum_of_compiled_and_python_rewards_reports_its_parts():
    world, (settings, _) = tables(), random_settings(HOST_SHAPE)
    second = world.rewards[:, :, ::-1].copy()
    watched = Watched(second)
    compiled, on_host = PrefixReward(bound=HIGHEST), Bounded(watched)
    parts = lambda reward: (Part("first", compiled, 0.25), Part("second", reward, 0.75))
    found = search_in_python(Combined(parts(on_host)), (world.rewards, None), settings)
    assert [len(texts) for texts in watched.calls] == [IN_A_ROUND] * 4 + [B * G * 4]  # their parts
    same(
        found,
        world.search(settings, Combined(parts(compiled)), reward_params=(world.rewards, second)),
    )
    texts = pools.by_prompt(found.pool)
    assert set(found.parts) == {"first", "second"}
    for name, table in (("first", world.rewards), ("second", second)):
        alone = compiled(table, Source(world.prompts), *texts).reshape(B, G, 4)
        np.testing.assert_array_equal(found.parts[name], alone)


# Memory


def test_keys_and_values_of_the_input_are_not_multiplied_by_candidates():
    """Without a layer in the encoder: the memory that those take at the start would hide it."""
    config, size, max_length, lookahead = T5Config(64, 32, 4, 0, 1, 64, 64), 512, 8, 2
    model, array = T5(config), jax.ShapeDtypeStruct
    params = jax.eval_shape(model.init, jax.random.key(0))
    prompts = Prompts(array((1, size), jnp.int32), array((1,), jnp.int32))
    keys = jax.eval_shape(lambda: sequence_keys(0, [0], [0]))

    def temporary(candidates):
        ends = np.array([1])
        settings = Search(max_length, 1, candidates, lookahead, reward_weight=1.0, end_ids=ends)
        given = BeamRules(settings, None), model, params, prompts, keys, LengthNear(4), None
        compiled = driver._compiled.lower(*given, Source(prompts)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    growth = (temporary(64) - temporary(8)) / (64 - 8)
    per_token = 2 * config.num_decoder_layers * config.num_heads * config.head_dim * 4
    own_keys_and_values = per_token * (max_length + lookahead)
    attention = config.num_heads * size * 4  # logits of one layer for one token, or their softmax
    assert own_keys_and_values < growth < 2 * own_keys_and_values + 4 * attention
    assert 2 * own_keys_and_values + 4 * attention < per_token * size / 8


# What is refused


BAD = [
    ({"top_k": 5}, r"Search.top_k must be an integer in \[2, 4\]; found 5"),
    ({"end_ids": (1, 2, 3)}, r"Search.top_k must be an integer in \[4, 4\]; found 3"),
    ({"end_ids": (4,)}, r"Search.end_ids must be .*\[-1, 3\].*; found \(4,\)"),
    ({"top_k": 1}, r"Search.top_k must be an integer in \[2, 4\]; found 1"),
    ({"beams": 0}, "Search.beams must be an integer of at least 1; found 0"),
    ({"max_length": 0}, "Search.max_length must be an integer of at least 1; found 0"),
    (
        {"lookahead": 7},
        r"Search.lookahead must be an integer in \[0, 7\), below max_length; found 7",
    ),
    (
        {"lookahead": -1},
        r"Search.lookahead must be an integer in \[0, 7\), below max_length; found -1",
    ),
    ({"period": 0}, r"Search.period must be an integer in \[1, 7\]; found 0"),
    ({"period": 8}, r"Search.period must be an integer in \[1, 7\]; found 8"),
    (
        {"reward_weight": -0.5},
        "Search.reward_weight must be a finite number of at least 0; found -0.5",
    ),
    (
        {"reward_weight": np.nan},
        "Search.reward_weight must be a finite number of at least 0; found nan",
    ),
    (
        {"reward_weight": np.float32([[1, np.inf]])},
        "reward_weight must be a finite number of at least 0",
    ),
    (
        {"length_penalty": -1.0},
        "Search.length_penalty must be a finite number of at least 0; found -1.0",
    ),
    (
        {"length_penalty": np.inf},
        "Search.length_penalty must be a finite number of at least 0; found inf",
    ),
]


@pytest.mark.parametrize(("setting", "message"), BAD)
def test_bad_settings_are_refused(setting, message):
    settings = Search(T, 2, 3, reward_weight=1.0).replace(**setting)
    with pytest.raises(ValueError, match=message):
        tables().search(settings, PrefixReward())
    with pytest.raises(ValueError, match=message):
        search_in_python(HostReward(max), None, settings)


@pytest.mark.parametrize(
    "setting", [{"lookahead": 1}, {"reward_weight": 0.5}, {"reward_weight": np.float32([[0, 1]])}]
)
def test_a_weight_or_a_lookahead_without_a_reward_is_refused(setting):
    settings = Search(T, 2, 3).replace(**setting)
    with pytest.raises(ValueError, match="and none is given: set both to 0, or give one"):
        tables().search(settings)


def test_a_lookahead_without_weight_is_refused():
    settings = Search(T, 2, 3, 1, reward_weight=np.zeros((B, G)))
    for search in (tables().search, lambda *x: search_in_python(HostReward(max), None, x[0])):
        with pytest.raises(ValueError, match="so a lookahead of 1 would change nothing"):
            search(settings, PrefixReward())


def test_a_limit_too_short_for_the_reward_is_refused():
    settings = Search(T, 2, 3)
    with pytest.raises(ValueError, match=r"at least 8 for the reward LengthNear\(target=6\)"):
        tables().search(settings, LengthNear(6))
    both = Combined((Part("length", LengthNear(6)), Part("host", HostReward(max))))
    with pytest.raises(ValueError, match="at least 8 for the reward Combined"):
        search_in_python(both, (None, None), settings)


@pytest.mark.parametrize(
    ("lam", "message"),
    [
        (np.zeros((B, G + 1)), rf"lam has shape \({B}, {G + 1}\); expected .* divides the {G} hyp"),
        (np.full((B, G), np.nan), "lam must be finite; found nan"),
    ],
)
def test_a_lambda_that_does_not_fit_is_refused(lam, message):
    world = tables()
    pair = Realigned(world.model, (world.model,))
    keys = sequence_keys(0, np.arange(B), np.arange(G))
    prompts, scorer = world.prompts.replace(lam=lam), RewardScorer(HostReward(max), None, to_text)
    start = pair, (world.table,) * 2, prompts, keys, Search(T, 2, 3)
    for guide in (None, Guide(scorer, Source(prompts), [""] * B)):
        with pytest.raises(ValueError, match=message):
            beam_search(*start, guide)


def test_a_reward_in_python_is_refused_inside_a_compiled_call():
    world, guide = (
        tables(),
        Guide(RewardScorer(HostReward(max), None, to_text), Source(tables().prompts)),
    )
    keys = sequence_keys(0, np.arange(B), np.arange(G))
    search = lambda table: beam_search(
        world.model, table, world.prompts, keys, Search(T, 2, 3, reward_weight=1.0), guide
    )
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(search)(world.table)


# Devices
