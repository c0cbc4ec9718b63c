"""Reads ACLSum, papers with human summaries of one sentence by aspect, from the package aclsum.

Source: Takeshita et al. 2024, "ACLSum: A New Dataset for Aspect-based Summarization of Scientific
Publications" (NAACL; data under the MIT licence).

The seqio tasks (`dera_jax.tasks.aclsum`) and scripts without TensorFlow read the same `examples`.
"""

import dataclasses
import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dera_jax import checks
from dera_jax.data.example_ids import hashed_id

PACKAGE, INSTALL = "aclsum", "pip install --no-deps aclsum==0.1.2"
ASPECTS = ("outcome", "approach", "challenge")
SECTIONS = ("abstract", "introduction", "conclusion")
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # the names of the package's files
INSTRUCTIONS = {
    x: f"Summarize the {x} of this paper in one sentence.\n\n{{document}}" for x in ASPECTS
}
_LONE_APOSTROPHE = r"(?<!\S)'(?!\S)"


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

    def example(self, aspect: str, sections: Sequence[str] = ("abstract",)) -> "AspectExample":
        """Returns the example of one aspect, with these sections as the document."""
        document = "\n\n".join(self.sections[name] for name in sections)
        return AspectExample(
            paper=self.id,
            aspect=aspect,
            document=document,
            template=INSTRUCTIONS[aspect],
            summary=self.summaries[aspect],
            example_id=hashed_id("\x1f".join([self.id, aspect, *sections])),
        )


@dataclasses.dataclass(frozen=True)
class AspectExample:
    """Holds a document and its human summary by one aspect.

    Attributes:
        paper: id of the paper in the ACL Anthology.
        aspect: one of ASPECTS.
        document: text of the paper's sections.
        template: the prompt template, an instruction with the slot {document}.
        summary: the human summary.
        example_id: 31 bits of a hash of paper, aspect and sections; PRNG keys are derived from it.
    """

    paper: str
    aspect: str
    document: str
    template: str
    summary: str
    example_id: int


def examples(
    split: str, aspects: Sequence[str] = ASPECTS, sections: Sequence[str] = ("abstract",)
) -> list[AspectExample]:
    """Returns the examples of a split: its papers in the order of the package, each by its aspects.

    Args:
        split: one of SPLITS.
        aspects: some of ASPECTS.
        sections: some of SECTIONS; the document is their text, with an empty line between two.

    Raises:
        ModuleNotFoundError: as in `folder`.
        ValueError: a split, an aspect or a section is unknown, or none is given.
    """
    check_names(aspects, sections)
    return [paper.example(aspect, sections) for paper in papers(split) for aspect in aspects]


def check_names(aspects: Sequence[str], sections: Sequence[str]) -> None:
    """Raises ValueError unless all aspects and sections are known and there is one of each."""
    for kind, known, found in (("aspects", ASPECTS, aspects), ("sections", SECTIONS, sections)):
        one_of = checks.Check(f"one of {', '.join(known)}", known.__contains__)
        checks.check(f"aclsum: the {kind}", found, checks.sequence(one_of, f"{known[:2]}"))


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
    known = checks.Check(" or ".join(map(repr, SPLITS)), SPLITS.__contains__)
    checks.check("aclsum: the split", split, known)
    lines = (folder() / f"{SPLITS[split]}.jsonl").read_text("utf-8").split("\n")
    return tuple(_paper(json.loads(line)) for line in lines if line)


def _paper(row: Mapping) -> Paper:
    sections = {name: join_sentences(row["sentences"][name]) for name in SECTIONS}
    summaries = {aspect: " ".join(row["summary"][aspect].split()) for aspect in ASPECTS}
    return Paper(row["id"], row["title"].strip(), sections, summaries)


def join_sentences(sentences: Sequence[str]) -> str:
    """Joins tokenized sentences with spaces, and removes the spaces that the tokenization put in.

    These are the spaces before closing and after opening punctuation, inside quotation marks,
    before "n't", "'s" and the like, and in "F 1". What cannot be decided is kept: "1 - 5",
    "input / output", "can not".
    """
    text = " ".join(map(_attach_apostrophes, sentences))
    text = before_punctuation(text)
    text = re.sub(r"([(\[{]) ", r"\1", text)
    text = re.sub(r" (['’](?:s|re|ve|ll|d|m|t)\b|n['’]t\b)", r"\1", text)
    text = re.sub(r'" ([^"]*[^" ]) ?"', r'"\1"', text)
    return re.sub(r"\bF 1\b", "F1", text)


def before_punctuation(text: str) -> str:
    """Removes the spaces before closing punctuation."""
    return re.sub(r" ([.,;:!?%)\]}])", r"\1", text)


def _attach_apostrophes(sentence: str) -> str:
    """Attaches apostrophes that stand alone: two are quotation marks, one is a plural's possessive."""
    if len(re.findall(_LONE_APOSTROPHE, sentence)) % 2:
        sentence = re.sub(r"(?<=s) '(?= \w)", "'", sentence, count=1)
    return re.sub(rf"{_LONE_APOSTROPHE} (\S.*?) {_LONE_APOSTROPHE}", r"'\1'", sentence)
