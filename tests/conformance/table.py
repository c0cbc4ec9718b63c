"""Every decoding method and every model, and `decode`, which runs one on the other.

Axes: B prompts, N individuals of a prompt, R sequences found for a prompt, T output length.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.best_of_n import best_of_n
from dera_jax.decoding.evolution import Evolution, generation
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import (
    Prompts,
    PyTree,
    length_mask,
    pad_sequences,
    sequence_keys,
)
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.models.tabular import TabularLM
from dera_jax.partitioning import shard_params
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import RewardScorer
from tests import tiny

V, T = 12, 10
ENDS = (3, 5)
ENDLESS = (-1, -1)
ROWS = ((7, 0, 3, 7, 0), (0,), (5, 11, 2, 1, 0, 9))  # of the prompts; they contain end ids and id 0
WIDTH, OTHER_WIDTH = 6, 9
LAM = (0.5, 2.0)  # of the first and of the second half of the sequences of a prompt
BEAMS, TOP_K, LOOKAHEAD, PERIOD, POPULATION = 2, 3, 2, 4, 4

SINGLE = {
    "tabular": TabularLM(V, horizon=3, num_inputs=V),
    "t5": T5(T5Config(V, 16, 2, 1, 1, 8, 16, ("gelu", "linear"))),
    "llama": Llama(dataclasses.replace(tiny.LLAMA, vocab_size=V)),
}
MODELS = (*SINGLE, *(f"realigned {name}" for name in SINGLE))
# Of the reference; the aligned model's is one more. Under these every method ends some sequences.
SEEDS = {"tabular": 3, "t5": 53, "llama": 7}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method is run on.

    Attributes:
        rows: which of ROWS are the batch.
        width: of the prompts' array.
        padding: the id after each prompt.
        lam: see LAM; single models have none.
        lam_step: by how much each row of ROWS has a larger λ than the one before.
        ends: end ids.
        on_host: whether the reward is the Python function.
        aligned: whether a single model has the parameters of the aligned one.
    """

    rows: tuple[int, ...] = (0, 1, 2)
    width: int = WIDTH
    padding: int = 0
    lam: tuple[float, float] = LAM
    lam_step: float = 0.1
    ends: tuple[int, ...] = ENDS
    on_host: bool = False
    aligned: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """What a method found; NumPy arrays.

    Attributes:
        tokens, lengths, finished: [B, R, T], [B, R], [B, R].
        values: of each prompt, [B, ...]: log-probabilities, rewards.
        fed: tokens fed, as the method counts them: [B, ...], or [] where all prompts have one count.
        expected_fed: what its documentation says that this is.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    values: PyTree
    fed: np.ndarray
    expected_fed: np.ndarray | int


@dataclasses.dataclass(frozen=True)
class World:
    """A model, with the batch of a setting."""

    model: object
    params: PyTree
    prompts: Prompts
    ids: np.ndarray
    setting: Setting

    def keys(self, numbers):
        return sequence_keys(0, self.ids, numbers)

    def guide(self) -> Guide:
        reward = HostReward(reward_in_python) if self.setting.on_host else TokenReward()
        original = self.prompts.replace(lam=None)
        documents = [str(row[0]) for row in self.prompts.tokens]
        to_text = lambda ids: " ".join(map(str, ids))
        return Guide(RewardScorer(reward, None, to_text), Source(original), documents)


@dataclasses.dataclass(frozen=True)
class TokenReward(Reward):
    """Of a sequence the sum of quarters that depend on token and document; exact in float32."""

    def __call__(self, params, source, tokens, lengths, finished):
        document = source.prompts.tokens[:, :1, None]
        quarters = (7 * tokens + 3 * document) % 5
        return jnp.sum(jnp.where(length_mask(lengths, tokens.shape[-1]), quarters, 0), -1) / 4


def reward_in_python(documents: list[str], texts: list[str]) -> list[float]:
    """The same of texts."""
    return [
        sum((7 * int(token) + 3 * int(document)) % 5 for token in text.split()) / 4
        for document, text in zip(documents, texts, strict=True)
    ]


def world(name: str, setting: Setting) -> World:
    rows = [ROWS[i] for i in setting.rows]
    tokens, lengths = pad_sequences(rows, setting.width)
    tokens = np.where(length_mask(lengths, setting.width), tokens, setting.padding).astype(np.int32)
    prompts, base = Prompts(tokens, lengths), name.removeprefix("realigned ")
    single = SINGLE[base]
    params = tuple(shard_params(single, _params(single, SEEDS[base] + i)) for i in range(2))
    ids = np.array(setting.rows) + 10
    if name in SINGLE:
        return World(single, params[setting.aligned], prompts, ids, setting)
    lam = np.array([setting.lam], np.float32) + setting.lam_step * np.array([setting.rows]).T
    lam = lam.astype(np.float32)
    return World(Realigned(single, (single,)), params, prompts.replace(lam=lam), ids, setting)


@functools.cache
def _params(model, seed: int) -> PyTree:
    if isinstance(model, TabularLM):
        shape = model.num_inputs, model.num_prefixes, V
        return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
    return tiny.params(model, seed)


NUMBERS = (0, 1, 0, 1)  # of the sequences of a prompt: two at each λ, with the same draws


def _sampled(world: World, greedy: bool) -> Found:
    sampling = Sampling(T, greedy=greedy, end_ids=world.setting.ends)
    found = sample(world.model, world.params, world.prompts, world.keys(NUMBERS), sampling)
    values = {"log_prob": found.scores.log_prob, "sampled": found.scores.sampling_log_prob}
    expected = -(-np.max(found.lengths) // 8) * 8  # whole chunks
    return Found(found.tokens, found.lengths, found.finished, values, found.steps, expected)


def _best_of_n(world: World) -> Found:
    found = best_of_n(
        world.model,
        world.params,
        world.prompts,
        world.keys(NUMBERS),
        Sampling(T, end_ids=world.setting.ends),
        2,
        world.guide(),
    )
    best = found.samples
    values = {"rewards": found.rewards, "index": found.index, "log_prob": best.scores.log_prob}
    all_ended = max(16 if world.setting.ends == ENDLESS else 0, int(best.steps))
    return Found(best.tokens, best.lengths, best.finished, values, best.steps, all_ended)


def _beam_search(world: World, guided: bool, **settings) -> Found:
    search = Search(
        T,
        beams=BEAMS,
        top_k=TOP_K,
        length_penalty=0.0,
        reward_weight=1.0 if guided else 0.0,
        end_ids=world.setting.ends,
        **settings,
    )
    guide = world.guide() if guided else None
    found = beam_search(world.model, world.params, world.prompts, world.keys((0, 1)), search, guide)
    pool = found.pool
    flat = lambda x: np.reshape(x, (len(x), -1, *x.shape[3:]))
    values = {"scores": found.scores, "log_probs": pool.log_probs, "rewards": pool.rewards}
    # Every search.period tokens each candidate is continued, but for those of copies of one beam.
    scored = [*range(search.period, T, search.period), T]
    ahead = [min(search.lookahead, T - t) * (BEAMS if t > 1 else 1) * TOP_K for t in scored]
    expected = BEAMS * T + sum(ahead)
    return Found(
        *map(flat, (pool.tokens, pool.lengths, pool.finished)),
        values,
        found.forward_tokens,
        expected,
    )


def _generation(world: World) -> Found:
    """Individual i of a prompt has the prompt without its last i tokens, but at least one."""
    guide = world.guide()
    prompts, N = world.prompts, POPULATION
    lengths = np.maximum(prompts.lengths[:, None] - np.arange(N), 1)
    own = Prompts(np.repeat(prompts.tokens[:, None], N, axis=1), lengths)
    if prompts.lam is not None:
        own = own.replace(lam=np.repeat(prompts.lam, N // 2, axis=1)[..., None])
    evolution = Evolution(
        Sampling(T, end_ids=world.setting.ends), N, PERIOD, survivors=2, lookahead=LOOKAHEAD
    )
    keys = world.keys(np.arange(N))
    found = generation(world.model, world.params, own, keys, evolution, guide)
    texts, history = found.texts, found.history
    held = np.arange(history.donors.shape[-1]) < found.rounds[:, None, None]  # else says nothing
    values = {
        "rewards": found.rewards,
        "log_probs": np.where(held, history.log_probs, 0.0),
        "donors": np.where(held, history.donors, 0),
    }
    adopted = np.sum(history.donors != np.arange(N)[:, None], axis=1)  # [B, periods]
    steps = PERIOD * np.arange(1, adopted.shape[1] + 1)
    ahead = np.clip(T - steps, 0, LOOKAHEAD)
    expected = N * T + N * ahead.sum() + adopted @ steps
    return Found(
        texts.tokens, texts.lengths, texts.finished, values, found.forward_tokens, expected
    )


METHODS: dict[str, Callable[[World], Found]] = {
    "sample": functools.partial(_sampled, greedy=False),
    "greedy": functools.partial(_sampled, greedy=True),
    "best of n": _best_of_n,
    "beam search": functools.partial(_beam_search, guided=False),
    "guided beam search": functools.partial(
        _beam_search, guided=True, lookahead=LOOKAHEAD, period=PERIOD
    ),
    "generation": _generation,
}
REWARDED = ("best of n", "guided beam search", "generation")


@functools.cache
def decode(method: str, name: str, setting: Setting = Setting()) -> Found:
    """What a method finds with a model; computed once."""
    return compute(method, name, setting)


def compute(method: str, name: str, setting: Setting) -> Found:
    found = METHODS[method](world(name, setting))
    fields = {x.name: getattr(found, x.name) for x in dataclasses.fields(found)}
    fields["values"] = {name: np.asarray(x) for name, x in found.values.items()}
    return Found(**{k: x if k == "values" else np.asarray(x) for k, x in fields.items()})
