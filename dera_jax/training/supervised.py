"""Supervised training of a language model: pre-training and fine-tuning are this run on different tasks."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
from jax import Array

from dera_jax import checks
from dera_jax.checkpoints.loading import Loaded, load, read_config
from dera_jax.checkpoints.model_folder import restore_replaced, save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.examples import Batch, Examples, only
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.registry import CONFIG, model_of
from dera_jax.partitioning import mesh_in_use, partition, place
from dera_jax.training import loop
from dera_jax.training.dry_run import Need, need, padded_shapes, prompt_shapes, weight_shapes
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.train_state import Memory, Step, TrainState, make_step, new_state
from dera_jax.training.train_step import CrossEntropy, Loss
from dera_jax.training.validation import Validation, Validator

BEST = "best"  # the folder of the model with the lowest validation loss
_RUN = ("dropout_rate", "dtype")  # fields of a configuration that are the run's


class EncodedData(Protocol):
    """Examples as a model reads them."""

    def read(self, split: str, seed: int = 0) -> Examples:
        """One pass over a split."""

    def batches(
        self, seed: int, start_step: int, with_documents=False, check_documents=None
    ) -> Iterator[Batch]:
        """The endless batches of training from a step on."""

    def left_out(self) -> dict[str, dict[str, int]]:
        """By split and reason the number of examples that were left out."""


class TrainingData(Protocol):
    """Where a run's examples come from: `data.Data`, a seqio task, or arrays of a user's own."""

    name: str
    split: str
    inputs: int
    targets: int
    batch_size: int

    def check(self, *splits: str, pairs: bool = False) -> None:
        """Raises ValueError unless there are these splits, and pairs if there are to be."""

    def known_vocabulary(self) -> Vocabulary | None:
        """What the ids mean, of data that are ids, or for models that do not say it; else None."""

    def encoded_by(self, tokenizer: Tokenizer) -> EncodedData:
        """The examples as a model with this tokenizer reads them."""

    def described(self) -> dict[str, object]:
        """What a model's card says of it, as JSON."""


DATA = dataclasses.replace(checks.having("encoded_by"), words="a data.Data")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        model: the architecture, dropout included.
        read: makes or reads the first parameters, with the card of the finished model they are
            from, or of how they were drawn; not called before training begins.
        vocabulary: what the model's ids mean, where that is known before.
    """

    model: TrainableModel
    read: Callable[[], Loaded]
    vocabulary: Vocabulary | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of supervised training.

    Attributes:
        start: the model and its first parameters (`new_model`, `finished_model`).
        data: what to learn, a `data.Data`.
        optimizer: how.
        steps: updates in all.
        seed: of the data's order and of dropout.
        validation: how often, and when to stop early.
        loss: what is minimised.
        saving: how often a checkpoint is written.
        memory: how a step is kept small.

    Raises:
        ValueError: a setting out of its range, no split `validation`, or a warm-up that is longer
            than the run.
    """

    start: Start
    data: TrainingData
    optimizer: Optimizer
    steps: int
    seed: int
    validation: Validation
    loss: Loss
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
            loss=checks.instance(Loss),
            saving=checks.instance(Saving),
            memory=checks.instance(Memory),
        )
        self.memory.check_batch(self.data.batch_size)
        self.data.check("validation")
        self.optimizer.check_warmup("Training.steps", self.steps)

    def run(self, folder: Path) -> dict[str, float]:
        """Trains, or goes on training, in `folder`; see `train`."""
        return train(self, folder)

    def needs(self) -> list[Need]:
        """What a step takes, from shapes alone."""
        model, task = self.start.model, self.data
        params = jax.eval_shape(model.init, jax.random.key(0))
        state = jax.eval_shape(lambda p: new_state(p, self.optimizer), params)
        batch = {
            "inputs": prompt_shapes(task.batch_size, task.inputs),
            "targets": padded_shapes(task.batch_size, task.targets),
            "weight": weight_shapes(task.batch_size),
        }
        tokens = task.batch_size * (task.inputs + task.targets)
        name = f"training step on {task.name}"
        step = partition(self.step(model), state, mesh_in_use())
        return [need(name, {"model": params}, tokens, step, state, None, batch, jax.random.key(0))]

    def step(self, model: TrainableModel) -> Step:
        """What is compiled."""
        objective = CrossEntropy(self.memory.of(model), self.loss, self.memory.chunk)
        return make_step(objective, self.optimizer, self.memory.microbatches)


