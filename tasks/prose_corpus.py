"""Extracts the prose of the installed packages: docstrings, comments, and text files.

Passages that share wording with a held-out document of the docstrings corpus, or with its summary,
are excluded, so that models trained on this prose have not seen the documents they are evaluated
on.
"""

import importlib.metadata
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dera_jax.tasks import cache, docstring_corpus, text

_NAMES = """
absl-py aiofiles array-record astunparse attrs certifi charset-normalizer chex click
cloudpickle clu contourpy cycler dm-tree docstring-parser editdistance einops etils
fastjsonschema flatbuffers flax fonttools fsspec gast gin-config google-pasta
googleapis-common-protos grpcio h5py humanize hypothesis immutabledict jax jaxlib joblib
jsonschema jupyter-client keras kiwisolver libclang markdown-it-py matplotlib ml-collections
ml-dtypes msgpack nbclient nbformat nltk numpy opt-einsum optax optree orbax-checkpoint
packaging pillow pip platformdirs pluggy prometheus-client promise protobuf psutil pyarrow
pyglove pygments pyparsing pytest python-dateutil pyyaml regex requests rich rouge-score
safetensors scipy sentencepiece seqio setuptools simplejson six tensorboard tensorflow
tensorflow-datasets tensorflow-metadata tensorflow-text tensorstore termcolor toolz tornado
tqdm traitlets treescope typing-extensions urllib3 werkzeug wheel wrapt
"""
DISTRIBUTIONS = tuple(_NAMES.split())
FORMAT = 2  # part of the name of the cache file: increase it whenever the extracted text changes
_TEXT_SUFFIXES = (".md", ".rst")
_PYTHON_SUFFIXES = (".py", ".pyi")
_HEADER = ".h"
_HEADER_COMMENT = re.compile(r"^ *(//[/!]*|/\*\*?|\*(?!/)) ?(?P<comment>.*?)(\*/)?\s*$")
_MIN_WORDS, _MAX_LETTERLESS = 8, 0.35
_LEGAL = re.compile(
    r"copyright|licen[sc]e|warrant(y|ies)|redistribut|\bAS IS\b|all rights reserved|liabilit",
    re.IGNORECASE,
)
_SKIPPED = re.compile(r"licen[sc]e|notice|authors|third_party", re.IGNORECASE)
_HELD_RUN, _HELD_SHORT_RUN, _HELD_SHARE = 8, 5, 0.4  # words, words, fraction of short runs
_VALIDATION_PER_MILLE = 10  # of files


@dataclass(frozen=True)
class Prose:
    """Holds the prose of one file.

    Attributes:
        source: path of the file, relative to site-packages.
        paragraphs: in order of appearance.
        headlines: [document, summary] of its docstrings, as in the task `docstrings`.
    """

    source: str
    paragraphs: list[str]
    headlines: list[list[str]]


def versions() -> dict[str, str]:
    """Return the version of each of `DISTRIBUTIONS` that is installed."""
    installed = {}
    for name in DISTRIBUTIONS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def corpus() -> dict[str, list[Prose]]:
    """Return the prose of each file by split (`train`, `validation`); slow, then cached."""
    key = {"packages": versions(), "format": [FORMAT, docstring_corpus.FORMAT]}
    key["held_out"] = docstring_corpus.shipped()["corpus_hash"]
    splits: dict[str, list[Prose]] = {"train": [], "validation": []}
    for row in cache.rows("prose", key, _rows):
        bucket = int(text.text_hash(row["source"])[:8], 16) % 1000
        splits["validation" if bucket < _VALIDATION_PER_MILLE else "train"].append(Prose(**row))
    return splits


def _rows() -> Iterator[dict]:
    held = Held.of_pairs(
        [p for split in docstring_corpus.HELD_OUT for p in docstring_corpus.held_out(split)]
    )
    seen_runs: set[int] = set()
    seen_headlines: set[int] = set()
    for name in versions():
        for relative, path in _files(name):
            paragraphs, headlines = read(path)
            kept = [
                p
                for p in paragraphs
                if _is_prose(p) and not _repeats(p, seen_runs) and held.allows(p)
            ]
            pairs = [
                [pair.document, pair.summary]
                for pair in headlines
                if not _repeats(pair.document, seen_headlines)
                and held.allows(pair.document)
                and held.allows(pair.summary)
            ]
            if kept or pairs:
                paragraphs = [text.uncased(p) for p in kept]
                yield {"source": relative, "paragraphs": paragraphs, "headlines": pairs}


