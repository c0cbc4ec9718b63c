"""Reads held-out documents from a split of a seqio task."""

import dataclasses

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.checkpoints.vocabulary import VOCABULARY, Vocabulary
from dera_jax.data import seqio_tasks, task_data
from dera_jax.data.documents import Documents, documents_of
from dera_jax.data.encoding import Sizes
from dera_jax.log import warn_once
from dera_jax.rewards.protocol import Reward


@dataclasses.dataclass(frozen=True)
class Split:
    """Selects documents of a split of a seqio task.

    Attributes:
        task: name of the task.
        split: one of its splits.
        inputs: S, maximum tokens of a prompt, including control tokens; longer documents are
            truncated.
        documents: number of documents to use, those with the lowest example ids; None for all.
        vocabulary: of models whose checkpoints hold none, such as those of T5X.

    Raises:
        ValueError: the task or split is unknown, or a number is not positive.
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
            inputs=checks.integer(1),
            documents=checks.optional(checks.integer(1)),
        )
        seqio_tasks.check_task(self.task, self.split)

    def known_vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of the task's ids, see `seqio_tasks.known_vocabulary`."""
        return seqio_tasks.known_vocabulary(self.task, self.vocabulary)

    def read(self, tokenizer: Tokenizer, reward: Reward | None = None) -> Documents:
        """Read the documents; unusable ones are dropped with a warning, see `data.encoding`.

        Args:
            tokenizer: of the models that read the documents.
            reward: that scores the outputs; a keyword reward also drops documents without keywords.

        Raises:
            ValueError: as `task_data.epoch`, or no document has the keywords that the reward needs.
        """
        sizes = Sizes(inputs=self.inputs, targets=self.inputs)
        examples = task_data.epoch(self.task, self.split, tokenizer, sizes)
        # Ids are hashes of the documents, so that the lowest ids are a fixed random subset.
        rows = np.argsort(examples.example_id, kind="stable")
        if reward is not None and reward.about_keywords and examples.keywords is not None:
            rows = self._with_keywords(examples.keywords, rows)
        rows = rows[: self.documents]
        return documents_of(examples, rows)

    def _with_keywords(self, keywords: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return those of these rows whose keywords, of [n, W, L], are not empty."""
        selected = rows[keywords[rows].any(axis=(1, 2))]
        if not len(selected):
            raise ValueError(
                f"{self.task}, {self.split}: no document has keywords in its first {self.inputs} "
                "tokens, but the reward needs keywords; raise INPUTS, or choose another reward"
            )
        if len(selected) < len(rows):
            warn_once(
                f"{self.task}, {self.split}: DROPPED {len(rows) - len(selected)} of {len(rows)} "
                "documents, which have no keywords: a keyword reward is not defined for them"
            )
        return selected


SPLIT = checks.Check("a split of documents, as `Split`", lambda value: hasattr(value, "read"))
