"""Figures of methods whose settings vary: what is reached against what it costs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from dera_jax.evaluation.plots import TITLES

DPI = 120


def plot_effects(rows: Sequence[Mapping], key: str, title: str, path: Path) -> None:
    """What each setting does while the others stay, a panel each, as a PNG.

    Args:
        rows: with `varied` (the setting's name), `value`, the key, and `<key>_ci95`.
        key: the column of what was reached.
        title: of the figure.
        path: of the file.
    """
    names = list(dict.fromkeys(row["varied"] for row in rows))
    figure = Figure(figsize=(3 * len(names), 3.2), dpi=DPI, layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names):
        own = [row for row in rows if row["varied"] == name]
        errors = [row[f"{key}_ci95"] or 0 for row in own]
        values = [str(row["value"]) for row in own]
        axis.errorbar(values, [row[key] for row in own], yerr=errors, marker="o", capsize=3)
        axis.set_xlabel(name)
        axis.margins(x=0.2)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel(TITLES.get(key, key))
    figure.suptitle(title)
    figure.savefig(path)


def plot_cost(rows: Sequence[Mapping], key: str, title: str, path: Path) -> None:
    """What was reached against what it cost, a curve for each kind of method, as a PNG.

    Args:
        rows: with `method`, `kind`, `positions`, the key, and `<key>_ci95` (None: not known). A kind
            with one row is a point with its method's name; with several, a curve.
        key: the column of what was reached.
        title: of the figure.
        path: of the file.
    """
    cost_figure(rows, key, title).savefig(path, dpi=DPI)


def cost_figure(rows: Sequence[Mapping], key: str, title: str) -> Figure:
    """The figure of `plot_cost`."""
    figure = Figure(figsize=(10, 4.8), dpi=DPI, layout="constrained")
    axis = figure.add_subplot(xscale="log", xlabel="model token-positions per document")
    singles = []
    for i, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda r: r["positions"])
        errors = [row[f"{key}_ci95"] or 0 for row in own]
        places = [row["positions"] for row in own], [row[key] for row in own]
        style = {"label": kind, "marker": "o"} if len(own) > 1 else {"marker": "s"}
        axis.errorbar(*places, yerr=errors, capsize=3, color=f"C{i % 10}", **style)
        singles += [(own[0], f"C{i % 10}")] if len(own) == 1 else []
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter("")  # where a decade is wide, its labels would overlap
    axis.margins(x=0.12, y=0.1)
    axis.set_ylabel(TITLES.get(key, key))
    axis.grid(alpha=0.3)
    figure.suptitle(title)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", fontsize=8)
    _label_points(figure, axis, [(row["method"], (row["positions"], row[key]), color)
                                 for row, color in singles])  # fmt: skip
    return figure


def _label_points(figure: Figure, axis: Axes, points: Sequence[tuple]) -> None:
    """Write (name, place, colour) beside the points, over as little of what is drawn as can be."""
    figure.draw_without_rendering()  # the layout must be known, and stay, where texts are measured
    figure.set_layout_engine("none")
    drawn, boxes = _drawn(axis), []
    for name, place, color in points:
        style = {"textcoords": "offset points", "color": color}
        label = axis.annotate(name, place, (0, 0), fontsize=8, va="center", gid="label",
                              parse_math=False, **style)  # fmt: skip
        start, size = axis.transData.transform(place), label.get_window_extent().size
        sides = [(*side, _beside(start, size, *side)) for side in _sides()]
        x, y, ha, box = min(sides, key=lambda side: _hidden(side[-1], start, drawn, boxes, axis))
        label.set(position=(x, y), ha=ha)
        boxes.append(box)
        end = _nearest(box, start)
        drawn = np.concatenate([drawn, _between(start, end)])
        line = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 4, "shrinkB": 0, "color": color}
        axis.annotate("", place, (end - start) * 72 / DPI, arrowprops=line, **style)


def _drawn(axis: Axes) -> np.ndarray:
    """Pixels along all curves and intervals."""
    # Lines without a style are the intervals' caps: unconnected, and ends of what is in collections.
    lines = [line.get_xydata() for line in axis.lines if line.get_linestyle() != "None"]
    for group in axis.collections:
        lines += group.get_segments()
    corners = [axis.transData.transform(line) for line in lines]
    return np.concatenate(
        [_between(a, b) for line in corners for a, b in pairwise([line[0], *line])]
    )


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels along the line from a to b."""
    return a + np.linspace(0, 1, 100)[:, None] * (b - a)


def _nearest(box: Bbox, point: np.ndarray) -> np.ndarray:
    """The place in a box that is nearest to a point."""
    return np.clip(point, box.min, box.max)


def _sides() -> Iterator[tuple[float, float, str]]:
    """Offsets in points with the alignment that belongs to them, the nearest first."""
    yield 7, 0, "left"
    yield -7, 0, "right"
    for far in range(12, 120, 9):
        for angle in np.arange(16) * np.pi / 8:
            x, y = far * np.cos(angle), far * np.sin(angle)
            yield x, y, "center" if abs(x) < 5 else "left" if x > 0 else "right"


def _beside(start: np.ndarray, size: np.ndarray, x: float, y: float, ha: str) -> Bbox:
    """The pixels of a text of this size, (x, y) points from the start and aligned there."""
    left = {"left": 0, "center": 0.5, "right": 1}[ha]
    corner = start + np.array([x, y]) * DPI / 72 - size * [left, 0.5]
    return Bbox.from_bounds(*corner, *size)


def _hidden(
    box: Bbox, start: np.ndarray, drawn: np.ndarray, boxes: Sequence[Bbox], axis: Axes
) -> float:
    """How much a label in the box, and the line to it from its point, hide or are hidden by.

    Args:
        box: of the label.
        start: its point, in pixels.
        drawn: pixels along what is drawn.
        boxes: of the other labels.
        axis: that the box should not leave, which counts as worse than all else.
    """
    line = _between(start, _nearest(box, start))
    hits = sum(_inside(line, other) + box.padded(2).overlaps(other) for other in boxes)
    frame = axis.get_window_extent()
    leaves = np.any(box.min < frame.min) or np.any(box.max > frame.max)
    return _inside(drawn, box.padded(5)) + 1e3 * hits + 1e6 * leaves


def _inside(points: np.ndarray, box: Bbox) -> int:
    return int(np.all((points > box.min) & (points < box.max), axis=1).sum())
