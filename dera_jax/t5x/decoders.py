"""Decoding a batch of T5X with this library: one compiled function of (params, tokens).

T5X gives a batch no ids and its key is the same for every run, so randomness comes from a seed of
the decoder's own and, for each example, from a hash of its tokens. A sample then depends neither on
what else is in the batch nor on how many devices or shards there are.

Axes: B inputs, K texts of each, S input length, T output length, V vocabulary, N individuals, P
prefix length.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.decoding.arguments import NO_END
from dera_jax.decoding.beam_search import Search, beam_search, check_search
from dera_jax.decoding.evolution import Evolution, check_evolution, generation
from dera_jax.decoding.realign import LAMBDA, Realigned
from dera_jax.decoding.sampling import Sampling, check_sampling, sample, sweep_rows
from dera_jax.decoding.scores import Tokens, score_tokens
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import Padded, Prompts, PyTree, padded, sequence_keys
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import REWARD, Resources, Reward, Source

_ANY_LENGTH = 2**31 - 1  # T5X gives it with the batch
_MULTIPLIER = 0x9E3779B1  # odd, so that powers of it reach all bits


@struct.dataclass
class Task:
    """What is to be decoded.

    Attributes:
        inputs: int32 [B, S], 0 is padding.
        targets: int32 [B, R], human texts, for rewards that compare with them.
        max_length: static; T.
        end_ids: static; the end tokens.
        resources: static; what rewards read their parameters from.
    """

    inputs: Array
    targets: Array
    max_length: int = struct.field(pytree_node=False)
    end_ids: tuple[int, ...] = struct.field(pytree_node=False)
    resources: Resources = struct.field(pytree_node=False)

    def prompts(self, lam: Array | None = None) -> Prompts:
        """The inputs at λ. T5X's batches have no lengths: 0 is padding."""
        return _unpadded(self.inputs).replace(lam=lam)

    @property
    def source(self) -> Source:
        """T5X knows no documents: here they are the inputs, instruction included, without their end."""
        targets = _unpadded(self.targets)
        prompts, targets = self.prompts(), Padded(targets.tokens, targets.lengths)
        last = jnp.take_along_axis(prompts.tokens, prompts.lengths[:, None] - 1, axis=1)[:, 0]
        ended = jnp.isin(last, jnp.asarray(self.end_ids, jnp.int32))
        document = Padded(prompts.tokens, prompts.lengths - ended)
        return Source(prompts, targets, document=document)

    def guide(self, reward: Reward) -> Guide:
        """The reward for these inputs."""
        return Guide(Judge(reward, reward.load(self.resources), str), self.source)


@struct.dataclass
class Decoded:
    """Texts of each input, and what is known of them.

    Attributes:
        tokens: int32 [B, K, T], 0 after each text.
        aux: by name, each [B, K]: `scores` (log-probability under the mixture),
            `reference_log_prob`, `aligned_log_prob`, `kl` (of the mixture from the reference, summed
            over the text's positions), `length` (the end token included), `finished`, `lam`, and
            `reward` where there is one.
    """

    tokens: Array
    aux: Mapping[str, Array]


class Decoder(Protocol):
    """Decodes a task with a pair of models, inside a compiled function."""

    def __call__(self, model: Realigned, params: PyTree, task: Task) -> Decoded:
        """params: (reference's, aligned's)."""


@dataclasses.dataclass(frozen=True)
class SampleDecoder:
    """Samples at every λ, or the most likely tokens: rows in the order of a sweep.

    Attributes:
        lams: λ values.
        num_samples: at each.
        seed: of all draws.
        temperature, top_k, top_p, greedy: see `decoding.sampling.Sampling`.
        reward: by which the texts are scored afterwards; None for none.
    """

    lams: tuple[float, ...] = (1.0,)
    num_samples: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    reward: Reward | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            lams=checks.several(LAMBDA, "(0.0, 1.0)"),
            num_samples=checks.whole(1),
            seed=checks.SEED,
            reward=checks.optional(REWARD),
        )
        checks.check_distinct("SampleDecoder.lams", self.lams)
        check_sampling(self._sampling(_ANY_LENGTH))

    def _sampling(self, max_length: int, end_ids: tuple[int, ...] = (NO_END,)) -> Sampling:
        truncation = self.top_k, self.top_p
        return Sampling(max_length, self.greedy, self.temperature, *truncation, end_ids=end_ids)

    def __call__(self, model: Realigned, params: PyTree, task: Task) -> Decoded:
        lam, numbers = sweep_rows(self.lams, self.num_samples, len(task.inputs))
        keys = sequence_keys(self.seed, example_ids(task.inputs), numbers)
        sampling = self._sampling(task.max_length, task.end_ids)
        out = sample(model, params, task.prompts(lam), keys, sampling)
        texts = out.tokens, out.lengths, out.finished
        each = np.repeat(lam, self.num_samples, axis=1)
        return _decoded(out.scores, each, texts, _reward_of(self.reward, task, texts))


