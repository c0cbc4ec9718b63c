"""Reads the outputs of a run from its records, as the page shows them: by document, source and λ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dera_jax.evaluation import method_tables, record_store, sweep_tables
from dera_jax.evaluation.best_of import best_records
from dera_jax.evaluation.method_tables import GUIDE
from dera_jax.evaluation.report_content import OutputSource, ReportContent
from dera_jax.evaluation.sweep import PART
from dera_jax.files import json_files

MOST_DOCUMENTS = 100
_TITLES = {  # by the names of methods on strings
    "search": "Reward-guided beam search (DeAL)",
    "evolution": "Evolutionary decoding (DARWIN)",
    "best of n": "Best of n",
}
MOST_SAMPLES = 4  # of a document at one λ


class SourceRecords(NamedTuple):
    """The records of the sources with one label, and the values of λ as texts, in order."""

    label: str
    records: Sequence[Sequence[Mapping]]
    lams: Sequence[str]


def content_of_records(folder: Path) -> ReportContent:
    """Returns what the report of a folder with the records of one sweep or method shows.

    Raises:
        FileNotFoundError, ValueError: as `record_store.read`.
    """
    records, method = record_store.read(folder), plan(folder)["settings"].get("method")
    if method is None:
        return sweep_tables.content(records)
    rows = [{"method": method["name"]} | sweep_tables.mean_row(records)]
    table = sweep_tables.table_of("Means", method_tables.cells(rows))
    cost = f"{rows[0]['forward_tokens']:,.0f} tokens processed per output"
    findings = [f"Mean reward {sweep_tables.format_cell(rows[0], 'reward')}, with {cost}."]
    title = _TITLES.get(method["name"], method["name"])
    return ReportContent(title, [table], findings, [OutputSource(method["name"], ".")])


def plan(folder: Path) -> dict:
    """Returns the plan of the records in a folder, see `record_store.Plan.content`."""
    path = folder / record_store.PLAN
    return json_files.loads(path.read_bytes(), str(path))


def read(folder: Path, sources: Sequence[OutputSource]) -> list[SourceRecords]:
    """Reads the records of all sources; those with one label become one.

    Raises:
        FileNotFoundError, ValueError: as `record_store.read`.
    """
    by_label: dict[str, list] = {}
    for source in sources:
        records = record_store.read(folder / source.folder)
        if source.best_of > 1:
            records = best_records(records, source.best_of)
        by_label.setdefault(source.label, []).append(records)
    return [SourceRecords(label, x, _lams(x)) for label, x in by_label.items()]


def _lams(stores: Sequence[Sequence[Mapping]]) -> list[str]:
    found = {_lam(x) for records in stores for x in records[0]["samples"]}
    return [_text(lam) for lam in sorted(found, key=lambda x: (x is not None, x))]


def _lam(sample: Mapping) -> float | tuple[float, ...] | None:
    lam = sample.get("lam")
    return tuple(lam) if isinstance(lam, list) else lam


def _text(lam: float | tuple[float, ...] | None) -> str:
    return "" if lam is None else sweep_tables.lam_text(lam)


def documents(sources: Sequence[SourceRecords]) -> list[dict]:
    """Returns the first documents of the first source as JSON values, with the outputs of all sources.

    Each has `document`, `human` (empty if there is no human text), `keywords` and `outputs`: for each
    source and each of its λ a list of outputs with `text` and `note`.
    """
    by_id = [
        [{record["example_id"]: record for record in records} for records in source.records]
        for source in sources
    ]
    return [
        {
            "document": first["document"],
            "human": first["summary"],
            "keywords": first.get("keywords", []),
            "outputs": [
                _outputs(
                    source, [x[first["example_id"]] for x in stores if first["example_id"] in x]
                )
                for source, stores in zip(sources, by_id, strict=True)
            ],
        }
        for first in sources[0].records[0][:MOST_DOCUMENTS]
    ]


def _outputs(source: SourceRecords, records: Sequence[Mapping]) -> list[list[dict]]:
    at = {lam: [] for lam in source.lams}
    for record in records:
        for sample in record["samples"]:
            at[_text(_lam(sample))].append({"text": sample["text"], "note": note(sample)})
    return [outputs[:MOST_SAMPLES] for outputs in at.values()]


def note(sample: Mapping) -> str:
    """Returns what was measured of an output, in words."""
    parts = []
    if sample.get("reward") is not None:
        names = [x for x in sample if x.startswith(PART) and x != PART + GUIDE]
        own = [f"{name.removeprefix(PART)} {sample[name]:.2f}" for name in names]
        parts.append(f"reward {sample['reward']:.2f}" + (f" ({', '.join(own)})" if own else ""))
    parts.append(f"{sample['length']} {'token' if sample['length'] == 1 else 'tokens'}")
    if sample.get("kl") is not None:
        parts.append(f"KL {sample['kl']:.2f} nats")
    if "forward_tokens" in sample:
        parts.append(f"{sample['forward_tokens']:,} tokens processed")
    if not sample["finished"]:
        parts.append("truncated at the length limit")
    return " · ".join(parts)


def limits(sources: Sequence[SourceRecords], shown: int) -> str:
    """Returns a sentence on what of the outputs is not shown; empty if all of them are."""
    total = len(sources[0].records[0])
    samples = max(_num_samples(records[0]) for source in sources for records in source.records)
    parts = [f"the first {shown} of {total} documents"] if shown < total else []
    if samples > MOST_SAMPLES:
        parts.append(f"the first {MOST_SAMPLES} of {samples} samples of each document")
    return f"Shown are {' and '.join(parts)}; records.jsonl has all of them." if parts else ""


def _num_samples(record: Mapping) -> int:
    """Returns the number of samples of a document at one λ."""
    return max(Counter(_lam(sample) for sample in record["samples"]).values())
