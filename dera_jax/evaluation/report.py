"""One self-contained HTML file: figures, numbers, and documents whose λ a slider moves."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

from dera_jax import json_files
from dera_jax.store import write_file

_PAGE = Path(__file__).with_suffix(".html")
_MOST_DOCUMENTS = 100


def write(
    path: Path,
    title: str,
    facts: Sequence[str],
    figures: Sequence[Path],
    rows: Sequence[dict],
    records: Sequence[dict],
) -> None:
    """Writes the report.

    Args:
        path: of the file.
        title: of the page.
        facts: sentences.
        figures: PNG files, put into the page.
        rows: of the table, all with the same keys.
        records: of `sweep.decode`; the first sample of each document at every λ is shown.
    """
    page = Template(_PAGE.read_text(encoding="utf-8"))
    text = page.substitute(
        title=html.escape(title),
        facts="".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
        figures="\n".join(map(_image, figures)),
        table=_table(rows),
        data=_data(records[:_MOST_DOCUMENTS]),
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
    """JSON inside <script>: a "</script>" in a text must not end it."""
    lams = sorted({sample["lam"] for record in records for sample in record["samples"]})
    documents = [
        {
            "document": record["document"],
            "summary": record["summary"],
            "samples": [_first(record["samples"], lam) for lam in lams],
        }
        for record in records
    ]
    text = json_files.dumps({"lams": lams, "documents": documents}, "the report")
    return text.replace("<", "\\u003c")


def _first(samples: Sequence[dict], lam: float) -> dict:
    sample = next(s for s in samples if s["lam"] == lam)
    return {key: sample[key] for key in ("text", "reward", "length")}