@dataclasses.dataclass(frozen=True)
class SearchDecoder:
    """Reward-guided beam search (DeAL); texts best last, as T5X's beam search returns them.

    Attributes:
        lam: λ.
        reward: that guides the search; None for plain beam search.
        beams, top_k, lookahead, period, reward_weight, length_penalty: see
            `decoding.beam_search.Search`.
    """

    lam: float = 1.0
    reward: Reward | None = None
    beams: int = 4
    top_k: int = 8
    lookahead: int = 0
    period: int = 1
    reward_weight: float = 0.0
    length_penalty: float = 0.6

    def __post_init__(self):
        checks.check_fields(self, lam=LAMBDA, reward=checks.optional(REWARD))
        check_search(self._search(_ANY_LENGTH), None, self.reward)

    def _search(self, max_length: int, end_ids: tuple[int, ...] = (NO_END,)) -> Search:
        return Search(
            max_length,
            self.beams,
            self.top_k,
            self.lookahead,
            period=self.period,
            reward_weight=self.reward_weight,
            length_penalty=self.length_penalty,
            end_ids=end_ids,
        )

    def __call__(self, model: Realigned, params: PyTree, task: Task) -> Decoded:
        search = self._search(task.max_length, task.end_ids)
        lam = np.full((len(task.inputs), 1), self.lam, np.float32)
        keys = sequence_keys(0, example_ids(task.inputs), [0])
        guide = self.reward and task.guide(self.reward)
        found = beam_search(model, params, task.prompts(lam), keys, search, guide)
        best_last = lambda x: x[:, 0, ::-1]
        tokens, lengths, finished = map(
            best_last, (found.pool.tokens, found.pool.lengths, found.pool.finished)
        )
        decoded = _scored(model, params, task, lam, (tokens, lengths, finished), self.reward)
        return decoded.replace(aux={**decoded.aux, "search_score": best_last(found.scores)})


