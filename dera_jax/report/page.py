"""Renders the page of a run's folder: a self-contained HTML file with figures and data embedded."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from dera_jax.evaluation import record_store, report_content
from dera_jax.evaluation.report_content import ReportTable
from dera_jax.files import json_files
from dera_jax.files.store import write_file
from dera_jax.report import outputs
from dera_jax.report.about import about

PAGE = "report.html"
_TEMPLATE = Path(__file__).with_suffix(".html")


def has_report(folder: Path) -> bool:
    """Returns whether a report can be written of a folder: whether a run decoded and ended there."""
    return any((folder / x).exists() for x in (report_content.FILE, record_store.MANIFEST))


def write(folder: str | Path) -> Path:
    """Writes report.html to the folder of a finished run, and returns its path.

    The folder is that of a sweep, samples, best-of-n, a choice of λ, a search, evolution, a comparison
    of methods, an experiment that decodes, or a method on strings with `folder`.

    Raises:
        FileNotFoundError: the folder does not exist, or no run decoded and ended there.
        ValueError: a file is damaged; the message names it.
    """
    folder = Path(folder)
    if not has_report(folder):
        raise FileNotFoundError(_nothing(folder))
    content = report_content.read(folder) or outputs.content_of_records(folder)
    sources = outputs.read(folder, content.sources)
    plans = [outputs.plan(folder / source.folder) for source in content.sources]
    documents = outputs.documents(sources) if sources else []
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(content.title),
        about=_definitions(about(folder, plans)),
        findings="".join(f"<li>{html.escape(x)}</li>" for x in content.findings),
        figures=_figures(sorted(folder.glob("*.png"))),
        tables="\n".join(map(_table, content.tables)),
        hidden="" if sources else "hidden",
        limits=html.escape(outputs.limits(sources, len(documents)) if sources else ""),
        data=_data({"sources": [_source(x) for x in sources], "documents": documents}),
    )
    write_file(folder / PAGE, text.encode())
    return folder / PAGE


def _nothing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; expected that of a finished run that decoded"
    if (folder / record_store.PLAN).exists():
        return f"{folder} has records of a run that has not ended; start the run again to finish it"
    if (folder / "curves.png").exists():
        return f"{folder} is of a training run, which has no outputs to report; its curves are in {folder}/curves.png"
    return (
        f"{folder} has no records to report: neither {record_store.MANIFEST} nor "
        f"{report_content.FILE}. Expected the folder of a finished run that decoded (sample, sweep, "
        "best_of_n, choose, beam_search, evolution, an experiment), or one given as `folder` or --folder"
    )


def _definitions(lines: Mapping[str, str]) -> str:
    return "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in lines.items()
    )


def _figures(paths: Sequence[Path]) -> str:
    images = "\n".join(map(_image, paths))
    return f'<h2>Figures</h2>\n<div class="figures">\n{images}\n</div>' if paths else ""


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def _table(table: ReportTable) -> str:
    row = lambda tag, cells: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    head, *lines = table.cells
    head = [name.replace("-", "\N{NON-BREAKING HYPHEN}") for name in head]  # ROUGE-1 in one line
    body = "".join(f"<tr>{row('td', line)}</tr>" for line in lines)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    title = f"<h3>{html.escape(table.title)}</h3>"
    return f'{title}<div class="scroll"><table><tr>{row("th", head)}</tr>{body}</table></div>{note}'


def _source(source: outputs.SourceRecords) -> dict[str, object]:
    return {"label": source.label, "lams": source.lams}


def _data(values: Mapping[str, Sequence]) -> str:
    """Returns the JSON for <script>; `<` is escaped, lest "</script>" in an output end it."""
    return json_files.dumps(values, "the report").replace("<", "\\u003c")
