"""Trains a language model on pairs of input and target, for pre-training and for fine-tuning."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
from jax import Array

from dera_jax import checks
from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.loading import load, read_config
from dera_jax.checkpoints.model_folder import restore_replaced
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.data.examples import Batch, Examples, select_columns
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.lora import LoraConfig, with_base
from dera_jax.models.registry import CONFIG, model_of
from dera_jax.partitioning import mesh_in_use, partition, shard_params
from dera_jax.training import loop
from dera_jax.training.dry_run import (
    ProgramCost,
    padded_shapes,
    program_cost,
    prompt_shapes,
    weight_shapes,
)
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.train_state import Memory, Step, TrainState, make_step, new_state
from dera_jax.training.train_step import CrossEntropy, Loss
from dera_jax.training.validation import Validation, Validator

BEST = "best"  # folder of the model with the lowest validation loss
_T5_DROPOUT = 0.1  # T5's rate in fine-tuning (Raffel et al., 2020, section 3.1.2)
_RUN = ("dropout_rate", "dtype")  # fields of a model configuration that each run sets anew


class EncodedData(Protocol):
    """Provides the examples of a task, encoded as token ids of a model."""

    def read(self, split: str, seed: int = 0) -> Examples:
        """Returns the examples of one pass over a split."""

    def batches(
        self, seed: int, start_step: int, with_documents=False, check_documents=None
    ) -> Iterator[Batch]:
        """Returns the endless training batches from that of `start_step` on."""

    def left_out(self) -> dict[str, dict[str, int]]:
        """Returns the number of examples that were left out, by split and reason."""


class TrainingData(Protocol):
    """Describes the training data of a run: `task_data.TaskData`, a seqio task, or a user's arrays.

    `name` appears in messages, `split` is trained on; `inputs` and `targets` are length limits in
    tokens.
    """

    name: str
    split: str
    inputs: int
    targets: int
    batch_size: int

    def check(self, *splits: str, pairs: bool = False, summaries: bool = False) -> None:
        """Raises ValueError unless these splits exist and hold preference pairs or summaries, if asked."""

    def known_vocabulary(self) -> Vocabulary | None:
        """Returns the vocabulary of data of ids, or one for models without their own, or None."""

    def encoded_by(self, tokenizer: Tokenizer) -> EncodedData:
        """Returns the examples encoded by this tokenizer."""

    def described(self) -> dict[str, object]:
        """Returns the entry of the data in a model's card, as JSON values."""


DATA = dataclasses.replace(checks.with_attribute("encoded_by"), words="a task_data.TaskData")


@dataclasses.dataclass(frozen=True)
class InitialModel:
    """Describes the model from which training starts.

    Attributes:
        model: the architecture, dropout included.
        read: loads or initialises the parameters, with a card that says where they are from; not
            called before training begins.
        vocabulary: the model's vocabulary, if it is known before the parameters are loaded.
        chat_template: source of the model's chat template, if it is known then and there is one.
    """

    model: TrainableModel
    read: Callable[[], LoadedModel]
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """Configures a run of supervised training.

    Attributes:
        start: the model and its initial parameters (`new_model`, `finished_model`).
        data: the training data, such as a `task_data.TaskData`.
        optimizer: the optimizer.
        steps: number of updates.
        seed: seed of the data order and of dropout.
        validation: how often and on what to validate, and when to stop early.
        loss: coefficients of the loss.
        saving: how often a checkpoint is written.
        memory: reduces the memory of a step.

    Raises:
        ValueError: a field is out of its range, `data` has no split `validation`, the microbatches
            do not divide the batch, or the warm-up is longer than the run.
    """

    start: InitialModel
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
            start=checks.instance(InitialModel),
            data=DATA,
            optimizer=checks.instance(Optimizer),
            steps=checks.integer(1),
            seed=checks.SEED,
            validation=checks.instance(Validation),
            loss=checks.instance(Loss),
            saving=checks.instance(Saving),
            memory=checks.instance(Memory),
        )
        self.memory.check_batch(self.data.batch_size)
        self.data.check("validation", summaries=True)
        self.optimizer.check_warmup("Training.steps", self.steps)

    def run(self, folder: Path) -> dict[str, float]:
        """Trains in `folder`, or resumes there; see `train`."""
        return train(self, folder)

    def program_costs(self) -> list[ProgramCost]:
        """Returns the memory of a step from shapes alone."""
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
        return [
            program_cost(
                name,
                {"model": params},
                tokens,
                step,
                state,
                {"base": None},
                batch,
                jax.random.key(0),
            )
        ]

    def step(self, model: TrainableModel) -> Step:
        """Returns the training step, to be compiled."""
        objective = CrossEntropy(self.memory.of(model), self.loss, self.memory.chunk)
        return make_step(objective, self.optimizer, self.memory.microbatches)


