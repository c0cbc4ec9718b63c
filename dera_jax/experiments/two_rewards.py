"""Trades off two rewards at decoding time by mixing two aligned models with the reference.

    SFT (unless a reference is given) → PPO on each reward alone and, for comparison, on weighted
    sums → one sweep over a grid of λ = (λ₁, λ₂) → samples of each trained model → the frontier of
    the two rewards

For optimal policies log π_i = log π_ref + r_i/β − log Z_i. The mixture at (λ₁, λ₂) over whole
sequences is then the optimal policy for the reward λ₁·r₁ + λ₂·r₂ at KL coefficient β, which
training on that weighted sum aims at (decoding-time realignment of Liu et al. 2024,
arXiv 2402.02992, with several models; compare Shi et al. 2024, arXiv 2406.18853).
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from dera_jax import checks
from dera_jax.checkpoints.resources import RunResources
from dera_jax.evaluation import report_content, sweep, sweep_tables
from dera_jax.evaluation.sweep_tables import lam_text
from dera_jax.evaluation.tables import write_csv
from dera_jax.experiments import plots
from dera_jax.experiments.alignment_experiment import SweepExperiment
from dera_jax.experiments.stages import Stage, read_records, run_all
from dera_jax.files import json_files
from dera_jax.metrics.intervals import mean_interval
from dera_jax.rewards.combined import Combined, Part
from dera_jax.training.dry_run import ProgramCost
from dera_jax.training.ppo_training import MODEL

FIGURE = "frontier.png"
_WEIGHT = "weight_"  # prefix of the columns of the weights of a trained model
_DIGITS = {"kl": 2}
Weights = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoRewards(SweepExperiment):
    """Compares DeRa at (λ₁, λ₂) with models trained on the weighted sums of two rewards.

    Attributes:
        parts: the two rewards; weights in `trained` and λ multiply the parts' own weights.
        grid: the values of λ₁ and of λ₂.
        trained: the weights of the sums that models are trained on, besides (1, 0) and (0, 1).

    Raises:
        ValueError: there are not two parts, weights are not on the grid, or a field is out of its
            range.
    """

    parts: tuple[Part, ...]
    grid: tuple[float, ...]
    trained: tuple[Weights, ...]

    def __post_init__(self):
        super().__post_init__()
        amount = checks.number()
        pairs = checks.sequence(checks.sequence(amount, "(0.5, 0.5)", 2), "((0.5, 0.5),)", least=0)
        checks.check_fields(
            self,
            parts=checks.sequence(checks.instance(Part), "(Part(...), Part(...))"),
            grid=checks.sequence(amount, "(0.0, 0.5, 1.0)"),
            trained=pairs,
        )
        checks.check_distinct("TwoRewards.grid", self.grid)
        if len(self.parts) != 2:
            raise ValueError(f"TwoRewards.parts needs two parts; found {len(self.parts)}")
        missing = [w for w in self._weights if not set(w) <= set(self.grid)]
        if missing:
            raise ValueError(
                "TwoRewards.trained, (1, 0) and (0, 1) must be on the grid "
                f"{self.grid}, to be compared with DeRa; found {missing}: extend TwoRewards.grid"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs all unfinished stages and writes frontier.png, frontier.json, frontier.csv, report.json.

        Returns:
            The rows of `compare`.
        """
        self._check()
        run_all(self.stages(folder))
        dera = read_records(folder / "dera")
        trained = {w: read_records(folder / f"sampled_{_name(w)}") for w in self._weights}
        names = [part.name for part in self.parts]
        rows = sweep_tables.table(dera)
        trained_rows = [sweep_tables.table(x)[0] | {"lam": w} for w, x in trained.items()]
        compared = compare(dera, trained, names)
        content = {"dera": rows, "trained": trained_rows, "compared": compared}
        json_files.write(folder / "frontier.json", content)
        write_csv(folder / "frontier.csv", compared)
        plots.plot_two_rewards(rows, trained_rows, names, folder / FIGURE)
        report_content.conclude(self._content(compared), folder)
        return {"compared": compared}

    def program_costs(self) -> list[ProgramCost]:
        """Returns the costs of the stages' steps; PPO, the same for all sums, is listed once."""
        ppo = self.ppo(self.reference.shapes(), self._sum(self._weights[0]), self.beta, self.seed)
        return [
            *self.reference.program_costs(),
            *ppo.program_costs(),
            *self.sweep_costs(self._sum((1.0, 1.0)), self._lams, num_aligned=2),
        ]

    def stages(self, folder: Path) -> list[Stage]:
        """Returns the stages in order; each reads the outputs of earlier ones."""
        trained = lambda w: folder / f"ppo_{_name(w)}"
        measured = lambda: self._sum((1.0, 1.0))
        runs = [
            self.ppo_stage(
                f"PPO, weights {w}",
                folder,
                trained(w),
                functools.partial(self._sum, w),
                self.beta,
                self.seed,
            )
            for w in self._weights
        ]
        both = [trained(w) / MODEL for w in self._weights[:2]]
        dera = self.sweep_stage("DeRa", folder, folder / "dera", both, measured, self._lams)
        sampled = [
            self.sweep_stage(
                f"samples, weights {w}",
                folder,
                folder / f"sampled_{_name(w)}",
                [trained(w) / MODEL],
                measured,
                (1.0,),
            )
            for w in self._weights
        ]
        return [*self.reference.stages(folder), *runs, dera, *sampled]

    def _content(self, compared: Sequence[dict]) -> report_content.ReportContent:
        policies = {"DeRa": "dera"}
        policies |= {
            f"trained, weights {lam_text(w)}": f"sampled_{_name(w)}" for w in self._weights
        }
        cells = compared_cells(compared)
        return report_content.ReportContent(
            title=f"Trade-off of {' and '.join(part.name for part in self.parts)}",
            tables=[report_content.ReportTable("DeRa and trained models", cells)],
            findings=sentences(compared),
            sources=[report_content.OutputSource(*policy) for policy in policies.items()],
        )

    @property
    def _weights(self) -> list[Weights]:
        """Returns the weights of all trained models, the two single rewards first."""
        single = [(1.0, 0.0), (0.0, 1.0)]
        return single + [tuple(w) for w in self.trained if tuple(w) not in single]

    @property
    def _lams(self) -> tuple[Weights, ...]:
        return tuple(itertools.product(self.grid, self.grid))

    def _check(self) -> None:
        """Validates the inputs of all stages now, so that no error appears only after training."""
        tokenizer = self.reference.tokenizer(self.documents.known_vocabulary())
        self.documents.read(tokenizer)
        settings = self.sweep(self._sum((1.0, 1.0)), self._lams)
        settings.reward.load(RunResources.of(tokenizer))
        for weights in self._weights:
            self.ppo(self.reference.shapes(), self._sum(weights), self.beta, self.seed)

    def _sum(self, weights: Weights) -> Combined:
        pairs = zip(self.parts, weights, strict=True)
        return Combined(tuple(dataclasses.replace(x, weight=w * x.weight) for x, w in pairs))


