"""Stores the records of decoding runs, one per document, in immutable shards with checksums.

    shards/plan.json       the settings of the run, and hashes of its models and documents
    shards/00000.jsonl     a header, then the records of the first batch of documents; and so on
    shards/manifest.json   the shards and their hashes, written when the run is complete
    records.jsonl          all records for human readers; written from the shards, never read

A shard is never changed. A run that was stopped validates the plan and every shard against what it
would write itself, and decodes the documents of the missing shards only.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dera_jax.files import json_files
from dera_jax.files.store import Store, open_store
from dera_jax.partitioning import DATA, mesh_in_use
from dera_jax.progress_bar import ProgressBar

RECORDS = "records.jsonl"
PLAN, MANIFEST = "shards/plan.json", "shards/manifest.json"
FORMAT = 2
_SOURCE = "source_sha256"  # of a reward in Python
_SHOWN = 3  # differences listed in an error message


@dataclasses.dataclass(frozen=True)
class Plan:
    """Describes the records that a run writes.

    Attributes:
        settings: settings of decoding and models as JSON, see `fingerprints`.
        documents: a hash of the documents' contents.
        example_ids: int [n], the documents' example ids in order.
        batch_size: documents per shard.
        samples: (λ, sample number) of every record's samples, in order; None where the method
            determines the samples.
    """

    settings: Mapping[str, object]
    documents: str
    example_ids: np.ndarray
    batch_size: int
    samples: Sequence[tuple[float | list[float], int]] | None = None

    @functools.cached_property
    def content(self) -> dict[str, object]:
        """The plan as JSON, without the example ids, which every shard lists."""
        return {
            "format": FORMAT,
            "settings": self.settings,
            "documents": f"{len(self.example_ids)}, SHA-256 {self.documents}",
            "batch_size": self.batch_size,
            "samples": self.samples and [[lam, number] for lam, number in self.samples],
        }

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of `content`."""
        return _sha256(json_files.dumps(self.content, PLAN).encode())

    @functools.cached_property
    def batches(self) -> list[np.ndarray]:
        """Row numbers of each shard's documents, see `full_batches`."""
        return full_batches(len(self.example_ids), self.batch_size)


