"""The loop of every run of training: steps, validations, checkpoints, the best model so far.

Everything random depends on (seed, step) alone: the batch of a step, its dropout masks, the texts that
it samples. So a run killed at any moment resumes from its last checkpoint, on a mesh of any shape, and on
one CPU ends with the same bits.
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
from dera_jax.examples import Batch
from dera_jax.models.language_model import PyTree
from dera_jax.partitioning import global_batch, mesh_in_use, once
from dera_jax.training.metrics import MetricWriter
from dera_jax.training.progress import Progress
from dera_jax.training.train_state import TrainState


@struct.dataclass
class Tracked:
    """What a checkpoint holds.

    Attributes:
        state: of the training.
        best_loss: float32, the lowest validation loss so far; infinite before the first.
        best_step: int32, when that was.
    """

    state: TrainState
    best_loss: Array
    best_step: Array


@dataclasses.dataclass(frozen=True)
class Validating:
    """How the best of a run is found.

    Attributes:
        period: steps between two validations; there is one after the last step too.
        patience: stop after so many validations without a better loss; None to go on.
        scores: of parameters after a step, `loss` among them.
        keep: called with each state whose validation loss is the lowest yet, and its scores.
    """

    period: int
    patience: int | None
    scores: Callable[[PyTree, int], dict[str, float]]
    keep: Callable[[TrainState, Mapping[str, float]], None]

    def __post_init__(self):
        patience = checks.optional(checks.whole(1))
        checks.check_fields(self, period=checks.whole(1), patience=patience)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether there is one after this step of so many."""
        return step == steps or step % self.period == 0

    def is_out_of_patience(self, found: Tracked) -> bool:
        """Whether the best is too long ago."""
        waited = int(found.state.step) // self.period - int(found.best_step) // self.period
        return self.patience is not None and waited >= self.patience


def run(
    steps: int,
    saving: Saving,
    folder: Path,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    update: Callable[[TrainState, Batch], tuple[TrainState, Mapping]],
    validating: Validating | None = None,
    shown: Sequence[str] = ("loss",),
) -> Tracked:
    """Trains, or goes on training, in `folder`: `checkpoints`, `metrics.jsonl`, TensorBoard events.

    Args:
        steps: updates in all.
        saving: how often a checkpoint is written.
        folder: of the run.
        state: the first one; a checkpoint in `folder` takes its place, on the state's devices.
        batches: the endless batches from a step on, this process's rows.
        update: one step; it is given the whole batch, spread over the mesh in use.
        validating: if the best parameters are looked for.
        shown: metrics beside the progress bar.

    Returns:
        The last state, and the best loss and when that was.

    Raises:
        FloatingPointError: the parameters to start from, reward, KL, loss, gradient or a validation
            score was not finite, naming what was so first, and the steps.
        ValueError: a checkpoint in `folder` is of another size, or the mesh does not divide a batch.
    """
    checkpoints, mesh = Checkpoints(folder / "checkpoints", saving), mesh_in_use()
    found = _restored(checkpoints, state)
    step = int(found.state.step)
    stream = batches(step)
    progress = Progress(MetricWriter(folder, step), step, steps, shown)

    done = step >= steps or bool(validating and validating.is_out_of_patience(found))
    while not done:
        state, metrics = update(found.state, global_batch(next(stream), mesh))
        found, step = found.replace(state=state), step + 1
        progress.add(metrics)
        done = step == steps
        if validating and validating.is_due(step, steps):
            progress.flush()
            found = _validated(validating, found, step, progress)
            done = done or validating.is_out_of_patience(found)
        if done or checkpoints.is_due(step):
            progress.flush()
            checkpoints.save(step, found)

    checkpoints.close()
    once(progress.close)
    return found


def _validated(validating: Validating, found: Tracked, step: int, progress: Progress) -> Tracked:
    scores = validating.scores(found.state.params, step)
    progress.validated(scores)
    if scores["loss"] >= found.best_loss:
        return found
    validating.keep(found.state, scores)
    return found.replace(best_loss=jnp.float32(scores["loss"]), best_step=found.state.step + 0)


def _restored(checkpoints: Checkpoints, state: TrainState) -> Tracked:
    """The latest checkpoint's, or the first one.

    Raises:
        FloatingPointError: the first one has parameters that are NaN or infinite.
        ValueError: as `Checkpoints.restore`.
    """
    first = Tracked(state, jnp.full((), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))
    restored = checkpoints.restore(first)
    if restored is None:
        check_state(first, "the state to start training from")
        return first
    for x in jax.tree.leaves(
        first
    ):  # who made the first state may hold it as long as the run lasts
        x.delete()
    return restored
