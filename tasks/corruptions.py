"""Builds preference pairs and entailment tasks by corrupting summaries of two tasks.

The source tasks are `docstrings` and `newswire`.

Tasks `docstrings_pairs` and `newswire_pairs`: the true summary is chosen, a corrupted one rejected.
The field `corruption` names the kind of corruption:

- `swap`: a word that also occurs in the document is replaced by another word. In docstrings it is
  one that occurs between the same neighbours in the split, if possible one of the same document. In
  newswire it is another value of the same role, with probability 1/2 one that the document has in
  another role, if there is any.
- `number`: a number is replaced by another number.
- `other`: the summary of another document, in newswire of the same kind of report.

A random generator seeded by the document selects one of the kinds that are possible for its
summary. All parts come from the document's own split. In newswire every rejected summary is
certainly false; in docstrings a rejected summary may still be acceptable.

Tasks `docstrings_entailment` and `newswire_entailment`: the input is "premise: {document}
hypothesis: {summary}", the target "entailment" for the true summary and "contradiction" for the
corrupted one; each pair gives both examples. Truncated inputs lose the hypothesis, so choose INPUTS
large enough: all inputs of newswire fit in 128 tokens; of the training inputs of docstrings, 9 %
are longer than 256 tokens and 2 % longer than 512. The labels need 16 tokens.
"""

import functools
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dera_jax.prompts import DOCUMENT
from dera_jax.tasks import (
    docstring_corpus,
    docstrings,
    jsonl,
    newswire,
    newswire_corpus,
    newswire_words,
    preferences,
    text,
)

_SEED = 0
_TRUE, _FALSE = "entailment", "contradiction"
# Support of another document's summary, below the 0.6 required of a document's own summary.
_MAX_SUPPORT = 0.5
_NUM_DONORS = 30  # other summaries to draw for the kind `other`
# Words that can replace each other without making a summary false.
_SYNONYMS = [
    frozenset(group.split())
    for group in (
        "calculate calculates compute computes evaluate evaluates",
        "build builds construct constructs create creates",
        "array arrays ndarray tensor tensors",
        "callable function functions method methods op operation ops",
        "given provided specified",
        "sample samples example examples",
        "key keys name names",
        "class type",
        "iterable list sequence",
    )
]
_VAGUE_WORDS = """
along argument arguments current data element elements first following input inputs instance item
items new object objects output outputs result results second set specified throughout value values
"""
_VAGUE = frozenset(_VAGUE_WORDS.split())
_NUMBER = re.compile(
    r"(?<=float)\d+|(?<=int)\d+|(?<=\b[vl])\d\b"  # types, versions, norms
    r"|\d(?=-?d\b|-dimensional\b)"
    r"|(?<![\w.^])\d+(?!\w|\.\w|\^)"
)
_WIDTHS = {"float": (16, 32, 64), "int": (4, 8, 16, 32, 64)}
_TOKEN = re.compile(r"\w+|[^\w\s]")

Columns = dict[str, list[str]]


@functools.cache
def docstrings_pairs(split: str) -> Columns:
    """Return the columns of `docstrings_pairs`; raises RuntimeError as `docstrings.dataset`."""
    pairs = docstrings.pairs(split)
    neighbours = _Neighbours(pairs)
    rows = []
    for pair in pairs:
        kinds = {
            "swap": functools.partial(neighbours.swap, pair),
            "number": functools.partial(_change_number, pair.summary),
            "other": functools.partial(_foreign_line, pair, pairs),
        }
        row = _row(pair.document, pair.summary, kinds)
        rows.append(row | {"keywords": "\n".join(docstrings.keywords(pair))})
    return _columns(rows)


