"""Metrics of a run: one JSON line per report, and the same numbers for TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from clu.metric_writers import SummaryWriter

FILE = "metrics.jsonl"


class MetricWriter:
    """Appends to `metrics.jsonl` and to a TensorBoard event file in `folder`.

    A resumed run repeats the steps after its checkpoint: lines beyond `start_step` are dropped
    first, so that each step is reported once.
    """

    def __init__(self, folder: Path, start_step: int):
        self._path = folder / FILE
        _keep_until(self._path, start_step)
        self._events = SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Reports named numbers after `step` steps."""
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")
        self._events.write_scalars(step, values)
        self._events.flush()


def read(folder: Path) -> list[dict[str, float]]:
    """The reports of a run, in order; a last line cut by a kill is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _keep_until(path: Path, step: int) -> None:
    kept = [row for row in read(path.parent) if row["step"] <= step]
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(draft, path)
