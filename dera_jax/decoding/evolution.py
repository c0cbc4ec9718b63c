"""Implements a generation of DARWIN: a population that decodes under mutated instructions.

Until all sequences have ended, two phases alternate:

    explore   every sequence that has not ended is extended by m tokens, under its own instruction
    exploit   all sequences are scored against the original instruction; an individual that is not
              among the k best and has not ended adopts the sequence of a random one of the k best,
              and keeps its own instruction

`archive` implements what precedes and follows a generation: mutation and the instruction archive.

Adopted sequences are re-prefilled under the adopter's prompt, because the donor's cache was
computed under the donor's prompt.

Source: Hung et al. 2024 (arXiv 2406.15193); rules that the paper leaves open follow its authors'
release. Ties go to the lower index.

Axes: B inputs, N individuals of each, S prompt length, T output length, P periods, m tokens per
period, L cache length (P·m and the lookahead).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dera_jax import checks
from dera_jax.decoding.arguments import check_keys, with_end_ids
from dera_jax.decoding.replacement import (
    AHEAD,
    Adoption,
    draw_donors,
    fold_in,
    re_prefill,
    replacement,
)
from dera_jax.decoding.sampling import Hypotheses, Sampling, check_sampling, decode_step
from dera_jax.decoding.search import Candidates, Guide, search
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, State, check_padded
from dera_jax.rewards.protocol import Reward, check_limit


@struct.dataclass
class Evolution:
    """Settings of evolutionary decoding. Only new values of static fields recompile.

    The defaults are those of the authors' release, which samples at temperature 0.7 with top-k 40.

    Attributes:
        sampling: sampling settings and length limit, as scalars (no arrays per hypothesis).
        population: static; N, number of individuals.
        period: static; m, tokens between two replacements; no replacement if >= `max_length`.
        survivors: static; k, number of best individuals, which are kept and are the donors.
        lookahead: static; tokens generated for scoring only, and discarded afterwards.
        generations: number of generations.
    """

    sampling: Sampling
    population: int = struct.field(pytree_node=False, default=5)
    period: int = struct.field(pytree_node=False, default=40)
    survivors: int = struct.field(pytree_node=False, default=3)
    lookahead: int = struct.field(pytree_node=False, default=0)
    generations: int = 1


@struct.dataclass
class Completions:
    """The sequence of each individual.

    Attributes:
        tokens: int32 [B, N, T], 0 after each sequence.
        lengths: int32 [B, N], including the end token.
        finished: bool [B, N]; False where the length limit truncated the sequence.
    """

    tokens: Array
    lengths: Array
    finished: Array


@struct.dataclass
class History:
    """Statistics of each period, [B, N, P]; only a population's first `rounds` periods are valid.

    Attributes:
        rewards: float32, at the scoring, with the lookahead.
        survived: bool, whether the individual was among the k best.
        ended: bool, whether its sequence had ended before the replacement.
        donors: int32, the individual whose sequence it continues; itself if not replaced.
        log_probs: float32, log-probability under the model of the tokens that it generated in the
            period, including the lookahead.
        written: int32, number of tokens that it generated, excluding the lookahead.
    """

    rewards: Array
    survived: Array
    ended: Array
    donors: Array
    log_probs: Array
    written: Array


@struct.dataclass
class Generation:
    """B populations whose sequences have all ended.

    Attributes:
        texts: the individuals' sequences.
        rewards: float32 [B, N], of these sequences.
        written: int32 [B, N, T], the tokens that each individual generated itself, at their
            positions, even if it adopted another sequence later; 0 elsewhere.
        history: statistics of each period.
        forward_tokens: int32 [B], tokens processed by each component's decoder: one for each token
            generated, including lookaheads, and those of re-prefilled sequences.
        rounds: int32 [B], number of times that the population was scored.
    """

    texts: Completions
    rewards: Array
    written: Array
    history: History
    forward_tokens: Array
    rounds: Array


@struct.dataclass
class _Population(Generation):
    """The progress of a generation between two rounds; sequences are stored with L tokens.

    Attributes:
        state: the model's state for B·N prompts with one hypothesis each; all tokens of the
            sequences but the last have been fed.
        keys: PRNG keys [B, N].
        steps: int32, number of tokens of each sequence that has not ended.
    """

    state: State
    keys: Array
    steps: Array


def generation(
    model: LanguageModel,
    params: PyTree,
    prompts: Prompts,
    keys: Array,
    evolution: Evolution,
    guide: Guide,
) -> Generation:
    """Decodes a generation: exploration and replacement until all sequences have ended.

    Args:
        model: any language model; a `Realigned` one combines its components by the prompts' λ.
        params: the model's parameters.
        prompts: one prompt per individual, with its own instruction; the leaves of `Prompts` are
            [B, N, ...] here, so λ is [B, N, 1].
        keys: PRNG keys [B, N] from `sequence_keys`.
        evolution: the settings.
        guide: the reward, with the documents under their original instruction.

    Raises:
        ValueError: a setting is invalid, an array has another type or shape, an id is outside the
            vocabulary, λ is not finite; or whatever a Python reward raises.
        FloatingPointError: a log-probability or reward is NaN or infinite. Inside an outer jit
            nothing is raised: the history holds the value, which may have affected replacement.
    """
    reward = guide.scorer.reward
    evolution = evolution.replace(sampling=with_end_ids(evolution.sampling, model))
    check_evolution(evolution, model.vocab_size, reward)
    _check_population(model, prompts, keys, evolution.population)
    guide.check(len(keys))
    result = search(EvolutionRules(evolution), model, params, prompts, keys, guide)
    history = result.history
    values = {"log-probability": history.log_probs, f"reward {reward}": history.rewards}
    lam = None if prompts.lam is None else prompts.lam[:, :, 0]
    check_values(values, ("input", "individual", "period"), lam)
    return result


@struct.dataclass
class EvolutionRules:
    """Evolutionary decoding as rules of `search.search`; a round is a period."""

    evolution: Evolution

    def begin(
        self, model: LanguageModel, params: PyTree, prompts: Prompts, keys: Array
    ) -> _Population:
        """Prefills all prompts and starts with empty sequences."""
        evolution, shape, periods = self.evolution, keys.shape, _num_periods(self.evolution)
        room = periods * _period(evolution) + evolution.lookahead
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)
        counts, tokens = jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, room), jnp.int32)
        zeros = jnp.zeros((*shape, periods))
        false, int_zeros = zeros > 0, zeros.astype(jnp.int32)
        return _Population(
            state=model.start(params, flat, 1, room),
            keys=keys,
            texts=Completions(tokens, lengths=counts, finished=counts > 0),
            rewards=jnp.zeros(shape),
            written=tokens,
            history=History(zeros, false, false, int_zeros, zeros, int_zeros),
            forward_tokens=counts[:, 0],
            rounds=counts[:, 0],
            steps=jnp.zeros((), jnp.int32),
        )

    def explore(
        self, model: LanguageModel, params: PyTree, population: _Population
    ) -> tuple[_Population, Candidates]:
        """Extends every sequence by m tokens; returns them with their lookahead for scoring."""
        evolution, m = self.evolution, _period(self.evolution)
        active, start = _active(evolution, population), population.steps
        generate = functools.partial(_generate, model, params, evolution)
        keys, before = population.keys, population.texts
        state, outputs, log_probs = generate(population.state, keys, before, start, m)
        scored = outputs
        if evolution.lookahead:
            ahead_keys = jax.vmap(jax.vmap(lambda key: fold_in(key, AHEAD, start + m)))(keys)
            ahead = generate(state, ahead_keys, outputs, start + m, evolution.lookahead)
            scored, log_probs = ahead[1], log_probs + ahead[2]
        new = lax.dynamic_slice_in_dim(outputs.tokens, start, m, axis=-1)
        processed = jnp.sum(scored.lengths - before.lengths, axis=-1)
        put = lambda all, x: lax.dynamic_update_index_in_dim(all, x, start // m, axis=-1)
        history = population.history
        history = history.replace(
            log_probs=put(history.log_probs, log_probs),
            written=put(history.written, outputs.lengths - before.lengths),
        )
        population = population.replace(
            history=history,
            state=state,
            texts=outputs,
            written=lax.dynamic_update_slice_in_dim(population.written, new, start, axis=-1),
            steps=start + m,
            forward_tokens=population.forward_tokens + processed,
            rounds=population.rounds + active,
        )
        return population, _candidates(evolution, scored)

    def settle(
        self, model: LanguageModel, params: PyTree, population: _Population, rewards: Array
    ) -> _Population:
        """Replaces individuals, given rewards [B, N] of the scored sequences."""
        evolution, outputs, steps = self.evolution, population.texts, population.steps
        ended = _ended(evolution, outputs)
        drawn = draw_donors(population.keys, steps, evolution.survivors)
        survived, donors = replacement(rewards, ended, drawn, evolution.survivors)
        adopt = jax.vmap(lambda individuals, donors: individuals[donors])
        outputs, own_rewards = jax.tree.map(lambda x: adopt(x, donors), (outputs, rewards))
        adopted = (donors != jnp.arange(donors.shape[1])) & ~_ended(evolution, outputs)
        at = steps // _period(evolution) - 1
        put = lambda all, x: lax.dynamic_update_index_in_dim(all, x.astype(all.dtype), at, axis=-1)
        history = population.history
        events = {"rewards": rewards, "survived": survived, "ended": ended, "donors": donors}
        events = {name: put(getattr(history, name), x) for name, x in events.items()}
        adoption = Adoption(adopted, outputs.tokens, steps, evolution.survivors, _period(evolution))
        state = re_prefill(model, params, population.state, adoption)
        return population.replace(
            state=state,
            texts=outputs,
            rewards=own_rewards,
            history=history.replace(**events),
            forward_tokens=population.forward_tokens + steps * jnp.sum(adopted, axis=-1),
        )

    def is_over(self, population: _Population) -> Array:
        """Returns whether all sequences have ended."""
        return ~jnp.any(_active(self.evolution, population))

    def result(self, population: _Population) -> Generation:
        """Returns the sequences, their rewards, and the history."""
        evolution = self.evolution
        return Generation(
            texts=Completions(*_candidates(evolution, population.texts)),
            rewards=population.rewards,
            written=population.written[..., : evolution.sampling.max_length],
            history=population.history,
            forward_tokens=population.forward_tokens,
            rounds=population.rounds,
        )


def _period(evolution: Evolution) -> int:
    return min(evolution.period, evolution.sampling.max_length)


def _num_periods(evolution: Evolution) -> int:
    return -(-evolution.sampling.max_length // _period(evolution))


def _ended(evolution: Evolution, outputs: Completions) -> Array:
    return outputs.finished | (outputs.lengths >= evolution.sampling.max_length)


def _active(evolution: Evolution, population: _Population) -> Array:
    """Returns bool [B], whether some sequence of a population has not ended."""
    return jnp.any(~_ended(evolution, population.texts), axis=-1)


def _generate(
    model,
    params,
    evolution: Evolution,
    state: State,
    keys: Array,
    outputs: Completions,
    start: Array,
    num_steps: int,
) -> tuple[State, Completions, Array]:
    """Extends sequences of `start` tokens by up to `num_steps`, until all sequences have ended.

    Returns the model's state, the sequences, and the summed log-probabilities [B, N] of new tokens.
    """
    shape = outputs.lengths.shape
    by_prompt = lambda x: x.reshape(-1, 1)
    last = lax.dynamic_index_in_dim(
        outputs.tokens, jnp.maximum(start - 1, 0), axis=-1, keepdims=False
    )
    last = jnp.where(start == 0, state.first_token[:, None], by_prompt(last))
    hypotheses = Hypotheses(
        state, by_prompt(keys), last, by_prompt(outputs.lengths), by_prompt(outputs.finished)
    )

    def unfinished(carry):
        i, _, outputs, _ = carry
        return (i < num_steps) & ~jnp.all(_ended(evolution, outputs))

    def step(carry):
        i, hypotheses, outputs, log_probs = carry
        hypotheses, drawn = decode_step(model, params, evolution.sampling, hypotheses)
        token = drawn.token.reshape(*shape, 1)
        outputs = Completions(
            tokens=lax.dynamic_update_slice_in_dim(outputs.tokens, token, start + i, axis=-1),
            lengths=hypotheses.lengths.reshape(shape),
            finished=hypotheses.finished.reshape(shape),
        )
        return i + 1, hypotheses, outputs, log_probs + drawn.log_prob.reshape(shape)

    carry = 0, hypotheses, outputs, jnp.zeros(shape)
    _, hypotheses, outputs, log_probs = lax.while_loop(unfinished, step, carry)
    return hypotheses.state, outputs, log_probs


def _candidates(evolution: Evolution, outputs: Completions) -> Candidates:
    """Returns tokens [B, N, T], lengths and finished, the arguments of a reward."""
    return outputs.tokens[..., : evolution.sampling.max_length], outputs.lengths, outputs.finished


def _check_population(model: LanguageModel, prompts: Prompts, keys: Array, population: int) -> None:
    checks.check("prompts", prompts, checks.instance(Prompts))
    shape = check_padded("prompts", prompts, least=1, B=None, N=None, S=None)
    expected = shape[0], population
    if shape[:2] != expected or check_keys(keys) != expected:
        raise ValueError(
            f"a population of {population} needs prompts.tokens [B, N, S] and keys [B, N] with "
            f"(B, N) = {expected}; found {shape[:2]} and {keys.shape}."
        )
    for x in jax.tree.leaves(prompts):
        if np.shape(x)[:2] != expected:
            raise ValueError(
                "the shapes of all arrays of prompts must begin with [B, N] = "
                f"{expected}; found an array of shape {np.shape(x)}."
            )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)
    model.check(flat, 1)


def check_evolution(
    evolution: Evolution, vocab_size: int | None = None, reward: Reward | None = None
) -> None:
    """Validates the settings of an evolution. Values traced by an outer jit are skipped.

    Args:
        evolution: the settings.
        vocab_size: V; None if the model is not known yet.
        reward: the reward; None if not known yet.

    Raises:
        ValueError: a setting is invalid; the message names it, what is accepted, what was found.
    """
    checks.check("Evolution.sampling", evolution.sampling, checks.instance(Sampling))
    check_sampling(evolution.sampling, vocab_size)
    if any(np.ndim(x) for x in jax.tree.leaves(evolution.sampling.replace(end_ids=None))):
        raise ValueError("Evolution.sampling must hold one number for each setting, not an array.")
    checks.check_traced(evolution, population=checks.integer(2))
    checks.check_traced(
        evolution,
        period=checks.integer(1),
        survivors=checks.below_limit(1, evolution.population, "the population"),
        lookahead=checks.below_limit(0, evolution.sampling.max_length),
        generations=checks.integer(1),
    )
    if reward is not None:
        check_limit(reward, evolution.sampling.max_length)