@functools.cache
def newswire_pairs(split: str) -> Columns:
    """Return the columns of the task `newswire_pairs`."""
    reports = newswire.reports(split)
    same_kind: dict[str, list[str]] = {}
    for report in reports:
        same_kind.setdefault(report.facts["kind"], []).append(report.summary)
    rows = []
    for report in reports:
        kinds = {
            "swap": functools.partial(_change_fact, report, False),
            "number": functools.partial(_change_fact, report, True),
            "other": functools.partial(_unfaithful, same_kind[report.facts["kind"]], report.facts),
        }
        row = _row(report.document, report.summary, kinds)
        notes = {"keywords": "\n".join(report.keywords), "facts": json.dumps(report.facts)}
        rows.append(row | notes)
    return _columns(rows)


def entailment(pairs: Mapping[str, list[str]]) -> Columns:
    """Return two rows for each pair: both summaries as hypotheses, with their labels."""
    rows = []
    keys = ("document", "chosen", "rejected", "corruption")
    for document, chosen, rejected, corruption in zip(*(pairs[key] for key in keys), strict=True):
        for label, claim, kind in ((_TRUE, chosen, ""), (_FALSE, rejected, corruption)):
            premise = f"premise: {document} hypothesis: {claim}"
            rows.append({"document": premise, "summary": label, "corruption": kind})
    return _columns(rows)


def _row(
    document: str, summary: str, kinds: Mapping[str, Callable[[random.Random], str | None]]
) -> dict[str, str]:
    """Return a row with the first corruption that is possible, trying the kinds in random order."""
    rng = random.Random(f"{_SEED} {text.text_hash(document)}")
    names = rng.sample(list(kinds), len(kinds))
    kind, rejected = next((name, corrupted) for name in names if (corrupted := kinds[name](rng)))
    return {"document": document, "chosen": summary, "rejected": rejected, "corruption": kind}


def _columns(rows: Sequence[Mapping[str, str]]) -> Columns:
    return {key: [row[key] for row in rows] for key in rows[0]}


class _Gap(NamedTuple):
    left: str
    word: str
    right: str
    start: int


class _Neighbours:
    """Counts bigrams in the documents and summaries of a split, to find words that fit a gap.

    A word that occurs after the gap's left neighbour and before its right neighbour usually fits
    the gap, including its part of speech.
    """

    def __init__(self, pairs: Iterable[docstring_corpus.DocstringPair]):
        self._count: Counter[tuple[str, str]] = Counter()
        for pair in pairs:
            for content in (pair.document, pair.summary):
                self._count.update(itertools.pairwise(["", *_TOKEN.findall(content), ""]))
        self._after: dict[str, set[str]] = {}
        for left, right in self._count:
            self._after.setdefault(left, set()).add(right)

    def swap(self, pair: docstring_corpus.DocstringPair, rng: random.Random) -> str | None:
        """Return the summary with one word replaced, or None if no other word fits in any gap."""
        gaps = list(_gaps(pair))
        own = set(text.words(pair.document))
        swaps = [(gap, word, n) for gap in gaps for word, n in self._fitting(gap, own, pair)]
        if not swaps:
            swaps = [(gap, word, n) for gap in gaps for word, n in self._fitting(gap, None, pair)]
        if not swaps:
            return None
        ((gap, word, _),) = rng.choices(swaps, [n for *_, n in swaps])
        return pair.summary[: gap.start] + word + pair.summary[gap.start + len(gap.word) :]

    def _fitting(
        self, gap: _Gap, among: set[str] | None, pair: docstring_corpus.DocstringPair
    ) -> list[tuple[str, int]]:
        """Return (word, smaller count of its two bigrams) for every word that fits a gap."""
        after = self._after[gap.left] if among is None else self._after[gap.left] & among
        return [
            (word, min(self._count[gap.left, word], self._count[word, gap.right]))
            for word in sorted(after)
            if (word, gap.right) in self._count
            and docstrings.is_content(word)
            and _ending(word) == _ending(gap.word)
            and word not in _VAGUE
            and not _alike(word, gap.word)
            and not docstring_corpus.support(
                pair.summary, word
            )  # the summary has no word of its stem
        ]


