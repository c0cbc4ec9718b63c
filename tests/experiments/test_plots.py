"""Figures and samples of methods, with human summaries and without."""

import matplotlib.pyplot as plt
import pytest

from dera_jax.evaluation import method_tables, record_store
from dera_jax.experiments import plots

COST, ROUGE = "tokens processed per output", "ROUGE-L (F1 × 100)"


@pytest.fixture
def labels(monkeypatch) -> list[list[str]]:
    """The labels of the horizontal axes of each figure that was drawn, and of the vertical ones."""
    found, close = [], plt.close

    def look(figure):
        axes = figure.axes
        found.append([[x.get_xlabel() for x in axes], [x.get_ylabel() for x in axes]])
        close(figure)

    monkeypatch.setattr(plt, "close", look)
    return found


def rows(*columns: str) -> list[dict]:
    values = {x: 1.0 for name in columns for x in (name, f"{name}_ci95")}
    about = {"method": "DeAL", "documents": 2, "weight": 1.0, "lookahead": 2}
    return [about | values, about | values]


@pytest.mark.parametrize("rouge", [True, False])
def test_rouge_has_a_panel_where_there_are_summaries(labels, rouge, tmp_path):
    columns = ("reward", "forward_tokens") + ("rougeL",) * rouge
    plots.plot_methods(rows(*columns), "reward", "title", tmp_path / "methods.png")
    plots.plot_search_grid(rows(*columns), rows(*columns)[0], "reward", "", tmp_path / "grid.png")
    (methods, _), (_, grid) = labels
    assert methods == ["mean reward"] + [ROUGE] * rouge + [COST]
    assert grid == ["mean reward"] + [ROUGE] * rouge
    assert all((tmp_path / name).exists() for name in ("methods.png", "grid.png"))


def test_samples_of_documents_without_a_summary(monkeypatch, tmp_path):
    record = {"document": "one", "summary": "s", "samples": [{"text": "two"}]}
    monkeypatch.setattr(record_store, "read", lambda _: [record, record | {"summary": ""}])
    method_tables.write_samples(tmp_path, ["greedy"])
    lines = (tmp_path / "samples.txt").read_text().splitlines()
    assert lines == ["document: one", "human: s", "greedy: two", "", "document: one", "greedy: two"]
