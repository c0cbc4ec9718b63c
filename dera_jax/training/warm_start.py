"""Distils the KL-regularized optimum into a policy from which PPO can start (a warm start).

This module adds the data, checkpoints and metric log of a run to `distillation`. All randomness
depends on (seed, step) alone, as in `ppo_training`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax

from dera_jax import checks
from dera_jax.checkpoints.loaded import MODEL as A_MODEL
from dera_jax.checkpoints.loaded import LoadedModel, ensure_loaded
from dera_jax.checkpoints.orbax import Saving
from dera_jax.data.examples import unweighted
from dera_jax.models.heads import CriticHead
from dera_jax.models.language_model import THREEFRY, PyTree
from dera_jax.partitioning import mesh_in_use, partition, shard_params
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.training import distillation, loop
from dera_jax.training.ppo import AlignmentObjective, Optimizers, source_of
from dera_jax.training.ppo_training import final_metrics, scorer_of, with_data_vocabulary
from dera_jax.training.supervised import DATA, TrainingData
from dera_jax.training.train_state import Batch, Memory, TrainState, new_state

MODEL, CRITIC = "distilled", "critic"
_SHOWN = ("loss", "reward", "kl", "length")


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Configures a run of `distillation`.

    Attributes:
        reference: the reference policy, from which policy and critic start, as a loaded model or as
            a function that loads it when it is needed.
        data: the training data, of which distillation uses the documents and not the targets, which
            only some rewards read.
        objective: the objective whose optimal policy is distilled.
        rollouts: K, hypotheses sampled for each document of a batch.
        optimizers: optimizers of the policy (`policy`) and the critic (`value`).
        critic_steps: number of rollouts on which the critic is trained, each on one batch of
            documents with one update.
        policy_steps: number of rollouts after these on which the policy is trained, likewise.
        seed: seed of the data order and of all sampling.
        saving: how often a checkpoint is written.
        memory: reduces the memory of a step; `chunk` must be None.

    Raises:
        ValueError: a field is out of its range, the reward has no known upper bound, the
            microbatches do not divide the batch, or a warm-up is longer than its phase of the run.
    """

    reference: LoadedModel | Callable[[], LoadedModel]
    data: TrainingData
    objective: AlignmentObjective
    rollouts: int
    optimizers: Optimizers
    critic_steps: int
    policy_steps: int
    seed: int
    saving: Saving
    memory: Memory = dataclasses.field(default_factory=Memory)

    def __post_init__(self):
        sizes = dict.fromkeys(("rollouts", "critic_steps", "policy_steps"), checks.integer(1))
        checks.check_fields(
            self,
            reference=A_MODEL,
            data=DATA,
            objective=checks.instance(AlignmentObjective),
            optimizers=checks.instance(Optimizers),
            seed=checks.SEED,
            saving=checks.instance(Saving),
            memory=checks.instance(Memory),
            **sizes,
        )
        self.memory.check_batch(self.data.batch_size)
        if self.memory.chunk is not None:
            raise ValueError(
                "WarmStart.memory.chunk must be None, since distillation needs the logits of all "
                f"tokens at once; found {self.memory.chunk}. Set CHUNK = None."
            )
        distillation.check_bound(self.objective)
        self.optimizers.value.check_warmup("WarmStart.critic_steps", self.critic_steps)
        self.optimizers.policy.check_warmup("WarmStart.policy_steps", self.policy_steps)

    def run(self, folder: Path) -> dict[str, float]:
        """Distils in `folder`, or resumes there; see `warm_start`."""
        return warm_start(self, folder)


def warm_start(run: WarmStart, folder: Path) -> dict[str, float]:
    """Trains the critic and then the policy in `folder`, or resumes there.

    Writes `distilled` (the last policy), `checkpoints` (the last two train states), `metrics.jsonl`
    and TensorBoard events. The folder `critic` has the checkpoints and metrics of the critic's
    training.

    Returns:
        The mean of each metric over the reports of the last 100 steps.

    Raises:
        FloatingPointError: as `loop.run`.
        ValueError: a checkpoint in `folder` has other array shapes, or the task has another
            vocabulary than the reference.
    """
    task, objective = run.data, run.objective
    reference = with_data_vocabulary(ensure_loaded(run.reference), task)
    train = functools.partial(_train, run, reference, scorer_of(objective.reward, reference))
    model = run.memory.of(reference.model)
    critic = CriticHead(model, objective.max_length)
    params = shard_params(model, reference.trainable)

    initial = new_state(shard_params(critic, critic.init(params)), run.optimizers.value)
    loss, frozen = distillation.CriticLoss(critic, objective), reference.frozen
    frozen |= {"reference": params}
    trained = train(loss, initial, frozen, folder / CRITIC)
    trained = trained.replace(opt_state=None)  # frees its memory

    initial = new_state(params, run.optimizers.policy).replace(step=trained.step)
    loss, frozen = distillation.PolicyLoss(model, critic), frozen | {"critic": trained.params}
    state = train(loss, initial, frozen, folder)

    scores = final_metrics(folder, int(state.step))
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
    reference.save(folder / MODEL, state.params, card)
    return scores


def _train(
    run: WarmStart,
    reference: LoadedModel,
    scorer: RewardScorer,
    loss: distillation.CriticLoss | distillation.PolicyLoss,
    initial: TrainState,
    frozen: PyTree,
    folder: Path,
) -> TrainState:
    """Trains the critic, or the policy if `frozen` has a critic, and returns the last state."""
    trains_critic = "critic" not in frozen
    optimizer = run.optimizers.value if trains_critic else run.optimizers.policy
    steps = run.critic_steps if trains_critic else run.critic_steps + run.policy_steps
    step = distillation.make_step(loss, optimizer, run.memory.microbatches)
    compiled_step = partition(step, initial, mesh_in_use())
    setup = distillation.DistillationSetup(reference.model, run.objective, run.rollouts)
    roll_out = jax.jit(functools.partial(distillation.roll_out, setup))
    data, reward = run.data.encoded_by(reference.tokenizer), run.objective.reward
    key = jax.random.key(run.seed, impl=THREEFRY)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        policy = frozen["reference"] if trains_critic else state.params
        prompts = {name: batch[name] for name in ("inputs", "example_id")}
        samples = roll_out(policy, frozen, prompts, state.step, key)
        outputs = samples.tokens, samples.lengths, samples.finished
        rewards, _ = scorer(source_of(batch), batch.get("documents"), *outputs)
        rollout = distillation.Rollout(batch["inputs"], *outputs[:2], rewards)
        state, metrics = compiled_step(state, frozen, rollout, key)
        return state, metrics | distillation.rollout_metrics(samples, rewards)

    batches = lambda at: unweighted(
        data.batches(run.seed, at, reward.on_host, reward.check_documents)
    )
    return loop.run(steps, run.saving, folder, initial, batches, update, shown=_SHOWN).state
