"""DARWIN's generations: an archive of instructions, their mutation, and the best text of all.

A generation draws its parent from the archive, which begins as the seed instruction with the reward
of one text sampled under it. The mutator makes N instructions of the parent, a population lives
under them (see `evolution`), and the two individuals that were most often among the survivors are
offered to the archive: with the reward of its last text each enters if that is above the parent's,
and the parent leaves if one entered that differs from it. The answer is the best text there was,
the seed's included.

Source: Hung et al. 2024 (arXiv 2406.15193), and where the paper leaves a rule open its authors'
release. Ties go to the lower index.

Axes: B inputs, N individuals, S input length, T output length.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.decoding.evolution import Evolution, Generation, check_evolution, generation
from dera_jax.decoding.mutation import Mutator, Offspring
from dera_jax.decoding.sampling import Samples, sample
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import (
    LanguageModel,
    Prompts,
    PyTree,
    check_padded,
    sequence_keys,
)
from dera_jax.prompts import Prompt
from dera_jax.rewards.protocol import check_rewards

OFFERED = 2  # individuals of a generation that may enter the archive


@dataclasses.dataclass(frozen=True)
class Questions:
    """B inputs to be answered.

    Attributes:
        prompts: B, with their seed instructions.
        encode: B x N prompts as the model reads them, leaves [B, N, ...]; for a mixture with λ
            [B, N, 1].
        example_ids: int [B], see `sequence_keys`.
        guide: the reward, with the documents under their seed instruction.
    """

    prompts: Sequence[Prompt]
    encode: Callable[[Sequence[Sequence[Prompt]]], Prompts]
    example_ids: np.ndarray
    guide: Guide

    def __post_init__(self):
        """Raises ValueError unless there are B ids, and a guide for B documents."""
        batch = len(self.prompts)
        checks.check_array("Questions.example_ids", self.example_ids, "ids", np.integer, B=batch)
        self.guide.check(batch)


@dataclasses.dataclass(frozen=True)
class Answers:
    """A text for each input: int32 tokens [B, T], lengths [B]; bool finished [B]; rewards [B]."""

    tokens: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    rewards: np.ndarray


@dataclasses.dataclass(frozen=True)
class Lived:
    """A generation of B populations, and what came of it.

    Attributes:
        parents: B prompts that were mutated.
        bars: B, the rewards that the archives held for them.
        offspring: the prompts under which the individuals lived.
        found: as NumPy arrays.
        offered: for each input the individuals offered to its archive.
        archives: B archives after that, reward by prompt.
    """

    parents: Sequence[Prompt]
    bars: Sequence[float]
    offspring: Offspring
    found: Generation
    offered: Sequence[Sequence[int]]
    archives: Sequence[Mapping[Prompt, float]]


@dataclasses.dataclass(frozen=True)
class Evolved:
    """What B evolutions found.

    Attributes:
        best: the answers.
        seeds: the texts they began with, sampled under the seed instructions.
        generations: in order.
        read: int [B], tokens of all prompts, for the model's encoder.
    """

    best: Answers
    seeds: Answers
    generations: Sequence[Lived]
    read: np.ndarray


def evolve(
    model: LanguageModel,
    params: PyTree,
    questions: Questions,
    seed: int,
    evolution: Evolution,
    mutator: Mutator,
) -> Evolved:
    """Answers B inputs.

    An input's sample number 0 is the sequence of its seed instruction, number 1 + g·N + i that of
    individual i in generation g. So without mutation, and with a period no shorter than the
    sequences, the answer is that of best-of-n with n = 1 + N·generations.

    Args:
        model: any language model; a `Realigned` one mixes by the prompts' λ.
        params: its parameters.
        questions: what to answer.
        seed: of all draws.
        evolution: the settings.
        mutator: of instructions.

    Raises:
        ValueError, FloatingPointError: as `sample`, `generation`, the mutator and the reward.
    """
    check_evolution(evolution, model.vocab_size, questions.guide.judge.reward)
    seed = checks.check("seed", seed, checks.SEED)
    n, ids = evolution.population, questions.example_ids
    prompts = questions.encode([[prompt] for prompt in questions.prompts])
    check_padded("the result of encode", prompts, least=1, B=len(ids), N=1, S=None)
    read = np.sum(prompts.lengths, axis=1)
    own = jax.tree.map(lambda x: x[:, 0], prompts)
    begun = sample(model, params, own, sequence_keys(seed, ids, [0]), evolution.sampling)
    best = seeds = _score_first(questions.guide, begun)
    archives = [{p: float(r)} for p, r in zip(questions.prompts, seeds.rewards, strict=True)]
    generations = []
    for g in range(int(evolution.generations)):
        keys = sequence_keys(seed, ids, [-1 - 2 * g, -2 - 2 * g])  # of no sample's number
        parents = [draw_parent(*each) for each in zip(archives, keys[:, 0], strict=True)]
        offspring = mutator(parents, n, keys[:, 1])
        prompts = questions.encode(offspring.children)
        read = read + np.sum(prompts.lengths, axis=1)
        keys = sequence_keys(seed, ids, 1 + g * n + np.arange(n))
        found = generation(model, params, prompts, keys, evolution, questions.guide)
        lived = _lived(archives, parents, offspring, jax.tree.map(np.asarray, found))
        best, archives = _better(best, found), lived.archives
        generations.append(lived)
    return Evolved(best, seeds, generations, read)


def _score_first(guide: Guide, begun: Samples) -> Answers:
    texts = begun.tokens, begun.lengths, begun.finished
    rewards, _ = guide.score(texts)
    check_rewards(rewards, guide.judge.reward)
    return Answers(*(np.asarray(x)[:, 0] for x in (*texts, rewards)))


def _lived(archives, parents, offspring: Offspring, found: Generation) -> Lived:
    """The archives after a generation."""
    after, all_offered = [], []
    for b, (archive, parent) in enumerate(zip(archives, parents, strict=True)):
        offered = most_often(found.history.survived[b, :, : found.rounds[b]])
        rewards = [(offspring.children[b][i], float(found.rewards[b, i])) for i in offered]
        after.append(enter(archive, parent, rewards))
        all_offered.append(offered)
    bars = [archive[parent] for archive, parent in zip(archives, parents, strict=True)]
    return Lived(parents, bars, offspring, found, all_offered, after)


def draw_parent(archive: Mapping[Prompt, float], key: Array) -> Prompt:
    """One of the archive's instructions, all as likely."""
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return list(archive)[draw.integers(len(archive))]


