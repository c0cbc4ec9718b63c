"""Compiled populations against the plain-Python ones, text by text.

Axes: B inputs, N individuals, T output length, P periods.
"""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import naive_evolution as naive
from dera_jax.decoding import archive, evolution
from dera_jax.decoding.evolution import Evolution
from dera_jax.decoding.mutation import Offspring, Prompt
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import Prompts, sequence_keys
from dera_jax.models.tabular import TabularLM
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import RewardScorer
from tests.decoding import worlds

SIZE = 997  # of a table of rewards
INPUTS = 5  # of a table


@dataclasses.dataclass(frozen=True)
class TableReward(Reward):
    """params[a number of the document, the text and whether it is finished], with many ties."""

    def load(self, resources):
        return np.random.default_rng(0).integers(0, 4, SIZE).astype(np.float32) / 3

    def __call__(self, params, source, tokens, lengths, finished):
        number = finished + 2 * jnp.asarray(source.prompts.tokens)[:, :1]
        for t in range(tokens.shape[-1]):
            longer = (7 * number + tokens[..., t] + 1) % SIZE
            number = jnp.where(t < lengths, longer, number)
        return jnp.asarray(params)[number]


REWARD = TableReward()
TABLE = REWARD.load(None)


def python_reward(document):
    """`TableReward` of a document, as a function of texts."""

    def one(text, finished):
        number = finished + 2 * int(document)
        for token in text:
            number = (7 * number + token + 1) % SIZE
        return TABLE[number]

    return lambda texts, finished: [one(*each) for each in zip(texts, finished, strict=True)]


def random_evolution(seed):
    """Vocabulary, and how to evolve."""
    rng = np.random.default_rng(seed)
    vocab, longest = [(4, 9), (5, 7), (6, 6)][seed % 3]
    length, n = int(rng.integers(longest - 2, longest + 1)), int(rng.integers(2, 7))
    top_k = [None, vocab - 1][seed % 2]
    return vocab, Evolution(
        Sampling(
            length, temperature=float(rng.uniform(0.6, 1.5)), top_k=top_k, end_ids=(worlds.EOS,)
        ),
        population=n,
        period=int(rng.integers(1, 4)) if seed % 4 else length + 1,
        survivors=int(rng.integers(1, n)),
        lookahead=int(rng.integers(0, 4)),
    )


def table(vocab, length, seed=0):
    """A model of INPUTS instructions and its parameters; the end token is rarer than others."""
    model = TabularLM(vocab, length, INPUTS)
    params = model.init(jax.random.key(seed))
    return model, params.at[..., worlds.EOS].add(-1.0)


def compiled(model, params, prompts, keys, settings):
    """As NumPy arrays; the documents are the first individuals' prompts."""
    source = Source(jax.tree.map(lambda x: x[:, 0], prompts))
    guide = Guide(RewardScorer(REWARD, TABLE, str), source)
    found = evolution.generation(model, params, prompts, keys, settings, guide)
    return jax.tree.map(np.asarray, found)


def in_python(model, params, prompts, keys, settings):
    """A population of each document."""
    found = []
    for b in range(len(keys)):
        own = jax.tree.map(lambda x, b=b: x[b], prompts)
        write = naive.Writer(model, params, own, settings.sampling)
        reward = python_reward(prompts.tokens[b, 0, 0])
        found.append(naive.generation(write, reward, keys[b], settings))
    return found


def check_same(found, b, expected, settings):
    """Document b of a compiled generation is the population in Python."""
    assert texts_of(found.texts, b) == expected.texts
    complete = [text[-1] in settings.sampling.end_ids for text in expected.texts]
    assert found.texts.finished[b].tolist() == complete
    assert found.rewards[b].tolist() == expected.rewards
    rounds = found.rounds[b]
    assert rounds == len(expected.rounds)
    history = jax.tree.map(lambda x: x[b, :, :rounds].T.tolist(), found.history)
    assert history.rewards == [one.rewards for one in expected.rounds]
    assert history.ended == [one.ended for one in expected.rounds]
    assert history.donors == [one.donors for one in expected.rounds]
    n = range(settings.population)
    assert history.survived == [[i in one.best for i in n] for one in expected.rounds]
    assert found.written[b].tolist() == written(expected, settings)
    assert found.forward_tokens[b] == forward_tokens(expected, settings)