def _name(weights: Weights) -> str:
    return "_".join(f"{w:g}" for w in weights)


def compare(
    dera: Sequence[dict], trained: Mapping[Weights, Sequence[dict]], names: Sequence[str]
) -> list[dict]:
    """Compares each trained model with DeRa at λ = the model's weights.

    Args:
        dera: the records of the sweep over the grid.
        trained: the records of each trained model's samples, by its weights.
        names: the names of both parts.

    Returns:
        A row for each trained model: rewards, KL and length of DeRa and of the model, and their
        gaps (DeRa − trained), paired by document, with half the width of their 95 % intervals.
    """
    rows = []
    for weights, records_of_model in trained.items():
        row = {f"{_WEIGHT}{name}": w for name, w in zip(names, weights, strict=True)}
        for key in [*(f"{sweep.PART}{name}" for name in names), "kl", "length"]:
            mixed = _means(dera, key, list(weights))
            retrained = _means(records_of_model, key, 1.0)
            gaps = [[a - b] for a, b in zip(mixed, retrained, strict=True)]
            gap, interval = mean_interval(gaps)
            row |= {
                f"dera_{key}": sum(mixed) / len(mixed),
                f"trained_{key}": sum(retrained) / len(retrained),
                f"gap_{key}": gap,
                f"gap_{key}_ci95": interval,
            }
        rows.append(row)
    return rows


def _means(sampled: Sequence[dict], key: str, lam: float | list[float]) -> list[float]:
    """Returns for each document the mean of `key` over its samples at λ."""
    groups = [[s[key] for s in record["samples"] if s["lam"] == lam] for record in sampled]
    return [sum(group) / len(group) for group in groups]


def sentences(rows: Sequence[dict]) -> list[str]:
    """Returns a sentence on the largest gap between DeRa and a trained model in each column."""
    lines = []
    for key in [x.removeprefix("dera_") for x in rows[0] if x.startswith("dera_")]:
        row = max(rows, key=lambda row, key=key: abs(row[f"gap_{key}"]))
        weights = lam_text([x for name, x in row.items() if name.startswith(_WEIGHT)])
        error, digits = row[f"gap_{key}_ci95"], _DIGITS.get(key, 3)
        interval = "" if error is None else f" ± {error:.{digits}f}"
        lines.append(
            f"Largest gap between DeRa and the trained models in {key.removeprefix(sweep.PART)}: "
            f"{row[f'gap_{key}']:+.{digits}f}{interval}, at weights {weights}."
        )
    return lines


def compared_cells(rows: Sequence[dict]) -> list[list[str]]:
    """Returns the head and the lines of the table of the rows of `compare`, as texts."""
    names = [key.removeprefix(_WEIGHT) for key in rows[0] if key.startswith(_WEIGHT)]
    keys = [*(f"{sweep.PART}{name}" for name in names), "kl"]
    head = [f"weight of {name}" for name in names]
    titles = [key.removeprefix(sweep.PART) for key in keys]
    head += [f"{title}: {source}" for title in titles for source in ("DeRa", "trained", "gap")]
    lines = [
        [f"{row[f'{_WEIGHT}{name}']:g}" for name in names]
        + [
            f"{row[f'{source}_{key}']:.{_DIGITS.get(key, 3)}f}"
            + (
                f" ±{row[f'gap_{key}_ci95'] or 0:.{_DIGITS.get(key, 3)}f}"
                if source == "gap"
                else ""
            )
            for key in keys
            for source in ("dera", "trained", "gap")
        ]
        for row in rows
    ]
    return [head, *lines]
