"""The run that aligns a finished model by PPO: data, checkpoints and reports around `ppo`.

Everything random depends on (seed, step) alone, so a run killed at any moment resumes from its last
checkpoint and, on a CPU, ends with the same bits.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.checkpoints.loading import MODEL as A_MODEL
from dera_jax.checkpoints.loading import Loaded, loaded
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.resources import RunResources, ShapesOnly
from dera_jax.examples import unweighted
from dera_jax.models.finite import check_params
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import THREEFRY, PyTree
from dera_jax.partitioning import mesh_in_use, partition, place
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward
from dera_jax.training import loop, metrics, ppo
from dera_jax.training.dry_run import Need, decodable, need, shapes, source_shapes
from dera_jax.training.progress import PERIOD
from dera_jax.training.supervised import DATA, TrainingData
from dera_jax.training.train_state import Batch, Memory, Step, TrainState

MODEL = "aligned"
_SHOWN = ("reward", "kl", "length")
_LAST_STEPS = 10 * PERIOD  # whose mean is reported at the end


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A run of PPO.

    Attributes:
        reference: the model that the policy is held to, read, or a function that reads it when it
            is needed.
        data: whose documents; the summaries are not used.
        objective: what is maximised.
        updates: how a rollout is used.
        optimizers: of policy and value network; their schedules count minibatches, of which a
            step has `updates.epochs * updates.minibatches`.
        steps: rollouts in all, each of one batch of documents.
        seed: of the data's order and all draws.
        saving: how often a checkpoint is written.
        memory: how an update is kept small.
        start: the model that policy and value network start from, likewise, of the reference's
            sizes; None for the reference itself.

    Raises:
        ValueError: a setting out of its range, a batch not divisible by the minibatches, or a
            warm-up that is longer than the run.
    """

    reference: Loaded | Callable[[], Loaded]
    data: TrainingData
    objective: ppo.Objective
    updates: ppo.Updates
    optimizers: ppo.Optimizers
    steps: int
    seed: int
    saving: Saving
    start: Loaded | Callable[[], Loaded] | None = None
    memory: Memory = dataclasses.field(default_factory=Memory)

    def __post_init__(self):
        checks.check_fields(
            self,
            reference=A_MODEL,
            data=DATA,
            objective=checks.instance(ppo.Objective),
            updates=checks.instance(ppo.Updates),
            optimizers=checks.instance(ppo.Optimizers),
            steps=checks.whole(1),
            seed=checks.SEED,
            saving=checks.instance(Saving),
            start=checks.optional(A_MODEL),
            memory=checks.instance(Memory),
        )
        self.updates.check_batch(self.data.batch_size)
        self.memory.check_batch(self.data.batch_size // self.updates.minibatches)
        each = self.updates.epochs * self.updates.minibatches
        name = f"Alignment.steps × Updates.epochs × Updates.minibatches ({self.steps} × {each})"
        self.optimizers.check_warmup(name, self.steps * each)

    def run(self, folder: Path) -> dict[str, float]:
        """Aligns, or goes on aligning, in `folder`; see `align`."""
        return align(self, folder)

    def setup(self, actors: ppo.Actors) -> ppo.Setup:
        """What the compiled step depends on."""
        return ppo.Setup(actors, self.objective, self.updates, self.optimizers, self.memory)

    def needs(self) -> list[Need]:
        """What a step takes, from shapes alone; those of `reference.params` suffice."""
        task, updates, reference = self.data, self.updates, loaded(self.reference)
        model = decodable(reference.model)
        value = ValueHead(model)
        params = shapes(reference.params)
        start = functools.partial(ppo.initial_state, self.optimizers)
        state = jax.eval_shape(start, params, jax.eval_shape(value.init, params))
        setup, rows = self.setup(ppo.Actors(model, value)), task.batch_size
        batch, key = _batch_shapes(rows, task.inputs, task.targets), jax.random.key(0)
        tokens = rows * updates.rollouts * self.objective.max_length
        networks = {"reference": params, "policy": params, "value network": state.params["value"]}
        frozen = {"reference": params}
        if self.objective.reward.on_host:
            write, improve = ppo.make_halves(setup)
            samples = jax.eval_shape(write, state, frozen, batch, key)
            rewards = jax.ShapeDtypeStruct(samples.lengths.shape, jnp.float32), {}
            rollout = batch["inputs"], samples, rewards
            improve = partition(improve, state, mesh_in_use())
            halves = {
                "PPO rollout": (jax.jit(write), state, frozen, batch, key),
                "PPO updates": (improve, state, None, rollout, key),
            }
            return [need(name, networks, tokens, *call) for name, call in halves.items()]
        reward = shapes(self.objective.reward.load(ShapesOnly(reference.model.vocab_size)))
        networks["reward"] = reward
        step = partition(ppo.make_step(setup), state, mesh_in_use())
        arguments = state, frozen | {"reward": reward}, batch, key
        return [need("PPO step", networks, tokens, step, *arguments)]


def _batch_shapes(rows: int, inputs: int, targets: int) -> dict[str, object]:
    """What `ppo.source_of` takes apart, and the ids."""
    source = source_shapes(rows, inputs, targets)
    return {
        "inputs": source.prompts,
        "targets": source.targets,
        "keywords": source.keywords,
        "document": source.document,
        "example_id": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }


def align(alignment: Alignment, folder: Path) -> dict[str, float]:
    """Aligns, or goes on aligning, in `folder`.

    Leaves there: `aligned` (the last policy), `checkpoints` (the last two states), `metrics.jsonl`
    and TensorBoard events.

    Returns:
        The mean of each metric over the reports of the last 100 steps.

    Raises:
        FloatingPointError: as `loop.run`.
        ValueError: a checkpoint in `folder` is of another size, the task has another vocabulary than
            the reference, or `start` is a model of other sizes.
    """
    task, reference = alignment.data, fitted(loaded(alignment.reference), alignment.data)
    data = task.encoded_by(reference.tokenizer)
    start = reference if alignment.start is None else fitted(loaded(alignment.start), task)
    if start.model != reference.model:
        raise ValueError(f"Alignment.start is {start.model}, the reference {reference.model}")
    model, value = reference.model, ValueHead(reference.model)
    policy = place(model, start.params)
    state = ppo.initial_state(alignment.optimizers, policy, place(value, value.init(policy)))
    reward = alignment.objective.reward
    judge, key = judge_of(reward, reference), jax.random.key(alignment.seed, impl=THREEFRY)
    improve = _step(alignment.setup(ppo.Actors(model, value)), judge, state)
    check_params(reference.params, "the reference")
    frozen = {"reference": place(model, reference.params), "reward": judge.params}
    state = loop.run(
        alignment.steps,
        alignment.saving,
        folder,
        state,
        batches=lambda step: unweighted(
            data.batches(alignment.seed, step, reward.on_host, reward.check_documents)
        ),
        update=lambda state, batch: improve(state, frozen, batch, key),
        shown=_SHOWN,
    ).state
    step = int(state.step)
    scores = last_scores(folder, step)
    card = {"step": step, "training": scores} | _recipe(alignment, reference, start)
    config, vocabulary = reference.model.config, reference.vocabulary
    save_model(folder / MODEL, config, vocabulary, state.params["policy"], card)
    return scores


def fitted(reference: Loaded, task: TrainingData) -> Loaded:
    """Over the data's vocabulary; raises ValueError as `Loaded.agreeing_with`."""
    return reference.agreeing_with(task.known_vocabulary(), task.name)


def judge_of(reward: Reward, reference: Loaded) -> Judge:
    """A reward, its parameters read, for texts of the reference's vocabulary."""
    params = reward.load(RunResources(reference.vocabulary))
    return Judge(reward, params, reference.decode)


def _step(setup: ppo.Setup, judge: Judge, state: TrainState) -> Step:
    """The step, compiled in one piece if the reward can be; else the judge sees all texts of a rollout."""
    mesh = mesh_in_use()
    if not judge.reward.on_host:
        return partition(ppo.make_step(setup), state, mesh)
    write, improve = ppo.make_halves(setup)
    write, improve = jax.jit(write), partition(improve, state, mesh)

    def step(state: TrainState, frozen: PyTree, batch: Batch, key: Array):
        documents = batch.pop("documents")
        samples = write(state, frozen, batch, key)
        texts = samples.tokens, samples.lengths, samples.finished
        rewards = judge(ppo.source_of(batch), documents, *texts)
        return improve(state, None, (batch["inputs"], samples, rewards), key)

    return step


def _recipe(alignment: Alignment, reference: Loaded, start: Loaded) -> dict[str, object]:
    """What the aligned model's card says of its making."""
    objective = alignment.objective
    recipe = {
        "data": alignment.data.described(),
        "reward": repr(objective.reward),
        "beta": objective.beta,
        "max_length": objective.max_length,
        "updates": dataclasses.asdict(alignment.updates),
        "seed": alignment.seed,
        "from": reference.card,
    }
    if alignment.start is not None:
        recipe["start"] = start.card
    if isinstance(objective.reward, LengthInRange):
        recipe["length_range"] = [objective.reward.low, objective.reward.high]
    return recipe


def last_scores(folder: Path, step: int) -> dict[str, float]:
    """Means over the reports of the last steps, without their prefix."""
    rows = [row for row in metrics.read(folder) if row["step"] > step - _LAST_STEPS]
    names = [name for name in rows[-1] if name != "step"]
    mean = lambda name: float(np.mean([row[name] for row in rows]))
    return {name.removeprefix("training/"): mean(name) for name in names}
