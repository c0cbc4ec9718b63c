"""Aligns a trained model by PPO, with the data, checkpoints and metric log of a run around `ppo`.

All randomness depends on (seed, step) alone. A run that is killed at any moment therefore resumes
from its last checkpoint and, on a CPU, ends with bit-identical results.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.checkpoints.loaded import MODEL as A_MODEL
from dera_jax.checkpoints.loaded import LoadedModel, ensure_loaded
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.resources import DryRunResources, RunResources
from dera_jax.data.examples import unweighted
from dera_jax.models.finite import check_params
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import THREEFRY, PyTree
from dera_jax.partitioning import mesh_in_use, partition, shard_params
from dera_jax.rewards.protocol import Reward
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.training import loop, metric_log, ppo
from dera_jax.training.dry_run import ProgramCost, decodable, program_cost, shapes, source_shapes
from dera_jax.training.progress import PERIOD
from dera_jax.training.supervised import DATA, TrainingData
from dera_jax.training.train_state import Batch, Memory, Step, TrainState

MODEL = "aligned"
_SHOWN = ("reward", "kl", "length")
_LAST_STEPS = 10 * PERIOD  # steps over which the final metrics are averaged


@dataclasses.dataclass(frozen=True)
class PPOTraining:
    """Configures a run of PPO.

    Attributes:
        reference: the reference policy, as a loaded model or as a function that loads it when it is
            needed.
        data: the training data, of which PPO uses the documents and not the targets, which only
            some rewards read.
        objective: the objective to maximise.
        updates: size of a rollout, and the updates that are made on it.
        optimizers: optimizers of policy and value network; their schedules count minibatches, of
            which a step has `updates.epochs * updates.minibatches`.
        steps: number of rollouts, each on one batch of documents.
        seed: seed of the data order and of all sampling.
        saving: how often a checkpoint is written.
        start: the model from which policy and value network start, as a loaded model or a function,
            with the architecture of the reference; None for the reference itself.
        memory: reduces the memory of an update.

    Raises:
        ValueError: a field is out of its range, the minibatches or microbatches do not divide the
            batch, or a warm-up is longer than the run.
    """

    reference: LoadedModel | Callable[[], LoadedModel]
    data: TrainingData
    objective: ppo.AlignmentObjective
    updates: ppo.Updates
    optimizers: ppo.Optimizers
    steps: int
    seed: int
    saving: Saving
    start: LoadedModel | Callable[[], LoadedModel] | None = None
    memory: Memory = dataclasses.field(default_factory=Memory)

    def __post_init__(self):
        checks.check_fields(
            self,
            reference=A_MODEL,
            data=DATA,
            objective=checks.instance(ppo.AlignmentObjective),
            updates=checks.instance(ppo.Updates),
            optimizers=checks.instance(ppo.Optimizers),
            steps=checks.integer(1),
            seed=checks.SEED,
            saving=checks.instance(Saving),
            start=checks.optional(A_MODEL),
            memory=checks.instance(Memory),
        )
        self.updates.check_batch(self.data.batch_size)
        self.memory.check_batch(self.data.batch_size // self.updates.minibatches)
        factors = f"{self.steps} × {self.updates.epochs} × {self.updates.minibatches}"
        name = f"PPOTraining.steps × Updates.epochs × Updates.minibatches ({factors})"
        self.optimizers.check_warmup(name, num_updates(self.steps, self.updates))

    def run(self, folder: Path) -> dict[str, float]:
        """Trains in `folder`, or resumes there; see `align`."""
        return align(self, folder)

    def setup(self, actors: ppo.Actors) -> ppo.PPOSetup:
        """Returns the static configuration of the compiled step."""
        return ppo.PPOSetup(actors, self.objective, self.updates, self.optimizers, self.memory)

    def program_costs(self) -> list[ProgramCost]:
        """Returns the memory of a step from shapes alone; `reference.params` may be shapes too."""
        task, updates, reference = self.data, self.updates, ensure_loaded(self.reference)
        model = decodable(reference.model)
        value = ValueHead(model)
        params = shapes(reference.params)
        start = functools.partial(ppo.initial_state, self.optimizers)
        state = jax.eval_shape(start, params, jax.eval_shape(value.init, params))
        setup, documents = self.setup(ppo.Actors(model, value)), task.batch_size
        batch, key = _batch_shapes(documents, task.inputs, task.targets), jax.random.key(0)
        tokens = documents * updates.rollouts * self.objective.max_length
        networks = {"reference": params, "policy": params, "value network": state.params["value"]}
        frozen = {"base": None, "reference": params}
        if self.objective.reward.on_host:
            roll_out, update = ppo.make_split_step(setup)
            samples = jax.eval_shape(roll_out, state, frozen, batch, key)
            rewards = jax.ShapeDtypeStruct(samples.lengths.shape, jnp.float32), {}
            rollout = batch["inputs"], samples, rewards
            update = partition(update, state, mesh_in_use())
            calls = {
                "PPO rollout": (jax.jit(roll_out), state, frozen, batch, key),
                "PPO updates": (update, state, frozen, rollout, key),
            }
            return [program_cost(name, networks, tokens, *call) for name, call in calls.items()]
        reward = shapes(self.objective.reward.load(DryRunResources(reference.model.vocab_size)))
        networks["reward"] = reward
        step = partition(ppo.make_step(setup), state, mesh_in_use())
        arguments = state, frozen | {"reward": reward}, batch, key
        return [program_cost("PPO step", networks, tokens, step, *arguments)]


def num_updates(steps: int, updates: ppo.Updates) -> int:
    """Returns the number of updates of a run of PPO, one per minibatch.

    Args:
        steps: number of rollouts, each on one batch of documents.
        updates: the updates that are made on each rollout.

    Raises:
        ValueError: `steps` is not a positive integer.
    """
    checks.check("PPOTraining.steps", steps, checks.integer(1))
    return steps * updates.epochs * updates.minibatches


def _batch_shapes(documents: int, inputs: int, targets: int) -> dict[str, object]:
    """Returns the shapes of the columns that `ppo.source_of` reads, and of the example ids."""
    source = source_shapes(documents, inputs, targets)
    return {
        "inputs": source.prompts,
        "targets": source.targets,
        "keywords": source.keywords,
        "document": source.document,
        "example_id": jax.ShapeDtypeStruct((documents,), jnp.int32),
    }


def align(alignment: PPOTraining, folder: Path) -> dict[str, float]:
    """Runs PPO in `folder`, or resumes it there.

    Writes `aligned` (the last policy), `checkpoints` (the last two train states), `metrics.jsonl`
    and TensorBoard events.

    Returns:
        The mean of each metric over the reports of the last 100 steps.

    Raises:
        FloatingPointError: a parameter of the reference is not finite, or as `loop.run`.
        ValueError: a checkpoint in `folder` has other array shapes, the task has another vocabulary
            than the reference, or `start` has another architecture than the reference.
    """
    task, reference = (
        alignment.data,
        with_data_vocabulary(ensure_loaded(alignment.reference), alignment.data),
    )
    data = task.encoded_by(reference.tokenizer)
    start = (
        reference
        if alignment.start is None
        else with_data_vocabulary(ensure_loaded(alignment.start), task)
    )
    if start.model != reference.model:
        raise ValueError(
            "PPOTraining.start must have the architecture of PPOTraining.reference; found "
            f"{start.model}, expected {reference.model}."
        )
    model, value = reference.model, ValueHead(reference.model)
    policy = shard_params(model, start.trainable)
    state = ppo.initial_state(alignment.optimizers, policy, shard_params(value, value.init(policy)))
    reward = alignment.objective.reward
    scorer, key = scorer_of(reward, reference), jax.random.key(alignment.seed, impl=THREEFRY)
    ppo_step = _step(alignment.setup(ppo.Actors(model, value)), scorer, state)
    check_params(reference.trainable, "the reference")
    fixed = shard_params(model, reference.trainable)
    frozen = reference.frozen | {"reference": fixed, "reward": scorer.params}
    state = loop.run(
        alignment.steps,
        alignment.saving,
        folder,
        state,
        batches=lambda step: unweighted(
            data.batches(alignment.seed, step, reward.on_host, reward.check_documents)
        ),
        update=lambda state, batch: ppo_step(state, frozen, batch, key),
        shown=_SHOWN,
    ).state
    step = int(state.step)
    scores = final_metrics(folder, step)
    print(changes(metric_log.read(folder)))
    card = {"step": step, "training": scores} | _recipe(alignment, reference, start)
    reference.save(folder / MODEL, state.params["policy"], card)
    return scores


def with_data_vocabulary(reference: LoadedModel, task: TrainingData) -> LoadedModel:
    """Returns the model over the data's vocabulary; raises as `LoadedModel.with_vocabulary`."""
    return reference.with_vocabulary(task.known_vocabulary(), task.name)


