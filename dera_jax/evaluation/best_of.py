"""Compares best-of-n with DeRa: mean reward against an upper bound on the KL to the reference.

Axes: K samples of one document at one λ.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dera_jax import checks
from dera_jax.decoding.best_of_n import kl_bound, winners
from dera_jax.evaluation import report_content, sweep_tables
from dera_jax.evaluation.pair_sweep import PairSweep
from dera_jax.evaluation.report_content import OutputSource, ReportContent, ReportTable
from dera_jax.evaluation.tables import write_csv
from dera_jax.files import json_files

NOTE = f"KL bounds in nats. {sweep_tables.INTERVAL_NOTE}"
_COLUMNS = ("reward", "length (tokens)", "ROUGE-1", "ROUGE-2", "ROUGE-L")


@dataclasses.dataclass(frozen=True)
class BestOf:
    """Decodes a λ sweep once and evaluates best-of-n on its samples for several n.

    Attributes:
        decoding: the model pair, documents, λ values and reward; its num_samples is the largest
            possible n.
        sizes: the values of n, each a divisor of num_samples.

    Raises:
        ValueError: there is no reward, decoding is greedy, a size is repeated or not a positive
            integer, or it does not divide the number of samples.
    """

    decoding: PairSweep
    sizes: tuple[int, ...]

    def __post_init__(self):
        checks.check_fields(self, decoding=checks.instance(PairSweep))
        sweep = self.decoding.sweep
        if sweep.sampling.greedy:
            raise ValueError(
                "BestOf needs Sampling.greedy = False: all n greedy outputs of a prompt are equal"
            )
        if sweep.reward is None:
            raise ValueError("BestOf needs a reward to rank the n samples; set Sweep.reward")
        checks.check_fields(self, sizes=checks.sequence(checks.integer(1), "(1, 2, 4)"))
        checks.check_distinct("BestOf.sizes", self.sizes)
        bad = [n for n in self.sizes if sweep.num_samples % n]
        if bad:
            raise ValueError(
                f"BestOf.sizes must divide Sweep.num_samples ({sweep.num_samples}); found {bad}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Writes all samples (see `record_store`), best_of_n.json, .csv and .png and report.json; resumes.

        Returns:
            `documents`, the number of documents, and `best_of`, the rows of `table` for all n.
        """
        records = self.decoding.load().decode(self.decoding.sweep, folder)
        rows = [row for n in self.sizes for row in table(records, n)]
        json_files.write(folder / "best_of_n.json", rows)
        write_csv(folder / "best_of_n.csv", rows)
        from dera_jax.evaluation import plots  # imports matplotlib

        plots.plot_best_of(rows, folder / "best_of_n.png")
        report_content.conclude(content(rows, self.sizes), folder)
        return {"documents": len(records), "best_of": rows}


def best_records(records: Sequence[dict], n: int) -> list[dict]:
    """Returns copies of the records that hold only the best of every n samples at each λ.

    All K samples are used. The mean over the K/n winners of each document and λ is an unbiased
    estimate of the mean reward of best-of-n.
    """
    return [record | {"samples": _winners(record["samples"], n)} for record in records]


def _winners(samples: Sequence[dict], n: int) -> list[dict]:
    """Returns the best of every n samples of one document; no group of n mixes two λ."""
    # The samples of one λ are adjacent in a record, and n divides their number.
    rewards = np.array([[s["reward"] for s in samples]])
    return [samples[i] for i in np.asarray(winners(rewards, n))[0]]


def table(records: Sequence[dict], n: int) -> list[dict]:
    """Returns the rows of `sweep_tables.table` for best-of-n, with n and two KL bounds in nats.

    kl_bound bounds the KL of best-of-n, π_n, to the policy π that it samples from (the policy at λ,
    with temperature and truncation; see `decoding.best_of_n`). kl_most bounds its KL to the
    reference; the expectation is estimated by the mean over the winners:

        KL(π_n ‖ π_ref) = KL(π_n ‖ π) + E_{π_n}[log π/π_ref] ≤ kl_bound + E_{π_n}[log π/π_ref]
    """
    winning_records = best_records(records, n)
    rows = []
    for row in sweep_tables.table(winning_records):
        ratios = [
            s["sampling_log_prob"] - (s["part_log_probs"] or [s["log_prob"]])[0]
            for record in winning_records
            for s in record["samples"]
            if s["lam"] == row["lam"]
        ]
        bound = kl_bound(n)
        columns = {key: x for key, x in row.items() if not key.startswith("kl")}
        bounds = {"kl_bound": bound, "kl_most": bound + float(np.mean(ratios))}
        rows.append({"n": n} | bounds | columns)
    return rows


def content(rows: Sequence[dict], sizes: Sequence[int]) -> ReportContent:
    """Returns what the report shows: the rows of `table` for all n, and the outputs for each n."""
    table_of_all = ReportTable("Means for each λ and n", cells(rows), NOTE)
    sources = [OutputSource("one sample" if n == 1 else f"best of {n}", ".", n) for n in sizes]
    return ReportContent("Best-of-n", [table_of_all], sentences(rows), sources)


def sentences(rows: Sequence[dict]) -> list[str]:
    """Returns for each λ a sentence on what the largest n gains over the smallest."""
    lines = []
    for lam in sorted({row["lam"] for row in rows}):
        own = sorted((row for row in rows if row["lam"] == lam), key=lambda row: row["n"])
        first, last = own[0], own[-1]
        at = "" if lam is None else f"λ = {lam:g}: "
        rewards = [
            f"{sweep_tables.format_cell(x, 'reward')} for n = {x['n']}" for x in (first, last)
        ]
        bound = f"KL to the reference of at most {last['kl_most']:.2f} nats"
        lines.append(f"{at}mean reward {', '.join(dict.fromkeys(rewards))}, with a {bound}.")
    return lines


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """Returns the head and the lines of the table of all rows, as texts."""
    columns = [title for title in _COLUMNS if sweep_tables.COLUMNS[title] in rows[0]]
    head = ["λ", "n", "KL(π_n ‖ π) ≤", "KL(π_n ‖ π_ref) ≤", *columns]
    lines = [
        [
            sweep_tables.lam_text(row["lam"]),
            str(row["n"]),
            f"{row['kl_bound']:.2f}",
            f"{row['kl_most']:.2f}",
        ]
        + [sweep_tables.format_cell(row, sweep_tables.COLUMNS[title]) for title in columns]
        for row in rows
    ]
    return [head, *lines]
