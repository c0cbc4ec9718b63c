"""Figures. Numbers come in as the rows of `sweep.table`."""

from collections.abc import Sequence
from pathlib import Path

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


def plot_choice(rows: Sequence[dict], best: dict, limit: tuple[str, float], path: Path) -> None:
    """Mean reward, and below it what is limited, against every λ tried, as a PNG.

    Args:
        rows: of `sweep.table` with `round` and `allowed`.
        best: the row chosen.
        limit: key of the limited quantity, and its limit.
        path: of the file.
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
        f"chosen: λ = {best['lam']:g} (filled: within the limit; colours: rounds, coarse to fine)",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_exact(means: Sequence[dict], path: Path) -> None:
    """The rows of `exact.mean_rows`: how far DeRa is from what it approximates, without sampling."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    horizons = sorted({row["horizon"] for row in means})

    def line(axis, aligned: str, horizon: int, key: str, **style) -> None:
        rows = [m for m in means if (m["aligned"], m["horizon"]) == (aligned, horizon)]
        if rows:
            axis.plot([row["lam"] for row in rows], [row[key] for row in rows], **style)

    for i, horizon in enumerate(horizons):
        color = plt.cm.viridis(i / len(horizons))
        style = {"color": color, "label": f"horizon {horizon}"}
        line(axes[0], "optimum", horizon, "kl_token_sequence", marker="o", **style)
        line(axes[1], "optimum", horizon, "reward_retrained", **style)
        line(axes[1], "optimum", horizon, "reward_token", linestyle="--", marker="o", color=color)
    gaps = {
        "kl_token_sequence": "token ‖ sequence: DeRa's",
        "kl_sequence_retrained": "sequence ‖ π*(β/λ): PPO's",
        "kl_token_retrained": "token ‖ π*(β/λ): both",
    }
    for key, label in gaps.items():
        line(axes[2], "PPO", horizons[-1], key, marker="o", label=label)
    axes[0].set_title("DeRa's error, aligned with the optimum")
    axes[0].set_ylabel("KL(token ‖ sequence mixture), nats per text")
    axes[1].set_title("reward: π*(β/λ) (lines), DeRa (dashed)")
    axes[1].set_ylabel("mean reward")
    axes[2].set_title(f"aligned by PPO, horizon {horizons[-1]}")
    axes[2].set_ylabel("KL, nats per text")
    axes[2].set_yscale("log")
    axes[2].set_ylim(bottom=1e-5)  # at λ = 1 DeRa's own error is rounding
    for axis in axes:
        axis.set_xlabel("λ")
        axis.axvline(1, color="grey", linestyle=":", linewidth=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_lengths(counts: Sequence[dict], text: str, path: Path) -> None:
    """The rows of `comparison.length_counts`: DeRa at λ over the model retrained at β₀/λ."""
    lams = sorted({row["lam"] for row in counts})
    figure, axes = plt.subplots(
        1, len(lams), figsize=(3.2 * len(lams), 3.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, lam in zip(axes[0], lams, strict=True):
        for source, style in (
            ("dera", {"width": 1.0, "alpha": 0.45}),
            ("retrained", {"width": 1.0, "fill": False, "edgecolor": "black"}),
        ):
            rows = [row for row in counts if (row["lam"], row["source"]) == (lam, source)]
            label = "DeRa" if source == "dera" else "retrained at β₀/λ"
            axis.bar([r["length"] for r in rows], [r["share"] for r in rows], label=label, **style)
        axis.set_title(f"λ = {lam:g}")
        axis.set_xlabel("length (tokens)")
    axes[0, 0].set_ylabel("share of texts")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(text, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_rewards(result: dict, text: str, path: Path) -> None:
    """Mean reward against λ: DeRa, retrained models, and what the optimum would have."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    _with_errors(axis, result["dera"], "lam", "DeRa at λ", marker="o")
    _with_errors(axis, result["retrained"], "lam", "retrained at β₀/λ", marker="s", linestyle="")
    closed = result["closed_form"]
    axis.plot([r["lam"] for r in closed], [r["reward"] for r in closed], "--", color="grey",
              label="closed form of π*(β₀/λ)")  # fmt: skip
    axis.set_xlabel("λ")
    axis.set_ylabel("mean reward (0 in range, −1 out of it)")
    axis.set_title(text, fontsize=8, wrap=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_frontier(result: dict, text: str, path: Path) -> None:
    """Mean reward against KL from the reference, for DeRa and for retrained models."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, label, style in (
        ("dera", "DeRa", {"marker": "o"}),
        ("retrained", "retrained", {"marker": "s", "linestyle": ""}),
    ):
        _with_errors(axis, result[name], "kl", label, **style)
        for row in result[name]:
            offset = (-5, 7) if name == "dera" else (5, -12)
            axis.annotate(f"{row['lam']:g}", (row["kl"], row["reward"]), xytext=offset, fontsize=7,
                          textcoords="offset points", ha="right" if name == "dera" else "left",
                          color="C0" if name == "dera" else "C1")  # fmt: skip
    axis.set_xlabel("KL from the reference (nats per text); numbers are λ")
    axis.set_ylabel("mean reward")
    axis.set_title(text, fontsize=8, wrap=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _with_errors(axis, rows: Sequence[dict], x: str, label: str, **style) -> None:
    errors = [row["reward_ci95"] or 0 for row in rows]
    values = [row["reward"] for row in rows]
    axis.errorbar([row[x] for row in rows], values, yerr=errors, capsize=3, label=label, **style)
