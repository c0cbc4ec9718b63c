"""Base classes of experiments on realigned models: fields, the PPO stage, the λ sweep stage.

Every experiment starts from one reference policy, aligns models to a reward by PPO and decodes the
same held-out documents. `SweepExperiment` adds λ sweeps of the realigned policies.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dera_jax import checks
from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.loading import load
from dera_jax.data.splits import SPLIT, Split
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation.sweep import Sweep
from dera_jax.experiments.stages import Reference, Stage, decode_pair, sweep_costs
from dera_jax.rewards.protocol import Reward
from dera_jax.training.dry_run import ProgramCost
from dera_jax.training.ppo import AlignmentObjective
from dera_jax.training.ppo_training import PPOTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentExperiment:
    """Holds the reference policy, the PPO run that aligns it, and the held-out documents.

    Attributes:
        reference: the source of the reference policy.
        align: returns a PPO run, given a loaded reference, `objective` and `seed`.
        beta: the KL coefficient β of PPO.
        documents: the held-out documents.
        max_length: T, the maximum number of tokens of an output, the end token included.
        batch_size: the number of documents that are decoded at once.
        seed: the seed of PPO and of sampling.

    Raises:
        ValueError: a field is out of its range.
    """

    reference: Reference
    align: Callable[..., PPOTraining]
    beta: float
    documents: Split
    max_length: int
    batch_size: int
    seed: int

    def __post_init__(self):
        checks.check_fields(
            self,
            reference=checks.instance(Reference),
            documents=SPLIT,
            max_length=checks.integer(1),
            batch_size=checks.integer(1),
            seed=checks.SEED,
        )

    def ppo(self, reference: LoadedModel, reward: Reward, beta: float, seed: int) -> PPOTraining:
        """Returns the PPO run that aligns a copy of the reference to the reward at β."""
        objective = AlignmentObjective(reward, self.max_length, beta)
        # The reference is passed by position: gin evaluates a parameter's binding even if the
        # caller passes that parameter by name, and this binding would load a model.
        return self.align(reference, objective=objective, seed=seed)

    def ppo_stage(
        self,
        name: str,
        experiment: Path,
        folder: Path,
        reward: Callable[[], Reward],
        beta: float,
        seed: int,
    ) -> Stage:
        """Returns the stage that runs `ppo` from the reference that earlier stages wrote.

        Args:
            name: the name of the stage.
            experiment: the folder of the experiment, which holds the reference.
            folder: the folder of this stage.
            reward: returns the reward; called when the stage begins: earlier stages may train it.
            beta: the KL coefficient β.
            seed: the seed of PPO.
        """

        def align(where: Path) -> Mapping[str, object]:
            return self.ppo(load(self.reference.path(experiment)), reward(), beta, seed).run(where)

        return Stage(name, folder, align)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepExperiment(AlignmentExperiment):
    """Adds λ sweeps to an `AlignmentExperiment`.

    Attributes:
        num_samples: the number of samples per document and λ.

    Raises:
        ValueError: a field is out of its range.
    """

    num_samples: int

    def __post_init__(self):
        super().__post_init__()
        checks.check_fields(
            self,
            align=checks.FUNCTION,
            beta=checks.number(above=0),
            num_samples=checks.integer(1),
        )

    def sweep(self, reward: Reward, lams: Sequence) -> Sweep:
        """Returns the sweep over these λ that scores its samples with this reward."""
        sampling = Sampling(self.max_length)
        return Sweep(tuple(lams), self.num_samples, sampling, reward, self.batch_size, self.seed)

    def sweep_stage(
        self,
        name: str,
        experiment: Path,
        folder: Path,
        aligned: Sequence[Path],
        reward: Callable[[], Reward],
        lams: Sequence,
    ) -> Stage:
        """Returns the stage that sweeps over λ with the reference and the models in `aligned`.

        Args:
            name: the name of the stage.
            experiment: the folder of the experiment, which holds the reference.
            folder: the folder of this stage.
            aligned: the folders of the aligned models.
            reward: returns the reward to measure; called when the stage begins.
            lams: the values of λ; for M > 1 aligned models, tuples of M values.
        """

        def decode(where: Path) -> Mapping[str, object]:
            settings = self.sweep(reward(), lams)
            reference = self.reference.path(experiment)
            return decode_pair(reference, aligned, self.documents, settings, where)

        return Stage(name, folder, decode)

    def sweep_costs(
        self, reward: Reward, lams: Sequence, num_aligned: int = 1
    ) -> list[ProgramCost]:
        """Returns the memory and compute that decoding and scoring one batch of the sweep take."""
        model = self.reference.shapes().model
        return sweep_costs(model, self.documents, self.sweep(reward, lams), num_aligned)
