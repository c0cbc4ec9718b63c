"""Populations: against a population worked out by hand, best-of-n, and teacher forcing.

Axes: B inputs, N individuals, T output length, P periods.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dera_jax.decoding import evolution as module
from dera_jax.decoding import search as driver
from dera_jax.decoding.archive import (
    EvolutionInputs,
    draw_parent,
    evolve,
    most_frequent_survivors,
    update_archive,
)
from dera_jax.decoding.best_of_n import best_of_n
from dera_jax.decoding.evolution import Evolution, EvolutionRules, generation
from dera_jax.decoding.mutation import Offspring, Unchanged
from dera_jax.decoding.replacement import draw_donors, replacement
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import length_mask, pad_sequences, sequence_keys
from dera_jax.models.tabular import TabularLM
from dera_jax.prompts import Prompt
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.rewards.tokens import Repetition
from tests.compiled import compiled, start
from tests.decoding import worlds

EOS = worlds.EOS
LETTERS = dict(zip("$abcd", [EOS, 10, 11, 12, 13], strict=True))
OF_ID = {v: k for k, v in LETTERS.items()}
to_text = lambda ids: "".join(OF_ID[i] for i in ids)

# Who writes what, at each of six positions, and the rewards of what there is to score. Periods of
# two tokens; the two best survive.
WRITTEN = ["aaaaaa", "bbb$bb", "cccccc", "dddddd"]
REWARDS = {
    # a tie of b and d, and of a and c: the lower index is better
    "aa": 1, "bb": 3, "cc": 1, "dd": 3,
    # c's tie with a, once more; b has ended
    "ddaa": 2, "bbb$": 5, "bbcc": 2, "dddd": 1,
    "ddaaaa": 4, "ddaadd": 6,
    # before them: the seed's text
    "cccc$": 5,
}  # fmt: skip
# Of the best two, the better (0) or the other (1), for every individual; read where one is replaced.
DRAWS = {2: [1, 0, 0, 1], 4: [1, 1, 0, 1], 6: [0, 0, 0, 0]}


@dataclasses.dataclass(frozen=True)
class FourPrompts:
    """Mutates anything into the prompts 0 to 3."""

    def __call__(self, parents, number, keys):
        none = np.zeros(len(parents), int)
        return Offspring([[Prompt(str(i)) for i in range(number)] for _ in parents], none, none)


@pytest.fixture(scope="module")
def by_hand():
    """`evolve` of one input with the draws above."""
    script = np.array([[LETTERS[x] for x in text] for text in [*WRITTEN, "cccc$c"]])
    reward = HostReward(lambda documents, texts: [REWARDS[text] for text in texts])
    scorer, document = RewardScorer(reward, None, to_text), worlds.whole([[4]])
    questions = EvolutionInputs(
        prompts=[Prompt("4")],
        encode=lambda rows: worlds.each([[[int(x.document), 9] for x in row] for row in rows]),
        example_ids=np.array([7]),
        guide=Guide(scorer, Source(document), ["the seed"]),
    )
    evolution = Evolution(Sampling(6), population=4, period=2, survivors=2)
    model = worlds.Script(16)  # no other test's, as it is compiled with these draws
    with pytest.MonkeyPatch.context() as patch:
        given = jnp.array(list(DRAWS.values()))
        patch.setattr(
            module, "draw_donors", lambda keys, steps, survivors: given[steps // 2 - 1][None]
        )
        return evolve(model, script, questions, 0, evolution, FourPrompts())


def texts_of(found, b=0):
    rows = zip(found.texts.tokens[b], found.texts.lengths[b], strict=True)
    return [to_text(tokens[:length].tolist()) for tokens, length in rows]


def test_a_population_worked_out_by_hand(by_hand):
    lived = by_hand.generations[0]
    found, history = lived.found, lived.found.history
    rewards = [[1, 3, 1, 3], [2, 5, 2, 1], [4, 5, 5, 6]]
    np.testing.assert_array_equal(history.rewards[0].T, rewards)
    survived = [{1, 3}, {1, 0}, {3, 1}]
    assert [set(np.flatnonzero(x)) for x in history.survived[0].T] == survived
    ended = [set(), {1}, {0, 1, 2, 3}]
    assert [set(np.flatnonzero(x)) for x in history.ended[0].T] == ended
    np.testing.assert_array_equal(history.donors[0].T, [[3, 1, 1, 3], [0, 1, 1, 0], [0, 1, 2, 3]])
    # c adopted the text of b, which has ended, and so ended too.
    assert texts_of(found) == ["ddaaaa", "bbb$", "bbb$", "ddaadd"]
    np.testing.assert_array_equal(found.rewards, [[4, 5, 5, 6]])
    np.testing.assert_array_equal(found.texts.finished, [[False, True, True, False]])
    assert to_text_with_gaps(found.written[0]) == ["aaaaaa", "bbb$__", "cccc__", "dddddd"]
    # 4 x 2 tokens, 2 adopted texts of 2, 4 x 2, 1 of 4 (c's needs no reading), 2 x 2.
    assert found.forward_tokens.tolist() == [8 + 4 + 8 + 4 + 4] and found.rounds.tolist() == [3]


def to_text_with_gaps(rows):
    return ["".join(OF_ID.get(i, "_") for i in row.tolist()) for row in rows]


def test_an_archive_worked_out_by_hand(by_hand):
    lived = by_hand.generations[0]
    assert lived.offered == [[1, 3]]  # three times and twice among the survivors
    assert lived.parent_rewards == [5.0] and lived.parents == [Prompt("4")]
    # b's 5 is not above the parent's 5, d's 6 is; it differs from the parent, which leaves.
    assert lived.archives == [{Prompt("3"): 6.0}]
    best = by_hand.best
    assert to_text(best.tokens[0][: best.lengths[0]]) == "ddaadd" and best.rewards.tolist() == [6]
    seeds = by_hand.seeds
    assert to_text(seeds.tokens[0][: seeds.lengths[0]]) == "cccc$" and seeds.rewards.tolist() == [5]


def plain_replacement(rewards, ended, drawn, survivors):
    """The rule in plain Python."""
    order = sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))[:survivors]
    keeps = lambda i: i in order or ended[i]
    return [i in order for i in range(len(rewards))], [
        i if keeps(i) else order[drawn[i]] for i in range(len(rewards))
    ]


def test_replacement_is_the_rule_with_many_ties():
    rng = np.random.default_rng(0)
    n, k = 6, 3
    rewards = rng.integers(0, 3, (200, n)).astype(np.float32)
    ended, drawn = rng.random((200, n)) < 0.3, rng.integers(0, k, (200, n))
    survived, donors = replacement(rewards, ended, drawn, k)
    for b in range(200):
        expected = plain_replacement(rewards[b], ended[b], drawn[b], k)
        assert (survived[b].tolist(), donors[b].tolist()) == expected


def test_draws_are_uniform_and_each_individuals_own():
    keys = sequence_keys(0, np.arange(500), np.arange(6))
    drawn = np.asarray(draw_donors(keys, 4, 3))
    assert stats.chisquare(np.bincount(drawn.ravel())).pvalue > 1e-3
    np.testing.assert_array_equal(draw_donors(keys[7:9, 2:], 4, 3), drawn[7:9, 2:])
    assert np.any(draw_donors(keys, 8, 3) != drawn)  # another period, another draw
    assert np.any(drawn[:, 0] != drawn[:, 1])


def test_the_best_enter_the_archive_and_the_parent_leaves():
    a, b, c = Prompt("a"), Prompt("b"), Prompt("c")
    archive = {a: 1.0, b: 0.0}
    assert update_archive(archive, a, [(c, 1.0), (b, 0.5)]) == archive  # not above the parent's
    assert update_archive(archive, a, [(c, 2.0), (b, 0.5)]) == {b: 0.0, c: 2.0}
    assert update_archive(archive, a, [(c, 2.0), (b, 3.0)]) == {b: 3.0, c: 2.0}
    assert update_archive(archive, a, [(a, 2.0)]) == {a: 2.0, b: 0.0}  # itself, and stays
    assert update_archive(archive, a, [(a, 2.0), (c, 1.5)]) == {b: 0.0, c: 1.5}
    assert archive == {a: 1.0, b: 0.0}


def test_who_survived_most_often_is_offered():
    survived = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]], bool)
    assert most_frequent_survivors(survived) == [3, 1]  # individual 2 did so as often as 1
    assert most_frequent_survivors(survived[:1] & False) == []  # nobody did
    assert most_frequent_survivors(np.array([[0, 0], [1, 1]], bool)) == [1]


def test_parents_are_drawn_uniformly():
    archive = {Prompt(x): 0.0 for x in "abc"}
    keys = sequence_keys(0, np.arange(600), [-1])[:, 0]
    drawn = [draw_parent(archive, key).document for key in keys]
    assert stats.chisquare([drawn.count(x) for x in "abc"]).pvalue > 1e-3
    assert drawn[5] == draw_parent(archive, keys[5]).document


# A pair of T5 models, four inputs and a reward that texts of random models have more or less of.
N, T = 3, 12
SAMPLING = Sampling(T, temperature=0.9, top_k=40)
REWARD = Repetition()


@pytest.fixture(scope="module")
def pair():
    model, params, prompts, _ = worlds.realigned_t5(whole=True)
    return model, params, prompts.replace(lam=None)


def questions_of(prompts, ids, lam):
    """Every prompt is the number of one of `prompts`."""

    def encode(rows):
        at = np.array([[int(x.document) for x in row] for row in rows])
        lams = np.full((*at.shape, 1), lam, np.float32)
        return jax.tree.map(lambda x: x[at], prompts).replace(lam=lams)

    batch = len(prompts.tokens)
    return EvolutionInputs(
        prompts=[Prompt(str(i)) for i in range(batch)],
        encode=encode,
        example_ids=np.asarray(ids),
        guide=guide_of(prompts),
    )


def guide_of(prompts):
    return Guide(RewardScorer(REWARD, None, to_text), Source(prompts))


def populations(prompts, lam=0.5):
    """Prompts [B, N, ...]: others as mutations, at one λ; keys [B, N] of the individuals."""
    turned = lambda x: np.stack([np.roll(x, i, axis=0) for i in range(N)], axis=1)
    mutated = jax.tree.map(turned, prompts)
    keys = sequence_keys(0, np.arange(len(prompts.tokens)), 1 + np.arange(N))
    return mutated.replace(lam=np.full((*keys.shape, 1), lam, np.float32)), keys


@pytest.mark.slow
@pytest.mark.parametrize("generations", [1, 2])
def test_without_mutation_and_replacement_it_is_best_of_n(pair, generations):
    model, params, prompts = pair
    evolution = Evolution(SAMPLING, N, period=T + 3, survivors=1, generations=generations)
    questions = questions_of(prompts, range(4), 0.5)
    found = evolve(model, params, questions, 3, evolution, Unchanged())
    n = 1 + N * generations
    keys = sequence_keys(3, np.arange(4), np.arange(n))
    at = prompts.replace(lam=np.full((4, 1), 0.5, np.float32))
    best = best_of_n(model, params, at, keys, SAMPLING, n, guide_of(prompts))
    np.testing.assert_array_equal(found.best.tokens, best.samples.tokens[:, 0])
    np.testing.assert_array_equal(found.best.lengths, best.samples.lengths[:, 0])
    assert len(set(np.asarray(best.index)[:, 0].tolist())) > 1  # not always the seed's own


@pytest.mark.parametrize("survivors, periods", [(1, 1), (2, 2)])
def test_a_rebuilt_cache_is_the_adopters_instruction_and_the_adopted_text(pair, survivors, periods):
    model, params, prompts = pair
    mutated, keys = populations(prompts)
    sampling = dataclasses.replace(SAMPLING, end_ids=np.array([-1]))
    rules = EvolutionRules(Evolution(sampling, N, period=4, survivors=survivors))
    population = rules.begin(model, params, mutated, keys)
    for period in range(periods):
        population, (written, _, _) = driver._explore(rules, model, params, population)
        rewards = np.random.default_rng(period).random((4, N), np.float32)
        population, _ = driver._settle(rules, model, params, population, rewards)
    texts, steps = np.asarray(population.texts.tokens), 4 * periods
    donors = np.asarray(population.history.donors)[..., periods - 1]
    given = np.take_along_axis(np.asarray(written), donors[..., None], axis=1)
    np.testing.assert_array_equal(texts[..., :T], given)
    adopted = donors != np.arange(N)
    assert adopted.sum() == 4 * (N - survivors)  # with 2 survivors two of three keep their caches
    output, _ = compiled(model, "step")(
        params, population.state, texts[..., steps - 1].reshape(12, 1)
    )
    # ... as a fresh pass computes it, in which the text is followed by anything.
    fresh = start(model, params, jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), mutated))
    longer = np.pad(texts[..., :steps].reshape(12, 1, -1), [(0, 0), (0, 0), (0, 1)])
    logits = compiled(model, "teacher_forced")(params, fresh, longer).logits[:, :, -1]
    np.testing.assert_allclose(output.logits, logits, atol=1e-4)
    # Under the donor's instruction the same text is followed by something else.
    by_member = np.asarray(logits).reshape(4, N, -1)
    donated = np.take_along_axis(by_member, donors[..., None], axis=1)
    assert np.abs(by_member - donated)[adopted].max(axis=-1).min() > 1e-2


# Populations of a table of which every individual has its own input; texts end early and late.
SHORT = Sampling(7)
EVOLUTION = Evolution(SHORT, N, period=3, survivors=1)  # the last period is of one token
TABLE = TabularLM(vocab_size=5, horizon=7, num_inputs=12)


@pytest.fixture(scope="module")
def table():
    return TABLE.init(jax.random.key(3)).at[:, :, EOS].add(-0.5)


def arguments(table, evolution, rows=slice(None)):
    prompts, keys = (
        worlds.each(np.arange(12).reshape(4, N, 1)[rows]),
        sequence_keys(0, np.arange(4), 1 + np.arange(N))[rows],
    )
    return TABLE, table, prompts, keys, evolution


def live(table, evolution, rows=slice(None)):
    guide = guide_of(worlds.whole(np.zeros((4, 1), int)[rows]))
    return jax.tree.map(np.asarray, generation(*arguments(table, evolution, rows), guide))


def in_python():
    """`REWARD` as a Python function, and how many texts each call had."""
    calls = []

    def reward(documents, texts):
        calls.append(len(texts))
        tokens, lengths = pad_sequences([[int(x) for x in text.split()] for text in texts], 7)
        finished = np.any((tokens == EOS) & length_mask(lengths, 7), axis=-1)
        return REWARD(None, None, *(jnp.asarray(x)[None] for x in (tokens, lengths, finished)))[0]

    return HostReward(reward), calls


def live_in_python(table, evolution, documents=4):
    """`live`, with the reward called from Python, given the first documents' texts."""
    reward, calls = in_python()
    scorer = RewardScorer(reward, None, lambda ids: " ".join(map(str, ids)))
    guide = Guide(scorer, Source(worlds.whole(np.zeros((4, 1)))), [""] * documents)
    return jax.device_get(generation(*arguments(table, evolution), guide)), calls


