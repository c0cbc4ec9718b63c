"""Reads held-out documents from a split of a seqio task, or from a user's own file."""

import dataclasses

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.checkpoints.vocabulary import VOCABULARY, Vocabulary
from dera_jax.data.documents import Documents, documents_of
from dera_jax.data.encoding import Sizes
from dera_jax.data.own_files import OwnFiles
from dera_jax.data.task_data import SeqioTask, source_of
from dera_jax.log import warn_once
from dera_jax.rewards.protocol import Reward


@dataclasses.dataclass(frozen=True)
class Split:
    """Selects documents of a split of a seqio task, or of the user's own files.

    Attributes:
        task: name of the task; not read if there are `files`.
        split: the split of the task or of the files, such as 'test'.
        inputs: S, maximum tokens of a prompt, including control tokens; longer documents are
            truncated.
        documents: number of documents to use, those with the lowest example ids; None for all.
        vocabulary: of models whose checkpoints hold none, such as those of T5X.
        files: the user's own files; None for the task.

    Raises:
        ValueError: the task or split is unknown, or a number is not positive.
    """

    task: str | None
    split: str
    inputs: int
    documents: int | None = None
    vocabulary: Vocabulary | None = None
    files: OwnFiles | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            vocabulary=checks.optional(VOCABULARY),
            task=checks.TEXT if self.files is None else checks.optional(checks.TEXT),
            files=checks.optional(checks.instance(OwnFiles)),
            split=checks.TEXT,
            inputs=checks.integer(1),
            documents=checks.optional(checks.integer(1)),
        )
        self.source.check(self.split)

    @property
    def source(self) -> SeqioTask | OwnFiles:
        """Return what is read."""
        return source_of(self.task, self.files)

    @property
    def name(self) -> str:
        """Return the name of the data for error messages."""
        return self.source.name

    @property
    def label(self) -> str:
        """Return the name of the task, or the paths of the files."""
        return self.source.label

    def known_vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of the task's ids, see `seqio_tasks.known_vocabulary`."""
        return self.source.known_vocabulary(self.vocabulary)

    def read(self, tokenizer: Tokenizer, reward: Reward | None = None) -> Documents:
        """Read the documents; unusable ones are dropped with a warning, see `data.encoding`.

        Args:
            tokenizer: of the models that read the documents.
            reward: that scores the outputs; a keyword reward also drops documents without keywords.

        Raises:
            ValueError: as `epoch` of `source`, or no document has the keywords that the reward needs.
        """
        sizes = Sizes(inputs=self.inputs, targets=self.inputs)
        examples = self.source.epoch(self.split, tokenizer, sizes)
        # Ids are hashes of the documents, so that the lowest ids are a fixed random subset.
        rows = np.argsort(examples.example_id, kind="stable")
        if reward is not None and reward.about_keywords and examples.keywords is not None:
            rows = self._with_keywords(examples.keywords, rows)
        rows = rows[: self.documents]
        return documents_of(examples, rows)

    def _with_keywords(self, keywords: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return those of these rows whose keywords, of [n, W, L], are not empty."""
        selected, title = rows[keywords[rows].any(axis=(1, 2))], self.source.title(self.split)
        if not len(selected):
            raise ValueError(
                f"{title}: no document has keywords in its first {self.inputs} "
                "tokens, but the reward needs keywords; raise INPUTS, or choose another reward"
            )
        if len(selected) < len(rows):
            warn_once(
                f"{title}: DROPPED {len(rows) - len(selected)} of {len(rows)} "
                "documents, which have no keywords: a keyword reward is not defined for them"
            )
        return selected


SPLIT = checks.Check("a split of documents, as `Split`", lambda value: hasattr(value, "read"))
