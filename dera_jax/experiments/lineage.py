"""Draws the lineage of a DARWIN population: the outputs, rewards and adoptions for one document."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerPatch
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.path import Path as Curve

# The lineage is drawn on one axis in inches, so that lines can be wrapped by their width in inches.
MARGIN, LABEL, GAP, END = 0.3, 1.75, 0.6, 0.85
TITLE, LINE, PAD, BETWEEN = 0.82, 0.125, 0.07, 0.15
WIDEST, NARROWEST, MOST_LINES = 4.2, 2.0, 7
FONT, DPI = 7.5, 120
# All colours are light, so that black text is readable on them; their lightness alone orders them.
REWARDS = LinearSegmentedColormap.from_list("rewards", ["#fffbe6", "#c9e3a6", "#5fb3a1"])
RENDERER = RendererAgg(1, 1, DPI)  # measures the width of strings
DONORS = ("C0", "C1", "C3", "C4", "C5", "C6", "C8", "C9")


def plot_lineage(trace: Mapping, path: Path) -> None:
    """Draws survivors, adopted outputs and all rewards of one document's populations as a PNG.

    Args:
        trace: `document`, `seed`, `best` and `generations`, see `populations.trace`.
        path: the path of the PNG file.

    Raises:
        ValueError: the trace has no generations.
    """
    lineage_figure(trace).savefig(path, dpi=DPI)


@dataclass(frozen=True)
class _Sheet:
    """The axis that the lineage is drawn on, its colour scale, and the size of a box in inches."""

    axis: Axes
    colours: ScalarMappable
    box: float
    height: float

    def left(self, column: int) -> float:
        """Returns the x coordinate of the left side of a column's boxes."""
        return MARGIN + LABEL + column * (self.box + GAP)

    def write(self, x: float, y: float, text: str, **style) -> None:
        """Draws text literally (no mathtext), with (x, y) as upper left corner by default."""
        style = {"va": "top", "fontsize": FONT} | style
        self.axis.text(x, y, text, parse_math=False, linespacing=1.15, **style)


def lineage_figure(trace: Mapping) -> Figure:
    """Returns the figure of `plot_lineage`; the gid of an artist says what it is (box, ended, ...).

    Raises:
        ValueError: the trace has no generations.
    """
    generations = trace["generations"]
    if not generations:
        raise ValueError(
            "The trace has no generations, so there is no lineage to draw; at least one is needed."
        )
    periods = max(len(generation["periods"]) for generation in generations)
    box = min(WIDEST, max(NARROWEST, 10 / max(periods, 1)))
    width = max(10.8, 2 * MARGIN + LABEL + periods * (box + GAP) + END)
    height = _text_lines(generations, box) * LINE + 2 * PAD
    head = _head(trace, width - 2 * MARGIN - 0.8)
    top = MARGIN + sum(len(lines) * LINE + 0.11 for _, lines in head)
    panels = [_panel_height(generation, height) for generation in generations]
    total = top + sum(panels) + 0.75

    figure = Figure(figsize=(width, total), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(total, 0))
    axis.axis("off")
    sheet = _Sheet(axis, ScalarMappable(_norm(trace), REWARDS), box, height)
    _draw_head(sheet, head)
    for number, generation in enumerate(generations):
        y = top + sum(panels[:number])
        _draw_panel(sheet, trace, number, y, width)
    _draw_legend(sheet, width, total)
    return figure


def _text_lines(generations: Sequence[Mapping], box: float) -> int:
    """Returns the number of lines of the fullest box, the line of its reward included."""
    texts = [text for g in generations for period in g["periods"] for text in period["written"]]
    counts = [len(_wrap(text, box - 3 * PAD, MOST_LINES)) for text in texts]
    return 1 + max([2, *counts])


def _panel_height(generation: Mapping, height: float) -> float:
    return TITLE + 0.1 + len(generation["templates"]) * (height + BETWEEN)


def _norm(trace: Mapping) -> Normalize:
    """Returns one colour scale for the rewards of all boxes."""
    rewards = [reward for g in trace["generations"] for reward in g["rewards"]]
    for generation in trace["generations"]:
        rewards += [reward for period in generation["periods"] for reward in period["rewards"]]
    low, high = min(rewards), max(rewards)
    return Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5)


def _head(trace: Mapping, width: float) -> list[tuple[str, list[str]]]:
    """Returns the header of the figure: names, each with the lines that stand beside it."""
    seed, best = trace["seed"], trace["best"]
    instruction = _wrap(f"instruction “{seed['prompt']}”", width, 1)
    return [
        ("document", _wrap(trace["document"], width, 2)),
        ("seed", instruction + _with_reward(seed, width)),
        ("best", _with_reward(best, width)),
    ]


