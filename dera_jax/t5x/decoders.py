"""Decodes a T5X batch with this library, as one compiled function of (params, tokens).

T5X batches have no example ids, and T5X passes the same PRNG key in every run. PRNG keys are
therefore derived from the decoder's own seed and, for each example, from a hash of its tokens. A
sample then depends neither on the other examples of its batch nor on the number of devices or
shards.

Axes: B inputs, K outputs of each, S input length, T output length, R target length, N individuals,
P instruction length.
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
from dera_jax.decoding.sampling import Sampling, check_sampling, sample, sweep_hypotheses
from dera_jax.decoding.scores import Tokens, score_tokens
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import Padded, Prompts, PyTree, pad_sequences, sequence_keys
from dera_jax.rewards.protocol import REWARD, Resources, Reward, Source
from dera_jax.rewards.scoring import RewardScorer

_ANY_LENGTH = 2**31 - 1  # placeholder: T5X gives the maximum length with each batch
_MULTIPLIER = 0x9E3779B1  # odd, so that all its powers are invertible modulo 2**32


@struct.dataclass
class Task:
    """Holds a batch to decode.

    Attributes:
        inputs: int32 [B, S], padded with 0.
        targets: int32 [B, R], reference outputs, for rewards that compare with them.
        max_length: static; T, maximum tokens of an output.
        end_ids: static; the end tokens.
        resources: static; the resources from which rewards load their parameters.
    """

    inputs: Array
    targets: Array
    max_length: int = struct.field(pytree_node=False)
    end_ids: tuple[int, ...] = struct.field(pytree_node=False)
    resources: Resources = struct.field(pytree_node=False)

    def prompts(self, lam: Array | None = None) -> Prompts:
        """Return the inputs with λ [B, G]; id 0 is padding, since T5X batches have no lengths."""
        return _unpadded(self.inputs).replace(lam=lam)

    @property
    def source(self) -> Source:
        """Return the source that rewards read.

        T5X batches have no documents; the inputs with their prompt template, without the end token,
        take their place.
        """
        targets = _unpadded(self.targets)
        prompts, targets = self.prompts(), Padded(targets.tokens, targets.lengths)
        last = jnp.take_along_axis(prompts.tokens, prompts.lengths[:, None] - 1, axis=1)[:, 0]
        ended = jnp.isin(last, jnp.asarray(self.end_ids, jnp.int32))
        document = Padded(prompts.tokens, prompts.lengths - ended)
        return Source(prompts, targets, document=document)

    def guide(self, reward: Reward) -> Guide:
        """Return the guide of a search that scores outputs for these inputs with a reward."""
        return Guide(RewardScorer(reward, reward.load(self.resources), str), self.source)


@struct.dataclass
class Decoded:
    """Holds K decoded outputs of each input, with their statistics.

    Attributes:
        tokens: int32 [B, K, T], padded with 0.
        aux: arrays [B, K] by name: `scores` (log-probability under the realigned policy),
            `reference_log_prob`, `aligned_log_prob`, `kl` (KL divergence of the realigned from the
            reference policy in nats, summed over the output's tokens), `length` (in tokens,
            including the end token), `finished`, `lam`, and `reward` if the decoder has one.
    """

    tokens: Array
    aux: Mapping[str, Array]


class Decoder(Protocol):
    """Decodes a batch with a pair of models, inside a compiled function."""

    def __call__(self, model: Realigned, params: PyTree, task: Task) -> Decoded:
        """Decode `task`; `params` holds the reference and the aligned model's parameters."""


