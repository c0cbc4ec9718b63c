"""Training on two real processes of two devices each: one model, its gradients summed, written once.

As a script, `python -m tests.training.test_two_training_processes PORT INDEX FILE FOLDER`, this is one of
the two.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dera_jax import partitioning
from dera_jax.training import metrics
from tests import processes, words

TRAINERS = {"dpo": words.dpo}


def main(port: str, index: str, file: str, folder: str) -> None:
    """Trains both models as one of the two processes."""

    def work() -> dict:
        with partitioning.use(partitioning.make_mesh(2, 2), partitioning.FULLY_SHARDED):
            assert jax.device_count() == 4
            return {name: run("llama", Path(folder) / name) for name, run in _runs().items()}

    processes.join(port, index, file, work)


def _runs() -> dict:
    return {
        name: lambda family, at, make=make: make(family).run(at) for name, make in TRAINERS.items()
    }


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tmp_path):
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    module = "tests.training.test_two_training_processes"
    first, second = processes.run_two(module, tmp_path, str(shared), devices=2)
    assert first == second
    for name, run in _runs().items():
        expected = json.loads(json.dumps(run("llama", alone / name)))
        assert first[name]["best_step"] == expected["best_step"]
        rows = [metrics.read(folder / name) for folder in (alone, shared)]
        for one, two in zip(*rows, strict=True):
            assert one.keys() == two.keys()
            for key in one.keys() - {"training/tokens_per_second"}:
                assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), key
        models = [load_file(x / name / "best" / "model.safetensors") for x in (alone, shared)]
        for path, x in models[0].items():
            np.testing.assert_allclose(models[1][path], x, atol=3e-4, err_msg=path)
        assert len(list((shared / name).glob("events.*"))) == 1  # one writer


if __name__ == "__main__":
    main(*sys.argv[1:])
