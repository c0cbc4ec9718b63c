"""Implements DARWIN: generations of mutated instructions, with an archive of good instructions.

The archive starts with the seed instruction and the reward of one output sampled under it. Each
generation draws a parent instruction from the archive, the mutator makes N instructions of it, and
a population decodes under them (see `evolution`). Then the two individuals that were among the
survivors most often are offered to the archive. Their instructions enter if the reward of the
individual's final sequence exceeds the parent's reward; the parent is removed if an instruction
entered that differs from it. The output is the best sequence of all generations, or the seed's.

Source: Hung et al. 2024 (arXiv 2406.15193); rules that the paper leaves open follow its authors'
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
class EvolutionInputs:
    """B inputs of evolutionary decoding.

    Attributes:
        prompts: B prompts with their seed instructions.
        encode: function that encodes B x N prompts for the model, as `Prompts` with leaves
            [B, N, ...]; for a mixture with λ [B, N, 1].
        example_ids: int [B], see `sequence_keys`.
        guide: the reward, with the documents under their seed instruction.
    """

    prompts: Sequence[Prompt]
    encode: Callable[[Sequence[Sequence[Prompt]]], Prompts]
    example_ids: np.ndarray
    guide: Guide

    def __post_init__(self):
        """Raises ValueError unless there are B example ids and a guide for B documents."""
        batch = len(self.prompts)
        checks.check_array(
            "EvolutionInputs.example_ids", self.example_ids, "ids", np.integer, B=batch
        )
        self.guide.check(batch)


@dataclasses.dataclass(frozen=True)
class EvolvedOutputs:
    """Outputs of B inputs: int32 tokens [B, T], lengths [B]; bool finished [B]; rewards [B]."""

    tokens: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    rewards: np.ndarray


@dataclasses.dataclass(frozen=True)
class EvolvedGeneration:
    """A generation of B populations and its effect on the archives.

    Attributes:
        parents: the B prompts that were mutated.
        parent_rewards: B rewards of the parents in the archives, which offered individuals must exceed.
        offspring: the mutated prompts under which the individuals decoded.
        found: the populations' sequences, rewards and history, as NumPy arrays.
        offered: for each input, the individuals offered to its archive.
        archives: the B archives after the generation, which map prompts to rewards.
    """

    parents: Sequence[Prompt]
    parent_rewards: Sequence[float]
    offspring: Offspring
    found: Generation
    offered: Sequence[Sequence[int]]
    archives: Sequence[Mapping[Prompt, float]]


@dataclasses.dataclass(frozen=True)
class Evolved:
    """The results of evolutionary decoding for B inputs.

    Attributes:
        best: the output with the highest reward for each input.
        seeds: the outputs sampled under the seed instructions.
        generations: the generations in order.
        read: int [B], tokens of all prompts that the model prefilled.
    """

    best: EvolvedOutputs
    seeds: EvolvedOutputs
    generations: Sequence[EvolvedGeneration]
    read: np.ndarray


def evolve(
    model: LanguageModel,
    params: PyTree,
    questions: EvolutionInputs,
    seed: int,
    evolution: Evolution,
    mutator: Mutator,
) -> Evolved:
    """Runs evolutionary decoding (DARWIN) and returns the best output for each of B inputs.

    For `sequence_keys`, an input's sample under its seed instruction has number 0, and individual i
    of generation g has number 1 + g·N + i. Without mutation, and with a period no shorter than the
    sequences, the output is therefore that of best-of-n with n = 1 + N·generations.

    Args:
        model: any language model; a `Realigned` one combines its components by the prompts' λ.
        params: the model's parameters.
        questions: the B inputs and the reward.
        seed: the seed of all PRNG keys.
        evolution: the settings.
        mutator: makes the instructions of a generation from their parent.

    Raises:
        ValueError, FloatingPointError: as `sample`, `generation`, the mutator and the reward.
    """
    check_evolution(evolution, model.vocab_size, questions.guide.scorer.reward)
    seed = checks.check("seed", seed, checks.SEED)
    n, ids = evolution.population, questions.example_ids
    prompts = questions.encode([[prompt] for prompt in questions.prompts])
    check_padded("the result of encode", prompts, least=1, B=len(ids), N=1, S=None)
    read = np.sum(prompts.lengths, axis=1)
    prompts = jax.tree.map(lambda x: x[:, 0], prompts)
    samples = sample(model, params, prompts, sequence_keys(seed, ids, [0]), evolution.sampling)
    best = seeds = _seed_outputs(questions.guide, samples)
    archives = [{p: float(r)} for p, r in zip(questions.prompts, seeds.rewards, strict=True)]
    generations = []
    for g in range(int(evolution.generations)):
        keys = sequence_keys(seed, ids, [-1 - 2 * g, -2 - 2 * g])  # below all sample numbers
        parents = [draw_parent(*pair) for pair in zip(archives, keys[:, 0], strict=True)]
        offspring = mutator(parents, n, keys[:, 1])
        prompts = questions.encode(offspring.children)
        read = read + np.sum(prompts.lengths, axis=1)
        keys = sequence_keys(seed, ids, 1 + g * n + np.arange(n))
        output = generation(model, params, prompts, keys, evolution, questions.guide)
        evolved = _update_archives(archives, parents, offspring, jax.tree.map(np.asarray, output))
        best, archives = _update_best(best, output), evolved.archives
        generations.append(evolved)
    return Evolved(best, seeds, generations, read)


def _seed_outputs(guide: Guide, samples: Samples) -> EvolvedOutputs:
    candidates = samples.tokens, samples.lengths, samples.finished
    rewards, _ = guide.score(candidates)
    check_rewards(rewards, guide.scorer.reward)
    return EvolvedOutputs(*(np.asarray(x)[:, 0] for x in (*candidates, rewards)))


def _update_archives(
    archives, parents, offspring: Offspring, output: Generation
) -> EvolvedGeneration:
    """Offers the most frequent survivors of a generation to the archives."""
    updated, all_offered = [], []
    for b, (archive, parent) in enumerate(zip(archives, parents, strict=True)):
        offered = most_frequent_survivors(output.history.survived[b, :, : output.rounds[b]])
        rewards = [(offspring.children[b][i], float(output.rewards[b, i])) for i in offered]
        updated.append(update_archive(archive, parent, rewards))
        all_offered.append(offered)
    bars = [archive[parent] for archive, parent in zip(archives, parents, strict=True)]
    return EvolvedGeneration(parents, bars, offspring, output, all_offered, updated)


def draw_parent(archive: Mapping[Prompt, float], key: Array) -> Prompt:
    """Draws one of the archive's prompts uniformly."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return list(archive)[rng.integers(len(archive))]


