"""The notebooks run from top to bottom without TensorFlow, and are kept without outputs.

Executed copies, with small settings, are written to out/colabs as HTML pages.
"""

from pathlib import Path

import nbformat
import pytest

from tests import notebook_pages

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
PAGES = ROOT / "out" / "colabs"
PRINTED = {  # what the last steps of each notebook print
    "01_realignment": ["aligned at β = 0.05", "λ = 2 "],
    "02_length_experiment": ["KL(DeRa ‖ retrained)", "λ = 2     in range"],
    "03_reward_guided_search": ["lookahead 8, 4 beams", "λ = 1: coverage"],
    "04_evolutionary_decoding": ["replacement only", " under: "],
    "05_your_own_models": ["accuracy on test pairs", "λ = 1    short and right"],
}


def test_the_notebooks_are_those_described_here():
    assert [path.stem for path in NOTEBOOKS] == list(PRINTED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_badge_and_the_installation(path):
    about, installation = nbformat.read(path, as_version=4).cells[:2]
    assert f"https://colab.research.google.com/github/OWNER/NAME/blob/main/colabs/{path.name})" in (
        about.source
    )
    assert installation.source.startswith("try:\n    import dera_jax\nexcept ImportError:")
    assert "%pip install" in installation.source
    assert "git+<address of this repository>" in installation.source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """In a folder outside of the repository, where only the package can be imported."""
    monkeypatch.setenv("DERA_JAX_SMALL", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = notebook_pages.execute(path, tmp_path)
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"{path.stem}.html").write_text(notebook_pages.page(notebook), "utf-8")
    found = notebook_pages.outputs(notebook)
    assert 2 <= sum("image/png" in x.get("data", {}) for x in found) <= 4
    printed = "".join(x.get("text", "") for x in found if x.get("name") == "stdout")
    for expected in PRINTED[path.stem]:
        assert expected in printed
