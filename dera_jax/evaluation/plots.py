"""Figures. Numbers come in as the rows of `sweep.table`."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

PANELS = {
    "share_in_range": "share in range",
    "reward": "mean reward",
    "length": "length (tokens)",
    "kl": "KL from the reference (nats per text)",
    "rougeL": "ROUGE-L",
}


def plot_sweep(rows: Sequence[dict], path: Path) -> None:
    """Reward (or share in range), length, KL and ROUGE-L against λ, with 95 % intervals, as a PNG."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), sharex=True, layout="constrained")
    lams = [row["lam"] for row in rows]
    first = rows[0]
    shown = [key for key in PANELS if key in first]
    if "share_in_range" in shown:
        shown.remove("reward")  # the same, minus 1
    for axis, key in zip(axes.flat, shown, strict=True):
        label = PANELS[key]
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


def plot_best_of(rows: Sequence[dict], path: Path) -> None:
    """The rows of `best_of.table`: mean reward against KL, of DeRa over λ and of best-of-n."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    single = [row for row in rows if row["n"] == 1]
    _with_errors(axis, single, "kl_most", "one sample at each λ", marker="o", color="black")
    for i, lam in enumerate(sorted({row["lam"] for row in rows})):
        own = [row for row in rows if row["lam"] == lam]
        style = {"marker": "s", "linestyle": "--", "color": f"C{i}"}
        _with_errors(axis, own, "kl_most", f"best of n at λ = {lam:g}", **style)
        for row in own:
            axis.annotate(f"n={row['n']}", (row["kl_most"], row["reward"]), xytext=(4, -9),
                          fontsize=7, textcoords="offset points", color=f"C{i}")  # fmt: skip
    axis.set_xlabel("KL from the reference in nats (of best-of-n: at most)")
    axis.set_ylabel("mean reward")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_parts(rows: Sequence[dict], names: Sequence[str], path: Path) -> None:
    """The rows of `sweep.table`: each part of the reward, and faithfulness, against λ, as a PNG."""
    panels = {f"reward_{name}": f"reward part: {name}" for name in names}
    panels["faithful"] = "content words in the document"
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
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_two_rewards(
    rows: Sequence[dict], trained: Sequence[dict], names: Sequence[str], path: Path
) -> None:
    """Two rewards against each other: DeRa on a grid of (λ₁, λ₂), and models trained on sums.

    Args:
        rows: of `sweep.table`, `lam` a pair; lines join equal λ₁.
        trained: such rows, `lam` the weights of the sum.
        names: of the two parts of the reward.
        path: of the file.
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
                  linestyle="", color="C3", capsize=2, label="trained on a weighted sum")  # fmt: skip
    for r in trained:
        axis.annotate("({:g}, {:g})".format(*r["lam"]), (r[x], r[y]), xytext=(5, -10), fontsize=8,
                      textcoords="offset points", color="C3")  # fmt: skip
    axis.set_xlabel(f"mean reward: {names[0]}")
    axis.set_ylabel(f"mean reward: {names[1]}")
    axis.set_title(f"small numbers: λ of {names[1]}; red: weights trained on", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
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


TITLES = PANELS | {
    "covered": "share of texts with all keywords",
    "within": "share within the limit of words",
    "coverage": "share of keywords",
    "faithful": "share of content words in the document",
}


def plot_methods(rows: Sequence[dict], key: str, title: str, path: Path) -> None:
    """What was asked for, its price in ROUGE-L, and the cost, a line for each method.

    Args:
        rows: of `methods`, each with its name under `method`.
        key: the column of what was asked for.
        title: of the figure.
        path: of the file.
    """
    size = (11, 1.4 + 0.3 * len(rows))
    figure, axes = plt.subplots(1, 3, figsize=size, sharey=True, layout="constrained")
    places = range(len(rows))
    for axis, column in zip(axes, (key, "rougeL", "positions"), strict=True):
        errors = [row[f"{column}_ci95"] or 0 for row in rows]
        axis.errorbar([row[column] for row in rows], places, xerr=errors, fmt="o", capsize=3)
        axis.grid(alpha=0.3)
    axes[0].set_xlabel(TITLES.get(key, key))
    axes[1].set_xlabel(TITLES["rougeL"])
    axes[2].set_xlabel("model token-positions per answer")
    axes[2].set_xscale("log")
    axes[2].xaxis.set_minor_formatter("")  # where a decade is wide, its labels would overlap
    axes[0].set_yticks(places, [row["method"] for row in rows])
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}: {rows[0]['documents']} held-out documents (95 % intervals)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_search_grid(rows: Sequence[dict], plain: dict, key: str, title: str, path: Path) -> None:
    """What was asked for, and ROUGE-L, against the reward's weight, a curve for each lookahead.

    Args:
        rows: with `weight` and `lookahead`.
        plain: the row of beam search without a reward.
        key: the column of what was asked for.
        title: of the figure.
        path: of the file.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, column in zip(axes, (key, "rougeL"), strict=True):
        for i, lookahead in enumerate(sorted({row["lookahead"] for row in rows})):
            own = [row for row in rows if row["lookahead"] == lookahead]
            cost = sum(row["positions"] for row in own) / len(own)
            label = f"lookahead {lookahead} ({cost:,.0f} positions)"
            style = {"marker": "o", "capsize": 3, "color": f"C{i}", "label": label}
            errors = [row[f"{column}_ci95"] or 0 for row in own]
            values = [row[column] for row in own]
            axis.errorbar([row["weight"] for row in own], values, yerr=errors, **style)
        axis.axhline(plain[column], color="grey", linestyle="--", label="beam search, no reward")
        axis.set_xlabel("weight of the reward")
        axis.set_xscale("log")
        axis.set_ylabel(TITLES.get(column, column))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{title}: {rows[0]['documents']} held-out documents (95 % intervals)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_trade_off(rows: Sequence[dict], names: Sequence[str], title: str, path: Path) -> None:
    """The means of two parts of a reward against each other, a curve for each kind of method.

    Args:
        rows: with `kind`, `mix` (the weight of the second part) and reward_<name> of both parts.
        names: of the two parts.
        title: of the figure.
        path: of the file.
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
    axis.set_xlabel(f"{names[1]} (its weight beside the points)")
    axis.set_ylabel(names[0])
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(f"{title}: {rows[0]['documents']} held-out documents (95 % intervals)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