def new_model(
    config: object,
    seed: int,
    changed: Callable[[PyTree, object, Array], PyTree] | None = None,
    vocabulary: Vocabulary | None = None,
) -> InitialModel:
    """Returns a model with random parameters.

    Args:
        config: configuration of a model of `models.registry`.
        seed: seed of the parameters.
        changed: (params, config, key) -> params, a change of the random parameters before training,
            such as `models.copying.with_copying_heads`; None for no change.
        vocabulary: the model's vocabulary; None where the data define it.

    Raises:
        ValueError: `config` is not a model configuration, or `seed` is not a valid seed.
    """
    seed = checks.check("new_model.seed", seed, checks.SEED)
    model = model_of(checks.check("new_model.config", config, CONFIG))
    key, card = jax.random.key(seed), {"random_parameters": seed}

    def initialise() -> LoadedModel:
        params = model.init(key)
        change = {}
        if changed is not None:
            params = changed(params, config, key)
            change = {"changed_by": getattr(changed, "__name__", repr(changed))}
        loaded = LoadedModel(model, params, None, card | change)
        return loaded.with_vocabulary(vocabulary, "new_model.vocabulary")

    return InitialModel(model, initialise, vocabulary)


def finished_model(
    folder: str, dropout_rate: float | None, lora: LoraConfig | None = None
) -> InitialModel:
    """Returns a trained model from its folder, to be trained further.

    Of a folder with a LoRA adapter, the adapter is trained further and its base stays frozen.

    Args:
        folder: path or name of the model, see `loading.load`.
        dropout_rate: the dropout rate of the training; None for T5's 0.1, or 0 for a model without
            dropout. LoRA factors have no dropout of their own.
        lora: configuration of a new adapter to train in place of the model's own parameters.

    Raises:
        ValueError: `dropout_rate` is not in [0, 1), or is above 0 for a model without dropout; or
            `lora` is given for a folder with an adapter.
    """
    rate = checks.optional(checks.number(least=0, below=1))
    dropout_rate = checks.check("finished_model.dropout_rate", dropout_rate, rate)
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    if hasattr(config, "dropout_rate"):
        chosen = _T5_DROPOUT if dropout_rate is None else dropout_rate
        config = dataclasses.replace(config, dropout_rate=chosen)
    elif dropout_rate:
        raise ValueError(
            f"finished_model.dropout_rate must be 0 for {folder}, since {type(config).__name__} "
            f"has no dropout; found {dropout_rate}. Set DROPOUT_RATE = 0."
        )
    read = functools.partial(load, folder, lora=lora)
    return InitialModel(model_of(config), read, checkpoint.vocabulary, checkpoint.chat_template)


