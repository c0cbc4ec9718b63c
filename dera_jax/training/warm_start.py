"""The run that distils the optimum into a policy, for PPO to start from: data, checkpoints, reports.

Everything random depends on (seed, step) alone, as in `alignment.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax

from dera_jax import checks
from dera_jax.checkpoints.loading import MODEL as A_MODEL
from dera_jax.checkpoints.loading import Loaded, loaded
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.examples import unweighted
from dera_jax.models.heads import CriticHead
from dera_jax.models.language_model import THREEFRY, PyTree
from dera_jax.partitioning import mesh_in_use, partition, place
from dera_jax.rewards.judge import Judge
from dera_jax.training import distillation, loop
from dera_jax.training.alignment import fitted, judge_of, last_scores
from dera_jax.training.ppo import Objective, Optimizers, source_of
from dera_jax.training.supervised import DATA, TrainingData
from dera_jax.training.train_state import Batch, Memory, TrainState, new_state

MODEL, CRITIC = "distilled", "critic"
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
        memory: how a step is kept small.

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
    memory: Memory = dataclasses.field(default_factory=Memory)

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
            memory=checks.instance(Memory),
            **sizes,
        )
        self.memory.check_batch(self.data.batch_size)
        if self.memory.chunk is not None:
            raise ValueError(
                "WarmStart.memory.chunk must be None (CHUNK): whole distributions are learned"
            )
        distillation.check_bound(self.objective)
        self.optimizers.value.check_warmup("WarmStart.critic_steps", self.critic_steps)
        self.optimizers.policy.check_warmup("WarmStart.policy_steps", self.policy_steps)

    def run(self, folder: Path) -> dict[str, float]:
        """Distils, or goes on distilling, in `folder`; see `warm_start`."""
        return warm_start(self, folder)


def warm_start(run: WarmStart, folder: Path) -> dict[str, float]:
    """Distils, or goes on distilling, in `folder`.

    Leaves there: `distilled` (the last policy), `checkpoints` (the last two states), `metrics.jsonl` and
    TensorBoard events; and in the folder `critic` what the critic's training leaves.

    Returns:
        The mean of each metric over the reports of the last 100 steps.

    Raises:
        FloatingPointError: as `loop.run`.
        ValueError: a checkpoint in `folder` is of another size, or the task has another vocabulary
            than the reference.
    """
    task, objective = run.data, run.objective
    reference = fitted(loaded(run.reference), task)
    learn = functools.partial(_learn, run, reference, judge_of(objective.reward, reference))
    model = run.memory.of(reference.model)
    critic, params = CriticHead(model, objective.max_length), place(model, reference.params)

    first = new_state(place(critic, critic.init(params)), run.optimizers.value)
    loss, frozen = distillation.CriticLoss(critic, objective), {"reference": params}
    learned = learn(loss, first, frozen, folder / CRITIC).replace(
        opt_state=None
    )  # not needed any more

    first = new_state(params, run.optimizers.policy).replace(step=learned.step)
    loss, frozen = distillation.PolicyLoss(model, critic), frozen | {"critic": learned.params}
    state = learn(loss, first, frozen, folder)

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
    save_model(folder / MODEL, config, vocabulary, state.params, card)
    return scores


def _learn(
    run: WarmStart,
    reference: Loaded,
    judge: Judge,
    loss: distillation.CriticLoss | distillation.PolicyLoss,
    first: TrainState,
    frozen: PyTree,
    folder: Path,
) -> TrainState:
    """Trains the critic on texts of the reference, or the policy on its own; returns the last state."""
    critic_learns = "critic" not in frozen
    optimizer = run.optimizers.value if critic_learns else run.optimizers.policy
    steps = run.critic_steps if critic_learns else run.critic_steps + run.policy_steps
    step = distillation.make_step(loss, optimizer, run.memory.microbatches)
    improve = partition(step, first, mesh_in_use())
    setup = distillation.Setup(reference.model, run.objective, run.rollouts)
    roll_out = jax.jit(functools.partial(distillation.roll_out, setup))
    data, reward = run.data.encoded_by(reference.tokenizer), run.objective.reward
    key = jax.random.key(run.seed, impl=THREEFRY)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        policy = frozen["reference"] if critic_learns else state.params
        asked = {name: batch[name] for name in ("inputs", "example_id")}
        samples = roll_out(policy, frozen["reference"], asked, state.step, key)
        texts = samples.tokens, samples.lengths, samples.finished
        rewards, _ = judge(source_of(batch), batch.get("documents"), *texts)
        rollout = distillation.Rollout(batch["inputs"], *texts[:2], rewards)
        state, metrics = improve(state, frozen, rollout, key)
        return state, metrics | distillation.observe(samples, rewards)

    batches = lambda at: unweighted(
        data.batches(run.seed, at, reward.on_host, reward.check_documents)
    )
    return loop.run(steps, run.saving, folder, first, batches, update, shown=_SHOWN).state
