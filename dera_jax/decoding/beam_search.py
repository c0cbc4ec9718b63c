"""Implements DeAL: beam search guided by a reward function, with optional lookahead.

The k most likely next tokens of every live hypothesis are candidates. For prompt x, the candidate
y_1..t has the

    score = log P(y_1..t | x) / ((5 + t)/6)^length_penalty + reward_weight·r(x, y_1..t ⊕ lookahead)

where the lookahead is a continuation that the model generates and that is discarded after scoring:
it adds neither tokens nor log-probability. The pools follow T5X: of the 2N best candidates of N
beams, those that have ended compete to be among the N finished ones; the N best others stay live.
Without a reward, and with T5X's length penalty of 0.6, the result is that of T5X's beam search, token
for token.

With period m only every m-th step calls the reward. In between a hypothesis keeps its last reward,
and hypotheses that end wait for the next scoring before they compete with the finished ones.

Source: Huang et al. 2024 (arXiv 2402.06147). Pools, length penalty and early stopping are those of
T5X's `decoding.beam_search`, extended to E end tokens: the (1 + E)·N best candidates compete. With
one beam, no lookahead, length_penalty 0 and a reward model this is the token-level guidance of ARGS
(Khanov et al. 2024, arXiv 2402.01694), except that an ended sequence does not end the search.

Axes: B prompts, G searches of each prompt (e.g. one per λ), N beams of a search, k candidates of
a beam, R hypotheses of a search, K = G·N hypotheses of the model, T output length, V vocabulary.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dera_jax import checks
from dera_jax.decoding import pools
from dera_jax.decoding.arguments import check_per_key, check_prompts, end_ids, with_end_ids
from dera_jax.decoding.lookahead import look_ahead
from dera_jax.decoding.pools import EMPTY, Pool
from dera_jax.decoding.sampling import is_end
from dera_jax.decoding.search import Candidates, Guide
from dera_jax.decoding.search import search as run
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, State, select
from dera_jax.partitioning import top_k
from dera_jax.rewards.protocol import Reward, check_limit

# Initial log-probability of beams 1 to N - 1, which hold copies of the empty sequence of beam 0.
_COPY = -1e30


@struct.dataclass
class Search:
    """Beam-search settings; weight and penalty may be arrays [B, G]. Only static fields recompile.

    Attributes:
        max_length: static; maximum number of tokens, including the end token.
        beams: static; N, number of beams.
        top_k: static; k, candidates of each beam. At least 2N are needed to reproduce T5X's search.
        lookahead: static; maximum number of tokens of the lookahead.
        greedy: static; whether the lookahead is greedy; else it is sampled at temperature 1.
        period: static; m, number of tokens between two scorings.
        reward_weight: weight of the reward relative to the log-probability; the paper's α.
        length_penalty: T5X's alpha: the log-probability is divided by ((5 + length)/6)^alpha; 0 for
            none, as published. T5X's default is 0.6.
        end_ids: ids of the tokens that end a sequence, [E]; None for the model's, (-1,) for none.
    """

    max_length: int = struct.field(pytree_node=False)
    beams: int = struct.field(pytree_node=False, default=4)
    top_k: int = struct.field(pytree_node=False, default=8)
    lookahead: int = struct.field(pytree_node=False, default=0)
    greedy: bool = struct.field(pytree_node=False, default=True)
    period: int = struct.field(pytree_node=False, default=1)
    reward_weight: float | Array = 0.0
    length_penalty: float | Array = 0.0
    end_ids: tuple[int, ...] | Array | None = None


@struct.dataclass
class NBest:
    """The N best hypotheses of each search, best first.

    Attributes:
        pool: the finished hypotheses or, if there is none, the live ones; then entries of length 0.
        scores: float32 [B, G, N]; hypotheses that have not ended have no length penalty, as in T5X.
        parts: the named parts of the reward, each [B, G, N]; empty if it has none.
        forward_tokens: int32 [B, G], tokens processed by each component's decoder until the search
            stopped: N at every step, and the lookaheads. Lookaheads of initial copies and of
            hypotheses that have ended do not count.
        rounds: int32 [B, G], number of rounds in which candidates were scored.
        steps: int32, number of tokens of the longest hypothesis that was considered.
    """

    pool: Pool
    scores: Array
    parts: Mapping[str, Array]
    forward_tokens: Array
    rounds: Array
    steps: Array


@struct.dataclass
class _Valid:
    """bool [B, G]: so far no candidate's log-probability is NaN, and all rewards are finite."""

    log_probs: Array
    rewards: Array


