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
text that ends does not end the search.

Axes: B inputs, G searches of each input (one at each λ, say), N beams of a search, k candidates of
a beam, R texts of a search, K = G·N hypotheses of the model, T output length, V vocabulary.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dera_jax import checks
from dera_jax.decoding.arguments import check_rows, end_id, with_end
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Hypotheses, Sampling, decode_step
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import LanguageModel, PyTree, State, select
from dera_jax.rewards.combined import Combined
from dera_jax.rewards.judge import Judge, score
from dera_jax.rewards.protocol import Reward, Source, check_limit

EMPTY = -1e7  # log-probability and score where no text is, as in T5X
_COPY = -1e30  # log-probability of beams 1 to N - 1 at the start, when all hold the same empty text


@struct.dataclass
class Search:
    """How to search. Only static fields recompile; weight and penalty are scalars or [B, G] arrays.

    Attributes:
        max_length: static; tokens at most, the end token included.
        beams: static; N.
        top_k: static; k, candidates of every beam. T5X's search needs 2N.
        lookahead: static; tokens of the continuation by which a candidate is judged.
        greedy: static; the continuation is the most likely one, else sampled at temperature 1.
        period: static; score every so many tokens.
        reward_weight: of the reward against log-probability; the paper's α.
        length_penalty: T5X's alpha: log-probability is divided by ((5 + length)/6)^alpha.
        eos_id: the end token; None for the model's, -1 for none.
    """

    max_length: int = struct.field(pytree_node=False)
    beams: int = struct.field(pytree_node=False, default=4)
    top_k: int = struct.field(pytree_node=False, default=8)
    lookahead: int = struct.field(pytree_node=False, default=0)
    greedy: bool = struct.field(pytree_node=False, default=True)
    period: int = struct.field(pytree_node=False, default=1)
    reward_weight: float | Array = 0.0
    length_penalty: float | Array = 0.6
    eos_id: int | Array | None = None


@struct.dataclass
class Texts:
    """Texts of each search.

    Attributes:
        tokens: int32 [B, G, R, T], 0 after each text.
        lengths: int32 [B, G, R], the end token included.
        finished: bool [B, G, R], it ends with the end token.
        log_probs: float32 [B, G, R], of the whole text.
        rewards: float32 [B, G, R], as last scored: with the lookahead, where it has not ended.
    """

    tokens: Array
    lengths: Array
    finished: Array
    log_probs: Array
    rewards: Array


