"""The figures of populations: what is drawn, that it fits, and what is refused."""

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dera_jax.experiments.lineage import lineage_figure, plot_lineage
from dera_jax.experiments.population_plots import DPI, cost_figure, plot_cost, plot_effects

LONG = "The council voted on Tuesday to close the old $40 bridge for {eighteen} months, " * 4
HOSTILE = "$x^{ {text} $ \\frac W" + "W" * 300


def generation(individuals: int, periods: int, written: str) -> dict:
    """All individuals write the same; in each period the last takes the first one's text."""
    everyone = range(individuals)
    period = {
        "rewards": [0.1 * i for i in everyone],
        "survived": [i < individuals - 1 for i in everyone],
        "ended": [i == 1 for i in everyone],
        "donors": [*everyone][:-1] + [0],
        "written": [written] * (individuals - 1) + [""],
    }
    return {
        "parent": {"template": "summarize: {text}", "reward": 0.3},
        "templates": [written] * individuals,
        "texts": [f"text {i}" for i in everyone],
        "rewards": [0.1 * i for i in everyone],
        "periods": [period] * periods,
        "offered": [0],
        "archive": [{"template": written, "reward": 0.5}] * 3,
    }


def trace(generations: list[dict], text: str = LONG) -> dict:
    return {
        "document": text,
        "seed": {"prompt": text, "text": text, "reward": 0.3},
        "best": {"text": "text 1", "reward": 0.1, "from": [0, 1]},
        "generations": generations,
    }