@dataclasses.dataclass(frozen=True)
class SampleDecoder:
    """Samples outputs, or decodes greedily, at each λ; outputs are in the order of `sweep_hypotheses`.

    Attributes:
        lams: mixing coefficients λ.
        num_samples: samples per λ.
        seed: seed of the PRNG keys.
        temperature, top_k, top_p, greedy: see `decoding.sampling.Sampling`.
        reward: scores the outputs after decoding; None for no reward.
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
            lams=checks.sequence(LAMBDA, "(0.0, 1.0)"),
            num_samples=checks.integer(1),
            seed=checks.SEED,
            reward=checks.optional(REWARD),
        )
        checks.check_distinct("SampleDecoder.lams", self.lams)
        check_sampling(self._sampling(_ANY_LENGTH))

    def _sampling(self, max_length: int, end_ids: tuple[int, ...] = (NO_END,)) -> Sampling:
        truncation = self.top_k, self.top_p
        return Sampling(max_length, self.greedy, self.temperature, *truncation, end_ids=end_ids)

    def __call__(self, model: Realigned, params: PyTree, task: Task) -> Decoded:
        lam, numbers = sweep_hypotheses(self.lams, self.num_samples, len(task.inputs))
        keys = sequence_keys(self.seed, example_ids(task.inputs), numbers)
        sampling = self._sampling(task.max_length, task.end_ids)
        out = sample(model, params, task.prompts(lam), keys, sampling)
        outputs = out.tokens, out.lengths, out.finished
        lam_of_each = np.repeat(lam, self.num_samples, axis=1)
        return _decoded(out.scores, lam_of_each, outputs, _reward_of(self.reward, task, outputs))


@dataclasses.dataclass(frozen=True)
class SearchDecoder:
    """Runs reward-guided beam search (DeAL); the best output comes last, as in T5X's beam search.

    Attributes:
        lam: mixing coefficient λ.
        reward: the reward that guides the search; None for plain beam search.
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
    length_penalty: float = 0.6  # T5X's

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
        result = beam_search(model, params, task.prompts(lam), keys, search, guide)
        best_last = lambda x: x[:, 0, ::-1]
        tokens, lengths, finished = map(
            best_last, (result.pool.tokens, result.pool.lengths, result.pool.finished)
        )
        decoded = _scored(model, params, task, lam, (tokens, lengths, finished), self.reward)
        return decoded.replace(aux={**decoded.aux, "search_score": best_last(result.scores)})