@struct.dataclass
class NBest:
    """What a search found, the best first.

    Attributes:
        texts: N of each search: those that ended, or if none did, those still alive. Where there
            are fewer, slots of length 0 follow.
        scores: float32 [B, G, N]; without the length penalty for texts that have not ended, as in
            T5X.
        parts: the named parts of the reward, each [B, G, N]; empty if it has none.
        positions: int32 [B, G], tokens each of the model's decoders was fed while the search was
            on: N at every step, and the lookaheads. (Those of copies that fill beams at first do
            not count, as texts that have ended do not.)
        rounds: int32 [B, G], how often its candidates were judged.
        steps: int32, tokens of the longest text looked at.
    """

    texts: Texts
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
        live, finished: the two pools, N texts each.
        waiting: ended since the last scoring; N texts, or 0 if every step scores.
        sound: what is not comes out as NaN in `NBest`.
        steps: int32, tokens of each live text.
        positions, rounds: see `NBest`.
    """

    state: State
    live: Texts
    finished: Texts
    waiting: Texts
    sound: _Sound
    steps: Array
    positions: Array
    rounds: Array


@struct.dataclass
class _Round:
    """What waits for its rewards: candidates of N·k, and the texts to be judged in their place.

    `judged` are tokens [B, G·R, T], lengths and finished [B, G·R]: of each search the candidates
    with their lookahead, then the waiting texts.
    """

    beams: _Beams
    candidates: Texts
    judged: tuple[Array, Array, Array]


def beam_search(
    model: LanguageModel,
    params: PyTree,
    inputs: Array,
    lam: Array,
    stream: Array,
    search: Search,
    reward: Reward | None = None,
    reward_params: PyTree = None,
    source: Source | None = None,
) -> NBest:
    """Searches for the best text of each input, all in one compiled call.

    Args:
        model: any language model; a `Realigned` one mixes by `lam`.
        params: its parameters.
        inputs: int32 [B, S], 0 is padding.
        lam: float32 [B, G] (or [B, G, M] for M aligned models); a single model ignores it.
        stream: keys [B, G] from `streams`, for a lookahead that is sampled.
        search: how.
        reward: not `on_host`; None for plain beam search.
        reward_params: of `reward.load`.
        source: the documents as the reward is to know them.

    Raises:
        ValueError: an invalid setting, an argument that is no array of its type and shape, ids
            beyond the model's table, or lam that is not finite.
        FloatingPointError: a log-probability or reward of some candidate is NaN or infinite. Inside
            of an outer jit, log-probabilities or rewards, and scores, of that search are NaN.
    """
    search, lam = _check(model, inputs, lam, stream, search, reward)
    found = _search(model, params, inputs, lam, stream, search, reward, reward_params, source)
    return _checked(found, model, lam, reward)


def beam_search_on_host(
    model: LanguageModel,
    params: PyTree,
    inputs: Array,
    lam: Array,
    stream: Array,
    search: Search,
    judge: Judge,
    source: Source,
    documents: Sequence[str],
) -> NBest:
    """`beam_search` with a reward in Python: one compiled call between two calls of the judge.

    Args:
        judge: scores all texts of a round at once.
        documents: B texts, for the reward.

    Raises:
        ValueError, FloatingPointError: as `beam_search` and the judge.
    """
    search, lam = _check(model, inputs, lam, stream, search, judge.reward)
    following = functools.partial(_following_round, model, params, search, judge.reward.highest)
    this = _first_round(model, params, inputs, lam, stream, search)
    over = False
    while not over:
        rewards, _ = judge(source, documents, *this.judged)
        this, over = following(this, rewards)
    found = _checked(_result(search, this.beams), model, lam, judge.reward)
    if not isinstance(judge.reward, Combined):
        return found
    _, parts = judge(source, documents, *_flat(found.texts))
    return _with_parts(found, parts)


def _checked(found: NBest, model: LanguageModel, lam: Array, reward: Reward | None) -> NBest:
    """What a search found; raises FloatingPointError as `beam_search`."""
    lam = lam if isinstance(model, Realigned) else None
    values = {"log-probability": found.texts.log_probs, f"reward {reward}": found.texts.rewards}
    check_values(values, ("input", "search", "candidate"), lam)
    return found


@functools.partial(jax.jit, static_argnames=("model", "reward"))
def _search(
    model, params, inputs, lam, stream, search: Search, reward, reward_params, source
) -> NBest:
    highest = reward.highest if reward else 0.0

    def rewarded_round(beams: _Beams) -> _Beams:
        this = _explore(model, params, search, highest, beams)
        rewards = jnp.zeros(this.judged[1].shape)
        if reward:
            rewards = reward(reward_params, source, *this.judged)
        return _settle(search, this, rewards)

    beams = _begin(model, params, inputs, lam, stream, search)
    beams = lax.while_loop(lambda x: ~_over(search, highest, x), rewarded_round, beams)
    found = _result(search, beams)
    if not reward:
        return found
    _, parts = score(reward, reward_params, source, *_flat(found.texts))
    return _with_parts(found, parts)


@functools.partial(jax.jit, static_argnames="model")
def _first_round(model, params, inputs, lam, stream, search: Search) -> _Round:
    beams = _begin(model, params, inputs, lam, stream, search)
    return _explore(model, params, search, None, beams)


@functools.partial(jax.jit, static_argnames=("model", "highest"))
def _following_round(
    model, params, search: Search, highest: float | None, this: _Round, rewards: Array
) -> tuple[_Round, Array]:
    """The round after `this`, or `this` with its beams settled if the search is over."""
    beams = _settle(search, this, rewards)
    over = _over(search, highest, beams)
    stay = lambda: this.replace(beams=beams)
    explore = lambda: _explore(model, params, search, highest, beams)
    return lax.cond(over, stay, explore), over


def _begin(model, params, inputs, lam, stream, search: Search) -> _Beams:
    groups, n = stream.shape, search.beams
    room = search.max_length + search.lookahead
    per_beam = lambda x: jnp.repeat(x, n, axis=1)
    state = model.start(params, inputs, per_beam(lam), per_beam(stream), room)
    empty = functools.partial(_empty, groups, search.max_length)
    first = jnp.where(jnp.arange(n) == 0, 0.0, _COPY)
    return _Beams(
        state=state,
        live=empty(n).replace(log_probs=jnp.broadcast_to(first, (*groups, n))),
        finished=empty(n),
        waiting=empty(_num_waiting(search)),
        sound=_Sound(*[jnp.ones(groups, bool)] * 2),
        steps=jnp.zeros((), jnp.int32),
        positions=jnp.zeros(groups, jnp.int32),
        rounds=jnp.zeros(groups, jnp.int32),
    )


def _empty(groups: tuple[int, int], max_length: int, num: int) -> Texts:
    shape = (*groups, num)
    none = jnp.zeros(shape, jnp.int32)
    return Texts(
        tokens=jnp.zeros((*shape, max_length), jnp.int32),
        lengths=none,
        finished=none > 0,
        log_probs=jnp.full(shape, EMPTY),
        rewards=jnp.zeros(shape),
    )


def _num_waiting(search: Search) -> int:
    return search.beams if search.period > 1 else 0


def _explore(model, params, search: Search, highest: float | None, beams: _Beams) -> _Round:
    """The plain steps of a round, then candidates with their lookahead."""
    on = ~_decided(search, highest, beams)  # [B, G]
    plain_steps = jnp.minimum(search.period, search.max_length - beams.steps) - 1
    plain = lambda _, beams: _plain_step(model, params, search, beams)
    if search.period > 1:
        beams = lax.fori_loop(0, plain_steps, plain, beams)
    state, candidates = _expand(model, params, search, beams)
    beams = _noting(beams, candidates)
    judged, spent = candidates, 0
    if search.lookahead:
        judged, spent = _look_ahead(model, params, search, state, candidates, beams.steps)
    judged = _flat(_join(judged, beams.waiting))
    positions = beams.positions + on * (search.beams * (plain_steps + 1) + spent)
    beams = beams.replace(state=state, positions=positions, rounds=beams.rounds + on)
    return _Round(beams, candidates, judged)


def _plain_step(model, params, search: Search, beams: _Beams) -> _Beams:
    state, candidates = _expand(model, params, search, beams)
    beams = _noting(beams, candidates)
    beams, competing = _keep(search, beams.replace(state=state), candidates)
    return beams.replace(waiting=_best(search, _join(beams.waiting, competing)))


def _expand(model, params, search: Search, beams: _Beams) -> tuple[State, Texts]:
    """Feeds every live text's last token; its k most likely continuations [B, G, N·k]."""
    live, steps, k = beams.live, beams.steps, search.top_k
    last = lax.dynamic_index_in_dim(live.tokens, jnp.maximum(steps - 1, 0), axis=-1, keepdims=False)
    last = jnp.where(steps == 0, model.start_token, last)
    output, state = model.step(params, beams.state, last.reshape(beams.state.stream.shape))
    log_probs, tokens = lax.top_k(jax.nn.log_softmax(output.logits), k)  # [B, K, k]
    candidates = jax.tree.map(lambda x: jnp.repeat(x, k, axis=2), live)
    tokens = tokens.reshape(candidates.lengths.shape)
    return state, candidates.replace(
        tokens=lax.dynamic_update_slice_in_dim(
            candidates.tokens, tokens[..., None], steps, axis=-1
        ),
        lengths=candidates.lengths + 1,
        finished=tokens == search.eos_id,
        log_probs=candidates.log_probs + log_probs.reshape(tokens.shape),
    )


