"""Runs a DeRa λ sweep for a weighted sum of given rewards and learned reward models.

    SFT (unless a reference is given) → the reward models, if any → PPO on the weighted sum of the
    parts → DeRa's λ sweep, in which every part is measured → figure, report

A part of weight 0 is measured but not optimised: a held-out reward model shows whether a larger λ
improves the outputs or only exploits the errors of the optimised reward model (over-optimisation).

Source: Liu et al. 2024 (arXiv 2402.02992), the experiments on human preferences (here
`gin_configs/experiments/tldr`) and on hallucination (`gin_configs/experiments/hallucination`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from dera_jax import checks
from dera_jax.checkpoints.learned_rewards import reward_model
from dera_jax.checkpoints.resources import RunResources
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation import report_content, sweep, sweep_tables
from dera_jax.experiments import plots
from dera_jax.experiments.alignment_experiment import SweepExperiment
from dera_jax.experiments.stages import Stage, read_records, run_all
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.learned import RewardModel
from dera_jax.rewards.protocol import REWARD, Reward
from dera_jax.training import preferences, supervised
from dera_jax.training.dry_run import ProgramCost
from dera_jax.training.ppo_training import MODEL, PPOTraining
from dera_jax.training.preferences import PreferenceTraining
from dera_jax.training.supervised import BEST

FIGURE = "parts.png"
_RESERVED = {"sft", "ppo", "dera"}  # folders of the other stages


class Criterion(Protocol):
    """A part of the reward together with the stages that train it; see `combined.Part`."""

    name: str
    weight: float

    def stages(self, start: supervised.InitialModel, experiment: Path) -> list[Stage]:
        """Returns the stages that train the reward from the reference `start`."""

    def reward(self, experiment: Path) -> Reward:
        """Returns the reward; its stages must have finished."""

    def shape(self, start: supervised.InitialModel) -> Reward:
        """Returns the reward for a dry run, without reading parameters."""

    def program_costs(self, start: supervised.InitialModel) -> list[ProgramCost]:
        """Returns the costs of its stages' compiled steps."""


@dataclasses.dataclass(frozen=True)
class GivenReward:
    """A criterion whose reward is given and needs no training.

    Attributes:
        name: the name of the part.
        given: the reward function.
        weight: the weight of the part; 0 to measure it only.

    Raises:
        ValueError: a field is out of its range.
    """

    name: str
    given: Reward
    weight: float = 1.0

    def __post_init__(self):
        checks.check_fields(self, name=checks.TEXT, given=REWARD, weight=checks.number())

    def stages(self, start: supervised.InitialModel, experiment: Path) -> list[Stage]:
        """Returns no stages."""
        return []

    def reward(self, experiment: Path) -> Reward:
        """Returns the given reward."""
        return self.given

    def shape(self, start: supervised.InitialModel) -> Reward:
        """Returns the given reward."""
        return self.given

    def program_costs(self, start: supervised.InitialModel) -> list[ProgramCost]:
        """Returns no costs."""
        return []