@struct.dataclass
class _Beams:
    """The progress of B x G searches between two rounds.

    Attributes:
        state: the model's state for K hypotheses; their last token is not fed yet.
        keys: PRNG keys [B, G], for sampled lookaheads.
        live, finished: the two pools, N hypotheses each.
        waiting: hypotheses that ended since the last scoring; N, or 0 if every step is scored.
        valid: log-probabilities and rewards of searches that are not valid become NaN in `NBest`.
        steps: int32, number of tokens of each live hypothesis.
        forward_tokens, rounds: see `NBest`.
    """

    state: State
    keys: Array
    live: Pool
    finished: Pool
    waiting: Pool
    valid: _Valid
    steps: Array
    forward_tokens: Array
    rounds: Array


def beam_search(
    model: LanguageModel,
    params: PyTree,
    prompts: Prompts,
    keys: Array,
    search: Search,
    guide: Guide | None = None,
) -> NBest:
    """Searches for the N best sequences of each prompt, by the score of this module.

    Args:
        model: any language model; a `Realigned` one combines its components by the prompts' λ.
        params: the model's parameters.
        prompts: B prompts; their λ [B, G] has a value for each search.
        keys: PRNG keys [B, G] from `sequence_keys`, for sampled lookaheads.
        search: the settings.
        guide: the reward that guides the search; None for plain beam search.

    Raises:
        ValueError: a setting is invalid, an argument has another type or shape, an id is outside
            the vocabulary, λ is not finite; or whatever a Python reward raises.
        FloatingPointError: a candidate's log-probability or reward is NaN or infinite. In an outer
            jit, that search's log-probabilities or rewards, and its scores, are NaN instead.
    """
    reward = guide and guide.scorer.reward
    search = with_end_ids(search, model)
    check_search(search, model.vocab_size, reward)
    check_prompts(model, prompts, keys)
    check_per_key(search, keys.shape, "reward_weight", "length_penalty")
    if guide is not None:
        guide.check(len(keys))
    rules = BeamRules(search, reward.highest if reward else 0.0)
    n_best = run(rules, model, params, prompts, keys, guide)
    values = {"log-probability": n_best.pool.log_probs, f"reward {reward}": n_best.pool.rewards}
    check_values(values, ("input", "search", "candidate"), prompts.lam)
    return n_best if guide is None else n_best.replace(parts=_parts(n_best.pool, guide))