def finished_model_of(config: object, folder: str | None) -> InitialModel:
    """Returns a trained model of known configuration, so that runs are validated without its files.

    Args:
        config: configuration of a model of `models.registry`; its dropout rate and its dtype of
            activations hold for the run.
        folder: path or name of the model, see `loading.load`; None for a dry run only.

    Raises:
        ValueError: when training begins, `folder` is None, or its model has another configuration.
    """

    def read() -> LoadedModel:
        if folder is None:
            raise ValueError(
                "the folder of the initial model is not given: add --gin.INITIAL_MODEL="
                "'\"/path/to/model\"' to the command line"
            )
        # Dropout and the dtype of activations belong to the run, not to the parameters. The folder
        # defines the start token, and the end tokens where `config` does not.
        not_compared = {
            name: getattr(config, name) for name in (*_RUN, "start_token") if hasattr(config, name)
        }
        if not config.end_ids:
            not_compared["end_ids"] = ()
        stored = dataclasses.replace(read_config(folder), **not_compared)
        if stored != config:
            raise ValueError(
                f"{folder} holds a model of other sizes: found {stored}, expected {config}. Give "
                "the folder of a matching model, or change the run's model configuration."
            )
        return load(folder)

    return InitialModel(model_of(config), read)


def read_for_data(start: InitialModel, task: TrainingData) -> LoadedModel:
    """Loads the initial model over the data's vocabulary, with the dropout and dtype of `start`.

    Raises:
        ValueError: the task's vocabulary has more ids than the model, or differs from the one with
            which the model was trained.
    """
    origin = start.read().with_vocabulary(task.known_vocabulary(), task.name)
    config = start.model.config
    run_fields = {name: getattr(config, name) for name in _RUN if hasattr(config, name)}
    model = dataclasses.replace(
        origin.model, config=dataclasses.replace(origin.model.config, **run_fields)
    )
    return dataclasses.replace(origin, model=model)


def train(training: Training, folder: Path) -> dict[str, float]:
    """Trains in `folder`, or resumes there.

    Writes `best` (the model of the lowest validation loss), `checkpoints` (the last two train
    states), `metrics.jsonl`, TensorBoard events, and `samples` (outputs that each validation
    decodes).

    Returns:
        `best_loss` and `best_step`.

    Raises:
        FloatingPointError: as `loop.run`, or the validation loss of an example is not finite.
        ValueError: the task's vocabulary has more ids than the model, or differs from the one with
            which the model was trained, or a checkpoint in `folder` has other array shapes.
    """
    origin = read_for_data(training.start, training.data)
    data = training.data.encoded_by(origin.tokenizer)
    examples = data.read("validation").at(slice(training.validation.examples))
    _check_summaries(examples, training.data.name)
    validator = Validator(
        origin.model,
        examples,
        origin.decode,
        training.data.batch_size,
        training.validation,
        training.memory.chunk,
    )
    state = new_state(shard_params(origin.model, origin.trainable), training.optimizer)
    step = partition(training.step(origin.model), state, mesh_in_use())
    key, settings, frozen = jax.random.key(training.seed), training.validation, origin.frozen
    full = lambda params: with_base(params, frozen["base"])
    restore_replaced(folder / BEST)
    tracked = loop.run(
        training.steps,
        training.saving,
        folder,
        state,
        batches=lambda step: select_columns(
            data.batches(training.seed, step), "inputs", "targets", "weight"
        ),
        update=lambda state, batch: step(state, frozen, batch, key),
        validating=loop.ValidationLoop(
            settings.period,
            settings.patience,
            scores=lambda params, at: validator(
                full(params), folder / f"samples/step_{at:06d}.txt"
            ),
            keep=lambda state, scores: _save_best(state, scores, training, origin, folder),
        ),
    )
    return {"best_loss": float(tracked.best_loss), "best_step": int(tracked.best_step)}


def _check_summaries(examples: Examples, name: str) -> None:
    """Raises ValueError if all targets are empty, as those of a task of documents alone."""
    if not examples.has_targets:
        raise ValueError(
            f"{name} has no summaries in the split 'validation', and supervised training learns "
            "them; choose data with summaries"
        )


def _save_best(
    state: TrainState,
    scores: Mapping[str, float],
    training: Training,
    origin: LoadedModel,
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
    origin.save(folder / BEST, state.params, card)