def full_batches(n: int, size: int) -> list[np.ndarray]:
    """Returns row numbers 0..n-1 in batches [size].

    The last batch is padded with row n - 1, so that all have one shape and compile once. Where n is below
    `size`, the only batch is not padded, except to a multiple of the devices along 'data'.
    """
    devices = mesh_in_use().shape[DATA]
    size = min(size, -(-n // devices) * devices)
    return [np.minimum(np.arange(i, i + size), n - 1) for i in range(0, n, size)]


def write(
    plan: Plan, decode: Callable[[np.ndarray], list[dict]], folder: Path, name: str
) -> list[dict]:
    """Decodes the documents whose shards are missing in `folder`, and writes all records.

    Args:
        plan: the records to write.
        decode: returns the records of a batch of row numbers; repeated rows give one.
        folder: folder for the records of this plan only.
        name: label of the progress bar.

    Returns:
        All records, in the order of the documents.

    Raises:
        FileExistsError: the folder holds the records of another plan (the message names the
            differences), or another process wrote a shard meanwhile.
        FloatingPointError: as `decode`, with the example ids of the batch.
        ValueError: a shard is damaged or does not belong to this plan; the message names it.
        OSError: a file cannot be read or written; the message names it.
    """
    store = open_store(folder)
    _check_plan(store, plan)
    shards = [_read_shard(store, plan, i) for i in range(len(plan.batches))]
    missing = [i for i, shard in enumerate(shards) if shard is None]
    for i in ProgressBar(missing, desc=name, unit="batch", disable=not missing):
        records = _decode_shard(plan, i, decode)
        if store.create(_key(i), _shard(plan, i, records, store.path(_key(i)))) is None:
            raise FileExistsError(
                f"{store.path(_key(i))} was written by another process meanwhile; let one process "
                "write to a folder, and start this run again to resume it"
            )
        shards[i] = _read_shard(store, plan, i)
    _write_manifest(store, plan, shards)
    records = [record for shard in shards for record in shard.records]
    store.write(RECORDS, json_files.to_lines(records, store.path(RECORDS)))
    return records


def _decode_shard(plan: Plan, number: int, decode: Callable) -> list[dict]:
    rows = np.unique(plan.batches[number])
    try:
        return decode(plan.batches[number])
    except FloatingPointError as error:  # its message numbers the inputs within the batch
        ids = [int(plan.example_ids[row]) for row in rows]
        raise FloatingPointError(f"{error} (inputs 0, 1, … are the example ids {ids})") from error


def read(folder: Path) -> list[dict]:
    """Reads the records of a finished run.

    Raises:
        FileNotFoundError: the run is not complete.
        ValueError: a file is damaged or missing; the message names it.
    """
    store = open_store(folder)
    manifest = store.read(MANIFEST)
    if manifest is None:
        raise FileNotFoundError(
            f"{folder} holds no finished records (no {MANIFEST}); start the run again to finish it"
        )
    records = []
    for key, sha256 in _listed_shards(store, manifest):
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


def _check_plan(store: Store, plan: Plan) -> None:
    """Writes the plan, or raises FileExistsError if the folder holds another one."""
    stored = store.read(PLAN)
    if stored is None and store.read(RECORDS) is not None:
        raise FileExistsError(
            f"{store.path(RECORDS)} is there without {PLAN}: another program or an earlier version "
            "wrote it; choose another folder"
        )
    if stored is None:
        text = json_files.dumps(plan.content, store.path(PLAN), indent=1)
        store.create(PLAN, f"{text}\n".encode())
        stored = store.read(PLAN)
    theirs = _flat(json_files.loads(stored, store.path(PLAN)))
    ours = _flat(json_files.loads(json_files.dumps(plan.content, PLAN).encode(), PLAN))
    names = [x for x in dict.fromkeys([*theirs, *ours]) if theirs.get(x) != ours.get(x)]
    if names:
        shown = [
            x for x in names if not x.startswith("samples[")
        ] or names  # those follow from settings
        found = dict.fromkeys(_difference(x, theirs, ours) for x in shown)
        differences = "; ".join([*found][:_SHOWN])
        raise FileExistsError(
            f"{store.where} holds records of other settings, models or documents, see "
            f"{store.path(PLAN)}: {differences}. Choose another folder, or resume that run with "
            "the settings, models and documents that it was started with"
        )


def _difference(name: str, theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    """Returns in words how two plans differ in one of their leaves."""
    if name.endswith(_SOURCE) and theirs.get(name) and ours.get(name):
        return f"the source of {ours[name.replace(_SOURCE, 'fn')]} has changed"
    short = name.removeprefix("settings.")
    return f"{short} is {theirs.get(name)!r} there, {ours.get(name)!r} now"


def _flat(value: object, path: str = "") -> dict[str, object]:
    """Returns the leaves of nested JSON by their path."""
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
    """Holds the records of a shard and the SHA-256 of the whole file."""

    records: list[dict]
    sha256: str


def _read_shard(store: Store, plan: Plan, number: int) -> _Shard | None:
    """Reads a shard and validates it against the plan; returns None if it does not exist yet."""
    key = _key(number)
    content = store.read(key)
    if content is None:
        return None
    where = store.path(key)
    first, _, body = content.partition(b"\n")
    header, expected = json_files.loads(first, f"{where}, line 1"), _header(plan, number, body)
    if not isinstance(header, dict) or header.keys() != expected.keys():
        raise ValueError(f"{where}: line 1 is not the header of a shard. {_REMEDY}")
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
    "example_ids": "written for other documents",
    "sha256": "changed after it was written",
}


def _check(records: Sequence[object], plan: Plan, ids: Sequence[int], where: str) -> None:
    """Raises ValueError unless the records have these example ids, λ and sample numbers."""
    try:
        found_ids = [record["example_id"] for record in records]
        samples = [[(s.get("lam"), s.get("sample")) for s in r["samples"]] for r in records]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not the records of a run ({error!r}). {_REMEDY}") from error
    if found_ids != list(ids):
        raise ValueError(f"{where}: example ids {found_ids}, expected {list(ids)}. {_REMEDY}")
    expected = plan.samples and [tuple(x) for x in plan.samples]
    if expected and any(found != expected for found in samples):
        raise ValueError(f"{where}: samples of other λ or numbers than {expected}. {_REMEDY}")


def _write_manifest(store: Store, plan: Plan, shards: Sequence[_Shard]) -> None:
    """Writes the manifest, or raises ValueError if the folder holds another one."""
    listed = [{"key": _key(i), "sha256": shard.sha256} for i, shard in enumerate(shards)]
    manifest = {"plan": plan.sha256, "shards": listed}
    content = json_files.to_lines([manifest], store.path(MANIFEST))
    if store.create(MANIFEST, content) is None and store.read(MANIFEST) != content:
        raise ValueError(
            f"{store.path(MANIFEST)} lists other shards than the folder holds; remove it and start "
            "the run again to write it anew"
        )


def _listed_shards(store: Store, manifest: bytes) -> list[tuple[str, str]]:
    content = json_files.loads(manifest, store.path(MANIFEST))
    try:
        return [(shard["key"], shard["sha256"]) for shard in content["shards"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{store.path(MANIFEST)} has no list of shards ({error!r}); remove it and start the "
            "run again to write it anew"
        ) from error
