"""DeAL: beam search guided by a reward that may look ahead.

From every live hypothesis the k most likely next tokens are candidates. A candidate y_1..t of an
input x is worth

    score = log P(y_1..t | x) / ((5 + t)/6)^length_penalty + reward_weight·r(x, y_1..t ⊕ lookahead)

where the lookahead is a continuation that the model itself writes, and that is then thrown away:
neither its tokens nor its probability stay. The 2N best candidates of N beams compete under T5X's
rules: those that end join the N finished ones, the best N others live on. Without a reward this is
T5X's beam search, token for token.

With a period m only every m-th step scores. A hypothesis in between keeps the reward of its last
scoring, and what ends in between waits, unranked against the finished, for the next one.

Source: Huang et al. 2024 (arXiv 2402.06147); the pools, the penalty and the rule when to stop are
those of T5X's `decoding.beam_search`. One beam, no lookahead, length_penalty 0 and a reward model
are the token-level guidance of ARGS (Khanov et al. 2024, arXiv 2402.01694), but for the pool: a
text that ends does not end the search. With E end tokens (1 + E)·N candidates compete, N of them not ended.

Axes: B prompts, G searches of each prompt (one at each λ, say), N beams of a search, k candidates of
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
from dera_jax.decoding.arguments import check_by_row, check_prompts, end_ids, with_end_ids
from dera_jax.decoding.lookahead import look_ahead
from dera_jax.decoding.pools import EMPTY, Pool
from dera_jax.decoding.sampling import is_end
from dera_jax.decoding.search import Candidates, Guide
from dera_jax.decoding.search import search as run
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, State, select
from dera_jax.partitioning import top_k
from dera_jax.rewards.combined import Combined
from dera_jax.rewards.protocol import Reward, check_limit

_COPY = -1e30  # log-probability of beams 1 to N - 1 at the start, when all hold the same empty text


@struct.dataclass
class Search:
    """The settings of a search. Only static fields recompile; weight and penalty are scalars or
    [B, G] arrays.

    Attributes:
        max_length: static; tokens at most, the end token included.
        beams: static; N.
        top_k: static; k, candidates of every beam. T5X's search needs 2N.
        lookahead: static; tokens of the continuation by which a candidate is scored.
        greedy: static; the continuation is the most likely one, else sampled at temperature 1.
        period: static; score every so many tokens.
        reward_weight: of the reward against log-probability; the paper's α.
        length_penalty: T5X's alpha: log-probability is divided by ((5 + length)/6)^alpha.
        end_ids: the tokens that end a sequence, [E]; None for the model's, (-1,) for none.
    """

    max_length: int = struct.field(pytree_node=False)
    beams: int = struct.field(pytree_node=False, default=4)
    top_k: int = struct.field(pytree_node=False, default=8)
    lookahead: int = struct.field(pytree_node=False, default=0)
    greedy: bool = struct.field(pytree_node=False, default=True)
    period: int = struct.field(pytree_node=False, default=1)
    reward_weight: float | Array = 0.0
    length_penalty: float | Array = 0.6
    end_ids: tuple[int, ...] | Array | None = None


@struct.dataclass
class NBest:
    """What a search found, the best first.

    Attributes:
        pool: N hypotheses of each search: those that ended, or if none did, those still alive. Where
            there are fewer, places of length 0 follow.
        scores: float32 [B, G, N]; without the length penalty for hypotheses that have not ended, as
            in T5X.
        parts: the named parts of the reward, each [B, G, N]; empty if it has none.
        positions: int32 [B, G], tokens each of the model's decoders was fed while the search was
            on: N at every step, and the lookaheads. (Those of copies that fill beams at first do
            not count, as hypotheses that have ended do not.)
        rounds: int32 [B, G], how often its candidates were scored.
        steps: int32, tokens of the longest hypothesis looked at.
    """

    pool: Pool
    scores: Array
    parts: Mapping[str, Array]
    positions: Array
    rounds: Array
    steps: Array


@struct.dataclass
class _Sound:
    """bool [B, G]: all log-probabilities, all rewards of a search's candidates so far were numbers."""

    log_probs: Array
    rewards: Array


@struct.dataclass
class _Beams:
    """A search under way.

    Attributes:
        state: the model's, of K hypotheses; their last token is still to be fed.
        keys: PRNG keys [B, G], for lookaheads that are sampled.
        live, finished: the two pools, N hypotheses each.
        waiting: ended since the last scoring; N hypotheses, or 0 if every step scores.
        sound: what is not comes out as NaN in `NBest`.
        steps: int32, tokens of each live hypothesis.
        positions, rounds: see `NBest`.
    """

    state: State
    keys: Array
    live: Pool
    finished: Pool
    waiting: Pool
    sound: _Sound
    steps: Array
    positions: Array
    rounds: Array