def _gaps(pair: docstring_corpus.DocstringPair) -> Iterator[_Gap]:
    """Yields the words of a summary that may be replaced: content words that the document contains.

    Excluded are the first word, a verb that other verbs could replace without making the summary
    false, and parts of `a.b` and `a-b`.
    """
    shared = set(docstrings.shared_words(pair))
    tokens = list(_TOKEN.finditer(pair.summary))
    words = ["", *(token[0] for token in tokens), ""]
    for i, token in enumerate(tokens):
        part = re.search(r"\w[.-]$", pair.summary[: token.start()]) or re.match(
            r"[.-]\w", pair.summary[token.end() :]
        )
        if i and token[0] in shared and not part:
            yield _Gap(words[i], token[0], words[i + 2], token.start())


def _ending(word: str) -> str:
    """Return the inflection of an English word: s (plural or third person), ed, ing, ly, or ''."""
    match = re.search(
        r"(?<=[^s])(s)$|[aeiouy]\w*(ed|ing|ly)$", word
    )  # the `ing` of `string` does not count
    return match[1] or match[2] if match else ""


def _alike(one: str, other: str) -> bool:
    abbreviated = one.startswith(other) or other.startswith(one)
    return abbreviated or any({one, other} <= group for group in _SYNONYMS)


def _change_number(summary: str, rng: random.Random) -> str | None:
    matches = list(_NUMBER.finditer(summary))
    if not matches:
        return None
    match = rng.choice(matches)
    number = int(match[0])
    before, after = summary[: match.start()], summary[match.end() :]
    widths = next((_WIDTHS[kind] for kind in _WIDTHS if before.endswith(kind)), None)
    if widths is None:
        widths = range(1, 4) if re.match("-?d", after) else range(max(number - 3, 0), number + 4)
    return f"{before}{rng.choice([n for n in widths if n != number])}{after}"


def _foreign_line(
    pair: docstring_corpus.DocstringPair,
    pairs: Sequence[docstring_corpus.DocstringPair],
    rng: random.Random,
) -> str:
    """Return another function's summary that has little support in this document."""
    drawn = [pairs[rng.randrange(len(pairs))].summary for _ in range(_NUM_DONORS)]
    lines = [line for line in drawn if line != pair.summary]
    support = [docstring_corpus.support(pair.document, line) for line in lines]
    lowest = support.index(min(support))
    return lines[next((i for i, s in enumerate(support) if s < _MAX_SUPPORT), lowest)]


def _change_fact(report: newswire_corpus.Report, number: bool, rng: random.Random) -> str | None:
    """Return the summary with another value in one of its roles, or None if it has no role."""
    stated = newswire_corpus.facts_in(report.summary, report.facts)
    roles = [role for role in sorted(stated) if report.facts[role].isdigit() == number]
    if not roles:
        return None
    words = set(re.findall(r"\w+", report.summary))
    slots = newswire_words.KINDS[report.facts["kind"]].slots
    new = {role: [value for value in slots[role] if value not in words] for role in roles}
    known = set(report.facts.values())
    elsewhere = [(role, value) for role in roles for value in new[role] if value in known]
    if elsewhere and rng.random() < 0.5:
        role, value = rng.choice(elsewhere)
    else:
        role = rng.choice(roles)
        value = rng.choice(new[role])
    # If several roles have this value, replacing its first occurrence changes one of them.
    return re.sub(rf"\b{report.facts[role]}\b", value, report.summary, count=1)


def _unfaithful(summaries: Sequence[str], facts: Mapping[str, str], rng: random.Random) -> str:
    while True:
        summary = rng.choice(summaries)
        if not newswire_corpus.check(summary, facts).faithful:
            return summary


def _register(
    corpus: str,
    pairs: Callable[[str], Columns],
    splits: Iterable[str],
) -> None:
    def claims(split: str) -> Columns:
        return entailment(pairs(split))

    preferences.register_pairs(f"{corpus}_pairs", pairs, splits, jsonl.SUMMARIZE)
    jsonl.register_pairs(f"{corpus}_entailment", claims, splits, DOCUMENT)


_register("docstrings", docstrings_pairs, docstring_corpus.SPLITS)
_register("newswire", newswire_pairs, newswire.SIZES)
