"""kill -9 of a sweep at moments that nobody chose, and a second one in its folder."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dera_jax.evaluation import record_store
from dera_jax.files import lock

ROOT = Path(__file__).resolve().parents[2]
# Without tasks and models of a file, so that a process starts in seconds.
SWEEP = """
import dataclasses, sys, time
from pathlib import Path
import jax
import numpy as np
from dera_jax.files import run_folder
from dera_jax.decoding.sampling import Sampling
from dera_jax.data.documents import Documents
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.evaluation.sweep_tables import write_report
from dera_jax.models.language_model import Prompts
from dera_jax.models.tabular import TabularLM
from dera_jax.decoding.realign import Realigned
from dera_jax.prompts import Prompt
from dera_jax.rewards.host import HostReward

def slow(documents, texts):
    time.sleep(0.05)
    return [float(len(text)) for text in texts]

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
model = TabularLM(5, 4, num_inputs=42)
params = tuple(model.init(jax.random.key(i)) for i in (1, 2))
inputs = np.arange(2, 42, dtype=np.int32)[:, None]
prompts = Prompts(inputs, np.ones(40, np.int32))
documents = Documents(prompts, np.arange(40), [Prompt(f"a\\u2028{i}") for i in range(40)], ["b"] * 40)
sweep = Sweep((0.0, 1.0), 2, Sampling(4), HostReward(slow), 1, seed)
to_text = lambda ids: " ".join(map(str, ids))
with run_folder.claim(folder, f"SEED = {seed}\\n"):
    if run_folder.result(folder) is None:
        records = decode(Realigned(model, (model,)), params, documents, sweep, to_text, folder)
        run_folder.finish(folder, {"documents": len(records)})
"""


def start(folder: Path, seed: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", SWEEP, str(folder), str(seed)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def written(folder: Path) -> int:
    return len(list((folder / "shards").glob("[0-9]*.jsonl")))


def wait_for(process: subprocess.Popen, folder: Path, count: int) -> None:
    while written(folder) < count:
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.005)


@pytest.mark.evidence
def test_a_sweep_killed_twice_ends_as_one_left_alone_and_no_second_one_works_beside_it(tmp_path):
    whole, killed, draw = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    assert start(whole).wait() == 0
    for reached in (2, 25):
        process = start(killed)
        wait_for(process, killed, reached)
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGSTOP)
        if reached == 2:
            second = start(killed, seed=1)
            assert second.wait() == 1
            assert f"is in use by process {process.pid} on host" in second.stderr.read()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert (killed / lock.KEY).exists()
        assert not (killed / "result.json").exists(), "killed too late to show anything"
    assert start(killed).wait() == 0
    assert not (killed / lock.KEY).exists()
    assert record_store.read(killed) == record_store.read(whole)
    for name in (record_store.RECORDS, record_store.MANIFEST, "result.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