def beam_search(
    model: LanguageModel,
    params: PyTree,
    prompts: Prompts,
    keys: Array,
    search: Search,
    guide: Guide | None = None,
) -> NBest:
    """Searches for the best sequence of each prompt.

    Args:
        model: any language model; a `Realigned` one mixes by the prompts' λ.
        params: its parameters.
        prompts: B of them; their λ [B, G] are one for each search.
        keys: PRNG keys [B, G] from `sequence_keys`, for a lookahead that is sampled.
        search: the settings.
        guide: the reward that guides the search; None for plain beam search.

    Raises:
        ValueError: an invalid setting, an argument that is no array of its type and shape, ids
            beyond the model's table, λ that is not finite, or what a reward in Python raises.
        FloatingPointError: a log-probability or reward of some candidate is NaN or infinite. Inside
            of an outer jit, log-probabilities or rewards, and scores, of that search are NaN.
    """
    reward = guide and guide.judge.reward
    search = with_end_ids(search, model)
    check_search(search, model.vocab_size, reward)
    check_prompts(model, prompts, keys)
    check_by_row(search, keys.shape, "reward_weight", "length_penalty")
    if guide is not None:
        guide.check(len(keys))
    rules = BeamRules(search, reward.highest if reward else 0.0)
    found = run(rules, model, params, prompts, keys, guide)
    values = {"log-probability": found.pool.log_probs, f"reward {reward}": found.pool.rewards}
    check_values(values, ("input", "search", "candidate"), prompts.lam)
    return found if guide is None else found.replace(parts=_parts(found.pool, guide))


@struct.dataclass
class BeamRules:
    """Beam search over the driver of `search`.

    Attributes:
        search: the settings.
        highest: static; no reward is higher; None where no bound is known.
    """

    search: Search
    highest: float | None = struct.field(pytree_node=False)

    def begin(self, model: LanguageModel, params: PyTree, prompts: Prompts, keys: Array) -> _Beams:
        """All beams hold the empty hypothesis, of which one counts."""
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
            sound=_Sound(*[jnp.ones(searches, bool)] * 2),
            steps=jnp.zeros((), jnp.int32),
            positions=jnp.zeros(searches, jnp.int32),
            rounds=jnp.zeros(searches, jnp.int32),
        )

    def explore(
        self, model: LanguageModel, params: PyTree, beams: _Beams
    ) -> tuple[tuple[_Beams, Pool], Candidates]:
        """The plain steps of a round, then candidates with their lookahead."""
        search = self.search
        on = ~self._decided(beams)  # [B, G]
        plain_steps = jnp.minimum(search.period, search.max_length - beams.steps) - 1
        plain = lambda _, beams: _plain_step(model, params, search, beams)
        if search.period > 1:
            beams = lax.fori_loop(0, plain_steps, plain, beams)
        state, candidates = _expand(model, params, search, beams)
        beams = _noting(beams, candidates)
        scored, spent = candidates, 0
        if search.lookahead:
            at = state, beams.keys, beams.steps
            scored, spent = look_ahead(model, params, search, at, candidates)
        positions = beams.positions + on * (search.beams * (plain_steps + 1) + spent)
        beams = beams.replace(state=state, positions=positions, rounds=beams.rounds + on)
        return (beams, candidates), pools.by_prompt(pools.join(scored, beams.waiting))

    def settle(
        self, model: LanguageModel, params: PyTree, explored: tuple[_Beams, Pool], rewards: Array
    ) -> _Beams:
        """The pools after a round, given rewards [B, G·R] of what was scored."""
        del model, params
        search, (beams, candidates) = self.search, explored
        *searches, num = candidates.lengths.shape
        rewards = rewards.reshape(*searches, -1)
        waiting = beams.waiting.replace(rewards=rewards[..., num:])
        beams, competing = _keep(search, beams, candidates.replace(rewards=rewards[..., :num]))
        sound = beams.sound.rewards & jnp.all(jnp.isfinite(rewards), axis=-1)
        return beams.replace(
            sound=beams.sound.replace(rewards=sound),
            finished=_best(search, pools.join(beams.finished, waiting, competing)),
            waiting=pools.empty(searches, search.max_length, _num_waiting(search)),
        )

    def is_over(self, beams: _Beams) -> Array:
        """At the length limit, or when all searches are decided."""
        return (beams.steps >= self.search.max_length) | jnp.all(self._decided(beams))

    def result(self, beams: _Beams) -> NBest:
        search, ended = self.search, jnp.any(beams.finished.finished, axis=-1, keepdims=True)
        pool = pools.where(ended, beams.finished, beams.live)
        weight = jnp.asarray(search.reward_weight)[..., None]
        scores = jnp.where(ended, _scores(search, pool), pool.log_probs + weight * pool.rewards)
        found = (pool.log_probs > EMPTY) & (pool.finished | ~ended)
        nothing = pools.empty(found.shape[:2], search.max_length, search.beams)
        pool = pools.where(found, pool, nothing)
        spoil = lambda sound, x: jnp.where(sound[..., None], x, jnp.nan)
        log_probs, rewards = beams.sound.log_probs, beams.sound.rewards
        return NBest(
            pool=pool.replace(
                log_probs=spoil(log_probs, pool.log_probs), rewards=spoil(rewards, pool.rewards)
            ),
            scores=spoil(log_probs & rewards, jnp.where(found, scores, EMPTY)),
            parts={},
            positions=beams.positions,
            rounds=beams.rounds,
            steps=beams.steps,
        )

    def _decided(self, beams: _Beams) -> Array:
        """bool [B, G]: whatever the live hypotheses become, the finished ones are better.

        A live one's log-probability only falls, and none is longer than the limit. (T5X adds one.)
        """
        search = self.search
        if self.highest is None:
            return jnp.zeros(beams.positions.shape, bool)
        worst = jnp.min(_scores(search, beams.finished), axis=-1)
        hope = jnp.max(beams.live.log_probs, axis=-1, keepdims=True)
        hope = (hope / _penalty(search, search.max_length + 1))[..., 0]
        full = jnp.all(beams.finished.finished, axis=-1)
        return full & (worst > hope + search.reward_weight * self.highest)


