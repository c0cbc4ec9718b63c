"""The entry point: configuration errors, output folders, and runs that are killed."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gin
import jax
import numpy as np
import orbax.checkpoint
import pytest

from dera_jax import configure, main
from dera_jax.experiments import two_rewards
from dera_jax.files import run_folder
from dera_jax.training import metric_log
from tests.experiments import small

ROOT = Path(__file__).resolve().parent.parent

JOB = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Count:
    upto: int
    label: str = "x"

    def run(self, folder):
        with (folder / "calls").open("a") as file:
            file.write("called\\n")
        return {"total": sum(range(self.upto + 1))}
"""

GIN = """
from __gin__ import dynamic_registration
from dera_jax import configure
import counting_job

MODEL_DIR = %gin.REQUIRED
UPTO = 4
configure.run.job = @counting_job.Count()
configure.run.folder = %MODEL_DIR
counting_job.Count.upto = %UPTO
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Iterator[Path]:
    """A folder with the job, once: gin takes a module imported twice for two of one name."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "counting_job.py").write_text(JOB)
    (folder / "count.gin").write_text(GIN)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def call(source, tmp_path):
    """Runs main on the counting job: call('--gin.UPTO=3') -> the folder."""
    out = tmp_path / "out"

    def run(*arguments: str) -> Path:
        folder = f'--gin.MODEL_DIR="{out}"'
        main.main([f"--gin_search_paths={source}", "--gin_file=count.gin", folder, *arguments])
        return out

    return run


def calls(folder: Path) -> int:
    return (folder / "calls").read_text().count("\n")


def test_a_run_leaves_its_config_and_result(call):
    folder = call("--gin.UPTO=10")
    assert json.loads((folder / "result.json").read_text()) == {"total": 55}
    config = (folder / "config.gin").read_text()
    assert "UPTO = 10" in config and "counting_job.Count.label = 'x'" in config


def test_a_run_that_has_ended_is_not_run_again(call):
    folder = call()
    call()
    assert calls(folder) == 1


def test_a_run_that_has_not_ended_goes_on(call):
    folder = call()
    (folder / "result.json").unlink()
    call()
    assert calls(folder) == 2


def test_a_folder_of_another_run_is_refused(call):
    folder = call()
    with pytest.raises(
        SystemExit,
        match=r"(?s)another configuration.*- UPTO = 4.*\+ UPTO = 5.*Choose another folder",
    ):
        call("--gin.UPTO=5")
    assert calls(folder) == 1


def test_a_folder_that_is_no_run_is_refused(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(SystemExit, match=r"not empty and holds no run"):
        call()


def test_a_run_that_left_nothing_may_be_corrected(call):
    folder = call()
    for name in ("result.json", "calls"):
        (folder / name).unlink()
    call("--gin.UPTO=5")
    assert json.loads((folder / "result.json").read_text()) == {"total": 15}


def test_a_folder_made_from_other_parameters_is_refused(tmp_path):
    """Though the model's folder has the same name."""
    parameters, config = tmp_path / "model.safetensors", f"REFERENCE = '{tmp_path}'\n"
    parameters.write_bytes(b"first")
    claim = functools.partial(run_folder.claim, tmp_path / "run", config)
    for _ in range(2):
        with claim():
            pass
    run_folder.finish(tmp_path / "run", {})
    parameters.write_bytes(b"second")
    with pytest.raises(FileExistsError, match=r"SHA-256 of .*model\.safetensors"), claim():
        pass


def test_a_moved_folder_is_the_same_run(tmp_path):
    with run_folder.claim(tmp_path / "a", "MODEL_DIR = '/a'\nSTEPS = 3\n"):
        (tmp_path / "a" / "records.jsonl").write_text("")
    (tmp_path / "a").rename(tmp_path / "b")
    with run_folder.claim(tmp_path / "b", "MODEL_DIR = '/b'\nSTEPS = 3\n"):
        pass


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gin.UPTOO=3", r"no gin file defines the macro 'UPTOO'; did you mean --gin.UPTO\?"),
        ("--gin.Count.uptoo=3", r"uptoo.*did you mean upto\?"),
        ("--gin.Counter.upto=3", r"Counter.*did you mean .*Count\?"),
        ("--gin.UPTO=", r"cannot read 'UPTO = '; put strings in two pairs"),
        ("--gin.UPTO=three", r"cannot read 'UPTO = three'"),
        ("--gin_file=missing.gin", r"missing.gin"),
    ],
)
def test_what_cannot_be_meant_is_named(call, argument, message):
    with pytest.raises(SystemExit, match=message):
        call(argument)


