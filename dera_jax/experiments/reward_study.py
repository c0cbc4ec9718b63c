"""The DeRa paper's other summarization studies: any reward, learned on the way where it has to be.

    SFT (unless a reference is given) → the models that judge, if any → PPO on the weighted sum of the
    parts → DeRa's λ sweep, in which every part is measured → figure, report

A part of weight 0 is measured and not optimised: a held-out judge shows whether λ buys what was
wanted, or only what the reward model can be talked into.

Source: Liu et al. 2024 (arXiv 2402.02992), the experiments on human preferences (here
`gin_configs/experiments/tldr`) and on hallucination (`gin_configs/experiments/hallucination`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dera_jax import checks, seqio_tasks
from dera_jax.checkpoints.learned_rewards import reward_model
from dera_jax.checkpoints.loading import Loaded, load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.decoding.realign import LAMBDA
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import plots, report, sweep
from dera_jax.evaluation.jobs import SPLIT, Split
from dera_jax.experiments.stages import (
    Reference,
    Stage,
    decode_pair,
    records,
    run_all,
    sweep_needs,
)
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.learned import RewardModel
from dera_jax.rewards.protocol import REWARD, Reward
from dera_jax.training import preferences, supervised
from dera_jax.training.alignment import MODEL, Alignment
from dera_jax.training.dry_run import Need
from dera_jax.training.ppo import Objective
from dera_jax.training.preferences import PreferenceTraining
from dera_jax.training.supervised import BEST

FIGURE = "parts.png"
_OWN_FOLDERS = {"sft", "ppo", "dera"}


class Criterion(Protocol):
    """A part of the reward, and how it comes about. `name` and `weight`: see `combined.Part`."""

    name: str
    weight: float

    def stages(self, start: supervised.Start, experiment: Path) -> list[Stage]:
        """What has to be trained first, from the reference."""

    def reward(self, experiment: Path) -> Reward:
        """The reward, once its stages have ended."""

    def shape(self, start: supervised.Start) -> Reward:
        """The reward for a dry run."""

    def needs(self, start: supervised.Start) -> list[Need]:
        """What its stages take."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A reward that is there already."""

    name: str
    given: Reward
    weight: float = 1.0

    def __post_init__(self):
        checks.check_fields(self, name=checks.TEXT, given=REWARD, weight=checks.number())

    def stages(self, start: supervised.Start, experiment: Path) -> list[Stage]:
        return []

    def reward(self, experiment: Path) -> Reward:
        return self.given

    def shape(self, start: supervised.Start) -> Reward:
        return self.given

    def needs(self, start: supervised.Start) -> list[Need]:
        return []


@dataclasses.dataclass(frozen=True)
class FromComparisons:
    """A reward model that begins as the reference; training: makes its run, given its start."""

    name: str
    training: Callable[[preferences.Start], PreferenceTraining]
    weight: float = 1.0

    def __post_init__(self):
        amount = checks.number()
        checks.check_fields(self, name=checks.TEXT, training=checks.FUNCTION, weight=amount)

    def stages(self, start: supervised.Start, experiment: Path) -> list[Stage]:
        training = self.training(preferences.reward_model(start))  # now: its settings are checked
        seqio_tasks.check_pairs(training.data.task, training.data.split)
        return [Stage(f"reward model {self.name}", experiment / self.name, training.run)]

    def reward(self, experiment: Path) -> Reward:
        return reward_model(str(experiment / self.name / BEST))

    def shape(self, start: supervised.Start) -> Reward:
        return RewardModel(preferences.reward_model(start).scorer.model)

    def needs(self, start: supervised.Start) -> list[Need]:
        return self.training(preferences.reward_model(start)).needs()


