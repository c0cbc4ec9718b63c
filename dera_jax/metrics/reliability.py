"""Measures accuracy and calibration of scores that predict which output of a pair was chosen.

A margin m = s(chosen) − s(rejected) predicts that the chosen output is preferred with probability
σ(m).

Axes: n pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

BINS = 10
TIE = 1e-6  # nats: a smaller margin is a rounding error of the scores, not a preference
_MOST_CATEGORIES = 10  # a field with more distinct values holds text, not a category


def loss_and_accuracy(margins: np.ndarray) -> dict[str, float]:
    """Returns `loss` (Bradley-Terry, nats; log 2 at chance) and `accuracy` of margins [n].

    A tie, which is a margin below TIE in absolute value, counts as half correct.
    """
    m = np.asarray(margins, np.float64)
    tied = np.abs(m) < TIE
    accuracy = np.mean(np.where(tied, 0.5, m > 0))
    return {"loss": float(np.mean(np.logaddexp(0, -m))), "accuracy": float(accuracy)}


def summary(margins: np.ndarray, notes: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """Returns loss, accuracy, ties and calibration of margins.

    Args:
        margins: [n], the margins of the pairs.
        notes: text fields of the pairs, n values each. Accuracies by category are reported for
            fields with few distinct values, such as how the rejected output was made.

    Returns:
        `loss`; `accuracy`, its 95 % confidence interval (`accuracy_low`, `accuracy_high`) and the
        number of `pairs`; `ties`, the number of pairs that count as half correct;
        `calibration_error`, the mean over pairs of |accuracy − confidence| of their bin; `bins`;
        `by_<field>`: accuracy, interval and number of pairs of each category.
    """
    m = np.asarray(margins, np.float64)
    report = {"loss": loss_and_accuracy(m)["loss"]} | _accuracy(m)
    report["ties"] = int(np.count_nonzero(np.abs(m) < TIE))
    table = bins(m)
    gaps = [row["pairs"] * abs(row["accuracy"] - row["confidence"]) for row in table]
    report |= {"calibration_error": float(sum(gaps) / len(m)), "bins": table}
    for field, values in notes.items():
        categories = sorted(set(values))
        if 1 < len(categories) <= _MOST_CATEGORIES:
            groups = {category: m[[v == category for v in values]] for category in categories}
            report[f"by_{field}"] = {category: _accuracy(x) for category, x in groups.items()}
    return report


def _accuracy(margins: np.ndarray) -> dict[str, float]:
    """Returns accuracy with the Wilson score interval (1927), whose width at 0 and 1 is not 0."""
    accuracy, n, z = loss_and_accuracy(margins)["accuracy"], len(margins), 1.96
    middle = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = float(middle - half), float(middle + half)
    return {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "pairs": n}


def bins(margins: np.ndarray) -> list[dict[str, float]]:
    """Groups pairs by confidence and returns mean confidence, accuracy and number of each bin.

    Confidence is the probability σ(|m|) predicted for the output with the higher score. There are
    BINS bins of equal width from 0.5 to 1; empty bins are left out.
    """
    m = np.asarray(margins, np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(m)))
    index = np.minimum((confidence - 0.5) * 2 * BINS, BINS - 1).astype(int)
    return [
        {
            "confidence": float(confidence[inside].mean()),
            "accuracy": loss_and_accuracy(m[inside])["accuracy"],
            "pairs": int(inside.sum()),
        }
        for inside in (index == i for i in range(BINS))
        if inside.any()
    ]


def format_summary(report: Mapping) -> str:
    """Formats a report of `summary` as one sentence for the terminal."""
    categories = [
        f"{name.removeprefix('by_')} {category} {_format_accuracy(x)}"
        for name, group in report.items()
        if name.startswith("by_")
        for category, x in group.items()
    ]
    ties = report["ties"]
    half = f", {ties} of them ties, which count as half correct" if ties else ""
    return (
        f"accuracy on test pairs (95% confidence interval): {_format_accuracy(report)}{half}; loss "
        f"{report['loss']:.3f} nats, calibration error {report['calibration_error']:.3f}"
        + "".join(f"; {x}" for x in categories)
    )


def _format_accuracy(x: Mapping) -> str:
    """Formats an accuracy, such as 94.5% (91.6% to 96.5%) of 337."""
    low, high = x["accuracy_low"], x["accuracy_high"]
    return f"{x['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {x['pairs']}"


def plot(report: Mapping, path: Path) -> None:
    """Plots accuracy against confidence and the number of pairs in each bin, as a PNG."""
    import matplotlib.pyplot as plt

    table = report["bins"]
    x = [row["confidence"] for row in table]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot([0.5, 1], [0.5, 1], "--", color="grey", label="calibrated")
    above.plot(x, [row["accuracy"] for row in table], marker="o", label="test pairs")
    above.set_ylabel("accuracy (fraction of pairs)")
    above.grid(alpha=0.3)
    above.legend()
    below.bar(x, [row["pairs"] for row in table], width=0.03)
    below.set_ylabel("number of pairs")
    below.set_xlabel("confidence σ(|margin|)")
    figure.suptitle(
        f"accuracy: {_format_accuracy(report)} pairs; "
        f"calibration error {report['calibration_error']:.3f}",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