def _num_waiting(search: Search) -> int:
    return search.beams if search.period > 1 else 0


def _plain_step(model, params, search: Search, beams: _Beams) -> _Beams:
    state, candidates = _expand(model, params, search, beams)
    beams = _noting(beams, candidates)
    beams, competing = _keep(search, beams.replace(state=state), candidates)
    return beams.replace(waiting=_best(search, pools.join(beams.waiting, competing)))


def _expand(model, params, search: Search, beams: _Beams) -> tuple[State, Pool]:
    """Feeds every live hypothesis's last token; its k most likely continuations [B, G, N·k]."""
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


def _noting(beams: _Beams, candidates: Pool) -> _Beams:
    """Notes NaN among log-probabilities: comparisons with it are false, so it leaves no other trace."""
    numbers = ~jnp.any(jnp.isnan(candidates.log_probs), axis=-1)
    return beams.replace(sound=beams.sound.replace(log_probs=beams.sound.log_probs & numbers))


def _keep(search: Search, beams: _Beams, candidates: Pool) -> tuple[_Beams, Pool]:
    """Beams that went on with the N best of the competing candidates that have not ended; all these.

    With more candidates of every beam than end tokens, N of the (1 + E)·N competing ones have not
    ended.
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
    """The N best that have ended, of equal ones the first; if there are fewer, others follow."""
    scores = jnp.where(pools.has_ended(pool), _scores(search, pool), -jnp.inf)
    best = pools.take(pool, top_k(scores, search.beams)[1])
    return best.replace(finished=pools.has_ended(best))


def _scores(search: Search, pool: Pool) -> Array:
    weight = jnp.asarray(search.reward_weight)[..., None]
    return pool.log_probs / _penalty(search, pool.lengths) + weight * pool.rewards


def _penalty(search: Search, lengths: Array | int) -> Array:
    return ((5.0 + lengths) / 6.0) ** jnp.asarray(search.length_penalty)[..., None]


def _parts(pool: Pool, guide: Guide) -> Mapping[str, Array]:
    """The named parts [B, G, N] of the reward of what was found."""
    if not isinstance(guide.judge.reward, Combined):
        return {}
    _, parts = guide.score(pools.by_prompt(pool))
    return {name: x.reshape(pool.lengths.shape) for name, x in parts.items()}


def check_search(search: Search, vocab_size: int | None, reward: Reward | None) -> None:
    """Raise ValueError for invalid settings. Values traced by an outer jit are not seen.

    Args:
        search: the settings.
        vocab_size: V; None as long as no model is known.
        reward: that guides, `Reward()` as long as it is not known; None for plain beam search.

    Raises:
        ValueError: naming the setting, what is accepted and what was found.
    """
    amount = checks.number(least=0)
    if vocab_size is None:
        checks.check("Search.end_ids", search.end_ids, end_ids(None))
    num_ends = 1 if search.end_ids is None else len(search.end_ids)
    checks.check_traced(search, max_length=checks.whole(1))
    checks.check_traced(
        search,
        beams=checks.whole(1),
        top_k=checks.whole(
            1 + num_ends, vocab_size
        ),  # of a beam all end tokens may be the likeliest
        lookahead=checks.below_limit(0, search.max_length),
        greedy=checks.FLAG,
        period=checks.whole(1, search.max_length),
        reward_weight=amount,
        length_penalty=amount,
    )
    if reward is not None:
        check_limit(reward, search.max_length)
    weight = search.reward_weight
    if isinstance(weight, jax.core.Tracer):
        return
    if reward is None and (search.lookahead or np.any(weight)):
        raise ValueError(
            f"Search.reward_weight {weight} and lookahead {search.lookahead} are about a reward, "
            "and none is given: set both to 0, or give one."
        )
    if search.lookahead and not np.any(weight):
        raise ValueError(
            f"Search.reward_weight is {weight}, so a lookahead of {search.lookahead} would change "
            "nothing: set the weight, or the lookahead to 0."
        )
