"""DARWIN as one writes it first: Python lists, one document, every period from the beginning.

Hung et al. 2024 (arXiv 2406.15193) on the rules of its authors' release. Whoever goes on with texts
is given whole texts: the model encodes their instructions and reads the texts anew in every period,
with a cache within the period only. It is here as the reference that the compiled populations are
tested against, and as the Python loop to time them beside. Its random draws are theirs, so the
texts must be the same.

Axes: N individuals, S prompt length, T output length, V vocabulary, M aligned models.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax.decoding.evolution import Evolution
from dera_jax.decoding.mutation import Mutator, Prompt
from dera_jax.decoding.sampling import Sampling, sampling_logits
from dera_jax.models.language_model import LanguageModel, Output, Prompts, PyTree, State

Text = list[int]
TextRewards = Callable[[list[Text], list[bool]], Sequence[float]]
Write = Callable[[list[Text], Array, int], list[Text]]

_AHEAD, _DONOR = 2**30, 2**30 + 1  # what replacement.py folds into a key


@dataclasses.dataclass(frozen=True)
class Round:
    """A period and the replacement at its end.

    Attributes:
        before, written, scored: the N texts at its start, at its end, and with their lookahead.
        ended: whether each text of `written` has ended.
        rewards: of `scored`.
        best: the survivors, best first.
        donors: the individual whose text each goes on with.
    """

    before: list[Text]
    written: list[Text]
    scored: list[Text]
    ended: list[bool]
    rewards: list[float]
    best: list[int]
    donors: list[int]

    @property
    def calls(self) -> list[dict[int, Text]]:
        """The texts that became longer, by individual: in the period, and in the lookahead."""
        return [_grown(self.before, self.written), _grown(self.written, self.scored)]


def _grown(before: list[Text], after: list[Text]) -> dict[int, Text]:
    return {i: x for i, x in enumerate(after) if len(x) > len(before[i])}


@dataclasses.dataclass(frozen=True)
class Population:
    """N texts that have all ended, their rewards, and how they came about."""

    texts: list[Text]
    rewards: list[float]
    rounds: list[Round]

    @property
    def fed(self) -> int:
        """Tokens fed to the decoder: in every call the start token and a text's tokens but the
        last."""
        return sum(len(text) for one in self.rounds for call in one.calls for text in call.values())

    @property
    def encoded(self) -> list[int]:
        """How often each individual's instruction was encoded."""
        calls = [call for one in self.rounds for call in one.calls]
        return [sum(i in call for call in calls) for i in range(len(self.texts))]


def generation(write: Write, reward: TextRewards, keys: Array, evolution: Evolution) -> Population:
    """Lets a population live until all its texts have ended.

    Args:
        write: N texts, keys [N] and a number -> the texts continued by so many tokens, but not
            beyond their ends.
        reward: texts, and whether each ends in an end token -> a reward for each.
        keys: [N], of the individuals.
        evolution: its `generations` are not read.
    """
    texts, sampling = [[] for _ in range(evolution.population)], evolution.sampling
    rewards, rounds = [], []
    while not all(ends(text, sampling) for text in texts):
        before, steps = texts, evolution.period * (len(rounds) + 1)
        written = write(before, keys, evolution.period)
        scored = written
        if evolution.lookahead:
            scored = write(written, ahead(keys, steps), evolution.lookahead)
        scores = [float(x) for x in reward(scored, [complete(x, sampling) for x in scored])]
        ended, drawn = [ends(x, sampling) for x in written], draws(keys, steps, evolution)
        best, donors = replacement(scores, ended, drawn, evolution.survivors)
        texts, rewards = [written[i] for i in donors], [scores[i] for i in donors]
        rounds.append(Round(before, written, scored, ended, scores, best, donors))
    return Population(texts, rewards, rounds)


def replacement(
    rewards: list[float], ended: list[bool], drawn: list[int], survivors: int
) -> tuple[list[int], list[int]]:
    """The best, and whose text each goes on with: of equal rewards the lower index is better."""
    ranked = sorted(range(len(rewards)), key=lambda i: rewards[i], reverse=True)  # stable
    best, donors = ranked[:survivors], []
    for i in range(len(rewards)):
        stays = i in best or ended[i]
        donors.append(i if stays else best[drawn[i]])
    return best, donors


def ends(text: Text, sampling: Sampling) -> bool:
    return complete(text, sampling) or len(text) == sampling.max_length


def complete(text: Text, sampling: Sampling) -> bool:
    return bool(text) and text[-1] in np.asarray(sampling.end_ids)


