"""How tables and findings of sweeps are written."""

import pytest

from dera_jax.evaluation import plots, sweep_tables, tables


def row(lam: float, reward: float) -> dict:
    """A row of `sweep_tables.table`, as far as findings and figures need it."""
    means = {"reward": reward, "length": 9.0, "kl": lam}
    widths = {f"{name}_ci95": 0.5 for name in means}
    return {"lam": lam, "documents": 2, "samples": 2} | means | widths


def test_findings_name_the_aligned_model():
    rows = [row(lam, reward) for lam, reward in ((0.0, 0.0), (0.5, 3.0), (1.0, 2.0), (2.0, 1.0))]
    (sentence,) = sweep_tables.changes(rows, {"reward": "Reward"})
    values = "0.00 ±0.50 at λ = 0, 2.00 ±0.50 at λ = 1, 1.00 ±0.50 at λ = 2"
    assert sentence == f"Reward: {values}; the largest is 3.00 ±0.50 at λ = 0.5."


def test_columns_that_are_too_wide_go_below_each_other():
    lines = [["λ", "reward", "KL", "length"], ["0", "0.5", "0", "12"]]
    assert tables.align_columns(lines) == "λ  reward  KL  length\n0     0.5   0      12"
    assert tables.align_columns(lines, 13) == "λ  reward  KL\n0     0.5   0\n\nλ  length\n0      12"
    assert tables.align_columns(lines, 2).count("\n\n") == 2  # a column that is wider stands alone


def test_an_output_that_is_empty_keeps_its_label():
    sample = {"sample": 0, "lam": 1.0, "text": ""}
    record = {"document": "a", "summary": "b", "samples": [sample]}
    label = lambda x: f"λ = {x['lam']:g}"
    assert tables.side_by_side(record, label) == "\na\n  human  b\n  λ = 1"


@pytest.mark.parametrize("names", [("reward", "length", "kl"), ("reward", "length")])
def test_the_lowest_panel_of_each_column_has_an_axis(names, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    kept = lambda x: {k: y for k, y in x.items() if not k.startswith("kl") or "kl" in names}
    plots.plot_sweep([kept(row(0.0, 0.0)), kept(row(1.0, 2.0))], tmp_path / "sweep.png")
    (figure,) = figures
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == len(names)
    lowest = {axis.get_position().x0: axis for axis in shown}  # the last of a column is the lowest
    for axis in lowest.values():
        figure.canvas.draw()
        assert axis.get_xlabel() == "λ" and any(x.get_text() for x in axis.get_xticklabels())
        assert all(x.label1.get_visible() for x in axis.xaxis.get_major_ticks())
