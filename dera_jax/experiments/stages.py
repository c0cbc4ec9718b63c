"""Runs experiments as sequences of resumable stages; defines the stages that experiments share.

Every stage has a folder of its own. A finished stage is not run again, an unfinished one resumes.

Axes: B batch, K hypotheses of each document, T output length.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from etils import epath

from dera_jax import checks
from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.loading import read_config
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.resources import DryRunResources
from dera_jax.checkpoints.tokenizer import Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.data.splits import Split
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation import record_store, sweep
from dera_jax.evaluation.pair_sweep import load
from dera_jax.files import run_folder
from dera_jax.models.language_model import TrainableModel, sequence_keys
from dera_jax.models.registry import model_of
from dera_jax.progress_bar import ProgressBar
from dera_jax.rewards.scoring import score
from dera_jax.training import supervised
from dera_jax.training.dry_run import (
    ProgramCost,
    decodable,
    program_cost,
    prompt_shapes,
    shapes,
    source_shapes,
)
from dera_jax.training.supervised import BEST, Training


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of an experiment: its name, its output folder, and the function that fills it."""

    name: str
    folder: Path
    run: Callable[[Path], Mapping[str, object]]


def run_all(stages: Sequence[Stage]) -> None:
    """Runs the unfinished stages in order; each reads the outputs of earlier ones."""
    with ProgressBar(stages, unit="stage") as progress:
        for stage in progress:
            progress.set_description(stage.name)
            if run_folder.result(stage.folder) is None:
                stage.folder.mkdir(parents=True, exist_ok=True)
                run_folder.finish(stage.folder, stage.run(stage.folder))


@dataclasses.dataclass(frozen=True)
class Reference:
    """The source of the reference policy: a folder, or a training run.

    Attributes:
        folder: the folder of a finished model; None if `training` trains one.
        training: returns the run that trains the model.

    Raises:
        ValueError: both are given, or neither is.
    """

    folder: str | None = None
    training: Callable[[], Training] | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            folder=checks.optional(checks.PATH),
            training=checks.optional(checks.FUNCTION),
        )
        if (self.folder is None) == (self.training is None):
            raise ValueError(
                "Reference needs a folder or a training run, and not both: set one of "
                "Reference.folder and Reference.training to None; "
                f"found folder {self.folder!r} and training {self.training!r}"
            )

    def stages(self, experiment: Path) -> list[Stage]:
        """Returns the SFT stage, if any; the run is built now, to validate its settings early."""
        if self.training is None:
            return []
        return [Stage("SFT", experiment / "sft", self.training().run)]

    def path(self, experiment: Path) -> Path:
        """Returns the folder of the finished model."""
        return epath.Path(self.folder or experiment / "sft" / BEST)

    def model(self) -> TrainableModel:
        """Returns the model's architecture, which is known before training."""
        return self.training().start.model if self.training else model_of(read_config(self.folder))

    def tokenizer(self, known: Vocabulary | None) -> Tokenizer:
        """Returns the model's tokenizer, which is known before training.

        Args:
            known: the vocabulary of the data, see `seqio_tasks.known_vocabulary`.

        Raises:
            ValueError: neither the model nor the data defines a vocabulary.
        """
        if self.training:
            run = self.training()
            own, where = run.start.vocabulary or run.data.known_vocabulary(), "the model to train"
            template = run.start.chat_template
        else:
            checkpoint, where = open_checkpoint(self.folder), str(self.folder)
            own, template = checkpoint.vocabulary, checkpoint.chat_template
        return tokenizer(own or known, self.model().ends_prompts, where, template)

    def shapes(self) -> LoadedModel:
        """Returns the model with shapes as parameters, to build runs that start from it."""
        model = self.model()
        params = jax.eval_shape(model.init, jax.random.key(0))
        return LoadedModel(model, params, vocabulary=None, card={})

    def start(self, experiment: Path) -> supervised.InitialModel:
        """Returns the reference as an initial model; its parameters are read at training."""
        config = self.model().config
        return supervised.finished_model_of(config, str(self.path(experiment)))

    def program_costs(self) -> list[ProgramCost]:
        """Returns the costs of its training run, if there is one."""
        return self.training().program_costs() if self.training else []


def decode_pair(
    reference: Path,
    aligned: Sequence[Path],
    documents: Split,
    settings: sweep.Sweep,
    folder: Path,
) -> Mapping[str, object]:
    """Runs a sweep over λ with models from folders and returns the result of the stage.

    Args:
        reference: the folder of the reference.
        aligned: the folders of the aligned models.
        documents: the documents to decode.
        settings: the values of λ and the other settings of the sweep.
        folder: the folder that the records are written to.
    """
    decoded = load(reference, aligned, documents, settings).decode(settings, folder)
    return {"documents": len(decoded)}


def sweep_costs(
    model: TrainableModel, documents: Split, settings: sweep.Sweep, num_aligned: int = 1
) -> list[ProgramCost]:
    """Returns the costs of decoding and scoring one batch of a sweep, from shapes alone."""
    model = decodable(model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    num_hypotheses, batch = len(settings.lams) * settings.num_samples, settings.batch_size
    keys = jax.eval_shape(lambda: sequence_keys(0, jnp.arange(batch), jnp.arange(num_hypotheses)))
    lam = jax.ShapeDtypeStruct((batch, len(settings.lams), num_aligned), jnp.float32)
    prompts = prompt_shapes(batch, documents.inputs).replace(lam=lam)
    pair, max_length = Realigned(model, (model,) * num_aligned), settings.sampling.max_length
    decode = jax.jit(lambda *args: sample(pair, *args, Sampling(max_length)))
    networks = {"reference": params} | {f"aligned {i + 1}": params for i in range(num_aligned)}
    all_params = (params,) * (1 + num_aligned)
    tokens = keys.size * max_length
    decoding = program_cost(
        "DeRa sweep, a batch", networks, tokens, decode, all_params, prompts, keys
    )
    if settings.reward is None or settings.reward.on_host:
        return [decoding]
    return [decoding, _scoring_cost(model, documents, settings, keys.shape)]


def _scoring_cost(
    model: TrainableModel, documents: Split, settings: sweep.Sweep, shape: tuple[int, int]
) -> ProgramCost:
    """Returns the cost of scoring outputs of this shape [B, K]."""
    reward, max_length = settings.reward, settings.sampling.max_length
    array = jax.ShapeDtypeStruct
    params = shapes(reward.load(DryRunResources(model.vocab_size)))
    outputs = array((*shape, max_length), jnp.int32), array(shape, jnp.int32), array(shape, bool)
    source = source_shapes(shape[0], documents.inputs, documents.inputs)
    tokens = shape[0] * (documents.inputs + shape[1] * max_length)
    return program_cost(
        "scoring, a batch", {"reward": params}, tokens, score, reward, params, source, *outputs
    )


def read_records(folder: Path) -> list[dict]:
    """Reads the records that `decode_pair` wrote to a stage's folder."""
    return record_store.read(folder)