@jax.jit
def ahead(keys: Array, steps: int) -> Array:
    """Keys [N] of the lookahead after so many tokens."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _AHEAD), steps))(keys)


def draws(keys: Array, steps: int, evolution: Evolution) -> list[int]:
    """For each individual one of the best, by its place among them."""
    return _draws(keys, steps, evolution.survivors).tolist()


@jax.jit
def _draws(keys: Array, steps: int, survivors: int) -> Array:
    folded = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _DONOR), steps))(keys)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, survivors))(folded)


@dataclasses.dataclass(frozen=True)
class Writer:
    """`Write` with a model. Whatever has been read is forgotten after a call.

    A call has N rows, those of ended texts included, so that nothing is compiled anew as texts end;
    texts of another length are.

    Attributes:
        model: T5, TabularLM, Realigned.
        params: its parameters.
        prompts: N, each individual's; λ [N, 1] or [N, 1, M] for a realigned model.
        sampling: how to draw, with its end tokens.
    """

    model: LanguageModel
    params: PyTree
    prompts: Prompts
    sampling: Sampling

    def __call__(self, texts: list[Text], keys: Array, num: int) -> list[Text]:
        """See `Write`; the texts that have not ended must be of one length."""
        texts, tokens = [list(text) for text in texts], None
        for _ in range(num):
            going = self._going(texts)
            if not going:
                break
            if tokens is None:
                scores, state = self.read(texts, keys)
            else:
                scores, state = _step(self.model, self.params, state, tokens, keys, self.sampling)
            tokens = np.argmax(scores, axis=-1)
            for i in going:
                texts[i].append(int(tokens[i]))
        return texts

    def read(self, texts: list[Text], keys: Array) -> tuple[Array, State]:
        """Scores [N, V] of the next tokens, of which the highest is drawn, and the state."""
        going = self._going(texts)
        before = np.zeros((len(texts), len(texts[going[0]])), np.int32)
        before[going] = [texts[i] for i in going]
        return _read(self.model, self.params, self.prompts, before, keys, self.sampling)

    def _going(self, texts: list[Text]) -> list[int]:
        return [i for i, text in enumerate(texts) if not ends(text, self.sampling)]


@functools.partial(jax.jit, static_argnames="model")
def _read(
    model: LanguageModel,
    params: PyTree,
    prompts: Prompts,
    before: Array,
    keys: Array,
    sampling: Sampling,
) -> tuple[Array, State]:
    """The first token and those of before[N, n], under their instructions."""
    state = model.start(params, prompts, 1, sampling.max_length)
    fed = jnp.concatenate([state.first_token[:, None], before], axis=1)
    output, state = model.extend(params, state, fed[:, None])
    return _scores(output, state, keys, sampling), state


@functools.partial(jax.jit, static_argnames="model")
def _step(
    model: LanguageModel,
    params: PyTree,
    state: State,
    tokens: Array,
    keys: Array,
    sampling: Sampling,
) -> tuple[Array, State]:
    output, state = model.step(params, state, tokens[:, None])
    return _scores(output, state, keys, sampling), state


def _scores(output: Output, state: State, keys: Array, sampling: Sampling) -> Array:
    """float32 [N, V]: the logits to sample from and the noise of keys[N] at this slot."""
    slot = state.position - 1  # of the token fed last, as many as a text has
    lengths = jnp.broadcast_to(slot, output.logits.shape[:2])
    sampling = sampling.replace(end_ids=jnp.asarray(sampling.end_ids))
    logits = sampling_logits(output.logits, lengths, sampling)[:, 0]
    noise = lambda key: jax.random.gumbel(jax.random.fold_in(key, slot), logits.shape[-1:])
    return logits + jax.vmap(noise)(keys)


@dataclasses.dataclass(frozen=True)
class EvolvedGeneration:
    """A generation.

    Attributes:
        parent: what was mutated.
        children: N prompts.
        found: the population that lived under them.
        offered: individuals offered to the archive.
        archive: reward by prompt, after that.
    """

    parent: Prompt
    children: Sequence[Prompt]
    found: Population
    offered: list[int]
    archive: Mapping[Prompt, float]


@dataclasses.dataclass(frozen=True)
class Evolved:
    """The best text, its reward, and the generations."""

    text: Text
    reward: float
    generations: list[EvolvedGeneration]


def evolve(
    writer: Callable[[Sequence[Prompt]], Write],
    reward: TextRewards,
    seed: Prompt,
    mutator: Mutator,
    keys: Callable[[Sequence[int]], Array],
    evolution: Evolution,
) -> Evolved:
    """Answers one prompt.

    Args:
        writer: of texts under prompts.
        reward: see `generation`.
        seed: the prompt.
        mutator: of prompts.
        keys: the prompt's keys [K] of K sequence numbers.
        evolution: how.
    """
    sampling, n = evolution.sampling, evolution.population
    (text,) = writer([seed])([[]], keys([0]), sampling.max_length)
    (value,) = reward([text], [complete(text, sampling)])
    best, archive, generations = (text, float(value)), {seed: float(value)}, []
    for g in range(int(evolution.generations)):
        parent = drawn_parent(archive, keys([-1 - 2 * g])[0])
        children = mutator([parent], n, keys([-2 - 2 * g])).children[0]
        own = keys([1 + g * n + i for i in range(n)])
        found = generation(writer(children), reward, own, evolution)
        for text, value in zip(found.texts, found.rewards, strict=True):
            if value > best[1]:
                best = text, value
        offered = oftenest(found)
        archive = updated(archive, parent, [(children[i], found.rewards[i]) for i in offered])
        generations.append(EvolvedGeneration(parent, children, found, offered, archive))
    return Evolved(*best, generations)


def drawn_parent(archive: Mapping[Prompt, float], key: Array) -> Prompt:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return list(archive)[rng.integers(len(archive))]


def oftenest(found: Population) -> list[int]:
    """The two that were most often among the best; only who was."""
    survived = [i for one in found.rounds for i in one.best]
    return sorted(sorted(set(survived)), key=survived.count, reverse=True)[:2]


def updated(
    archive: Mapping[Prompt, float], parent: Prompt, offered: list[tuple[Prompt, float]]
) -> dict[Prompt, float]:
    """The archive in which who was offered and is better than the parent has entered."""
    bar, archive, replaced = archive[parent], dict(archive), False
    for prompt, value in offered:
        if value > bar:
            archive[prompt] = value
            replaced = replaced or prompt != parent
    if replaced:
        archive.pop(parent)
    return archive
