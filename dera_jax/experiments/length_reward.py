"""The DeRa paper's first experiment: one aligned model, realigned, against models retrained.

    SFT (unless a reference is given) → PPO at β₀/λ for every λ of a short grid, λ = 1 being the
    aligned model → DeRa's λ sweep → the retrained models on the same documents → figures, report

Source: Liu et al. 2024 (arXiv 2402.02992), the length experiment. Beyond the paper: the closed form that a 0/−1
reward has, and for each PPO run how near it came to its optimum.

Every stage has a folder of its own. A finished stage is not run again, an unfinished one goes on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dera_jax import run_folder
from dera_jax.checkpoints.model_folder import Loaded, load_model, read_config
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation import comparison, report, sweep
from dera_jax.evaluation.jobs import Split
from dera_jax.evaluation.lengths import LengthSurvey
from dera_jax.evaluation.pairs import load_pair, tokenizer
from dera_jax.models.language_model import PyTree, streams
from dera_jax.models.t5_lm import T5
from dera_jax.training.alignment import MODEL, Alignment
from dera_jax.training.dry_run import Need, need
from dera_jax.training.ppo import Objective
from dera_jax.training.supervised import Training


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of an experiment: what it is called, where it works, what it does there."""

    name: str
    folder: Path
    run: Callable[[Path], Mapping[str, object]]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Where the reference model is from.

    Attributes:
        folder: of a finished model; None to train one.
        training: makes the run that trains it.

    Raises:
        ValueError: both, or neither.
    """

    folder: str | None = None
    training: Callable[[], Training] | None = None

    def __post_init__(self):
        if (self.folder is None) == (self.training is None):
            raise ValueError(
                "Reference needs a folder or a training run, and not both; "
                f"found folder {self.folder!r} and training {self.training!r}"
            )


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
        missing = sorted(set(self._grid) - set(self.lams))
        if missing or min(self._grid) <= 0:
            raise ValueError(
                "LengthReward.retrained and λ = 1 must be above 0 and among LengthReward.lams "
                f"{self.lams}; found {self._grid}"
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves figures, CSV files and report.html in `folder`.

        Returns:
            The largest gaps between DeRa and retrained; all else is in comparison.json.
        """
        stages = self.stages(folder)
        with tqdm(stages, unit="stage") as progress:
            for stage in progress:
                progress.set_description(stage.name)
                _run_once(stage)
        rows = self.compare(folder)["comparison"]
        return {
            f"largest_gap_{key}": comparison.largest_gap(rows, key)
            for key in ("reward", "length", "kl")
        }

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take; the runs at the other β take what the first does."""
        needs, model = [], None
        if self.reference.training is not None:
            training = self.reference.training()
            needs, model = training.needs(), training.start.model
        model = model or T5(read_config(self.reference.folder))
        params = jax.eval_shape(model.init, jax.random.key(0))
        like = Loaded(model, params, vocabulary=None, card={})
        alignment = self._alignment(like, self.objective, self.seeds[0])
        return needs + alignment.needs() + [self._sweep_need(model, params)]

    def _sweep_need(self, model: T5, params: PyTree) -> Need:
        rows, max_length = len(self.lams) * self.num_samples, self.objective.max_length
        inputs = jax.ShapeDtypeStruct((self.batch_size, self.documents.inputs), jnp.int32)
        stream = jax.eval_shape(lambda: streams(0, jnp.arange(self.batch_size), jnp.arange(rows)))
        lam = jax.ShapeDtypeStruct(stream.shape, jnp.float32)
        pair = Realigned(model, (model,))
        decode = jax.jit(lambda *args: sample(pair, *args, Sampling(max_length)))
        networks = {"reference": params, "aligned": params}
        tokens = stream.size * max_length
        return need(
            "DeRa sweep, a batch", networks, tokens, decode, (params,) * 2, inputs, lam, stream
        )

    def stages(self, folder: Path) -> list[Stage]:
        """In order; each reads what the ones before it left."""
        stages = []
        if self.reference.training is not None:
            train = lambda where: self.reference.training().run(where)
            stages.append(Stage("SFT", folder / "sft", train))
        runs = [(lam, seed) for seed in self.seeds for lam in self._grid]
        for lam, seed in runs:
            name = f"PPO, β {self._beta(lam):g}, seed {seed}"
            stages.append(Stage(name, self._ppo(folder, lam, seed), self._align(folder, lam, seed)))
        stages.append(Stage("reference's lengths", folder / "reference", self._survey(folder)))
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
        dera = comparison.pool([self._records(folder / f"dera_seed_{seed}") for seed in self.seeds])
        retrained = {
            lam: [
                self._records(folder / f"retrained_lam_{lam:g}_seed_{seed}") for seed in self.seeds
            ]
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
            records=self._records(folder / f"dera_seed_{self.seeds[0]}"),
        )
        print(comparison.format_comparison(result["comparison"]))
        print("\n".join(comparison.sentences(result)))
        return result

    @staticmethod
    def _records(folder: Path) -> list[dict]:
        return sweep.read_records(folder / sweep.RECORDS)

    @property
    def _grid(self) -> tuple[float, ...]:
        return tuple(sorted({1.0, *self.retrained}))

    def _beta(self, lam: float) -> float:
        return self.objective.beta / lam

    def _reference_folder(self, folder: Path) -> Path:
        return Path(self.reference.folder or folder / "sft" / "best")

    def _ppo(self, folder: Path, lam: float, seed: int) -> Path:
        return folder / f"ppo_lam_{lam:g}_seed_{seed}"

    def _align(self, folder: Path, lam: float, seed: int) -> Callable:
        objective = dataclasses.replace(self.objective, beta=self._beta(lam))

        def align(where: Path) -> Mapping[str, object]:
            reference = load_model(self._reference_folder(folder))
            return self._alignment(reference, objective, seed).run(where)

        return align

    def _alignment(self, reference: Loaded, objective: Objective, seed: int) -> Alignment:
        # By position: gin makes the value bound to a parameter, here it would load a model, even
        # where the caller names the parameter.
        return self.align(reference, objective=objective, seed=seed)

    def _survey(self, folder: Path) -> Callable:
        def survey(where: Path) -> Mapping[str, object]:
            del where
            reference = load_model(self._reference_folder(folder))
            lengths, finished = LengthSurvey(
                reference,
                self.documents,
                self.objective.max_length,
                self.reference_samples,
                self.batch_size,
            ).sample()
            inside = self.objective.reward.contains(lengths, finished)
            return {"shares": np.mean(inside, axis=-1).tolist()}

        return survey

    def _decode(self, folder: Path, aligned: Path, lams: Sequence[float]) -> Callable:
        def decode(where: Path) -> Mapping[str, object]:
            pair = load_pair(self._reference_folder(folder), [aligned / MODEL])
            settings = sweep.Sweep(
                tuple(lams),
                self.num_samples,
                Sampling(self.objective.max_length),
                self.objective.reward,
                self.batch_size,
                seed=0,
            )
            to_text = tokenizer(pair.vocabulary).decode
            documents = self.documents.read()
            records = sweep.decode(pair.model, pair.params, documents, settings, to_text, where)
            return {"documents": len(records)}

        return decode


def _run_once(stage: Stage) -> None:
    if run_folder.result(stage.folder) is None:
        stage.folder.mkdir(parents=True, exist_ok=True)
        run_folder.finish(stage.folder, stage.run(stage.folder))