@dataclasses.dataclass(frozen=True)
class EvolutionDecoder:
    """Runs one generation of evolutionary decoding (DARWIN), and returns the best outputs.

    The input of every individual is prefixed with an instruction of the bank; one output for the
    unprefixed input competes too. Each instruction is assigned once before any is assigned again.

    Attributes:
        reward: ranks individuals, always with respect to the unprefixed input.
        instructions: the bank of instructions, strings that are put before an input.
        lam: mixing coefficient λ.
        seed: seed of the PRNG keys.
        population, period, survivors, lookahead: see `decoding.evolution.Evolution`.
        temperature, top_k: of sampling.
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
            instructions=checks.sequence(checks.STRING, "('Summarize: ',)"),
            lam=LAMBDA,
            seed=checks.SEED,
        )
        check_evolution(self._evolution(_ANY_LENGTH))

    def _evolution(self, max_length: int, end_ids: tuple[int, ...] = (NO_END,)) -> Evolution:
        options = {"temperature": self.temperature, "top_k": self.top_k, "end_ids": end_ids}
        sizes = self.population, self.period, self.survivors, self.lookahead
        return Evolution(Sampling(max_length, **options), *sizes)

    def __call__(self, model: Realigned, params: PyTree, task: Task) -> Decoded:
        batch, n = len(task.inputs), self.population
        ids = example_ids(task.inputs)
        evolution = self._evolution(task.max_length, task.end_ids)
        sampling = evolution.sampling
        lam = np.full((batch, 1), self.lam, np.float32)
        plain_keys = sequence_keys(self.seed, ids, [0])
        plain = sample(model, params, task.prompts(lam), plain_keys, sampling)
        prompts = self._instructed(task, sequence_keys(self.seed, ids, [-2])[:, 0])
        prompts = prompts.replace(lam=np.full((batch, n, 1), self.lam, np.float32))
        keys = sequence_keys(self.seed, ids, 1 + np.arange(n))
        guide = task.guide(self.reward)
        result = generation(model, params, prompts, keys, evolution, guide)
        own = plain.tokens, plain.lengths, plain.finished
        evolved = result.texts.tokens, result.texts.lengths, result.texts.finished
        candidates = [jnp.concatenate(x, axis=1) for x in zip(own, evolved, strict=True)]
        rewards = [_reward_of(self.reward, task, own), result.rewards]
        # argmax takes the first of equal rewards, so that ties keep the output without instruction.
        best = jnp.argmax(jnp.concatenate(rewards, axis=1), axis=1, keepdims=True)
        outputs = [jax.vmap(lambda x, at: x[at])(candidate, best) for candidate in candidates]
        decoded = _scored(model, params, task, lam, outputs, self.reward)
        return decoded.replace(aux={**decoded.aux, "individual": best - 1})

    def _instructed(self, task: Task, keys: Array) -> Prompts:
        """Return prompts [B, N, P + S]: tokens of an instruction, then those of the input."""
        encoded = [task.resources.encode(text) for text in self.instructions]
        width = max(map(len, encoded))
        bank = jax.tree.map(jnp.asarray, Prompts(*pad_sequences(encoded, width)))
        repeats = -(-self.population // len(encoded))
        assign = lambda key: jnp.concatenate(
            [jax.random.permutation(key, len(encoded)) for key in jax.random.split(key, repeats)]
        )
        assigned = jax.vmap(assign)(keys)[:, : self.population]
        join = jax.vmap(jax.vmap(_join, (0, None)))
        return join(jax.tree.map(lambda x: x[assigned], bank), task.prompts())


def _unpadded(ids: Array) -> Prompts:
    return Prompts(ids, jnp.sum(ids > 0, axis=-1, dtype=jnp.int32))


def _join(prefix: Prompts, prompt: Prompts) -> Prompts:
    """Join an instruction [P] and an input [S] to [P + S], without padding between them."""
    sizes, length = (len(prefix.tokens), len(prompt.tokens)), prefix.lengths
    shifted = jnp.roll(jnp.pad(prompt.tokens, (0, sizes[0])), length)
    before = jnp.pad(prefix.tokens, (0, sizes[1]))
    tokens = jnp.where(jnp.arange(sum(sizes)) < length, before, shifted)
    return Prompts(tokens, length + prompt.lengths)


def example_ids(inputs: Array) -> Array:
    """Return int32 [B], a hash of each row of inputs[B, S] that does not depend on its padding."""
    powers = [pow(_MULTIPLIER, i + 1, 2**32) for i in range(inputs.shape[-1])]
    mixed = jnp.asarray(inputs, jnp.uint32) * jnp.asarray(np.array(powers, np.uint32))
    return jax.lax.bitcast_convert_type(jnp.sum(mixed, axis=-1, dtype=jnp.uint32), jnp.int32)


def _scored(
    model: Realigned, params: PyTree, task: Task, lam: Array, outputs: Sequence[Array], reward
) -> Decoded:
    """Score outputs (tokens [B, K, T], lengths, finished) under the models by teacher forcing."""
    tokens, lengths, _ = outputs
    state = model.start(params, task.prompts(lam), lengths.shape[1], 1)
    lam = jnp.broadcast_to(lam, lengths.shape)
    output = model.teacher_forced(params, state, tokens)
    mask = jnp.arange(tokens.shape[-1]) < lengths[..., None]
    scores = score_tokens(output, output.logits, tokens, greedy=True)
    scores = jax.tree.map(lambda x: jnp.where(mask, x, 0), scores)
    return _decoded(scores, lam, outputs, _reward_of(reward, task, outputs))


def _decoded(scores: Tokens, lam: Array, outputs: Sequence[Array], reward: Array | None) -> Decoded:
    tokens, lengths, finished = outputs
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


def _reward_of(reward: Reward | None, task: Task, outputs: Sequence[Array]) -> Array | None:
    return reward and reward(reward.load(task.resources), task.source, *outputs)
