"""How well scores predict which of two texts was chosen, and how well they know it.

A margin m = s(chosen) − s(rejected) says that the chosen text is preferred with probability σ(m).

Axes: n pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

BINS = 10
TIE = 1e-6  # nats: a smaller margin is rounding of the scores, not a preference
_MOST_KINDS = 10  # different values of a field that is a kind and not a text


def scores(margins: np.ndarray) -> dict[str, float]:
    """loss (Bradley-Terry, nats; log 2 without knowledge) and accuracy of margins [n].

    A tie, a margin below TIE, is half right.
    """
    m = np.asarray(margins, np.float64)
    tied = np.abs(m) < TIE
    right = np.mean(np.where(tied, 0.5, m > 0))
    return {"loss": float(np.mean(np.logaddexp(0, -m))), "accuracy": float(right)}


def summary(margins: np.ndarray, notes: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """All there is to say about margins [n].

    Args:
        margins: of the pairs.
        notes: text fields of the pairs, n values each; accuracies are given for each value of those
            that name a kind, such as how the rejected text was made.

    Returns:
        loss; accuracy, its 95 % interval (accuracy_low, accuracy_high) and the number of pairs;
        ties, pairs that count as half right; calibration_error, the mean over pairs of
        |accuracy − confidence| of their bin; bins (see `bins`); by_<field>: accuracy, interval and
        number of each kind.
    """
    m = np.asarray(margins, np.float64)
    found = {"loss": scores(m)["loss"]} | _accuracy(m)
    found["ties"] = int(np.count_nonzero(np.abs(m) < TIE))
    table = bins(m)
    gaps = [row["pairs"] * abs(row["accuracy"] - row["confidence"]) for row in table]
    found |= {"calibration_error": float(sum(gaps) / len(m)), "bins": table}
    for field, values in notes.items():
        kinds = sorted(set(values))
        if 1 < len(kinds) <= _MOST_KINDS:
            of = {kind: m[[v == kind for v in values]] for kind in kinds}
            found[f"by_{field}"] = {kind: _accuracy(x) for kind, x in of.items()}
    return found


def _accuracy(margins: np.ndarray) -> dict[str, float]:
    """With Wilson's interval (1927), which has a width at 0 and 1 too."""
    share, n, z = scores(margins)["accuracy"], len(margins), 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = float(middle - half), float(middle + half)
    return {"accuracy": share, "accuracy_low": low, "accuracy_high": high, "pairs": n}


def bins(margins: np.ndarray) -> list[dict[str, float]]:
    """Pairs by the probability σ(|m|) given to the text with the higher score, in BINS equal bins
    from 0.5 to 1; empty ones are left out. Each with its mean confidence and its accuracy."""
    m = np.asarray(margins, np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(m)))
    number = np.minimum((confidence - 0.5) * 2 * BINS, BINS - 1).astype(int)
    return [
        {
            "confidence": float(confidence[inside].mean()),
            "accuracy": scores(m[inside])["accuracy"],
            "pairs": int(inside.sum()),
        }
        for inside in (number == i for i in range(BINS))
        if inside.any()
    ]


def sentence(report: Mapping) -> str:
    """The summary in words."""
    kinds = [
        f"{name.removeprefix('by_')} {kind} {_words(x)}"
        for name, group in report.items()
        if name.startswith("by_")
        for kind, x in group.items()
    ]
    ties = report["ties"]
    half = f", {ties} of them ties, which count as half right" if ties else ""
    return (
        f"test pairs right: {_words(report)}{half}; loss {report['loss']:.3f} nats, calibration error "
        f"{report['calibration_error']:.3f}" + "".join(f"; {x}" for x in kinds)
    )


def _words(x: Mapping) -> str:
    """E.g. 94.5% (91.6% to 96.5%) of 337."""
    low, high = x["accuracy_low"], x["accuracy_high"]
    return f"{x['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {x['pairs']}"


def plot(report: Mapping, path: Path) -> None:
    """Accuracy against confidence, and how many pairs there are of each, as a PNG."""
    table = report["bins"]
    x = [row["confidence"] for row in table]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot([0.5, 1], [0.5, 1], "--", color="grey", label="calibrated")
    above.plot(x, [row["accuracy"] for row in table], marker="o", label="test pairs")
    above.set_ylabel("share of pairs that are right")
    above.grid(alpha=0.3)
    above.legend()
    below.bar(x, [row["pairs"] for row in table], width=0.03)
    below.set_ylabel("pairs")
    below.set_xlabel("confidence σ(|margin|)")
    figure.suptitle(
        f"right: {_words(report)} pairs; calibration error {report['calibration_error']:.3f}",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