def _files(distribution: str) -> Iterator[tuple[str, Path]]:
    """Yields (relative path, path) of a distribution's files that may hold prose, sorted."""
    for file in sorted(importlib.metadata.files(distribution) or (), key=str):
        relative = file.as_posix()
        wanted = (
            file.suffix in (*_PYTHON_SUFFIXES, _HEADER, *_TEXT_SUFFIXES) or file.name == "METADATA"
        )
        path = Path(file.locate())
        if wanted and ".." not in file.parts and not _SKIPPED.search(relative) and path.exists():
            yield relative, path


def read(path: Path) -> tuple[list[str], list[docstring_corpus.DocstringPair]]:
    """Return (paragraphs, docstring pairs) of one file."""
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.name == "METADATA":
        content = content.partition("\n\n")[2]  # the text below the metadata fields
    if path.suffix == _HEADER:
        return list(_comment_paragraphs(_header_comments(content))), []
    if path.suffix not in _PYTHON_SUFFIXES:
        return text.paragraphs(content.expandtabs(4).splitlines()), []
    paragraphs, pairs = [], []
    for item in text.documented(content):
        for _, lines in text.sections(item.docstring):
            paragraphs += text.paragraphs(lines)
        pair = docstring_corpus.to_pair(item, "")
        pairs += [pair] if pair else []
    return paragraphs + list(_comment_paragraphs(_python_comments(content))), pairs


def _comment_paragraphs(comments: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yields paragraphs of (row, comment) lines; comments in adjacent rows form a block."""
    block: list[str] = []
    last = -2
    for row, comment in comments:
        if row != last + 1:
            yield from text.paragraphs(block)
            block = []
        block.append(comment)
        last = row
    yield from text.paragraphs(block)


def _header_comments(source: str) -> Iterator[tuple[int, str]]:
    for row, line in enumerate(source.splitlines()):
        match = _HEADER_COMMENT.match(line)
        if match:
            yield row, match["comment"]


def _python_comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields (row, comment) of comments on lines of their own."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
                yield token.start[0], token.string.lstrip("#:!").removeprefix(" ")
    except (tokenize.TokenError, SyntaxError):
        return


def _is_prose(paragraph: str) -> bool:
    """Return whether a paragraph has enough words, mostly letters, and no legal text."""
    letters = sum(c.isalpha() and c.isascii() or c.isspace() for c in paragraph)
    enough = len(text.words(paragraph)) >= _MIN_WORDS
    return (
        enough
        and letters >= (1 - _MAX_LETTERLESS) * len(paragraph)
        and not _LEGAL.search(paragraph)
    )


def _repeats(paragraph: str, seen: set[int]) -> bool:
    """Return True if at least half of a paragraph's 6-grams are in `seen`; adds the others."""
    runs = text.shingles(paragraph, 6)
    new = runs - seen
    seen |= new
    return 2 * len(new) <= len(runs)


@dataclass(frozen=True)
class Held:
    """Holds the wording of held-out documents and summaries, which training data must not share.

    Attributes:
        long_runs, short_runs: hashes of their 8-grams and 5-grams.
        summaries: the words of each summary.
    """

    long_runs: frozenset[int]
    short_runs: frozenset[int]
    summaries: frozenset[str]

    @classmethod
    def of(cls, documents: Iterable[str], summaries: Iterable[str]) -> "Held":
        """Collect the wording of these texts."""
        summaries = list(summaries)
        texts = [*documents, *summaries]
        runs = {n: frozenset().union(*(text.shingles(t, n) for t in texts)) for n in (8, 5)}
        short = frozenset(" ".join(text.words(x)) for x in summaries)
        return cls(runs[_HELD_RUN], runs[_HELD_SHORT_RUN], short)

    @classmethod
    def of_pairs(cls, pairs: Sequence[docstring_corpus.DocstringPair]) -> "Held":
        """Collect the wording of these pairs; names and arguments of definitions may be shared."""
        bodies = [pair.document.partition("): ")[2] for pair in pairs]
        return cls.of(bodies, [pair.summary for pair in pairs])

    def allows(self, passage: str) -> bool:
        """Return True if `passage` shares no 8-gram, few 5-grams (at most 40 %), and no summary."""
        if self.long_runs & text.shingles(passage, _HELD_RUN):
            return False
        runs = text.shingles(passage, _HELD_SHORT_RUN)
        if len(self.short_runs & runs) > _HELD_SHARE * len(runs):
            return False
        return " ".join(text.words(passage)) not in self.summaries
