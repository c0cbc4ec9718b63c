"""Computes and writes the table of a λ sweep, one row for each λ, from its records."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax.evaluation.report_content import WIDTH, OutputSource, ReportContent, ReportTable
from dera_jax.evaluation.sweep import PART
from dera_jax.evaluation.tables import align_columns, write_csv
from dera_jax.files import json_files
from dera_jax.metrics.intervals import mean_interval
from dera_jax.metrics.ngrams import distinct_n, repetition
from dera_jax.metrics.rouge import rouge
from dera_jax.rewards import words


def table(records: Sequence[dict]) -> list[dict]:
    """Returns one row per λ with the mean of every metric over documents.

    <column>_ci95, for all but distinct2, is half the width of the 95 % confidence interval over
    documents (None for a single document), see `metrics.intervals`. Columns:

        reward, reward_<name>   the reward and its parts
        in_range_rate           fraction of outputs in the length range, if the reward has one
        length                  tokens, without the end token
        kl                      KL to the reference in nats per sequence; an unbiased estimate only
                                at temperature 1 and without truncation
        rouge1, rouge2, rougeL  ROUGE against the human summary, F1 × 100; absent if no document has one
        repetition, distinct2   fractions of word bigrams, see `metrics.ngrams`
        faithful                `words.faithful_fraction` of the text
        coverage, covered       fraction of the document's keywords in the text, and fraction of
                                outputs with all of them, if the task has keywords
    """
    lams = sorted({_key(sample["lam"]) for record in records for sample in record["samples"]})
    return [_row(lam, records) for lam in lams]


def _key(lam: float | Sequence[float]) -> float | tuple[float, ...]:
    return tuple(lam) if isinstance(lam, Sequence) else lam


def _row(lam: float | tuple[float, ...], records: Sequence[dict]) -> dict:
    at_lam = lambda samples: [s for s in samples if _key(s["lam"]) == lam]
    return {"lam": lam} | mean_row([r | {"samples": at_lam(r["samples"])} for r in records])


def mean_row(records: Sequence[dict]) -> dict:
    """Returns one row of `table` for all samples of the records, equally many per document.

    Records of `methods` have the further column forward_tokens, tokens processed per output.
    """
    columns = column_values(records)
    texts = [sample["text"] for record in records for sample in record["samples"]]
    row = {"documents": len(records), "samples": len(texts)}
    for name, groups in columns.items():
        row[name], row[f"{name}_ci95"] = mean_interval(groups)
    return row | {"distinct2": distinct_n(texts)}


def column_values(records: Sequence[dict]) -> dict[str, list[list[float]]]:
    """Returns, for every column of `mean_row` with an interval, each document's sample values."""
    samples = [record["samples"] for record in records]
    by_sample = lambda metric: [
        [metric(r, s) for s in group] for r, group in zip(records, samples, strict=True)
    ]
    first = samples[0][0]
    recorded = [x for x in first if x.startswith(PART) or (x == "reward" and first[x] is not None)]
    recorded += [x for x in ("length", "kl", "forward_tokens") if first.get(x) is not None]
    columns = {name: by_sample(lambda r, s, name=name: float(s[name])) for name in recorded}
    if "in_range" in first:
        columns["in_range_rate"] = by_sample(lambda r, s: float(s["in_range"]))
    columns["repetition"] = by_sample(lambda r, s: repetition(s["text"]))
    columns["faithful"] = by_sample(lambda r, s: words.faithful_fraction(s["text"], r["document"]))
    if "keywords" in records[0]:
        columns["coverage"] = by_sample(lambda r, s: words.coverage(s["text"], r["keywords"]))
        columns["covered"] = [[float(x == 1) for x in group] for group in columns["coverage"]]
    if not any(record["summary"] for record in records):
        return columns
    texts = [s["text"] for group in samples for s in group]
    references = [r["summary"] for r, group in zip(records, samples, strict=True) for _ in group]
    for name, flat in rouge(references, texts).items():
        columns[name] = np.reshape(flat, (len(records), -1)).tolist()
    return columns


def write_report(records: Sequence[dict], folder: Path) -> list[dict]:
    """Writes metrics.json, metrics.csv and, of numbers λ, sweep.png; returns `table`."""
    rows = table(records)
    json_files.write(folder / "metrics.json", rows)
    write_csv(folder / "metrics.csv", rows)
    if isinstance(rows[0]["lam"], float):
        from dera_jax.evaluation import plots  # imports matplotlib

        plots.plot_sweep(rows, folder / "sweep.png")
    return rows


def content(records: Sequence[dict]) -> ReportContent:
    """Returns what the report of a sweep, or of samples of one model, shows."""
    rows = table(records)
    title = "Sweep over λ" if len(rows) > 1 else "Samples"
    tables = [table_of("Means", cells(rows))]
    return ReportContent(title, tables, sentences(rows), [OutputSource("", ".")])


