"""The plug-in inside T5X's own programs. Runs where T5X is installed (docs/t5x.md says how).

python -m pytest tests/t5x/test_plugin.py -s        # prints what each run found
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from tests import golden

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("t5x") is None, reason="T5X is not installed"),
]
PAIR = ("gin_configs/t5x/infer.gin", "tests/t5x/golden_pair.gin")
SINGLE = ("t5x/configs/runs/infer.gin", "tests/t5x/golden_single.gin")
AUX = ("predict_with_aux", 16)
SCORE = ("score", 136)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Checkpoints: the golden one in both formats, and one whose parameters were moved."""
    root = tmp_path_factory.mktemp("t5x")
    moved = golden.unpack("v1_1", "legacy", root / "moved")
    rng = np.random.default_rng(0)
    for folder in sorted(moved.glob("target.*")):
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
        array = ts.open(spec, open=True).result()
        x = array.read().result()
        array.write(x * (1 + 0.3 * rng.standard_normal(x.shape)).astype(x.dtype)).result()
    return World(
        root,
        golden.unpack("v1_1", "legacy", root / "legacy"),
        golden.unpack("v1_1", "orbax", root / "orbax"),
        moved,
        dict(np.load(golden.FOLDER / "v1_1" / "golden.npz")),
    )


class World:
    """Runs T5X's programs, each in a folder of its own."""

    def __init__(self, root, legacy, orbax, moved, golden):
        self.root, self.legacy, self.orbax, self.moved = root, legacy, orbax, moved
        self.golden, self.singles = golden, {}

    def command(self, name, files, mode, bindings, program="infer") -> list[str]:
        task = {
            "MIXTURE_OR_TASK_NAME": '"golden_v1_1"',
            "TASK_FEATURE_LENGTHS": str({"inputs": 144, "targets": mode[1]}),
            f"{program.upper()}_OUTPUT_DIR": f'"{self.root / name}"',
        }
        mode = {"infer.mode": f'"{mode[0]}"'} if program == "infer" else {}
        flags = [f"--gin.{k}={v}" for k, v in (task | mode | bindings).items()]
        gin_files = [f"--gin_file={file}" for file in files]
        search = f"--gin_search_paths={ROOT}"
        return [sys.executable, "-m", f"t5x.{program}", search, *gin_files, *flags]

    def run(self, name, files, mode=AUX, devices=1, program="infer", **bindings):
        """The lines that T5X wrote, as arrays: prediction, score, and all aux fields."""
        began = time.perf_counter()
        done = subprocess.run(
            self.command(name, files, mode, bindings, program),
            env=environment(devices),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        print(f"\n{name}: {time.perf_counter() - began:.0f} s", end="")
        return rows(self.root / name) if program == "infer" else None

    def pair(self, name, *files, lam, mode=AUX, devices=1, reference=None, **bindings):
        paths = {
            "REFERENCE_PATH": f'"{reference or self.legacy}"',
            "CHECKPOINT_PATH": f'"{self.moved}"',
        }
        return self.run(name, (*PAIR, *files), mode, devices, LAMBDA=str(lam), **paths, **bindings)

    def single(self, which, *files, mode=AUX):
        """T5X's own output for one of the two models."""
        key = f"single-{which}-{mode[0]}-{'-'.join(Path(x).stem for x in files)}"
        if key not in self.singles:
            path = f'"{getattr(self, which)}"'
            self.singles[key] = self.run(key, (*SINGLE, *files), mode, CHECKPOINT_PATH=path)
        return self.singles[key]


def environment(devices: int) -> dict[str, str]:
    """Importable: the repository, beside what is there."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def rows(folder: Path) -> dict[str, np.ndarray]:
    (file,) = folder.glob("*.jsonl-00000-of-00001")
    lines = [json.loads(line) for line in file.open(encoding="utf-8")]
    found = {k: np.array([x[k] for x in lines]) for k in ("prediction", "score") if k in lines[0]}
    aux = lines[0].get("aux", {})
    return found | {name: np.array([x["aux"][name] for x in lines]) for name in aux}


@pytest.mark.parametrize("how", ["tests/t5x/greedy.gin", "tests/t5x/beam.gin"])
@pytest.mark.parametrize(("lam", "which"), [(0.0, "legacy"), (1.0, "moved")])
def test_t5x_decodes_the_pair_as_the_single_models(world, how, lam, which):
    name = f"pair-{Path(how).stem}-{lam}"
    found, single = world.pair(name, how, lam=lam), world.single(which, how)
    np.testing.assert_array_equal(found["prediction"], single["prediction"])
    np.testing.assert_allclose(found["scores"], single["scores"], rtol=1e-4, atol=1e-4)
    if which == "legacy":
        expected = world.golden["greedy16_tokens" if "greedy" in how else "beam4_tokens"]
        np.testing.assert_array_equal(found["prediction"], expected)


@pytest.mark.parametrize(("lam", "which"), [(0.0, "legacy"), (1.0, "moved")])
def test_t5x_scores_the_pair_as_the_single_models(world, lam, which):
    found = world.pair(f"pair-score-{lam}", lam=lam, mode=SCORE)
    np.testing.assert_allclose(found["score"], world.single(which, mode=SCORE)["score"], atol=1e-2)
    if which == "legacy":
        np.testing.assert_allclose(found["score"], world.golden["sequence_scores"], atol=1e-2)


def test_half_way_two_devices_and_either_format_give_one_text(world):
    one = world.pair("half-1", "tests/t5x/greedy.gin", lam=0.5)
    two = world.pair("half-2", "tests/t5x/greedy.gin", lam=0.5, devices=2, reference=world.orbax)
    ends = [world.single(x, "tests/t5x/greedy.gin")["prediction"] for x in ("legacy", "moved")]
    np.testing.assert_array_equal(one["prediction"], two["prediction"])
    np.testing.assert_allclose(one["scores"], two["scores"], atol=1e-3)
    assert all((one["prediction"] != end).any() for end in ends)


def test_our_sampler_inside_t5x(world):
    files = ("gin_configs/t5x/sample.gin", "tests/t5x/reward.gin")
    lams = {"LAMBDAS": "(0.0, 0.5, 1.0)", "SAMPLES": "2"}
    one = world.pair("sample-1", *files, lam=0.5, **lams)
    two = world.pair("sample-2", *files, lam=0.5, devices=2, **lams)
    assert one["prediction"].shape == (4, 6, 16)
    np.testing.assert_array_equal(one["prediction"], two["prediction"])
    np.testing.assert_allclose(one["scores"][:, :2], one["reference_log_prob"][:, :2], rtol=1e-6)
    np.testing.assert_allclose(one["scores"][:, 4:], one["aligned_log_prob"][:, 4:], rtol=1e-6)
    np.testing.assert_allclose(one["kl"][:, :2], 0, atol=1e-4)
    assert (one["kl"][:, 2:] > 0).all()
    inside = one["finished"] & (one["length"] - 1 >= 3) & (one["length"] - 1 <= 9)
    np.testing.assert_array_equal(one["reward"], np.where(inside, 0.0, -1.0))
    other = world.pair("sample-3", *files, lam=0.5, SEED="1", **lams)
    assert (one["prediction"] != other["prediction"]).any()


def test_our_greedy_decoding_is_that_of_t5x_at_both_ends(world):
    ends = {"LAMBDAS": "(0.0, 1.0)", "GREEDY": "True"}
    found = world.pair("greedy", "gin_configs/t5x/sample.gin", lam=0.5, **ends)["prediction"]
    for i, which in enumerate(("legacy", "moved")):
        single = world.single(which, "tests/t5x/greedy.gin")
        np.testing.assert_array_equal(found[:, i], single["prediction"])


def test_search_and_evolution_inside_t5x(world):
    plain = {"REWARD": "None", "REWARD_WEIGHT": "0.0", "LOOKAHEAD": "0", "PERIOD": "1"}
    plain["LENGTH_PENALTY"] = "0.6"
    found = world.pair("beams", "gin_configs/t5x/deal.gin", lam=0.0, **plain)
    np.testing.assert_array_equal(found["prediction"], world.golden["beam4_tokens"])
    rewarded = lambda name, *files, **more: world.pair(
        name, f"gin_configs/t5x/{name}.gin", *files, lam=0.5, LOW="3", HIGH="9", **more
    )
    guided = rewarded("deal")
    evolved = rewarded(
        "darwin",
        "tests/t5x/bytes.gin",
        INSTRUCTIONS="('in brief: ', 'tl;dr: ')",
        MIXTURE_OR_TASK_NAME='"golden_v1_1_bytes"',
    )
    samples = world.pair(
        "samples", "gin_configs/t5x/sample.gin", "tests/t5x/reward.gin", lam=0.5, SAMPLES="8"
    )
    assert guided["reward"][:, -1].mean() >= samples["reward"].mean()
    assert evolved["reward"].mean() >= samples["reward"].mean()
    for x in (guided, evolved):
        assert {"reference_log_prob", "aligned_log_prob", "kl", "lam", "length"} <= x.keys()


def test_a_run_that_was_killed_goes_on_and_ends_the_same(world, monkeypatch):
    monkeypatch.setenv("GOLDEN_REPEAT", "60")
    files = (*PAIR, "gin_configs/t5x/sample.gin")
    paths = {"REFERENCE_PATH": f'"{world.legacy}"', "CHECKPOINT_PATH": f'"{world.moved}"'}
    bindings = {"LAMBDA": "0.5", "infer.checkpoint_period": "2", **paths}
    command = world.command("killed", files, AUX, bindings)
    began = subprocess.Popen(
        command, env=environment(1), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(world.root.glob("killed/tmp-*/*chunk00001.COMPLETED")):
        assert began.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    began.send_signal(signal.SIGKILL)
    began.wait()
    assert not list(world.root.glob("killed/*.jsonl-00000-of-00001"))
    resumed = world.run("killed", files, **bindings)
    whole = world.run("whole", files, **bindings)
    assert len(resumed["prediction"]) == 240
    for name, x in whole.items():
        np.testing.assert_array_equal(resumed[name], x, name)


def test_evaluation_by_t5x(world):
    for name, lam, which in (("eval-0", 0.0, "legacy"), ("eval-1", 1.0, "moved")):
        world.run(
            name,
            ("gin_configs/t5x/eval.gin", "tests/t5x/golden_pair.gin", "tests/t5x/greedy.gin"),
            program="eval",
            LAMBDA=str(lam),
            REFERENCE_PATH=f'"{world.legacy}"',
            CHECKPOINT_PATH=f'"{world.moved}"',
            **{"utils.DatasetConfig.split": '"test"'},
        )
        (file,) = (world.root / name / "inference_eval").glob("*-metrics.jsonl")
        single = world.single(which, "tests/t5x/greedy.gin")["prediction"]
        expected = np.sum(single > 0, axis=1).mean()
        assert json.loads(file.read_text())["mean_length"] == expected


def test_a_missing_reference_is_said(world):
    command = world.command(
        "none", PAIR, AUX, {"REFERENCE_PATH": "None", "CHECKPOINT_PATH": f'"{world.moved}"'}
    )
    done = subprocess.run(
        command, env=environment(1), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode and "checkpoint of the reference policy is not given" in done.stderr


SNIPPET = """
import sys
import gin
from t5x import gin_utils, infer  # noqa
import __main__
__main__.infer = infer.infer  # as in T5X's own script
size, decoder = sys.argv[1:]
files = ["gin_configs/t5x/infer.gin", f"gin_configs/t5x/t5_1_1_{size}.gin"]
files += [f"gin_configs/t5x/{decoder}.gin"] if decoder else []
needed = ("MIXTURE_OR_TASK_NAME", "CHECKPOINT_PATH", "INFER_OUTPUT_DIR", "REFERENCE_PATH")
bindings = [f"{name} = 'x'" for name in needed]
bindings.append("TASK_FEATURE_LENGTHS = {'inputs': 512, 'targets': 64}")
gin_utils.parse_gin_flags(["."], files, bindings)
model = gin.query_parameter("%MODEL").scoped_configurable_fn()
config = model.module.config
print(type(model).__name__, config.emb_dim, config.dtype, config.dropout_rate)
"""


SIZES = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
DECODERS = ("sample", "deal", "darwin")


@pytest.mark.parametrize(
    ("size", "decoder"), [(x, "") for x in SIZES] + [("xxl", x) for x in DECODERS]
)
def test_every_size_and_way_to_decode_can_be_configured(size, decoder):
    done = subprocess.run(
        [sys.executable, "-c", SNIPPET, size, decoder],
        env=environment(1),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = "RealignedModel" if decoder else "EncoderDecoderModel"
    assert done.stdout.split()[-4:] == [model, str(SIZES[size]), "bfloat16", "0.0"]
