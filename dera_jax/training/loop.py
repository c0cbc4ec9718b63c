"""The loop of runs that minimise a loss: steps, validations, checkpoints, the best model so far.

Everything random depends on (seed, step) alone: the batch of a step and its dropout masks. So a
run killed at any moment resumes from its last checkpoint and, on a CPU, ends with the same bits.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp

from dera_jax import checks
from dera_jax.checkpoints.orbax import Checkpoints, Saving, check_state
from dera_jax.examples import Batch
from dera_jax.models.language_model import PyTree
from dera_jax.training.metrics import MetricWriter
from dera_jax.training.progress import Progress
from dera_jax.training.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things happen.

    Attributes:
        steps: updates in all.
        period: steps between two validations; there is one after the last step too.
        patience: stop after so many validations without a better loss; None to go on.
        saving: how often a checkpoint is written.
    """

    steps: int
    period: int
    patience: int | None
    saving: Saving

    def __post_init__(self):
        sizes = dict.fromkeys(("steps", "period"), checks.whole(1))
        checks.check_fields(self, patience=checks.optional(checks.whole(1)), **sizes)


def repeat(
    steps: int,
    saving: Saving,
    folder: Path,
    state: PyTree,
    batches: Callable[[int], Iterator[Batch]],
    update: Callable[[PyTree, Batch], tuple[PyTree, Mapping]],
    shown: Sequence[str],
) -> PyTree:
    """Makes the steps, or those still missing, in `folder`: as `run` does, without validation.

    Args:
        steps: in all.
        saving, folder, batches, update: as for `run`.
        state: the first one, with a field `step`; a checkpoint in `folder` takes its place.
        shown: metrics beside the progress bar.

    Returns:
        The last state.

    Raises:
        FloatingPointError, ValueError: as `run` does.
    """
    checkpoints = Checkpoints(folder / "checkpoints", saving)
    state = _restored(checkpoints, state)
    step = int(state.step)
    stream = batches(step)
    progress = Progress(MetricWriter(folder, step), step, steps, shown)

    while step < steps:
        state, metrics = update(state, next(stream))
        step += 1
        progress.add(metrics)
        if step == steps or checkpoints.is_due(step):
            progress.flush()
            checkpoints.save(step, state)

    checkpoints.close()
    progress.close()
    return state


def run(
    schedule: Schedule,
    folder: Path,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    update: Callable[[TrainState, Batch], tuple[TrainState, Mapping]],
    validate: Callable[[PyTree, int], dict[str, float]],
    keep: Callable[[TrainState, Mapping[str, float]], None],
) -> TrainState:
    """Trains, or goes on training, in `folder`: `checkpoints`, `metrics.jsonl`, TensorBoard events.

    Args:
        schedule: when things happen.
        folder: of the run.
        state: the first one; a checkpoint in `folder` takes its place.
        batches: the endless batches from a step on.
        update: one step.
        validate: scores of parameters after a step, `loss` among them.
        keep: called with each state whose validation loss is the lowest yet, and its scores.

    Returns:
        The last state, which tells the best loss and when that was.

    Raises:
        FloatingPointError: the parameters to start from, reward, KL, loss, gradient or a validation
            score was not finite, naming what was so first, and the steps.
        ValueError: a checkpoint in `folder` is of another size.
    """
    checkpoints = Checkpoints(folder / "checkpoints", schedule.saving)
    state = _restored(checkpoints, state)
    step = int(state.step)
    stream = batches(step)
    progress = Progress(MetricWriter(folder, step), step, schedule.steps)

    done = step >= schedule.steps or _is_out_of_patience(state, schedule)
    while not done:
        state, metrics = update(state, next(stream))
        step += 1
        progress.add(metrics)
        last = step == schedule.steps
        if last or step % schedule.period == 0:
            progress.flush()
            scores = validate(state.params, step)
            progress.validated(scores)
            if scores["loss"] < state.best_loss:
                keep(state, scores)
                loss = jnp.float32(scores["loss"])
                state = state.replace(best_loss=loss, best_step=state.step + 0)
            done = last or _is_out_of_patience(state, schedule)
        if done or checkpoints.is_due(step):
            progress.flush()
            checkpoints.save(step, state)

    checkpoints.close()
    progress.close()
    return state


def _restored(checkpoints: Checkpoints, state: PyTree) -> PyTree:
    """The latest checkpoint's state, or the first one.

    Raises:
        FloatingPointError: the first one has parameters that are NaN or infinite.
        ValueError: as `Checkpoints.restore`.
    """
    restored = checkpoints.restore(state)
    if restored is None:
        check_state(state, "the state to start training from")
    return restored or state


def _is_out_of_patience(state: TrainState, schedule: Schedule) -> bool:
    waited = int(state.step) // schedule.period - int(state.best_step) // schedule.period
    return schedule.patience is not None and waited >= schedule.patience
