"""DARWIN: a population of sequences, each generated under an instruction of its own.

    explore   every sequence that has not ended goes on for m tokens, under its own instruction
    exploit   all sequences are scored, against the original instruction; an individual that is not
              among the k best (and has not ended) adopts the sequence of a random one of these, and
              keeps its instruction

until all sequences have ended: one generation. What comes before and after it, mutation and the
archive of instructions, is in `archive`.

Adopted sequences are re-prefilled under the adopter's prompt: a copy of the donor's cache would hold
what the sequence means under the donor's.

Source: Hung et al. 2024 (arXiv 2406.15193), and where the paper leaves a rule open its authors'
release. Ties go to the lower index.

Axes: B inputs, N individuals of each, S prompt length, T output length, P periods, m tokens of one,
L room for tokens (P·m and the lookahead).
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
    draws,
    fold_in,
    re_prefilled,
    replacement,
)
from dera_jax.decoding.sampling import Hypotheses, Sampling, check_sampling, decode_step
from dera_jax.decoding.search import Candidates, Guide, search
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, State, check_padded
from dera_jax.rewards.protocol import Reward, check_limit


@struct.dataclass
class Evolution:
    """The settings of an evolution. The defaults are the release's, which samples at temperature 0.7
    with top-k 40. Only static fields recompile.

    Attributes:
        sampling: how sequences are drawn, and their length limit; scalars, no arrays by hypothesis.
        population: static; N.
        period: static; m, tokens between two replacements. From `max_length` on there is none.
        survivors: static; k, the individuals that are not replaced, and whose sequences others adopt.
        lookahead: static; tokens by which a sequence is continued for its scoring, and that are then
            thrown away.
        generations: how many.
    """

    sampling: Sampling
    population: int = struct.field(pytree_node=False, default=5)
    period: int = struct.field(pytree_node=False, default=40)
    survivors: int = struct.field(pytree_node=False, default=3)
    lookahead: int = struct.field(pytree_node=False, default=0)
    generations: int = 1


@struct.dataclass
class Completions:
    """A sequence of each individual.

    Attributes:
        tokens: int32 [B, N, T], 0 after each sequence.
        lengths: int32 [B, N], the end token included.
        finished: bool [B, N]; False where the length limit cut the sequence off.
    """

    tokens: Array
    lengths: Array
    finished: Array


@struct.dataclass
class History:
    """What happened in each period, [B, N, P]. It counts up to the rounds of its population.

    Attributes:
        rewards: float32, as scored, with the lookahead.
        survived: bool, among the k best.
        ended: bool, its sequence had ended before the replacement.
        donors: int32, the individual whose sequence each goes on with; itself if it keeps its own.
        log_probs: float32, under the model, of what each individual generated itself in the period,
            the lookahead included.
        written: int32, how many tokens each individual generated itself, without the lookahead.
    """

    rewards: Array
    survived: Array
    ended: Array
    donors: Array
    log_probs: Array
    written: Array


@struct.dataclass
class Generation:
    """A population whose sequences have all ended.

    Attributes:
        texts: of the individuals.
        rewards: float32 [B, N], of these sequences.
        written: int32 [B, N, T], what each individual generated itself, at the place where it did,
            whatever it adopted since; 0 where nothing.
        history: of the periods.
        positions: int32 [B], tokens each of the model's decoders was fed: one for each token drawn,
            lookaheads included, and adopted sequences once more.
        rounds: int32 [B], how often the population was scored.
    """

    texts: Completions
    rewards: Array
    written: Array
    history: History
    positions: Array
    rounds: Array


@struct.dataclass
class _Population(Generation):
    """A generation under way, with room for L tokens.

    Attributes:
        state: the model's, of B·N prompts with one hypothesis each; all have been fed the first
            token and all their tokens but the last.
        keys: PRNG keys [B, N].
        steps: int32, tokens of each sequence that has not ended.
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
    """Lets a population live until all its sequences have ended.

    Args:
        model: any language model; a `Realigned` one mixes by the prompts' λ.
        params: its parameters.
        prompts: each individual's, with its own instruction: the leaves of `Prompts` are [B, N, ...]
            here, so λ is [B, N, 1].
        keys: PRNG keys [B, N] from `sequence_keys`.
        evolution: the settings.
        guide: the reward; its documents are under their original instruction.

    Raises:
        ValueError: an invalid setting, arrays of another type or shape, ids beyond the model's table,
            λ that is not finite, or what a reward in Python raises.
        FloatingPointError: a log-probability or reward is NaN or infinite. Inside of an outer jit the
            history holds it, and what it did to replacements stays.
    """
    reward = guide.judge.reward
    evolution = evolution.replace(sampling=with_end_ids(evolution.sampling, model))
    check_evolution(evolution, model.vocab_size, reward)
    _check_population(model, prompts, keys, evolution.population)
    guide.check(len(keys))
    found = search(EvolutionRules(evolution), model, params, prompts, keys, guide)
    history = found.history
    values = {"log-probability": history.log_probs, f"reward {reward}": history.rewards}
    lam = None if prompts.lam is None else prompts.lam[:, :, 0]
    check_values(values, ("input", "individual", "period"), lam)
    return found