@struct.dataclass
class BeamRules:
    """Beam search as rules of `search.search`.

    Attributes:
        search: the settings.
        highest: static; upper bound of the reward, which allows early stopping; None if unknown.
    """

    search: Search
    highest: float | None = struct.field(pytree_node=False)

    def begin(self, model: LanguageModel, params: PyTree, prompts: Prompts, keys: Array) -> _Beams:
        """Fills all beams with the empty hypothesis; only beam 0 has log-probability 0."""
        search, searches = self.search, keys.shape
        n, room = search.beams, search.max_length + search.lookahead
        first = jnp.where(jnp.arange(n) == 0, jnp.float32(0), _COPY)
        empty = functools.partial(pools.empty, searches, search.max_length)
        return _Beams(
            state=model.start(params, prompts, searches[1] * n, room),
            keys=keys,
            live=empty(n).replace(log_probs=jnp.broadcast_to(first, (*searches, n))),
            finished=empty(n),
            waiting=empty(_num_waiting(search)),
            valid=_Valid(*[jnp.ones(searches, bool)] * 2),
            steps=jnp.zeros((), jnp.int32),
            forward_tokens=jnp.zeros(searches, jnp.int32),
            rounds=jnp.zeros(searches, jnp.int32),
        )

    def explore(
        self, model: LanguageModel, params: PyTree, beams: _Beams
    ) -> tuple[tuple[_Beams, Pool], Candidates]:
        """Runs the m - 1 steps without scoring, then expands candidates and their lookahead."""
        search = self.search
        active = ~self._decided(beams)  # [B, G]
        plain_steps = jnp.minimum(search.period, search.max_length - beams.steps) - 1
        plain = lambda _, beams: _plain_step(model, params, search, beams)
        if search.period > 1:
            beams = lax.fori_loop(0, plain_steps, plain, beams)
        state, candidates = _expand(model, params, search, beams)
        beams = _record_nan(beams, candidates)
        scored, extra = candidates, 0
        if search.lookahead:
            at = state, beams.keys, beams.steps
            scored, extra = look_ahead(model, params, search, at, candidates)
        processed = beams.forward_tokens + active * (search.beams * (plain_steps + 1) + extra)
        beams = beams.replace(state=state, forward_tokens=processed, rounds=beams.rounds + active)
        return (beams, candidates), pools.by_prompt(pools.join(scored, beams.waiting))

    def settle(
        self, model: LanguageModel, params: PyTree, explored: tuple[_Beams, Pool], rewards: Array
    ) -> _Beams:
        """Updates the pools, given rewards [B, G·R] of candidates and waiting hypotheses."""
        del model, params
        search, (beams, candidates) = self.search, explored
        *searches, num = candidates.lengths.shape
        rewards = rewards.reshape(*searches, -1)
        waiting = beams.waiting.replace(rewards=rewards[..., num:])
        beams, competing = _keep(search, beams, candidates.replace(rewards=rewards[..., :num]))
        valid = beams.valid.rewards & jnp.all(jnp.isfinite(rewards), axis=-1)
        return beams.replace(
            valid=beams.valid.replace(rewards=valid),
            finished=_best(search, pools.join(beams.finished, waiting, competing)),
            waiting=pools.empty(searches, search.max_length, _num_waiting(search)),
        )

    def is_over(self, beams: _Beams) -> Array:
        """Returns whether the length limit is reached or all searches are decided."""
        return (beams.steps >= self.search.max_length) | jnp.all(self._decided(beams))

    def result(self, beams: _Beams) -> NBest:
        """Returns the finished hypotheses of each search or, if there is none, the live ones."""
        search, ended = self.search, jnp.any(beams.finished.finished, axis=-1, keepdims=True)
        pool = pools.where(ended, beams.finished, beams.live)
        weight = jnp.asarray(search.reward_weight)[..., None]
        scores = jnp.where(ended, _scores(search, pool), pool.log_probs + weight * pool.rewards)
        used = (pool.log_probs > EMPTY) & (pool.finished | ~ended)
        empty = pools.empty(used.shape[:2], search.max_length, search.beams)
        pool = pools.where(used, pool, empty)
        or_nan = lambda valid, x: jnp.where(valid[..., None], x, jnp.nan)
        log_probs, rewards = beams.valid.log_probs, beams.valid.rewards
        return NBest(
            pool=pool.replace(
                log_probs=or_nan(log_probs, pool.log_probs), rewards=or_nan(rewards, pool.rewards)
            ),
            scores=or_nan(log_probs & rewards, jnp.where(used, scores, EMPTY)),
            parts={},
            forward_tokens=beams.forward_tokens,
            rounds=beams.rounds,
            steps=beams.steps,
        )

    def _decided(self, beams: _Beams) -> Array:
        """Returns bool [B, G], whether all N finished hypotheses are better than live ones can get.

        Log-probability only falls, and (as in T5X) the penalty is at most that of the limit + 1.
        """
        search = self.search
        if self.highest is None:
            return jnp.zeros(beams.forward_tokens.shape, bool)
        worst = jnp.min(_scores(search, beams.finished), axis=-1)
        bound = jnp.max(beams.live.log_probs, axis=-1, keepdims=True)
        bound = (bound / _penalty(search, search.max_length + 1))[..., 0]
        full = jnp.all(beams.finished.finished, axis=-1)
        return full & (worst > bound + search.reward_weight * self.highest)


def _num_waiting(search: Search) -> int:
    return search.beams if search.period > 1 else 0


def _plain_step(model, params, search: Search, beams: _Beams) -> _Beams:
    state, candidates = _expand(model, params, search, beams)
    beams = _record_nan(beams, candidates)
    beams, competing = _keep(search, beams.replace(state=state), candidates)
    return beams.replace(waiting=_best(search, pools.join(beams.waiting, competing)))


def _expand(model, params, search: Search, beams: _Beams) -> tuple[State, Pool]:
    """Feeds each live hypothesis's last token; returns its k likeliest extensions [B, G, N·k]."""
    live, steps, k = beams.live, beams.steps, search.top_k
    last = lax.dynamic_index_in_dim(live.tokens, jnp.maximum(steps - 1, 0), axis=-1, keepdims=False)
    last = jnp.where(steps == 0, beams.state.first_token[:, None, None], last)
    output, state = model.step(params, beams.state, last.reshape(len(last), -1))
    log_probs, tokens = top_k(jax.nn.log_softmax(output.logits), k)  # [B, K, k]
    candidates = jax.tree.map(lambda x: jnp.repeat(x, k, axis=2), live)
    tokens = tokens.reshape(candidates.lengths.shape)
    return state, candidates.replace(
        tokens=lax.dynamic_update_slice_in_dim(
            candidates.tokens, tokens[..., None], steps, axis=-1
        ),
        lengths=candidates.lengths + 1,
        finished=is_end(tokens, search.end_ids),
        log_probs=candidates.log_probs + log_probs.reshape(tokens.shape),
    )


