"""DARWIN: a population of texts, each written under an instruction of its own.

    explore   every text that has not ended goes on for m tokens, under its own instruction
    exploit   all texts are scored, against the original instruction; whoever is not among the k
              best (and has not ended) goes on with the text of a random one of these, and keeps
              its instruction

until all texts have ended: one generation. What comes before and after it, mutation and the archive
of instructions, is in `archive`.

An adopted text is fed to the model again, under the adopter's instruction: a copy of the donor's
cache would hold what the text means under the donor's.

Source: Hung et al. 2024 (arXiv 2406.15193), and where the paper leaves a rule open its authors'
release. Ties go to the lower index.

Axes: B inputs, N individuals of each, S input length, T output length, P periods, m tokens of one,
L room for tokens (P·m and the lookahead).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dera_jax import checks
from dera_jax.decoding.arguments import check_stream, num_input_ids, with_end
from dera_jax.decoding.realign import Realigned, known_lam
from dera_jax.decoding.sampling import (
    Hypotheses,
    Sampling,
    check_sampling,
    decode_step,
)
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import (
    LanguageModel,
    PyTree,
    State,
    rewind,
    shift_right,
)
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import Reward, Source, check_limit

_AHEAD, _DONOR = 2**30, 2**30 + 1  # folded into a stream; its tokens fold in their positions


@struct.dataclass
class Evolution:
    """How to evolve; the defaults are the release's, which samples at temperature 0.7 with top-k 40.

    Only static fields recompile.

    Attributes:
        sampling: how texts are drawn, and how long they may become; scalars, no arrays by row.
        population: static; N.
        period: static; m, tokens between two replacements. From `max_length` on there is none.
        survivors: static; k, the individuals that are not replaced, and whose texts others take.
        lookahead: static; tokens a text is continued by when it is scored, and that are then
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
class Texts:
    """A text of each individual.

    Attributes:
        tokens: int32 [B, N, T], 0 after each text.
        lengths: int32 [B, N], the end token included.
        finished: bool [B, N]; False where the length limit cut the text off.
    """

    tokens: Array
    lengths: Array
    finished: Array


@struct.dataclass
class History:
    """What happened in each period, [B, N, P]. It counts up to the rounds of its population.

    Attributes:
        rewards: float32, as judged, with the lookahead.
        survived: bool, among the k best.
        ended: bool, its text had ended before the replacement.
        donors: int32, the individual whose text each goes on with; itself if it keeps its own.
        log_probs: float32, under the model, of what each individual wrote itself in the period, the
            lookahead included.
    """

    rewards: Array
    survived: Array
    ended: Array
    donors: Array
    log_probs: Array


@struct.dataclass
class Generation:
    """A population whose texts have all ended.

    Attributes:
        texts: of the individuals.
        rewards: float32 [B, N], of these texts.
        written: int32 [B, N, T], what each individual wrote itself, at the place where it wrote it,
            whatever it adopted since; 0 where nothing.
        history: of the periods.
        positions: int32 [B], tokens each of the model's decoders was fed: one for each token drawn,
            lookaheads included, and adopted texts once more.
        rounds: int32 [B], how often the population was judged.
    """

    texts: Texts
    rewards: Array
    written: Array
    history: History
    positions: Array
    rounds: Array


@struct.dataclass
class _Population(Generation):
    """A generation under way, with room for L tokens.

    Attributes:
        state: the model's, of B·N inputs with one hypothesis each; all have been fed the start
            token and all their tokens but the last.
        steps: int32, tokens of each text that has not ended.
    """

    state: State
    steps: Array


def generation(
    model: LanguageModel,
    params: PyTree,
    inputs: Array,
    lam: Array,
    stream: Array,
    evolution: Evolution,
    reward: Reward,
    reward_params: PyTree,
    source: Source,
) -> Generation:
    """Lets a population live until all its texts have ended, in one compiled call.

    Args:
        model: any language model; a `Realigned` one mixes by `lam`.
        params: its parameters.
        inputs: int32 [B, N, S], each individual's instruction with its text; 0 is padding.
        lam: float32 [B, N] (or [B, N, M] for M aligned models); a single model ignores it.
        stream: keys [B, N] from `streams`.
        evolution: how.
        reward: not `on_host`.
        reward_params: of `reward.load`.
        source: the B documents under their original instruction.

    Raises:
        ValueError: an invalid setting, arrays of another type or shape, ids beyond the model's table,
            or lam that is not finite.
        FloatingPointError: a log-probability or reward is NaN or infinite. Inside of an outer jit the
            history holds it, and what it did to replacements stays.
    """
    evolution, lam = _check(model, inputs, lam, stream, evolution, reward)
    arguments = model, params, inputs, lam, stream, evolution
    found = _generation(*arguments, reward, reward_params, source)
    return _checked(found, model, lam, reward)


