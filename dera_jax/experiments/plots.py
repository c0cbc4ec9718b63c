"""Draws the figures of experiments; error bars are 95 % confidence intervals over documents."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from dera_jax.evaluation.plots import INTERVAL, PANELS, plot_with_errors

TITLES = PANELS | {
    "covered": "outputs with all keywords (fraction)",
    "coverage": "keyword coverage (fraction of keywords)",
    "faithful": "content words found in the document (fraction)",
}


def plot_parts(rows: Sequence[dict], names: Sequence[str], path: Path) -> None:
    """Plots the mean of each part of a reward, and faithfulness, against λ to a PNG file.

    Args:
        rows: rows of `sweep_tables.table`.
        names: names of the parts.
        path: path of the PNG file.
    """
    panels = {f"reward_{name}": f"mean reward part: {name}" for name in names}
    panels["faithful"] = TITLES["faithful"]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.4), layout="constrained", squeeze=False
    )
    lams = [row["lam"] for row in rows]
    for axis, (key, label) in zip(axes[0], panels.items(), strict=True):
        errors = [row[f"{key}_ci95"] or 0 for row in rows]
        axis.errorbar(lams, [row[key] for row in rows], yerr=errors, marker="o", capsize=3)
        axis.axvline(1, color="grey", linestyle=":", linewidth=1)
        axis.set_xlabel("λ")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(INTERVAL, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_two_rewards(
    rows: Sequence[dict], trained: Sequence[dict], names: Sequence[str], path: Path
) -> None:
    """Plots the means of two rewards, for DeRa at (λ₁, λ₂) and for models trained on their sums.

    Args:
        rows: rows of `sweep_tables.table` whose `lam` is a pair; lines connect rows of equal λ₁.
        trained: such rows for trained models, whose `lam` is the pair of reward weights.
        names: names of both rewards.
        path: path of the PNG file.
    """
    figure, axis = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    x, y = (f"reward_{name}" for name in names)
    firsts = sorted({row["lam"][0] for row in rows})
    for i, first in enumerate(firsts):
        line = sorted((r for r in rows if r["lam"][0] == first), key=lambda r: r["lam"][1])
        axis.plot([r[x] for r in line], [r[y] for r in line], marker="o", markersize=4,
                  color=plt.cm.viridis(i / max(len(firsts) - 1, 1)),
                  label=f"DeRa, λ of {names[0]} = {first:g}")  # fmt: skip
        for r in (line[0], line[-1]):
            axis.annotate(f"{r['lam'][1]:g}", (r[x], r[y]), xytext=(4, 4), fontsize=7,
                          textcoords="offset points")  # fmt: skip
    errors = {f"{a}err": [r[f"{key}_ci95"] or 0 for r in trained] for a, key in zip("xy", (x, y))}
    axis.errorbar([r[x] for r in trained], [r[y] for r in trained], **errors, marker="s",
                  linestyle="", color="C3", capsize=2, label="model trained on a sum")  # fmt: skip
    for r in trained:
        axis.annotate("({:g}, {:g})".format(*r["lam"]), (r[x], r[y]), xytext=(5, -10), fontsize=8,
                      textcoords="offset points", color="C3")  # fmt: skip
    axis.set_xlabel(f"mean reward: {names[0]}")
    axis.set_ylabel(f"mean reward: {names[1]}")
    axis.set_title(
        f"Labels: λ of {names[1]} (DeRa), reward weights of training (red)\n({INTERVAL})",
        fontsize=9,
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_exact(means: Sequence[dict], path: Path) -> None:
    """Plots the rows of `exact.mean_rows`: DeRa's exact errors and rewards on tabular models."""
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
        "kl_token_sequence": "KL(token ‖ sequence): DeRa's error",
        "kl_sequence_retrained": "KL(sequence ‖ π*(β/λ)): PPO's error",
        "kl_token_retrained": "KL(token ‖ π*(β/λ)): both errors",
    }
    for key, label in gaps.items():
        line(axes[2], "PPO", horizons[-1], key, marker="o", label=label)
    axes[0].set_title("DeRa's error, optimal aligned policy π*(β)")
    axes[0].set_ylabel("KL(token ‖ sequence mixture) (nats per sequence)")
    axes[1].set_title("Reward: π*(β/λ) (solid), DeRa (dashed)")
    axes[1].set_ylabel("mean reward")
    axes[2].set_title(f"Policy aligned by PPO, horizon {horizons[-1]}")
    axes[2].set_ylabel("KL (nats per sequence)")
    axes[2].set_yscale("log")
    axes[2].set_ylim(bottom=1e-5)  # at λ = 1 DeRa's error is rounding only
    for axis in axes:
        axis.set_xlabel("λ")
        axis.axvline(1, color="grey", linestyle=":", linewidth=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_lengths(counts: Sequence[dict], text: str, path: Path) -> None:
    """Plots the rows of `comparison.length_counts`: DeRa at λ and the model retrained at β₀/λ."""
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
            axis.bar(
                [r["length"] for r in rows], [r["fraction"] for r in rows], label=label, **style
            )
        axis.set_title(f"λ = {lam:g}")
        axis.set_xlabel("length (tokens)")
    axes[0, 0].set_ylabel("fraction of outputs")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(text, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_rewards(result: dict, text: str, path: Path) -> None:
    """Plots mean reward against λ for DeRa, retrained models and the optimal policy π*(β₀/λ)."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    plot_with_errors(axis, result["dera"], "lam", "DeRa at λ", marker="o")
    plot_with_errors(
        axis, result["retrained"], "lam", "retrained at β₀/λ", marker="s", linestyle=""
    )
    closed = result["closed_form"]
    axis.plot([r["lam"] for r in closed], [r["reward"] for r in closed], "--", color="grey",
              label="optimal policy π*(β₀/λ), closed form")  # fmt: skip
    axis.set_xlabel("λ")
    axis.set_ylabel("mean reward (0 in range, −1 otherwise)")
    axis.set_title(text, fontsize=8, wrap=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_frontier(result: dict, text: str, path: Path) -> None:
    """Plots mean reward against KL to the reference, for DeRa and for retrained models."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, label, style in (
        ("dera", "DeRa", {"marker": "o"}),
        ("retrained", "retrained", {"marker": "s", "linestyle": ""}),
    ):
        plot_with_errors(axis, result[name], "kl", label, **style)
        for row in result[name]:
            offset = (-5, 7) if name == "dera" else (5, -12)
            axis.annotate(f"{row['lam']:g}", (row["kl"], row["reward"]), xytext=offset, fontsize=7,
                          textcoords="offset points", ha="right" if name == "dera" else "left",
                          color="C0" if name == "dera" else "C1")  # fmt: skip
    axis.set_xlabel("KL to the reference (nats per sequence); labels are λ")
    axis.set_ylabel("mean reward")
    axis.set_title(text, fontsize=8, wrap=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_methods(rows: Sequence[dict], key: str, title: str, path: Path) -> None:
    """Plots the headline metric, ROUGE-L and the cost of every method, a line for each method.

    Args:
        rows: rows of `method_tables.run_method`; without ROUGE-L, which needs summaries, there is no
            panel for it.
        key: column of the headline metric.
        title: title of the figure.
        path: path of the PNG file.
    """
    columns = _columns(rows, key, "rougeL", "forward_tokens")
    size = (11, 1.4 + 0.3 * len(rows))
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, layout="constrained")
    places = range(len(rows))
    for axis, column in zip(axes, columns, strict=True):
        errors = [row[f"{column}_ci95"] or 0 for row in rows]
        axis.errorbar([row[column] for row in rows], places, xerr=errors, fmt="o", capsize=3)
        axis.set_xlabel(TITLES.get(column, column))
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("tokens processed per output")
    axes[-1].set_xscale("log")
    axes[-1].xaxis.set_minor_formatter("")  # labels of minor ticks would overlap in a wide decade
    axes[0].set_yticks(places, [row["method"] for row in rows])
    axes[0].invert_yaxis()
    figure.suptitle(_title_of(title, rows))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _columns(rows: Sequence[dict], *columns: str) -> list[str]:
    """Returns the columns that the rows have."""
    return [column for column in columns if column in rows[0]]


def plot_search_grid(rows: Sequence[dict], plain: dict, key: str, title: str, path: Path) -> None:
    """Plots the headline metric and ROUGE-L against the reward weight, a curve for each lookahead.

    Args:
        rows: rows of `method_tables.run_method` with `weight` and `lookahead` (tokens); without
            ROUGE-L, which needs summaries, there is no panel for it.
        plain: the row of beam search without a reward.
        key: column of the headline metric.
        title: title of the figure.
        path: path of the PNG file.
    """
    columns = _columns(rows, key, "rougeL")
    size = (5 * len(columns), 4.2)
    figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, layout="constrained")
    for axis, column in zip(axes[0], columns, strict=True):
        for i, lookahead in enumerate(sorted({row["lookahead"] for row in rows})):
            own = [row for row in rows if row["lookahead"] == lookahead]
            cost = sum(row["forward_tokens"] for row in own) / len(own)
            label = f"lookahead {lookahead} tokens ({cost:,.0f} tokens processed per output)"
            style = {"marker": "o", "capsize": 3, "color": f"C{i}", "label": label}
            errors = [row[f"{column}_ci95"] or 0 for row in own]
            values = [row[column] for row in own]
            axis.errorbar([row["weight"] for row in own], values, yerr=errors, **style)
        axis.axhline(plain[column], color="grey", linestyle="--", label="beam search, no reward")
        axis.set_xlabel("reward weight")
        axis.set_xscale("log")
        axis.set_ylabel(TITLES.get(column, column))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(_title_of(title, rows))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_trade_off(rows: Sequence[dict], names: Sequence[str], title: str, path: Path) -> None:
    """Plots the means of two parts of a reward against each other, a curve for each kind of method.

    Args:
        rows: rows with `kind`, `mix` (the weight of the second part) and reward_<name> of both.
        names: names of both parts.
        title: title of the figure.
        path: path of the PNG file.
    """
    figure, axis = plt.subplots(figsize=(7, 4.8), layout="constrained")
    first, second = (f"reward_{name}" for name in names)
    for i, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        own = [row for row in rows if row["kind"] == kind]
        axis.errorbar(
            [row[second] for row in own],
            [row[first] for row in own],
            xerr=[row[f"{second}_ci95"] or 0 for row in own],
            yerr=[row[f"{first}_ci95"] or 0 for row in own],
            marker="o",
            capsize=3,
            color=f"C{i}",
            label=kind,
        )
        for row in own:
            axis.annotate(f"{row['mix']:g}", (row[second], row[first]), xytext=(4, 4),
                          textcoords="offset points", fontsize=8, color=f"C{i}")  # fmt: skip
    axis.set_xlabel(f"mean {names[1]} (labels: its weight in the sum)")
    axis.set_ylabel(f"mean {names[0]}")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(_title_of(title, rows), fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _title_of(title: str, rows: Sequence[dict]) -> str:
    return f"{title}: {rows[0]['documents']} held-out documents\n({INTERVAL})"
