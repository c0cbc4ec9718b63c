"""Trains reward models, and policies by DPO: the same loss on different scores (`scorers.py`).

Axes: n pairs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.loading import load_trained
from dera_jax.checkpoints.model_folder import restore_replaced
from dera_jax.checkpoints.orbax import Saving
from dera_jax.data.examples import Examples, select_columns, spread_batches
from dera_jax.data.own_files import NoFileError
from dera_jax.files import json_files
from dera_jax.metrics import reliability
from dera_jax.models.finite import check_values
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import PyTree
from dera_jax.models.lora import with_base
from dera_jax.partitioning import mesh_in_use, partition, shard_params, to_host, write_once
from dera_jax.training import loop, supervised
from dera_jax.training.dry_run import (
    ProgramCost,
    padded_shapes,
    program_cost,
    prompt_shapes,
    weight_shapes,
)
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.scorers import Comparison, LogRatio, ScalarHead, Scorer, margin_of
from dera_jax.training.supervised import BEST, DATA, TrainingData
from dera_jax.training.train_state import Memory, Step, TrainState, make_step, new_state

_READ = ("inputs", "targets", "rejected", "weight")


@dataclasses.dataclass(frozen=True)
class PreferenceStart:
    """Holds the scorer that is trained, and the language model from which training starts."""

    scorer: Scorer
    start: supervised.InitialModel


def reward_model(start: supervised.InitialModel) -> PreferenceStart:
    """Returns a reward model to train: a scalar head that starts at 0 on the model of `start`.

    Dropout is not used.

    Args:
        start: the model that the head is trained on, and with.
    """
    return PreferenceStart(ScalarHead(ValueHead(start.model)), start)


def dpo(start: supervised.InitialModel, beta: float) -> PreferenceStart:
    """Returns a policy to train by DPO: the model of `start`, which is the reference policy too.

    Dropout is not used.

    Args:
        start: the reference, from which the policy starts.
        beta: the KL coefficient.

    Raises:
        ValueError: `beta` is not a positive number.
    """
    return PreferenceStart(LogRatio(start.model, beta), start)


@dataclasses.dataclass(frozen=True)
class PreferenceValidation:
    """Configures how often and on what to validate.

    Attributes:
        period: steps between two validations; the last step of a run is validated too.
        examples: number of pairs, the first ones of the split `validation`.
        patience: validations without a lower loss until training stops early; None for no limit.

    Raises:
        ValueError: a field is out of its range.
    """

    period: int
    examples: int
    patience: int | None

    def __post_init__(self):
        sizes = dict.fromkeys(("period", "examples"), checks.integer(1))
        checks.check_fields(self, patience=checks.optional(checks.integer(1)), **sizes)


@dataclasses.dataclass(frozen=True)
class PreferenceTraining:
    """Configures a run of training on preference pairs.

    Attributes:
        start: the scorer to train and its initial model (`reward_model`, `dpo`).
        data: a task of pairs (`dera_jax.tasks.preferences`) that has the splits `validation` and `test` too,
            or files of pairs, of which `test` may be absent.
        optimizer: the optimizer.
        steps: number of updates.
        seed: seed of the data order.
        validation: how often to validate, and when to stop early.
        saving: how often a checkpoint is written.
        memory: reduces the memory of a step.

    Raises:
        ValueError: a field is out of its range, `data` has no pairs or lacks a split, the
            microbatches do not divide the batch, or the warm-up is longer than the run.
    """

    start: PreferenceStart
    data: TrainingData
    optimizer: Optimizer
    steps: int
    seed: int
    validation: PreferenceValidation
    saving: Saving
    memory: Memory = dataclasses.field(default_factory=Memory)

    def __post_init__(self):
        checks.check_fields(
            self,
            start=checks.instance(PreferenceStart),
            data=DATA,
            optimizer=checks.instance(Optimizer),
            steps=checks.integer(1),
            seed=checks.SEED,
            validation=checks.instance(PreferenceValidation),
            saving=checks.instance(Saving),
            memory=checks.instance(Memory),
        )
        self.memory.check_batch(self.data.batch_size)
        self.data.check("validation", pairs=True)
        self.has_test()  # a file without pairs is an error now
        self.optimizer.check_warmup("PreferenceTraining.steps", self.steps)

    def has_test(self) -> bool:
        """Returns whether there are test pairs: only a user's own files may lack them."""
        try:
            self.data.check("test", pairs=True)
        except NoFileError:
            return False
        return True

    def run(self, folder: Path) -> dict[str, object]:
        """Trains in `folder`, or resumes there; see `train`."""
        return train(self, folder)

    def program_costs(self) -> list[ProgramCost]:
        """Returns the memory of a step from shapes alone."""
        model, task, scorer = self.start.start.model, self.data, self.start.scorer
        initial = jax.eval_shape(model.init, jax.random.key(0))
        params, fixed = jax.eval_shape(scorer.init, initial), scorer.fixed(initial)
        state = jax.eval_shape(lambda p: new_state(p, self.optimizer), params)
        completions = padded_shapes(task.batch_size, task.targets)
        batch = {
            "inputs": prompt_shapes(task.batch_size, task.inputs),
            "targets": completions,
            "rejected": completions,
            "weight": weight_shapes(task.batch_size),
        }
        tokens = task.batch_size * (task.inputs + 2 * task.targets)
        name = f"step on pairs of {task.name} ({type(scorer).__name__})"
        step = partition(self.step(scorer), state, mesh_in_use())
        frozen = {"base": None, "reference": fixed}
        arguments = state, frozen, batch, jax.random.key(0)
        return [program_cost(name, {"trained": params}, tokens, step, *arguments)]

    def step(self, scorer: Scorer) -> Step:
        """Returns the training step, to be compiled."""
        objective = Comparison(scorer.with_memory(self.memory))
        return make_step(objective, self.optimizer, self.memory.microbatches)


