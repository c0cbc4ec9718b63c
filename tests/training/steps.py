"""Steps of the trainers on arrays, compiled as the runs compile them."""

from collections.abc import Callable

import jax
import numpy as np

from dera_jax.models.language_model import TrainableModel
from dera_jax.rewards.tokens import LengthNear
from dera_jax.training import ppo
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.scorers import Comparison, Scorer
from dera_jax.training.train_state import make_step
from dera_jax.training.train_step import CrossEntropy, Loss

KEY = jax.random.key(0)
NEAR = LengthNear(3)  # a reward that tells almost any two lengths apart


def batch(inputs, targets, rejected=None) -> dict:
    """Of sequences that count alike."""
    found = {
        "inputs": inputs,
        "targets": targets,
        "weight": np.ones(len(inputs.tokens), np.float32),
    }
    return found if rejected is None else found | {"rejected": rejected}


def sft(model: TrainableModel, optimizer: Optimizer, loss: Loss | None = None) -> Callable:
    """(state, inputs, targets) -> (state, metrics)."""
    step = jax.jit(make_step(CrossEntropy(model, loss or Loss()), optimizer))
    return lambda state, *sequences: step(state, {}, batch(*sequences), KEY)


def pairs(scorer: Scorer, optimizer: Optimizer) -> Callable:
    """(state, fixed, inputs, chosen, rejected) -> (state, metrics)."""
    step = jax.jit(make_step(Comparison(scorer), optimizer))
    return lambda state, fixed, *sequences: step(
        state, {"reference": fixed}, batch(*sequences), KEY
    )


def ppo_step(setup: ppo.PPOSetup, seed: int = 0) -> Callable:
    """(state, reference, batch, reward's parameters) -> (state, metrics)."""
    step, key = jax.jit(ppo.make_step(setup)), jax.random.key(seed)
    return lambda state, reference, batch, reward=None: step(
        state, {"reference": reference, "reward": reward}, batch, key
    )
