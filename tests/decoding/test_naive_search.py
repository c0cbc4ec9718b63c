"""The plain-Python search, against enumeration and against small worlds worked out by hand.

By hand: three tokens, A, the end token and B. A world is a function from prefix to their
probabilities in this order.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from benchmarks.naive_search import (
    Hypothesis,
    Settings,
    expand,
    forward_of,
    rank,
    search,
    settled,
)
from benchmarks.naive_search import best as best_of
from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import score
from tests import golden
from tests.decoding import worlds

VOCAB = 3
A, EOS, B = 0, worlds.EOS, 2


def log_probs(probabilities):
    """next_log_probs of a world."""
    return lambda prefixes: np.log([probabilities(tuple(x)) for x in prefixes])


class Recorded:
    """A reward, and the calls that it got."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, texts, ended):
        self.calls.append(([list(text) for text in texts], list(ended)))
        return [float(self.function(tuple(text))) for text in texts]


def random_world(seed: int, horizon: int):
    """Random probabilities, and a random reward in [0, 1), of every prefix."""
    prefixes = (VOCAB ** (horizon + 1) - 1) // (VOCAB - 1)
    rng = np.random.default_rng(seed)
    table, rewards = rng.dirichlet(np.ones(VOCAB), prefixes), rng.uniform(size=prefixes)
    number = lambda text: worlds.prefix_number(text, VOCAB)
    return lambda prefix: table[number(prefix)], lambda text: rewards[number(text)]


