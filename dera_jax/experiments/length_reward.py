"""The DeRa paper's first experiment: one aligned model, realigned, against models retrained.

    SFT (unless a reference is given) → the reference's in-range rate → PPO at β₀/λ for every λ of a
    short grid, λ = 1 being the aligned model → DeRa's λ sweep → the retrained models on the same
    documents → figures, report

Source: Liu et al. 2024 (arXiv 2402.02992), the length experiment. Beyond the paper: the closed form that a 0/−1
reward has, and for each PPO run how near it came to its optimum.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import checks, run_folder
from dera_jax.checkpoints.loading import Loaded, load
from dera_jax.decoding.realign import LAMBDA
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import comparison, report, sweep
from dera_jax.evaluation.jobs import SPLIT, Split
from dera_jax.evaluation.lengths import LengthSurvey
from dera_jax.experiments.stages import (
    Reference,
    Stage,
    decode_pair,
    records,
    run_all,
    sweep_needs,
)
from dera_jax.training.alignment import MODEL, Alignment
from dera_jax.training.dry_run import Need
from dera_jax.training.ppo import Objective


@dataclasses.dataclass(frozen=True)
class LengthReward:
    """The experiment.

    Attributes:
        reference: the model to realign.
        align: makes a PPO run of a loaded reference, `objective` and `seed`.
        objective: the length reward, and β₀ at λ = 1.
        seeds: of the PPO runs; all is done for each.
        lams: of the DeRa sweep.
        retrained: λ of the models retrained at β₀/λ; 1, the aligned model, is always there.
        documents: held-out documents.
        num_samples: of each document, at each λ of each seed.
        reference_samples: of each document, for the closed form.
        batch_size: documents at once.

    Raises:
        ValueError: a retrained λ that is not in the sweep, which it is to be compared with.
    """

    reference: Reference
    align: Callable[..., Alignment]
    objective: Objective
    seeds: tuple[int, ...]
    lams: tuple[float, ...]
    retrained: tuple[float, ...]
    documents: Split
    num_samples: int
    reference_samples: int
    batch_size: int

    def __post_init__(self):
        sizes = ("num_samples", "reference_samples", "batch_size")
        checks.check_fields(
            self,
            reference=checks.instance(Reference),
            align=checks.FUNCTION,
            objective=checks.instance(Objective),
            seeds=checks.several(checks.SEED, "(0, 1)"),
            lams=checks.several(LAMBDA, "(0.5, 1.0, 2.0)"),
            retrained=checks.several(checks.number(above=0), "(0.5, 2.0)", least=0),
            documents=SPLIT,
            **dict.fromkeys(sizes, checks.whole(1)),
        )
        for name in ("seeds", "lams"):
            checks.check_distinct(f"LengthReward.{name}", getattr(self, name))
        missing = sorted(set(self._grid) - set(self.lams))
        if missing:
            raise ValueError(
                "LengthReward.retrained and λ = 1 must be among LengthReward.lams "
                f"{self.lams}; found {self._grid}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves figures, CSV files and report.html in `folder`.

        Returns:
            The largest gaps between DeRa and retrained; all else is in comparison.json.

        Raises:
            ValueError: none of the reference's samples, or all of them, are in the length range.
        """
        self._check()
        run_all(self.stages(folder))
        rows = self.compare(folder)["comparison"]
        return {
            f"largest_gap_{key}": comparison.largest_gap(rows, key)
            for key in ("reward", "length", "kl")
        }

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take; the runs at the other β take what the first does."""
        like = self.reference.shapes()
        alignment = self._alignment(like, self.objective, self.seeds[0])
        decode = sweep_needs(like.model, self.documents, self._settings(self.lams))
        return [*self.reference.needs(), *alignment.needs(), *decode]

    def stages(self, folder: Path) -> list[Stage]:
        """In order; each reads what the ones before it left."""
        stages = self.reference.stages(folder)
        stages.append(Stage("reference's lengths", folder / "reference", self._survey(folder)))
        runs = [(lam, seed) for seed in self.seeds for lam in self._grid]
        for lam, seed in runs:
            name = f"PPO, β {self._beta(lam):g}, seed {seed}"
            stages.append(Stage(name, self._ppo(folder, lam, seed), self._align(folder, lam, seed)))
        for seed in self.seeds:
            decode = self._decode(folder, self._ppo(folder, 1.0, seed), self.lams)
            stages.append(Stage(f"DeRa, seed {seed}", folder / f"dera_seed_{seed}", decode))
        for lam, seed in runs:
            decode = self._decode(folder, self._ppo(folder, lam, seed), (1.0,))
            where = folder / f"retrained_lam_{lam:g}_seed_{seed}"
            stages.append(Stage(f"retrained, λ {lam:g}, seed {seed}", where, decode))
        return stages

    def compare(self, folder: Path) -> dict[str, object]:
        """Reads the stages' records and writes what the experiment shows."""
        dera = comparison.pool([records(folder / f"dera_seed_{seed}") for seed in self.seeds])
        retrained = {
            lam: [records(folder / f"retrained_lam_{lam:g}_seed_{seed}") for seed in self.seeds]
            for lam in self._grid
        }
        shares = np.asarray(run_folder.result(folder / "reference")["shares"])
        result = comparison.compare(dera, retrained, shares, self.objective, self.seeds)
        comparison.write(result, dera, retrained, folder)
        report.write(
            folder / "report.html",
            title="DeRa and the length reward",
            facts=comparison.sentences(result),
            figures=[folder / name for name in comparison.FIGURES],
            rows=result["comparison"],
            records=records(folder / f"dera_seed_{self.seeds[0]}"),
        )
        print(comparison.format_comparison(result["comparison"]))
        print("\n".join(comparison.sentences(result)))
        return result

    @property
    def _grid(self) -> tuple[float, ...]:
        return tuple(sorted({1.0, *self.retrained}))

    def _beta(self, lam: float) -> float:
        return self.objective.beta / lam

    def _ppo(self, folder: Path, lam: float, seed: int) -> Path:
        return folder / f"ppo_lam_{lam:g}_seed_{seed}"

    def _check(self) -> None:
        """Reads and makes what the last stages need, lest an error is found after hours of training."""
        self.documents.read(self.reference.tokenizer(self.documents.known_vocabulary()))
        self._settings(self.lams)
        reference = self.reference.shapes()
        for lam in self._grid:
            self._alignment(reference, self._objective(lam), self.seeds[0])

    def _objective(self, lam: float) -> Objective:
        return dataclasses.replace(self.objective, beta=self._beta(lam))

    def _align(self, folder: Path, lam: float, seed: int) -> Callable:
        objective = self._objective(lam)

        def align(where: Path) -> Mapping[str, object]:
            reference = load(self.reference.path(folder))
            return self._alignment(reference, objective, seed).run(where)

        return align

    def _alignment(self, reference: Loaded, objective: Objective, seed: int) -> Alignment:
        # By position: gin makes the value bound to a parameter, here it would load a model, even
        # where the caller names the parameter.
        return self.align(reference, objective=objective, seed=seed)

    def _survey(self, folder: Path) -> Callable:
        def survey(where: Path) -> Mapping[str, object]:
            del where
            reference = load(self.reference.path(folder))
            lengths, finished = LengthSurvey(
                reference,
                self.documents,
                self.objective.max_length,
                self.reference_samples,
                self.batch_size,
            ).sample()
            inside = self.objective.reward.contains(lengths, finished)
            self._check_rate(float(np.mean(inside)), folder)
            return {"shares": np.mean(inside, axis=-1).tolist()}

        return survey

    def _check_rate(self, rate: float, folder: Path) -> None:
        """Raises ValueError where PPO would see one reward only, and could learn nothing."""
        if 0 < rate < 1:
            return
        reward, path = self.objective.reward, self.reference.path(folder)
        kept = (
            f" To keep the trained reference, set stages.Reference.folder to {str(path)!r} and "
            "stages.Reference.training to None."
            if self.reference.training
            else ""
        )
        raise ValueError(
            f"{rate:.0%} of the reference's samples are in the length range, {reward.low} to "
            f"{reward.high} tokens, so that PPO would see one reward only. Set LOW and HIGH "
            "(length.LengthInRange.low and .high) to what gin_configs/runs/lengths.gin finds for "
            f"the model in {path}, and choose another MODEL_DIR.{kept}"
        )

    def _decode(self, folder: Path, aligned: Path, lams: Sequence[float]) -> Callable:
        def decode(where: Path) -> Mapping[str, object]:
            reference, settings = self.reference.path(folder), self._settings(lams)
            return decode_pair(reference, [aligned / MODEL], self.documents, settings, where)

        return decode

    def _settings(self, lams: Sequence[float]) -> sweep.Sweep:
        sampling = Sampling(self.objective.max_length)
        reward = self.objective.reward
        return sweep.Sweep(tuple(lams), self.num_samples, sampling, reward, self.batch_size, seed=0)