def generation_on_host(
    model: LanguageModel,
    params: PyTree,
    inputs: Array,
    lam: Array,
    stream: Array,
    evolution: Evolution,
    judge: Judge,
    source: Source,
    documents: Sequence[str],
) -> Generation:
    """`generation` with a reward in Python: one compiled call for each period.

    Args:
        judge: scores all texts of a period at once.
        documents: B texts, for the reward.

    Raises:
        ValueError, FloatingPointError: as `generation` and the judge.
    """
    evolution, lam = _check(model, inputs, lam, stream, evolution, judge.reward)
    population, judged = _first_period(model, params, inputs, lam, stream, evolution)
    over = False
    while not over:
        rewards, _ = judge(source, documents, *judged)
        population, judged, over = _following_period(model, params, evolution, population, rewards)
    return _checked(_result(evolution, population), model, lam, judge.reward)


def _checked(found: Generation, model: LanguageModel, lam: Array, reward: Reward) -> Generation:
    """A generation; raises FloatingPointError as `generation`."""
    lam = lam if isinstance(model, Realigned) else None
    history = found.history
    values = {"log-probability": history.log_probs, f"reward {reward}": history.rewards}
    check_values(values, ("input", "individual", "period"), lam)
    return found


@functools.partial(jax.jit, static_argnames=("model", "reward"))
def _generation(
    model, params, inputs, lam, stream, evolution: Evolution, reward, reward_params, source
) -> Generation:
    def period(population: _Population) -> _Population:
        population, judged = _explore(model, params, evolution, population)
        rewards = reward(reward_params, source, *judged)
        return _exploit(model, params, evolution, population, rewards)

    population = _begin(model, params, inputs, lam, stream, evolution)
    alive = lambda population: jnp.any(_on(evolution, population))
    return _result(evolution, lax.while_loop(alive, period, population))


@functools.partial(jax.jit, static_argnames="model")
def _first_period(model, params, inputs, lam, stream, evolution: Evolution):
    population = _begin(model, params, inputs, lam, stream, evolution)
    return _explore(model, params, evolution, population)


@functools.partial(jax.jit, static_argnames="model")
def _following_period(model, params, evolution: Evolution, population: _Population, rewards: Array):
    """The replacement by these rewards, then the next period's texts, unless all have ended."""
    population = _exploit(model, params, evolution, population, rewards)
    over = ~jnp.any(_on(evolution, population))
    stay = lambda: (population, _judged(evolution, population.texts))
    explore = lambda: _explore(model, params, evolution, population)
    return *lax.cond(over, stay, explore), over


def _begin(model, params, inputs, lam, stream, evolution: Evolution) -> _Population:
    shape = stream.shape
    periods = _num_periods(evolution)
    room = periods * _period(evolution) + evolution.lookahead
    by_row = lambda x: x.reshape(-1, 1, *x.shape[2:])
    inputs = inputs.reshape(-1, inputs.shape[-1])
    none, nothing = jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, room), jnp.int32)
    never, zeros = jnp.zeros((*shape, periods), bool), jnp.zeros((*shape, periods))
    return _Population(
        state=model.start(params, inputs, by_row(lam), by_row(stream), room),
        texts=Texts(nothing, lengths=none, finished=none > 0),
        rewards=jnp.zeros(shape),
        written=nothing,
        history=History(zeros, never, never, never.astype(jnp.int32), zeros),
        positions=none[:, 0],
        rounds=none[:, 0],
        steps=jnp.zeros((), jnp.int32),
    )


def _period(evolution: Evolution) -> int:
    return min(evolution.period, evolution.sampling.max_length)


