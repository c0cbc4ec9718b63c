"""Runs the length experiment of the DeRa paper: one realigned model against retrained models.

    SFT (unless a reference is given) → the reference's in-range rate → PPO at β₀/λ for every λ of a
    short grid, λ = 1 being the aligned model → DeRa's λ sweep → the retrained models on the same
    documents → figures, report

Source: Liu et al. 2024 (arXiv 2402.02992), the length experiment. Two things are added: the optimal
policy's in-range rate, which has a closed form for a 0/−1 reward, and for each PPO run the slope
that shows how close the policy is to its optimum.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.loading import load
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation import report_content
from dera_jax.evaluation.lengths import LengthSurvey
from dera_jax.experiments import comparison
from dera_jax.experiments.alignment_experiment import SweepExperiment
from dera_jax.experiments.stages import Stage, read_records, run_all
from dera_jax.files import run_folder
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import check_limit
from dera_jax.training.dry_run import ProgramCost
from dera_jax.training.ppo_training import MODEL


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthReward(SweepExperiment):
    """Compares DeRa's λ sweep with models retrained at β₀/λ on a length reward.

    `beta` is β₀, the KL coefficient of the aligned model (λ = 1); `seed` is the seed of the sweeps.

    Attributes:
        reward: the length reward.
        seeds: the seeds of the PPO runs; PPO and the sweeps are run for each of them.
        lams: the values of λ of the DeRa sweep.
        retrained: the values of λ of the models retrained at β₀/λ; λ = 1 (aligned) is added.
        reference_samples: the number of samples per document for the reference's in-range rate.

    Raises:
        ValueError: a field is out of its range, or a retrained λ is missing from `lams`.
    """

    reward: LengthInRange
    seeds: tuple[int, ...]
    lams: tuple[float, ...]
    retrained: tuple[float, ...]
    reference_samples: int

    def __post_init__(self):
        super().__post_init__()
        checks.check_fields(
            self,
            reward=checks.instance(LengthInRange),
            seeds=checks.sequence(checks.SEED, "(0, 1)"),
            lams=checks.sequence(LAMBDA, "(0.5, 1.0, 2.0)"),
            retrained=checks.sequence(checks.number(above=0), "(0.5, 2.0)", least=0),
            reference_samples=checks.integer(1),
        )
        check_limit(self.reward, self.max_length)
        for name in ("seeds", "lams"):
            checks.check_distinct(f"LengthReward.{name}", getattr(self, name))
        missing = sorted(set(self._grid) - set(self.lams))
        if missing:
            raise ValueError(
                "LengthReward.retrained and λ = 1 must be among LengthReward.lams "
                f"{self.lams}, to be compared with the sweep; {missing} are not: add them to lams"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs all unfinished stages and writes figures, CSV files and report.json to `folder`.

        Returns:
            The largest gaps between DeRa and the retrained models; comparison.json has all results.

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

    def program_costs(self) -> list[ProgramCost]:
        """Returns the costs of the stages' steps; PPO, the same at every β, is listed once."""
        ppo = self.ppo(self.reference.shapes(), self.reward, self.beta, self.seeds[0])
        return [
            *self.reference.program_costs(),
            *ppo.program_costs(),
            *self.sweep_costs(self.reward, self.lams),
        ]

    def stages(self, folder: Path) -> list[Stage]:
        """Returns the stages in order; each reads the outputs of earlier ones."""
        stages = self.reference.stages(folder)
        stages.append(Stage("reference's lengths", folder / "reference", self._survey(folder)))
        reward = lambda: self.reward
        runs = [(lam, seed) for seed in self.seeds for lam in self._grid]
        for lam, seed in runs:
            beta, where = self.beta / lam, self._ppo_folder(folder, lam, seed)
            name = f"PPO, β {beta:g}, seed {seed}"
            stages.append(self.ppo_stage(name, folder, where, reward, beta, seed))
        for seed in self.seeds:
            aligned, where = self._model(folder, 1.0, seed), folder / f"dera_seed_{seed}"
            name = f"DeRa, seed {seed}"
            stages.append(self.sweep_stage(name, folder, where, [aligned], reward, self.lams))
        for lam, seed in runs:
            aligned = self._model(folder, lam, seed)
            where = folder / f"retrained_lam_{lam:g}_seed_{seed}"
            name = f"retrained, λ {lam:g}, seed {seed}"
            stages.append(self.sweep_stage(name, folder, where, [aligned], reward, (1.0,)))
        return stages

    def compare(self, folder: Path) -> dict[str, object]:
        """Reads the sweeps' records; writes and returns the tables of `comparison.compare`."""
        dera = comparison.pool([read_records(folder / f"dera_seed_{seed}") for seed in self.seeds])
        retrained = {
            lam: [
                read_records(folder / f"retrained_lam_{lam:g}_seed_{seed}") for seed in self.seeds
            ]
            for lam in self._grid
        }
        rates = np.asarray(run_folder.result(folder / "reference")["rates"])
        result = comparison.compare(dera, retrained, rates, self.beta, self.seeds)
        comparison.write(result, dera, retrained, folder)
        report_content.conclude(self._content(result), folder)
        return result

    def _content(self, result: Mapping) -> report_content.ReportContent:
        seed = self.seeds[0]
        policies = {"DeRa": f"dera_seed_{seed}"}
        policies |= {
            f"retrained, λ = {lam:g}": f"retrained_lam_{lam:g}_seed_{seed}" for lam in self._grid
        }
        cells = comparison.cells(result["comparison"])
        return report_content.ReportContent(
            title="DeRa and the length reward",
            tables=[report_content.ReportTable("DeRa and models retrained at β₀/λ", cells)],
            findings=comparison.sentences(result),
            sources=[report_content.OutputSource(*policy) for policy in policies.items()],
        )

    @property
    def _grid(self) -> tuple[float, ...]:
        return tuple(sorted({1.0, *self.retrained}))

    def _ppo_folder(self, folder: Path, lam: float, seed: int) -> Path:
        return folder / f"ppo_lam_{lam:g}_seed_{seed}"

    def _model(self, folder: Path, lam: float, seed: int) -> Path:
        return self._ppo_folder(folder, lam, seed) / MODEL

    def _check(self) -> None:
        """Validates the inputs of all stages now, so that no error appears only after training."""
        self.documents.read(self.reference.tokenizer(self.documents.known_vocabulary()))
        self.sweep(self.reward, self.lams)
        reference = self.reference.shapes()
        for lam in self._grid:
            self.ppo(reference, self.reward, self.beta / lam, self.seeds[0])

    def _survey(self, folder: Path) -> Callable:
        def survey(where: Path) -> Mapping[str, object]:
            del where
            reference = load(self.reference.path(folder))
            lengths, finished = LengthSurvey(
                reference,
                self.documents,
                self.max_length,
                self.seed,
                self.reference_samples,
                self.batch_size,
            ).sample()
            inside = self.reward.contains(lengths, finished)
            self._check_rate(float(np.mean(inside)), folder)
            return {"rates": np.mean(inside, axis=-1).tolist()}

        return survey

    def _check_rate(self, rate: float, folder: Path) -> None:
        """Raises ValueError if all rewards are equal, because PPO could then learn nothing."""
        if 0 < rate < 1:
            return
        reward, path = self.reward, self.reference.path(folder)
        advice = (
            f" To keep the trained reference, set stages.Reference.folder to {str(path)!r} and "
            "stages.Reference.training to None."
            if self.reference.training
            else ""
        )
        raise ValueError(
            f"{rate:.0%} of the reference's samples are in the length range, {reward.low} to "
            f"{reward.high} tokens: all rewards are equal, and PPO cannot learn. Set LOW and HIGH "
            "(length.LengthInRange.low and .high) to what gin_configs/runs/lengths.gin finds for "
            f"the model in {path}, and choose another MODEL_DIR.{advice}"
        )
