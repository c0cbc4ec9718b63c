"""Executes notebooks as a new user would, and writes executed notebooks as HTML pages.

The pages need nothing but a browser, and writing them needs no package besides nbformat.
"""

import html
from pathlib import Path

import nbformat
from nbclient import NotebookClient

STYLE = (
    "body{max-width:60em;margin:auto;font:15px sans-serif}pre{white-space:pre-wrap;padding:.5em}"
    ".code{background:#eee}.markdown{font:inherit}img{max-width:100%}"
)


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Runs all cells in `folder`, then one that fails if TensorFlow was imported; returns the notebook."""
    notebook = nbformat.read(path, as_version=4)
    check = 'import sys\nassert not {"tensorflow", "seqio"} & set(sys.modules)'
    notebook.cells.append(nbformat.v4.new_code_cell(check))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Returns the outputs of all cells, in order."""
    return [x for cell in notebook.cells for x in cell.get("outputs", [])]


def page(notebook: nbformat.NotebookNode) -> str:
    """Returns an HTML page with all cells, their pictures and what they print, progress bars apart."""
    parts = []
    for cell in notebook.cells:
        parts.append(f'<pre class="{cell.cell_type}">{html.escape(cell.source)}</pre>')
        parts += [_output(x) for x in cell.get("outputs", []) if x.get("name") != "stderr"]
    body = "\n".join(parts)
    return f'<!DOCTYPE html><meta charset="utf-8"><style>{STYLE}</style>\n{body}\n'


def _output(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}">'
    return f"<pre>{html.escape(output.get('text', data.get('text/plain', '')))}</pre>"