def scorer_of(reward: Reward, reference: LoadedModel) -> RewardScorer:
    """Loads a reward's parameters and returns its scorer for ids of the reference's vocabulary."""
    params = reward.load(RunResources(reference.vocabulary, reference.chat_template))
    return RewardScorer(reward, params, reference.decode)


def _step(setup: ppo.PPOSetup, scorer: RewardScorer, state: TrainState) -> Step:
    """Compiles the PPO step as one program, or as two around the scoring by a Python reward."""
    mesh = mesh_in_use()
    if not scorer.reward.on_host:
        return partition(ppo.make_step(setup), state, mesh)
    roll_out, update = ppo.make_split_step(setup)
    roll_out, update = jax.jit(roll_out), partition(update, state, mesh)

    def step(state: TrainState, frozen: PyTree, batch: Batch, key: Array):
        documents = batch.pop("documents")
        samples = roll_out(state, frozen, batch, key)
        outputs = samples.tokens, samples.lengths, samples.finished
        rewards = scorer(ppo.source_of(batch), documents, *outputs)
        return update(state, frozen, (batch["inputs"], samples, rewards), key)

    return step


def _recipe(
    alignment: PPOTraining, reference: LoadedModel, start: LoadedModel
) -> dict[str, object]:
    """Returns the entries of the aligned model's card that describe how it was trained."""
    objective = alignment.objective
    recipe = {
        "data": alignment.data.described(),
        **objective.reward.described(),
        "beta": objective.beta,
        "max_length": objective.max_length,
        "updates": dataclasses.asdict(alignment.updates),
        "seed": alignment.seed,
        "from": reference.card,
    }
    if alignment.start is not None:
        recipe["start"] = start.card
    return recipe


def changes(reports: Sequence[Mapping[str, float]]) -> str:
    """Returns a line on reward, KL and length in the first and the last of a run's reports."""
    ends = [reports[0], reports[-1]] if len(reports) > 1 else reports
    told = {
        "reward": "reward",
        "full_kl": "KL to the reference (nats)",
        "length": "length (tokens)",
    }
    values = {
        title: " → ".join(f"{report[f'training/{name}']:.2f}" for report in ends)
        for name, title in told.items()
    }
    steps = " → ".join(f"step {report['step']}" for report in ends)
    return f"training, {steps}: {', '.join(map(' '.join, values.items()))}"


def final_metrics(folder: Path, step: int) -> dict[str, float]:
    """Returns the mean of each training metric over the reports of the last 100 steps."""
    reports = [x for x in metric_log.read(folder) if x["step"] > step - _LAST_STEPS]
    names = [name for name in reports[-1] if name != "step"]
    mean = lambda name: float(np.mean([report[name] for report in reports]))
    return {name.removeprefix("training/"): mean(name) for name in names}
