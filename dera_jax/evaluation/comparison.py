"""DeRa at λ beside models retrained at β₀/λ, from the records of their sweeps.

Records are those of `sweep.decode`: one per document, in the same order in every file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import json_files
from dera_jax.evaluation import metrics, plots, sweep
from dera_jax.evaluation.tables import in_columns, write_csv
from dera_jax.rewards.length import share_in_range
from dera_jax.training.ppo import Objective

FIGURES = ("lengths.png", "reward.png", "reward_kl.png")
_COLUMNS = ("reward", "length", "kl", "rougeL")


def pool(runs: Sequence[Sequence[dict]], lam: float | None = None) -> list[dict]:
    """The samples of several runs (seeds) document by document, all said to be at `lam` if given.

    Raises:
        ValueError: the runs are not of the same documents.
    """
    if len({tuple(r["example_id"] for r in run) for run in runs}) > 1:
        raise ValueError("the runs to pool are not of the same documents, in the same order")
    rename = {} if lam is None else {"lam": lam}
    return [
        group[0] | {"samples": [s | rename for record in group for s in record["samples"]]}
        for group in zip(*runs, strict=True)
    ]


def compare(
    dera: Sequence[dict],
    retrained: Mapping[float, Sequence[Sequence[dict]]],
    shares: np.ndarray,
    objective: Objective,
    seeds: Sequence[int],
) -> dict[str, object]:
    """What the experiment shows.

    Args:
        dera: records at every λ, of all seeds.
        retrained: per λ, the records of the model of each seed.
        shares: p, the reference's share in range for each document.
        objective: the length reward and β₀.
        seeds: of the PPO runs.

    Returns:
        `dera`, `retrained`: rows of `sweep.table`; `closed_form`: reward by λ; `comparison`: a row
        for each retrained λ with both and their gap (DeRa − retrained, paired by document, ± 95 %);
        `slopes`: a row for each PPO run.
    """
    beta = objective.beta
    pooled = {lam: pool(runs, lam) for lam, runs in retrained.items()}
    rows = sweep.table(dera)
    retrained_rows = [sweep.table(records)[0] for records in pooled.values()]
    closed = [
        {"lam": row["lam"], "reward": share_in_range(shares, beta, row["lam"]) - 1} for row in rows
    ]
    by_lam = {row["lam"]: row for row in rows}
    joined = [
        _join(by_lam[row["lam"]], row, dera, pooled[row["lam"]], beta)
        | {"closed_form_reward": share_in_range(shares, beta, row["lam"]) - 1}
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
        gap, interval = metrics.mean_interval([[a - b] for a, b in pairs])
        row |= {f"gap_{key}": gap, f"gap_{key}_ci95": interval}
    return row


def _means(records: Sequence[dict], lam: float, key: str) -> list[float]:
    """Per document, the mean over its samples at λ."""
    return [
        float(np.mean([s[key] for s in record["samples"] if s["lam"] == lam])) for record in records
    ]


def _mean_reward(records: Sequence[dict]) -> float:
    return float(np.mean([s["reward"] for record in records for s in record["samples"]]))


def slope(records: Sequence[dict], beta: float) -> tuple[float | None, float | None]:
    """Slope of log π/π_ref on r/β over samples of the policy, and half its 95 % interval.

    1 where the policy is optimal: there log π*/π_ref = r/β − log Z(x). Z differs by document, so
    both sides are compared within documents. The interval is that of a regression whose errors
    are correlated within a document. Both are None where every document has one reward only.
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
    found = sum(a @ b for a, b in zip(x, y, strict=True)) / spread
    scores = [a @ (b - found * a) for a, b in zip(x, y, strict=True)]
    return float(found), float(1.96 * np.sqrt(np.sum(np.square(scores))) / spread)


def largest_gap(rows: Sequence[dict], key: str) -> dict:
    """Of the row whose gap in `key` is the largest in size: λ, gap, and half its 95 % interval."""
    row = max(rows, key=lambda row: abs(row[f"gap_{key}"]))
    return {"lam": row["lam"], "gap": row[f"gap_{key}"], "ci95": row[f"gap_{key}_ci95"]}


def format_comparison(rows: Sequence[dict]) -> str:
    """The rows of `compare` for a terminal: DeRa, retrained (and for the reward the optimum)."""
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
    return in_columns(lines)


def sentences(result: Mapping[str, object]) -> list[str]:
    """What the numbers say, in words."""
    rows = result["comparison"]
    units = {"reward": "", "length": " tokens", "kl": " nats"}
    names = {"reward": "mean reward", "length": "mean length", "kl": "KL from the reference"}
    found = []
    for key, unit in units.items():
        largest = largest_gap(rows, key)
        error = largest["ci95"]
        interval = "" if error is None else f" ± {error:.3f}"
        found.append(
            f"Largest gap between DeRa and retrained in {names[key]}: "
            f"{largest['gap']:+.3f}{interval}{unit}, at λ = {largest['lam']:g}."
        )
    for row in result["slopes"]:
        found.append(f"PPO at β = {row['beta']:.3g}, seed {row['seed']}: {_slope_in_words(row)}.")
    return found


def _slope_in_words(row: Mapping) -> str:
    if row["slope"] is None:
        return "no slope, since all samples of each document have the same reward"
    interval = f"{row['slope']:.2f} ± {row['slope_ci95']:.2f}"
    return f"slope of log π/π_ref on r/β {interval} (1 for the optimum)"


def write(result: Mapping[str, object], dera, retrained, folder: Path) -> None:
    """comparison.json; one CSV for each list of rows, and one of the lengths; the FIGURES."""
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
    """How often each length occurs: rows of source, λ, length and share of the samples."""
    rows = []
    for lam, records in retrained.items():
        for source, those in (("dera", dera), ("retrained", records)):
            lengths = [s["length"] for r in those for s in r["samples"] if s["lam"] == lam]
            shares = np.bincount(lengths) / len(lengths)
            rows += [
                {"source": source, "lam": lam, "length": n, "share": float(share)}
                for n, share in enumerate(shares)
            ]
    return rows