@struct.dataclass
class EvolutionRules:
    """Evolution over the driver of `search`: a round is a period."""

    evolution: Evolution

    def begin(
        self, model: LanguageModel, params: PyTree, prompts: Prompts, keys: Array
    ) -> _Population:
        """A population of empty sequences."""
        evolution, shape, periods = self.evolution, keys.shape, _num_periods(self.evolution)
        room = periods * _period(evolution) + evolution.lookahead
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)
        none, nothing = jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, room), jnp.int32)
        zeros = jnp.zeros((*shape, periods))
        never, no_one = zeros > 0, zeros.astype(jnp.int32)
        return _Population(
            state=model.start(params, flat, 1, room),
            keys=keys,
            texts=Completions(nothing, lengths=none, finished=none > 0),
            rewards=jnp.zeros(shape),
            written=nothing,
            history=History(zeros, never, never, no_one, zeros, no_one),
            positions=none[:, 0],
            rounds=none[:, 0],
            steps=jnp.zeros((), jnp.int32),
        )

    def explore(
        self, model: LanguageModel, params: PyTree, population: _Population
    ) -> tuple[_Population, Candidates]:
        """The next m tokens of every sequence; those with their lookahead are scored."""
        evolution, m = self.evolution, _period(self.evolution)
        on, start = _on(evolution, population), population.steps
        write = functools.partial(_write, model, params, evolution)
        keys, before = population.keys, population.texts
        state, texts, log_probs = write(population.state, keys, before, start, m)
        longest = texts
        if evolution.lookahead:
            other = jax.vmap(jax.vmap(lambda key: fold_in(key, AHEAD, start + m)))(keys)
            ahead = write(state, other, texts, start + m, evolution.lookahead)
            longest, log_probs = ahead[1], log_probs + ahead[2]
        new = lax.dynamic_slice_in_dim(texts.tokens, start, m, axis=-1)
        spent = jnp.sum(longest.lengths - before.lengths, axis=-1)
        put = lambda all, x: lax.dynamic_update_index_in_dim(all, x, start // m, axis=-1)
        history = population.history
        history = history.replace(
            log_probs=put(history.log_probs, log_probs),
            written=put(history.written, texts.lengths - before.lengths),
        )
        population = population.replace(
            history=history,
            state=state,
            texts=texts,
            written=lax.dynamic_update_slice_in_dim(population.written, new, start, axis=-1),
            steps=start + m,
            positions=population.positions + spent,
            rounds=population.rounds + on,
        )
        return population, _scored(evolution, longest)

    def settle(
        self, model: LanguageModel, params: PyTree, population: _Population, rewards: Array
    ) -> _Population:
        """The replacement, given rewards [B, N] of what was scored."""
        evolution, texts, steps = self.evolution, population.texts, population.steps
        ended = _ended(evolution, texts)
        drawn = draws(population.keys, steps, evolution.survivors)
        survived, donors = replacement(rewards, ended, drawn, evolution.survivors)
        adopt = jax.vmap(lambda individuals, donors: individuals[donors])
        texts, own_rewards = jax.tree.map(lambda x: adopt(x, donors), (texts, rewards))
        adopted = (donors != jnp.arange(donors.shape[1])) & ~_ended(evolution, texts)
        now = steps // _period(evolution) - 1
        put = lambda all, x: lax.dynamic_update_index_in_dim(all, x.astype(all.dtype), now, axis=-1)
        history = population.history
        events = {"rewards": rewards, "survived": survived, "ended": ended, "donors": donors}
        events = {name: put(getattr(history, name), x) for name, x in events.items()}
        adoption = Adoption(adopted, texts.tokens, steps, evolution.survivors, _period(evolution))
        state = re_prefilled(model, params, population.state, adoption)
        return population.replace(
            state=state,
            texts=texts,
            rewards=own_rewards,
            history=history.replace(**events),
            positions=population.positions + steps * jnp.sum(adopted, axis=-1),
        )

    def is_over(self, population: _Population) -> Array:
        """When all sequences have ended."""
        return ~jnp.any(_on(self.evolution, population))

    def result(self, population: _Population) -> Generation:
        """See `Generation`."""
        evolution = self.evolution
        return Generation(
            texts=Completions(*_scored(evolution, population.texts)),
            rewards=population.rewards,
            written=population.written[..., : evolution.sampling.max_length],
            history=population.history,
            positions=population.positions,
            rounds=population.rounds,
        )


def _period(evolution: Evolution) -> int:
    return min(evolution.period, evolution.sampling.max_length)


def _num_periods(evolution: Evolution) -> int:
    return -(-evolution.sampling.max_length // _period(evolution))


def _ended(evolution: Evolution, texts: Completions) -> Array:
    return texts.finished | (texts.lengths >= evolution.sampling.max_length)


def _on(evolution: Evolution, population: _Population) -> Array:
    """bool [B]: some sequence has not ended."""
    return jnp.any(~_ended(evolution, population.texts), axis=-1)


def _write(
    model,
    params,
    evolution: Evolution,
    state: State,
    keys: Array,
    texts: Completions,
    start: Array,
    num_steps: int,
) -> tuple[State, Completions, Array]:
    """`num_steps` tokens after the first `start`, of sequences that have not ended, until all have.

    And the log-probabilities [B, N] of these tokens, summed.
    """
    shape = texts.lengths.shape
    by_prompt = lambda x: x.reshape(-1, 1)
    last = lax.dynamic_index_in_dim(
        texts.tokens, jnp.maximum(start - 1, 0), axis=-1, keepdims=False
    )
    last = jnp.where(start == 0, state.first_token[:, None], by_prompt(last))
    under_way = Hypotheses(
        state, by_prompt(keys), last, by_prompt(texts.lengths), by_prompt(texts.finished)
    )

    def going_on(carry):
        i, _, texts, _ = carry
        return (i < num_steps) & ~jnp.all(_ended(evolution, texts))

    def step(carry):
        i, under_way, texts, log_probs = carry
        under_way, drawn = decode_step(model, params, evolution.sampling, under_way)
        token = drawn.token.reshape(*shape, 1)
        texts = Completions(
            tokens=lax.dynamic_update_slice_in_dim(texts.tokens, token, start + i, axis=-1),
            lengths=under_way.lengths.reshape(shape),
            finished=under_way.finished.reshape(shape),
        )
        return i + 1, under_way, texts, log_probs + drawn.log_prob.reshape(shape)

    begun = 0, under_way, texts, jnp.zeros(shape)
    _, under_way, texts, log_probs = lax.while_loop(going_on, step, begun)
    return under_way.state, texts, log_probs


def _scored(evolution: Evolution, texts: Completions) -> Candidates:
    """As a reward takes them."""
    return texts.tokens[..., : evolution.sampling.max_length], texts.lengths, texts.finished


def _check_population(model: LanguageModel, prompts: Prompts, keys: Array, population: int) -> None:
    checks.check("prompts", prompts, checks.instance(Prompts))
    shape = check_padded("prompts", prompts, least=1, B=None, N=None, S=None)
    expected = shape[0], population
    if shape[:2] != expected or check_keys(keys) != expected:
        raise ValueError(
            f"a population of {population} needs prompts.tokens [B, N, S] and keys [B, N] of "
            f"(B, N) = {expected}; found {shape[:2]} and {keys.shape}"
        )
    for x in jax.tree.leaves(prompts):
        if np.shape(x)[:2] != expected:
            raise ValueError(
                f"all arrays of prompts must begin with [B, N] = {expected}; found one of shape "
                f"{np.shape(x)}"
            )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)
    model.check(flat, 1)


def check_evolution(
    evolution: Evolution, vocab_size: int | None = None, reward: Reward | None = None
) -> None:
    """Raise ValueError for invalid settings. Values traced by an outer jit are not seen.

    Args:
        evolution: the settings.
        vocab_size: V; None as long as no model is known.
        reward: that ranks texts; None as long as it is not known.

    Raises:
        ValueError: naming the setting, what is accepted and what was found; or as `check_limit`.
    """
    checks.check("Evolution.sampling", evolution.sampling, checks.instance(Sampling))
    check_sampling(evolution.sampling, vocab_size)
    if any(np.ndim(x) for x in jax.tree.leaves(evolution.sampling.replace(end_ids=None))):
        raise ValueError("Evolution.sampling must hold one number for each setting, no arrays.")
    checks.check_traced(evolution, population=checks.whole(2))
    checks.check_traced(
        evolution,
        period=checks.whole(1),
        survivors=checks.below_limit(1, evolution.population, "the population"),
        lookahead=checks.below_limit(0, evolution.sampling.max_length),
        generations=checks.whole(1),
    )
    if reward is not None:
        check_limit(reward, evolution.sampling.max_length)
