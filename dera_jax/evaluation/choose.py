"""Chooses λ by decoding, and with it the KL coefficient β = β₀/λ for a later training run.

A first sweep covers a coarse grid of λ; later sweeps refine the grid around the best λ so far. The
prompts are prefilled once, and all sweeps start from the same model states.

Source: Liu et al. 2024 (arXiv 2402.02992), the second use of DeRa in the paper.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import checks
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation import report_content, sweep_tables
from dera_jax.evaluation.pair_sweep import PairSweep
from dera_jax.evaluation.report_content import OutputSource, ReportContent
from dera_jax.evaluation.tables import write_csv
from dera_jax.files import json_files

# For DPO, whose card has no `updates`: a pair has two sequences, and a step is one update.
_DPO_UPDATES = {"rollouts": 2, "epochs": 1, "minibatches": 1}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Selects the λ with the highest mean reward among those that satisfy one constraint.

    Attributes:
        max_kl: upper limit of the mean KL to the reference, in nats per sequence.
        min_rouge_l: lower limit of ROUGE-L, as a fraction of the reference's, in [0, 1].

    Raises:
        ValueError: both limits or neither are set, or the reference itself would violate the limit
            (max_kl < 0 or min_rouge_l > 1).
    """

    max_kl: float | None = None
    min_rouge_l: float | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            max_kl=checks.optional(checks.number(least=0)),
            min_rouge_l=checks.optional(checks.number(least=0, most=1)),
        )
        if (self.max_kl is None) == (self.min_rouge_l is None):
            raise ValueError(
                "Rule needs exactly one limit, max_kl or min_rouge_l; "
                f"found max_kl={self.max_kl} and min_rouge_l={self.min_rouge_l}"
            )

    def __str__(self) -> str:
        if self.max_kl is not None:
            return f"highest mean reward with KL to the reference at most {self.max_kl:g} nats"
        return (
            f"highest mean reward with at least {self.min_rouge_l:.0%} of the reference's ROUGE-L"
        )

    def limit(self, reference: Mapping) -> tuple[str, float]:
        """Returns the name of the limited column and the value of its limit.

        Args:
            reference: the row of λ = 0 of `sweep_tables.table`.

        Raises:
            ValueError: the reference's ROUGE-L is 0, so that every λ would satisfy the limit.
        """
        if self.max_kl is not None:
            return "kl", self.max_kl
        if not reference.get("rougeL", 0.0) > 0:
            raise ValueError(
                f"Rule.min_rouge_l={self.min_rouge_l}: the reference's ROUGE-L is "
                f"{reference.get('rougeL', 0.0):g}, so every λ would satisfy this limit. Check that there are "
                "human summaries in the language of the outputs, or limit max_kl (MAX_KL)."
            )
        return "rougeL", self.min_rouge_l * reference["rougeL"]

    def allows(self, row: Mapping, reference: Mapping) -> bool:
        """Returns whether a row satisfies the limit; λ = 0 always does, whatever rounding gives."""
        if row["lam"] == 0:
            return True
        key, bound = self.limit(reference)
        return row[key] <= bound if key == "kl" else row[key] >= bound


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chooses λ by sweeps from a coarse grid to finer ones.

    Attributes:
        decoding: the model pair, the documents (validation documents, so that the test split stays
            unseen), the reward, and the coarse grid of λ, which must contain 0.
        rule: the criterion by which λ is chosen.
        rounds: number of refined grids after the coarse one; each has as many λ as the coarse one.

    Raises:
        ValueError: there is no reward; the grid has a single λ, no λ = 0, a negative λ or vectors
            of λ; or `rounds` is not an integer of at least 0.
    """

    decoding: PairSweep
    rule: Rule
    rounds: int

    def __post_init__(self):
        checks.check_fields(
            self,
            decoding=checks.instance(PairSweep),
            rule=checks.instance(Rule),
            rounds=checks.integer(0),
        )
        checks.check(
            "Sweep.lams", self.decoding.sweep.lams, checks.sequence(LAMBDA, "(0.0, 1.0)", 2)
        )
        if self.decoding.sweep.reward is None:
            raise ValueError("Choice needs a reward to choose λ by; set Sweep.reward")
        if min(self.decoding.sweep.lams) != 0:
            raise ValueError(
                "Choice needs a grid that starts from λ = 0 (the reference) and has no negative λ; "
                f"found Sweep.lams = {self.decoding.sweep.lams}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs all sweeps; writes each round's records, choice.json, .csv and .png, and report.json.

        Returns:
            `rule` in words; `lam`; `beta`, None for λ = 0, where no β is worth training; and
            `training_the_grid`, see `training_cost`.
        """
        inputs = self.decoding.load()
        card = inputs.pair.cards[1]
        _check_card(card, self.decoding.aligned)
        rows, reference, prefills, sweep = [], None, {}, self.decoding.sweep
        for number in range(self.rounds + 1):
            records = inputs.decode(sweep, folder / f"round_{number}", prefills)
            table = sweep_tables.table(records)
            reference = reference or table[0]  # λ = 0, in the first round's grid
            rows += [
                row | {"round": number, "allowed": self.rule.allows(row, reference)}
                for row in table
            ]
            best = choose(rows)
            lams = refine([row["lam"] for row in rows], best["lam"], len(sweep.lams))
            if len({*lams, *(row["lam"] for row in rows)}) < len(lams) + len(rows):
                break  # rounded to 4 digits, a λ repeats: the grid cannot be refined further
            sweep = dataclasses.replace(sweep, lams=lams)
        rows.sort(key=lambda row: row["lam"])
        beta = card["beta"] / best["lam"] if best["lam"] else None
        cost = training_cost(card, [row["lam"] for row in rows])
        result = {"rule": str(self.rule), "lam": best["lam"], "beta": beta, "chosen": best}
        result |= {"beta_0": card["beta"], "rows": rows, "training_the_grid": cost}
        json_files.write(folder / "choice.json", result)
        write_csv(folder / "choice.csv", rows)
        from dera_jax.evaluation import plots  # imports matplotlib

        plots.plot_choice(rows, best, self.rule.limit(reference), folder / "choice.png")
        report_content.conclude(content(result), folder)
        return {key: result[key] for key in ("rule", "lam", "beta", "training_the_grid")}


