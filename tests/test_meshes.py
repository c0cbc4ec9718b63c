"""Every trainer and every decoding method on a mesh: tokens, rewards and losses of one device."""

import pytest

from tests.conformance import table
from tests.decoding.worlds import run_on_eight_devices

TRAIN = """
import tempfile
from pathlib import Path
import numpy as np
from dera_jax.training import metric_log
from safetensors.numpy import load_file
from tests import words

def train(name, family, mesh, rules, folder):
    with partitioning.use_mesh(partitioning.make_mesh(*mesh), rules):
        words.TRAINERS[name](family).run(folder)
    return metric_log.read(folder), load_file(words.result_of(name, folder) / "model.safetensors")

def moved_alike(found, expected, what):
    # Adam divides a gradient that is all but 0 by its own size, so that rounding moves a few elements.
    apart = np.abs(found - expected)
    assert apart.max() < 1e-3 and (apart > 3e-4).sum() <= 1 + apart.size // 1000, (what, apart.max())

for name, family in TRAINED:
    with tempfile.TemporaryDirectory() as place:
        rows, params = train(name, family, (1, 1), (), Path(place) / "one")
        many_rows, many_params = train(name, family, MESH, RULES, Path(place) / "many")
    close = lambda found, expected, what, **limits: np.testing.assert_allclose(
        found, expected, err_msg=f"{name} {family} {what}", **limits
    )
    for expected, found in zip(rows, many_rows, strict=True):
        assert expected.keys() == found.keys()
        for key in expected.keys() - {"training/tokens_per_second"}:
            close(found[key], expected[key], key, rtol=2e-3, atol=2e-5)
    # A pair's margin has no derivative by the bias: Adam divides rounding by rounding.
    for path in params.keys() - ({"head/bias"} if name == "reward model" else set()):
        moved_alike(many_params[path], params[path], (name, family, path))
print("identical")
"""

DECODE = """
import dataclasses
import jax, numpy as np
from tests.conformance import table

def found(method, name, setting, mesh, rules):
    with partitioning.use_mesh(partitioning.make_mesh(*mesh), rules):
        return dataclasses.asdict(table.compute(method, name, setting))

for name, method, on_host in DECODED:
    setting = table.Setting(rows=(0, 1, 2, 1, 0, 2, 2, 1), on_host=on_host)
    one = found(method, name, setting, (1, 1), ())
    many = found(method, name, setting, MESH, RULES)
    values = one.pop("values"), many.pop("values")
    equal = lambda x, y: np.testing.assert_array_equal(y, x, err_msg=f"{method} {name}")
    close = lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4)
    jax.tree.map(equal, one, many)
    jax.tree.map(close, *values)
print("identical")
"""

FULLY_SHARDED = "partitioning.FULLY_SHARDED"
TRAINERS = ("sft", "dpo", "reward model", "ppo", "ppo, reward in Python", "distillation")
# Each trainer on one of the families; `make evidence-mesh` has the other.
FIRST = list(zip(TRAINERS, ["t5", "llama"] * 3, strict=True))
SECOND = list(zip(TRAINERS, ["llama", "t5"] * 3, strict=True))
METHODS = ("sample", "greedy", "best of n", "beam search", "guided beam search", "generation")
OTHERS = [((4, 2), "()"), ((8, 1), "()"), ((4, 2), FULLY_SHARDED), ((2, 4), "()"), ((1, 8), "()")]
OTHERS += [((2, 4), FULLY_SHARDED)]


def run(script: str, mesh: tuple[int, int], rules: str = "()", **names) -> None:
    given = "".join(f"{name} = {value!r}\n" for name, value in (names | {"MESH": mesh}).items())
    given = f"from dera_jax import partitioning\n{given}RULES = {rules}\n"
    run_on_eight_devices(given + script)


@pytest.mark.slow
def test_training_is_that_of_one_device():
    """Of one trainer; `test_on_every_mesh` has all of them."""
    run(TRAIN, (4, 2), TRAINED=[("ppo", "llama")])


@pytest.mark.slow
def test_decoding_is_that_of_one_device():
    """Of two methods; `test_on_every_mesh` has all of them."""
    methods = ("sample", "guided beam search")
    run(DECODE, (2, 4), FULLY_SHARDED, DECODED=[("realigned llama", x, False) for x in methods])


@pytest.mark.evidence
@pytest.mark.parametrize(("mesh", "rules"), OTHERS)
def test_on_every_mesh(mesh, rules):
    """With rewards in Python too."""
    run(TRAIN, mesh, rules, TRAINED=[*FIRST, *SECOND, ("sft with dropout", "t5")])
    models = ("realigned t5", "realigned llama")
    everything = [(model, method, False) for model in models for method in METHODS]
    rewarded = [(model, method, True) for model in models for method in table.REWARDED]
    run(DECODE, mesh, rules, DECODED=everything + rewarded)
