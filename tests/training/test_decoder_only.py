"""PPO and reward models on a decoder-only model: ragged prompts, id 0 as the end, no id as padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import Padded, Prompts
from dera_jax.models.llama_lm import Llama
from dera_jax.rewards.length import LengthInRange
from dera_jax.training import optimizers, ppo, scorers
from dera_jax.training.train_state import new_state
from tests import tiny
from tests.training import steps

END = 0
MODEL = Llama(dataclasses.replace(tiny.LLAMA, end_ids=(END,)))
LENGTHS = np.array([4, 1, 3], np.int32)
TOKENS = np.array([[7, 9, 0, 7], [9, 9, 9, 9], [5, 0, 3, 9]], np.int32)  # padded with 9 and 0
OTHER = np.array([[7, 9, 0, 7], [9, 0, 7, 0], [5, 0, 3, 5]], np.int32)  # the same prompts
RATE = optimizers.adamw(optimizers.constant(1e-3, 0), clip_norm=1.0)


def ppo_metrics(tokens: np.ndarray) -> dict[str, float]:
    reward = LengthInRange(1, 3)
    setup = ppo.PPOSetup(
        ppo.Actors(MODEL, ValueHead(MODEL)),
        ppo.AlignmentObjective(reward, max_length=6, beta=0.1),
        ppo.Updates(rollouts=2, epochs=1, minibatches=1),
        ppo.Optimizers(RATE, RATE),
    )
    params = tiny.params(MODEL)
    state = ppo.initial_state(setup.optimizers, params, setup.actors.value.init(params))
    prompts = Prompts(jnp.asarray(tokens), jnp.asarray(LENGTHS))
    batch = {"inputs": prompts, "example_id": jnp.arange(3)}
    _, metrics = steps.ppo_step(setup)(state, params, batch)
    return jax.tree.map(float, metrics)


def test_ppo_does_not_read_what_is_after_a_prompt():
    found = ppo_metrics(TOKENS)
    assert found == ppo_metrics(OTHER)
    assert 0 < found["finished"] < 1 and np.isfinite(list(found.values())).all()


def test_a_reward_model_does_not_read_what_is_after_a_sequence():
    scorer = scorers.ScalarHead(ValueHead(MODEL))
    step = steps.pairs(scorer, RATE)
    prompts = Prompts(jnp.asarray(TOKENS), jnp.asarray(LENGTHS))
    texts = np.array([[3, 0, 0], [0, 5, 5], [8, 8, 0]], np.int32)
    lengths = np.array([2, 1, 3], np.int32)
    within = np.arange(3) < lengths[:, None]

    def losses(padding: int) -> list[float]:
        state = new_state(scorer.init(tiny.params(MODEL)), RATE)
        chosen = Padded(np.where(within, texts, padding), lengths)
        rejected = Padded(np.where(within, 11, padding), lengths)
        found = []
        for _ in range(3):
            state, metrics = step(state, None, prompts, chosen, rejected)
            found.append(float(metrics["loss"]))
        return found

    found = losses(0)
    assert found == losses(8)
    assert abs(found[0] - np.log(2)) < 1e-6
    assert found[-1] < found[0]
