"""Saves and restores whole train states of a run in progress, with orbax.

A checkpoint gets its final name only once it is complete, so that a killed run leaves no partial
one. The two latest are kept.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from dera_jax import checks
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.command_line import uninterrupted
from dera_jax.files.store import error_number
from dera_jax.models.finite import check_params

PyTree = object
# Errors that an intact checkpoint can cause too, so that the user must not be told to remove it.
_UNRELATED_ERRORS = (
    PermissionError,
    ConnectionError,
    MemoryError,
    jax.errors.JaxRuntimeError,
)


@dataclasses.dataclass(frozen=True)
class Saving:
    """Says when a checkpoint is due.

    Attributes:
        steps: steps between two checkpoints.
        minutes: minutes after which a checkpoint is due earlier.
    """

    steps: int
    minutes: float

    def __post_init__(self):
        checks.check_fields(self, steps=checks.integer(1), minutes=checks.number(least=0))


class Checkpoints:
    """Saves and restores the checkpoints in one run's folder."""

    def __init__(self, folder: Path, saving: Saving):
        self._saving = saving
        self._last_save = time.monotonic()
        # Saving is synchronous, because the train step donates its state, which a background
        # writer might still be reading.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        # Without a handler, a manager that has saved nothing cannot read a checkpoint's shapes.
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=handler
        )

    def restore(self, like: PyTree) -> PyTree | None:
        """Restores the latest state, or returns None if there is no checkpoint.

        Args:
            like: pytree whose structure, shapes and shardings the state must have.

        Raises:
            ValueError: the checkpoint has other names or shapes, holds values that are NaN or
                infinite, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where = f"{self._manager.directory / str(step)}"
        with _read_errors_explained(where):
            stored = self._manager.item_metadata(step)
            if stored is None:
                raise FileNotFoundError("the description of its arrays is missing")
        check_shapes(_shapes(stored.tree), _shapes(like).items(), where)
        with _read_errors_explained(where):
            state = self._manager.restore(step, args=ocp.args.StandardRestore(like))
            check_state(state, "the stored state")
        return state

    def is_due(self, step: int) -> bool:
        """Returns whether to save after this step; the first process's clock decides for all."""
        elapsed = time.monotonic() - self._last_save
        late = elapsed >= 60 * self._saving.minutes
        if jax.process_count() > 1:
            late = bool(multihost_utils.broadcast_one_to_all(late))
        return step % self._saving.steps == 0 or late

    def save(self, step: int, state: PyTree) -> None:
        """Writes `state`, unless a checkpoint of this step exists.

        Raises:
            FloatingPointError: the state has values that are NaN or infinite; nothing is written.
            OSError: writing fails, for example because the disk is full; partial files are removed.
        """
        if self._manager.latest_step() != step:
            check_state(state, f"after step {step}, for which no checkpoint is written")
            # Interrupted, orbax's threads would fail when Python ends.
            with uninterrupted(), _partial_files_removed(self._manager.directory, step):
                self._manager.save(step, args=ocp.args.StandardSave(state))
        self._last_save = time.monotonic()

    def close(self) -> None:
        """Closes orbax's checkpoint manager."""
        self._manager.close()


@contextlib.contextmanager
def _partial_files_removed(folder: Path, step: int) -> Iterator[None]:
    """If writing fails, remove the partial files and raise an OSError that names the checkpoint."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # else each of orbax's threads logs a traceback
    try:
        yield
    except (OSError, ValueError) as error:
        for draft in folder.glob(f"{step}.orbax-checkpoint-tmp*"):
            draft.rmtree(missing_ok=True)
        number = error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder / str(step))) from error
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _read_errors_explained(where: str) -> Iterator[None]:
    """Raise ValueError that says what to do if orbax or tensorstore cannot read a checkpoint."""
    try:
        yield
    except _UNRELATED_ERRORS:
        raise
    except Exception as error:  # orbax raises plain Exceptions
        words = " ".join(str(error).split())[:300] or repr(error)
        raise ValueError(
            f"checkpoint {where} cannot be read ({words}); remove that folder to resume from the "
            "checkpoint before it"
        ) from error


def check_state(state: PyTree, where: str) -> None:
    """Raises FloatingPointError if an array of a state has values that are NaN or infinite.

    Scalars are not checked, because `best_loss` is infinite before the first validation.
    """
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    arrays = {_name(path): x for path, x in leaves if x.ndim}
    check_params(arrays, where)


def _shapes(tree: PyTree) -> Mapping[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): x.shape for path, x in leaves}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
