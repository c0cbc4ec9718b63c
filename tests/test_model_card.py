"""The tables of the model card, from outputs and rates that are known."""

import numpy as np
import pytest

from dera_jax.model_card import objective_table, rouge_table
from dera_jax.rewards.length import optimal_policy


def test_an_output_equal_to_its_summary_scores_100():
    summaries = ["the cat sat down", "a dog ran away"]
    table = rouge_table({"copy": summaries, "other": ["xyz", "uvw"]}, summaries).splitlines()
    copied, other = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table[2:])
    assert copied[:5] == ["copy", "100.0 ±0.0", "100.0 ±0.0", "100.0 ±0.0", "4.0"]
    assert other[:5] == ["other", "0.0 ±0.0", "0.0 ±0.0", "0.0 ±0.0", "1.0"]


def test_the_optimal_policy_has_the_highest_objective():
    rates, beta = np.array([0.2, 0.4]), 0.5
    rows = [{"reward": float(np.mean(rates)) - 1, "kl": 0.0}, {"reward": -0.5, "kl": 0.2}]
    objectives = [
        float(row.split("|")[-2]) for row in objective_table(rows, rates, beta).splitlines()[2:]
    ]
    assert objectives[2] == max(objectives)
    assert objectives[2] == pytest.approx(optimal_policy(rates, beta)["objective"], abs=5e-4)