@pytest.mark.parametrize("alpha, weight", [(0.0, 0.0), (0.6, 0.0), (0.6, 3.0), (2.0, -1.0)])
@pytest.mark.parametrize("period, lookahead", [(1, 0), (1, 2), (2, 1), (3, 0), (4, 0)])
def test_exhaustive_beams_find_every_text(alpha, weight, period, lookahead):
    """What the lookahead and the periods say is moot where nothing is ever dropped."""
    model, (table,) = worlds.tabular_tower(1, VOCAB)
    _, text_reward = random_world(0, worlds.HORIZON)
    texts = [text for text in worlds.texts(VOCAB) if text[-1] == EOS]
    logits = np.asarray(table, np.float64)[0]
    p = worlds.text_probabilities(lambda prefix: logits[worlds.prefix_number(prefix, VOCAB)], texts)
    penalty = ((5 + np.array([len(text) for text in texts])) / 6) ** alpha
    rewards = np.array([text_reward(text) for text in texts])
    expected = np.log(p) / penalty + weight * rewards
    order = np.argsort(-expected)

    settings = Settings(
        worlds.HORIZON,
        beams=8,
        top_k=VOCAB,
        lookahead=lookahead,
        period=period,
        reward_weight=weight,
        length_penalty=alpha,
    )
    forward = forward_of(model, table, worlds.whole([[0]]), worlds.HORIZON, rows=8)
    found = search(forward, Recorded(text_reward) if weight else None, settings)
    assert found.finished
    assert found.tokens == [list(texts[i]) for i in order]
    np.testing.assert_allclose(found.scores, expected[order], atol=1e-5)
    np.testing.assert_allclose(found.log_probs, np.log(p)[order], atol=1e-5)
    np.testing.assert_allclose(found.rewards, rewards[order] if weight else 0, atol=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_one_beam_without_reward_is_greedy_with_exits(seed):
    """It walks the likeliest other tokens and may end where the end token is not third."""
    probabilities, _ = random_world(seed, 6)
    exits, body, log_prob = [], (), 0.0
    for _ in range(6):
        p = probabilities(body)
        if p[EOS] > min(p):
            exits.append((log_prob + np.log(p[EOS]), [*body, EOS]))
        token = A if p[A] > p[B] else B
        body, log_prob = (*body, token), log_prob + np.log(p[token])

    found = search(log_probs(probabilities), None, Settings(6, beams=1, top_k=VOCAB))
    expected, tokens = max(exits, default=(log_prob, list(body)))
    assert found.finished == bool(exits)
    assert found.tokens == [tokens]
    assert found.scores == pytest.approx([expected])


def test_stopping_early_changes_nothing_but_the_work():
    saved = 0
    for seed in range(60):
        probabilities, text_reward = random_world(seed, 6)
        settings = Settings(
            6,
            beams=2,
            top_k=VOCAB,
            lookahead=1,
            period=1 + seed % 2,
            reward_weight=0.5,
            length_penalty=0.6,
        )
        bounded = dataclasses.replace(settings, highest_reward=1.0)
        never = search(log_probs(probabilities), Recorded(text_reward), settings)
        early = search(log_probs(probabilities), Recorded(text_reward), bounded)
        assert never.steps == 6
        assert early.tokens == never.tokens
        np.testing.assert_array_equal(early.scores, never.scores)
        saved += never.steps - early.steps
    assert saved > 20


@pytest.mark.parametrize("max_length, alpha, steps", [(9, 0.0, 1), (1, 1.0, 1), (2, 1.0, 2)])
def test_when_it_stops(max_length, alpha, steps):
    """log 0.5 = −0.693 in hand; the other's log 0.4 counts ·6/8 = −0.687 with T = 2, alpha = 1.

    A bound with T in the place of T + 1, ·6/7 = −0.785, would stop there.
    """
    world = lambda prefix: [0.4, 0.5, 0.1]
    settings = Settings(max_length, beams=1, top_k=3, length_penalty=alpha)
    found = search(log_probs(world), None, settings)
    assert (found.steps, found.forward_tokens, found.tokens) == (steps, steps, [[EOS]])


@pytest.mark.parametrize("highest, expected", [(0.0, [EOS]), (1.0, [A, EOS]), (None, [A, EOS])])
def test_it_goes_on_while_a_reward_could_turn_the_order(highest, expected):
    """log 0.5 in hand and no reward; log 0.2 with one of 2 to come. A bound of 0 is not true."""
    reward = Recorded(lambda text: text == (A, EOS))
    settings = Settings(2, beams=1, top_k=3, reward_weight=2.0, highest_reward=highest)
    found = search(log_probs(lambda prefix: [0.4, 0.5, 0.1]), reward, settings)
    assert found.tokens == [expected] and found.steps == len(expected)


def test_the_likeliest_hypothesis_is_the_hope_also_where_another_leads():
    leader, likeliest = Hypothesis([B], np.log(0.1), 1.0), Hypothesis([A], np.log(0.4), -1.0)
    finished = [Hypothesis([EOS], np.log(0.5), 0.5)] * 2  # scores -0.19
    settings = Settings(2, beams=2, top_k=3)
    assert not settled([leader, likeliest], finished, 1.0, settings)  # log 0.4 + 1 = 0.08
    assert settled([leader], finished, 1.0, settings)  # log 0.1 + 1 = -1.3


def test_a_lookahead_turns_the_choice():
    """A is likelier, but B leads to B B, the only text with a reward."""
    world = {
        (): [0.6, 0.1, 0.3],
        (A,): [0.5, 0.4, 0.1],
        (B,): [0.1, 0.4, 0.5],
    }
    reward = Recorded(lambda text: text[:2] == (B, B))
    run = lambda lookahead: search(
        log_probs(world.get),
        reward,
        Settings(2, beams=1, top_k=3, lookahead=lookahead, reward_weight=2.0),
    )

    blind = run(0)
    assert reward.calls[0] == ([[A], [B], [EOS]], [False, False, True])
    assert blind.tokens == [[A, EOS]] and blind.forward_tokens == 2
    assert blind.scores == pytest.approx([np.log(0.6 * 0.4)])

    reward.calls.clear()
    seeing = run(1)
    assert seeing.tokens == [[B, EOS]]
    assert seeing.scores == pytest.approx([np.log(0.3 * 0.4)])  # B's own 1 was the lookahead's
    assert seeing.forward_tokens == 2 + 2  # A and B were continued, at n = T nothing is
    assert reward.calls == [
        ([[A, A], [B, B], [EOS]], [False, False, True]),
        ([[B, B], [B, EOS], [B, A]], [False, True, False]),
    ]


@pytest.mark.parametrize("of_empty, expected", [(0.0, [A, EOS]), (1.0, [EOS])])
def test_what_ends_between_scorings_waits_for_its_reward(of_empty, expected):
    world = {(): [0.3, 0.6, 0.1], (A,): [0.4, 0.5, 0.1]}
    reward = Recorded({(EOS,): of_empty, (A, EOS): 0.9, (A, A): 0.0, (A, B): 0.0}.get)
    settings = Settings(2, beams=1, top_k=3, period=2, reward_weight=20.0)
    found = search(log_probs(world.get), reward, settings)
    assert reward.calls == [([[A, EOS], [A, A], [A, B], [EOS]], [True, False, False, True])]
    assert found.tokens == [expected]
    chosen = {2: (0.3 * 0.5, 0.9), 1: (0.6, 1.0)}[len(expected)]
    assert found.scores == pytest.approx([np.log(chosen[0]) + 20 * chosen[1]])


def test_the_waiting_pool_is_no_larger_than_the_others():
    reward = Recorded(lambda text: text == (A, EOS))  # which loses its place to the empty text
    settings = Settings(3, beams=1, top_k=3, period=3, reward_weight=20.0)
    found = search(log_probs(lambda prefix: [0.3, 0.6, 0.1]), reward, settings)
    assert reward.calls[0][0] == [[A, A, EOS], [A, A, A], [A, A, B], [EOS]]
    assert found.tokens == [[EOS]]


def test_rewards_are_inherited_until_the_next_scoring():
    """After the second token B B leads by its reward, and its children do in the plain third."""
    reward = Recorded(lambda text: text[:2] == (B, B))
    settings = Settings(4, beams=2, top_k=3, period=2, reward_weight=10.0)
    found = search(log_probs(lambda prefix: [0.6, 0.1, 0.3]), reward, settings)
    first, second = (texts for texts, _ in reward.calls)
    assert first == [[A, A], [A, B], [A, EOS], [B, A], [B, B], [B, EOS], [EOS]]
    children = [[B, B, x, y] for x in (A, B) for y in (A, B, EOS)]
    assert second == [*children, [B, B, EOS]]
    assert found.tokens == [[B, B, EOS], [EOS]]
    assert found.scores == pytest.approx([np.log(0.3 * 0.3 * 0.1) + 10, np.log(0.1)])
    assert found.rewards.tolist() == [1.0, 0.0]
    assert found.forward_tokens == 4 * 2  # the first step, of one hypothesis, counts two as well


def test_texts_without_end_are_scored_without_length_penalty():
    settings = Settings(3, beams=1, top_k=2, reward_weight=2.0, length_penalty=1.0)
    world = log_probs(lambda prefix: [0.6, 0.1, 0.3])
    found = search(world, Recorded(lambda text: 0.5), settings)
    assert not found.finished and found.tokens == [[A, A, A]]
    assert found.scores == pytest.approx([3 * np.log(0.6) + 1.0])


def test_ties_go_to_the_lower_token_and_the_earlier_candidate():
    settings = Settings(2, beams=2, top_k=2)
    found = search(log_probs(lambda prefix: [0.25] * 4), None, settings)
    # Of A and the end, the end goes; then A A and A end are the candidates, in this order.
    assert found.tokens == [[EOS], [A, EOS]]


@pytest.mark.parametrize("num_ends", [1, 2, 3])
def test_several_end_tokens_leave_every_beam_alive(num_ends):
    """All end tokens are the likeliest continuations of every prefix: the search is exhaustive."""
    vocab, horizon, end_ids = 2 + num_ends, 3, tuple(range(2, 2 + num_ends))
    p = np.append([0.06, 0.04], 0.9 * np.arange(1, 1 + num_ends) / sum(range(1, 1 + num_ends)))
    settings = Settings(
        horizon, beams=4, top_k=vocab, end_ids=end_ids, reward_weight=0.0, length_penalty=0.0
    )
    found = search(lambda prefixes: np.log([p] * len(prefixes)), None, settings)
    bodies = [body for n in range(horizon) for body in itertools.product((0, 1), repeat=n)]
    texts = [[*body, end] for body in bodies for end in end_ids]
    log_probs = np.array([np.sum(np.log(p[text])) for text in texts])
    best = np.argsort(-log_probs, kind="stable")[:4]
    np.testing.assert_allclose(found.log_probs, log_probs[best], rtol=1e-12)
    assert found.tokens == [texts[i] for i in best]

    live = [Hypothesis([i % 2], np.log(0.06 - 0.02 * (i % 2))) for i in range(4)]
    for _ in range(4):  # the pool stays full
        candidates = expand(lambda prefixes: np.log([p] * len(prefixes)), live, settings)
        going_on = [x.tokens[-1] in (0, 1) for x in best_of(candidates, 2 * 4, settings)]
        assert sum(going_on) == (4 if num_ends == 1 else 0)  # T5X's rule, for one end token
        live, ended = rank(candidates, settings)
        assert len(live) == 4 and len(ended) == 4 * num_ends
        assert all(x.tokens[-1] in (0, 1) for x in live)


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="top_k = 1; must be at least 2"):
        Settings(4, beams=1, top_k=1)
    with pytest.raises(ValueError, match="top_k = 3; must be at least 4"):
        Settings(4, beams=1, top_k=3, end_ids=(1, 2, 3))


