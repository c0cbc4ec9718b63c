"""Reads the sixteen abstracts and the sixteen docstrings that the package holds for its demos.

They are in `dera_jax/assets/aclsum` and `dera_jax/assets/docstrings`, each with an attribution, and
are held out: of the split validation of ACLSum and of the split test of the task `docstrings`. They
need neither the packages from which they were taken nor TensorFlow.
"""

import importlib.resources
import json

import numpy as np

from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import aclsum, encoding
from dera_jax.data.documents import Documents, documents_of
from dera_jax.data.encoding import Sizes, TextExamples
from dera_jax.data.example_ids import hashed_id
from dera_jax.prompts import SUMMARIZE, Prompt

ABSTRACTS, DOCSTRINGS = "aclsum/validation.jsonl", "docstrings/test.jsonl"


def papers() -> list[aclsum.Paper]:
    """Returns the papers of the abstracts, with this section only and all human summaries."""
    return [
        aclsum.Paper(row["id"], row["title"], {"abstract": row["abstract"]}, row["summaries"])
        for row in _rows(ABSTRACTS)
    ]


def abstracts(tokenizer: Tokenizer, inputs: int, aspect: str = "outcome") -> Documents:
    """Returns the abstracts with the human summaries of one aspect, as the task `aclsum` has them.

    Args:
        tokenizer: of the models that read them.
        inputs: maximum tokens of a prompt; longer abstracts are truncated.
        aspect: one of `aclsum.ASPECTS`.

    Raises:
        ValueError: the aspect is unknown.
    """
    aclsum.check_names([aspect], ["abstract"])
    examples = [paper.example(aspect) for paper in papers()]
    texts = TextExamples(
        text_prompts=[Prompt(x.document, x.template) for x in examples],
        targets=[x.summary for x in examples],
        example_id=np.array([x.example_id for x in examples], np.int32),
        rejected=None,
        notes={},
    )
    return _documents(texts, tokenizer, inputs, ABSTRACTS)


def docstrings(tokenizer: Tokenizer, inputs: int) -> Documents:
    """Returns the docstrings, as the task `docstrings` has them; arguments as `abstracts`."""
    rows = _rows(DOCSTRINGS)
    texts = TextExamples(
        text_prompts=[Prompt(x["document"], SUMMARIZE, tuple(x["keywords"])) for x in rows],
        targets=[x["summary"] for x in rows],
        example_id=np.array([hashed_id(x["document"]) for x in rows], np.int32),
        rejected=None,
        notes={encoding.KEYWORDS: ["\n".join(x["keywords"]) for x in rows]},
    )
    return _documents(texts, tokenizer, inputs, DOCSTRINGS)


def _documents(texts: TextExamples, tokenizer: Tokenizer, inputs: int, name: str) -> Documents:
    sizes = Sizes(inputs, inputs)
    encoded = encoding.encode(texts, tokenizer, sizes)
    examples = encoding.examples_of(texts, encoded, sizes, tokenizer.decode, name)
    return documents_of(examples, slice(None))


def _rows(name: str) -> list[dict]:
    content = (importlib.resources.files("dera_jax") / "assets" / name).read_text("utf-8")
    return [json.loads(line) for line in content.split("\n") if line]
