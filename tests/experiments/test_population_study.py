"""The experiment on populations with models of no use: what is asked, at what budget."""

import dataclasses

import numpy as np
import pytest

from dera_jax import report
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.evolution import Evolution
from dera_jax.decoding.mutation import TemplateBank
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import record_store
from dera_jax.evaluation.method_tables import method_folder
from dera_jax.experiments.population_study import PopulationStudy
from dera_jax.experiments.search_experiment import SearchExperiment
from dera_jax.experiments.stages import Reference
from dera_jax.rewards.tokens import Repetition
from tests.experiments import small
from tests.report import folders


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> PopulationStudy:
    folder = tmp_path_factory.mktemp("models")
    return PopulationStudy(
        setting=SearchExperiment(
            reference=Reference(folder=small.reference_folder(folder / "reference")),
            documents=small.DOCUMENTS,
            max_length=8,
            batch_size=4,
            seed=0,
            aligned=small.reference_folder(folder / "aligned", 1),
        ),
        reward=Repetition(),  # of which even a random model's texts have more or less
        evolution=Evolution(Sampling(8, top_k=2), population=3, period=4, survivors=2),
        mutator=TemplateBank(("summarize: {document}", "briefly, summarize: {document}")),
        search=Search(8, beams=2, top_k=3, reward_weight=8.0),
        lam=0.5,
        periods=(8,),
        populations=(3,),
        survivors=(2,),
        lookaheads=(0,),
        generations=(2,),
        texts=(8,),
        beams=(1,),
        headline="reward",
        title="A study",
        lineages=1,
    )


@pytest.mark.evidence
def test_every_method_answers_with_as_many_positions(study, tmp_path):
    found = study.run(tmp_path)
    shown = [x["label"] for x in folders.data(report.write(tmp_path))["sources"]]
    assert shown[:2] == ["greedy", "sampling"] and "DARWIN, period 8" in shown
    rows = {row["method"]: row for row in found["methods"]}
    darwin = rows["DARWIN"]
    assert darwin["reward"] > rows["sampling"]["reward"]
    assert rows["sampling"]["gap_to_darwin"] == pytest.approx(
        rows["sampling"]["reward"] - darwin["reward"]
    )
    # As near as half a text of 8 tokens, or half an individual: its input and its text.
    bought = [name for name in rows if name.startswith("best of")]
    assert len(bought) == 2
    for name in bought:
        assert abs(rows[name]["forward_tokens"] - darwin["forward_tokens"]) < 8 * (
            1 + ("λ" in name)
        ), name
    for name in rows:
        if "individuals" in name:
            each = darwin["forward_tokens"] / 3 * (1 + ("λ" in name))
            assert abs(rows[name]["forward_tokens"] - darwin["forward_tokens"]) < 0.75 * each, name
    effects = {(row["varied"], row["value"]): row for row in found["effects"]}
    varied = {"period": 8, "population": 3, "survivors": 2, "lookahead": 0, "generations": 2}
    assert set(effects) == set(varied.items())
    same = ("reward", "forward_tokens", "rougeL")  # settings that are those of the table
    for name in ("population", "survivors", "lookahead"):
        assert [effects[name, varied[name]][x] for x in same] == [darwin[x] for x in same]
    assert effects["period", 8]["adopted"] == 0 < effects["survivors", 2]["adopted"]
    assert effects["period", 8]["gap_to_mutation_only"] == 0
    assert effects["generations", 2]["forward_tokens"] > 1.5 * darwin["forward_tokens"]
    assert effects["generations", 2]["reward"] >= darwin["reward"]  # the first is the same
    for name in ("methods.png", "effects.png", "cost.png", "lineage_1.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    record = record_store.read(method_folder(tmp_path, "DARWIN"))[0]
    assert record["evolution"]["best"]["text"] == record["samples"][0]["text"]
    assert np.isclose(record["evolution"]["best"]["reward"], record["samples"][0]["reward"])


def test_what_cannot_be_meant_is_refused(study):
    alone = dataclasses.replace(study.setting, aligned=None)
    with pytest.raises(ValueError, match="needs an aligned model or `align`"):
        dataclasses.replace(study, setting=alone)
    # Whatever DARWIN is to be run with is looked at before anything is trained.
    for changed, sentence in (
        ({"survivors": (2, 3)}, r"survivors must be an integer in \[1, 3\)"),
        ({"periods": (0,)}, "period must be an integer of at least 1"),
        ({"lookaheads": (8,)}, r"lookahead must be an integer in \[0, 8\)"),
        ({"populations": (1,)}, "population must be an integer of at least 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            dataclasses.replace(study, **changed)
