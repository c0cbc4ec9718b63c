"""The run that distils the optimum into a policy, for PPO to start from: data, checkpoints, reports.

Everything random depends on (seed, step) alone, as in `alignment.py`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from dera_jax import checks
from dera_jax.checkpoints.loading import MODEL as A_MODEL
from dera_jax.checkpoints.loading import Loaded, loaded
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.models.heads import CriticHead
from dera_jax.training import distillation
from dera_jax.training.alignment import fitted, judge_of, last_scores, source_of
from dera_jax.training.loop import repeat
from dera_jax.training.ppo import Objective, Optimizers
from dera_jax.training.supervised import DATA, TrainingData

MODEL = "distilled"
_SHOWN = ("loss", "reward", "kl", "length")


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A run of `distillation`.

    Attributes:
        reference: the model that policy and critic start from, read, or a function that reads it
            when it is needed.
        data: whose documents; the summaries are not used.
        objective: whose optimum is distilled.
        rollouts: texts of each document of a batch.
        optimizers: of policy and critic (`value`).
        critic_steps: rounds of texts from which the critic learns, each of one batch of documents
            with one update.
        policy_steps: those after them, from which the policy learns.
        seed: of the data's order and all draws.
        saving: how often a checkpoint is written.

    Raises:
        ValueError: a setting out of its range, a reward without a bound, or a warm-up that is
            longer than its part of the run.
    """

    reference: Loaded | Callable[[], Loaded]
    data: TrainingData
    objective: Objective
    rollouts: int
    optimizers: Optimizers
    critic_steps: int
    policy_steps: int
    seed: int
    saving: Saving

    def __post_init__(self):
        sizes = dict.fromkeys(("rollouts", "critic_steps", "policy_steps"), checks.whole(1))
        checks.check_fields(
            self,
            reference=A_MODEL,
            data=DATA,
            objective=checks.instance(Objective),
            optimizers=checks.instance(Optimizers),
            seed=checks.SEED,
            saving=checks.instance(Saving),
            **sizes,
        )
        distillation.check_bound(self.objective)
        self.optimizers.value.check_warmup("WarmStart.critic_steps", self.critic_steps)
        self.optimizers.policy.check_warmup("WarmStart.policy_steps", self.policy_steps)

    def run(self, folder: Path) -> dict[str, float]:
        """Distils, or goes on distilling, in `folder`; see `warm_start`."""
        return warm_start(self, folder)


def warm_start(run: WarmStart, folder: Path) -> dict[str, float]:
    """Distils, or goes on distilling, in `folder`.

    Leaves there: `distilled` (the last policy), `checkpoints` (the last two states),
    `metrics.jsonl` and TensorBoard events.

    Returns:
        The mean of each metric over the reports of the last 100 steps.

    Raises:
        FloatingPointError: as `loop.repeat`.
        ValueError: a checkpoint in `folder` is of another size, or the task has another vocabulary
            than the reference.
    """
    task, objective, reference = run.data, run.objective, fitted(loaded(run.reference), run.data)
    data = task.encoded_by(reference.tokenizer)
    critic = CriticHead(reference.model, objective.max_length)
    setup = distillation.Setup(
        reference.model, critic, objective, run.rollouts, run.critic_steps, run.optimizers, run.seed
    )
    improve = distillation.make_step(setup, judge_of(objective.reward, reference))
    params = jax.tree.map(jnp.asarray, reference.params)
    state = repeat(
        run.critic_steps + run.policy_steps,
        run.saving,
        folder,
        distillation.initial_state(run.optimizers, params, critic.init(params)),
        batches=lambda step: data.batches(
            run.seed, step, objective.reward.on_host, objective.reward.check_documents
        ),
        update=lambda state, batch: improve(
            state, params, source_of(batch), batch["example_id"], batch.get("documents")
        ),
        shown=_SHOWN,
    )
    scores = last_scores(folder, int(state.step))
    card = {
        "step": int(state.step),
        "training": scores,
        "data": task.described(),
        "reward": repr(objective.reward),
        "beta": objective.beta,
        "max_length": objective.max_length,
        "rollouts": run.rollouts,
        "critic_steps": run.critic_steps,
        "seed": run.seed,
    }
    config, vocabulary = reference.model.config, reference.vocabulary
    save_model(folder / MODEL, config, vocabulary, state.policy.params, card)
    return scores
