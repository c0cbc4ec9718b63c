"""Compares DeRa at λ with models retrained at β₀/λ, from the records of their sweeps.

Records are those of `sweep.decode`: one per document, in the same order in every file.
Source of the comparison: Liu et al. 2024 (arXiv 2402.02992).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax.evaluation import sweep_tables
from dera_jax.evaluation.tables import write_csv
from dera_jax.experiments import plots
from dera_jax.files import json_files
from dera_jax.metrics import intervals
from dera_jax.rewards.length import optimal_in_range_rate

FIGURES = ("lengths.png", "reward.png", "reward_kl.png")
_COLUMNS = ("reward", "length", "kl", "rougeL")


def pool(runs: Sequence[Sequence[dict]], lam: float | None = None) -> list[dict]:
    """Concatenates the samples of several runs (seeds) for each document.

    Args:
        runs: the records of each run.
        lam: if given, replaces the λ of every sample.

    Raises:
        ValueError: the runs have different documents, or the same ones in a different order.
    """
    if len({tuple(r["example_id"] for r in run) for run in runs}) > 1:
        raise ValueError("the runs to pool must have the same documents, in the same order")
    override = {} if lam is None else {"lam": lam}
    return [
        group[0] | {"samples": [s | override for record in group for s in record["samples"]]}
        for group in zip(*runs, strict=True)
    ]


def compare(
    dera: Sequence[dict],
    retrained: Mapping[float, Sequence[Sequence[dict]]],
    rates: np.ndarray,
    beta: float,
    seeds: Sequence[int],
) -> dict[str, object]:
    """Computes the tables of the experiment.

    Args:
        dera: the records of all seeds at every λ.
        retrained: for each λ, the records of the model of each seed.
        rates: p [n], the reference's in-range rate for each of n documents.
        beta: β₀, the KL coefficient at λ = 1.
        seeds: the seeds of the PPO runs.

    Returns:
        `dera`, `retrained`: rows of `sweep_tables.table`; `closed_form`: the reward of the
        KL-regularized optimal policy at each λ; `comparison`: for each retrained λ a row with both
        policies and their gap (DeRa − retrained, paired by document, with half the width of its
        95 % confidence interval); `slopes`: a row for each PPO run, see `slope`.
    """
    pooled = {lam: pool(runs, lam) for lam, runs in retrained.items()}
    rows = sweep_tables.table(dera)
    retrained_rows = [sweep_tables.table(records)[0] for records in pooled.values()]
    closed = [
        {"lam": row["lam"], "reward": optimal_in_range_rate(rates, beta, row["lam"]) - 1}
        for row in rows
    ]
    by_lam = {row["lam"]: row for row in rows}
    joined = [
        _join(by_lam[row["lam"]], row, dera, pooled[row["lam"]], beta)
        | {"closed_form_reward": optimal_in_range_rate(rates, beta, row["lam"]) - 1}
        for row in retrained_rows
    ]
    slopes = [
        {"lam": lam, "beta": beta / lam, "seed": seed, "documents": len(records)}
        | {"reward": _mean_reward(records)}
        | dict(zip(("slope", "slope_ci95"), slope(records, beta / lam), strict=True))
        for lam, runs in retrained.items()
        for seed, records in zip(seeds, runs, strict=True)
    ]
    return {
        "dera": rows,
        "retrained": retrained_rows,
        "closed_form": closed,
        "comparison": joined,
        "slopes": slopes,
    }


def _join(dera_row: dict, retrained_row: dict, dera, retrained, beta: float) -> dict:
    lam = dera_row["lam"]
    row = {"lam": lam, "beta": beta / lam}
    for key in _COLUMNS:
        for name, source in (("dera", dera_row), ("retrained", retrained_row)):
            row |= {f"{name}_{key}": source[key], f"{name}_{key}_ci95": source[f"{key}_ci95"]}
    for key in ("reward", "length", "kl"):
        pairs = zip(_means(dera, lam, key), _means(retrained, lam, key), strict=True)
        gap, interval = intervals.mean_interval([[a - b] for a, b in pairs])
        row |= {f"gap_{key}": gap, f"gap_{key}_ci95": interval}
    return row


def _means(records: Sequence[dict], lam: float, key: str) -> list[float]:
    """Returns for each document the mean of `key` over its samples at λ."""
    return [
        float(np.mean([s[key] for s in record["samples"] if s["lam"] == lam])) for record in records
    ]


def _mean_reward(records: Sequence[dict]) -> float:
    return float(np.mean([s["reward"] for record in records for s in record["samples"]]))


def slope(records: Sequence[dict], beta: float) -> tuple[float | None, float | None]:
    """Returns the slope of log π/π_ref regressed on r/β, and half the width of its 95 % interval.

    The slope is 1 if the policy is optimal, since then log π*/π_ref = r/β − log Z(x). Z depends on
    the document, so both sides are centred within each document. The confidence interval allows
    for errors that are correlated within a document. Both results are None if all samples of each
    document have the same reward.

    Args:
        records: records of the policy's samples, with the log-probabilities under both models.
        beta: the KL coefficient β that the policy was trained with.
    """
    x, y = [], []
    for record in records:
        parts = np.array([s["part_log_probs"] for s in record["samples"]])
        reward = np.array([s["reward"] for s in record["samples"]]) / beta
        ratio = parts[:, 1] - parts[:, 0]
        x.append(reward - reward.mean())
        y.append(ratio - ratio.mean())
    spread = sum(a @ a for a in x)
    if spread == 0:
        return None, None
    estimate = sum(a @ b for a, b in zip(x, y, strict=True)) / spread
    scores = [a @ (b - estimate * a) for a, b in zip(x, y, strict=True)]
    return float(estimate), float(1.96 * np.sqrt(np.sum(np.square(scores))) / spread)


def largest_gap(rows: Sequence[dict], key: str) -> dict:
    """Returns λ, gap and half the 95 % interval's width of the row with the largest |gap|."""
    row = max(rows, key=lambda row: abs(row[f"gap_{key}"]))
    return {"lam": row["lam"], "gap": row[f"gap_{key}"], "ci95": row[f"gap_{key}_ci95"]}


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """Returns the head and the lines of the table of the `comparison` rows of `compare`, as texts."""
    head = ["λ", "β", "reward: DeRa", "retrained", "optimum", "length: DeRa", "retrained"]
    lines = [[*head, "KL: DeRa", "retrained"]]
    for row in rows:
        pair = lambda key, digits, row=row: [
            f"{row[f'{source}_{key}']:.{digits}f}" for source in ("dera", "retrained")
        ]
        lines.append(
            [f"{row['lam']:g}", f"{row['beta']:.3g}", *pair("reward", 3)]
            + [f"{row['closed_form_reward']:.3f}", *pair("length", 1), *pair("kl", 2)]
        )
    return lines