def most_frequent_survivors(survived: np.ndarray) -> list[int]:
    """Returns the (at most) two individuals that survived[N, P] most often, and at least once."""
    counts = np.sum(survived, axis=-1)
    order = np.argsort(-counts, kind="stable")[:OFFERED]
    return [int(i) for i in order if counts[i]]


def update_archive(
    archive: Mapping[Prompt, float], parent: Prompt, offered: Sequence[tuple[Prompt, float]]
) -> dict[Prompt, float]:
    """Returns the archive after the offered prompts with rewards above the parent's have entered.

    The parent is removed if a prompt entered that differs from it.
    """
    entered = {prompt: reward for prompt, reward in offered if reward > archive[parent]}
    archive = {**archive, **entered}
    if any(prompt != parent for prompt in entered):
        del archive[parent]
    return archive


def _update_best(best: EvolvedOutputs, output: Generation) -> EvolvedOutputs:
    """Replaces the best outputs so far by those of a generation whose rewards are higher."""
    winner = np.argmax(output.rewards, axis=1)
    pick = lambda x: np.take_along_axis(x, winner.reshape(-1, 1, *[1] * (x.ndim - 2)), 1)[:, 0]
    final = output.texts
    new = EvolvedOutputs(*map(pick, (final.tokens, final.lengths, final.finished, output.rewards)))
    improved = new.rewards > best.rewards
    put = lambda x, old: np.where(improved.reshape(-1, *[1] * (x.ndim - 1)), x, old)
    fields = [field.name for field in dataclasses.fields(EvolvedOutputs)]
    return EvolvedOutputs(*(put(getattr(new, name), getattr(best, name)) for name in fields))