def sentences(rows: Sequence[dict]) -> list[str]:
    """Returns sentences on how reward, its parts, length, KL and ROUGE-L change with λ."""
    parts = [x for x in rows[0] if x.startswith(PART) and not x.endswith("_ci95")]
    titles = {"reward": "Mean reward", "in_range_rate": "In-range rate"}
    titles |= {name: f"Part {name.removeprefix(PART)}" for name in parts}
    titles |= {"length": "Mean length in tokens", "kl": "KL to the reference in nats"}
    titles |= {"rougeL": "ROUGE-L"}
    return changes(rows, {key: title for key, title in titles.items() if key in rows[0]})


def changes(rows: Sequence[dict], titles: Mapping[str, str]) -> list[str]:
    """Returns for each column in `titles` a sentence on its values at the least λ, λ = 1 and the largest λ.

    The sentence also has the largest value, if it is at another λ.
    """
    if len(rows) == 1:
        return [f"{title}: {format_cell(rows[0], key)}." for key, title in titles.items()]
    at = lambda row, key: f"{format_cell(row, key)} at λ = {lam_text(row['lam'])}"
    named = [x for x in rows if x in (rows[0], rows[-1]) or x["lam"] == 1]
    lines = []
    for key, title in titles.items():
        largest = max(rows, key=lambda row, key=key: row[key])
        most = "" if largest in named else f"; the largest is {at(largest, key)}"
        lines.append(f"{title}: {', '.join(at(x, key) for x in named)}{most}.")
    return lines


COLUMNS = {
    "λ": "lam",
    "reward": "reward",
    "in-range rate": "in_range_rate",
    "faithful words": "faithful",
    "coverage": "coverage",
    "all keywords": "covered",
    "length (tokens)": "length",
    "KL (nats)": "kl",
    "ROUGE-1": "rouge1",
    "ROUGE-2": "rouge2",
    "ROUGE-L": "rougeL",
    "distinct-2": "distinct2",
    "repetition": "repetition",
}


INTERVAL_NOTE = "± is half the width of the 95 % confidence interval over documents."
_MEANINGS = {  # of the columns whose titles do not say it
    "in-range rate": "fraction of outputs that ended, with a length in the reward's range",
    "faithful words": "fraction of an output's content words that occur in the document",
    "coverage": "fraction of a document's keywords that occur in an output",
    "all keywords": "fraction of outputs with all keywords of their document",
    "KL (nats)": "divergence from the reference, per output",
    "distinct-2": "of the pairs of neighbouring words in all outputs of a row, the fraction that are different",
    "repetition": "fraction of an output's pairs of neighbouring words that occur earlier in it",
    "tokens processed": "tokens of prompt and output that all models process for an output",
}
_ONE_DIGIT = ("length", "rouge1", "rouge2", "rougeL")
_WHOLE = ("forward_tokens",)


def format_table(rows: Sequence[dict], width: int | None = None) -> str:
    """Formats the rows of `table` as text, with confidence intervals and what the columns mean.

    Args:
        rows: rows of `table`.
        width: as of `tables.align_columns`.
    """
    lines = cells(rows)
    filled = textwrap.fill(note(lines[0]), min(width or WIDTH, WIDTH))
    return f"{align_columns(lines, width)}\n{filled}"


def table_of(title: str, lines: Sequence[Sequence[str]]) -> ReportTable:
    """Returns a table of a report with what `note` says of its columns."""
    return ReportTable(title, lines, note(lines[0]))


def note(titles: Sequence[str]) -> str:
    """Returns what stands below a table: the meaning of ± and of the columns with these titles."""
    meanings = [f"{x}: {_MEANINGS[x]}." for x in titles if x in _MEANINGS]
    return " ".join([INTERVAL_NOTE, *meanings])


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """Returns the head and the lines of the table of `format_table`, as texts."""
    columns = {key: title for title, key in COLUMNS.items() if key in rows[0]}
    if "in_range_rate" in columns:
        columns.pop("faithful", None)  # not needed in the table of a length reward
    parts = [x for x in rows[0] if x.startswith(PART) and not x.endswith("_ci95")]
    first = {key: columns.pop(key) for key in ("lam", "reward") if key in columns}
    columns = first | {x: x.replace("_", " ") for x in parts} | columns
    return [
        list(columns.values()),
        *([format_cell(row, key) for key in columns] for row in rows),
    ]


def format_cell(row: dict, key: str) -> str:
    """Formats an entry of a row, with ± half the width of its confidence interval if it has one."""
    if key == "lam":
        return lam_text(row[key])
    error = row.get(f"{key}_ci95")
    digits = 0 if key in _WHOLE else 1 if key in _ONE_DIGIT else 2
    text = f"{row[key]:.{digits}f}"
    return text if error is None else f"{text} ±{error:.{digits}f}"


def lam_text(lam: float | Sequence[float] | None) -> str:
    """Formats λ, of several aligned models too; a dash for None, a single model."""
    if lam is None:
        return "—"
    return ", ".join(f"{x:g}" for x in lam) if isinstance(lam, Sequence) else f"{lam:g}"