def _with_reward(output: Mapping, width: float) -> list[str]:
    """Returns an output's reward and text; the reward comes first, so that it is never cut off."""
    return _wrap(f"({_number(output['reward'])})  {output['text']}", width, 2)


def _draw_head(sheet: _Sheet, head: Sequence[tuple[str, list[str]]]) -> None:
    y = MARGIN
    for name, lines in head:
        sheet.write(MARGIN, y, name, weight="bold", fontsize=FONT + 1)
        sheet.write(MARGIN + 0.8, y + 0.01, "\n".join(lines))
        y += len(lines) * LINE + 0.11


def _draw_panel(sheet: _Sheet, trace: Mapping, number: int, top: float, width: float) -> None:
    """Draws one generation: a row per individual, a column per period, and the final rewards."""
    generation = trace["generations"][number]
    periods = generation["periods"]
    middles = [top + TITLE + (i + 0.5) * (sheet.height + BETWEEN)
               for i in range(len(generation["templates"]))]  # fmt: skip
    sheet.axis.plot([MARGIN, width - MARGIN], [top + 0.04] * 2, color="black", linewidth=0.8,
                    gid="panel")  # fmt: skip
    _draw_panel_title(sheet, generation, number, top, width - 2 * MARGIN)
    style = {"va": "baseline", "color": "dimgrey"}
    for column, period in enumerate(periods):
        name = f"period {column + 1}"
        sheet.write(sheet.left(column), top + 0.78, name, **style)
        for i, y in enumerate(middles):
            _draw_box(sheet, period, i, sheet.left(column), y)
        _draw_arrows(sheet, period, column, middles)
    sheet.write(sheet.left(len(periods)), top + 0.78, "final reward", **style)
    for i, y in enumerate(middles):
        _draw_label(sheet, generation["templates"][i], i, y)
        _draw_end(sheet, trace, number, i, y)


def _draw_panel_title(
    sheet: _Sheet, generation: Mapping, number: int, top: float, width: float
) -> None:
    parent = generation["parent"]
    archive = ",  ".join(
        f"({_number(a['reward'])}) “{a['template']}”" for a in generation["archive"]
    )
    sheet.write(MARGIN, top + 0.12, f"Generation {number + 1}", weight="bold", fontsize=FONT + 1.5)
    for y, text in (
        (0.13, f"parent: ({_number(parent['reward'])}) “{parent['template']}”"),
        (0.29, f"archive after this generation: {archive or 'empty'}"),
    ):
        sheet.write(MARGIN + 1.25, top + y, "\n".join(_wrap(text, width - 1.25, 2)))


def _draw_box(sheet: _Sheet, period: Mapping, i: int, left: float, middle: float) -> None:
    """Draws the box of one individual and period: the tokens it generated, and its reward."""
    top = middle - sheet.height / 2
    reward = period["rewards"][i]
    bold = {"edgecolor": "black", "linewidth": 2.2}
    frame = bold if period["survived"][i] else {"edgecolor": "grey", "linewidth": 0.6}
    sheet.axis.add_patch(
        FancyBboxPatch((left, top), sheet.box, sheet.height, facecolor=sheet.colours.to_rgba(reward),
                       boxstyle="round,pad=0,rounding_size=0.05", gid="box", **frame)
    )  # fmt: skip
    sheet.write(left + PAD, top + PAD, _number(reward), weight="bold")
    lines = _wrap(period["written"][i], sheet.box - 3 * PAD, MOST_LINES)
    style = {} if lines else {"style": "italic"}
    text = "\n".join(lines) or "(no new tokens)"
    sheet.write(left + PAD, top + PAD + LINE, text, gid="written", **style)
    if period["ended"][i]:
        bar = (left + sheet.box - 0.1, top + 0.05)
        sheet.axis.add_patch(
            Rectangle(bar, 0.05, sheet.height - 0.1, facecolor="black", gid="ended")
        )


def _draw_arrows(sheet: _Sheet, period: Mapping, column: int, middles: Sequence[float]) -> None:
    """Draws a line from each donor to the individual that continues its output, after a column."""
    start, end = sheet.left(column) + sheet.box + 0.03, sheet.left(column + 1) - 0.02
    half = (start + end) / 2
    for i, donor in enumerate(period["donors"]):
        a, b = middles[donor], middles[i]
        # The control points make both ends of the curve horizontal, so that it points into the box.
        curve = Curve([(start, a), (half, a), (half, b), (end, b)],
                      [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])  # fmt: skip
        sheet.axis.add_patch(FancyArrowPatch(path=curve, **_arrow_style(i, donor)))


def _arrow_style(i: int, donor: int) -> dict:
    if i == donor:
        return {"gid": "own", "arrowstyle": "-", "color": "grey", "linewidth": 0.8}
    return {
        "gid": "adopted",
        "arrowstyle": "-|>",
        "color": DONORS[donor % len(DONORS)],
        "linewidth": 1.6,
        "mutation_scale": 9,
    }


