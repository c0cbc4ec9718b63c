"""Writes the documents that ship with the package (`dera_jax.data.shipped_documents`)."""

import json

import tasks.docstrings  # noqa: F401 (registers the task)
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import aclsum
from dera_jax.data.shipped_documents import ACLSUM, DOCSTRINGS, FOLDER
from dera_jax.data.splits import Split

COUNT = 16  # documents of each file, the first ones of their split


def aclsum_rows() -> list[dict]:
    """Returns the first abstracts of ACLSum's validation papers with their human outcome sentence.

    Raises:
        ModuleNotFoundError: the package aclsum is not installed.
    """
    return [
        {
            "example_id": example.example_id,
            "document": example.document,
            "template": example.template,
            "summary": example.summary,
            "paper": paper.id,
            "title": paper.title,
        }
        for paper in aclsum.papers("validation")[:COUNT]
        for example in [paper.example("outcome")]
    ]


def docstring_rows() -> list[dict]:
    """Returns the first held-out documents of the task `docstrings`."""
    found = Split("docstrings", "test", 4096, COUNT).read(Tokenizer(ByteVocabulary()))
    columns = zip(found.example_id, found.text_prompts, found.summaries, strict=True)
    return [
        {
            "example_id": int(number),
            "document": prompt.document,
            "template": prompt.template,
            "summary": summary,
        }
        for number, prompt, summary in columns
    ]


if __name__ == "__main__":
    for name, make in ((ACLSUM, aclsum_rows), (DOCSTRINGS, docstring_rows)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make()]
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
