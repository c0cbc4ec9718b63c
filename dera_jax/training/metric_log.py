"""Logs a run's metrics, one JSON line per report, and writes the same values for TensorBoard.

With the environment variable WANDB_PROJECT they also go to this project of Weights & Biases.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from dera_jax.files import json_files
from dera_jax.files.store import read_file, write_file
from dera_jax.partitioning import is_writer

FILE = "metrics.jsonl"
PROJECT = "WANDB_PROJECT"


class MetricWriter:
    """Appends metrics to `metrics.jsonl` and to a TensorBoard event file in `folder`, see the module.

    Only one of several processes writes. A resumed run repeats the steps after its checkpoint;
    the constructor therefore drops the lines of steps after `start_step`, so that each step is
    reported once.

    Raises:
        ValueError: a line of `metrics.jsonl` is not JSON or has no step.
        FloatingPointError: a metric is not finite; the message names it.
        OSError: the file cannot be written.
        ImportError: WANDB_PROJECT is set, and the package wandb is not installed.
    """

    def __init__(self, folder: Path, start_step: int):
        self._path, self._events, self._wandb = folder / FILE, None, None
        if not is_writer():
            return
        reports = [report for report in read(folder) if report["step"] <= start_step]
        write_file(self._path, json_files.to_lines(reports, str(self._path)))
        self._events = SummaryWriter(str(folder), purge_step=start_step + 1)
        if project := os.environ.get(PROJECT):
            self._wandb = _start_wandb(project, folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one report with the values of named metrics after `step` steps."""
        if self._events is None:
            return
        line = json_files.to_lines([{"step": step, **values}], str(self._path))
        try:
            with self._path.open("ab") as lines:
                lines.write(line)
        except OSError as error:  # that of a full disk names no file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        if self._wandb is not None:
            self._wandb.log({"step": step, **values})


def _start_wandb(project: str, folder: Path) -> Any:
    """Starts a run of Weights & Biases, or resumes that of this folder."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            f"{PROJECT}={project} asks for Weights & Biases, which is not installed: pip install wandb, or unset {PROJECT}"
        ) from error
    path = str(folder.absolute())
    number = hashlib.sha256(path.encode()).hexdigest()[:16]
    run = wandb.init(project=project, id=number, name=folder.name, dir=path, resume="allow")
    run.define_metric("*", step_metric="step")  # a resumed run repeats some steps
    return run


def read(folder: Path) -> list[dict[str, float]]:
    """Reads the reports of a run in order, without a last line that was cut off by a kill.

    Raises:
        ValueError: a line is not JSON or has no step; the message names the line.
    """
    path = folder / FILE
    reports = json_files.from_lines(read_file(path) or b"", str(path))
    for i, report in enumerate(reports, start=1):
        if not (isinstance(report, dict) and "step" in report):
            raise ValueError(
                f'{path}, line {i}: expected a JSON object with the key "step", such as '
                '{"step": 10, "training/loss": 2.5}; remove the line'
            )
    return reports
