"""Choosing λ, and with it the β = β₀/λ worth retraining with: the second use of DeRa in its paper.

A sweep over a coarse grid of λ, then over finer ones around the best λ so far. The encoder works
once: later sweeps start from its output.

Source: Liu et al. 2024 (arXiv 2402.02992).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import checks, json_files
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation import plots, sweep
from dera_jax.evaluation.jobs import Decoding
from dera_jax.evaluation.tables import write_csv

_OF_PAIRS = {"rollouts": 2, "epochs": 1, "minibatches": 1}  # DPO's updates: both texts of each pair


@dataclasses.dataclass(frozen=True)
class Rule:
    """The best mean reward among the λ that keep one limit.

    Attributes:
        max_kl: nats per text from the reference, at most.
        min_rouge_l: share of the reference's ROUGE-L, at least.

    Raises:
        ValueError: both limits, or neither, or one that the reference itself does not keep.
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
                "Rule needs one limit, max_kl or min_rouge_l; "
                f"found max_kl={self.max_kl} and min_rouge_l={self.min_rouge_l}"
            )

    def __str__(self) -> str:
        if self.max_kl is not None:
            return f"best mean reward with at most {self.max_kl:g} nats from the reference"
        return f"best mean reward with at least {self.min_rouge_l:.0%} of the reference's ROUGE-L"

    def limit(self, reference: Mapping) -> tuple[str, float]:
        """What is limited, and its limit; `reference` is the row of λ = 0 of `sweep.table`.

        Raises:
            ValueError: the reference's ROUGE-L is 0, so that every λ would keep the limit.
        """
        if self.max_kl is not None:
            return "kl", self.max_kl
        if not reference["rougeL"] > 0:
            raise ValueError(
                f"Rule.min_rouge_l={self.min_rouge_l}: the reference's ROUGE-L is "
                f"{reference['rougeL']:g}, so every λ would keep this limit. Are there human "
                "summaries, in the language of the generated ones? Or limit max_kl (MAX_KL)."
            )
        return "rougeL", self.min_rouge_l * reference["rougeL"]

    def allows(self, row: Mapping, reference: Mapping) -> bool:
        """Whether a row keeps the limit; the reference does, though rounding may say otherwise."""
        if row["lam"] == 0:
            return True
        key, bound = self.limit(reference)
        return row[key] <= bound if key == "kl" else row[key] >= bound


