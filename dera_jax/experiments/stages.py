"""What experiments of several stages share: stages that run once, the reference, decoding, needs.

Every stage has a folder of its own. A finished stage is not run again, an unfinished one goes on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from etils import epath
from tqdm import tqdm

from dera_jax import checks, run_folder
from dera_jax.checkpoints.loading import Loaded, read_config
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.resources import ShapesOnly
from dera_jax.checkpoints.tokenizer import Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation import shards, sweep
from dera_jax.evaluation.jobs import Split, load
from dera_jax.models.language_model import TrainableModel, sequence_keys
from dera_jax.models.registry import model_of
from dera_jax.rewards.judge import score
from dera_jax.training import supervised
from dera_jax.training.dry_run import Need, decodable, need, prompt_shapes, shapes, source_shapes
from dera_jax.training.supervised import BEST, Training


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of an experiment: what it is called, where it works, what it does there."""

    name: str
    folder: Path
    run: Callable[[Path], Mapping[str, object]]


def run_all(stages: Sequence[Stage]) -> None:
    """Runs in order what has not ended; each stage reads what the ones before it left."""
    with tqdm(stages, unit="stage") as progress:
        for stage in progress:
            progress.set_description(stage.name)
            if run_folder.result(stage.folder) is None:
                stage.folder.mkdir(parents=True, exist_ok=True)
                run_folder.finish(stage.folder, stage.run(stage.folder))


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
        checks.check_fields(
            self,
            folder=checks.optional(checks.PATH),
            training=checks.optional(checks.FUNCTION),
        )
        if (self.folder is None) == (self.training is None):
            raise ValueError(
                "Reference needs a folder or a training run, and not both; "
                f"found folder {self.folder!r} and training {self.training!r}"
            )

    def stages(self, experiment: Path) -> list[Stage]:
        """Its training, if it has one; made now, so that errors in its settings come early."""
        if self.training is None:
            return []
        return [Stage("SFT", experiment / "sft", self.training().run)]

    def path(self, experiment: Path) -> Path:
        """The folder of the finished model."""
        return epath.Path(self.folder or experiment / "sft" / BEST)

    def model(self) -> TrainableModel:
        """Its architecture, known before it is trained."""
        return self.training().start.model if self.training else model_of(read_config(self.folder))

    def tokenizer(self, known: Vocabulary | None) -> Tokenizer:
        """How it reads text, known before it is trained.

        Args:
            known: the vocabulary of the data, see `seqio_tasks.known_vocabulary`.

        Raises:
            ValueError: nobody says what its ids mean.
        """
        if self.training:
            run = self.training()
            own, where = run.start.vocabulary or run.data.known_vocabulary(), "the model to train"
        else:
            own, where = open_checkpoint(self.folder).vocabulary, str(self.folder)
        return tokenizer(own or known, self.model().ends_prompts, where)

    def shapes(self) -> Loaded:
        """The model with shapes in place of parameters: enough to make the runs that start from it."""
        model = self.model()
        params = jax.eval_shape(model.init, jax.random.key(0))
        return Loaded(model, params, vocabulary=None, card={})

    def start(self, experiment: Path) -> supervised.Start:
        """For networks that begin as the reference; nothing is read before they are trained."""
        config = self.model().config
        return supervised.finished_model_of(config, str(self.path(experiment)))

    def needs(self) -> list[Need]:
        """Of its training, if it has one."""
        return self.training().needs() if self.training else []


def decode_pair(
    reference: Path,
    aligned: Sequence[Path],
    documents: Split,
    settings: sweep.Sweep,
    folder: Path,
) -> Mapping[str, object]:
    """A sweep over models' folders; what a stage returns."""
    found = load(reference, aligned, documents, settings).decode(settings, folder)
    return {"documents": len(found)}


def sweep_needs(
    model: TrainableModel, documents: Split, settings: sweep.Sweep, num_aligned: int = 1
) -> list[Need]:
    """What decoding and scoring a batch of a sweep take, from shapes alone."""
    model = decodable(model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    rows, batch = len(settings.lams) * settings.num_samples, settings.batch_size
    keys = jax.eval_shape(lambda: sequence_keys(0, jnp.arange(batch), jnp.arange(rows)))
    lam = jax.ShapeDtypeStruct((batch, len(settings.lams), num_aligned), jnp.float32)
    prompts = prompt_shapes(batch, documents.inputs).replace(lam=lam)
    pair, max_length = Realigned(model, (model,) * num_aligned), settings.sampling.max_length
    decode = jax.jit(lambda *args: sample(pair, *args, Sampling(max_length)))
    networks = {"reference": params} | {f"aligned {i + 1}": params for i in range(num_aligned)}
    everything = (params,) * (1 + num_aligned)
    tokens = keys.size * max_length
    decoding = need("DeRa sweep, a batch", networks, tokens, decode, everything, prompts, keys)
    if settings.reward is None or settings.reward.on_host:
        return [decoding]
    return [decoding, _scoring_need(model, documents, settings, keys.shape)]


def _scoring_need(
    model: TrainableModel, documents: Split, settings: sweep.Sweep, rows: tuple
) -> Need:
    reward, max_length = settings.reward, settings.sampling.max_length
    array = jax.ShapeDtypeStruct
    params = shapes(reward.load(ShapesOnly(model.vocab_size)))
    texts = array((*rows, max_length), jnp.int32), array(rows, jnp.int32), array(rows, bool)
    source = source_shapes(rows[0], documents.inputs, documents.inputs)
    tokens = rows[0] * (documents.inputs + rows[1] * max_length)
    return need(
        "scoring, a batch", {"reward": params}, tokens, score, reward, params, source, *texts
    )


def records(folder: Path) -> list[dict]:
    """What `decode_pair` left in a stage's folder."""
    return shards.read(folder)
