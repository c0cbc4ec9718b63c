"""How well margins predict choices, against counting and against a world where they are exact."""

import json

import numpy as np
import pytest

from dera_jax.metrics import reliability


def test_scores_by_hand():
    found = reliability.loss_and_accuracy(np.array([np.log(3), -np.log(3), 0.0]))
    assert found["accuracy"] == pytest.approx(0.5)  # right, wrong, half right
    assert found["loss"] == pytest.approx(-np.mean(np.log([0.75, 0.25, 0.5])))
    assert reliability.loss_and_accuracy(np.array([np.log(3)]))["loss"] == pytest.approx(
        -np.log(0.75)
    )


def test_exact_margins_are_calibrated_and_doubled_ones_are_not():
    """Which text is chosen is drawn with the probability that the margin says."""
    rng = np.random.default_rng(0)
    score = rng.normal(0, 2, 40_000)
    chosen_first = rng.random(40_000) < 1 / (1 + np.exp(-score))
    margin = np.where(chosen_first, score, -score)
    exact = reliability.summary(margin, {})
    assert exact["calibration_error"] < 0.01
    assert reliability.summary(2 * margin, {})["calibration_error"] > 0.05  # overconfident
    assert reliability.summary(0.3 * margin, {})["calibration_error"] > 0.05
    for row in exact["bins"]:
        assert row["accuracy"] == pytest.approx(row["confidence"], abs=0.03)
    assert sum(row["pairs"] for row in exact["bins"]) == 40_000


def test_accuracy_is_told_for_each_kind_and_not_for_each_text():
    margins = np.array([1.0, 1.0, -1.0, 1.0])
    notes = {"kind": ["a", "a", "b", "b"], "facts": ["x"] * 4}
    notes["text"] = [str(i) for i in range(4)]
    found = reliability.summary(margins, notes)
    by_kind = {k: (x["accuracy"], x["pairs"]) for k, x in found["by_kind"].items()}
    assert by_kind == {"a": (1.0, 2), "b": (0.5, 2)}
    assert "by_facts" not in found
    many = reliability.summary(np.ones(20), {"id": [str(i) for i in range(20)]})
    assert not any(name.startswith("by_") for name in many)
    assert "kind a 100.0% (34.2% to 100.0%) of 2" in reliability.format_summary(found)
    json.dumps(found)


def test_the_picture_is_written(tmp_path):
    report = reliability.summary(np.random.default_rng(0).normal(1, 2, 200), {})
    reliability.plot(report, tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def test_intervals_are_wilson_s():
    """Solutions p of |share − p| = 1.96·√(p(1 − p)/n)."""
    for right, n in ((40, 40), (0, 7), (30, 40)):
        found = reliability.summary(np.array([1.0] * right + [-1.0] * (n - right)), {})
        for p in (found["accuracy_low"], found["accuracy_high"]):
            assert abs(right / n - p) == pytest.approx(1.96 * np.sqrt(p * (1 - p) / n), abs=1e-6)
        assert found["accuracy_low"] < found["accuracy_high"]


def test_margins_that_are_rounding_are_ties_and_said():
    found = reliability.summary(np.array([1e-9, 2e-9, -1e-8, 0.0, 1.0]), {})
    assert found["ties"] == 4 and found["accuracy"] == pytest.approx((4 * 0.5 + 1) / 5)
    assert "of 5, 4 of them ties, which count as half correct;" in reliability.format_summary(found)
    assert "ties" not in reliability.format_summary(reliability.summary(np.array([1.0, -2.0]), {}))
