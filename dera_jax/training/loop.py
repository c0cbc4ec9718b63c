"""Runs the training loop of all trainers: steps, validation, checkpoints and the best checkpoint.

All randomness depends on (seed, step) alone: the batch of a step, its dropout masks, and the
sequences that it samples. A run that is killed at any moment therefore resumes from its last
checkpoint, on a mesh of any shape, and on one CPU ends with bit-identical results.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.checkpoints.orbax import Checkpoints, Saving, check_state
from dera_jax.data.examples import Batch
from dera_jax.models.language_model import PyTree
from dera_jax.partitioning import global_batch, mesh_in_use, write_once
from dera_jax.training.metric_log import MetricWriter
from dera_jax.training.progress import Progress
from dera_jax.training.train_state import TrainState


@struct.dataclass
class CheckpointContent:
    """Holds the content of a checkpoint.

    Attributes:
        state: the train state.
        best_loss: float32 [], lowest validation loss so far; infinite before the first validation.
        best_step: int32 [], step of that validation; 0 before the first.
    """

    state: TrainState
    best_loss: Array
    best_step: Array


@dataclasses.dataclass(frozen=True)
class ValidationLoop:
    """Configures validation, early stopping and the selection of the best checkpoint.

    Attributes:
        period: steps between two validations; the last step of a run is validated too.
        patience: validations without a lower loss until training stops early; None for no limit.
        scores: (parameters, step) -> validation scores by name, `loss` among them.
        keep: saves a state; called with each state that has the lowest loss so far, and its scores.

    Raises:
        ValueError: `period` or `patience` is not a positive integer.
    """

    period: int
    patience: int | None
    scores: Callable[[PyTree, int], dict[str, float]]
    keep: Callable[[TrainState, Mapping[str, float]], None]

    def __post_init__(self):
        patience = checks.optional(checks.integer(1))
        checks.check_fields(self, period=checks.integer(1), patience=patience)

    def is_due(self, step: int, steps: int) -> bool:
        """Returns whether to validate after step `step` of a run of `steps` steps."""
        return step == steps or step % self.period == 0

    def is_out_of_patience(self, found: CheckpointContent) -> bool:
        """Returns whether at least `patience` validations passed since the lowest loss."""
        waited = int(found.state.step) // self.period - int(found.best_step) // self.period
        return self.patience is not None and waited >= self.patience


def run(
    steps: int,
    saving: Saving,
    folder: Path,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    update: Callable[[TrainState, Batch], tuple[TrainState, Mapping]],
    validating: ValidationLoop | None = None,
    shown: Sequence[str] = ("loss",),
) -> CheckpointContent:
    """Trains or resumes in `folder`; writes `checkpoints`, `metrics.jsonl` and TensorBoard events.

    Args:
        steps: number of steps of the whole run.
        saving: how often a checkpoint is written.
        folder: folder of the run.
        state: initial state; a checkpoint in `folder` replaces it, on the same devices.
        batches: step -> endless batches from that step on, of the examples of this process.
        update: makes one step, on the global batch that is sharded over the mesh in use.
        validating: configuration of validation; None trains without validation.
        shown: names of the metrics that the progress bar shows.

    Returns:
        The last state, the lowest validation loss and its step.

    Raises:
        FloatingPointError: an initial parameter, a reward, KL, loss, gradient or validation score
            is not finite; the message names the first of them and the steps.
        ValueError: a checkpoint in `folder` has other array shapes or cannot be read, or the mesh
            does not divide a batch.
    """
    checkpoints, mesh = Checkpoints(folder / "checkpoints", saving), mesh_in_use()
    tracked = _restored(checkpoints, state)
    step = int(tracked.state.step)
    remaining_batches = batches(step)
    progress = Progress(MetricWriter(folder, step), step, steps, shown)

    done = step >= steps or bool(validating and validating.is_out_of_patience(tracked))
    while not done:
        state, metrics = update(tracked.state, global_batch(next(remaining_batches), mesh))
        tracked, step = tracked.replace(state=state), step + 1
        progress.add(metrics)
        done = step == steps
        if validating and validating.is_due(step, steps):
            progress.flush()
            tracked = _validated(validating, tracked, step, progress)
            done = done or validating.is_out_of_patience(tracked)
        if done or checkpoints.is_due(step):
            progress.flush()
            checkpoints.save(step, tracked)

    checkpoints.close()
    write_once(progress.close)
    return tracked


def _validated(
    validating: ValidationLoop, tracked: CheckpointContent, step: int, progress: Progress
) -> CheckpointContent:
    """Validates the state and saves it if its loss is the lowest so far."""
    scores = validating.scores(tracked.state.params, step)
    progress.validated(scores)
    if scores["loss"] >= tracked.best_loss:
        return tracked
    validating.keep(tracked.state, scores)
    return tracked.replace(best_loss=jnp.float32(scores["loss"]), best_step=tracked.state.step + 0)


def _restored(checkpoints: Checkpoints, state: TrainState) -> CheckpointContent:
    """Restores the latest checkpoint, or returns the initial state if there is none.

    Raises:
        FloatingPointError: the initial state has parameters that are NaN or infinite.
        ValueError: as `Checkpoints.restore`.
    """
    initial = CheckpointContent(state, jnp.full((), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))
    restored = checkpoints.restore(initial)
    if restored is None:
        check_state(initial, "the state to start training from")
        return initial
    # The caller may hold a reference to the initial state during the whole run: free its memory.
    for x in jax.tree.leaves(initial):
        x.delete()
    return restored
