"""Plots the logged metrics of training runs as one PNG; a run may still be in progress.

python -m dera_jax.training.curves out/tiny/pretrain out/tiny/sft out/tiny/ppo --output curves.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dera_jax.training import metric_log

SUPERVISED = {"training/loss": "training loss", "validation/loss": "validation loss"}
ALIGNMENT = {
    "training/in_range_rate": "in-range rate",
    "training/reward": "reward",
    "training/full_kl": "KL from the reference (nats)",
}
SMOOTHED = 10  # reports averaged to one point, where a run wrote at least 4 times as many


def plot(folders: Sequence[Path], output: Path) -> None:
    """Plots one panel per run folder, side by side, and writes the figure to `output`.

    Raises:
        FileNotFoundError: a folder has no reports in its `metrics.jsonl`.
    """
    size = (5 * len(folders), 4)
    figure, axes = plt.subplots(1, len(folders), figsize=size, squeeze=False, layout="constrained")
    for axis, folder in zip(axes[0], folders, strict=True):
        _panel(axis, folder)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _panel(axis: plt.Axes, folder: Path) -> None:
    reports = metric_log.read(folder)
    if not reports:
        raise FileNotFoundError(
            f"{folder / metric_log.FILE} is missing or has no reports; give the folder of a run "
            "that has logged metrics"
        )
    curves = ALIGNMENT if any("training/reward" in report for report in reports) else SUPERVISED
    for name, label in curves.items():
        points = np.array([(report["step"], report[name]) for report in reports if name in report])
        if name.startswith("training/") and len(points) >= 4 * SMOOTHED:
            points = _means(points, SMOOTHED)
        if len(points):
            axis.plot(*points.T, label=label, marker="." if len(points) < 40 else None)
    axis.set_title(folder.name)
    axis.set_xlabel("step")
    axis.set_ylabel("" if curves is ALIGNMENT else "loss")
    axis.grid(alpha=0.3)
    axis.legend()


def _means(points: np.ndarray, size: int) -> np.ndarray:
    """Averages blocks of `size` points, [n, 2] -> [n // size, 2], without the oldest n % size."""
    return points[len(points) % size :].reshape(-1, size, 2).mean(axis=1)


def main() -> None:
    """Plots the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, one panel each")
    parser.add_argument("--output", type=Path, required=True, help="path of the PNG to write")
    options = parser.parse_args()
    plot(options.folders, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
