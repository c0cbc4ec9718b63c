"""Two rewards with a model of no use: every (λ₁, λ₂) in one sweep, its ends the single models."""

import dataclasses
import json

import pytest

from dera_jax import report
from dera_jax.experiments.stages import Reference, read_records
from dera_jax.experiments.two_rewards import FIGURE, TwoRewards
from dera_jax.rewards.combined import Part
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.words import Faithfulness
from tests.experiments import small
from tests.report import folders


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> TwoRewards:
    folder = small.reference_folder(tmp_path_factory.mktemp("reference") / "model")
    return TwoRewards(
        reference=Reference(folder=folder),
        parts=(Part("length", LengthInRange(2, 5)), Part("faithful", Faithfulness(), 4.0)),
        align=small.align,
        max_length=8,
        beta=0.3,
        seed=0,
        grid=(0.0, 0.5, 1.0),
        trained=((0.5, 0.5),),
        documents=small.DOCUMENTS,
        num_samples=2,
        batch_size=2,
    )


@pytest.mark.evidence
def test_the_grid_ends_in_the_single_models(experiment, tmp_path):
    compared = experiment.run(tmp_path)["compared"]
    sources = folders.data(report.write(tmp_path))["sources"]
    assert [x["label"] for x in sources][:2] == ["DeRa", "trained, weights 1, 0"]
    assert sources[0]["lams"][:2] == ["0, 0", "0, 0.5"] and len(sources[0]["lams"]) == 9
    pairs = {(a, b) for a in experiment.grid for b in experiment.grid}
    dera = read_records(tmp_path / "dera")
    found = {tuple(s["lam"]) for record in dera for s in record["samples"]}
    assert found == pairs
    # At (1, 0) and (0, 1) DeRa is the model of one reward, with the same draws: token for token.
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        name = "_".join(f"{w:g}" for w in weights)
        alone = read_records(tmp_path / f"sampled_{name}")
        for ours, theirs in zip(dera, alone, strict=True):
            mine = [s["tokens"] for s in ours["samples"] if tuple(s["lam"]) == weights]
            assert mine == [s["tokens"] for s in theirs["samples"]]
    assert [(r["weight_length"], r["weight_faithful"]) for r in compared] == [
        (1.0, 0.0), (0.0, 1.0), (0.5, 0.5),
    ]  # fmt: skip
    for row in compared[:2]:
        assert row["gap_reward_length"] == row["gap_reward_faithful"] == 0
    # The gap is that of the means, since every document has as many samples.
    last = compared[2]
    for key in ("reward_length", "reward_faithful", "kl"):
        assert last[f"gap_{key}"] == pytest.approx(last[f"dera_{key}"] - last[f"trained_{key}"])
    assert (tmp_path / FIGURE).read_bytes()[:4] == b"\x89PNG"
    content = json.loads((tmp_path / "frontier.json").read_text())
    assert len(content["dera"]) == 9 and len(content["trained"]) == 3


def test_each_model_is_trained_on_its_own_weights(experiment, tmp_path):
    asked = []

    def align(reference, objective, seed):
        asked.append(tuple(term.weight for term in objective.reward.terms))
        return _Nothing()

    for stage in dataclasses.replace(experiment, align=align).stages(tmp_path):
        if stage.name.startswith("PPO"):
            stage.run(stage.folder)
    assert asked == [(1.0, 0.0), (0.0, 4.0), (0.5, 2.0)]


class _Nothing:
    def run(self, folder):
        return {}


def test_bad_settings_are_refused(experiment):
    with pytest.raises(ValueError, match=r"on the grid .*found \[\(0.3, 1.0\)\]"):
        dataclasses.replace(experiment, trained=((0.3, 1.0),))
    with pytest.raises(ValueError, match="needs two parts; found 1"):
        dataclasses.replace(experiment, parts=experiment.parts[:1])
