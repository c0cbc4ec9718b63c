"""Models to decode from: tables small enough to enumerate every text, and a realigned T5 pair."""

import dataclasses
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import sweep_hypotheses
from dera_jax.models.language_model import Output, Prompts, State, check_single, sequence_keys
from dera_jax.models.t5_lm import T5
from dera_jax.models.tabular import TabularLM
from dera_jax.rewards.protocol import Reward
from tests import golden
from tests.prompts import whole

EOS = 1
HORIZON = 3


def each(tokens, lam=None) -> Prompts:
    """Prompts of tokens[B, N, S] without padding, one for each individual; λ as `whole`."""
    tokens = np.asarray(tokens, np.int32)
    flat = whole(tokens.reshape(-1, tokens.shape[-1]), lam)
    return jax.tree.map(lambda x: x.reshape(*tokens.shape[:2], *x.shape[1:]), flat)


def texts(vocab_size: int, horizon: int = HORIZON) -> list[tuple[int, ...]]:
    """Every text of at most `horizon` tokens: those that end in EOS, and those cut off."""
    others = [v for v in range(vocab_size) if v != EOS]
    ended = [(*body, EOS) for n in range(horizon) for body in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=horizon))


def text_probabilities(logits_of_prefix, all_texts) -> np.ndarray:
    """Exact probability of each text under next-token logits given as a function of the prefix."""
    probabilities = []
    for text in all_texts:
        p = 1.0
        for t, token in enumerate(text):
            logits = np.asarray(logits_of_prefix(text[:t]), np.float64)
            p *= np.exp(logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        probabilities.append(p)
    return np.array(probabilities)


def prefix_number(prefix, vocab_size: int) -> int:
    number = 0
    for token in prefix:
        number = number * vocab_size + token + 1
    return number


def tabular_tower(num_models: int, vocab_size: int = 4, seed: int = 0):
    """`num_models` random tables over one input: (model, list of params [1, P, V])."""
    model = TabularLM(vocab_size=vocab_size, horizon=HORIZON)
    keys = jax.random.split(jax.random.key(seed), num_models)
    return model, [0.8 * model.init(key) for key in keys]


def count(tokens, lengths, all_texts) -> np.ndarray:
    """How often each text occurs among tokens [N, T] of the given lengths."""
    index = {text: i for i, text in enumerate(all_texts)}
    rows = [tuple(row[:n]) for row, n in zip(np.asarray(tokens).tolist(), lengths, strict=True)]
    return np.bincount([index[row] for row in rows], minlength=len(all_texts))


def rows(num_samples: int, lam=None, seed: int = 0) -> tuple[Prompts, jax.Array]:
    """One prompt of a table, at one λ or M of them, and keys [1, K] of `num_samples` samples."""
    if lam is not None:
        lam = np.asarray(lam, np.float32).reshape(1, 1, *np.shape(lam))
    return whole([[0]], lam), sequence_keys(seed, [0], np.arange(num_samples))


def run_on_eight_devices(script: str) -> None:
    """Runs a script that says "identical" in a process with eight CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "identical" in done.stdout, done.stderr[-3000:]


def one_layer(model: T5, params) -> tuple[T5, dict]:
    """The first layer each of encoder and decoder, which compiles in less time."""
    model = T5(dataclasses.replace(model.config, num_encoder_layers=1, num_decoder_layers=1))
    first = lambda part: {k: x for k, x in part.items() if k == "layers_0" or "layers_" not in k}
    return model, params | {name: first(params[name]) for name in ("encoder", "decoder")}


def realigned_t5(whole: bool = False):
    """A realigned T5 pair: model, params, prompts of 4 with λ [4, 3], keys [4, 6].

    T5X's model, unless `whole` with one layer each in encoder and decoder: what is done with a state
    does not depend on their number, and the time to compile does.
    """
    model, params, g = golden.load("v1_1")
    if not whole:
        model, params = one_layer(model, params)
    params = params, jax.tree.map(lambda x: 1.1 * x, params)
    lam, numbers = sweep_hypotheses([0.0, 0.5, 2.0], num_samples=2, batch=4)
    prompts = golden.prompts(g, size=40, lam=lam)
    return Realigned(model, (model,)), params, prompts, sequence_keys(0, np.arange(4), numbers)


@dataclasses.dataclass(frozen=True)
class TextReward(Reward):
    """A reward for every text: params[number of its last prefix]."""

    vocab_size: int

    def __call__(self, params, source, tokens, lengths, finished):
        number = jnp.zeros_like(lengths)
        for t in range(HORIZON):
            longer = number * self.vocab_size + tokens[..., t] + 1
            number = jnp.where(t < lengths, longer, number)
        return params[number]


@dataclasses.dataclass(frozen=True)
class Script:
    """A language model that writes what is given: params[prompt's first id, position], whatever it
    was fed before."""

    vocab_size: int
    start_token: int = 0
    end_ids: tuple[int, ...] = (EOS,)
    num_ids: None = None
    unused_ids: tuple[int, ...] = ()

    def check(self, prompts, num_hypotheses):
        del num_hypotheses
        check_single(prompts, self.vocab_size)

    def start(self, params, prompts, num_hypotheses, max_len):
        scripts = prompts.tokens[:, 0]
        first = jnp.full_like(scripts, self.start_token)
        fed = jnp.zeros((len(scripts), num_hypotheses), jnp.int32)
        return State(jnp.zeros((), jnp.int32), first, shared=scripts, kept=(), cache=fed)

    def step(self, params, state, tokens):
        return self.extend(params, state, tokens[..., None])

    def extend(self, params, state, tokens):
        position = state.position + tokens.shape[-1]
        written = jnp.broadcast_to(params[state.shared, position - 1][:, None], tokens.shape[:2])
        logits = jnp.where(jnp.arange(self.vocab_size) == written[..., None], 0.0, -1e9)
        return Output(logits), state.replace(position=position)
