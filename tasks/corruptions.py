"""Preference pairs and entailment made from `docstrings` and `newswire` by corrupting summaries.

Tasks `docstrings_pairs` and `newswire_pairs`: the true summary is chosen, a corrupted one rejected.
The field `corruption` names what was done to it:

- `swap`: a word that the document has too became another one of its kind: in docstrings one that
  the split has seen between the same neighbours, if possible in the same document; in newswire
  another value of the same role, with an even chance one that the document has elsewhere, if any.
- `number`: a number became another one.
- `other`: it is the summary of another document, in newswire of the same kind of report.

A generator seeded by the document draws one of the kinds that its summary admits. All pieces come
from the document's own split. In newswire every rejected summary is false for certain; in
docstrings one may happen to be a fair summary still.

Tasks `docstrings_entailment` and `newswire_entailment`: "premise: {document} hypothesis: {summary}"
in, "entailment" out for the true summary and "contradiction" for the corrupted one, both in turn.
Inputs that are cut lose the hypothesis, so leave room: all of newswire's fit in 128 tokens; of
docstrings' training inputs 9 % are longer than 256 tokens and 2 % longer than 512. The labels need
16 tokens.
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
from tasks import (
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
_MOST_SUPPORT = 0.5  # of another document's line: below the 0.6 that makes a line a summary
_DONORS = 30
# Words that fit in each other's place without making a summary false.
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
    """The columns of `docstrings_pairs`. Raises RuntimeError as `docstrings.dataset`."""
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
    """The columns of `newswire_pairs`."""
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
    """From columns of pairs to two rows for each: its texts as hypotheses, and their label."""
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
    """The first draft that there is, of the kinds in random order."""
    rng = random.Random(f"{_SEED} {text.text_hash(document)}")
    names = rng.sample(list(kinds), len(kinds))
    kind, rejected = next((name, draft) for name in names if (draft := kinds[name](rng)))
    return {"document": document, "chosen": summary, "rejected": rejected, "corruption": kind}


def _columns(rows: Sequence[Mapping[str, str]]) -> Columns:
    return {key: [row[key] for row in rows] for key in rows[0]}


class _Gap(NamedTuple):
    left: str
    word: str
    right: str
    start: int


class _Neighbours:
    """Which words stand next to which in the texts of a split.

    A word that is known both after the word before a gap and before the word after it mostly fits
    the gap, in part of speech too.
    """

    def __init__(self, pairs: Iterable[docstring_corpus.Pair]):
        self._count: Counter[tuple[str, str]] = Counter()
        for pair in pairs:
            for written in (pair.document, pair.summary):
                self._count.update(itertools.pairwise(["", *_TOKEN.findall(written), ""]))
        self._after: dict[str, set[str]] = {}
        for left, right in self._count:
            self._after.setdefault(left, set()).add(right)

    def swap(self, pair: docstring_corpus.Pair, rng: random.Random) -> str | None:
        """The summary with one word changed, or None if no other word fits anywhere."""
        gaps = list(_gaps(pair))
        own = set(text.words(pair.document))
        found = [(gap, word, n) for gap in gaps for word, n in self._fitting(gap, own, pair)]
        if not found:
            found = [(gap, word, n) for gap in gaps for word, n in self._fitting(gap, None, pair)]
        if not found:
            return None
        ((gap, word, _),) = rng.choices(found, [n for *_, n in found])
        return pair.summary[: gap.start] + word + pair.summary[gap.start + len(gap.word) :]

    def _fitting(
        self, gap: _Gap, among: set[str] | None, pair: docstring_corpus.Pair
    ) -> list[tuple[str, int]]:
        """(word, how often it is known in such a place) of what could stand in a gap."""
        after = self._after[gap.left] if among is None else self._after[gap.left] & among
        return [
            (word, min(self._count[gap.left, word], self._count[word, gap.right]))
            for word in sorted(after)
            if (word, gap.right) in self._count
            and docstrings.is_content(word)
            and _ending(word) == _ending(gap.word)
            and word not in _VAGUE
            and not _alike(word, gap.word)
            and not docstring_corpus.support(pair.summary, word)  # by stem: not said already
        ]


def _gaps(pair: docstring_corpus.Pair) -> Iterator[_Gap]:
    """The words of a summary that could be swapped.

    Not the first one, a verb for which others would do as well, nor parts of `a.b` and `a-b`.
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
    """What an English word's form shows: plural or third person, past, -ing, adverb."""
    match = re.search(r"(?<=[^s])(s)$|[aeiouy]\w*(ed|ing|ly)$", word)  # not that of `string`
    return match[1] or match[2] if match else ""


def _alike(one: str, other: str) -> bool:
    abbreviated = one.startswith(other) or other.startswith(one)
    return abbreviated or any({one, other} <= group for group in _SYNONYMS)


def _change_number(summary: str, rng: random.Random) -> str | None:
    found = list(_NUMBER.finditer(summary))
    if not found:
        return None
    match = rng.choice(found)
    number = int(match[0])
    before, after = summary[: match.start()], summary[match.end() :]
    widths = next((_WIDTHS[kind] for kind in _WIDTHS if before.endswith(kind)), None)
    if widths is None:
        widths = range(1, 4) if re.match("-?d", after) else range(max(number - 3, 0), number + 4)
    return f"{before}{rng.choice([n for n in widths if n != number])}{after}"


def _foreign_line(
    pair: docstring_corpus.Pair, pairs: Sequence[docstring_corpus.Pair], rng: random.Random
) -> str:
    """Another function's line that says little of this one."""
    drawn = [pairs[rng.randrange(len(pairs))].summary for _ in range(_DONORS)]
    lines = [line for line in drawn if line != pair.summary]
    said = [docstring_corpus.support(pair.document, line) for line in lines]
    return lines[next((i for i, s in enumerate(said) if s < _MOST_SUPPORT), said.index(min(said)))]


def _change_fact(report: newswire_corpus.Report, number: bool, rng: random.Random) -> str | None:
    """The summary with another value of one of its roles, or None if there is no such role."""
    told = newswire_corpus.facts_in(report.summary, report.facts)
    roles = [role for role in sorted(told) if report.facts[role].isdigit() == number]
    if not roles:
        return None
    said = set(re.findall(r"\w+", report.summary))
    slots = newswire_words.KINDS[report.facts["kind"]].slots
    new = {role: [value for value in slots[role] if value not in said] for role in roles}
    known = set(report.facts.values())
    elsewhere = [(role, value) for role in roles for value in new[role] if value in known]
    if elsewhere and rng.random() < 0.5:
        role, value = rng.choice(elsewhere)
    else:
        role = rng.choice(roles)
        value = rng.choice(new[role])
    # The first of equal numbers will do: any of them is the value of its own role.
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