def test_a_macro_without_value_is_named(tmp_path):
    (tmp_path / "a.gin").write_text("MODEL_DIR = %gin.REQUIRED\n")
    with pytest.raises(ValueError, match=r"MODEL_DIR.*--gin.MODEL_DIR="):
        configure.parse(["a.gin"], [], [str(tmp_path)])


def test_the_repositorys_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    """Also where a folder on Python's path has the same name and no such file."""
    (tmp_path / "gin_configs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    size = "include 'gin_configs/models/t5_1_1_small.gin'"
    (tmp_path / "mine.gin").write_text(f"{size}\nDROPOUT_RATE = 0.1\n")
    configure.parse(["mine.gin"], ["DROPOUT_RATE = 0.2"], ["."])


def macros_to_set(path: str) -> set[str]:
    """The macros that a gin file, or one it includes, leaves to the command line."""
    text = (ROOT / path).read_text()
    included = re.findall(r"^include '(.+)'$", text, re.MULTILINE)
    found = re.findall(r"^(\w+) = %gin\.REQUIRED\b", text, re.MULTILINE)
    return set(found).union(*map(macros_to_set, included))


PARTS = (  # included by others
    "gin_configs/runs/supervised.gin",
    "gin_configs/runs/preferences.gin",
    "gin_configs/experiments/length_reward/base.gin",
    "gin_configs/experiments/length_reward/xsum.gin",
    "gin_configs/experiments/tldr/base.gin",
    "gin_configs/experiments/hallucination/base.gin",
    "gin_configs/experiments/two_rewards/base.gin",
    "gin_configs/runs/search.gin",
    "gin_configs/experiments/deal/study.gin",
    "gin_configs/experiments/deal/trade_off.gin",
    "gin_configs/experiments/deal/t5_small.gin",
    "gin_configs/runs/populations.gin",
    "gin_configs/experiments/darwin/study.gin",
)
RUN_FILES = [path.relative_to(ROOT).as_posix() for path in (ROOT / "gin_configs").rglob("*.gin")]
NOT_RUNS = (
    "/models/",
    "/rewards/",
    "/mutators/",
    "/t5x/",
)  # tests/test_gin_rewards.py, test_gin_mutators.py, t5x/test_plugin.py
RUN_FILES = sorted(
    f for f in RUN_FILES if f not in PARTS and not any(part in f for part in NOT_RUNS)
)


@pytest.mark.parametrize("path", RUN_FILES)
def test_every_run_file_names_what_exists(path):
    configure.parse([path], [f"{name} = 1" for name in sorted(macros_to_set(path))], ["."])


SHIPPED = {"TASK": "docstrings", "PAIRS_TASK": "docstrings_pairs", "INPUTS": 80, "TARGETS": 24}
SHIPPED |= {"LOW": 12, "HIGH": 17, "BETA": 0.45, "MAX_LENGTH": 24}


@pytest.mark.parametrize("path", [path for path in RUN_FILES if "/runs/" in path])
def test_run_files_default_to_the_shipped_models_task_and_sizes(path):
    """Pre-training has a task of its own, and DPO a β of its own; rewards that need no range have none."""
    card = json.loads((ROOT / "dera_jax/assets/aligned/card.json").read_text())
    assert {SHIPPED["LOW"], SHIPPED["HIGH"]} == set(card["length_range"])
    assert SHIPPED["MAX_LENGTH"] == card["max_length"] and SHIPPED["BETA"] == card["beta"]
    assert (
        SHIPPED.items()
        >= {x: card["data"][x.lower()] for x in ("TASK", "INPUTS", "TARGETS")}.items()
    )
    configure.read([path], ["."])
    expected = SHIPPED | {
        "runs/pretrain.gin": {"TASK": "prose"},
        "runs/dpo.gin": {"BETA": 0.1},
    }.get(path[12:], {})
    found = {
        name: gin.config._CONFIG.get((name, "gin.macro"), {}).get("value") for name in expected
    }
    assert {name: x for name, x in found.items() if x is not None and x != expected[name]} == {}


EXPERIMENTS = "gin_configs/experiments/length_reward"
SIZES = [  # layers, parameters counted by hand from the sizes in gin_configs/models
    pytest.param("newswire", 2, 230_400, 32 * (64 + 32), True, marks=pytest.mark.evidence),
    ("xsum_t5_1_1_small", 1, 38_408_064, 32 * (512 + 64), False),
    # 76,961,152: the size of the public T5 1.1 small checkpoint
    pytest.param(
        "xsum_t5_1_1_small", 8, 76_961_152, 32 * (512 + 64), True, marks=pytest.mark.evidence
    ),
]


@pytest.mark.parametrize("name, layers, parameters, tokens, compiled", SIZES)
def test_a_dry_run_tells_what_the_experiment_needs(
    name, layers, parameters, tokens, compiled, tmp_path, capsys, monkeypatch
):
    if not compiled:
        small.only_trace(monkeypatch)
    out = tmp_path / "out"
    sizes = [f"--gin.t5.T5Config.num_{x}_layers={layers}" for x in ("encoder", "decoder")]
    arguments = [f"--gin_file={EXPERIMENTS}/{name}.gin", f'--gin.MODEL_DIR="{out}"', *sizes]
    main.main([*arguments, "--dry_run"])
    said = capsys.readouterr().out
    sft = f"training step on task '{name.partition('_')[0]}'"
    assert re.findall(r"^(.+): at most [\d,]+ tokens processed per call", said, re.MULTILINE) == [
        sft,
        "PPO step",
        "DeRa sweep, a batch",
        "scoring, a batch",
    ]
    assert f"{sft}: at most {tokens:,} tokens" in said and f"model {parameters:,}\n" in said
    assert f"reference {parameters:,}, policy {parameters:,}, value network" in said
    assert not out.exists()
    if compiled:
        # Float32 parameters, at least: an optimizer's state and results come on top.
        kept = [float(x) for x in re.findall(r"([\d.]+) GiB for arguments", said)]
        assert kept[1] >= round(3 * 4 * parameters / 2**30, 2)


SCORED = ["PPO step", "DeRa sweep, a batch", "scoring, a batch"]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.evidence)])
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("tldr/newswire", SCORED),
        ("hallucination/newswire", SCORED[:2]),  # a part in Python scores the sweep
        ("two_rewards/newswire", SCORED),
    ],
)
def test_every_experiment_with_rewards_can_be_checked_dry(
    name, last, compiled, tmp_path, capsys, monkeypatch
):
    if not compiled:
        small.only_trace(monkeypatch)
    out = tmp_path / "out"
    path = f"gin_configs/experiments/{name}.gin"
    main.main([f"--gin_file={path}", f'--gin.MODEL_DIR="{out}"', "--dry_run"])
    said = capsys.readouterr().out
    found = re.findall(r"^(.+): at most [\d,]+ tokens processed per call", said, re.MULTILINE)
    assert found[-len(last) :] == last
    assert not out.exists()


