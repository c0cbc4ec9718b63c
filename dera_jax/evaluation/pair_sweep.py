"""Decodes a split with a pair of model folders, or with one: the runs `sample` and `sweep`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dera_jax import checks
from dera_jax.checkpoints import loading
from dera_jax.checkpoints.loaded import LoadedModel, ModelPair
from dera_jax.checkpoints.resources import RunResources
from dera_jax.checkpoints.shared_tokenizer import source_index
from dera_jax.data.documents import Documents
from dera_jax.data.splits import SPLIT, Split
from dera_jax.decoding.realign import LAMBDAS
from dera_jax.decoding.sampling import Prefilled
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.evaluation.sweep_tables import format_table, sentences, write_report
from dera_jax.evaluation.tables import printed_width
from dera_jax.models.language_model import PyTree


def default_lams(aligned: str | None, of_pair: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the values of λ of a pair, and none for a single model.

    Args:
        aligned: model folder of the aligned model; None for the reference alone.
        of_pair: the values of λ of a pair.
    """
    return () if aligned is None else of_pair


@dataclasses.dataclass(frozen=True)
class PairSweep:
    """Decodes a split with a realigned pair or a single model; given a reward, reports metrics per λ.

    Attributes:
        reference: model folder of the reference.
        aligned: model folder of the aligned model; None to decode with the reference alone.
        documents: the split to decode.
        sweep: λ values, number of samples, sampling settings and reward.
        template_from: the model whose tokenizer, chat template and end ids are used, see
            `loading.load`.
        dtype: of parameters and activations, see `loading.load`.

    Raises:
        ValueError: a folder is not a path, a field has a wrong type, `template_from` names no
            model, or there are values of λ without an aligned model, or none with one.
    """

    reference: str
    aligned: str | None
    documents: Split
    sweep: Sweep
    template_from: str | int | None = None
    dtype: str | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            reference=checks.PATH,
            aligned=checks.optional(checks.PATH),
            documents=SPLIT,
            sweep=checks.instance(Sweep),
            dtype=loading.DTYPE,
        )
        source_index(self.template_from, [str(x) for x in (self.reference, *self._aligned())])
        if self.aligned is not None:
            checks.check("Sweep.lams", self.sweep.lams, LAMBDAS)
        elif self.sweep.lams:
            raise ValueError(
                "PairSweep.aligned must be a path, since Sweep.lams mixes two models; found None and "
                f"{self.sweep.lams}. Give the aligned model, or set lams to () for the reference alone."
            )

    def run(self, folder: Path) -> dict[str, object]:
        """Writes records.jsonl and, with a reward, metrics.json, metrics.csv and sweep.png.

        Returns:
            `documents`, the number of documents, and with a reward `lambda`, the rows of
            `sweep_tables.table`.
        """
        records = self.load().decode(self.sweep, folder)
        if self.sweep.reward is None:
            return {"documents": len(records)}
        rows = write_report(records, folder)
        print("\n".join([format_table(rows, printed_width()), *sentences(rows)]))
        return {"documents": len(records), "lambda": rows}

    def load(self) -> "SweepInputs":
        """Loads the models and reads the documents; raises as `load` does."""
        paths = self.reference, self._aligned()
        return load(*paths, self.documents, self.sweep, self.template_from, self.dtype)

    def _aligned(self) -> list[str]:
        return [] if self.aligned is None else [self.aligned]


@dataclasses.dataclass(frozen=True)
class SweepInputs:
    """Holds a loaded pair or model, the documents and the parameters of the reward for a sweep."""

    pair: ModelPair | LoadedModel
    documents: Documents
    reward_params: PyTree = None

    def decode(
        self, sweep: Sweep, folder: Path, prefills: dict[int, Prefilled] | None = None
    ) -> list[dict]:
        """Decodes all documents and returns the records; see `sweep.decode`."""
        pair = self.pair
        return decode(
            pair.model,
            pair.params,
            self.documents,
            sweep,
            pair.decode,
            folder,
            prefills,
            self.reward_params,
        )


def load(
    reference: str | Path,
    aligned: Sequence[str | Path],
    documents: Split,
    sweep: Sweep,
    template_from: str | int | None = None,
    dtype: str | None = None,
) -> SweepInputs:
    """Loads the models, the documents and the parameters of the sweep's reward.

    Raises:
        ValueError: the task's token ids come from another vocabulary than the models', or neither a
            checkpoint nor the task names the vocabulary of the models.
    """
    reward = sweep.reward
    known = {"vocabulary": documents.known_vocabulary(), "task": documents.label}
    pair = loading.load(reference, *aligned, **known, template_from=template_from, dtype=dtype)
    reward_params = reward and reward.load(RunResources(pair.vocabulary, pair.chat_template))
    read_documents = documents.read(pair.tokenizer, reward)
    if reward is not None:
        reward.check_documents(read_documents.texts)
    return SweepInputs(pair, read_documents, reward_params)