def train(training: PreferenceTraining, folder: Path) -> dict[str, object]:
    """Trains in `folder`, or resumes there, and evaluates the best model on the split `test`.

    Writes `best` (the model of the lowest validation loss), `checkpoints`, `metrics.jsonl`,
    TensorBoard events, and the evaluation of the best model, `test.json` and `calibration.png`; without
    the split `test` of a user's own files, there is no such evaluation.

    Returns:
        `best_loss`, `best_step`, `test` (see `reliability.summary`; absent without that split) and
        `left_out` (the number of pairs that were not used, by split and reason, see `encoding`).

    Raises:
        FloatingPointError: as `loop.run`, or the margin of a pair is not finite.
        ValueError: the task has no pairs, or has another vocabulary than the model.
    """
    task, scorer, settings = training.data, training.start.scorer, training.validation
    origin = supervised.read_for_data(training.start.start, task)
    if isinstance(scorer, LogRatio):  # restrict the policy to the ids of the vocabulary
        scorer = dataclasses.replace(scorer, model=origin.model)
    data = task.encoded_by(origin.tokenizer)
    held_out = data.read("validation").at(slice(settings.examples))
    # Read before training, so that its errors come now.
    test = data.read("test") if training.has_test() else None
    if test is None:
        print("no file is given for the split 'test' (TEST): the best model is not tested on pairs")
    params = shard_params(origin.model, origin.trainable)
    initial = shard_params(scorer.network, scorer.init(params))
    frozen = origin.frozen | {"reference": scorer.fixed(params)}
    full = lambda params: with_base(params, frozen["base"])
    state = new_state(initial, training.optimizer)
    step = partition(training.step(scorer), state, mesh_in_use())
    key = jax.random.key(training.seed)
    margins_of = functools.partial(
        margins,
        scorer.with_memory(training.memory),
        fixed=full(frozen["reference"]),
        batch_size=task.batch_size,
    )

    def save_best(state: TrainState, scores: Mapping[str, float]) -> None:
        card = _card(training, int(state.step), scores, origin.card, data.left_out())
        head = {"pooling": scorer.model.pooling} if isinstance(scorer, ScalarHead) else {}
        origin.save(folder / BEST, state.params, card, **head)

    restore_replaced(folder / BEST)
    tracked = loop.run(
        training.steps,
        training.saving,
        folder,
        state,
        batches=lambda step: select_columns(data.batches(training.seed, step), *_READ),
        update=lambda state, batch: step(state, frozen, batch, key),
        validating=loop.ValidationLoop(
            settings.period,
            settings.patience,
            scores=lambda params, _: reliability.loss_and_accuracy(
                margins_of(full(params), held_out)
            ),
            keep=save_best,
        ),
    )
    result = {"best_loss": float(tracked.best_loss), "best_step": int(tracked.best_step)}
    if test is not None:
        init = lambda key: scorer.init(origin.model.init(key))
        best = full(load_trained(folder / BEST, origin, init, task.name))
        report = reliability.summary(margins_of(best, test), test.notes)
        write_once(lambda: json_files.write(folder / "test.json", report))
        write_once(lambda: reliability.plot(report, folder / "calibration.png"))
        print(reliability.format_summary(report))
        result["test"] = {name: x for name, x in report.items() if name != "bins"}
    return result | {"left_out": data.left_out()}


_margin_of = jax.jit(margin_of, static_argnums=0)


def margins(
    scorer: Scorer, params: PyTree, examples: Examples, fixed: PyTree, batch_size: int
) -> np.ndarray:
    """Returns the margins s(chosen) − s(rejected) of all examples, float32 [n].

    Raises:
        FloatingPointError: the margin of a pair is not finite; the message names the pair.
    """
    batches = [
        to_host(_margin_of(scorer, params, fixed, x["inputs"], x["targets"], x["rejected"]))
        for x in spread_batches(examples, batch_size)
    ]
    values = np.concatenate(batches)[: len(examples)]
    check_values({"score's margin": values}, ("pair",))
    return values


def _card(
    training: PreferenceTraining, step: int, scores: Mapping, start: dict, left_out: dict
) -> dict:
    scorer = training.start.scorer
    return {
        "data": training.data.described(),
        "score": type(scorer).__name__,
        **({"beta": scorer.beta} if isinstance(scorer, LogRatio) else {}),
        "step": step,
        "steps": training.steps,
        "seed": training.seed,
        "validation": dict(scores),
        "left_out": left_out,
        "from": start,
    }