def texts_of(texts, b):
    rows = zip(texts.tokens[b].tolist(), texts.lengths[b], strict=True)
    assert np.all(
        texts.tokens[b][np.arange(texts.tokens.shape[-1]) >= texts.lengths[b][:, None]] == 0
    )
    return [tokens[:length] for tokens, length in rows]


def written(found, settings):
    """N lists of T tokens: what each wrote itself, where it did; 0 elsewhere."""
    length = settings.sampling.max_length
    rows = [[0] * length for _ in range(settings.population)]
    for one in found.rounds:
        for row, before, after in zip(rows, one.before, one.written, strict=True):
            row[len(before) : len(after)] = after[len(before) :]
    return rows


def forward_tokens(found, settings):
    """By the contract of `Generation.forward_tokens`."""
    drawn = adopted = 0
    for one in found.rounds:
        pairs = zip(one.before, one.scored, strict=True)
        drawn += sum(len(after) - len(before) for before, after in pairs)
        taken = [one.written[donor] for i, donor in enumerate(one.donors) if donor != i]
        adopted += sum(len(x) for x in taken if not naive.ends(x, settings.sampling))
    return drawn + adopted


def events(found, settings):
    """What happened to a population."""
    seen = collections.Counter()
    for one in found.rounds:
        taken = [one.written[donor] for i, donor in enumerate(one.donors) if donor != i]
        done = [naive.ends(x, settings.sampling) for x in taken]
        worst = one.rewards[one.best[-1]]
        outside = set(range(settings.population)) - set(one.best)
        seen["adopted"] += done.count(False)
        seen["adopted an ended text"] += done.count(True)
        seen["ended outside the best"] += sum(one.ended[i] for i in outside)
        seen["tie at the last place"] += any(one.rewards[i] == worst for i in outside)
        seen["lookahead"] += one.scored != one.written
    return seen


def worlds_of(seed, documents=20):
    """The arguments of a generation in a table."""
    vocab, settings = random_evolution(seed)
    model, params = table(vocab, settings.sampling.max_length, seed)
    shape = documents, settings.population
    tokens = np.random.default_rng(seed).integers(0, INPUTS, (*shape, 1)).astype(np.int32)
    keys = sequence_keys(seed, np.arange(documents), np.arange(shape[1]))
    return model, params, Prompts(tokens, np.ones(shape, np.int32)), keys, settings


def compare(arguments):
    """Every document's population; what happened to them all."""
    settings, found, seen = arguments[-1], compiled(*arguments), collections.Counter()
    for b, expected in enumerate(in_python(*arguments)):
        check_same(found, b, expected, settings)
        seen += events(expected, settings)
    return seen


def test_a_population_in_a_table():
    compare(worlds_of(31))


@pytest.mark.slow
def test_populations_in_tables():
    seen = sum((compare(worlds_of(seed)) for seed in (0, 1, 5, 7)), collections.Counter())
    assert len(seen) == 5 and min(seen.values()) >= 30, seen


@pytest.mark.slow
def test_one_population_at_a_time():
    """Nothing is scored after its last replacement, as it is while others go on."""
    model, params, prompts, keys, settings = worlds_of(5)
    for b in range(len(keys)):
        own = jax.tree.map(lambda x, b=b: x[b : b + 1], prompts)
        compare((model, params, own, keys[b : b + 1], settings))


def test_several_end_tokens_end_the_sequences_of_a_population():
    *arguments, settings = worlds_of(31, documents=8)
    sampling = settings.sampling.replace(end_ids=(worlds.EOS, 0))
    compare((*arguments, dataclasses.replace(settings, sampling=sampling)))


