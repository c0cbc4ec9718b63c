"""Best-of-n beside DeRa: what reward n samples buy, and what it costs in KL at most.

Axes: B documents, K samples at one λ.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dera_jax import checks, json_files
from dera_jax.decoding.best_of_n import kl_bound, winners
from dera_jax.evaluation import plots, sweep
from dera_jax.evaluation.jobs import Decoding
from dera_jax.evaluation.tables import in_columns, write_csv

_SHOWN = ("reward", "length", "rouge1", "rouge2", "rougeL")


@dataclasses.dataclass(frozen=True)
class BestOf:
    """Samples once, and keeps the best of every n for each n.

    Attributes:
        decoding: the pair, documents, λ values and reward; num_samples are the most there can be
            of.
        sizes: the n, each a divisor of num_samples.

    Raises:
        ValueError: no reward, greedy texts, or an n that does not divide the number of samples.
    """

    decoding: Decoding
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)

    def __post_init__(self):
        checks.check_fields(self, decoding=checks.instance(Decoding))
        settings = self.decoding.sweep
        if settings.sampling.greedy:
            raise ValueError("best-of-n of greedy texts: all n are the same; sample them")
        if settings.reward is None:
            raise ValueError("best-of-n needs a reward to tell the best by")
        checks.check_fields(self, sizes=checks.several(checks.whole(1), "(1, 2, 4)"))
        checks.check_distinct("BestOf.sizes", self.sizes)
        bad = [n for n in self.sizes if settings.num_samples % n]
        if bad:
            raise ValueError(
                f"BestOf.sizes must divide Sweep.num_samples ({settings.num_samples}); found {bad}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Writes all samples (see `shards`), best_of_n.json, .csv and .png; resumes.

        Returns:
            The rows of `table`.
        """
        records = self.decoding.load().decode(self.decoding.sweep, folder)
        rows = [row for n in self.sizes for row in table(records, n)]
        json_files.write(folder / "best_of_n.json", rows)
        write_csv(folder / "best_of_n.csv", rows)
        plots.plot_best_of(rows, folder / "best_of_n.png")
        print(format_table(rows))
        return {"documents": len(records), "best_of": rows}


def best(records: Sequence[dict], n: int) -> list[dict]:
    """The records with the winner of every n samples of a λ only.

    All K samples are used: K/n winners for each document and λ, whose mean estimates the mean reward
    of best-of-n without bias.
    """
    return [record | {"samples": _winners(record["samples"], n)} for record in records]


def _winners(samples: Sequence[dict], n: int) -> list[dict]:
    """Samples of one λ stand together, so groups of n never mix two."""
    rewards = np.array([[s["reward"] for s in samples]])
    return [samples[i] for i in np.asarray(winners(rewards, n))[0]]


def table(records: Sequence[dict], n: int) -> list[dict]:
    """The rows of `sweep.table` over winners, with n and two KL columns, in nats.

    kl_bound is that of best-of-n from what it samples from, π (at λ, temperature and truncation
    included); kl_most that from the reference, whose last term the winners estimate:

        KL(π_n ‖ π_ref) = KL(π_n ‖ π) + E_{π_n}[log π/π_ref] ≤ kl_bound + E_{π_n}[log π/π_ref]
    """
    kept = best(records, n)
    rows = []
    for row in sweep.table(kept):
        ratios = [
            s["sampling_log_prob"] - s["part_log_probs"][0]
            for record in kept
            for s in record["samples"]
            if s["lam"] == row["lam"]
        ]
        bound = kl_bound(n)
        others = {key: x for key, x in row.items() if not key.startswith("kl")}
        rows.append({"n": n, "kl_bound": bound, "kl_most": bound + float(np.mean(ratios))} | others)
    return rows


def format_table(rows: Sequence[dict]) -> str:
    """For a terminal, with ± half widths of 95 % intervals."""
    head = ["λ", "n", "KL bound", "KL at most", *_SHOWN]
    lines = [
        [f"{row['lam']:g}", str(row["n"]), f"{row['kl_bound']:.2f}", f"{row['kl_most']:.2f}"]
        + [sweep.cell(row, key) for key in _SHOWN]
        for row in rows
    ]
    return in_columns([head, *lines])