def _record_nan(beams: _Beams, candidates: Pool) -> _Beams:
    """Records NaN log-probabilities, which comparisons, being False, would drop without a trace."""
    valid = ~jnp.any(jnp.isnan(candidates.log_probs), axis=-1)
    return beams.replace(valid=beams.valid.replace(log_probs=beams.valid.log_probs & valid))


def _keep(search: Search, beams: _Beams, candidates: Pool) -> tuple[_Beams, Pool]:
    """Selects the (1 + E)·N best candidates; the N best of those that have not ended become live.

    There are N of them, since each beam has more candidates than there are end tokens. Returns the
    beams and all candidates selected.
    """
    competitors = (1 + len(search.end_ids)) * search.beams
    scores, best = top_k(_scores(search, candidates), competitors)
    competing = pools.take(candidates, best)
    _, index = top_k(jnp.where(competing.finished, -jnp.inf, scores), search.beams)
    beam = jnp.take_along_axis(best, index, axis=-1) // search.top_k
    state = select(beams.state, pools.hypotheses(beam, search.beams))
    live = pools.take(competing, index)
    return beams.replace(state=state, live=live, steps=beams.steps + 1), competing


def _best(search: Search, pool: Pool) -> Pool:
    """Returns the N best finished hypotheses (first if tied); if there are fewer, others follow."""
    scores = jnp.where(pools.has_ended(pool), _scores(search, pool), -jnp.inf)
    best = pools.take(pool, top_k(scores, search.beams)[1])
    return best.replace(finished=pools.has_ended(best))


def _scores(search: Search, pool: Pool) -> Array:
    weight = jnp.asarray(search.reward_weight)[..., None]
    return pool.log_probs / _penalty(search, pool.lengths) + weight * pool.rewards


def _penalty(search: Search, lengths: Array | int) -> Array:
    return ((5.0 + lengths) / 6.0) ** jnp.asarray(search.length_penalty)[..., None]


def _parts(pool: Pool, guide: Guide) -> Mapping[str, Array]:
    """Returns the named parts [B, G, N] of the reward of the hypotheses."""
    if not guide.scorer.reward.summands:
        return {}
    _, parts = guide.score(pools.by_prompt(pool))
    return {name: x.reshape(pool.lengths.shape) for name, x in parts.items()}


def check_search(search: Search, vocab_size: int | None, reward: Reward | None) -> None:
    """Validates beam-search settings. Values traced by an outer jit are skipped.

    Args:
        search: the settings.
        vocab_size: V; None if the model is not known yet.
        reward: the guiding reward; `Reward()` if not known yet; None for plain beam search.

    Raises:
        ValueError: a setting is invalid; the message names it, what is accepted, what was found.
    """
    nonnegative = checks.number(least=0)
    if vocab_size is None:
        checks.check("Search.end_ids", search.end_ids, end_ids(None))
    num_ends = 1 if search.end_ids is None else len(search.end_ids)
    checks.check_traced(search, max_length=checks.integer(1))
    checks.check_traced(
        search,
        beams=checks.integer(1),
        top_k=checks.integer(
            1 + num_ends, vocab_size
        ),  # all end tokens may be the likeliest of a beam
        lookahead=checks.below_limit(0, search.max_length),
        greedy=checks.FLAG,
        period=checks.integer(1, search.max_length),
        reward_weight=nonnegative,
        length_penalty=nonnegative,
    )
    if reward is not None:
        check_limit(reward, search.max_length)
    weight = search.reward_weight
    if isinstance(weight, jax.core.Tracer):
        return
    if reward is None and (search.lookahead or np.any(weight)):
        raise ValueError(
            f"Search.reward_weight {weight} and lookahead {search.lookahead} need a reward, "
            "and none is given: set both to 0, or give one."
        )
    if search.lookahead and not np.any(weight):
        raise ValueError(
            f"Search.reward_weight is {weight}, so a lookahead of {search.lookahead} would change "
            "nothing: set reward_weight above 0, or lookahead to 0."
        )