def _noting(beams: _Beams, candidates: Texts) -> _Beams:
    """Notes NaN among log-probabilities: comparisons with it are false, so it leaves no other trace."""
    numbers = ~jnp.any(jnp.isnan(candidates.log_probs), axis=-1)
    return beams.replace(sound=beams.sound.replace(log_probs=beams.sound.log_probs & numbers))


def _look_ahead(
    model, params, search: Search, state: State, candidates: Texts, steps: Array
) -> tuple[Texts, Array]:
    """The candidates of steps + 1 tokens with their lookahead, and the tokens [B, G] it took.

    Each candidate is a hypothesis of the model for a while, with a copy of its beam's cache.
    """
    shape = candidates.lengths.shape  # [B, G, N·k]
    by_row = lambda x: x.reshape(shape[0], -1)
    by_search = lambda x: x.reshape(*shape, *x.shape[2:])
    beam = jnp.broadcast_to(jnp.arange(shape[2]) // search.top_k, shape)
    state = select(state, _rows(search, beam), _lookahead_streams(search, state, shape, steps))
    token = lax.dynamic_index_in_dim(candidates.tokens, steps, axis=-1, keepdims=False)
    start = (by_row(x) for x in (token, candidates.lengths, candidates.finished))
    sampling = Sampling(search.max_length, greedy=search.greedy, eos_id=search.eos_id)

    def step(hypotheses: Hypotheses, _) -> tuple[Hypotheses, Array]:
        hypotheses, tokens = decode_step(model, params, sampling, hypotheses)
        return hypotheses, tokens.token

    end, ahead = lax.scan(step, Hypotheses(state, *start), length=search.lookahead)
    ahead = by_search(jnp.moveaxis(ahead, 0, -1))
    room = jnp.pad(candidates.tokens, [(0, 0)] * 3 + [(0, search.lookahead)])
    tokens = lax.dynamic_update_slice_in_dim(room, ahead, steps + 1, axis=-1)
    lengths = by_search(end.lengths)
    longer = candidates.replace(
        tokens=tokens[..., : search.max_length], lengths=lengths, finished=by_search(end.finished)
    )
    spent = (lengths - candidates.lengths) * (candidates.log_probs > EMPTY)
    return longer, jnp.sum(spent, axis=-1)


def _lookahead_streams(search: Search, state: State, shape: tuple, steps: Array) -> Array:
    """Keys [B, G·N·k], new ones at every step: the search's own, step and candidate folded in."""
    own = state.stream.reshape(*shape[:2], search.beams)[..., 0]
    draw = lambda key, number: jax.random.fold_in(jax.random.fold_in(key, steps), number)
    keys = jax.vmap(jax.vmap(jax.vmap(draw, (None, 0)), (0, None)), (0, None))
    return keys(own, jnp.arange(shape[2])).reshape(shape[0], -1)


def _settle(search: Search, this: _Round, rewards: Array) -> _Beams:
    """The pools after a round, given rewards [B, G·R] of what was to be judged."""
    num = this.candidates.lengths.shape[-1]
    rewards = rewards.reshape(*this.candidates.lengths.shape[:2], -1)
    waiting = this.beams.waiting.replace(rewards=rewards[..., num:])
    candidates = this.candidates.replace(rewards=rewards[..., :num])
    beams, competing = _keep(search, this.beams, candidates)
    groups = rewards.shape[:2]
    sound = beams.sound.rewards & jnp.all(jnp.isfinite(rewards), axis=-1)
    return beams.replace(
        sound=beams.sound.replace(rewards=sound),
        finished=_best(search, _join(beams.finished, waiting, competing)),
        waiting=_empty(groups, search.max_length, _num_waiting(search)),
    )


def _keep(search: Search, beams: _Beams, candidates: Texts) -> tuple[_Beams, Texts]:
    """Beams that went on with the N best of the 2N best candidates that have not ended; the 2N."""
    scores, best = lax.top_k(_scores(search, candidates), 2 * search.beams)
    competing = _take(candidates, best)
    # With two candidates or more of every beam, N of the 2N have not ended.
    _, index = lax.top_k(jnp.where(competing.finished, -jnp.inf, scores), search.beams)
    beam = jnp.take_along_axis(best, index, axis=-1) // search.top_k
    state = select(beams.state, _rows(search, beam))
    live = _take(competing, index)
    return beams.replace(state=state, live=live, steps=beams.steps + 1), competing


def _best(search: Search, texts: Texts) -> Texts:
    """The N best that have ended, of equal ones the first; if there are fewer, others follow."""
    scores = jnp.where(_has_ended(texts), _scores(search, texts), -jnp.inf)
    best = _take(texts, lax.top_k(scores, search.beams)[1])
    return best.replace(finished=_has_ended(best))


def _has_ended(texts: Texts) -> Array:
    """bool [B, G, R]; not where a slot is empty, nor for the copies a search begins with."""
    return texts.finished & (texts.log_probs > EMPTY)


def _scores(search: Search, texts: Texts) -> Array:
    weight = jnp.asarray(search.reward_weight)[..., None]
    return texts.log_probs / _penalty(search, texts.lengths) + weight * texts.rewards


def _penalty(search: Search, lengths: Array | int) -> Array:
    return ((5.0 + lengths) / 6.0) ** jnp.asarray(search.length_penalty)[..., None]


def _decided(search: Search, highest: float | None, beams: _Beams) -> Array:
    """bool [B, G]: whatever the live texts become, the finished ones are better.

    A live text's log-probability only falls, and no text is longer than the limit. (T5X adds one.)
    """
    if highest is None:
        return jnp.zeros(beams.positions.shape, bool)
    worst = jnp.min(_scores(search, beams.finished), axis=-1)
    hope = jnp.max(beams.live.log_probs, axis=-1, keepdims=True)
    hope = (hope / _penalty(search, search.max_length + 1))[..., 0]
    full = jnp.all(beams.finished.finished, axis=-1)
    return full & (worst > hope + search.reward_weight * highest)


def _over(search: Search, highest: float | None, beams: _Beams) -> Array:
    return (beams.steps >= search.max_length) | jnp.all(_decided(search, highest, beams))


def _result(search: Search, beams: _Beams) -> NBest:
    ended = jnp.any(beams.finished.finished, axis=-1, keepdims=True)
    texts = _where(ended, beams.finished, beams.live)
    weight = jnp.asarray(search.reward_weight)[..., None]
    scores = jnp.where(ended, _scores(search, texts), texts.log_probs + weight * texts.rewards)
    found = (texts.log_probs > EMPTY) & (texts.finished | ~ended)
    texts = _where(found, texts, _empty(found.shape[:2], search.max_length, search.beams))
    spoil = lambda sound, x: jnp.where(sound[..., None], x, jnp.nan)
    log_probs, rewards = beams.sound.log_probs, beams.sound.rewards
    return NBest(
        texts=texts.replace(
            log_probs=spoil(log_probs, texts.log_probs), rewards=spoil(rewards, texts.rewards)
        ),
        scores=spoil(log_probs & rewards, jnp.where(found, scores, EMPTY)),
        parts={},
        positions=beams.positions,
        rounds=beams.rounds,
        steps=beams.steps,
    )


def _with_parts(found: NBest, parts: Mapping[str, Array]) -> NBest:
    """parts: each [B, G·N]."""
    shape = found.scores.shape
    return found.replace(parts={name: x.reshape(shape) for name, x in parts.items()})


def _where(condition: Array, texts: Texts, others: Texts) -> Texts:
    """By condition [B, G, R]."""
    pick = lambda x, y: jnp.where(condition.reshape(*condition.shape, *[1] * (x.ndim - 3)), x, y)
    return jax.tree.map(pick, texts, others)


def _join(*texts: Texts) -> Texts:
    """Those of each search one after the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *texts)


def _take(texts: Texts, index: Array) -> Texts:
    """Texts index[B, G, R'] of each search."""
    gather = jax.vmap(jax.vmap(lambda rows, at: rows[at]))
    return jax.tree.map(lambda x: gather(x, index), texts)


def _rows(search: Search, beam: Array) -> Array:
    """Beams [B, G, R] of their searches -> hypotheses [B, G·R] of the model."""
    groups = jnp.arange(beam.shape[1])[:, None]
    return (beam + search.beams * groups).reshape(beam.shape[0], -1)


def _flat(texts: Texts) -> tuple[Array, Array, Array]:
    """Tokens [B, G·R, T], lengths and finished [B, G·R], as a reward takes them."""
    batch, _, _, max_length = texts.tokens.shape
    tokens = texts.tokens.reshape(batch, -1, max_length)
    return tokens, texts.lengths.reshape(batch, -1), texts.finished.reshape(batch, -1)


def _check(
    model, inputs, lam, stream, search: Search, reward: Reward | None
) -> tuple[Search, Array]:
    """The search with its end token, and lam as `known_lam` has it."""
    search = with_end(search, model)
    check_search(search, model.vocab_size, reward)
    return search, check_rows(model, inputs, lam, stream)


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
    checks.check_traced(search, max_length=checks.whole(1))
    checks.check_traced(
        search,
        beams=checks.whole(1),
        top_k=checks.whole(2, vocab_size),  # one candidate may be the end token
        lookahead=checks.below_limit(0, search.max_length),
        greedy=checks.FLAG,
        period=checks.whole(1, search.max_length),
        reward_weight=amount,
        length_penalty=amount,
        eos_id=end_id(vocab_size),
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
