"""Extracts paragraphs from the full text of ACLSum's training papers.

    python -c "from dera_jax.tasks import aclsum_corpus; print(aclsum_corpus.numbers())"

prints how many paragraphs are used and why others are not. Papers of the splits validation and test
of ACLSum are held out: their paragraphs are not read, and a paragraph of a training paper that shares
wording with their full text, abstracts or summaries is excluded, as for the prose of `prose_corpus`.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dera_jax.data import aclsum
from dera_jax.tasks import prose_corpus, text

SPLITS = ("train", "validation")
WORDS = (40, 200)  # of a paragraph, separated by white space; abstracts have 56 to 395
_VALIDATION_PERCENT = 10  # of the training papers
_MAX_SYMBOLS, _MAX_NUMBERS = 0.03, 0.1  # fractions of the words
_HELD_OUT = ("validation", "test")

# "(Smith and Lee, 2010; see Kim, 2011)", with the space before it; "Smith (2010)" loses its year.
_CITATION = re.compile(r" ?\([^()]*\b(?:19|20)\d\d[a-z]?\)")
_OTHER_SECTION = re.compile(r"acknowledg|appendi|reference|bibliograph", re.IGNORECASE)
_MATH = re.compile("[=<>±×÷|\\\\{}_^~•†‡\u0370-\u03ff\u2190-\u22ff\U0001d400-\U0001d7ff]")
_CAPTION = re.compile(r"\b(Figure|Fig\.|Table|Algorithm) ?\d+ ?[:.] ")
_ADDRESS = re.compile(r"https?:|www\.|@")
_SENTENCES = re.compile(r"[\"“(]*[A-Z].*[.!?][\"”)]*", re.DOTALL)


@dataclass(frozen=True)
class BodyParagraph:
    """Holds a paragraph of a paper's body.

    Attributes:
        paper: id of the paper.
        section: title of its section; empty for footnotes.
        text: without citations in parentheses.
        has_formula: whether a displayed formula was removed from it.
    """

    paper: str
    section: str
    text: str
    has_formula: bool


_FAULTS = {  # the first that holds is counted
    "footnotes, acknowledgements, appendices, references": lambda p: (
        not p.section or _OTHER_SECTION.search(p.section)
    ),
    "a displayed formula": lambda p: p.has_formula or "EQUATION" in p.text,
    "mathematical symbols or Greek letters": lambda p: _MATH.search(p.text),
    "captions of figures and tables": lambda p: _CAPTION.search(p.text),
    "addresses": lambda p: _ADDRESS.search(p.text),
    "no whole sentences": lambda p: not _SENTENCES.fullmatch(p.text),
    f"fewer than {WORDS[0]} words": lambda p: len(p.text.split()) < WORDS[0],
    f"more than {WORDS[1]} words": lambda p: len(p.text.split()) > WORDS[1],
    "more than 3 % single letters (variables)": lambda p: (
        _fraction(p.text, r"\W*[b-zB-HJ-Z]\W*") > _MAX_SYMBOLS
    ),
    "more than 10 % words with a digit": lambda p: _fraction(p.text, r".*\d.*") > _MAX_NUMBERS,
}


def _fraction(passage: str, pattern: str) -> float:
    """Return the fraction of the words that match a pattern."""
    words = passage.split()
    return sum(bool(re.fullmatch(pattern, word)) for word in words) / max(len(words), 1)


def fault(paragraph: BodyParagraph) -> str | None:
    """Return why a paragraph is not used as a document; None if it is."""
    return next((name for name, holds in _FAULTS.items() if holds(paragraph)), None)


def body(paper: str) -> Iterator[BodyParagraph]:
    """Yields the paragraphs of a paper's body in order.

    Raises:
        ModuleNotFoundError: as `aclsum.folder`.
    """
    content = (aclsum.folder() / "paper_jsons" / f"{paper}.json").read_text("utf-8")
    for block in json.loads(content)["pdf_parse"]["body_text"]:
        passage = aclsum.before_punctuation(_CITATION.sub("", " ".join(block["text"].split())))
        yield BodyParagraph(paper, block["section"], passage, bool(block["eq_spans"]))


def corpus() -> dict[str, list[BodyParagraph]]:
    """Return the paragraphs of each of `SPLITS`, in the order of the papers (about 4 s)."""
    return _read()[0]


def numbers() -> str:
    """Return a table of the documents and words of each split, and of what was left out."""
    splits, left_out = _read()
    lines = [
        f"{split}: {len(rows)} documents of {len({x.paper for x in rows})} papers, "
        f"{sum(len(x.text.split()) for x in rows)} words"
        for split, rows in splits.items()
    ]
    return "\n".join(lines + [f"left out, {why}: {count}" for why, count in left_out.most_common()])


@functools.cache
def _read() -> tuple[dict[str, list[BodyParagraph]], Counter[str]]:
    """Return the paragraphs of each split, and how many others there are for each reason."""
    held = _held_out()
    splits, left_out = {split: [] for split in SPLITS}, Counter()
    for paper in aclsum.papers("train"):
        for paragraph in body(paper.id):
            why = fault(paragraph)
            if not why and not held.allows(paragraph.text):
                why = "wording of a held-out paper"
            if why:
                left_out[why] += 1
            else:
                splits[_split_of(paper.id)].append(paragraph)
    return splits, left_out


def _held_out() -> prose_corpus.Held:
    papers = [paper for split in _HELD_OUT for paper in aclsum.papers(split)]
    sections = [x for paper in papers for x in paper.sections.values()]
    bodies = [x.text for paper in papers for x in body(paper.id)]
    summaries = [x for paper in papers for x in paper.summaries.values()]
    return prose_corpus.Held.of(sections + bodies, summaries)


def _split_of(paper: str) -> str:
    percent = int(text.text_hash(paper)[:8], 16) % 100
    return "validation" if percent < _VALIDATION_PERCENT else "train"
