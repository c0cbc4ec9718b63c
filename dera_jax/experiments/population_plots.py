"""Plots the results of decoding methods against their settings and against their cost."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from dera_jax.experiments.plots import TITLES

DPI = 120


def plot_effects(rows: Sequence[Mapping], key: str, title: str, path: Path) -> None:
    """Plots the effect of each setting, with the others fixed, in a panel of its own, as a PNG.

    Args:
        rows: rows with `varied` (the setting's name), `value`, the key, and `<key>_ci95` (half the
            width of the 95 % confidence interval, or None).
        key: the column to plot.
        title: the title of the figure.
        path: the path of the PNG file.
    """
    names = list(dict.fromkeys(row["varied"] for row in rows))
    figure = Figure(figsize=(3 * len(names), 3.2), dpi=DPI, layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names):
        panel = [row for row in rows if row["varied"] == name]
        errors = [row[f"{key}_ci95"] or 0 for row in panel]
        values = [str(row["value"]) for row in panel]
        axis.errorbar(values, [row[key] for row in panel], yerr=errors, marker="o", capsize=3)
        axis.set_xlabel(name)
        axis.margins(x=0.2)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel(TITLES.get(key, key))
    figure.suptitle(title)
    figure.savefig(path)


def plot_cost(rows: Sequence[Mapping], key: str, title: str, path: Path) -> None:
    """Plots a column against the tokens processed, a curve for each kind of method, as a PNG.

    Args:
        rows: rows with `method`, `kind`, `forward_tokens`, the key, and `<key>_ci95` (or None). A
            kind with several rows is a curve, a kind with one row a point labelled with its method.
        key: the column to plot.
        title: the title of the figure.
        path: the path of the PNG file.
    """
    cost_figure(rows, key, title).savefig(path, dpi=DPI)


def cost_figure(rows: Sequence[Mapping], key: str, title: str) -> Figure:
    """Returns the figure of `plot_cost`."""
    figure = Figure(figsize=(10, 4.8), dpi=DPI, layout="constrained")
    axis = figure.add_subplot(xscale="log", xlabel="tokens processed per document")
    singles = []
    for i, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        curve = sorted(
            (row for row in rows if row["kind"] == kind), key=lambda r: r["forward_tokens"]
        )
        errors = [row[f"{key}_ci95"] or 0 for row in curve]
        points = [row["forward_tokens"] for row in curve], [row[key] for row in curve]
        style = {"label": kind, "marker": "o"} if len(curve) > 1 else {"marker": "s"}
        axis.errorbar(*points, yerr=errors, capsize=3, color=f"C{i % 10}", **style)
        singles += [(curve[0], f"C{i % 10}")] if len(curve) == 1 else []
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter("")  # in a wide decade minor labels would overlap
    axis.margins(x=0.12, y=0.1)
    axis.set_ylabel(TITLES.get(key, key))
    axis.grid(alpha=0.3)
    figure.suptitle(title)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", fontsize=8)
    _label_points(figure, axis, [(row["method"], (row["forward_tokens"], row[key]), color)
                                 for row, color in singles])  # fmt: skip
    return figure


def _label_points(figure: Figure, axis: Axes, points: Sequence[tuple]) -> None:
    """Label points (name, place, colour) where the labels cover as little as possible."""
    figure.draw_without_rendering()  # fixes the layout, which the measured label sizes depend on
    figure.set_layout_engine("none")
    drawn, boxes = _drawn_pixels(axis), []
    for name, place, color in points:
        style = {"textcoords": "offset points", "color": color}
        label = axis.annotate(name, place, (0, 0), fontsize=8, va="center", gid="label",
                              parse_math=False, **style)  # fmt: skip
        start, size = axis.transData.transform(place), label.get_window_extent().size
        sides = [(*side, _label_box(start, size, *side)) for side in _label_offsets()]
        x, y, ha, box = min(
            sides, key=lambda side: _overlap_penalty(side[-1], start, drawn, boxes, axis)
        )
        label.set(position=(x, y), ha=ha)
        boxes.append(box)
        end = _nearest(box, start)
        drawn = np.concatenate([drawn, _between(start, end)])
        line = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 4, "shrinkB": 0, "color": color}
        axis.annotate("", place, (end - start) * 72 / DPI, arrowprops=line, **style)


def _drawn_pixels(axis: Axes) -> np.ndarray:
    """Return pixels [n, 2] along all curves and error bars."""
    # Lines without a style are the caps of error bars, whose stems are in `axis.collections`.
    lines = [line.get_xydata() for line in axis.lines if line.get_linestyle() != "None"]
    for group in axis.collections:
        lines += group.get_segments()
    corners = [axis.transData.transform(line) for line in lines]
    return np.concatenate(
        [_between(a, b) for line in corners for a, b in pairwise([line[0], *line])]
    )


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 100 pixels [100, 2] along the line from a to b."""
    return a + np.linspace(0, 1, 100)[:, None] * (b - a)


def _nearest(box: Bbox, point: np.ndarray) -> np.ndarray:
    """Return the place in a box that is nearest to a point."""
    return np.clip(point, box.min, box.max)


def _label_offsets() -> Iterator[tuple[float, float, str]]:
    """Yield label offsets (points) with their horizontal alignment, roughly the nearest first."""
    yield 7, 0, "left"
    yield -7, 0, "right"
    for far in range(12, 120, 9):
        for angle in np.arange(16) * np.pi / 8:
            x, y = far * np.cos(angle), far * np.sin(angle)
            yield x, y, "center" if abs(x) < 5 else "left" if x > 0 else "right"


def _label_box(start: np.ndarray, size: np.ndarray, x: float, y: float, ha: str) -> Bbox:
    """Return the box (pixels) of a label of this size, (x, y) points from `start`."""
    left = {"left": 0, "center": 0.5, "right": 1}[ha]
    corner = start + np.array([x, y]) * DPI / 72 - size * [left, 0.5]
    return Bbox.from_bounds(*corner, *size)


def _overlap_penalty(
    box: Bbox, start: np.ndarray, drawn: np.ndarray, boxes: Sequence[Bbox], axis: Axes
) -> float:
    """Return a penalty for what a label in this box, and the line to its point, overlap.

    Args:
        box: the box of the label, in pixels.
        start: the labelled point, in pixels.
        drawn: pixels [n, 2] along all curves and error bars.
        boxes: the boxes of the other labels.
        axis: the axis that the label must stay in; to leave it has the largest penalty.
    """
    line = _between(start, _nearest(box, start))
    hits = sum(_inside(line, other) + box.padded(2).overlaps(other) for other in boxes)
    frame = axis.get_window_extent()
    leaves = np.any(box.min < frame.min) or np.any(box.max > frame.max)
    return _inside(drawn, box.padded(5)) + 1e3 * hits + 1e6 * leaves


def _inside(points: np.ndarray, box: Bbox) -> int:
    return int(np.all((points > box.min) & (points < box.max), axis=1).sum())
