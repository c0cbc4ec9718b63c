"""What a run's lengths cut off, and examples of which nothing is left: counted, left out and said.

Left out are examples with

- empty inputs: nothing but the end token;
- inputs of which only the prompt is left, where the task says how long the document is (its field
  `document_bytes`, which ends the text of the inputs);
- empty targets, unless no target of the split says anything, as in files without summaries;
- for tasks of pairs, an empty rejected text, or a chosen and a rejected text that are the same ids.

Keywords that stood in the document and no longer stand in what is left of it are left out too, since
nobody who reads what is left could know them.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import seqio

from dera_jax.log import warn_once
from dera_jax.models.language_model import Padded, padded
from dera_jax.rewards.words import coverage

DOCUMENT_BYTES = "document_bytes"
KEYWORDS = "keywords"
_SHOWN = 10  # example ids in a message

Row = dict[str, np.ndarray]
_left_out: dict[tuple[str, str], dict[str, int]] = {}


def fit(
    task: seqio.Task | seqio.Mixture, name: str, rows: list[Row], length: int, split: str
) -> Padded:
    """The ids of one feature, cut and padded to [n, length]."""
    feature = task.output_features[name]
    sequences, cut = [], 0
    for row in rows:
        ids = row[name][:length].tolist()
        if len(row[name]) > length and feature.add_eos:
            ids[-1] = feature.vocabulary.eos_id
        sequences.append(ids)
        cut += _is_cut(feature, row, name, length)
    if cut:
        warn_once(
            f"{task.name}, {split}: {cut} of {len(rows)} {name} are longer than {length} tokens "
            "and were cut",
            about=(task.name, split, name, length),  # an epoch is read many times in a run
        )
    return Padded(*padded(sequences, length))


def _is_cut(feature: seqio.Feature, row: Row, name: str, length: int) -> bool:
    if len(row[name]) != length:
        return len(row[name]) > length
    # A full row may have been cut by the task itself (seqio's append_eos_after_trim): ask the text.
    text = row.get(f"{name}_pretokenized")
    if text is None:
        return False
    return len(feature.vocabulary.encode(text.decode())) + feature.add_eos > length


def left_out(task_name: str, split: str) -> dict[str, int]:
    """How many examples the last reading of a split left out, by reason."""
    return _left_out.get((task_name, split), {})


def leave_out(
    task: seqio.Task | seqio.Mixture,
    split: str,
    lengths: Mapping[str, int],
    rows: list[Row],
    ids: Mapping[str, Padded],
) -> np.ndarray:
    """Which examples something is left of, bool [n].

    Args:
        task, split, lengths: what was read, and to which lengths.
        rows: the n examples.
        ids: of each feature [n, length], cut.

    Raises:
        ValueError: nothing is left of any example.
    """
    reasons = _reasons(task, rows, ids)
    kept = np.ones(len(rows), bool)
    counts = {}
    for reason, is_so in reasons.items():
        if count := int(np.count_nonzero(kept & is_so)):
            counts[reason] = count
        kept &= ~is_so
    _left_out[task.name, split] = counts
    if not counts:
        return kept
    said = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    if not kept.any():
        sizes = " and ".join(f"{name} of {size}" for name, size in lengths.items())
        raise ValueError(
            f"task {task.name!r}, split {split!r}: nothing is left of any of its {len(rows)} "
            f"examples at {sizes} tokens ({said}); raise INPUTS or TARGETS, or mend the data"
        )
    gone = [str(rows[i].get("example_id", i)) for i in np.flatnonzero(~kept)]
    more = "" if len(gone) <= _SHOWN else " ..."
    warn_once(
        f"{task.name}, {split}: LEFT OUT {len(gone)} of {len(rows)} examples, of which nothing is "
        f"left to use ({said}); their ids: {', '.join(gone[:_SHOWN])}{more}"
    )
    return kept


def drop_lost_keywords(
    task: seqio.Task | seqio.Mixture, split: str, rows: list[Row], inputs: Padded
) -> list[Row]:
    """The rows without the keywords that were cut away with the end of their documents.

    Args:
        task, split: what was read.
        rows: n examples.
        inputs: their ids as cut, [n, S].
    """
    if KEYWORDS not in rows[0] or "inputs_pretokenized" not in rows[0]:
        return rows
    decode = task.output_features["inputs"].vocabulary.decode
    left, lost, emptied, size = list(rows), 0, 0, inputs.tokens.shape[1]
    for i, row in enumerate(rows):
        keywords = row[KEYWORDS].decode().split("\n")
        if not any(keywords) or len(row["inputs"]) < size:
            continue
        ids = inputs.tokens[i, : inputs.lengths[i]].tolist()
        whole, cut = row["inputs_pretokenized"].decode(), decode(ids)
        kept = [x for x in keywords if coverage(cut, [x]) or not coverage(whole, [x])]
        if len(kept) < len(keywords):
            left[i] = row | {KEYWORDS: "\n".join(kept).encode()}
            lost, emptied = lost + 1, emptied + (not kept)
    if lost:
        warn_once(
            f"{task.name}, {split}: cutting to {size} tokens took keywords from {lost} of "
            f"{len(rows)} documents; they are LEFT OUT, and {emptied} documents have none left"
        )
    return left


def _reasons(
    task: seqio.Task | seqio.Mixture, rows: list[Row], ids: Mapping[str, Padded]
) -> dict[str, np.ndarray]:
    """Which examples [n] are useless, by reason."""
    empty = {name: ~_has_text(task.output_features[name], x) for name, x in ids.items()}
    targets = empty["targets"]
    if targets.all() and not any(map(_says_something, rows)):
        targets = np.zeros_like(targets)
    found = {
        "empty inputs": empty["inputs"],
        "only the prompt is left of the inputs": _only_prompts(task, rows, ids["inputs"]),
        "empty targets": targets,
    }
    if "rejected" in ids:
        found["empty rejected text"] = empty["rejected"]
        same = (ids["targets"].tokens == ids["rejected"].tokens).all(axis=1)
        same &= ids["targets"].lengths == ids["rejected"].lengths
        found["chosen and rejected are the same"] = same
    return found


def _has_text(feature: seqio.Feature, ids: Padded) -> np.ndarray:
    """Whether there is more than the end token in ids [n, length]: bool [n]."""
    ends = feature.vocabulary.eos_id
    return (np.asarray(ids.mask) & (ids.tokens != ends)).any(axis=1)


def _says_something(row: Row) -> bool:
    """Whether the uncut target has text."""
    if "targets_pretokenized" in row:
        return bool(row["targets_pretokenized"].strip())
    return len(row["targets"]) > 1


def _only_prompts(
    task: seqio.Task | seqio.Mixture, rows: Sequence[Row], inputs: Padded
) -> np.ndarray:
    if DOCUMENT_BYTES not in rows[0] or "inputs_pretokenized" not in rows[0]:
        return np.zeros(len(rows), bool)
    encode = task.output_features["inputs"].vocabulary.encode
    size_of = functools.cache(lambda prompt: len(encode(prompt.decode(errors="ignore"))))
    sizes = inputs.lengths - task.output_features["inputs"].add_eos
    found = []
    for row, size in zip(rows, sizes, strict=True):
        text = row["inputs_pretokenized"]
        start = len(text) - int(row[DOCUMENT_BYTES])
        is_cut = len(row["inputs"]) >= inputs.tokens.shape[1]
        found.append(
            size <= size_of(text[:start])
            and (is_cut or not encode(text[start:].decode(errors="ignore")))
        )
    return np.array(found)
