"""A learned reward with models of no use: what is trained on what, optimised, and only measured."""

import dataclasses
import re

import numpy as np
import pytest

from dera_jax import report
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.resources import RunResources
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data.task_data import TaskData
from dera_jax.evaluation import record_store
from dera_jax.experiments.reward_study import (
    FIGURE,
    GivenReward,
    LearnedReward,
    RewardStudy,
)
from dera_jax.experiments.stages import Reference
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.learned import Entailment
from dera_jax.rewards.tokens import Repetition
from dera_jax.rewards.words import Faithfulness
from dera_jax.tasks import newswire
from dera_jax.training import (
    metric_log,
    ppo_training,
    preferences,
    supervised,
    validation,
)
from dera_jax.training.train_step import Loss
from tests.experiments import small
from tests.report import folders


def on_pairs(split: str, seed: int):
    return lambda start: preferences.PreferenceTraining(
        start,
        TaskData("newswire_pairs", inputs=16, targets=16, batch_size=4, split=split),
        small.adamw(1e-2),
        steps=2,
        seed=seed,
        validation=preferences.PreferenceValidation(period=2, examples=8, patience=3),
        saving=Saving(1000, 3.0),
    )


def sft() -> supervised.Training:
    return supervised.Training(
        supervised.new_model(small.CONFIG, 0),
        TaskData("newswire", inputs=16, targets=16, batch_size=4),
        small.adamw(1e-2),
        steps=2,
        seed=0,
        validation=validation.Validation(period=2, examples=8),
        loss=Loss(),
        saving=Saving(1000, 3.0),
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> RewardStudy:
    folder = small.reference_folder(tmp_path_factory.mktemp("reference") / "model")
    return RewardStudy(
        reference=Reference(folder=folder),
        criteria=(
            LearnedReward("proxy", on_pairs("train_a", 0)),
            LearnedReward("held_out", on_pairs("train_b", 1), weight=0.0),
            GivenReward("repeated", Repetition(), weight=0.5),
            GivenReward("true", HostReward(newswire.truth), weight=0.0),
        ),
        align=small.align,
        max_length=8,
        beta=0.3,
        seed=0,
        lams=(0.0, 1.0),
        documents=small.DOCUMENTS,
        num_samples=2,
        batch_size=2,
        title="A study",
    )


@pytest.mark.evidence
def test_a_study_measures_every_part_and_optimises_those_with_a_weight(
    study, tmp_path, monkeypatch
):
    rows = study.run(tmp_path)["lambda"]
    assert [row["lam"] for row in rows] == [0.0, 1.0]
    names = ("proxy", "held_out", "repeated", "true")
    for row in rows:
        parts = {name: row[f"reward_{name}"] for name in names}
        assert row["reward"] == pytest.approx(parts["proxy"] + 0.5 * parts["repeated"], abs=1e-5)
        assert parts["true"] == 0  # random tokens state nothing
    logged = metric_log.read(tmp_path / "ppo")[-1]
    assert {"training/reward_proxy", "training/reward_repeated"} <= set(logged)
    assert "training/reward_judge" not in logged
    page = report.write(tmp_path)
    assert folders.data(page)["sources"] == [{"label": "", "lams": ["0", "1"]}]
    assert any(
        x.startswith("Part held_out (held out, measured only): ") for x in folders.findings(page)
    )
    for name in ("report.json", "sweep.png", FIGURE, "metrics.json"):
        assert (tmp_path / name).stat().st_size > 0
    trained = {p.parent.name for p in tmp_path.glob("*/best")}
    assert trained == {"proxy", "held_out"}

    # Stopped in the sweep: nothing is trained again.
    (tmp_path / "dera" / "result.json").unlink()
    never = lambda *_: pytest.fail("a finished stage was run again")
    for kind in (preferences.PreferenceTraining, ppo_training.PPOTraining):
        monkeypatch.setattr(kind, "run", never)
    again = study.run(tmp_path)
    assert again["lambda"] == rows


@pytest.mark.evidence
def test_the_sweep_s_rewards_are_those_of_the_parts(study, tmp_path):
    """Against each part called alone on the recorded tokens."""
    shown = dataclasses.replace(
        study,
        criteria=(GivenReward("a", Faithfulness(), 2.0), GivenReward("b", Repetition(), -1.0)),
    )
    for stage in shown.stages(tmp_path):
        stage.folder.mkdir(parents=True)
        stage.run(stage.folder)
    resources = RunResources(small.newswire.vocabulary())
    documents = small.DOCUMENTS.read(Tokenizer(small.newswire.vocabulary()))
    rewards = {"a": Faithfulness(), "b": Repetition()}
    params = {name: reward.load(resources) for name, reward in rewards.items()}
    for i, record in enumerate(record_store.read(tmp_path / "dera")):
        source = documents.source(np.array([i]))
        for s in record["samples"]:
            tokens = np.zeros((1, 1, 8), int)
            tokens[0, 0, : len(s["tokens"])] = s["tokens"]
            lengths = np.array([[len(s["tokens"])]])
            finished = np.array([[s["finished"]]])
            for name, reward in rewards.items():
                value = reward(params[name], source, tokens, lengths, finished)
                assert s[f"reward_{name}"] == pytest.approx(float(value[0, 0]))
            assert s["reward"] == pytest.approx(2 * s["reward_a"] - s["reward_b"])


def test_a_dry_run_needs_no_files(study, monkeypatch):
    small.only_trace(monkeypatch)
    unread = dataclasses.replace(
        study,
        reference=Reference(training=sft),
        criteria=study.criteria[:3],
    )
    names = [need.name for need in unread.program_costs()]
    assert names[-3:] == ["PPO step", "DeRa sweep, a batch", "scoring, a batch"]
    assert sum("newswire_pairs" in name for name in names) == 2 and len(names) == 6


def test_a_study_without_a_weight_is_refused(study):
    with pytest.raises(ValueError, match="at least one of the criteria needs a weight"):
        dataclasses.replace(study, criteria=study.criteria[1:2])


@pytest.mark.parametrize("names", [["a", "a"], ["a", "ppo"]])
def test_names_that_are_not_a_part_s_own_are_refused(study, names):
    criteria = tuple(GivenReward(name, Faithfulness()) for name in names)
    with pytest.raises(ValueError, match=f"unique names.*found {re.escape(str(names))}"):
        dataclasses.replace(study, criteria=criteria)


def test_a_missing_model_is_found_before_anything_is_trained(study, tmp_path):
    missing = Entailment(T5(small.CONFIG), folder=None, max_length=32)
    late = dataclasses.replace(study, criteria=(GivenReward("entailed", missing),))
    with pytest.raises(ValueError, match="a learned reward needs the folder of its model"):
        late.run(tmp_path)
    assert not list(tmp_path.iterdir())
