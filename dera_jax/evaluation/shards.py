"""The records of decoding runs, one per document: written batch by batch, never lost, never believed on sight.

    shards/plan.json       what the run writes: settings, models, documents (their hashes)
    shards/00000.jsonl     a header, then the records of the first batch of documents; and so on
    shards/manifest.json   the shards and their hashes, written when all are there
    records.jsonl          all records, for people; made from the shards, never read

No shard is ever changed. A run that was stopped compares the plan and every shard with what it
would write itself, and decodes the documents of the shards that are missing.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dera_jax import json_files
from dera_jax.store import Store, open_store

RECORDS = "records.jsonl"
PLAN, MANIFEST = "shards/plan.json", "shards/manifest.json"
FORMAT = 1
_SHOWN = 3  # differences in an error


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run writes.

    Attributes:
        settings: of decoding and models, as JSON; see `fingerprints`.
        documents: a hash of everything that is read of them.
        example_ids: int [n], in order.
        batch_size: documents of a shard.
        samples: λ and sample number of the samples of every record, in order; None where a method
            decides.
    """

    settings: Mapping[str, object]
    documents: str
    example_ids: np.ndarray
    batch_size: int
    samples: Sequence[tuple[float | list[float], int]] | None = None

    @functools.cached_property
    def content(self) -> dict[str, object]:
        """As JSON; the example ids are part of `documents` and stand in each shard."""
        return {
            "format": FORMAT,
            "settings": self.settings,
            "documents": f"{len(self.example_ids)}, SHA-256 {self.documents}",
            "batch_size": self.batch_size,
            "samples": self.samples and [[lam, number] for lam, number in self.samples],
        }

    @functools.cached_property
    def sha256(self) -> str:
        return _sha256(json_files.dumps(self.content, PLAN).encode())

    @functools.cached_property
    def batches(self) -> list[np.ndarray]:
        """Row numbers of the documents of each shard, see `full_batches`."""
        return full_batches(len(self.example_ids), self.batch_size)


def full_batches(n: int, size: int) -> list[np.ndarray]:
    """Row numbers 0..n-1 in batches [size]; the last is filled up with row n - 1, so that no shape
    is new."""
    return [np.minimum(np.arange(i, i + size), n - 1) for i in range(0, n, size)]


def write(
    plan: Plan, decode: Callable[[np.ndarray], list[dict]], folder: Path, name: str
) -> list[dict]:
    """Decodes what is not in `folder` yet; leaves there all records.

    Args:
        plan: what to write.
        decode: gives the records of the documents in a batch of row numbers, repeated rows once.
        folder: of this plan alone.
        name: beside the progress bar.

    Returns:
        All records, in the order of the documents.

    Raises:
        FileExistsError: the folder holds the records of another plan, naming what differs.
        FloatingPointError: as `decode`, with the example ids.
        ValueError: a shard is damaged or is not what this plan writes, naming it.
        OSError: a file cannot be read or written, naming it.
    """
    store = open_store(folder)
    _begin(store, plan)
    found = [_read_shard(store, plan, i) for i in range(len(plan.batches))]
    missing = [i for i, shard in enumerate(found) if shard is None]
    for i in tqdm(missing, desc=name, unit="batch", disable=not missing):
        records = _decoded(plan, i, decode)
        if store.create(_key(i), _shard(plan, i, records, store.path(_key(i)))) is None:
            raise FileExistsError(f"{store.path(_key(i))} was written by another process meanwhile")
        found[i] = _read_shard(store, plan, i)
    _end(store, plan, found)
    records = [record for shard in found for record in shard.records]
    store.write(RECORDS, json_files.to_lines(records, store.path(RECORDS)))
    return records


def _decoded(plan: Plan, number: int, decode: Callable) -> list[dict]:
    rows = np.unique(plan.batches[number])
    try:
        return decode(plan.batches[number])
    except FloatingPointError as error:  # numbers the inputs of the batch
        ids = [int(plan.example_ids[row]) for row in rows]
        raise FloatingPointError(f"{error} (inputs 0, 1, … are the example ids {ids})") from error


def read(folder: Path) -> list[dict]:
    """The records of a finished run.

    Raises:
        FileNotFoundError: the run has not ended.
        ValueError: a file is damaged or missing, naming it.
    """
    store = open_store(folder)
    manifest = store.read(MANIFEST)
    if manifest is None:
        raise FileNotFoundError(
            f"{folder} holds no finished records (no {MANIFEST}); run what makes them to its end"
        )
    records = []
    for key, sha256 in _listed(store, manifest):
        content = store.read(key)
        if content is None or _sha256(content) != sha256:
            raise ValueError(
                f"{store.path(key)} is missing or is not what {store.path(MANIFEST)} lists; remove "
                "the file and start the run again to decode its documents"
            )
        records += json_files.from_lines(content, store.path(key))[1:]
    return records


