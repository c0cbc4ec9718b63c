"""Checkpoints of a run under way: whole train states, with orbax.

A checkpoint appears under its name only once it is complete, so a killed run leaves none half
written. The two latest are kept.
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
from dera_jax.models.finite import check_params
from dera_jax.store import error_number

PyTree = object
# Errors that a sound checkpoint can meet, too; to remove it would be wrong advice.
_NOT_OF_THE_FILES = (
    PermissionError,
    ConnectionError,
    MemoryError,
    jax.errors.JaxRuntimeError,
)


@dataclasses.dataclass(frozen=True)
class Saving:
    """A checkpoint is due every `steps` steps, or earlier once `minutes` have passed."""

    steps: int = 1000
    minutes: float = 3.0

    def __post_init__(self):
        checks.check_fields(self, steps=checks.whole(1), minutes=checks.number(least=0))


class Checkpoints:
    """The checkpoints of one run's folder."""

    def __init__(self, folder: Path, saving: Saving):
        self._saving = saving
        self._last_save = time.monotonic()
        # Synchronous: the train step donates its state, which a writer in the background may
        # still be reading.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        # Named here, since a manager that has saved nothing yet cannot read a checkpoint's shapes.
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=handler
        )

    def restore(self, like: PyTree) -> PyTree | None:
        """The latest state, in the structure, shapes and shardings of `like`; None if there is none.

        Raises:
            ValueError: the checkpoint holds parameters of another size or values that are NaN or
                infinite, or it cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where = f"{self._manager.directory / str(step)}"
        with _explained(where):
            stored = self._manager.item_metadata(step)
            if stored is None:
                raise FileNotFoundError("no description of its arrays")
        check_shapes(_shapes(stored.tree), _shapes(like).items(), where)
        with _explained(where):
            state = self._manager.restore(step, args=ocp.args.StandardRestore(like))
            check_state(state, "it")
        return state

    def is_due(self, step: int) -> bool:
        """Whether a state is to be saved after this step; of several processes the first one's clock counts."""
        waited = time.monotonic() - self._last_save
        late = waited >= 60 * self._saving.minutes
        if jax.process_count() > 1:
            late = bool(multihost_utils.broadcast_one_to_all(late))
        return step % self._saving.steps == 0 or late

    def save(self, step: int, state: PyTree) -> None:
        """Writes `state` unless this step's checkpoint exists.

        Raises:
            FloatingPointError: the state has values that are NaN or infinite; nothing is written.
            OSError: it cannot be written, such as for want of space; nothing is left of it.
        """
        if self._manager.latest_step() != step:
            check_state(state, f"after step {step}, of which no checkpoint is written")
            with _written_or_removed(self._manager.directory, step):
                self._manager.save(step, args=ocp.args.StandardSave(state))
        self._last_save = time.monotonic()

    def close(self) -> None:
        self._manager.close()


@contextlib.contextmanager
def _written_or_removed(folder: Path, step: int) -> Iterator[None]:
    """Raises OSError with the checkpoint's folder where the system refuses to write, and makes room."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # each of orbax's threads would log a traceback
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
def _explained(where: str) -> Iterator[None]:
    """Says what to do about a checkpoint that orbax or tensorstore cannot read."""
    try:
        yield
    except _NOT_OF_THE_FILES:
        raise
    except Exception as error:  # orbax raises bare ones
        words = " ".join(str(error).split())[:300] or repr(error)
        raise ValueError(
            f"checkpoint {where} cannot be read ({words}); remove that folder to resume from the "
            "checkpoint before it"
        ) from error


def check_state(state: PyTree, where: str) -> None:
    """Raises FloatingPointError for values that are NaN or infinite.

    Single numbers may be: `best_loss` is infinite before the first validation.
    """
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    arrays = {_name(path): x for path, x in leaves if x.ndim}
    check_params(arrays, where)


def _shapes(tree: PyTree) -> Mapping[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): x.shape for path, x in leaves}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
