"""Metrics of a run: one JSON line per report, and the same numbers for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from dera_jax import json_files
from dera_jax.partitioning import is_writer
from dera_jax.store import read_file, write_file

FILE = "metrics.jsonl"


class MetricWriter:
    """Appends to `metrics.jsonl` and to a TensorBoard event file in `folder`; of several processes one does.

    A resumed run repeats the steps after its checkpoint: lines beyond `start_step` are dropped
    first, so that each step is reported once.

    Raises:
        ValueError: a line of `metrics.jsonl` is not JSON, naming it.
        FloatingPointError: a metric is not finite, naming it.
        OSError: the file cannot be written, naming it.
    """

    def __init__(self, folder: Path, start_step: int):
        self._path, self._events = folder / FILE, None
        if not is_writer():
            return
        kept = [row for row in read(folder) if row["step"] <= start_step]
        write_file(self._path, json_files.to_lines(kept, str(self._path)))
        self._events = SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Reports named numbers after `step` steps."""
        if self._events is None:
            return
        line = json_files.to_lines([{"step": step, **values}], str(self._path))
        try:
            with self._path.open("ab") as lines:
                lines.write(line)
        except OSError as error:  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()


def read(folder: Path) -> list[dict[str, float]]:
    """The reports of a run, in order; a last line cut by a kill is left out.

    Raises:
        ValueError: a line is not JSON or reports no step, naming it.
    """
    path = folder / FILE
    rows = json_files.from_lines(read_file(path) or b"", str(path))
    for i, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and "step" in row):
            raise ValueError(f"{path}, line {i}: no report of a step")
    return rows