def new_model(
    config: object,
    seed: int,
    changed: Callable[[PyTree, object, Array], PyTree] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Start:
    """A model with random parameters.

    Args:
        config: of a model of `models.registry`.
        seed: of the parameters.
        changed: (params, config, key) -> params, what is made of the random ones before training, as
            `models.copying.with_copying_heads`; None for nothing.
        vocabulary: what its ids are to mean; None where the data say it.

    Raises:
        ValueError: no configuration, or a seed that is none.
    """
    seed = checks.check("new_model.seed", seed, checks.SEED)
    model = model_of(checks.check("new_model.config", config, CONFIG))
    key, card = jax.random.key(seed), {"random_parameters": seed}

    def draw() -> Loaded:
        params = model.init(key)
        made_by = {}
        if changed is not None:
            params = changed(params, config, key)
            made_by = {"changed_by": getattr(changed, "__name__", repr(changed))}
        found = Loaded(model, params, None, card | made_by)
        return found.agreeing_with(vocabulary, "new_model.vocabulary")

    return Start(model, draw, vocabulary)


def finished_model(folder: str, dropout_rate: float) -> Start:
    """A model from its folder, to be trained further with this dropout, in [0, 1)."""
    rate = checks.number(least=0, below=1)
    dropout_rate = checks.check("finished_model.dropout_rate", dropout_rate, rate)
    found = open_checkpoint(folder)
    config = found.config
    if hasattr(config, "dropout_rate"):
        config = dataclasses.replace(config, dropout_rate=dropout_rate)
    elif dropout_rate:
        raise ValueError(
            f"{folder} holds a {type(config).__name__}, which has no dropout; found the rate "
            f"{dropout_rate}, set DROPOUT_RATE to 0"
        )
    return Start(model_of(config), lambda: load(folder), found.vocabulary)


def finished_model_of(config: object, folder: str | None) -> Start:
    """A model from its folder, with the sizes said beforehand: they can be checked without it.

    Raises:
        ValueError: (when training begins) no folder, or its model has other sizes.
    """

    def read() -> Loaded:
        if folder is None:
            raise ValueError("the model to start from is not given: add --gin.INITIAL_MODEL=...")
        # Dropout and the type of activations are the run's, not the parameters'; the start token is
        # that of the folder, and so are the end tokens where the run does not say them.
        free = {
            name: getattr(config, name) for name in (*_RUN, "start_token") if hasattr(config, name)
        }
        if not config.end_ids:
            free["end_ids"] = ()
        found = dataclasses.replace(read_config(folder), **free)
        if found != config:
            raise ValueError(f"{folder} holds a model of other sizes: {found}, expected {config}")
        return load(folder)

    return Start(model_of(config), read)


def read_for_data(start: Start, task: TrainingData) -> Loaded:
    """The first parameters, in a model over the data's vocabulary with the dropout of `start`.

    Raises:
        ValueError: the task's vocabulary has more ids than the model, or is not the one the model
            was trained with.
    """
    origin = start.read().agreeing_with(task.known_vocabulary(), task.name)
    config = start.model.config
    free = {name: getattr(config, name) for name in _RUN if hasattr(config, name)}
    model = dataclasses.replace(
        origin.model, config=dataclasses.replace(origin.model.config, **free)
    )
    return dataclasses.replace(origin, model=model)


def train(training: Training, folder: Path) -> dict[str, float]:
    """Trains, or goes on training, in `folder`.

    Leaves there: `best` (the model of the lowest validation loss), `checkpoints` (the last two
    states), `metrics.jsonl` and TensorBoard events, `samples` (decoded text of each validation).

    Returns:
        best_loss and best_step.

    Raises:
        FloatingPointError: as `loop.run`.
        ValueError: the task's vocabulary has more ids than the model, or is not the one the model
            was trained with, or a checkpoint in `folder` is of another size.
    """
    origin = read_for_data(training.start, training.data)
    data = training.data.encoded_by(origin.tokenizer)
    examples = data.read("validation").at(slice(training.validation.examples))
    validator = Validator(
        origin.model,
        examples,
        origin.decode,
        training.data.batch_size,
        training.validation,
        training.memory.chunk,
    )
    state = new_state(place(origin.model, origin.params), training.optimizer)
    step = partition(training.step(origin.model), state, mesh_in_use())
    key, settings = jax.random.key(training.seed), training.validation
    restore_replaced(folder / BEST)
    found = loop.run(
        training.steps,
        training.saving,
        folder,
        state,
        batches=lambda step: only(data.batches(training.seed, step), "inputs", "targets", "weight"),
        update=lambda state, batch: step(state, None, batch, key),
        validating=loop.Validating(
            settings.period,
            settings.patience,
            scores=lambda params, at: validator(params, folder / f"samples/step_{at:06d}.txt"),
            keep=lambda state, scores: _keep_best(state, scores, training, origin, folder),
        ),
    )
    return {"best_loss": float(found.best_loss), "best_step": int(found.best_step)}


def _keep_best(
    state: TrainState,
    scores: Mapping[str, float],
    training: Training,
    origin: Loaded,
    folder: Path,
) -> None:
    card = {
        "data": training.data.described(),
        "step": int(state.step),
        "steps": training.steps,
        "seed": training.seed,
        "validation": scores,
        "from": origin.card,
    }
    save_model(folder / BEST, origin.model.config, origin.vocabulary, state.params, card)
