"""Reads the documents that ship with the package, for which no data set has to be installed.

Each file of assets/documents has one JSON object per line: example_id, document, template and summary.
`python -m tasks.shipped_documents` writes the files again from their data sets.
"""

import json
from importlib import resources
from pathlib import Path

import numpy as np

from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import encoding
from dera_jax.data.documents import Documents
from dera_jax.data.encoding import Sizes, TextExamples
from dera_jax.prompts import Prompt

FOLDER = Path(str(resources.files("dera_jax"))) / "assets" / "documents"
ACLSUM, DOCSTRINGS = "aclsum", "docstrings"
_MOST_TARGETS = 128  # tokens of a human summary


def read(name: str) -> list[dict]:
    """Returns the rows of a file; raises FileNotFoundError if there is none of that name."""
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def documents(name: str, tokenizer: Tokenizer, inputs: int) -> Documents:
    """Returns the documents of a file, encoded for a model in at most `inputs` tokens each."""
    rows = read(name)
    texts = TextExamples(
        text_prompts=[Prompt(row["document"], row["template"]) for row in rows],
        targets=[row["summary"] for row in rows],
        example_id=np.array([row["example_id"] for row in rows], np.int32),
        rejected=None,
        notes={},
    )
    sizes = Sizes(inputs, _MOST_TARGETS)
    ids = encoding.encode(texts, tokenizer, sizes)
    found = encoding.examples_of(texts, ids, sizes, tokenizer.decode, f"shipped {name}")
    return Documents(
        found.inputs,
        found.example_id,
        found.text_prompts,
        found.summaries,
        found.targets,
        document=found.document[np.arange(len(found))],
    )