@dataclasses.dataclass(frozen=True)
class RewardStudy:
    """The experiment.

    Attributes:
        reference: the model to realign.
        criteria: the parts of the reward.
        align: makes a PPO run of a loaded reference, `objective` and `seed`.
        max_length: tokens of a text at most.
        beta: β of PPO.
        seed: of PPO and of the sweep.
        lams: of the sweep.
        documents: held-out documents.
        num_samples: of each document at each λ.
        batch_size: documents at once.
        title: of the report.

    Raises:
        ValueError: no part has a weight, or parts have no names of their own.
    """

    reference: Reference
    criteria: tuple[Criterion, ...]
    align: Callable[..., Alignment]
    max_length: int
    beta: float
    seed: int
    lams: tuple[float, ...]
    documents: Split
    num_samples: int
    batch_size: int
    title: str

    def __post_init__(self):
        sizes = dict.fromkeys(("max_length", "num_samples", "batch_size"), checks.whole(1))
        checks.check_fields(
            self,
            reference=checks.instance(Reference),
            criteria=checks.several(checks.having("stages"), "(Given('length', reward),)"),
            align=checks.FUNCTION,
            beta=checks.number(above=0),
            seed=checks.SEED,
            lams=checks.several(LAMBDA, "(0.0, 1.0)"),
            documents=SPLIT,
            **sizes,
        )
        checks.check_distinct("RewardStudy.lams", self.lams)
        if not any(part.weight for part in self.criteria):
            raise ValueError("RewardStudy: at least one of the criteria needs a weight")
        names = [part.name for part in self.criteria]  # of folders too
        if len({*names, *_OWN_FOLDERS}) < len(names) + len(_OWN_FOLDERS):
            raise ValueError(
                f"RewardStudy: criteria need names of their own, not {sorted(_OWN_FOLDERS)}; "
                f"found {names}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves metrics.json, .csv, sweep.png, parts.png, report.html.

        Returns:
            The rows of `sweep.table`.
        """
        self._check()
        run_all(self.stages(folder))
        found = records(folder / "dera")
        rows = sweep.write_report(found, folder)
        names = [part.name for part in self.criteria]
        plots.plot_parts(rows, names, folder / FIGURE)
        print(sweep.format_table(rows))
        report.write(
            folder / "report.html",
            title=self.title,
            facts=sentences(rows, self.criteria),
            figures=[folder / FIGURE, folder / "sweep.png"],
            rows=rows,
            records=found,
        )
        print("\n".join(sentences(rows, self.criteria)))
        return {"lambda": rows}

    def stages(self, folder: Path) -> list[Stage]:
        """In order; each reads what the ones before it left."""
        start = self.reference.start(folder)
        judges = [stage for part in self.criteria for stage in part.stages(start, folder)]
        return [
            *self.reference.stages(folder),
            *judges,
            Stage("PPO", folder / "ppo", lambda where: self._align(folder).run(where)),
            Stage("DeRa", folder / "dera", lambda where: self._decode(folder, where)),
        ]

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take."""
        start = self._shape_of_start()
        alignment, settings = self._last_stages()
        return [
            *self.reference.needs(),
            *(need for part in self.criteria for need in part.needs(start)),
            *alignment.needs(),
            *sweep_needs(start.model, self.documents, settings),
        ]

    def _shape_of_start(self) -> supervised.Start:
        return supervised.finished_model_of(self.reference.model().config, None)

    def _last_stages(self) -> tuple[Alignment, sweep.Sweep]:
        """PPO and the sweep, made from shapes."""
        shape = lambda part: part.shape(self._shape_of_start())
        optimised, measured = (self._sum(shape, weighted=x) for x in (True, False))
        return self._alignment(self.reference.shapes(), optimised), self._settings(measured)

    def _check(self) -> None:
        """Reads and makes what the last stages need, lest an error is found after hours of training."""
        text = self.reference.tokenizer(self.documents.known_vocabulary())
        self.documents.read(text)
        self._last_stages()
        resources = RunResources(text.vocabulary)
        for part in self.criteria:
            if isinstance(part, Given):
                part.given.load(resources)

    def _align(self, folder: Path) -> Alignment:
        reward = self._sum(lambda part: part.reward(folder), weighted=True)
        return self._alignment(load(self.reference.path(folder)), reward)

    def _alignment(self, reference: Loaded, reward: Reward) -> Alignment:
        # By position: gin makes the value bound to a parameter, here it would load a model, even
        # where the caller names the parameter.
        objective = Objective(reward, self.max_length, self.beta)
        return self.align(reference, objective=objective, seed=self.seed)

    def _decode(self, folder: Path, where: Path) -> Mapping[str, object]:
        settings = self._settings(self._sum(lambda part: part.reward(folder), weighted=False))
        aligned = [folder / "ppo" / MODEL]
        return decode_pair(self.reference.path(folder), aligned, self.documents, settings, where)

    def _settings(self, reward: Reward) -> sweep.Sweep:
        sampling = Sampling(self.max_length)
        return sweep.Sweep(
            self.lams, self.num_samples, sampling, reward, self.batch_size, self.seed
        )

    def _sum(self, reward_of: Callable[[Criterion], Reward], weighted: bool) -> Combined:
        """Of the parts with a weight, or of all."""
        parts = [part for part in self.criteria if part.weight or not weighted]
        return Combined(tuple(Part(part.name, reward_of(part), part.weight) for part in parts))


def sentences(rows: Sequence[dict], criteria: Sequence[Criterion]) -> list[str]:
    """What λ does to each part, and to faithfulness and ROUGE-L, from its first to its last value."""
    names = {f"{sweep.PART}{part.name}": _title(part) for part in criteria}
    names |= {"faithful": "share of content words that are in the document", "rougeL": "ROUGE-L"}
    first, last = rows[0], rows[-1]
    return [
        f"{title}: {sweep.cell(first, key)} at λ = {first['lam']:g}, "
        f"{sweep.cell(last, key)} at λ = {last['lam']:g}, most "
        f"({max(row[key] for row in rows):.2f}) at λ = {max(rows, key=lambda r: r[key])['lam']:g}."
        for key, title in names.items()
    ]


def _title(part: Criterion) -> str:
    what = f"weight {part.weight:g}" if part.weight else "held out, measured only"
    return f"Part {part.name} ({what})"
