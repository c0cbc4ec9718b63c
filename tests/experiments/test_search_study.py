"""The experiments on reward-guided search with models of no use: what is asked, at what budget."""

import dataclasses
import json

import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dera_jax.decoding.beam_search import Search
from dera_jax.evaluation import record_store
from dera_jax.evaluation.method_tables import check_names, method_folder, paired_difference
from dera_jax.evaluation.methods import SamplingMethod, SearchMethod
from dera_jax.experiments.search_experiment import Budget, SearchExperiment
from dera_jax.experiments.search_study import MethodComparison, SearchStudy, TradeOff
from dera_jax.experiments.stages import Reference
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.tokens import Repetition
from dera_jax.rewards.words import Faithfulness, KeywordCoverage, WordsInRange
from tests.experiments import small

SEARCH = Search(8, beams=2, top_k=3, lookahead=2, reward_weight=8.0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> SearchExperiment:
    folder = tmp_path_factory.mktemp("models")
    return SearchExperiment(
        reference=Reference(folder=small.reference_folder(folder / "reference")),
        documents=small.DOCUMENTS,
        max_length=8,
        batch_size=4,
        seed=0,
        aligned=small.reference_folder(folder / "aligned", 1),
    )


@pytest.fixture(scope="module")
def study(setting) -> SearchStudy:
    return SearchStudy(
        setting=setting,
        reward=Repetition(),  # of which even a random model's texts have more or less
        search=SEARCH,
        lam=0.5,
        prompt="use the words {keywords}. summarize: {document}",
        weights=(8.0,),
        lookaheads=(0, 2),
        headline="reward",
        title="A study",
    )


@pytest.mark.evidence
def test_every_method_answers_with_as_many_positions(study, tmp_path):
    setting = dataclasses.replace(study.setting, measured=(Part("words", WordsInRange(high=3)),))
    found = dataclasses.replace(study, setting=setting).run(tmp_path)
    rows = {row["method"]: row for row in found["methods"]}
    deal = rows["DeAL"]
    assert deal["reward"] > rows["beam search"]["reward"]  # it is what it searches for
    # As near as whole texts and beams allow: half a text of at most 8 tokens, or half a beam.
    bought = ("best of", "beam search, ", "DeAL without lookahead")
    matched = [name for name in rows if name.startswith(bought)]
    assert len(matched) == 5
    for name in matched:
        models = 2 if "λ" in name else 1
        assert abs(rows[name]["forward_tokens"] - deal["forward_tokens"]) < models * 8, name
    gaps = {name: row["gap_to_deal"] for name, row in rows.items()}
    assert gaps["greedy"] == pytest.approx(rows["greedy"]["reward"] - deal["reward"])
    assert all("reward_words" in row and "reward_guide" in row for row in rows.values())
    for row in rows.values():
        assert row["reward"] == pytest.approx(row["reward_guide"])  # what is only measured weighs 0
    # The grid has the search of the table once more: the same texts at the same cost.
    same = next(r for r in found["grid"] if (r["weight"], r["lookahead"]) == (8.0, 2))
    shared = [x for x in deal if x in same and x != "method"]
    assert "forward_tokens" in shared and [same[x] for x in shared] == [deal[x] for x in shared]
    for name in ("methods.png", "grid.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "grid.json").read_text()) == found["grid"]
    text = (tmp_path / "samples.txt").read_text()
    assert text.count("document: ") == 4 and "DeAL, instructed: " in text


@pytest.mark.evidence
def test_an_aligned_model_is_made_where_none_is_given(setting, tmp_path):
    setting = dataclasses.replace(setting, aligned=None, align=small.align, beta=0.1)
    names = [stage.name for stage in setting.stages(tmp_path, Faithfulness())]
    assert names == ["PPO"]
    setting.stages(tmp_path, Faithfulness())[0].run(tmp_path / "ppo")
    setup = setting.setup(tmp_path, Faithfulness())
    reference, aligned = (ravel_pytree(x.params)[0] for x in setup.components)
    assert reference.shape == aligned.shape and np.any(reference != aligned)


@pytest.mark.evidence
def test_a_trade_off_moves_from_one_reward_to_the_other(setting, tmp_path):
    parts = (Part("faithful", Faithfulness()), Part("short", WordsInRange(high=1)))
    study = TradeOff(setting, parts, (0.0, 0.5, 1.0), SEARCH, "A trade-off")
    rows = study.run(tmp_path)["trade_off"]
    assert [(row["mix"], row["kind"]) for row in rows[:3]] == [
        (0.0, "DeAL"), (0.0, "best of n"), (0.5, "DeAL"),
    ]  # fmt: skip
    first, last = rows[0], rows[4]
    assert first["reward_faithful"] >= last["reward_faithful"]
    assert last["reward_short"] >= first["reward_short"]
    assert (first["reward_faithful"], first["reward_short"]) != (
        last["reward_faithful"], last["reward_short"],
    )  # fmt: skip
    assert (tmp_path / "trade_off.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_any_methods_on_the_same_documents(setting, tmp_path):
    methods = (SamplingMethod("greedy", greedy=True), SearchMethod("DeAL", SEARCH))
    rows = MethodComparison(setting, KeywordCoverage(), methods).run(tmp_path)["methods"]
    assert [row["method"] for row in rows] == ["greedy", "DeAL"]
    assert rows[1]["reward"] >= rows[0]["reward"]
    assert (tmp_path / "methods.png").exists()
    assert (tmp_path / "methods" / "deal" / record_store.RECORDS).exists()


def test_gaps_are_paired_by_document(tmp_path):
    for name, coverage in (("a", (1.0, 0.0, 1.0)), ("b", (0.0, 0.0, 0.0))):
        records = [
            {"example_id": i, "document": "d", "summary": "s"}
            | {"samples": [{"text": "t", "length": 1, "reward": x}]}
            for i, x in enumerate(coverage)
        ]
        plan = record_store.Plan({}, "", np.arange(3), batch_size=3)
        record_store.write(
            plan, lambda rows, found=records: found, method_folder(tmp_path, name), name
        )
    gap = paired_difference(tmp_path, "reward", "to_b", "a", "b")
    assert gap["gap_to_b"] == pytest.approx(2 / 3)
    assert gap["gap_to_b_ci95"] == pytest.approx(1.96 * np.std([1, 0, 1], ddof=1) / np.sqrt(3))


def test_a_budget_buys_what_it_pays_for():
    # 1000 forward_tokens; an input of 100; models that scorer read 100 once and 20 for each text.
    budget = Budget(forward_tokens=1000.0, read=100.0, scored_once=100, scored_each=20)
    assert (
        budget.texts({"forward_tokens": 110.0}, num_models=1) == 27
    )  # (1000 - 200) / (10 + 20) = 26.7
    assert (
        budget.texts({"forward_tokens": 224.0}, num_models=2) == 16
    )  # (1000 - 300) / (24 + 20) = 15.9
    assert budget.beams({"forward_tokens": 220.0}, num_beams=4) == 30  # 4 x 900 / 120
    assert dataclasses.replace(budget, forward_tokens=50.0).texts({"forward_tokens": 110.0}, 1) == 1


def test_the_parts_of_a_sum_are_measured_once_more_by_themselves(setting, tmp_path):
    parts = (Part("faithful", Faithfulness(), 2.0), Part("short", WordsInRange(high=3), 0.5))
    also = (Part("range", LengthInRange(2, 5), 7.0),)
    setup = dataclasses.replace(setting, measured=also).setup(tmp_path, Combined(parts))
    measured = setup.measured
    assert {x.name: x.weight for x in measured.reward.terms} == {
        "guide": 1.0, "faithful": 0.0, "short": 0.0, "range": 0.0,
    }  # fmt: skip
    assert measured.params[0] is setup.scorer.params  # read once
    assert measured.params[1:3] == setup.scorer.params


def test_bad_settings_are_refused(setting, study, tmp_path):
    with pytest.raises(ValueError, match="or made by `align`, not both"):
        dataclasses.replace(setting, align=small.align, beta=0.1)
    nobody = dataclasses.replace(setting, aligned=None)
    with pytest.raises(ValueError, match="SearchStudy needs an aligned model"):
        dataclasses.replace(study, setting=nobody)
    with pytest.raises(ValueError, match="no slot {document}"):
        dataclasses.replace(study, prompt="use {keywords}")
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        TradeOff(setting, (Part("a", Faithfulness()),) * 2, (0.0, 1.5), SEARCH, "")
    with pytest.raises(ValueError, match="names that differ"):
        check_names(["DeAL 1", "deal: 1"])
    short = dataclasses.replace(setting, max_length=3)
    with pytest.raises(ValueError, match="keywords"):
        short.setup(tmp_path, KeywordCoverage())
    with pytest.raises(ValueError, match="max_length must be at least 60"):
        setting.setup(tmp_path, LengthInRange(50, 58))


def test_what_is_needed_after_training_is_looked_at_before(setting, study, tmp_path):
    """Headline, keywords, files of rewards: all would come after SFT and PPO."""
    untrained = dataclasses.replace(setting, aligned=None, align=small.align, beta=0.1)
    missing = MissingFile()
    for change, message in (
        ({"headline": "in_range_rate"}, "no column 'in_range_rate' to show"),
        ({"prompt": "{keywords}: {document}", "reward": LengthInRange(50, 58)}, "at least 60"),
        ({"setting": dataclasses.replace(untrained, measured=(Part("x", missing),))}, "nowhere"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            dataclasses.replace(study, **{"setting": untrained} | change).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


class MissingFile(Repetition):
    def load(self, resources):
        raise FileNotFoundError("nowhere")


def test_all_searches_of_a_study_are_looked_at_first(setting, study):
    for change in ({"lookaheads": (0, 8)}, {"weights": (8.0, 0.0)}):
        with pytest.raises(ValueError, match="Search"):
            dataclasses.replace(study, **change)
    greedy, alone = (
        SamplingMethod("greedy", greedy=True),
        dataclasses.replace(setting, aligned=None),
    )
    with pytest.raises(ValueError, match=r"Search.lookahead must be"):
        late = SearchMethod("DeAL", dataclasses.replace(SEARCH, lookahead=8))
        MethodComparison(setting, Repetition(), (greedy, late))
    with pytest.raises(ValueError, match="lam = 0.5 needs an aligned model"):
        MethodComparison(alone, Repetition(), (greedy, SamplingMethod("DeRa", lam=0.5)))


def test_a_dry_run_names_the_search(study, monkeypatch):
    small.only_trace(monkeypatch)
    needs = study.program_costs()
    assert [x.name for x in needs] == ["search, a batch"]
    assert needs[0].parameters["reference"] == needs[0].parameters["aligned"] > 0
