"""DARWIN from the command line, with every mutator that ships."""

import json
from pathlib import Path

import pytest

from dera_jax import main
from dera_jax.evaluation import record_store
from tests.experiments import small

IN_CI = ("rewriter",)
MUTATORS = [
    pytest.param(path, marks=pytest.mark.slow if path.stem in IN_CI else pytest.mark.evidence)
    for path in sorted(Path("gin_configs/mutators").glob("*.gin"))
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [small.reference_folder(folder / name, i) for i, name in enumerate(("one", "other"))]


PLAIN = "summarize: {document}"


@pytest.mark.parametrize("path", MUTATORS, ids=lambda path: path.stem)
def test_populations_evolve_under_every_mutator(path, models, tmp_path):
    files = ["gin_configs/runs/evolution.gin", "gin_configs/rewards/faithfulness.gin", str(path)]
    macros = {
        "TASK": "newswire", "INPUTS": 16, "DOCUMENTS": 3, "MAX_LENGTH": 8, "POPULATION": 3,
        "SURVIVORS": 1, "GENERATIONS": 1, "NUM_SAMPLES": 2, "REFERENCE": models[0],
        "ALIGNED": models[1], "LAMBDA": 0.5, "MODEL_DIR": str(tmp_path / "run"),
    }  # fmt: skip
    if path.stem == "rewriter":
        macros |= {"REWRITER": models[1], "REQUEST_TOKENS": 40, "ANSWER_TOKENS": 8}
    bindings = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    main.main([*(f"--gin_file={name}" for name in files), *bindings])
    rows = json.loads((tmp_path / "run" / "methods.json").read_text())
    assert [row["method"] for row in rows] == ["greedy", "best of n", "DARWIN"]
    records = record_store.read(tmp_path / "run" / "methods" / "darwin")
    generations = [record["evolution"]["generations"][0] for record in records]
    asked = [text for generation in generations for text in generation["templates"]]
    assert len(asked) == 3 * 3
    if path.stem == "bank":
        assert any(text != PLAIN for text in asked) and all(PLAIN in text for text in asked)
    if path.stem == "edits":  # the document was edited, so that all that was asked is there
        assert all(text.startswith("summarize: ") for text in asked)
    if path.stem == "rewriter":  # a random model writes no list
        assert [generation["fallbacks"] for generation in generations] == [1] * 3
    if path.stem in ("none", "rewriter"):
        assert set(asked) == {PLAIN}