def test_the_reward_may_be_called_from_python(table):
    evolution = dataclasses.replace(EVOLUTION, lookahead=2)
    driver._explore.clear_cache()
    found, calls = live_in_python(table, evolution)
    assert driver._explore._cache_size() == 1  # for the first round as for the others
    expected = live(table, evolution)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert calls == [4 * N] * int(expected.rounds.max())
    assert np.any(expected.history.donors[..., 0] != np.arange(N))


def test_prompts_beyond_the_documents_only_fill_the_batch(table):
    """They are not scored, and change nothing for the others."""
    (found, calls), expected = live_in_python(table, EVOLUTION, documents=3), live(table, EVOLUTION)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:3], y[:3]), found, expected)
    assert set(calls) == {3 * N}
    assert not found.history.rewards[3].any() and expected.history.rewards[3].any()


def test_an_input_lives_as_it_does_alone(table):
    together = live(table, EVOLUTION)
    for b in range(4):
        alone = live(table, EVOLUTION, slice(b, b + 1))
        np.testing.assert_array_equal(alone.texts.tokens[0], together.texts.tokens[b])
        assert alone.rounds[0] == together.rounds[b]
        assert alone.forward_tokens[0] == together.forward_tokens[b]
        upto = together.rounds[b]
        histories = jax.tree.leaves(alone.history), jax.tree.leaves(together.history)
        for ours, theirs in zip(*histories, strict=True):
            np.testing.assert_array_equal(ours[0, :, :upto], theirs[b, :, :upto])
    assert len(set(together.rounds.tolist())) > 1  # some were over before others


