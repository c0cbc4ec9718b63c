"""Defines self-supervised objectives on token ids, which map a passage to (inputs, targets).

Span corruption is T5's (Raffel et al., 2020, section 3.1.4). The other objectives teach a small
decoder to copy words from its input, as summaries do: to repeat a marked span, to find how a quoted
cue continues, and to generate the sentence closest to the rest (as in PEGASUS, Zhang et al., 2020).
The ids have no end token.

Axes: P tokens of a passage, S inputs, T targets.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Ids = np.ndarray  # int32, one axis
Example = tuple[Ids, Ids]

NOISE_DENSITY, MEAN_SPAN = 0.15, 3.0
COPY_LENGTHS = (4, 20)
FIND_LENGTHS = (6, 20)
GAP_LENGTHS = (5, 23)
_MIN_PASSAGE = 16


@dataclass(frozen=True)
class Marks:
    """Holds the pieces of a vocabulary that the objectives need.

    Attributes:
        sentinels: int32 [n], the first sentinel first.
        ends: bool [V], pieces that may end a sentence.
        begins: bool [V], pieces that begin a word.
        copy, find, gap: ids of the prefixes "copy:", "find:", "gap:".
    """

    sentinels: Ids
    ends: np.ndarray
    begins: np.ndarray
    copy: Ids
    find: Ids
    gap: Ids


def corrupt(passage: Ids, marks: Marks, rng: np.random.Generator) -> Example:
    """Corrupt spans: replace 15 % of the tokens, in spans of 3 tokens on average, by sentinels.

    A passage [P] gives inputs [S], the passage with one sentinel per span, and targets [T], each
    sentinel followed by its span. Unlike in T5, a span may begin the passage, and none need end it.
    """
    length = len(passage)
    noise = min(max(round(length * NOISE_DENSITY), 1), length - 1)
    spans = min(max(round(noise / MEAN_SPAN), 1), length - noise, len(marks.sentinels))
    hidden = _partition(noise, spans, rng)
    kept = _partition(length - noise + 2, spans + 1, rng)
    kept[0] -= 1  # the first kept part may be empty; so may the last, which is the remainder
    ends = np.cumsum(np.stack([kept[:-1], hidden], axis=1).reshape(-1))
    pieces = np.split(passage, ends)  # kept, hidden, kept, ..., kept
    sentinels = [marks.sentinels[i : i + 1] for i in range(spans)]
    inputs = [part for i in range(spans) for part in (pieces[2 * i], sentinels[i])] + pieces[-1:]
    targets = [part for i in range(spans) for part in (sentinels[i], pieces[2 * i + 1])]
    return np.concatenate(inputs), np.concatenate(targets)


def _partition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the sizes of `parts` non-empty parts of `total`, uniformly over all compositions."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def copy(passage: Ids, marks: Marks, rng: np.random.Generator) -> Example:
    """Mark a span with two sentinels; the target is this span."""
    start, stop = _span(len(passage), COPY_LENGTHS, rng)
    first, second = marks.sentinels[:1], marks.sentinels[1:2]
    parts = (marks.copy, passage[:start], first, passage[start:stop], second, passage[stop:])
    return np.concatenate(parts), passage[start:stop]


def find(passage: Ids, marks: Marks, rng: np.random.Generator) -> Example:
    """Quote a cue of one to three tokens of the passage; the target is its continuation."""
    start, stop = _span(len(passage) - 3, FIND_LENGTHS, rng)
    size = int(rng.integers(1, 4))
    while size < 3 and _occurrences(passage, passage[start : start + size]) > 1:
        size += 1
    cue, rest = passage[start : start + size], passage[start + size : stop + size]
    return np.concatenate((marks.find, cue, marks.sentinels[:1], passage)), rest


def _occurrences(passage: Ids, cue: Ids) -> int:
    windows = np.lib.stride_tricks.sliding_window_view(passage, len(cue))
    return int((windows == cue).all(axis=1).sum())


def gap(passage: Ids, marks: Marks, rng: np.random.Generator) -> Example:
    """Take the sentence that shares most tokens with the rest as the target.

    With probability 1/2 a sentinel replaces the sentence in the inputs. A passage without a
    suitable sentence is treated as in `copy`.
    """
    spans = sentences(passage, marks)
    fitting = [s for s in spans if GAP_LENGTHS[0] <= s[1] - s[0] <= GAP_LENGTHS[1]]
    if len(spans) < 2 or not fitting:
        return copy(passage, marks, rng)
    start, stop = max(fitting, key=lambda span: _centrality(passage, *span))
    shown = passage[start:stop] if rng.random() < 0.5 else marks.sentinels[:1]
    inputs = np.concatenate((marks.gap, passage[:start], shown, passage[stop:]))
    return inputs, passage[start:stop]


def sentences(passage: Ids, marks: Marks) -> list[tuple[int, int]]:
    """Return (start, stop) of each sentence.

    A sentence ends after a piece that may end one, if the next piece begins a word.
    """
    stops = np.flatnonzero(marks.ends[passage[:-1]] & marks.begins[passage[1:]]) + 1
    edges = [0, *stops.tolist(), len(passage)]
    return list(itertools.pairwise(edges))


def _centrality(passage: Ids, start: int, stop: int) -> float:
    inside = set(passage[start:stop].tolist())
    outside = set(passage[:start].tolist()) | set(passage[stop:].tolist())
    return len(inside & outside) / (
        len(inside) + 8
    )  # 8 keeps short sentences from scoring high by chance


def _span(length: int, lengths: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    size = min(int(rng.integers(lengths[0], lengths[1] + 1)), length)
    start = int(rng.integers(0, length - size + 1))
    return start, start + size


# Objectives and their probabilities.
PROBABILITIES: tuple[tuple[Callable[[Ids, Marks, np.random.Generator], Example], float], ...] = (
    (corrupt, 0.3),
    (copy, 0.1),
    (find, 0.1),
    (gap, 0.5),
)


def draw(passage: Ids, marks: Marks, rng: np.random.Generator) -> Example:
    """Draw an objective by `PROBABILITIES` and apply it to a passage; short passages use `corrupt`."""
    objective = int(
        np.searchsorted(np.cumsum([s for _, s in PROBABILITIES]), rng.random(), "right")
    )
    if len(passage) < _MIN_PASSAGE:
        objective = 0
    return PROBABILITIES[min(objective, len(PROBABILITIES) - 1)][0](passage, marks, rng)
