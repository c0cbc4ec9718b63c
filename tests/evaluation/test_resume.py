"""Every decoding run, stopped between two shards and started again, over documents whose characters
end lines for some readers."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import dera_jax.tasks  # noqa: F401 (registers `newswire`, whose vocabulary the models have)
from dera_jax import main
from dera_jax.evaluation import record_store
from dera_jax.files.store import Store
from tests.experiments import small

DATA = Path(__file__).parent.parent / "data" / "line_separators" / "test.jsonl"

MODULE = """
from dera_jax.tasks import jsonl

jsonl.register("separated", {"test": f"{__file__}.jsonl"})

def separators(documents, texts):
    return [float(x in document) for document in documents for x in "\\u2028"]
"""

GIN = """
from __gin__ import dynamic_registration
import separated_lines
from dera_jax.rewards import host
REWARD = @host.HostReward()
host.HostReward.fn = @separated_lines.separators
"""

GUIDED = """
from __gin__ import dynamic_registration
from dera_jax.evaluation import methods
from dera_jax.experiments import search_study
search_study.MethodComparison.methods = (@guided/methods.SearchMethod(),)
"""

SMALL = {"TASK": "separated", "INPUTS": 16, "MAX_LENGTH": 4, "DOCUMENTS": 5}
PLAIN = {"BATCH_SIZE": 2, "LAMBDAS": (0.0, 0.5), "SAMPLES": 2}
RUNS = {  # run file: its macros
    "sample": PLAIN,
    "sweep": PLAIN,
    "beam_search": {"EVAL_BATCH_SIZE": 2, "BEAMS": 2, "TOP_K": 2, "LOOKAHEAD": 1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    names = enumerate(("REFERENCE", "ALIGNED"))
    return {name: small.reference_folder(root / name, seed) for seed, name in names}


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "separated_lines.py").write_text(MODULE)
    (folder / "separated.gin").write_text(GIN)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def run(models, user):
    """run(name of a run file, folder) -> the run's result."""
    shutil.copy(DATA, user / "separated_lines.py.jsonl")

    def launch(name: str, folder: Path, **macros: object) -> dict:
        files = [f"gin_configs/runs/{name}.gin", str(user / "separated.gin")]
        if name == "beam_search":  # of its methods the one that the reward guides
            (user / "guided.gin").write_text(GUIDED)
            files.append(str(user / "guided.gin"))
        macros = SMALL | models | RUNS[name] | macros | {"MODEL_DIR": str(folder)}
        bindings = [f"--gin.{key}={value!r}" for key, value in macros.items()]
        main.main([*(f"--gin_file={file}" for file in files), *bindings])
        return json.loads((folder / "result.json").read_text())

    return launch


def stop_after(shard: str, monkeypatch) -> None:
    """Ctrl-C once this shard is written."""
    inner = Store.create

    def create(store, key, value):
        found = inner(store, key, value)
        if key == shard:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Store, "create", create)


SLOW = ("sweep", "beam_search")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in RUNS]
)
def test_a_stopped_run_ends_as_one_left_alone(name, run, tmp_path, monkeypatch):
    whole = run(name, tmp_path / "whole")
    folder = tmp_path / "stopped"
    stop_after("shards/00001.jsonl", monkeypatch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(name, folder)
    assert not (folder / "result.json").exists()
    assert run(name, folder) == whole
    found = sorted(x.relative_to(folder) for x in folder.rglob(record_store.RECORDS))
    assert len(found) == 1
    for path in found:
        assert (folder / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
        records = record_store.read((folder / path).parent)
        assert len({record["example_id"] for record in records}) == 5
        assert any("\u2028" in record["document"] for record in records)


def test_documents_edited_between_stop_and_restart_are_refused(run, user, tmp_path, monkeypatch):
    stop_after("shards/00000.jsonl", monkeypatch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("sample", tmp_path)
    file = user / "separated_lines.py.jsonl"
    first, *others = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\n".join([first.replace("a text", "no text"), *others]), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"plan\.json: documents is '5, SHA-256"):
        run("sample", tmp_path)
