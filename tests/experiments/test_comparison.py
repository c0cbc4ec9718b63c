"""DeRa beside retrained models, on records whose numbers are known."""

import numpy as np
import pytest

from dera_jax.experiments import comparison
from dera_jax.rewards.length import optimal_in_range_rate

BETA = 0.5


def records(lams, rewards, ratio=0.0, lengths=None):
    """One record per document of rewards[n, K], the same at every λ."""

    def sample(lam, reward, length):
        return {
            "lam": lam, "reward": float(reward), "length": int(length), "kl": 0.1, "text": "a b",
            "part_log_probs": [-5.0, -5.0 + ratio * reward],
        }  # fmt: skip

    lengths = np.full(np.shape(rewards), 2) if lengths is None else np.asarray(lengths)
    return [
        {"example_id": i, "document": f"d{i}", "summary": "a b", "samples": [
            sample(lam, r, n) for lam in lams for r, n in zip(row, ns, strict=True)]}
        for i, (row, ns) in enumerate(zip(rewards, lengths, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize("slope", [0.3, 1.0])
def test_the_slope_is_that_within_documents(slope):
    rng = np.random.default_rng(0)
    rewards = -(rng.random((200, 8)) < 0.5).astype(float)
    rows = records([1.0], rewards, ratio=slope / BETA)
    for row in rows:  # log Z(x) differs by document, and with its rewards
        shift = 3 * np.mean([s["reward"] for s in row["samples"]])
        for s in row["samples"]:
            s["part_log_probs"][1] += shift + 0.1 * rng.normal()
    found, interval = comparison.slope(rows, BETA)
    assert abs(found - slope) < interval < 0.02


def test_the_interval_of_the_slope_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        rows = records([1.0], -(rng.random((50, 6)) < 0.5).astype(float), ratio=1 / BETA)
        for row in rows:
            scale = rng.exponential()  # noise of a document's own size
            for s in row["samples"]:
                s["part_log_probs"][1] += scale * rng.normal()
        found, interval = comparison.slope(rows, BETA)
        hits += abs(found - 1) < interval
    assert 0.88 < hits / 200 <= 0.99


def test_without_contrast_there_is_no_slope():
    assert comparison.slope(records([1.0], np.zeros((3, 4))), BETA) == (None, None)


def test_gaps_are_paired_by_document():
    rng = np.random.default_rng(0)
    by_document = rng.normal(size=(30, 1))  # large, and the same for both
    rewards = np.broadcast_to(by_document, (30, 4))
    dera = records([0.0, 0.5, 1.0], rewards)
    retrained = {lam: [records([1.0], rewards - 0.25)] for lam in (0.5, 1.0)}
    rates = rng.random(30)
    result = comparison.compare(dera, retrained, rates, BETA, seeds=(0,))
    assert [row["lam"] for row in result["comparison"]] == [0.5, 1.0]
    for row in result["comparison"]:
        assert row["gap_reward"] == pytest.approx(0.25)
        assert row["gap_reward_ci95"] < 1e-6 < row["dera_reward_ci95"]
        expected = optimal_in_range_rate(rates, BETA, row["lam"]) - 1
        assert row["closed_form_reward"] == pytest.approx(expected)
    assert result["slopes"][0]["beta"] == 1.0
    assert "+0.250" in comparison.sentences(result)[0]


def test_pooled_runs_must_be_of_the_same_documents():
    rewards = np.zeros((3, 2))
    pooled = comparison.pool([records([1.0], rewards), records([1.0], rewards)], lam=0.5)
    assert [len(r["samples"]) for r in pooled] == [4, 4, 4]
    assert {s["lam"] for r in pooled for s in r["samples"]} == {0.5}
    with pytest.raises(ValueError, match="same documents"):
        comparison.pool([records([1.0], rewards), records([1.0], rewards)[::-1]])


def test_what_is_written_can_be_read_back(tmp_path):
    rewards = -np.tile([0.0, 1.0], (4, 2))
    lengths = np.tile([2, 5], (4, 2))
    dera = records([0.0, 1.0], rewards, lengths=lengths)
    retrained = {1.0: [records([1.0], rewards, lengths=lengths)]}
    result = comparison.compare(dera, retrained, np.full(4, 0.5), BETA, seeds=(0,))
    comparison.write(result, dera, retrained, tmp_path)
    counts = comparison.length_counts(dera, {1.0: retrained[1.0][0]})
    rates = {(row["source"], row["length"]): row["fraction"] for row in counts}
    assert rates["dera", 2] == rates["retrained", 5] == 0.5
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {*comparison.FIGURES, "comparison.json", "comparison.csv", "lengths.csv"}