def most_often(survived: np.ndarray) -> list[int]:
    """The two individuals that survived[N, P] most often, the oftener first; only who did at all."""
    times = np.sum(survived, axis=-1)
    order = np.argsort(-times, kind="stable")[:OFFERED]
    return [int(i) for i in order if times[i]]


def enter(
    archive: Mapping[Prompt, float], parent: Prompt, offered: Sequence[tuple[Prompt, float]]
) -> dict[Prompt, float]:
    """The archive after instructions and rewards were offered to it."""
    entered = {prompt: reward for prompt, reward in offered if reward > archive[parent]}
    archive = {**archive, **entered}
    if any(prompt != parent for prompt in entered):
        del archive[parent]
    return archive


def _better(best: Answers, found: Generation) -> Answers:
    """The best text of each population, where it is better than the best so far."""
    winner = np.argmax(found.rewards, axis=1)
    pick = lambda x: np.take_along_axis(x, winner.reshape(-1, 1, *[1] * (x.ndim - 2)), 1)[:, 0]
    texts = found.texts
    new = Answers(*map(pick, (texts.tokens, texts.lengths, texts.finished, found.rewards)))
    improved = new.rewards > best.rewards
    put = lambda x, old: np.where(improved.reshape(-1, *[1] * (x.ndim - 1)), x, old)
    fields = [field.name for field in dataclasses.fields(Answers)]
    return Answers(*(put(getattr(new, name), getattr(best, name)) for name in fields))
