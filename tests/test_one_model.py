"""Runs that decode a pair decode a single model too, where ALIGNED is left out."""

import json
from pathlib import Path

import pytest

from dera_jax import main
from dera_jax.evaluation import record_store
from tests.experiments import small

SMALL = {"TASK": "newswire", "INPUTS": 16, "DOCUMENTS": 3, "MAX_LENGTH": 6}
REWARD = "rewards/faithfulness"
RUNS = {
    "sample": (["runs/sample"], {"SAMPLES": 2, "BATCH_SIZE": 2}),
    "scored": (["runs/sample", REWARD], {"SAMPLES": 2, "BATCH_SIZE": 2}),
    "best_of_n": (["runs/best_of_n", REWARD], {"SAMPLES": 2, "SIZES": (1, 2), "BATCH_SIZE": 2}),
    "beam_search": (
        ["runs/beam_search", REWARD],
        {"EVAL_BATCH_SIZE": 2, "BEAMS": 2, "TOP_K": 2, "LOOKAHEAD": 1, "PERIOD": 2},
    ),
    "evolution": (
        ["runs/evolution", REWARD],
        {"EVAL_BATCH_SIZE": 2, "POPULATION": 2, "SURVIVORS": 1, "NUM_SAMPLES": 2},
    ),
}
SLOW = ("beam_search", "evolution")


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> str:
    return small.reference_folder(tmp_path_factory.mktemp("reference") / "model")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in RUNS]
)
def test_a_run_without_an_aligned_model(name, reference, tmp_path):
    files, settings = RUNS[name]
    macros = SMALL | settings | {"REFERENCE": reference, "MODEL_DIR": str(tmp_path / "run")}
    arguments = [f"--gin_file=gin_configs/{file}.gin" for file in files]
    main.main([*arguments, *(f"--gin.{key}={value!r}" for key, value in macros.items())])
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    if name in SLOW:
        assert [row["documents"] for row in found["methods"]] == [3, 3, 3]
        return
    check_records(tmp_path / "run")
    rows = {"scored": "lambda", "best_of_n": "best_of"}.get(name)
    assert (rows in found) == (rows is not None)
    if rows:
        assert [row["lam"] for row in found[rows]] == [None] * len(found[rows])
        assert all(0 <= row["reward"] <= 1 for row in found[rows])


def check_records(folder: Path) -> None:
    samples = [x for record in record_store.read(folder) for x in record["samples"]]
    assert len(samples) == 6
    assert {x["lam"] for x in samples} == {x["kl"] for x in samples} == {None}