@dataclasses.dataclass(frozen=True)
class LearnedReward:
    """A criterion whose reward model is trained here, initialised from the reference.

    Attributes:
        name: the name of the part and of the stage's folder.
        training: returns the training run, given the initial reward model.
        weight: the weight of the part; 0 to measure it only.

    Raises:
        ValueError: a field is out of its range.
    """

    name: str
    training: Callable[[preferences.PreferenceStart], PreferenceTraining]
    weight: float = 1.0

    def __post_init__(self):
        amount = checks.number()
        checks.check_fields(self, name=checks.TEXT, training=checks.FUNCTION, weight=amount)

    def stages(self, start: supervised.InitialModel, experiment: Path) -> list[Stage]:
        """Returns the stage that trains the reward model; checks its task for pairs."""
        # The run is built now, which validates its settings before any stage runs.
        training = self.training(preferences.reward_model(start))
        return [Stage(f"reward model {self.name}", experiment / self.name, training.run)]

    def reward(self, experiment: Path) -> Reward:
        """Returns the trained reward model, from its best checkpoint."""
        return reward_model(str(experiment / self.name / BEST))

    def shape(self, start: supervised.InitialModel) -> Reward:
        """Returns the reward model's architecture as a reward, for a dry run."""
        return RewardModel(preferences.reward_model(start).scorer.model)

    def program_costs(self, start: supervised.InitialModel) -> list[ProgramCost]:
        """Returns the costs of the reward model's training run."""
        return self.training(preferences.reward_model(start)).program_costs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardStudy(SweepExperiment):
    """Aligns a model to the weighted sum of criteria and measures all of them in a λ sweep.

    Attributes:
        criteria: the parts of the reward.
        lams: the values of λ of the sweep.
        title: the title of the report.

    Raises:
        ValueError: all weights are 0, names repeat or are reserved, or a field is out of its range.
    """

    criteria: tuple[Criterion, ...]
    lams: tuple[float, ...]
    title: str

    def __post_init__(self):
        super().__post_init__()
        checks.check_fields(
            self,
            criteria=checks.sequence(
                checks.with_attribute("stages"), "(GivenReward('length', reward),)"
            ),
            lams=checks.sequence(LAMBDA, "(0.0, 1.0)"),
        )
        checks.check_distinct("RewardStudy.lams", self.lams)
        if not any(part.weight for part in self.criteria):
            raise ValueError(
                "RewardStudy: at least one of the criteria needs a weight other than 0, for PPO"
            )
        names = [part.name for part in self.criteria]  # also the names of folders
        if len({*names, *_RESERVED}) < len(names) + len(_RESERVED):
            raise ValueError(
                "RewardStudy: criteria need unique names, none of the reserved "
                f"{sorted(_RESERVED)}; found {names}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs all unfinished stages; writes metrics.json, .csv, sweep.png, parts.png, report.json.

        Returns:
            The rows of `sweep_tables.table`.
        """
        self._check()
        run_all(self.stages(folder))
        decoded = read_records(folder / "dera")
        rows = sweep_tables.write_report(decoded, folder)
        names = [part.name for part in self.criteria]
        plots.plot_parts(rows, names, folder / FIGURE)
        table = sweep_tables.table_of("Means for each λ", sweep_tables.cells(rows))
        findings = sentences(rows, self.criteria)
        sources = [report_content.OutputSource("", "dera")]
        report_content.conclude(
            report_content.ReportContent(self.title, [table], findings, sources), folder
        )
        return {"lambda": rows}

    def stages(self, folder: Path) -> list[Stage]:
        """Returns the stages in order; each reads the outputs of earlier ones."""
        start = self.reference.start(folder)
        reward_models = [stage for part in self.criteria for stage in part.stages(start, folder)]
        optimised = lambda: self._sum(lambda part: part.reward(folder), weighted=True)
        measured = lambda: self._sum(lambda part: part.reward(folder), weighted=False)
        ppo, dera, aligned = folder / "ppo", folder / "dera", [folder / "ppo" / MODEL]
        return [
            *self.reference.stages(folder),
            *reward_models,
            self.ppo_stage("PPO", folder, ppo, optimised, self.beta, self.seed),
            self.sweep_stage("DeRa", folder, dera, aligned, measured, self.lams),
        ]

    def program_costs(self) -> list[ProgramCost]:
        """Returns the costs of the stages' compiled steps."""
        start = self._shape_of_start()
        return [
            *self.reference.program_costs(),
            *(cost for part in self.criteria for cost in part.program_costs(start)),
            *self._ppo_of_shapes().program_costs(),
            *self.sweep_costs(self._sum(self._shape, weighted=False), self.lams),
        ]

    def _shape_of_start(self) -> supervised.InitialModel:
        return supervised.finished_model_of(self.reference.model().config, None)

    def _shape(self, part: Criterion) -> Reward:
        return part.shape(self._shape_of_start())

    def _ppo_of_shapes(self) -> PPOTraining:
        reward = self._sum(self._shape, weighted=True)
        return self.ppo(self.reference.shapes(), reward, self.beta, self.seed)

    def _check(self) -> None:
        """Validates the inputs of all stages now, so that no error appears only after training."""
        tokenizer = self.reference.tokenizer(self.documents.known_vocabulary())
        self.documents.read(tokenizer)
        self._ppo_of_shapes()
        self.sweep(self._sum(self._shape, weighted=False), self.lams)
        resources = RunResources.of(tokenizer)
        for part in self.criteria:
            if isinstance(part, GivenReward):
                part.given.load(resources)

    def _sum(self, reward_of: Callable[[Criterion], Reward], weighted: bool) -> Combined:
        """Returns the sum of the parts with a non-zero weight, or of all parts."""
        parts = [part for part in self.criteria if part.weight or not weighted]
        return Combined(tuple(Part(part.name, reward_of(part), part.weight) for part in parts))


def sentences(rows: Sequence[dict], criteria: Sequence[Criterion]) -> list[str]:
    """Returns sentences on how each part, faithfulness and ROUGE-L change with λ."""
    names = {f"{sweep.PART}{part.name}": _title(part) for part in criteria}
    names |= {"faithful": "fraction of content words that are in the document", "rougeL": "ROUGE-L"}
    return sweep_tables.changes(rows, names)


def _title(part: Criterion) -> str:
    role = f"weight {part.weight:g}" if part.weight else "held out, measured only"
    return f"Part {part.name} ({role})"
