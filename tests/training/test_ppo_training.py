"""The PPO run: what it leaves behind, and that a run that died ends as one that did not."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.orbax import Saving
from dera_jax.data.task_data import EncodedTask, TaskData
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.length import LengthInRange
from dera_jax.tasks import newswire
from dera_jax.training import metric_log, optimizers, ppo
from dera_jax.training.ppo_training import MODEL, PPOTraining, changes

STEPS = 4


@pytest.fixture(scope="module")
def alignment() -> PPOTraining:
    config = T5Config(
        vocab_size=1024,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        logits_via_embedding=True,
    )
    params = T5(config).init(jax.random.key(0))
    drawn = LoadedModel(T5(config), jax.tree.map(np.asarray, params), None, {})
    reference = drawn.with_vocabulary(newswire.vocabulary(), "this test")
    rate = lambda peak: optimizers.adamw(
        optimizers.constant(peak, 2), clip_norm=1.0, weight_decay=0.0
    )
    return PPOTraining(
        reference=reference,
        data=TaskData("newswire", inputs=32, targets=16, batch_size=4),
        objective=ppo.AlignmentObjective(LengthInRange(2, 4), max_length=8, beta=0.3),
        updates=ppo.Updates(rollouts=2, epochs=2, minibatches=2),
        optimizers=ppo.Optimizers(rate(1e-2), rate(2e-2)),
        steps=STEPS,
        seed=5,
        saving=Saving(steps=2, minutes=1e9),
    )


def leaves(folder) -> list[np.ndarray]:
    return jax.tree.leaves(load(folder / MODEL).params)


class Killed(Exception):
    pass


@pytest.mark.evidence
def test_a_run_that_died_ends_with_the_same_bits(alignment, tmp_path, monkeypatch):
    expected_scores = alignment.run(tmp_path / "whole")
    whole = leaves(tmp_path / "whole")
    assert any(
        np.any(x != y)
        for x, y in zip(whole, jax.tree.leaves(alignment.reference.params), strict=True)
    )

    all_batches = EncodedTask.batches

    def three_batches(*args):
        yield from itertools.islice(all_batches(*args), 3)
        raise Killed

    monkeypatch.setattr(EncodedTask, "batches", three_batches)
    with pytest.raises(Killed):  # after step 3; the checkpoint is of step 2
        alignment.run(tmp_path / "cut")
    monkeypatch.setattr(EncodedTask, "batches", all_batches)
    scores = alignment.run(tmp_path / "cut")
    for x, y in zip(leaves(tmp_path / "cut"), whole, strict=True):
        np.testing.assert_array_equal(x, y)
    last = [metric_log.read(tmp_path / name)[-1] for name in ("whole", "cut")]
    assert last[0]["step"] == last[1]["step"] == STEPS
    assert scores.keys() == expected_scores.keys()


@pytest.mark.slow
def test_the_card_says_how_it_was_made(alignment, tmp_path, capsys):
    short = dataclasses.replace(alignment, steps=1)
    scores = short.run(tmp_path / "run")
    card = load(tmp_path / "run" / MODEL).card
    assert card["length_range"] == [2, 4] and card["beta"] == 0.3 and card["max_length"] == 8
    assert card["step"] == 1 and card["training"] == scores
    said = capsys.readouterr().out
    reward, kl, length = (f"{scores[x]:.2f}" for x in ("reward", "full_kl", "length"))
    means = f"reward {reward}, KL to the reference (nats) {kl}, length (tokens) {length}"
    assert f"training, step 1: {means}\n" in said
    logged = {"reward", "kl", "full_kl", "entropy", "value_loss", "clip_fraction", "length"}
    assert logged | {"in_range_rate", "policy_loss"} <= scores.keys()
    assert scores["in_range_rate"] == pytest.approx(1 + scores["reward"])


def test_the_ends_of_a_run_are_told():
    reports = [
        {
            "step": step,
            "training/reward": step / 10,
            "training/full_kl": 0.5,
            "training/length": 9.0,
        }
        for step in (10, 20, 23)
    ]
    assert changes(reports) == (
        "training, step 10 → step 23: reward 1.00 → 2.30, KL to the reference (nats) 0.50 → 0.50, "
        "length (tokens) 9.00 → 9.00"
    )
