"""The search with lookahead rewards as one writes it first: Python lists, no cache, one document.

DeAL (Huang et al. 2024, arXiv 2402.06147) on the rules of T5X's beam search: every `period` tokens
the candidates of a beam search are continued greedily by `lookahead` tokens, a reward scores what
they would become, and it is added to their scores. It is here as the reference that the compiled
search is tested against, and as the Python loop over a jitted forward pass to time it beside.

Axes: R prefixes, S prompt length, T output length, V vocabulary, E end tokens, M aligned models.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, State
from dera_jax.models.tabular import TabularLM

Text = list[int]
NextLogProbs = Callable[[list[Text]], np.ndarray]
TextRewards = Callable[[list[Text], list[bool]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to search for, and how widely.

    Attributes:
        max_length: T, tokens at most, the end token included.
        beams: N, the size of every pool.
        top_k: candidates of each live hypothesis, 1 + E <= top_k <= V.
        end_ids: the E end tokens; (-1,) for none.
        lookahead: greedy tokens that a candidate is continued by before it is rewarded.
        period: steps from one scoring to the next.
        reward_weight: of a reward against a log-probability.
        length_penalty: alpha; 0 is none.
        highest_reward: no reward is above it (with a negative weight: below it). None: not known,
            so never stop early. Not read without a reward.
    """

    max_length: int
    beams: int
    top_k: int
    end_ids: tuple[int, ...] = TabularLM.end_ids
    lookahead: int = 0
    period: int = 1
    reward_weight: float = 1.0
    length_penalty: float = 0.0
    highest_reward: float | None = None

    def __post_init__(self):
        lowest = {"max_length": 1, "beams": 1, "lookahead": 0, "period": 1}
        lowest["top_k"] = 1 + len(self.end_ids)
        for field, low in lowest.items():
            if getattr(self, field) < low:
                raise ValueError(f"{field} = {getattr(self, field)}; must be at least {low}")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A text, the log-probability of its tokens, and the last reward in its line (0 before it)."""

    tokens: Text
    log_prob: float
    reward: float = 0.0


@dataclasses.dataclass(frozen=True)
class Result:
    """Up to N texts, best first.

    Attributes:
        tokens: the texts, the end token included.
        log_probs: float [<= N].
        rewards: float [<= N].
        scores: float [<= N]; without the length penalty if the texts are not finished.
        finished: all texts end in an end token; else none of them does.
        steps: of the search, T at most.
        forward_tokens: of the decoder: N for every step, one for every token of a lookahead.
    """

    tokens: list[Text]
    log_probs: np.ndarray
    rewards: np.ndarray
    scores: np.ndarray
    finished: bool
    steps: int
    forward_tokens: int


def search(next_log_probs: NextLogProbs, reward: TextRewards | None, settings: Settings) -> Result:
    """The best texts by log_prob / ((5 + n) / 6)^alpha + reward_weight * reward.

    Args:
        next_log_probs: R prefixes, without start token -> float [R, V], of the next token.
        reward: texts, and whether each has ended -> a reward for each; None: plain beam search.
        settings: see there.
    """
    live, waiting, finished, forward_tokens = [Hypothesis([], 0.0)], [], [], 0
    for n in range(1, settings.max_length + 1):
        candidates = expand(next_log_probs, live, settings)
        forward_tokens += settings.beams
        scoring = n % settings.period == 0 or n == settings.max_length
        if scoring and reward is not None:
            texts, produced = look_ahead(next_log_probs, candidates, settings)
            candidates, waiting = score_all(reward, texts, candidates, waiting, settings)
            forward_tokens += produced
        live, ended = rank(candidates, settings)
        if not scoring:
            waiting = best(waiting + ended, settings.beams, settings)
            continue
        finished = best(finished + waiting + ended, settings.beams, settings)
        waiting = []
        if settled(live, finished, 0.0 if reward is None else settings.highest_reward, settings):
            break
    return result(live, finished, n, forward_tokens, settings)


def expand(next_log_probs: NextLogProbs, live: list[Hypothesis], settings: Settings):
    """The candidates: every live hypothesis with each of its k most likely next tokens."""
    candidates = []
    rows = np.asarray(next_log_probs([hypothesis.tokens for hypothesis in live]))
    for parent, row in zip(live, rows, strict=True):
        # A stable sort: of equally likely tokens the lower id comes first.
        for token in np.argsort(-row, kind="stable")[: settings.top_k].tolist():
            log_prob = parent.log_prob + float(row[token])
            candidates.append(Hypothesis([*parent.tokens, token], log_prob, parent.reward))
    return candidates


def look_ahead(next_log_probs: NextLogProbs, candidates: list[Hypothesis], settings: Settings):
    """The candidates' texts continued greedily where they can be, and how many tokens that took."""
    texts, produced = [list(candidate.tokens) for candidate in candidates], 0
    for _ in range(settings.lookahead):
        going = [x for x in texts if not ends(x, settings) and len(x) < settings.max_length]
        if not going:
            break
        for text, row in zip(going, np.asarray(next_log_probs(going)), strict=True):
            text.append(int(np.argmax(row)))
        produced += len(going)
    return texts, produced


