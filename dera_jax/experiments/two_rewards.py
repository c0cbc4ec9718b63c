"""Two rewards, two aligned models, and every trade-off between them at decoding time.

    SFT (unless a reference is given) → PPO on each reward alone → one sweep over a grid of
    λ = (λ₁, λ₂) → PPO on weighted sums, to compare → the frontier of the two rewards

With optimal models, log π_i = log π_ref + r_i/β − log Z_i, so the mixture at (λ₁, λ₂) is, over whole texts,
the optimum for the reward λ₁·r₁ + λ₂·r₂ at strength β: what training on that weighted sum aims at
(decoding-time realignment of Liu et al. 2024, arXiv 2402.02992, with several models; compare Shi et al. 2024,
arXiv 2406.18853).
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dera_jax import checks, json_files
from dera_jax.checkpoints.loading import Loaded, load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import metrics, plots, sweep
from dera_jax.evaluation.jobs import SPLIT, Split
from dera_jax.evaluation.tables import in_columns, write_csv
from dera_jax.experiments.stages import (
    Reference,
    Stage,
    decode_pair,
    records,
    run_all,
    sweep_needs,
)
from dera_jax.rewards.combined import Combined, Part
from dera_jax.training.alignment import MODEL, Alignment
from dera_jax.training.dry_run import Need
from dera_jax.training.ppo import Objective

FIGURE = "frontier.png"
Weights = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class TwoRewards:
    """The experiment.

    Attributes:
        reference: the model to realign.
        parts: the two rewards; a weight of 1 in a sum, and λ = 1, mean the part's own weight.
        align: makes a PPO run of a loaded reference, `objective` and `seed`.
        max_length: tokens of a text at most.
        beta: β of every PPO run.
        seed: of every PPO run and of the sweep.
        grid: values of λ₁ and of λ₂.
        trained: weights of the sums that models are trained on, beside (1, 0) and (0, 1).
        documents: held-out documents.
        num_samples: of each document at each (λ₁, λ₂).
        batch_size: documents at once.

    Raises:
        ValueError: not two parts, or trained weights that are not on the grid.
    """

    reference: Reference
    parts: tuple[Part, ...]
    align: Callable[..., Alignment]
    max_length: int
    beta: float
    seed: int
    grid: tuple[float, ...]
    trained: tuple[Weights, ...]
    documents: Split
    num_samples: int
    batch_size: int

    def __post_init__(self):
        amount = checks.number()
        pairs = checks.several(checks.several(amount, "(0.5, 0.5)", 2), "((0.5, 0.5),)", least=0)
        checks.check_fields(
            self,
            reference=checks.instance(Reference),
            parts=checks.several(checks.instance(Part), "(Part(...), Part(...))"),
            align=checks.FUNCTION,
            max_length=checks.whole(1),
            beta=checks.number(above=0),
            seed=checks.SEED,
            grid=checks.several(amount, "(0.0, 0.5, 1.0)"),
            trained=pairs,
            documents=SPLIT,
            num_samples=checks.whole(1),
            batch_size=checks.whole(1),
        )
        checks.check_distinct("TwoRewards.grid", self.grid)
        if len(self.parts) != 2:
            raise ValueError(f"TwoRewards needs two parts; found {len(self.parts)}")
        off = [w for w in self._weights if not set(w) <= set(self.grid)]
        if off:
            raise ValueError(
                f"TwoRewards.trained must be on the grid {self.grid}, to be compared; found {off}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves frontier.png, frontier.json and .csv.

        Returns:
            The rows of `compare`.
        """
        self._check()
        run_all(self.stages(folder))
        dera = records(folder / "dera")
        trained = {w: records(folder / f"sampled_{_name(w)}") for w in self._weights}
        names = [part.name for part in self.parts]
        rows = sweep.table(dera)
        trained_rows = [sweep.table(found)[0] | {"lam": w} for w, found in trained.items()]
        compared = compare(dera, trained, names)
        content = {"dera": rows, "trained": trained_rows, "compared": compared}
        json_files.write(folder / "frontier.json", content)
        write_csv(folder / "frontier.csv", compared)
        plots.plot_two_rewards(rows, trained_rows, names, folder / FIGURE)
        print(format_compared(compared, names))
        return {"compared": compared}

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take; every PPO run takes what the first does."""
        like = self.reference.shapes()
        return [
            *self.reference.needs(),
            *self._alignment(like, self._weights[0]).needs(),
            *sweep_needs(like.model, self.documents, self._settings(self._lams), num_aligned=2),
        ]

    def stages(self, folder: Path) -> list[Stage]:
        """In order; each reads what the ones before it left."""
        runs = [
            Stage(f"PPO, weights {w}", folder / f"ppo_{_name(w)}", self._train(folder, w))
            for w in self._weights
        ]
        both = [folder / f"ppo_{_name(w)}" / MODEL for w in self._weights[:2]]
        dera = Stage("DeRa", folder / "dera", self._decode(folder, both, self._lams))
        sampled = [
            Stage(
                f"samples, weights {w}",
                folder / f"sampled_{_name(w)}",
                self._decode(folder, [folder / f"ppo_{_name(w)}" / MODEL], (1.0,)),
            )
            for w in self._weights
        ]
        return [*self.reference.stages(folder), *runs, dera, *sampled]

    @property
    def _weights(self) -> list[Weights]:
        """The two single rewards first."""
        single = [(1.0, 0.0), (0.0, 1.0)]
        return single + [tuple(w) for w in self.trained if tuple(w) not in single]

    @property
    def _lams(self) -> tuple[Weights, ...]:
        return tuple(itertools.product(self.grid, self.grid))

    def _check(self) -> None:
        """Reads and makes what the last stages need, lest an error is found after hours of training."""
        text = self.reference.tokenizer(self.documents.known_vocabulary())
        self.documents.read(text)
        settings = self._settings(self._lams)
        settings.reward.load(RunResources(text.vocabulary))
        for weights in self._weights:
            self._alignment(self.reference.shapes(), weights)

    def _train(self, folder: Path, weights: Weights) -> Callable:
        def train(where: Path) -> Mapping[str, object]:
            reference = load(self.reference.path(folder))
            return self._alignment(reference, weights).run(where)

        return train

    def _alignment(self, reference: Loaded, weights: Weights) -> Alignment:
        objective = Objective(self._sum(weights), self.max_length, self.beta)
        return self.align(reference, objective=objective, seed=self.seed)  # see LengthReward

    def _sum(self, weights: Weights) -> Combined:
        pairs = zip(self.parts, weights, strict=True)
        return Combined(tuple(dataclasses.replace(x, weight=w * x.weight) for x, w in pairs))

    def _decode(self, folder: Path, aligned: Sequence[Path], lams: Sequence) -> Callable:
        settings = self._settings(tuple(lams))
        reference = self.reference.path(folder)
        return lambda where: decode_pair(reference, aligned, self.documents, settings, where)

    def _settings(self, lams: tuple) -> sweep.Sweep:
        reward = self._sum((1.0, 1.0))
        sampling = Sampling(self.max_length)
        return sweep.Sweep(lams, self.num_samples, sampling, reward, self.batch_size, self.seed)


def _name(weights: Weights) -> str:
    return "_".join(f"{w:g}" for w in weights)


def compare(
    dera: Sequence[dict], trained: Mapping[Weights, Sequence[dict]], names: Sequence[str]
) -> list[dict]:
    """A row for each trained model: its two rewards and KL, DeRa's at λ = its weights, and the gaps.

    Gaps (DeRa − trained) are paired by document, with half the width of their 95 % intervals.
    """
    rows = []
    for weights, found in trained.items():
        row = {f"weight_{name}": w for name, w in zip(names, weights, strict=True)}
        for key in [*(f"{sweep.PART}{name}" for name in names), "kl", "length"]:
            ours, theirs = _means(dera, key, list(weights)), _means(found, key, 1.0)
            gaps = [[a - b] for a, b in zip(ours, theirs, strict=True)]
            gap, interval = metrics.mean_interval(gaps)
            row |= {
                f"dera_{key}": sum(ours) / len(ours),
                f"trained_{key}": sum(theirs) / len(theirs),
                f"gap_{key}": gap,
                f"gap_{key}_ci95": interval,
            }
        rows.append(row)
    return rows


def _means(found: Sequence[dict], key: str, lam: float | list[float]) -> list[float]:
    """Per document, the mean over its samples at λ."""
    groups = [[s[key] for s in record["samples"] if s["lam"] == lam] for record in found]
    return [sum(group) / len(group) for group in groups]


def format_compared(rows: Sequence[dict], names: Sequence[str]) -> str:
    """The rows of `compare` for a terminal."""
    keys = [*(f"{sweep.PART}{name}" for name in names), "kl"]
    head = [f"weight of {name}" for name in names]
    titles = [key.removeprefix(sweep.PART) for key in keys]
    head += [f"{title}: {what}" for title in titles for what in ("DeRa", "trained", "gap")]
    lines = [
        [f"{row[f'weight_{name}']:g}" for name in names]
        + [
            f"{row[f'{what}_{key}']:.3f}"
            + (f" ±{row[f'gap_{key}_ci95'] or 0:.3f}" if what == "gap" else "")
            for key in keys
            for what in ("dera", "trained", "gap")
        ]
        for row in rows
    ]
    return in_columns([head, *lines])
