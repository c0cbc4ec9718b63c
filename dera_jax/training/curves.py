"""What runs of training reported, as one picture; a run may still be going on.

python -m dera_jax.training.curves out/tiny/pretrain out/tiny/sft out/tiny/ppo --output curves.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dera_jax.training import metrics

SUPERVISED = {"training/loss": "training loss", "validation/loss": "validation loss"}
ALIGNMENT = {
    "training/share_in_range": "share in range",
    "training/reward": "reward",
    "training/full_kl": "KL from the reference (nats)",
}
SMOOTHED = 10  # reports averaged, where a run made many


def plot(folders: Sequence[Path], output: Path) -> None:
    """One panel per run folder, side by side.

    Raises:
        FileNotFoundError: a folder without reports.
    """
    size = (5 * len(folders), 4)
    figure, axes = plt.subplots(1, len(folders), figsize=size, squeeze=False, layout="constrained")
    for axis, folder in zip(axes[0], folders, strict=True):
        _panel(axis, folder)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _panel(axis: plt.Axes, folder: Path) -> None:
    rows = metrics.read(folder)
    if not rows:
        raise FileNotFoundError(
            f"{folder / metrics.FILE} has no reports: is it the folder of a run?"
        )
    curves = ALIGNMENT if any("training/reward" in row for row in rows) else SUPERVISED
    for name, label in curves.items():
        points = np.array([(row["step"], row[name]) for row in rows if name in row])
        if name.startswith("training/") and len(points) >= 4 * SMOOTHED:
            points = _means(points, SMOOTHED)
        if len(points):
            axis.plot(*points.T, label=label, marker="." if len(points) < 40 else None)
    axis.set_title(folder.name)
    axis.set_xlabel("step")
    axis.set_ylabel("nats per token" if curves is SUPERVISED else "")
    axis.grid(alpha=0.3)
    axis.legend()


def _means(points: np.ndarray, size: int) -> np.ndarray:
    """Means of `size` neighbours each, [n, 2] -> [n // size, 2]; the oldest rest is left out."""
    return points[len(points) % size :].reshape(-1, size, 2).mean(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="run folders")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    plot(options.folders, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
