"""The length experiment with a model of no use: its stages, their order, and going on after a stop."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from dera_jax import report
from dera_jax.evaluation.lengths import LengthSurvey
from dera_jax.experiments.comparison import FIGURES
from dera_jax.experiments.length_reward import LengthReward
from dera_jax.experiments.stages import Reference
from dera_jax.rewards.length import LengthInRange
from tests.experiments import small
from tests.report import folders


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> LengthReward:
    folder = small.reference_folder(tmp_path_factory.mktemp("reference") / "model")
    return LengthReward(
        reference=Reference(folder=folder),
        align=small.align,
        reward=LengthInRange(2, 5),
        max_length=8,
        beta=0.3,
        seed=0,
        seeds=(0,),
        lams=(0.0, 0.5, 1.0),
        retrained=(0.5,),
        documents=small.DOCUMENTS,
        num_samples=3,
        reference_samples=4,
        batch_size=2,
    )


@pytest.mark.evidence
def test_a_stopped_experiment_goes_on_and_ends_the_same(experiment, tmp_path):
    ended = experiment.run(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "comparison.json").read_text())
    assert ended["largest_gap_reward"]["lam"] == 0.5
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names >= {*FIGURES, "report.json", "comparison.csv", "slopes.csv", "lengths.csv"}
    shown = folders.data(report.write(tmp_path / "whole"))
    assert {x["label"]: x["lams"] for x in shown["sources"]} == {
        "DeRa": ["0", "0.5", "1"], "retrained, λ = 0.5": ["1"], "retrained, λ = 1": ["1"],
    }  # fmt: skip
    assert [row["lam"] for row in whole["comparison"]] == [0.5, 1.0]
    assert {(row["beta"], row["seed"]) for row in whole["slopes"]} == {
        (beta, seed) for beta in (0.3, 0.6) for seed in (0,)
    }
    # DeRa at λ = 1 and the model "retrained" at β₀ are one model, decoded with the same draws.
    assert whole["comparison"][1]["gap_reward"] == whole["comparison"][1]["gap_length"] == 0

    # Stopped after PPO: what is there is not made again, and the rest comes out the same.
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in (tmp_path / "stopped").iterdir():
        if path.is_file() or path.name.startswith(("dera", "retrained_lam_1")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = dataclasses.replace(experiment, align=lambda *_, **__: _Never()).run(
        tmp_path / "stopped"
    )
    assert again == ended
    written = (tmp_path / "stopped" / "comparison.json").read_text()
    assert json.loads(written) == whole


class _Never:
    """A PPO run that is made, to be looked at, and not started."""

    def run(self, folder):
        raise AssertionError("a finished stage was run again")


def test_a_retrained_model_is_trained_at_its_own_beta(experiment, tmp_path):
    asked = []
    align = lambda reference, objective, seed: asked.append((objective.beta, seed)) or _Nothing()
    watched = dataclasses.replace(experiment, align=align, seeds=(0, 1))
    for stage in watched.stages(tmp_path):
        if stage.name.startswith("PPO"):
            stage.run(stage.folder)
    assert asked == [(0.6, 0), (0.3, 0), (0.6, 1), (0.3, 1)]


class _Nothing:
    def run(self, folder):
        return {}


@pytest.mark.parametrize(("length", "rate"), [(7, "0%"), (4, "100%")])
def test_a_reference_without_room_is_told_before_ppo(
    experiment, tmp_path, monkeypatch, length, rate
):
    """Whose samples are never in the range, or always: PPO would see one reward only."""
    samples = np.full((4, 4), length, np.int32), np.ones((4, 4), bool)
    monkeypatch.setattr(LengthSurvey, "sample", lambda self: samples)
    never = lambda reference, objective, seed: _Never()
    message = rf"^{rate} of the .* range, 2 to 5 tokens.* LOW and HIGH .*runs/lengths.gin"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(experiment, align=never).run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_what_late_stages_need_is_looked_at_first(experiment, tmp_path):
    documents = dataclasses.replace(small.DOCUMENTS, inputs=1)
    with pytest.raises(ValueError, match="none of the .* examples is usable"):
        dataclasses.replace(experiment, documents=documents).run(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", [{"retrained": (0.3,)}, {"lams": (0.0, 0.5)}, {"retrained": (0,)}]
)
def test_every_retrained_model_has_its_lambda_in_the_sweep(experiment, change):
    with pytest.raises(ValueError, match="among LengthReward.lams|retrained .*number above 0"):
        dataclasses.replace(experiment, **change)


def test_a_reference_is_given_or_trained():
    with pytest.raises(ValueError, match="not both"):
        Reference()
    with pytest.raises(ValueError, match="not both"):
        Reference(folder="a", training=lambda: None)


def test_the_closed_form_is_that_of_the_sampled_shares(experiment, tmp_path):
    survey = {stage.name: stage for stage in experiment.stages(tmp_path)}["reference's lengths"]
    rates = survey.run(tmp_path)["rates"]
    assert len(rates) == 4 and np.all(np.isin(np.multiply(rates, 4), range(5)))
