"""The runs `sample` and `sweep`: a pair of model folders over a split of a seqio task."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dera_jax import checks, data, seqio_tasks
from dera_jax.checkpoints import loading
from dera_jax.checkpoints.loading import Pair
from dera_jax.checkpoints.resources import RunResources
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.checkpoints.vocabulary import VOCABULARY, Vocabulary
from dera_jax.decoding.sampling import Prefilled
from dera_jax.encoding import Sizes
from dera_jax.evaluation.sweep import Documents, Sweep, decode, format_table, write_report
from dera_jax.log import warn_once
from dera_jax.models.language_model import PyTree
from dera_jax.rewards.protocol import Reward


@dataclasses.dataclass(frozen=True)
class Split:
    """Documents of a seqio task.

    Attributes:
        task: its name.
        split: one of its splits.
        inputs: S, tokens of an input, control tokens included; documents that are too long are cut.
        documents: use so many, those with the lowest example ids; None for all.
        vocabulary: what the ids of models mean whose checkpoints do not say it: T5X's.

    Raises:
        ValueError: unknown task or split, or a number that is not positive.
    """

    task: str
    split: str
    inputs: int
    documents: int | None = None
    vocabulary: Vocabulary | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            vocabulary=checks.optional(VOCABULARY),
            task=checks.TEXT,
            split=checks.TEXT,
            inputs=checks.whole(1),
            documents=checks.optional(checks.whole(1)),
        )
        seqio_tasks.check_task(self.task, self.split)

    def known_vocabulary(self) -> Vocabulary | None:
        """See `seqio_tasks.known_vocabulary`."""
        return seqio_tasks.known_vocabulary(self.task, self.vocabulary)

    def read(self, tokenizer: Tokenizer, reward: Reward | None = None) -> Documents:
        """Leaves out what cutting leaves nothing of, with a warning.

        Args:
            tokenizer: of the models that read them.
            reward: what the texts are for: one about keywords leaves out documents without any.

        Raises:
            ValueError: as `data.epoch`, or no document has what the reward is about.
        """
        sizes = Sizes(inputs=self.inputs, targets=self.inputs)
        examples = data.epoch(self.task, self.split, tokenizer, sizes)
        # Ids are hashes of the documents: the lowest ones are a fixed random choice.
        rows = np.argsort(examples.example_id, kind="stable")
        if reward is not None and reward.about_keywords and examples.keywords is not None:
            rows = self._with_keywords(examples.keywords, rows)
        rows = rows[: self.documents]
        some = examples.at(rows)
        return Documents(
            prompts=some.inputs,
            example_id=some.example_id,
            asked=some.asked,
            summaries=some.summaries,
            targets=some.targets,
            keywords=some.keywords,
            document=some.document,
        )

    def _with_keywords(self, keywords: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Those of rows [n] that have keywords [n, W, L]."""
        found = rows[keywords[rows].any(axis=(1, 2))]
        if not len(found):
            raise ValueError(
                f"{self.task}, {self.split}: no document has keywords in its first {self.inputs} "
                "tokens, and the reward is about them; raise INPUTS, or choose another reward"
            )
        if len(found) < len(rows):
            warn_once(
                f"{self.task}, {self.split}: LEFT OUT {len(rows) - len(found)} of {len(rows)} "
                "documents, which have no keywords: a reward about them says nothing of their texts"
            )
        return found


SPLIT = checks.Check("a split of documents, as `Split`", lambda value: hasattr(value, "read"))


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Decodes a split with a realigned pair; with a reward, also the table and the plot.

    Attributes:
        reference: model folder.
        aligned: model folder of the aligned model.
        documents: what to summarize.
        sweep: λ values, samples, reward.

    Raises:
        ValueError: a folder that is no path.
    """

    reference: str
    aligned: str
    documents: Split
    sweep: Sweep

    def __post_init__(self):
        checks.check_fields(
            self,
            reference=checks.PATH,
            aligned=checks.PATH,
            documents=SPLIT,
            sweep=checks.instance(Sweep),
        )

    def run(self, folder: Path) -> dict[str, object]:
        """Writes records.jsonl and, with a reward, metrics.json, metrics.csv and sweep.png.

        Returns:
            How many documents were decoded, and the rows of the table.
        """
        records = self.load().decode(self.sweep, folder)
        if self.sweep.reward is None:
            return {"documents": len(records)}
        rows = write_report(records, folder)
        print(format_table(rows))
        return {"documents": len(records), "lambda": rows}

    def load(self) -> "Loaded":
        """Reads models and documents; raises as `load` does."""
        return load(self.reference, [self.aligned], self.documents, self.sweep)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A pair, documents and the reward's parameters, read."""

    pair: Pair
    documents: Documents
    reward_params: PyTree = None

    def decode(
        self, sweep: Sweep, folder: Path, prefills: dict[int, Prefilled] | None = None
    ) -> list[dict]:
        """The records of `evaluation.sweep.decode`."""
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
    reference: str | Path, aligned: Sequence[str | Path], documents: Split, sweep: Sweep
) -> Loaded:
    """Reads models, documents and what the sweep's reward needs.

    Raises:
        ValueError: the task's ids are of another vocabulary than the models', or nobody says what the
            models' ids mean.
    """
    reward = sweep.reward
    known = documents.known_vocabulary()
    pair = loading.load(reference, *aligned, vocabulary=known, task=documents.task)
    reward_params = reward and reward.load(RunResources(pair.vocabulary))
    read = documents.read(pair.tokenizer, reward)
    if reward is not None:
        reward.check_documents(read.texts)
    return Loaded(pair, read, reward_params)