def sentences(result: Mapping[str, object]) -> list[str]:
    """Returns sentences that state the largest gaps and the slope of each PPO run."""
    rows = result["comparison"]
    units = {"reward": "", "length": " tokens", "kl": " nats"}
    names = {"reward": "mean reward", "length": "mean length", "kl": "KL from the reference"}
    lines = []
    for key, unit in units.items():
        largest = largest_gap(rows, key)
        error, digits = largest["ci95"], 2 if key == "kl" else 3
        interval = "" if error is None else f" ± {error:.{digits}f}"
        lines.append(
            f"Largest gap between DeRa and the retrained models in {names[key]}: "
            f"{largest['gap']:+.{digits}f}{interval}{unit}, at λ = {largest['lam']:g}."
        )
    for row in result["slopes"]:
        lines.append(f"PPO at β = {row['beta']:.3g}, seed {row['seed']}: {_slope_in_words(row)}.")
    return lines


def _slope_in_words(row: Mapping) -> str:
    if row["slope"] is None:
        return "the slope is undefined, since all samples of each document have the same reward"
    interval = f"{row['slope']:.2f} ± {row['slope_ci95']:.2f}"
    return f"the slope of log π/π_ref on r/β is {interval} (1 for the optimal policy)"


def write(result: Mapping[str, object], dera, retrained, folder: Path) -> None:
    """Writes comparison.json, a CSV file for each table, lengths.csv and FIGURES to `folder`."""
    json_files.write(folder / "comparison.json", result)
    for name, rows in result.items():
        write_csv(folder / f"{name}.csv", rows)
    counts = length_counts(dera, {lam: pool(runs, lam) for lam, runs in retrained.items()})
    write_csv(folder / "lengths.csv", counts)
    reward, length, kl = sentences(result)[:3]
    plots.plot_lengths(counts, length, folder / FIGURES[0])
    plots.plot_rewards(result, reward, folder / FIGURES[1])
    plots.plot_frontier(result, kl, folder / FIGURES[2])


def length_counts(dera, retrained: Mapping[float, Sequence[dict]]) -> list[dict]:
    """Returns the fraction of samples of each length (tokens), for each source and λ."""
    rows = []
    for lam, records in retrained.items():
        for source, sampled in (("dera", dera), ("retrained", records)):
            lengths = [s["length"] for r in sampled for s in r["samples"] if s["lam"] == lam]
            fractions = np.bincount(lengths) / len(lengths)
            rows += [
                {"source": source, "lam": lam, "length": n, "fraction": float(fraction)}
                for n, fraction in enumerate(fractions)
            ]
    return rows