def score_all(reward: TextRewards, texts: list[Text], candidates, waiting, settings: Settings):
    """Candidates with the rewards of their `texts`, and waiting with their own; one call for all.

    The tokens of the lookahead are forgotten here.
    """
    texts = texts + [hypothesis.tokens for hypothesis in waiting]
    rewards = reward(texts, [ends(text, settings) for text in texts])
    scored = [
        dataclasses.replace(hypothesis, reward=float(value))
        for hypothesis, value in zip(candidates + waiting, rewards, strict=True)
    ]
    return scored[: len(candidates)], scored[len(candidates) :]


def rank(candidates: list[Hypothesis], settings: Settings):
    """The new live pool and what ended, both best first, out of the best (1 + E)·N candidates.

    At most E·N of these have ended, so N live on, however likely the end tokens are.
    """
    ranked = best(candidates, (1 + len(settings.end_ids)) * settings.beams, settings)
    live = [x for x in ranked if not ends(x.tokens, settings)]
    ended = [x for x in ranked if ends(x.tokens, settings)]
    return live[: settings.beams], ended


def settled(live, finished, highest: float | None, settings: Settings) -> bool:
    """Whether no live hypothesis can become better than the worst finished one."""
    if highest is None or len(finished) < settings.beams:
        return False
    log_prob = max(hypothesis.log_prob for hypothesis in live)
    longest = length_norm(settings.max_length + 1, settings)  # T5X counts the start token here
    hope = log_prob / longest + settings.reward_weight * highest
    return score(finished[-1], settings) > hope


def result(live, finished, steps: int, forward_tokens: int, settings: Settings) -> Result:
    """The finished texts; the live ones if there are none."""
    texts, scored = finished, settings
    if not finished:
        texts, scored = live, dataclasses.replace(settings, length_penalty=0.0)
    return Result(
        tokens=[x.tokens for x in texts],
        log_probs=np.array([x.log_prob for x in texts]),
        rewards=np.array([x.reward for x in texts]),
        scores=np.array([score(x, scored) for x in texts]),
        finished=bool(finished),
        steps=steps,
        forward_tokens=forward_tokens,
    )


def best(hypotheses: list[Hypothesis], number: int, settings: Settings) -> list[Hypothesis]:
    """The best `number`, best first; of equal scores the one that comes first in the list."""
    return sorted(hypotheses, key=lambda x: score(x, settings), reverse=True)[:number]


def score(hypothesis: Hypothesis, settings: Settings) -> float:
    likelihood = hypothesis.log_prob / length_norm(len(hypothesis.tokens), settings)
    return likelihood + settings.reward_weight * hypothesis.reward


def length_norm(length: int, settings: Settings) -> float:
    return ((5 + length) / 6) ** settings.length_penalty


def ends(text: Text, settings: Settings) -> bool:
    return text[-1] in settings.end_ids


def forward_of(
    model: LanguageModel, params: PyTree, prompt: Prompts, max_length: int, rows: int = 32
) -> NextLogProbs:
    """`next_log_probs` of one document: a full forward pass each time, the encoder's kept.

    Args:
        model: T5, TabularLM, Realigned.
        params: its parameters.
        prompt: one, at one λ; its leaves are [1, ...].
        max_length: T of the search; prefixes of at most T − 1 tokens can be asked about.
        rows: R of the compiled pass. Fewer prefixes are padded, more are passed in pieces.
    """
    params = jax.device_put(params)
    state = _encode(model, params, prompt, rows)

    def next_log_probs(prefixes: list[Text]) -> np.ndarray:
        pieces = [prefixes[i : i + rows] for i in range(0, len(prefixes), rows)]
        padded = (_pad(piece, rows, max_length) for piece in pieces)
        found = [np.asarray(_forward(model, params, state, *arrays)) for arrays in padded]
        return np.concatenate(found)[: len(prefixes)]  # only the last piece is padded

    return next_log_probs


def _pad(prefixes: list[Text], rows: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [1, R, T] and lengths int32 [R]; zeros in what is not there."""
    tokens, lengths = np.zeros((1, rows, max_length), np.int32), np.zeros(rows, np.int32)
    for i, prefix in enumerate(prefixes):
        if len(prefix) >= max_length:
            raise ValueError(f"a prefix of {len(prefix)} tokens; below {max_length} are possible")
        tokens[0, i, : len(prefix)] = prefix
        lengths[i] = len(prefix)
    return tokens, lengths


@functools.partial(jax.jit, static_argnames=("model", "rows"))
def _encode(model: LanguageModel, params: PyTree, prompt: Prompts, rows: int) -> State:
    """The state of `rows` hypotheses of one prompt."""
    return model.start(params, prompt, rows, max_len=1)


@functools.partial(jax.jit, static_argnames="model")
def _forward(model: LanguageModel, params: PyTree, state: State, tokens: Array, lengths: Array):
    """float32 [R, V]: what follows the first lengths[R] of tokens[1, R, T]."""
    logits = model.teacher_forced(params, state, tokens).logits[0]
    last = jnp.take_along_axis(logits, lengths[:, None, None], axis=1)[:, 0]
    return jax.nn.log_softmax(last.astype(jnp.float32))
