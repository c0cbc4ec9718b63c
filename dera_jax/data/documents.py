"""Holds the held-out documents on which models are decoded and evaluated.

Axes: n documents, S length of a prompt, D of a document, R of a human summary, W keywords, L bytes.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.data.examples import Examples
from dera_jax.files import fingerprints
from dera_jax.models.language_model import Padded, Prompts, check_padded, trim_padding
from dera_jax.prompts import Prompt
from dera_jax.rewards.protocol import Source, check_source


@dataclasses.dataclass(frozen=True)
class Documents:
    """Holds n documents with their prompts, human summaries and keywords.

    Attributes:
        prompts: tokens [n, S] of the prompts as the model reads them.
        example_id: int32 [n]; the PRNG keys of a document are derived from its id.
        text_prompts: the n prompts as text, with untruncated documents.
        summaries: the n human summaries.
        targets: [n, R], tokens of the summaries; None if unknown.
        keywords: uint8 [n, W, L], see `rewards.protocol.Source`; None if the task has none.
        document: [n, D], tokens of the untruncated documents alone; None if unknown.

    Raises:
        ValueError: an array has the wrong dtype or shape, or the number of prompts or summaries is
            not n.
    """

    prompts: Prompts
    example_id: np.ndarray
    text_prompts: Sequence[Prompt]
    summaries: Sequence[str]
    targets: Padded | None = None
    keywords: np.ndarray | None = None
    document: Padded | None = None

    def __post_init__(self):
        checks.check("Documents.prompts", self.prompts, checks.instance(Prompts))
        n, _ = check_padded("Documents.prompts", self.prompts, least=1, n=None, S=None)
        checks.check_array("Documents.example_id", self.example_id, "ids", np.integer, n=n)
        known = Source(self.prompts, self.targets, self.keywords, self.document)
        check_source(known, n, "Documents")
        for name, what in (("text_prompts", Prompt), ("summaries", str)):
            column = getattr(self, name)
            if len(column) != n or not all(isinstance(x, what) for x in column):
                raise ValueError(
                    f"Documents.{name} must hold n = {n} values of type {what.__name__}, one for "
                    "each prompt."
                )

    @functools.cached_property
    def texts(self) -> list[str]:
        """Return the n documents as strings."""
        return [prompt.document for prompt in self.text_prompts]

    def prompts_of(self, rows: np.ndarray, lam: np.ndarray | None = None) -> Prompts:
        """Return the prompts of these rows with λ, padded to the smallest width that fits them."""
        return trim_padding(jax.tree.map(lambda x: x[rows], self.prompts)).replace(lam=lam)

    def source(self, rows: np.ndarray) -> Source:
        """Return what a reward may read about the documents of these rows."""
        pick = lambda x: jax.tree.map(lambda leaf: leaf[rows], x)
        others = map(pick, (self.targets, self.keywords, self.document))
        return Source(self.prompts_of(rows), *others)

    @functools.cached_property
    def sha256(self) -> str:
        """Return a SHA-256 hash of all arrays, prompts and summaries."""
        arrays = (self.prompts, self.example_id, self.targets, self.keywords, self.document)
        texts = fingerprints.hash_strings([x.render() for x in self.text_prompts], self.summaries)
        return fingerprints.hash_strings([fingerprints.hash_arrays(arrays), texts])


def documents_of(examples: Examples, rows: np.ndarray | slice) -> Documents:
    """Return the documents of these rows of examples, whose targets are the human summaries."""
    selected = examples.at(rows)
    return Documents(
        prompts=selected.inputs,
        example_id=selected.example_id,
        text_prompts=selected.text_prompts,
        summaries=selected.summaries,
        targets=selected.targets if selected.has_targets else None,
        keywords=selected.keywords,
        document=selected.document,
    )


def document_record(documents: Documents, row: int) -> dict[str, object]:
    """Return the fields of a record that describe the document of one row."""
    record = {
        "example_id": int(documents.example_id[row]),
        "document": documents.texts[row],
        "summary": documents.summaries[row],
    }
    if documents.keywords is None:
        return record
    return record | {"keywords": keyword_texts(documents.keywords[row])}


def keyword_texts(rows: np.ndarray) -> list[str]:
    """Decode the keywords of one document from uint8 [W, L]; empty rows are dropped."""
    keywords = [bytes(row).rstrip(b"\0").decode() for row in rows]
    return [keyword for keyword in keywords if keyword]