def _draw_label(sheet: _Sheet, template: str, i: int, middle: float) -> None:
    """Draws an individual's template and its number, in the colour of its arrows as a donor."""
    color = DONORS[i % len(DONORS)]
    sheet.write(MARGIN, middle, f"{i + 1}", va="center", weight="bold", color=color,
                fontsize=FONT + 2)  # fmt: skip
    lines = _wrap(template, LABEL - 0.35, 4)
    sheet.write(MARGIN + 0.2, middle, "\n".join(lines), va="center", gid="template")


def _draw_end(sheet: _Sheet, trace: Mapping, number: int, i: int, middle: float) -> None:
    """Draws the final reward of individual i, and marks it if offered to the archive or best."""
    generation = trace["generations"][number]
    left, reward = sheet.left(len(generation["periods"])), generation["rewards"][i]
    marks = ["offered"] if i in generation["offered"] else []
    if trace["best"]["from"] and tuple(trace["best"]["from"]) == (number, i):
        marks.append("★ best")
    height = (1 + len(marks)) * LINE * 1.1 + 2 * PAD
    sheet.axis.add_patch(
        Rectangle((left, middle - height / 2), END - 0.15, height, gid="end", linewidth=0.6,
                  facecolor=sheet.colours.to_rgba(reward), edgecolor="grey")
    )  # fmt: skip
    text = "\n".join([_number(reward), *marks])
    sheet.write(left + PAD, middle, text, va="center", weight="bold")


def _draw_legend(sheet: _Sheet, width: float, total: float) -> None:
    """Draws the colour bar of the rewards and the legend of frames and lines."""
    scale = sheet.axis.inset_axes((MARGIN, total - 0.45, 2.2, 0.12), transform=sheet.axis.transData)
    bar = sheet.axis.figure.colorbar(sheet.colours, cax=scale, orientation="horizontal")
    bar.set_label("reward", fontsize=FONT, labelpad=1)
    scale.tick_params(labelsize=FONT, length=2, pad=1)
    handles = [
        Patch(facecolor="none", edgecolor="black", linewidth=2.2, label="survived"),
        Patch(facecolor="none", edgecolor="grey", linewidth=0.6, label="did not survive"),
        Line2D([], [], linestyle="", marker="|", markersize=10, markeredgewidth=3.5, color="black",
               label="output has ended"),
        Line2D([], [], color="grey", linewidth=0.8, label="keeps its own output"),
        FancyArrowPatch((0, 0), (1, 0), **_arrow_style(1, 0),
                        label="adopts another output (colour: the donor's number)"),
    ]  # fmt: skip
    sheet.axis.legend(
        handles=handles, handler_map={FancyArrowPatch: HandlerPatch(_legend_arrow)}, ncols=5,
        fontsize=FONT, frameon=False, loc="lower right", columnspacing=1.2, borderaxespad=0,
        bbox_to_anchor=(width - MARGIN, total - 0.2), bbox_transform=sheet.axis.transData,
    )  # fmt: skip


def _legend_arrow(width: float, height: float, **_) -> FancyArrowPatch:
    ends = (0, height / 2), (width, height / 2)
    return FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0)


def _number(reward: float) -> str:
    return f"{round(reward, 2) + 0.0:.2f}"  # adding 0 turns −0 into 0


def _wrap(text: str, width: float, lines: int) -> list[str]:
    """Wraps text to at most `lines` lines of `width` inches; “…” marks where it was cut."""
    rest = " ".join(text.split())
    wrapped = []
    while rest and len(wrapped) < lines:
        line, rest = _first_line(rest, width)
        wrapped.append(line)
    if rest:
        last = wrapped[-1]
        while last and _width(last + "…") > width:
            last = last[:-1].rstrip()
        wrapped[-1] = last + "…"
    return wrapped


def _first_line(text: str, width: float) -> tuple[str, str]:
    """Splits text after the part that fits into `width`, at a space if there is one."""
    fits = bisect_right(range(len(text) + 1), width, key=lambda n: _width(text[:n])) - 1
    if fits == len(text):
        return text, ""
    space = text.rfind(" ", 0, fits + 1)
    cut = space if space > 0 else max(fits, 1)
    return text[:cut], text[cut:].lstrip()


@lru_cache(maxsize=1 << 14)  # text is wrapped twice: to find the height of boxes, and to draw it
def _width(text: str) -> float:
    """Returns the drawn width in inches in the boxes' font; rounding to pixels makes text wider."""
    font = FontProperties(size=FONT)
    return RENDERER.get_text_width_height_descent(text, font, ismath=False)[0] / DPI
