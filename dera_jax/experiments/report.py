"""Writes a self-contained HTML report: figures, a table, and outputs at the λ of a slider."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

from dera_jax.files import json_files
from dera_jax.files.store import write_file

_PAGE = Path(__file__).with_suffix(".html")
_MAX_DOCUMENTS = 100


def write(
    path: Path,
    title: str,
    facts: Sequence[str],
    figures: Sequence[Path],
    rows: Sequence[dict],
    records: Sequence[dict],
) -> None:
    """Writes the report as one HTML file that needs no network.

    Args:
        path: the path of the HTML file.
        title: the title of the page.
        facts: sentences that summarise the results.
        figures: paths of PNG files, which are embedded in the page.
        rows: the rows of the table, all with the same keys.
        records: records of `sweep.decode`; of each of the first 100 documents the page shows the
            first sample at every λ.
    """
    page = Template(_PAGE.read_text(encoding="utf-8"))
    text = page.substitute(
        title=html.escape(title),
        facts="".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
        figures="\n".join(map(_image, figures)),
        table=_table(rows),
        data=_data(records[:_MAX_DOCUMENTS]),
    )
    write_file(path, text.encode())


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def _table(rows: Sequence[dict]) -> str:
    def cell(value: object) -> str:
        return html.escape(f"{value:.3g}" if isinstance(value, float) else str(value))

    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = ("".join(f"<td>{cell(value)}</td>" for value in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in body)}</table>"


def _data(records: Sequence[dict]) -> str:
    """Returns the JSON for <script>; `<` is escaped, lest "</script>" in an output end it."""
    lams = sorted({sample["lam"] for record in records for sample in record["samples"]})
    documents = [
        {
            "document": record["document"],
            "summary": record["summary"],
            "samples": [_first_sample(record["samples"], lam) for lam in lams],
        }
        for record in records
    ]
    text = json_files.dumps({"lams": lams, "documents": documents}, "the report")
    return text.replace("<", "\\u003c")


def _first_sample(samples: Sequence[dict], lam: float) -> dict:
    sample = next(s for s in samples if s["lam"] == lam)
    return {key: sample[key] for key in ("text", "reward", "length")}