def test_a_lookahead_is_judged_and_thrown_away(table):
    never = dataclasses.replace(EVOLUTION, sampling=SHORT.replace(end_ids=(-1,)))
    plain, looked = live(table, never), live(table, dataclasses.replace(never, lookahead=5))
    # The first period's texts are the same, their rewards and what comes of them are not.
    np.testing.assert_array_equal(plain.written[..., :3], looked.written[..., :3])
    assert np.any(plain.history.rewards[..., 0] != looked.history.rewards[..., 0])
    # Two of three adopt texts of 3 and 6 tokens. There are 4 and 1 tokens left to look ahead, of 5.
    read = 3 * 7 + 2 * (3 + 6)
    assert plain.forward_tokens.tolist() == [read] * 4
    assert looked.forward_tokens.tolist() == [read + 3 * (4 + 1)] * 4
    texts = looked.texts
    last = REWARD(None, None, texts.tokens, texts.lengths, texts.finished)
    np.testing.assert_allclose(looked.rewards, last, atol=1e-6)


def test_new_values_compile_nothing(table):
    live(table, EVOLUTION)
    before = driver._compiled._cache_size()
    live(table, EVOLUTION.replace(generations=7, sampling=SHORT.replace(temperature=0.5)))
    assert driver._compiled._cache_size() == before


@pytest.mark.parametrize(
    "changed, sentence",
    [
        (
            {"survivors": 3},
            r"survivors must be an integer in \[1, 3\), below the population; found 3",
        ),
        ({"survivors": 0}, r"survivors must be an integer in \[1, 3\)"),
        ({"period": 0}, "period must be an integer of at least 1; found 0"),
        ({"population": 1}, "population must be an integer of at least 2"),
        ({"lookahead": 7}, r"lookahead must be an integer in \[0, 7\), below max_length; found 7"),
        ({"generations": 0}, "generations must be an integer of at least 1"),
        ({"sampling": Sampling(7, temperature=0.0)}, "temperature must be a finite number above 0"),
        ({"sampling": Sampling(7, temperature=np.ones(3))}, "one number for each setting"),
        ({"population": 4}, r"a population of 4 needs prompts.tokens \[B, N, S\]"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(table, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        live(table, dataclasses.replace(EVOLUTION, **changed))