@dataclasses.dataclass(frozen=True)
class EvolutionDecoder:
    """One generation of evolutionary decoding (DARWIN); the best text of each input.

    Every individual has an instruction of the bank before its input; the text under the input alone
    competes too. Each instruction of the bank is dealt once before any is dealt again.

    Attributes:
        reward: that ranks individuals, always for the input without an instruction of the bank.
        instructions: the bank, texts that are put before an input.
        lam: λ.
        seed: of all draws.
        population, period, survivors, lookahead: see `decoding.evolution.Evolution`.
        temperature, top_k: of its sampling.
    """

    reward: Reward
    instructions: tuple[str, ...]
    lam: float = 1.0
    seed: int = 0
    population: int = 5
    period: int = 40
    survivors: int = 3
    lookahead: int = 0
    temperature: float = 0.7
    top_k: int | None = 40

    def __post_init__(self):
        checks.check_fields(
            self,
            reward=REWARD,
            instructions=checks.several(checks.STRING, "('Summarize: ',)"),
            lam=LAMBDA,
            seed=checks.SEED,
        )
        check_evolution(self._evolution(_ANY_LENGTH))

    def _evolution(self, max_length: int, end_ids: tuple[int, ...] = (NO_END,)) -> Evolution:
        draw = {"temperature": self.temperature, "top_k": self.top_k, "end_ids": end_ids}
        sizes = self.population, self.period, self.survivors, self.lookahead
        return Evolution(Sampling(max_length, **draw), *sizes)

    def __call__(self, model: Realigned, params: PyTree, task: Task) -> Decoded:
        batch, n = len(task.inputs), self.population
        ids = example_ids(task.inputs)
        evolution = self._evolution(task.max_length, task.end_ids)
        sampling = evolution.sampling
        lam = np.full((batch, 1), self.lam, np.float32)
        own_keys = sequence_keys(self.seed, ids, [0])
        seeds = sample(model, params, task.prompts(lam), own_keys, sampling)
        prompts = self._instructed(task, sequence_keys(self.seed, ids, [-2])[:, 0])
        prompts = prompts.replace(lam=np.full((batch, n, 1), self.lam, np.float32))
        keys = sequence_keys(self.seed, ids, 1 + np.arange(n))
        guide = task.guide(self.reward)
        found = generation(model, params, prompts, keys, evolution, guide)
        own = seeds.tokens, seeds.lengths, seeds.finished
        theirs = found.texts.tokens, found.texts.lengths, found.texts.finished
        everyone = [jnp.concatenate(x, axis=1) for x in zip(own, theirs, strict=True)]
        rewards = [_reward_of(self.reward, task, own), found.rewards]
        # Of equals the first, so the seed's text stays unless another is better.
        best = jnp.argmax(jnp.concatenate(rewards, axis=1), axis=1, keepdims=True)
        texts = [jax.vmap(lambda rows, at: rows[at])(x, best) for x in everyone]
        decoded = _scored(model, params, task, lam, texts, self.reward)
        return decoded.replace(aux={**decoded.aux, "individual": best - 1})

    def _instructed(self, task: Task, keys: Array) -> Prompts:
        """[B, N, P + S]: an instruction's tokens, then the input's."""
        encoded = [task.resources.encode(text) for text in self.instructions]
        width = max(map(len, encoded))
        bank = jax.tree.map(jnp.asarray, Prompts(*padded(encoded, width)))
        times = -(-self.population // len(encoded))
        deal = lambda key: jnp.concatenate(
            [jax.random.permutation(key, len(encoded)) for key in jax.random.split(key, times)]
        )
        dealt = jax.vmap(deal)(keys)[:, : self.population]
        join = jax.vmap(jax.vmap(_join, (0, None)))
        return join(jax.tree.map(lambda x: x[dealt], bank), task.prompts())


def _unpadded(ids: Array) -> Prompts:
    return Prompts(ids, jnp.sum(ids > 0, axis=-1, dtype=jnp.int32))


def _join(prefix: Prompts, prompt: Prompts) -> Prompts:
    """[P], [S] -> [P + S]: one after the other, without the padding between them."""
    sizes, length = (len(prefix.tokens), len(prompt.tokens)), prefix.lengths
    shifted = jnp.roll(jnp.pad(prompt.tokens, (0, sizes[0])), length)
    before = jnp.pad(prefix.tokens, (0, sizes[1]))
    tokens = jnp.where(jnp.arange(sum(sizes)) < length, before, shifted)
    return Prompts(tokens, length + prompt.lengths)


def example_ids(inputs: Array) -> Array:
    """int32 [B], a hash of each row of inputs[B, S] that does not depend on its padding."""
    powers = [pow(_MULTIPLIER, i + 1, 2**32) for i in range(inputs.shape[-1])]
    mixed = jnp.asarray(inputs, jnp.uint32) * jnp.asarray(np.array(powers, np.uint32))
    return jax.lax.bitcast_convert_type(jnp.sum(mixed, axis=-1, dtype=jnp.uint32), jnp.int32)


def _scored(
    model: Realigned, params: PyTree, task: Task, lam: Array, texts: Sequence[Array], reward
) -> Decoded:
    """Texts (tokens [B, K, T], lengths, finished) read once more, for what the models say of them."""
    tokens, lengths, _ = texts
    state = model.start(params, task.prompts(lam), lengths.shape[1], 1)
    lam = jnp.broadcast_to(lam, lengths.shape)
    output = model.teacher_forced(params, state, tokens)
    read = jnp.arange(tokens.shape[-1]) < lengths[..., None]
    scores = score_tokens(output, output.logits, tokens, greedy=True)
    scores = jax.tree.map(lambda x: jnp.where(read, x, 0), scores)
    return _decoded(scores, lam, texts, _reward_of(reward, task, texts))


def _decoded(scores: Tokens, lam: Array, texts: Sequence[Array], reward: Array | None) -> Decoded:
    tokens, lengths, finished = texts
    reference, aligned = jnp.sum(scores.part_log_prob, axis=-1)
    aux = {
        "scores": jnp.sum(scores.log_prob, axis=-1),
        "reference_log_prob": reference,
        "aligned_log_prob": aligned,
        "kl": jnp.sum(scores.kl, axis=-1),
        "length": lengths,
        "finished": finished,
        "lam": jnp.asarray(lam),
    }
    return Decoded(tokens, aux if reward is None else {**aux, "reward": reward})


def _reward_of(reward: Reward | None, task: Task, texts: Sequence[Array]) -> Array | None:
    return reward and reward(reward.load(task.resources), task.source, *texts)