def test_an_experiment_with_other_settings_of_a_stage_is_refused(tmp_path, monkeypatch):
    """Its stages' jobs are made after the folder was claimed."""
    path = "gin_configs/experiments/two_rewards/tiny.gin"
    arguments = [f"--gin_file={path}", f'--gin.MODEL_DIR="{tmp_path}/out"']
    monkeypatch.setattr(two_rewards.TwoRewards, "run", lambda self, folder: _stop(folder))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stopped"):
            main.main(arguments)
    with pytest.raises(
        SystemExit, match=r"(?s)another configuration.*- PPO_STEPS = 64.*\+ PPO_STEPS = 65"
    ):
        main.main([*arguments, "--gin.PPO_STEPS=65"])


def _stop(folder):
    (folder / "sft").mkdir(exist_ok=True)
    raise RuntimeError("stopped")


def test_a_dry_run_of_a_job_without_steps_is_refused(tmp_path):
    arguments = ["--gin_file=gin_configs/experiments/exact.gin", f'--gin.MODEL_DIR="{tmp_path}/x"']
    with pytest.raises(SystemExit, match="--dry_run: Exact"):
        main.main([*arguments, "--dry_run"])


RUN = """
from __gin__ import dynamic_registration
import letters
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/models/micro.gin'
TASK = 'letters'
VOCABULARY = 'bytes'
INPUTS = 12
TARGETS = 8
BATCH_SIZE = 4
STEPS = 40
WARMUP_STEPS = 3
DROPOUT_RATE = 0.1
EVAL_PERIOD = 7
SAVE_STEPS = 5
"""

