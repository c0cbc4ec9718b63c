"""The run of distillation: what it leaves behind, that PPO goes on from it, and that a run that died ends
as one that did not."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import dera_jax.tasks  # noqa: F401 (registers `newswire`)
from dera_jax.checkpoints.loading import load
from dera_jax.data.task_data import EncodedTask
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.training import optimizers, ppo
from dera_jax.training.warm_start import MODEL, WarmStart
from tests.training.test_ppo_training import Killed, alignment  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def warm_start(alignment) -> WarmStart:  # noqa: F811
    shared = ("reference", "data", "objective", "seed", "saving")
    steps = {"critic_steps": 1, "policy_steps": alignment.steps - 1}
    rate = optimizers.adamw(optimizers.constant(3e-3, warmup_steps=1), clip_norm=1.0)
    return WarmStart(
        rollouts=3,
        optimizers=ppo.Optimizers(rate, rate),
        **steps,
        **{name: getattr(alignment, name) for name in shared},
    )


def leaves(folder) -> list[np.ndarray]:
    return jax.tree.leaves(load(folder / MODEL).params)


@pytest.mark.evidence
def test_a_run_that_died_ends_with_the_same_bits(warm_start, tmp_path, monkeypatch):
    expected = warm_start.run(tmp_path / "whole")
    whole = leaves(tmp_path / "whole")
    start = jax.tree.leaves(warm_start.reference.params)
    assert any(np.any(x != y) for x, y in zip(whole, start, strict=True))

    all_batches = EncodedTask.batches

    def two_batches(*args):
        yield from itertools.islice(all_batches(*args), 2)
        raise Killed

    monkeypatch.setattr(EncodedTask, "batches", two_batches)
    with pytest.raises(
        Killed
    ):  # the critic has learned in step 1; after step 3, the checkpoint is of step 2
        warm_start.run(tmp_path / "cut")
    monkeypatch.setattr(EncodedTask, "batches", all_batches)
    found = warm_start.run(tmp_path / "cut")
    for x, y in zip(leaves(tmp_path / "cut"), whole, strict=True):
        np.testing.assert_array_equal(x, y)
    assert found.keys() == expected.keys() >= {"reward", "kl", "loss", "length"}


@pytest.mark.evidence
def test_ppo_goes_on_from_it(warm_start, alignment, tmp_path):  # noqa: F811
    dataclasses.replace(warm_start, policy_steps=1).run(tmp_path / "warm")
    start = load(tmp_path / "warm" / MODEL)
    frozen = optimizers.adamw(lambda step: 0.0, clip_norm=1.0, weight_decay=0.0)
    rates = ppo.Optimizers(policy=frozen, value=frozen)
    still = dataclasses.replace(alignment, start=start, steps=1, optimizers=rates)
    still.run(tmp_path / "ppo")
    aligned = load(tmp_path / "ppo" / "aligned")
    for x, y in zip(jax.tree.leaves(aligned.params), jax.tree.leaves(start.params), strict=True):
        np.testing.assert_array_equal(x, y)
    assert aligned.card["start"] == start.card and aligned.card["from"] == alignment.reference.card
    assert start.card["beta"] == 0.3 and start.card["critic_steps"] == 1


def test_ppo_refuses_a_start_of_other_sizes(alignment, tmp_path):  # noqa: F811
    wider = T5(T5Config(**dataclasses.asdict(alignment.reference.model.config) | {"mlp_dim": 64}))
    start = dataclasses.replace(alignment.reference, model=wider)
    with pytest.raises(
        ValueError, match=r"PPOTraining\.start must .*mlp_dim=64.*expected .*mlp_dim=32"
    ):
        dataclasses.replace(alignment, start=start).run(tmp_path / "ppo")