@dataclasses.dataclass(frozen=True)
class Choice:
    """A run that chooses λ.

    Attributes:
        decoding: the pair, the documents (of validation: test is for what was chosen), and the
            coarse grid of λ, 0 among them.
        rule: what is best.
        rounds: finer grids after the coarse one, each as large as it.

    Raises:
        ValueError: no reward, a grid of one λ, without λ = 0 or with negative λ, or a number of
            rounds that is none.
    """

    decoding: Decoding
    rule: Rule
    rounds: int

    def __post_init__(self):
        checks.check_fields(
            self,
            decoding=checks.instance(Decoding),
            rule=checks.instance(Rule),
            rounds=checks.whole(0),
        )
        checks.check(
            "Sweep.lams", self.decoding.sweep.lams, checks.several(LAMBDA, "(0.0, 1.0)", 2)
        )
        if self.decoding.sweep.reward is None:
            raise ValueError("Choice needs a reward: there is nothing to choose by without one")
        if min(self.decoding.sweep.lams) != 0:
            raise ValueError(
                "Choice needs a grid from λ = 0, the reference, upwards; "
                f"found {self.decoding.sweep.lams}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Sweeps coarse to fine; leaves each round's records, choice.csv and choice.png in `folder`.

        Returns:
            lam; beta (None for λ = 0: no β is better than no training); the chosen row; all rows;
            what the same grid would cost in training.
        """
        inputs = self.decoding.load()
        card = inputs.pair.cards[1]
        _check_card(card, self.decoding.aligned)
        rows, reference, prefills, settings = [], None, {}, self.decoding.sweep
        for number in range(self.rounds + 1):
            records = inputs.decode(settings, folder / f"round_{number}", prefills)
            table = sweep.table(records)
            reference = reference or table[0]  # λ = 0
            rows += [
                row | {"round": number, "allowed": self.rule.allows(row, reference)}
                for row in table
            ]
            best = choose(rows)
            lams = refine([row["lam"] for row in rows], best["lam"], len(settings.lams))
            if len({*lams, *(row["lam"] for row in rows)}) < len(lams) + len(rows):
                break  # the grid is as fine as `refine` makes it
            settings = dataclasses.replace(settings, lams=lams)
        rows.sort(key=lambda row: row["lam"])
        beta = card["beta"] / best["lam"] if best["lam"] else None
        cost = training_cost(card, [row["lam"] for row in rows])
        result = {"rule": str(self.rule), "lam": best["lam"], "beta": beta, "chosen": best}
        result |= {"beta_0": card["beta"], "rows": rows, "training_the_grid": cost}
        json_files.write(folder / "choice.json", result)
        write_csv(folder / "choice.csv", rows)
        plots.plot_choice(rows, best, self.rule.limit(reference), folder / "choice.png")
        print(sweep.format_table(rows))
        print("\n".join(sentences(result)))
        return {key: result[key] for key in ("rule", "lam", "beta", "training_the_grid")}


def choose(rows: Sequence[Mapping]) -> Mapping:
    """The allowed row of the highest mean reward; of equals the one of the smallest λ."""
    allowed = [row for row in rows if row["allowed"]]
    return max(allowed, key=lambda row: (row["reward"], -row["lam"]))


def refine(lams: Sequence[float], best: float, count: int) -> tuple[float, ...]:
    """`count` new λ between `best` and its neighbours among `lams`, evenly on either side."""
    lower = sorted(lam for lam in lams if lam < best)
    upper = sorted(lam for lam in lams if lam > best)
    sides = lower[-1:] + upper[:1]
    counts = [count] if len(sides) == 1 else [count // 2, count - count // 2]
    new = [np.linspace(best, side, n + 2)[1:-1] for side, n in zip(sides, counts, strict=True)]
    return tuple(sorted(round(float(lam), 4) for lam in np.concatenate(new)))


def training_cost(card: Mapping, lams: Sequence[float]) -> dict[str, int]:
    """What it would take to train a model for every λ other than 0 and 1, each like the aligned one.

    Returns:
        runs; texts learnt from in all of them; updates of the parameters.
    """
    runs = len(set(lams) - {0.0, 1.0})
    use = card.get("updates", _OF_PAIRS)
    return {
        "runs": runs,
        "texts": runs * card["step"] * card["data"]["batch_size"] * use["rollouts"],
        "updates": runs * card["step"] * use["epochs"] * use["minibatches"],
    }


def sentences(result: Mapping) -> list[str]:
    """The choice, in words."""
    rows, chosen, cost = result["rows"], result["chosen"], result["training_the_grid"]
    decoded = sum(row["samples"] for row in rows)
    saved = (
        f"{len(rows)} λ were tried by decoding {decoded:,} texts; as runs like the aligned model's "
        f"they would be {cost['runs']} with {cost['texts']:,} texts and {cost['updates']:,} updates."
    )
    if result["beta"] is None:
        return [f"{result['rule']}: λ = 0, the reference itself; no β is worth training.", saved]
    error = chosen["reward_ci95"]
    interval = "" if error is None else f" ± {error:.3f}"
    what = f"mean reward {chosen['reward']:.3f}{interval}, {chosen['kl']:.2f} nats"
    what = f"{what}, ROUGE-L {chosen['rougeL']:.1f}"
    ratio = f"{result['beta_0']:g}/{chosen['lam']:g} = {result['beta']:.4g}"
    found = [
        f"{result['rule']}: λ = {chosen['lam']:g} ({what}).",
        f"Decode at this λ, or retrain with β = β₀/λ = {ratio}.",
        saved,
    ]
    if chosen["lam"] == rows[-1]["lam"]:
        found.append("It is the largest λ tried: a grid that goes further may find a better one.")
    return found


def _check_card(card: Mapping, folder: str) -> None:
    missing = [key for key in ("beta", "step", "data") if key not in card]
    if missing:
        raise ValueError(
            f"{folder}/card.json does not say {' nor '.join(map(repr, missing))}: choosing β = β₀/λ "
            "needs to know how the aligned model was trained"
        )
