"""The experiments on reward-guided search with models of no use: what is asked, at what budget."""

import dataclasses
import json

import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dera_jax.decoding.beam_search import Search
from dera_jax.experiments.search_study import Budget, SearchStudy, Setting, TradeOff
from dera_jax.experiments.stages import Reference
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.words import Faithfulness, KeywordCoverage, WordsInRange
from tests.experiments import small

SEARCH = Search(8, beams=2, top_k=3, lookahead=2, reward_weight=8.0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    folder = tmp_path_factory.mktemp("models")
    return Setting(
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
        reward=Faithfulness(),
        search=SEARCH,
        lam=0.5,
        prompt="use the words {keywords}. {text}",
        weights=(1.0, 8.0),
        lookaheads=(0, 2),
        headline="faithful",
        title="A study",
    )


@pytest.mark.slow
def test_every_method_answers_with_as_many_positions(study, tmp_path):
    setting = dataclasses.replace(study.setting, also=(Part("words", WordsInRange(high=3)),))
    found = dataclasses.replace(study, setting=setting).run(tmp_path)
    rows = {row["method"]: row for row in found["methods"]}
    deal = rows["DeAL"]
    assert deal["reward"] > rows["beam search"]["reward"]  # it is what it searches for
    assert deal["reward"] >= max(row["reward"] for row in found["grid"]) - 1e-6
    # A text of the pair costs more than a fourth of the budget here, so as near as whole ones allow.
    matched = [name for name in rows if name.startswith("best of") or "beams" in name]
    assert len(matched) == 6
    for name in matched:
        assert 0.4 < rows[name]["positions"] / deal["positions"] < 1.6, name
    assert all("reward_words" in row and "reward_guide" in row for row in rows.values())
    for row in rows.values():
        assert row["reward"] == pytest.approx(row["reward_guide"])  # what is only measured weighs 0
    # The grid has the search of the table once more: the same texts at the same cost.
    same = next(r for r in found["grid"] if (r["weight"], r["lookahead"]) == (8.0, 2))
    assert {**same, **deal} == {**same, "method": "DeAL"}
    for name in ("methods.png", "grid.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "grid.json").read_text()) == found["grid"]
    text = (tmp_path / "samples.txt").read_text()
    assert text.count("document: ") == 4 and "DeAL, instructed: " in text


@pytest.mark.slow
def test_an_aligned_model_is_made_where_none_is_given(setting, tmp_path):
    setting = dataclasses.replace(setting, aligned=None, align=small.align, beta=0.1)
    names = [stage.name for stage in setting.stages(tmp_path, Faithfulness())]
    assert names == ["PPO"]
    setting.stages(tmp_path, Faithfulness())[0].run(tmp_path / "ppo")
    bench = setting.bench(tmp_path, Faithfulness())
    reference, aligned = (ravel_pytree(x)[0] for x in bench.pair.params)
    assert reference.shape == aligned.shape and np.any(reference != aligned)


@pytest.mark.slow
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


def test_a_budget_buys_what_it_pays_for():
    # 100 positions of input, a text of 10; the reward's models read 100 once and 20 for each text.
    budget = Budget(positions=1000.0, read=100.0, text=10.0, judged=(100, 20))
    assert budget.texts(1) == 27  # (1000 - 100 - 100) / 30 = 26.7
    assert budget.texts(2) == 18  # (1000 - 200 - 100) / 40 = 17.5
    assert budget.beams(max_length=30) == 30
    assert dataclasses.replace(budget, positions=50.0).texts(1) == 1  # never none


def test_the_parts_of_a_sum_are_measured_once_more_by_themselves(setting):
    parts = (Part("faithful", Faithfulness(), 2.0), Part("short", WordsInRange(high=3), 0.5))
    also = (Part("range", LengthInRange(2, 5), 7.0),)
    measured = dataclasses.replace(setting, also=also)._measured(Combined(parts))
    assert {x.name: x.weight for x in measured.terms} == {
        "guide": 1.0, "faithful": 0.0, "short": 0.0, "range": 0.0,
    }  # fmt: skip


def test_bad_settings_are_refused(setting, study, tmp_path):
    with pytest.raises(ValueError, match="or made by `align`, not both"):
        dataclasses.replace(setting, align=small.align)
    nobody = dataclasses.replace(setting, aligned=None)
    with pytest.raises(ValueError, match="SearchStudy needs an aligned model"):
        dataclasses.replace(study, setting=nobody)
    short = dataclasses.replace(setting, max_length=3)
    with pytest.raises(ValueError, match="keywords"):
        short.bench(tmp_path, KeywordCoverage())
    with pytest.raises(ValueError, match="max_length must be at least 60"):
        setting.bench(tmp_path, LengthInRange(50, 58))


def test_a_dry_run_names_the_search(study):
    needs = study.needs()
    assert [x.name for x in needs] == ["search, a batch"]
    assert needs[0].parameters["reference"] == needs[0].parameters["aligned"] > 0
