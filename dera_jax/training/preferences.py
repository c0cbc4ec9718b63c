"""Training on comparisons: reward models, and DPO, which is the same loss on another score (`scorers.py`)."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from dera_jax import checks, json_files
from dera_jax.checkpoints.loading import load_params
from dera_jax.checkpoints.model_folder import restore_replaced, save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.evaluation import reliability
from dera_jax.examples import Examples, only, spread_batches
from dera_jax.models.finite import check_values
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import (
    PyTree,
)
from dera_jax.partitioning import mesh_in_use, once, partition, place, to_host
from dera_jax.training import loop, supervised
from dera_jax.training.dry_run import Need, need, padded_shapes, prompt_shapes, weight_shapes
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.scorers import Comparison, LogRatio, ScalarHead, Scorer, margin_of
from dera_jax.training.supervised import BEST, DATA, TrainingData
from dera_jax.training.train_state import Memory, Step, TrainState, make_step, new_state

_READ = ("inputs", "targets", "rejected", "weight")


@dataclasses.dataclass(frozen=True)
class Start:
    """What is trained, and the model it starts from."""

    scorer: Scorer
    start: supervised.Start


def reward_model(start: supervised.Start) -> Start:
    """A scalar head, 0 at first, on the model of `start`. Dropout is not used."""
    return Start(ScalarHead(ValueHead(start.model)), start)


def dpo(start: supervised.Start, beta: float) -> Start:
    """The model of `start` as policy and as reference. Dropout is not used."""
    return Start(LogRatio(start.model, beta), start)


@dataclasses.dataclass(frozen=True)
class Validation:
    """How often and on what to validate.

    Attributes:
        period: steps between two validations; there is one after the last step too.
        examples: the first so many pairs of the split `validation`.
        patience: stop after so many validations without a better loss; None to go on.

    Raises:
        ValueError: a setting out of its range.
    """

    period: int
    examples: int = 1024
    patience: int | None = 3

    def __post_init__(self):
        sizes = dict.fromkeys(("period", "examples"), checks.whole(1))
        checks.check_fields(self, patience=checks.optional(checks.whole(1)), **sizes)


@dataclasses.dataclass(frozen=True)
class PreferenceTraining:
    """A run of training on pairs.

    Attributes:
        start: what to train (`reward_model`, `dpo`).
        data: a task of pairs (`tasks.preferences`) with the splits validation and test too.
        optimizer: how.
        steps: updates in all.
        seed: of the data's order.
        validation: how often, and when to stop early.
        saving: how often a checkpoint is written.
        memory: how a step is kept small.

    Raises:
        ValueError: a setting out of its range, no task of pairs with these splits, or a warm-up
            that is longer than the run.
    """

    start: Start
    data: TrainingData
    optimizer: Optimizer
    steps: int
    seed: int
    validation: Validation
    saving: Saving
    memory: Memory = dataclasses.field(default_factory=Memory)

    def __post_init__(self):
        checks.check_fields(
            self,
            start=checks.instance(Start),
            data=DATA,
            optimizer=checks.instance(Optimizer),
            steps=checks.whole(1),
            seed=checks.SEED,
            validation=checks.instance(Validation),
            saving=checks.instance(Saving),
            memory=checks.instance(Memory),
        )
        self.memory.check_batch(self.data.batch_size)
        self.data.check("validation", "test", pairs=True)
        self.optimizer.check_warmup("PreferenceTraining.steps", self.steps)

    def run(self, folder: Path) -> dict[str, object]:
        """Trains, or goes on training, in `folder`; see `train`."""
        return train(self, folder)

    def needs(self) -> list[Need]:
        """What a step takes, from shapes alone."""
        model, task, scorer = self.start.start.model, self.data, self.start.scorer
        first_params = jax.eval_shape(model.init, jax.random.key(0))
        params, fixed = jax.eval_shape(scorer.init, first_params), scorer.fixed(first_params)
        state = jax.eval_shape(lambda p: new_state(p, self.optimizer), params)
        texts = padded_shapes(task.batch_size, task.targets)
        batch = {
            "inputs": prompt_shapes(task.batch_size, task.inputs),
            "targets": texts,
            "rejected": texts,
            "weight": weight_shapes(task.batch_size),
        }
        tokens = task.batch_size * (task.inputs + 2 * task.targets)
        name = f"step on pairs of {task.name} ({type(scorer).__name__})"
        step = partition(self.step(scorer), state, mesh_in_use())
        arguments = state, fixed, batch, jax.random.key(0)
        return [need(name, {"trained": params}, tokens, step, *arguments)]

    def step(self, scorer: Scorer) -> Step:
        """What is compiled."""
        objective = Comparison(scorer.kept_small(self.memory))
        return make_step(objective, self.optimizer, self.memory.microbatches)


def train(training: PreferenceTraining, folder: Path) -> dict[str, object]:
    """Trains, or goes on training, in `folder`.

    Leaves there: `best` (the model of the lowest validation loss), `checkpoints`, `metrics.jsonl` and
    TensorBoard events; of the best model on the split `test` `test.json` and `calibration.png`.

    Returns:
        best_loss, best_step, `test`: see `reliability.summary`, and `left_out`: by split and reason
        the pairs that were not used, see `encoding`.

    Raises:
        FloatingPointError: as `loop.run`.
        ValueError: the task has no pairs, or another vocabulary than the model.
    """
    task, scorer, settings = training.data, training.start.scorer, training.validation
    task.check(pairs=True)
    origin = supervised.read_for_data(training.start.start, task)
    if isinstance(scorer, LogRatio):  # over the ids that the vocabulary has
        scorer = dataclasses.replace(scorer, model=origin.model)
    data = task.encoded_by(origin.tokenizer)
    held_out = data.read("validation").at(slice(settings.examples))
    test = data.read("test")  # now, lest it is missing after training
    params = place(origin.model, origin.params)
    fixed, first = scorer.fixed(params), place(scorer.network, scorer.init(params))
    state = new_state(first, training.optimizer)
    step, key = (
        partition(training.step(scorer), state, mesh_in_use()),
        jax.random.key(training.seed),
    )
    scores_of = functools.partial(
        margins, scorer.kept_small(training.memory), fixed=fixed, batch_size=task.batch_size
    )

    def keep(state: TrainState, scores: Mapping[str, float]) -> None:
        card = _card(training, int(state.step), scores, origin.card, data.left_out())
        save_model(folder / BEST, origin.model.config, origin.vocabulary, state.params, card)

    restore_replaced(folder / BEST)
    found = loop.run(
        training.steps,
        training.saving,
        folder,
        state,
        batches=lambda step: only(data.batches(training.seed, step), *_READ),
        update=lambda state, batch: step(state, fixed, batch, key),
        validating=loop.Validating(
            settings.period,
            settings.patience,
            scores=lambda params, _: reliability.scores(scores_of(params, held_out)),
            keep=keep,
        ),
    )
    init = lambda key: scorer.init(origin.model.init(key))
    best = load_params(folder / BEST, init, origin.vocabulary, task.name)
    report = reliability.summary(scores_of(best, test), test.notes)
    once(lambda: json_files.write(folder / "test.json", report))
    once(lambda: reliability.plot(report, folder / "calibration.png"))
    print(reliability.sentence(report))
    return {
        "best_loss": float(found.best_loss),
        "best_step": int(found.best_step),
        "test": {name: x for name, x in report.items() if name != "bins"},
        "left_out": data.left_out(),
    }


_margin_of = jax.jit(margin_of, static_argnums=0)


def margins(
    scorer: Scorer, params: PyTree, examples: Examples, fixed: PyTree, batch_size: int
) -> np.ndarray:
    """s(chosen) − s(rejected) of all examples, float32 [n].

    Raises:
        FloatingPointError: that of a pair is not finite.
    """
    parts = [
        to_host(_margin_of(scorer, params, fixed, x["inputs"], x["targets"], x["rejected"]))
        for x in spread_batches(examples, batch_size)
    ]
    found = np.concatenate(parts)[: len(examples)]
    check_values({"score's margin": found}, ("pair",))
    return found


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
