"""MESH and RULES of a run: every run has them, and they are not what makes a folder that of another run."""

import re
from pathlib import Path

import pytest

from dera_jax import main
from dera_jax.files import run_folder
from tests.decoding.worlds import run_on_eight_devices

RUNS = sorted(
    path
    for path in Path("gin_configs").rglob("*.gin")
    if re.search(r"^configure\.run\.folder = ", path.read_text(), re.MULTILINE)
)


def included(path: Path) -> set[str]:
    """The gin files that a file reads, itself among them."""
    names = re.findall(r"^include '(.+)'$", path.read_text(), re.MULTILINE)
    return {str(path)}.union(*(included(Path(name)) for name in names))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_has_a_mesh(path):
    assert "gin_configs/runs/mesh.gin" in included(path)


def test_a_run_is_the_same_on_another_mesh():
    there = "MESH = None\nRULES = ()\nSEED = 1\n"
    assert not run_folder._differences(there, there.replace("None", "(4, 2)").replace("()", "(1,)"))
    assert run_folder._differences(there, there.replace("1", "2"))


SAMPLES = [
    "--gin_file=gin_configs/runs/sample.gin", "--gin.REFERENCE='dera_jax/assets/reference'",
    "--gin.ALIGNED='dera_jax/assets/aligned'", "--gin.DOCUMENTS=8", "--gin.LAMBDAS=(0.0, 0.5, 1.0)",
    "--gin.BATCH_SIZE=8", "--gin.MAX_LENGTH=8", "--gin.TASK='docstrings'", "--gin.INPUTS=32",
]  # fmt: skip


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        ("MESH=4", r"MESH must be the devices along 'data' and along 'model', such as \(4, 2\)"),
        ("MESH=(64, 1)", "needs 64 devices; there are 1"),
        ("RULES=(('embedding', 'data'),)", "a rule is a logical axis"),
    ],
)
def test_a_wrong_mesh_is_refused_by_name(binding, said, tmp_path):
    with pytest.raises(SystemExit, match=said):
        main.main([*SAMPLES, f"--gin.MODEL_DIR='{tmp_path / 'run'}'", f"--gin.{binding}"])


ON_A_MESH = """
import json, sys
from pathlib import Path
from dera_jax import main

found = []
for name, mesh in (("one", "(1, 1)"), ("many", "(4, 2)")):
    folder = Path(FOLDER) / name
    main.main([*SAMPLES, f"--gin.MODEL_DIR={str(folder)!r}", f"--gin.MESH={mesh}"])
    found.append([json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()])
tokens = [[s["tokens"] for record in run for s in record["samples"]] for run in found]
assert tokens[0] == tokens[1] and len(tokens[0]) == 24
print("identical")
"""


@pytest.mark.slow
def test_a_command_samples_the_same_on_a_mesh(tmp_path):
    run_on_eight_devices(f"SAMPLES = {SAMPLES!r}\nFOLDER = {str(tmp_path)!r}\n{ON_A_MESH}")
