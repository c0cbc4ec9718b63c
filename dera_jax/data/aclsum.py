"""Reads ACLSum, papers with human summaries of one sentence by aspect, from the package aclsum.

Source: Takeshita et al. 2024, "ACLSum: A New Dataset for Aspect-based Summarization of Scientific
Publications" (NAACL; data under the MIT licence).
"""

import dataclasses
import functools
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

from dera_jax import checks

PACKAGE, INSTALL = "aclsum", "pip install --no-deps aclsum==0.1.2"
ASPECTS = ("outcome", "approach", "challenge")
SECTIONS = ("abstract", "introduction", "conclusion")
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # the names of the package's files
INSTRUCTIONS = {
    x: f"Summarize the {x} of this paper in one sentence.\n\n{{document}}" for x in ASPECTS
}


@dataclasses.dataclass(frozen=True)
class Paper:
    """Holds a paper's text and its human summaries.

    Attributes:
        id: id of the paper in the ACL Anthology.
        title: its title.
        sections: text of the abstract, the introduction and the conclusion by name.
        summaries: the human summary of one sentence by aspect.
    """

    id: str
    title: str
    sections: Mapping[str, str]
    summaries: Mapping[str, str]


def folder() -> Path:
    """Returns the data folder of the installed package, which is not imported.

    Raises:
        ModuleNotFoundError: the package is not installed; the message has the command that does it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(
            f"ACLSum is read from the package {PACKAGE}, which is not installed: {INSTALL}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "dataset"


@functools.cache
def papers(split: str) -> tuple[Paper, ...]:
    """Returns the papers of a split, in the order of the package.

    Raises:
        ModuleNotFoundError: as in `folder`.
        ValueError: the split is not one of SPLITS.
    """
    checks.check(
        "aclsum: the split",
        split,
        checks.Check(" or ".join(map(repr, SPLITS)), lambda x: x in SPLITS),
    )
    lines = (folder() / f"{SPLITS[split]}.jsonl").read_text("utf-8").split("\n")
    return tuple(_paper(json.loads(line)) for line in lines if line)


def _paper(row: Mapping) -> Paper:
    sections = {name: join_sentences(row["sentences"][name]) for name in SECTIONS}
    summaries = {aspect: row["summary"][aspect].strip() for aspect in ASPECTS}
    return Paper(row["id"], row["title"].strip(), sections, summaries)


def join_sentences(sentences: list[str]) -> str:
    """Joins tokenized sentences to a text, without the spaces that the tokenization put in."""
    text = " ".join(sentences)
    text = re.sub(r" ([.,;:!?%)\]}])", r"\1", text)  # before closing punctuation
    text = re.sub(r"([(\[{]) ", r"\1", text)  # after opening brackets
    text = re.sub(r" (['’](?:s|re|ve|ll|d|m|t)\b|n['’]t\b)", r"\1", text)  # contractions
    text = re.sub(r"(\w) ' (?=\w)", r"\1' ", text)  # plural possessives
    return re.sub(r'" ([^"]*[^" ]) ?"', r'"\1"', text)  # quotation marks in pairs
