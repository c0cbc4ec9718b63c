"""Figures. Numbers come in as the rows of `sweep.table`."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "share_in_range": "share in range",
    "length": "length (tokens)",
    "kl": "KL from the reference (nats per text)",
    "rougeL": "ROUGE-L",
}


def plot_sweep(rows: Sequence[dict], path: Path) -> None:
    """Share in range, length, KL and ROUGE-L against λ, with 95 % intervals, as a PNG."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), sharex=True, layout="constrained")
    lams = [row["lam"] for row in rows]
    for axis, (key, label) in zip(axes.flat, PANELS.items(), strict=True):
        values = [row[key] for row in rows]
        errors = [row[f"{key}_ci95"] or 0 for row in rows]  # None: a single document
        axis.errorbar(lams, values, yerr=errors, marker="o", capsize=3)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        for lam, name in ((0, "reference"), (1, "aligned")):
            if min(lams) <= lam <= max(lams):
                axis.axvline(lam, color="grey", linestyle=":", linewidth=1)
                axis.annotate(name, (lam, 1), xycoords=("data", "axes fraction"), fontsize=8,
                              color="grey", rotation=90, va="top", ha="right")  # fmt: skip
    for axis in axes[1]:
        axis.set_xlabel("λ")
    first = rows[0]
    figure.suptitle(
        f"DeRa: {first['documents']} held-out documents, "
        f"{first['samples'] // first['documents']} samples each (95 % intervals between documents)"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