def _key(number: int) -> str:
    return f"shards/{number:05d}.jsonl"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _begin(store: Store, plan: Plan) -> None:
    """Writes the plan, or compares it with the one that is there."""
    there = store.read(PLAN)
    if there is None and store.read(RECORDS) is not None:
        raise FileExistsError(
            f"{store.path(RECORDS)} is there without {PLAN}: it is not of this run or of an earlier "
            "version; choose another folder"
        )
    if there is None:
        text = json_files.dumps(plan.content, store.path(PLAN), indent=1)
        store.create(PLAN, f"{text}\n".encode())
        there = store.read(PLAN)
    theirs = _flat(json_files.loads(there, store.path(PLAN)))
    ours = _flat(json_files.loads(json_files.dumps(plan.content, PLAN).encode(), PLAN))
    names = [x for x in dict.fromkeys([*theirs, *ours]) if theirs.get(x) != ours.get(x)]
    if names:
        listed = "; ".join(
            f"{x} is {theirs.get(x)!r} there, {ours.get(x)!r} now" for x in names[:_SHOWN]
        )
        raise FileExistsError(
            f"{store.where} holds records of other settings, models or documents, see "
            f"{store.path(PLAN)}: {listed}. Choose another folder, or go back to what that run was "
            "started with to resume it"
        )


def _flat(value: object, path: str = "") -> dict[str, object]:
    """The leaves of nested JSON by their path."""
    if isinstance(value, dict):
        parts = [(f"{path}.{key}".lstrip("."), part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
    else:
        return {path: value}
    return {path: None} | {k: x for name, part in parts for k, x in _flat(part, name).items()}


def _header(plan: Plan, number: int, body: bytes) -> dict[str, object]:
    ids = np.asarray(plan.example_ids)[np.unique(plan.batches[number])]
    return {
        "plan": plan.sha256,
        "shard": number,
        "example_ids": ids.tolist(),
        "sha256": _sha256(body),
    }


def _shard(plan: Plan, number: int, records: Sequence[dict], where: str) -> bytes:
    body = json_files.to_lines(records, where)
    return json_files.to_lines([_header(plan, number, body)], where) + body


class _Shard(NamedTuple):
    """What was read; sha256 is that of the whole file."""

    records: list[dict]
    sha256: str


def _read_shard(store: Store, plan: Plan, number: int) -> _Shard | None:
    """A shard, compared with what the plan writes; None if it is not there yet."""
    key = _key(number)
    content = store.read(key)
    if content is None:
        return None
    where = store.path(key)
    first, _, body = content.partition(b"\n")
    header, expected = json_files.loads(first, f"{where}, line 1"), _header(plan, number, body)
    if not isinstance(header, dict) or header.keys() != expected.keys():
        raise ValueError(f"{where}: line 1 is no header of a shard. {_REMEDY}")
    for name, value in expected.items():
        if header[name] != value:
            raise ValueError(
                f"{where}: {_MEANING[name]}: {header[name]!r} in its first line, expected {value!r}. "
                f"{_REMEDY}"
            )
    records = json_files.from_lines(body, where)
    _check(records, plan, header["example_ids"], where)
    return _Shard(records, _sha256(content))


_REMEDY = "Remove the file and start the run again to decode its documents anew"
_MEANING = {
    "plan": "written by a run of other settings, models or documents",
    "shard": "the shard of another number, moved or copied here",
    "example_ids": "about other documents",
    "sha256": "changed after it was written",
}


def _check(records: Sequence[object], plan: Plan, ids: Sequence[int], where: str) -> None:
    """Raises ValueError unless the records are of these documents, λ and sample numbers."""
    try:
        found = [record["example_id"] for record in records]
        samples = [[(s.get("lam"), s.get("stream")) for s in r["samples"]] for r in records]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not the records of a run ({error!r}). {_REMEDY}") from error
    if found != list(ids):
        raise ValueError(f"{where}: example ids {found}, expected {list(ids)}. {_REMEDY}")
    expected = plan.samples and [tuple(x) for x in plan.samples]
    if expected and any(row != expected for row in samples):
        raise ValueError(f"{where}: samples of other λ or numbers than {expected}. {_REMEDY}")


def _end(store: Store, plan: Plan, found: Sequence[_Shard]) -> None:
    """Writes the manifest, or compares it with the one that is there."""
    shards = [{"key": _key(i), "sha256": shard.sha256} for i, shard in enumerate(found)]
    manifest = {"plan": plan.sha256, "shards": shards}
    content = json_files.to_lines([manifest], store.path(MANIFEST))
    if store.create(MANIFEST, content) is None and store.read(MANIFEST) != content:
        raise ValueError(
            f"{store.path(MANIFEST)}: lists other shards than there are; remove it to list them anew"
        )


def _listed(store: Store, manifest: bytes) -> list[tuple[str, str]]:
    found = json_files.loads(manifest, store.path(MANIFEST))
    try:
        return [(shard["key"], shard["sha256"]) for shard in found["shards"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{store.path(MANIFEST)}: no list of shards ({error!r}); remove it"
        ) from error