@pytest.mark.parametrize("lam", [0.0, 0.3, 2.0])
def test_the_forward_pass_of_a_realigned_table(lam):
    """More prefixes than rows, so in pieces."""
    model, params = worlds.tabular_tower(2, VOCAB)
    pair, prefixes = Realigned(model, (model,)), [[], [2], [0, 2], [2, 2], [0, 0]]
    forward = forward_of(pair, params, worlds.whole([[0]], lam), worlds.HORIZON, rows=2)
    at = [worlds.prefix_number(prefix, VOCAB) for prefix in prefixes]
    reference, aligned = (np.asarray(x)[0, at] for x in params)
    expected = jax.nn.log_softmax((1 - lam) * reference + lam * aligned)
    np.testing.assert_allclose(forward(prefixes), expected, atol=1e-5)
    with pytest.raises(ValueError, match="prefix of 3 tokens"):
        forward([[0, 0, 0]])


def test_texts_of_a_t5_have_their_log_probabilities():
    """Those of teacher forcing, though the search saw padded prefixes only."""
    model, params, g = golden.load("v1_1")
    prompt = golden.prompts(g, slice(1, 2), 40)
    settings = Settings(5, beams=2, top_k=2, lookahead=1, reward_weight=0.1)
    forward = forward_of(model, params, prompt, 5, rows=4)
    found = search(forward, Recorded(lambda text: len(set(text))), settings)
    tokens, lengths = np.zeros((1, 2, 5), np.int32), np.zeros((1, 2), np.int32)
    for i, text in enumerate(found.tokens):
        tokens[0, i, : len(text)], lengths[0, i] = text, len(text)

    @jax.jit
    def scored(params, prompt):
        state = model.start(params, prompt, 2, max_len=1)
        return score(model, params, state, tokens, lengths).sum(-1)[0]

    expected = scored(params, prompt)[: len(found.tokens)]
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)
