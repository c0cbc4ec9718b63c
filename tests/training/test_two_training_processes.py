"""Training on two real processes of two devices each: one model, its gradients summed, written once.

As a script, `python -m tests.training.test_two_training_processes PORT INDEX FILE FOLDER TRAINER`, this
is one of the two.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dera_jax import partitioning
from dera_jax.training import metric_log
from tests import processes, words

TRAINERS = {"dpo": (words.dpo, "best"), "ppo": (words.aligned, "aligned")}  # the model's folder


def main(port: str, index: str, file: str, folder: str, trainer: str) -> None:
    """Trains a model as one of the two processes."""

    def work() -> dict:
        with partitioning.use_mesh(partitioning.make_mesh(2, 2), partitioning.FULLY_SHARDED):
            assert jax.device_count() == 4
            return TRAINERS[trainer][0]("llama").run(Path(folder))

    processes.join(port, index, file, work)


@pytest.mark.parametrize(
    "trainer",
    [pytest.param("dpo", marks=pytest.mark.slow), pytest.param("ppo", marks=pytest.mark.evidence)],
)
def test_two_processes_train_the_model_of_one(trainer, tmp_path):
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    module = "tests.training.test_two_training_processes"
    first, second = processes.run_two(module, tmp_path, str(shared), trainer, devices=2)
    assert first == second
    make, model = TRAINERS[trainer]
    make("llama").run(alone)
    for one, two in zip(*map(metric_log.read, (alone, shared)), strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"training/tokens_per_second"}:
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), key
    models = [load_file(x / model / "model.safetensors") for x in (alone, shared)]
    for path, x in models[0].items():
        np.testing.assert_allclose(models[1][path], x, atol=3e-4, err_msg=path)
    assert len(list(shared.glob("events.*"))) == 1  # one writer


if __name__ == "__main__":
    main(*sys.argv[1:])
