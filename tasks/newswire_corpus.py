"""Generates newswire: short reports whose facts are all known, for tests and experiments.

A report is about a match, the weather, a market or an election. It has two to four sentences, each
of which states facts by their role (`winner`, `goals`, `city`, ...). Its summary states the main
fact and a random selection of the others. Summaries are therefore short or detailed, and a reward
can change their length. `check` parses a summary and compares it with the facts.

The reports are a deterministic function of the seed of Python's `random`.
"""

import functools
import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dera_jax.tasks import newswire_words as words

_SPLIT_BUCKETS = {"validation": (0, 1), "test": (1, 2), "train": (2, 20)}  # of 20
_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Report:
    """Holds a document with its summary and facts.

    Attributes:
        document: two to four sentences.
        summary: one sentence of 3 to 29 words.
        facts: value by role, of all that the document states, and its `kind`.
        keywords: the values that are words, not numbers, in the document's order.
    """

    document: str
    summary: str
    facts: dict[str, str]
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class FactCheck:
    """Holds the result of comparing a summary with the facts of its document.

    Attributes:
        right: roles whose value the summary states correctly.
        wrong: (role, stated value) where the document states another value or none.
        loose: names and numbers outside of all known phrases, whose role is therefore unknown.
    """

    right: frozenset[str]
    wrong: tuple[tuple[str, str], ...]
    loose: tuple[str, ...]

    @property
    def faithful(self) -> bool:
        """Return whether the summary states at least one fact, and only facts of the document."""
        return bool(self.right) and not self.wrong and not self.loose


def reports(split: str, size: int, seed: int) -> list[Report]:
    """Generate `size` different reports of a split.

    The hash of a report's facts selects its split. No two splits therefore have reports with the
    same facts, whatever their seeds and sizes.

    Raises:
        ValueError: the split is unknown.
    """
    if split not in _SPLIT_BUCKETS:
        raise ValueError(f"newswire has no split {split!r}, only {sorted(_SPLIT_BUCKETS)}")
    selected: dict[int, Report] = {}
    for report in _draws(random.Random(seed)):
        if len(selected) == size:
            break
        key = _hash(report.facts)
        if key % 20 in range(*_SPLIT_BUCKETS[split]):
            selected.setdefault(key, report)
    return list(selected.values())


def check(summary: str, facts: Mapping[str, str]) -> FactCheck:
    """Compare all phrases of a summary that are known for the facts' kind with the facts."""
    claims: list[tuple[str, str]] = []
    rest = summary
    for pattern in _patterns(facts["kind"]):
        for match in pattern.finditer(summary):
            claims += match.groupdict().items()
            start, end = match.span()
            rest = rest[:start] + " " * (end - start) + rest[end:]
    return FactCheck(
        right=frozenset(role for role, value in claims if facts.get(role) == value),
        wrong=tuple((role, value) for role, value in claims if facts.get(role) != value),
        loose=tuple(w for w in re.findall(r"\w+", rest) if w.isdigit() or w in _all_values()),
    )


def facts_in(summary: str, facts: Mapping[str, str]) -> frozenset[str]:
    """Return the roles whose value a summary states correctly."""
    return check(summary, facts).right


def _draws(rng: random.Random) -> Iterator[Report]:
    while True:
        yield _draw(rng)


def _draw(rng: random.Random) -> Report:
    name = rng.choice(sorted(words.KINDS))
    kind = words.KINDS[name]
    values = _values(kind, rng)
    later = _subset(kind.sentences[1:], rng.randint(1, 3), rng)
    templates = [rng.choice(variants) for variants in (kind.sentences[0], *later)]
    roles = [role for template in templates for role in _roles(template)]
    facts = {role: values[role] for role in roles}
    known = [detail for detail in kind.details if facts.keys() >= set(_roles(detail))]
    details = _subset(known, rng.randint(0, len(known)), rng)
    summary = " ".join([rng.choice(kind.cores), *details]).replace(" ,", ",") + "."
    return Report(
        document=" ".join(templates).format(**values),
        summary=summary.format(**values),
        facts={"kind": name} | facts,
        keywords=tuple(value for value in facts.values() if not value.isdigit()),
    )


def _values(kind: words.Kind, rng: random.Random) -> dict[str, str]:
    """Draw a value for each role; roles with the same list of values get different values."""
    drawn: dict[str, str] = {}
    for role, choices in kind.slots.items():
        taken = {value for other, value in drawn.items() if kind.slots[other] == choices}
        drawn[role] = rng.choice([value for value in choices if value not in taken])
    return drawn


def _subset(items: tuple | list, count: int, rng: random.Random) -> list:
    """Draw a random subset of items, in their order."""
    return [items[i] for i in sorted(rng.sample(range(len(items)), count))]


def _roles(template: str) -> list[str]:
    return _SLOT.findall(template)


def _hash(facts: Mapping[str, str]) -> int:
    text = json.dumps(facts, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@functools.cache
def _patterns(kind_name: str) -> tuple[re.Pattern[str], ...]:
    """Return one pattern per phrase of a summary, in which a slot matches any value of its role."""
    kind = words.KINDS[kind_name]

    def slot(match: re.Match[str]) -> str:
        # Match any number, not only those of the list, since another number is a wrong claim too.
        choices = kind.slots[match[1]]
        values = r"\d+" if choices[0].isdigit() else "|".join(choices)
        return rf"(?P<{match[1]}>{values})"

    phrases = [phrase.removeprefix(", ") for phrase in (*kind.cores, *kind.details)]
    return tuple(re.compile(rf"\b{_SLOT.sub(slot, phrase)}\b") for phrase in phrases)


@functools.cache
def _all_values() -> frozenset[str]:
    return frozenset(
        v for kind in words.KINDS.values() for slot in kind.slots.values() for v in slot
    )