def with_gid(figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def shown(figure) -> list:
    """All texts that are seen."""
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def overlap(a: Bbox, b: Bbox) -> bool:
    return Bbox.intersection(a, b) is not None


def test_a_box_for_each_individual_and_period_and_a_line_to_each_next():
    figure = lineage_figure(trace([generation(4, 3, LONG), generation(4, 1, LONG)]))
    assert len(with_gid(figure, "panel")) == 2
    assert len(with_gid(figure, "box")) == len(with_gid(figure, "written")) == 4 * 3 + 4 * 1
    assert len(with_gid(figure, "adopted")) == 3 + 1
    assert len(with_gid(figure, "own")) == 3 * (3 + 1)
    assert len(with_gid(figure, "ended")) == 3 + 1
    assert len(with_gid(figure, "end")) == len(with_gid(figure, "template")) == 4 + 4


def test_an_arrow_goes_from_the_donors_box_to_the_adopters():
    figure = lineage_figure(trace([generation(3, 2, "short")]))
    first = with_gid(figure, "adopted")[0]
    boxes = [box.get_extents() for box in with_gid(figure, "box")]
    curve = first.axes.transData.transform(first._path_original.vertices)
    donor, adopter = boxes[0], boxes[3 + 2]
    assert donor.x1 < curve[0, 0] < curve[-1, 0] < adopter.x0
    # The axis points down, so y0 and y1 of a box may stand in either order.
    assert min(donor.y0, donor.y1) < curve[0, 1] < max(donor.y0, donor.y1)
    assert min(adopter.y0, adopter.y1) < curve[-1, 1] < max(adopter.y0, adopter.y1)


def test_survivors_have_bold_frames_and_equal_rewards_equal_colours():
    figure = lineage_figure(trace([generation(3, 1, "short"), generation(3, 1, "short")]))
    boxes = with_gid(figure, "box")
    widths = [box.get_linewidth() for box in boxes]
    assert min(widths[0], widths[1]) > 2 * widths[2]
    colours = [box.get_facecolor() for box in boxes]
    assert colours[:3] == colours[3:] and len(set(colours)) == 3


@pytest.mark.parametrize("text", [LONG, HOSTILE], ids=["long", "hostile"])
@pytest.mark.parametrize(("individuals", "periods"), [(3, 1), (3, 6)])
def test_texts_stay_in_their_boxes_and_all_is_on_the_page(text, individuals, periods):
    figure = lineage_figure(trace([generation(individuals, periods, text)], text))
    figure.draw_without_rendering()
    pairs = zip(with_gid(figure, "box"), with_gid(figure, "written"), strict=True)
    for box, written in pairs:
        frame, extent = box.get_window_extent(), written.get_window_extent()
        assert np.all(extent.min > frame.min) and np.all(extent.max < frame.max)
    pages = [item.get_window_extent() for item in shown(figure)]
    assert min(page.min.min() for page in pages) > 0
    assert np.all(np.max([page.max for page in pages], axis=0) < figure.bbox.max)


@pytest.mark.parametrize("individuals", [3, 8])
def test_labels_do_not_run_into_boxes_nor_texts_into_texts(individuals):
    figure = lineage_figure(trace([generation(individuals, 1, HOSTILE)], HOSTILE))
    figure.draw_without_rendering()
    boxes = [box.get_window_extent() for box in with_gid(figure, "box")]
    labels = [label.get_window_extent() for label in with_gid(figure, "template")]
    assert not any(overlap(box, label) for box in boxes for label in labels)
    extents = [item.get_window_extent() for item in shown(figure)]
    inner = [Bbox.from_extents(*(e.min + 2), *(e.max - 2)) for e in extents]  # empty leading
    assert not any(overlap(a, b) for i, a in enumerate(inner) for b in inner[:i])


def test_equal_rewards_are_drawn_and_the_png_has_the_figures_size(tmp_path):
    flat = generation(3, 1, "short")
    flat["rewards"] = flat["periods"][0]["rewards"] = [0.5] * 3
    plot_lineage(trace([flat]), tmp_path / "lineage.png")
    size = lineage_figure(trace([flat])).get_size_inches() * DPI
    height, width = imread(tmp_path / "lineage.png").shape[:2]
    np.testing.assert_allclose((width, height), size, atol=1)


def test_the_best_text_is_marked_once_where_it_is_from():
    two = trace([generation(3, 2, "some words"), generation(3, 2, "some words")])
    stars = lambda trace: [x for x in shown(lineage_figure(trace)) if "★" in x.get_text()]
    assert len(stars(two)) == 1
    of_the_seed = two | {"best": {"text": "text 1", "reward": 0.1, "from": None}}
    assert not stars(of_the_seed)


def test_no_generations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no generations"):
        plot_lineage(trace([]), tmp_path / "lineage.png")
    assert not (tmp_path / "lineage.png").exists()


def row(method: str, kind: str, forward_tokens: float, reward: float, ci95=0.02) -> dict:
    known = {"method": method, "kind": kind, "forward_tokens": forward_tokens}
    return known | {"reward": reward, "reward_ci95": ci95}


def cost_rows() -> list[dict]:
    """Two curves, the first out of order, and four points, three of them close together."""
    curve = [row(f"best of {n}", "best of n", 100 * n, 0.3 + 0.02 * n) for n in (8, 1, 4, 2)]
    other = [row(f"{n} generations", "DARWIN", 900 * n, 0.4 + 0.03 * n, None) for n in (1, 2, 3)]
    near = [row(f"prompt $ {i} {{text}}", f"p{i}", 95 + i, 0.32 + 0.001 * i) for i in range(3)]
    return [*curve, *other, *near, row("beam search", "beams", 400, 0.36, None)]


def test_kinds_are_curves_in_the_order_of_their_cost_or_named_points():
    figure = cost_figure(cost_rows(), "reward", "what it costs")
    axis = figure.axes[0]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["best of n", "DARWIN"]
    assert list(axis.containers[0][0].get_xdata()) == [100, 200, 400, 800]
    labels = [label.get_text() for label in with_gid(figure, "label")]
    assert labels == ["prompt $ 0 {text}", "prompt $ 1 {text}", "prompt $ 2 {text}", "beam search"]
    assert axis.get_xscale() == "log" and axis.get_ylabel() == "mean reward"


def test_nothing_hides_the_names_of_points():
    figure = cost_figure(cost_rows(), "reward", "what it costs")
    figure.draw_without_rendering()
    axis = figure.axes[0]
    labels = [label.get_window_extent() for label in with_gid(figure, "label")]
    assert not any(overlap(a, b) for i, a in enumerate(labels) for b in labels[:i])
    points = axis.transData.transform([(r["forward_tokens"], r["reward"]) for r in cost_rows()])
    assert not any(label.contains(*point) for label in labels for point in points)
    assert not overlap(figure.legends[0].get_window_extent(), axis.get_window_extent())


def test_points_alone_need_no_legend(tmp_path):
    assert not cost_figure(cost_rows()[-4:], "reward", "points").legends
    plot_cost(cost_rows()[-4:], "reward", "points", tmp_path / "cost.png")
    assert imread(tmp_path / "cost.png").std() > 0


def test_every_setting_has_a_panel(tmp_path):
    effects = [
        {"varied": name, "value": value, "reward": 0.1 * value, "reward_ci95": None}
        for name, values in (("period", (2, 4)), ("population", (4, 8, 16)))
        for value in values
    ]
    plot_effects(effects, "reward", "What settings do", tmp_path / "effects.png")
    assert imread(tmp_path / "effects.png").shape[1] == 2 * 3 * DPI
