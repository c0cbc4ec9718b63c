"""Draws the figures of λ sweeps, the choice of λ and best-of-n, from rows of `sweep_tables.table`.

Error bars are the rows' 95 % confidence intervals over documents; a single document has none.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

PANELS = {
    "reward": "mean reward",
    "in_range_rate": "in-range rate (fraction of outputs)",
    "reward_faithful": "content words in the document",
    "length": "mean length (tokens)",
    "kl": "KL to the reference (nats)",
    "rougeL": "ROUGE-L (F1 × 100)",
}
INTERVAL = "error bars: 95 % confidence interval over documents"


def plot_sweep(rows: Sequence[dict], path: Path) -> None:
    """Plots the columns of PANELS that the rows have against λ to a PNG file.

    The length reward is the in-range rate minus 1, and is not shown beside it.
    """
    lams = [row["lam"] for row in rows]
    first = rows[0]
    shown = [key for key in PANELS if key in first]
    if all(abs(row.get("reward", 0) - row.get("in_range_rate", np.inf) + 1) < 1e-6 for row in rows):
        shown.remove("reward")
    size = 2, -(-len(shown) // 2)
    figure, axes = plt.subplots(
        *size, figsize=(4.5 * size[1], 6.5), sharex=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, key in zip(axes.flat, shown, strict=False):
        label = PANELS[key]
        values = [row[key] for row in rows]
        errors = [row[f"{key}_ci95"] or 0 for row in rows]  # None: a single document
        axis.errorbar(lams, values, yerr=errors, marker="o", capsize=3)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        for lam, name, side in ((0, "reference", "right"), (1, "aligned", "left")):
            if min(lams) <= lam <= max(lams):
                axis.axvline(lam, color="grey", linestyle=":", linewidth=1)
                axis.annotate(name, (lam, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                              textcoords="offset points", fontsize=8, color="grey", ha=side)  # fmt: skip
    for above, axis in zip(*axes, strict=True):
        lowest = axis if axis.get_visible() else above
        lowest.set_xlabel("λ")
        lowest.tick_params(labelbottom=True)
    each = first["samples"] // first["documents"]
    figure.suptitle(
        f"DeRa on {first['documents']} document{'s' * (first['documents'] > 1)}, {each} sample{'s' * (each > 1)} each\n({INTERVAL})"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_choice(rows: Sequence[dict], best: dict, limit: tuple[str, float], path: Path) -> None:
    """Plots mean reward and the limited metric against every evaluated λ to a PNG file.

    Args:
        rows: rows of `sweep_tables.table` with `round` and `allowed`.
        best: the chosen row.
        limit: column of the limited metric, and the value of its limit.
        path: path of the PNG file.
    """
    key, bound = limit
    figure, axes = plt.subplots(2, 1, figsize=(7, 6.5), sharex=True, layout="constrained")
    for axis, name, label in zip(axes, ("reward", key), ("mean reward", PANELS[key]), strict=True):
        for row in rows:
            axis.errorbar(row["lam"], row[name], yerr=row[f"{name}_ci95"] or 0, capsize=3, marker="o",
                          color=f"C{row['round']}",
                          fillstyle="full" if row["allowed"] else "none")  # fmt: skip
        axis.axvline(best["lam"], color="grey", linestyle=":")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].axhline(bound, color="black", linestyle="--", linewidth=1)
    axes[1].set_xlabel("λ")
    figure.suptitle(
        f"Chosen: λ = {best['lam']:g}. Filled markers satisfy the limit (dashed); one colour per "
        f"round, coarse to fine\n({INTERVAL})",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_best_of(rows: Sequence[dict], path: Path) -> None:
    """Plots the rows of `best_of.table`: mean reward against KL, for DeRa over λ and best-of-n."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    single = [row for row in rows if row["n"] == 1]
    plot_with_errors(
        axis, single, "kl_most", "DeRa: one sample at each λ", marker="o", color="black"
    )
    for i, lam in enumerate(sorted({row["lam"] for row in rows})):
        own = [row for row in rows if row["lam"] == lam]
        style = {"marker": "s", "linestyle": "--", "color": f"C{i}"}
        name = "best-of-n" if lam is None else f"best-of-n at λ = {lam:g}"
        plot_with_errors(axis, own, "kl_most", name, **style)
        for row in own:
            axis.annotate(f"n={row['n']}", (row["kl_most"], row["reward"]), xytext=(4, -9),
                          fontsize=7, textcoords="offset points", color=f"C{i}")  # fmt: skip
    axis.set_xlabel("KL to the reference (nats per sequence; an upper bound for best-of-n)")
    axis.set_ylabel("mean reward")
    axis.set_title(INTERVAL, fontsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_with_errors(axis, rows: Sequence[dict], x: str, label: str, **style) -> None:
    errors = [row["reward_ci95"] or 0 for row in rows]
    values = [row["reward"] for row in rows]
    axis.errorbar([row[x] for row in rows], values, yerr=errors, capsize=3, label=label, **style)