TASK = """
from dera_jax.tasks import jsonl
paths = {split: f"{__file__}.{split}" for split in ("train", "validation")}
jsonl.register("letters", paths, "s: {document}")
"""


def write_letters(folder: Path) -> None:
    (folder / "letters.py").write_text(TASK)
    (folder / "letters.gin").write_text(RUN)
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        texts = ["".join(rng.choice(list("abc"), 6)) for _ in range(30)]
        lines = [json.dumps({"document": text, "summary": text[:3]}) for text in texts]
        (folder / f"letters.py.{split}").write_text("\n".join(lines))


def letters(tmp_path: Path, out: Path) -> list[str]:
    """Arguments of the run that `write_letters` describes."""
    return [
        "--gin_file=letters.gin", f"--gin_search_paths={tmp_path}", f'--gin.MODEL_DIR="{out}"',
    ]  # fmt: skip


def start(tmp_path: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "dera_jax.main", *letters(tmp_path, out)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    log = (tmp_path / "log").open("a")
    return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)


def steps_saved(out: Path) -> int:
    return max(
        (int(x.name) for x in (out / "checkpoints").glob("[0-9]*") if x.name.isdigit()), default=0
    )


def arrays_of_the_last_checkpoint(out: Path) -> dict:
    assert steps_saved(out) == 40
    return orbax.checkpoint.PyTreeCheckpointer().restore(out / "checkpoints" / "40" / "default")


@pytest.mark.evidence
def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    """kill -9 at a moment that nobody chose, then to the end; against a run left alone.

    Only what is killed is a process of its own: its start costs more than the run.
    """
    write_letters(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    main.main(letters(tmp_path, tmp_path / "whole"))
    killed = tmp_path / "killed"
    process = start(tmp_path, killed)
    while steps_saved(killed) < 5:
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert steps_saved(killed) < 40, "killed too late to show anything"
    main.main(letters(tmp_path, killed))
    for name in ("best/model.safetensors", "result.json"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    last = [arrays_of_the_last_checkpoint(run) for run in (killed, tmp_path / "whole")]
    assert jax.tree.structure(last[0]) == jax.tree.structure(last[1])
    jax.tree.map(np.testing.assert_array_equal, *last)
    runs = killed, tmp_path / "whole"
    steps = [[report["step"] for report in metric_log.read(run)] for run in runs]
    assert sorted(steps[0]) == steps[0]
    assert {step for step in steps[1] if step % 7 == 0} <= set(steps[0])
