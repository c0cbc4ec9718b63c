"""The exact worlds: what is asserted of them, and what is written."""

import csv

import numpy as np
import pytest

from dera_jax import report
from dera_jax.experiments import exact, trees
from dera_jax.training import optimizers, ppo
from tests.report import folders


@pytest.fixture(scope="module")
def worlds() -> exact.ExactWorlds:
    schedule = optimizers.cosine(0.05, warmup_steps=1, total_steps=120)
    rule = optimizers.adamw(schedule, clip_norm=1.0, weight_decay=0.0)
    alignment = exact.TabularAlignment(
        ppo.Updates(rollouts=64, epochs=2, minibatches=2),
        ppo.Optimizers(rule, rule),
        inputs=8,
        steps=30,
    )
    return exact.ExactWorlds(
        vocab_size=3, horizons=(4, 5), lams=(0.5, 1.0, 2.0), beta=0.5, scale=1.0, worlds=2,
        alignment=alignment, aligned_worlds=1,
    )  # fmt: skip


@pytest.mark.slow
def test_what_the_worlds_say(worlds, tmp_path):
    worlds.run(tmp_path)
    page = report.write(tmp_path)  # without outputs
    assert folders.data(page) == {"sources": [], "documents": []}
    assert len(folders.tables(page)[0]) == 1 + 2 * 3 * 2 and "hidden>" in page.read_text()
    assert (tmp_path / "exact.png").stat().st_size > 10_000
    with open(tmp_path / exact.TABLE, encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 2 * 3 * (2 + 1)  # horizons x λ x (worlds with the optimum, one with PPO)
    number = lambda row, name: float(row[name])
    for row in rows:
        if row["lam"] == "1.0":  # both mixtures are the aligned model
            assert abs(number(row, "kl_token_sequence")) < 1e-12
        elif row["aligned"] == "optimum":
            assert number(row, "kl_token_retrained") > 1e-5
        if row["aligned"] == "PPO":  # near its optimum, and not at it
            assert 1e-9 < number(row, "kl_sequence_retrained") < 0.1


def test_a_mixture_that_is_not_the_optimum_is_found_out():
    table = np.random.default_rng(0).normal(size=(trees_size(3, 4), 3))
    reference = trees.policy_of(table, 4)
    rewards = trees.length_rewards(1, 2, 3, 4)
    wrong = trees.optimal_policy(reference, rewards, 0.4)
    with pytest.raises(ArithmeticError, match="must equal"):
        exact.compare_policies(reference, wrong, rewards, beta=0.5, lam=2.0, is_optimum=True)


def trees_size(vocab: int, horizon: int) -> int:
    return sum(vocab**t for t in range(horizon)) + 1