def choose(rows: Sequence[Mapping]) -> Mapping:
    """Returns the allowed row with the highest mean reward; ties go to the smallest λ."""
    allowed = [row for row in rows if row["allowed"]]
    return max(allowed, key=lambda row: (row["reward"], -row["lam"]))


def refine(lams: Sequence[float], best: float, count: int) -> tuple[float, ...]:
    """Returns `count` new λ, evenly spaced between `best` and its neighbours among `lams`."""
    lower = sorted(lam for lam in lams if lam < best)
    upper = sorted(lam for lam in lams if lam > best)
    sides = lower[-1:] + upper[:1]
    counts = [count] if len(sides) == 1 else [count // 2, count - count // 2]
    new = [np.linspace(best, side, n + 2)[1:-1] for side, n in zip(sides, counts, strict=True)]
    return tuple(sorted(round(float(lam), 4) for lam in np.concatenate(new)))


def training_cost(card: Mapping, lams: Sequence[float]) -> dict[str, int]:
    """Returns the cost of training a model for every λ other than 0 and 1, each as `card` says.

    Returns:
        `runs`, the number of runs; `texts`, the sequences trained on in all runs; and `updates`,
        their parameter updates.
    """
    runs = len(set(lams) - {0.0, 1.0})
    updates = card.get("updates", _DPO_UPDATES)
    return {
        "runs": runs,
        "texts": runs * card["step"] * card["data"]["batch_size"] * updates["rollouts"],
        "updates": runs * card["step"] * updates["epochs"] * updates["minibatches"],
    }


def content(result: Mapping) -> ReportContent:
    """Returns what the report shows of the result of a choice: every λ, and the outputs of all rounds."""
    cells = sweep_tables.cells(result["rows"])
    allowed = ["within the limit", *("yes" if row["allowed"] else "no" for row in result["rows"])]
    lines = [[*line, cell] for line, cell in zip(cells, allowed, strict=True)]
    table = sweep_tables.table_of("Means for each λ", lines)
    rounds = sorted({row["round"] for row in result["rows"]})
    sources = [OutputSource("", f"round_{number}") for number in rounds]
    return ReportContent("Choice of λ", [table], describe_choice(result), sources)


def describe_choice(result: Mapping) -> list[str]:
    """Describes the choice in sentences for a terminal."""
    rows, chosen, cost = result["rows"], result["chosen"], result["training_the_grid"]
    decoded = sum(row["samples"] for row in rows)
    saved = (
        f"{len(rows)} λ were evaluated by decoding {decoded:,} sequences. Training a model for "
        f"each would take {cost['runs']} runs like the aligned model's, with {cost['texts']:,} "
        f"sequences and {cost['updates']:,} parameter updates."
    )
    if result["beta"] is None:
        return [f"{result['rule']}: λ = 0, the reference itself; no β is worth training.", saved]
    error = chosen["reward_ci95"]
    interval = "" if error is None else f" ± {error:.3f}"
    metrics = f"mean reward {chosen['reward']:.3f}{interval}, KL {chosen['kl']:.2f} nats"
    if "rougeL" in chosen:
        metrics = f"{metrics}, ROUGE-L {chosen['rougeL']:.1f}"
    ratio = f"{result['beta_0']:g}/{chosen['lam']:g} = {result['beta']:.4g}"
    lines = [
        f"{result['rule']}: λ = {chosen['lam']:g} ({metrics}).",
        f"Decode at this λ, or retrain with β = β₀/λ = {ratio}.",
        saved,
    ]
    if chosen["lam"] == rows[-1]["lam"]:
        lines.append("This is the largest λ tried; a grid with larger λ may contain a better one.")
    return lines


def _check_card(card: Mapping, folder: str) -> None:
    missing = [key for key in ("beta", "step", "data") if key not in card]
    if missing:
        raise ValueError(
            f"{folder}/card.json does not say {' nor '.join(map(repr, missing))}, needed for "
            "β = β₀/λ and the cost of training; use a model aligned by this package, or add them"
        )