def _num_periods(evolution: Evolution) -> int:
    return -(-evolution.sampling.max_length // _period(evolution))


def _ended(evolution: Evolution, texts: Texts) -> Array:
    return texts.finished | (texts.lengths >= evolution.sampling.max_length)


def _on(evolution: Evolution, population: _Population) -> Array:
    """bool [B]: some text has not ended."""
    return jnp.any(~_ended(evolution, population.texts), axis=-1)


def _explore(
    model, params, evolution: Evolution, population: _Population
) -> tuple[_Population, tuple[Array, Array, Array]]:
    """The next m tokens of every text; and the texts to be judged, with their lookahead."""
    on, start, m = _on(evolution, population), population.steps, _period(evolution)
    write = functools.partial(_write, model, params, evolution)
    state, texts, log_probs = write(population.state, population.texts, start, m)
    longest = texts
    if evolution.lookahead:
        other = jax.vmap(jax.vmap(lambda key: _fold_in(key, _AHEAD, start + m)))(state.stream)
        ahead = write(state.replace(stream=other), texts, start + m, evolution.lookahead)
        longest, log_probs = ahead[1], log_probs + ahead[2]
    new = lax.dynamic_slice_in_dim(texts.tokens, start, m, axis=-1)
    spent = jnp.sum(longest.lengths - population.texts.lengths, axis=-1)
    written = lax.dynamic_update_index_in_dim(
        population.history.log_probs, log_probs, start // m, axis=-1
    )
    population = population.replace(
        history=population.history.replace(log_probs=written),
        state=state,
        texts=texts,
        written=lax.dynamic_update_slice_in_dim(population.written, new, start, axis=-1),
        steps=start + m,
        positions=population.positions + spent,
        rounds=population.rounds + on,
    )
    return population, _judged(evolution, longest)


def _write(
    model, params, evolution: Evolution, state: State, texts: Texts, start: Array, num_steps: int
) -> tuple[State, Texts, Array]:
    """`num_steps` tokens after the first `start`, of texts that have not ended, until all have.

    And the log-probabilities [B, N] of these tokens, summed.
    """
    shape = texts.lengths.shape
    last = lax.dynamic_index_in_dim(
        texts.tokens, jnp.maximum(start - 1, 0), axis=-1, keepdims=False
    )
    last = jnp.where(start == 0, model.start_token, last)
    by_row = lambda x: x.reshape(-1, 1)
    under_way = Hypotheses(state, by_row(last), by_row(texts.lengths), by_row(texts.finished))

    def going_on(carry):
        i, _, texts, _ = carry
        return (i < num_steps) & ~jnp.all(_ended(evolution, texts))

    def step(carry):
        i, under_way, texts, log_probs = carry
        under_way, drawn = decode_step(model, params, evolution.sampling, under_way)
        token = drawn.token.reshape(*shape, 1)
        texts = Texts(
            tokens=lax.dynamic_update_slice_in_dim(texts.tokens, token, start + i, axis=-1),
            lengths=under_way.lengths.reshape(shape),
            finished=under_way.finished.reshape(shape),
        )
        return i + 1, under_way, texts, log_probs + drawn.log_prob.reshape(shape)

    begun = 0, under_way, texts, jnp.zeros(shape)
    _, under_way, texts, log_probs = lax.while_loop(going_on, step, begun)
    return under_way.state, texts, log_probs


def _judged(evolution: Evolution, texts: Texts) -> tuple[Array, Array, Array]:
    """As a reward takes them."""
    return texts.tokens[..., : evolution.sampling.max_length], texts.lengths, texts.finished


def _exploit(
    model, params, evolution: Evolution, population: _Population, rewards: Array
) -> _Population:
    """The replacement, given rewards [B, N] of what was judged."""
    texts, state, steps = population.texts, population.state, population.steps
    ended = _ended(evolution, texts)
    drawn = draws(state.stream.reshape(ended.shape), steps, evolution.survivors)
    survived, donors = replacement(rewards, ended, drawn, evolution.survivors)
    take = jax.vmap(lambda rows, donors: rows[donors])
    texts, own_rewards = jax.tree.map(lambda x: take(x, donors), (texts, rewards))
    adopted = (donors != jnp.arange(donors.shape[1])) & ~_ended(evolution, texts)
    now = steps // _period(evolution) - 1
    put = lambda all, x: lax.dynamic_update_index_in_dim(all, x.astype(all.dtype), now, axis=-1)
    history = population.history
    events = {"rewards": rewards, "survived": survived, "ended": ended, "donors": donors}
    events = {name: put(getattr(history, name), x) for name, x in events.items()}
    return population.replace(
        state=_rebuild(model, params, evolution, state, texts.tokens, steps, adopted),
        texts=texts,
        rewards=own_rewards,
        history=history.replace(**events),
        positions=population.positions + steps * jnp.sum(adopted, axis=-1),
    )


def replacement(rewards: Array, ended: Array, drawn: Array, survivors: int) -> tuple[Array, Array]:
    """Who survives, and whose text everyone goes on with.

    Args:
        rewards: float32 [B, N].
        ended: bool [B, N]; who has ended is never replaced, but may be a donor.
        drawn: int32 [B, N] in [0, survivors): which of the best, in the order of their rewards,
            gives its text, if one has to take another's.
        survivors: k.

    Returns:
        survived bool [B, N], among the k best; donors int32 [B, N], oneself if not replaced.
    """
    _, best = lax.top_k(rewards, survivors)
    own = jnp.arange(rewards.shape[-1])
    survived = jnp.any(best[..., None] == own, axis=-2)
    return survived, jnp.where(survived | ended, own, jnp.take_along_axis(best, drawn, axis=-1))


def draws(stream: Array, steps: Array, survivors: int) -> Array:
    """int32 [B, N], uniform in [0, survivors), of keys stream[B, N] after so many tokens."""
    draw = lambda key: jax.random.randint(_fold_in(key, _DONOR, steps), (), 0, survivors)
    return jax.vmap(jax.vmap(draw))(stream)


def _fold_in(key: Array, *numbers: int | Array) -> Array:
    return functools.reduce(jax.random.fold_in, numbers, key)


def _rebuild(
    model, params, evolution: Evolution, state: State, tokens: Array, steps: Array, adopted: Array
) -> State:
    """The state in which who adopted[B, N] another's text has read it: tokens [B, N, L].

    At most N - k have, so only so many rows are fed, in blocks of m tokens.
    """
    (batch, n), m = adopted.shape, _period(evolution)
    _, index = lax.top_k(adopted.astype(jnp.int32), n - evolution.survivors)
    rows = (index + n * jnp.arange(batch)[:, None]).reshape(-1)
    fed = shift_right(tokens, model.start_token).reshape(batch * n, 1, -1)[rows]

    def feed(block: Array, state: State) -> State:
        some = lax.dynamic_slice_in_dim(fed, block * m, m, axis=-1)
        _, state = model.extend(params, state, some, jnp.full(some.shape[:2], m))
        return state.replace(lockstep=True)  # all rows are of one length

    blocks = jnp.where(jnp.any(adopted), steps // m, 0)
    rebuilt = lax.fori_loop(0, blocks, feed, rewind(jax.tree.map(lambda x: x[rows], state)))
    new = adopted.reshape(-1)[rows]

    def put(all: Array, some: Array) -> Array:
        here = new.reshape(-1, *[1] * (some.ndim - 1))
        return all.at[rows].set(jnp.where(here, some, all[rows]))

    return state.replace(cache=jax.tree.map(put, state.cache, rebuilt.cache))


def _result(evolution: Evolution, population: _Population) -> Generation:
    tokens, lengths, finished = _judged(evolution, population.texts)
    return Generation(
        texts=Texts(tokens, lengths, finished),
        rewards=population.rewards,
        written=population.written[..., : evolution.sampling.max_length],
        history=population.history,
        positions=population.positions,
        rounds=population.rounds,
    )


def _check(model, inputs, lam, stream, evolution: Evolution, reward: Reward):
    """The evolution with its end token, and lam as `known_lam` has it."""
    evolution = evolution.replace(sampling=with_end(evolution.sampling, model))
    check_evolution(evolution, model.vocab_size, reward)
    shape = checks.check_array("inputs", inputs, "token ids", jnp.integer, B=None, N=None, S=None)
    expected = shape[0], evolution.population
    if shape[:2] != expected or check_stream(stream) != expected:
        raise ValueError(
            f"a population of {evolution.population} needs inputs [B, N, S] and stream [B, N] of "
            f"(B, N) = {expected}; found {shape[:2]} and {stream.shape}"
        )
    checks.check_token_ids("inputs", inputs, num_input_ids(model))
    return evolution, known_lam(model, lam, stream.shape)


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
    if any(np.ndim(x) for x in jax.tree.leaves(evolution.sampling)):
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
