"""A training run that meets a number that is not finite says which it met first, and stops."""

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.checkpoints.orbax import Saving
from dera_jax.models.heads import TabularValue
from dera_jax.training import loop, optimizers, ppo, preferences
from dera_jax.training.progress import Progress
from dera_jax.training.train_state import TrainState
from tests import prompts
from tests.decoding import worlds
from tests.training import steps

VOCAB = 3
FINITE = {"tokens": 8, "reward": 0.1, "reward_part": 1.0, "kl": 0.2, "full_kl": 0.2, "loss": 1.0}
RATE = "Lower the peak learning rate"


class Written(list):
    """A writer of metrics that keeps them."""

    def write(self, step, values):
        self.append((step, values))


@pytest.fixture
def progress():
    found = Progress(Written(), start_step=20, total_steps=90, shown=("loss",))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("at", "named", "advice"),
    [
        ({"loss": 3}, r"loss is not finite at steps \[23, 24, 25\]", RATE),
        ({"grad_norm": 2, "loss": 3}, r"grad_norm is not finite at steps \[22, 23, 24, 25\]", RATE),
        ({"kl": 4, "full_kl": 4, "loss": 4}, r"kl is not finite at steps \[24, 25\]", RATE),
        ({"kl": 5, "loss": 4}, r"loss is not finite at steps \[24, 25\]", RATE),
        (
            {"reward": 4, "kl": 5, "loss": 4},
            r"reward is not finite at steps \[24, 25\]",
            "reward fun",
        ),
    ],
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_was_not_finite_first_is_named(progress, value, at, named, advice):
    for step in range(1, 6):
        progress.add(
            {
                name: jnp.float32(value if step >= at.get(name, 99) else x)
                for name, x in (FINITE | {"grad_norm": 1.0}).items()
            }
        )
    with pytest.raises(FloatingPointError, match=f"the training {named}; .*{advice}"):
        progress.flush()


def test_a_validation_that_is_not_finite_stops_the_run(progress):
    progress.validated({"loss": 1.0, "accuracy": 0.5})
    with pytest.raises(FloatingPointError, match="validation loss_copy after step 20 is nan"):
        progress.validated({"loss": 1.0, "loss_copy": float("nan")})


def test_parameters_to_start_from_are_looked_at_before_the_first_step(tmp_path):
    bad = TrainState(jnp.int32(0), {"w": jnp.array([1, np.inf, 0])}, ())
    with pytest.raises(
        FloatingPointError, match="to start training from: 1 of 3 values of state/params/w"
    ):
        loop.run(3, Saving(1000, 3.0), tmp_path, bad, batches=None, update=None)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_pairs_without_a_finite_score_are_named(monkeypatch):
    batches = [{"inputs": None, "targets": None, "rejected": None}] * 2
    monkeypatch.setattr(preferences, "spread_batches", lambda *_: batches)
    monkeypatch.setattr(preferences, "_margin_of", lambda *_: np.array([0.5, np.nan]))
    with pytest.raises(
        FloatingPointError, match="score's margin of pair 1 .* is nan; 1 of 3 values"
    ):
        preferences.margins(None, None, [None] * 3, None, 2)


@pytest.fixture(scope="module")
def ppo_step():
    """A compiled step of a small table: (policy, rewards) -> metrics."""
    model, (reference,) = worlds.tabular_tower(1, VOCAB)
    actors = ppo.Actors(model, TabularValue(model))
    sgd = optimizers.adamw(optimizers.constant(0.1, 0), clip_norm=1.0)
    setup = ppo.PPOSetup(
        actors,
        ppo.AlignmentObjective(worlds.TextReward(VOCAB), worlds.HORIZON, 0.1),
        ppo.Updates(rollouts=8, epochs=1, minibatches=1),
        ppo.Optimizers(sgd, sgd),
    )
    step = steps.ppo_step(setup)

    def call(policy, rewards):
        state = ppo.initial_state(setup.optimizers, policy, actors.value.init())
        batch = {"inputs": prompts.whole(np.zeros((4, 1))), "example_id": jnp.arange(4)}
        return step(state, reference, batch, jnp.asarray(rewards))[1]

    return reference, call


def test_ppo_does_not_blame_the_learning_rate_for_a_reward(progress, ppo_step):
    reference, call = ppo_step
    rewards = np.ones(40, np.float32)
    progress.add(call(reference, rewards))
    rewards[worlds.prefix_number((worlds.EOS,), VOCAB)] = np.nan
    progress.add(call(reference, rewards))
    with pytest.raises(
        FloatingPointError, match=r"reward is not finite at steps \[22\]; .*reward fun"
    ):
        progress.flush()


def test_ppo_names_the_policy_that_computes_nothing(progress, ppo_step):
    reference, call = ppo_step
    progress.add(call(reference.at[0, 0, 0].set(jnp.nan), np.ones(40, np.float32)))
    with pytest.raises(
        FloatingPointError, match=r"kl is not finite at steps \[21\].*log-probabilities"
    ):
        progress.flush()