@pytest.mark.slow
def test_populations_of_a_pair_of_t5():
    model, params, prompts, _ = worlds.realigned_t5()
    n, prompts = 3, prompts.replace(lam=None)
    mutated = jax.tree.map(
        lambda x: np.stack([np.roll(x, i, axis=0) for i in range(n)], axis=1), prompts
    )
    lam = np.tile(np.array([0.0, 0.5, 2.0], np.float32), (4, 1))[..., None]
    settings = Evolution(
        Sampling(10, temperature=0.9, top_k=40, end_ids=(worlds.EOS,)),
        n,
        3,
        survivors=1,
        lookahead=2,
    )
    keys = sequence_keys(1, np.arange(4), np.arange(n))
    arguments = model, params, mutated.replace(lam=lam), keys, settings
    assert compare(arguments)["adopted"] >= 5


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Mutates the prompt of an input into those of the next ones, and draws where to begin."""

    def __call__(self, parents, number, keys):
        starts = [int(x[-1] % INPUTS) for x in np.asarray(jax.random.key_data(keys))]
        children = [
            [Prompt(str((int(parent.document) + start + i) % INPUTS)) for i in range(number)]
            for parent, start in zip(parents, starts, strict=True)
        ]
        none = np.zeros(len(parents), int)
        return Offspring(children, none, none)


def keys_of(example_id, numbers):
    return sequence_keys(5, example_id[None], numbers)[0]


@pytest.mark.slow
def test_archives():
    generations, ids = 3, np.arange(20, 32)
    settings = Evolution(
        Sampling(6, end_ids=(worlds.EOS,)),
        population=3,
        period=2,
        survivors=1,
        generations=generations,
    )
    model, params = table(4, 7)
    prompts = [Prompt(str(i % INPUTS)) for i in ids]
    documents = np.array([[int(x.document)] for x in prompts])
    encode = lambda rows: worlds.each(np.array([[[int(x.document)] for x in row] for row in rows]))
    guide = Guide(RewardScorer(REWARD, TABLE, str), Source(worlds.whole(documents)))
    questions = archive.EvolutionInputs(prompts, encode, ids, guide)
    found = archive.evolve(model, params, questions, 5, settings, Shifted())

    def writer(prompts):
        own = jax.tree.map(lambda x: x[0], encode([prompts]))
        return naive.Writer(model, params, own, settings.sampling)

    seen = collections.Counter()
    for b, prompt in enumerate(prompts):
        keys = functools.partial(keys_of, ids[b])
        reward = python_reward(documents[b, 0])
        expected = naive.evolve(writer, reward, prompt, Shifted(), keys, settings)
        best = found.best
        assert best.tokens[b][: best.lengths[b]].tolist() == expected.text
        assert best.rewards[b] == expected.reward
        assert len(found.generations) == len(expected.generations) == generations
        for ours, theirs in zip(found.generations, expected.generations, strict=True):
            assert ours.parents[b] == theirs.parent
            assert ours.offspring.children[b] == theirs.children
            check_same(ours.found, b, theirs.found, settings)
            assert ours.offered[b] == theirs.offered
            assert list(ours.archives[b].items()) == list(theirs.archive.items())
            seen["offered one"] += len(theirs.offered) == 1
            seen["of several"] += len(theirs.archive) > 1
            seen["the parent left"] += theirs.parent not in theirs.archive
            seen["the parent stayed"] += theirs.parent in theirs.archive
    assert len(seen) == 4 and min(seen.values()) > 0, seen


def test_what_is_read_and_fed():
    """The second text ends within the first period, so it is not replaced."""
    texts = [[5, 5, 5, 5], [6, worlds.EOS]]
    write = lambda before, keys, num: [texts[i][: len(x) + num] for i, x in enumerate(before)]
    settings = Evolution(Sampling(4, end_ids=(worlds.EOS,)), 2, period=2, survivors=1, lookahead=1)
    reward = lambda texts, finished: [1.0, 0.0]
    found = naive.generation(write, reward, sequence_keys(0, [0], [0, 1])[0], settings)
    assert found.texts == texts
    assert found.encoded == [3, 1]  # twice for the periods, once for a lookahead
    assert found.fed == (2 + 2) + 3 + 4
