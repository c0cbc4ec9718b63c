"""Every trainer trains an adapter, and heads, on a frozen base, and saves them alone."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from dera_jax.checkpoints.adapters import open_adapter, read_adapter, read_head
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.loading import load, load_params
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.storage import open_folder
from dera_jax.decoding.realign import Realigned, RealignedAdapters
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import Prompts, sequence_keys
from dera_jax.models.lora import LoraConfig, attach
from dera_jax.training import optimizers, ppo
from dera_jax.training.metric_log import read as read_metrics
from dera_jax.training.train_state import new_state
from tests import words

LORA = LoraConfig(2, 4.0)
DRAWN = words.drawn


@functools.cache
def saved(family: str, folder) -> object:
    """A folder with the random base of the trainers."""
    found = DRAWN(family)
    save_model(folder / family, found.model.config, ByteVocabulary(), found.params, {})
    return folder / family


@pytest.fixture
def base(request, tmp_path_factory, monkeypatch):
    """The base's folder; the trainers start from a new adapter on it."""
    root = tmp_path_factory.getbasetemp() / "bases"
    root.mkdir(exist_ok=True)
    folder = saved(request.param, root)
    drawn = lambda family: DRAWN(family).with_new_adapter(LORA, folder)
    monkeypatch.setattr(words, "drawn", drawn)
    return folder


CASES = [
    ("sft", "llama"), ("sft", "t5"), ("dpo", "llama"), ("reward model", "llama"),
    pytest.param("reward model", "t5", marks=pytest.mark.evidence), ("ppo", "llama"),
    pytest.param("ppo, reward in Python", "llama", marks=pytest.mark.evidence),
    pytest.param("ppo", "t5", marks=pytest.mark.slow),
    pytest.param("distillation", "llama", marks=pytest.mark.slow), ("offline", "llama"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "base"), CASES, indirect=["base"])
def test_the_adapter_alone_is_trained_and_saved(name, base, tmp_path):
    family, before = base.name, DRAWN(base.name)
    words.TRAINERS[name](family).run(tmp_path)
    folder = words.result_of(name, tmp_path)
    assert not (folder / "model.safetensors").exists()
    stored = open_adapter(open_folder(folder))
    adapter = read_adapter(stored, before.model)
    assert stored.base == str(base) and stored.card["base"]["name"] == str(base)
    start = before.with_new_adapter(LORA, base).adapter
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), adapter, start)
    assert all(x["lora_b"] > 0 for x in moved.factors.values())
    if name == "reward model":
        assert read_head(stored).keys() == {"kernel", "bias"}
        head = ValueHead(before.model)
        whole = load_params(folder, head.random, ByteVocabulary(), "this test")
        assert whole["head"]["kernel"].shape == (before.model.emb_dim,)
        return
    found = load(folder)
    jax.tree.map(np.testing.assert_array_equal, found.base.params, before.params)
    pair = load(base, folder)
    assert isinstance(pair.model, RealignedAdapters)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [
        ("dpo", "training/loss", np.log(2)),
        ("ppo", "training/kl", 0.0),
        pytest.param("distillation", "training/kl", 0.0, marks=pytest.mark.evidence),
        ("offline", "training/log_ratio", 0.0),
    ],
)
def test_the_reference_is_the_adapter_that_training_started_from(
    name, metric, expected, base, tmp_path, monkeypatch
):
    """Not the base, "adapter off". Without updates the policy stays where the reference is."""
    still = optimizers.adamw(optimizers.constant(1e-12, 1), clip_norm=1.0, weight_decay=0.0)
    monkeypatch.setattr(words, "RATE", still)
    monkeypatch.setattr(words, "RATES", ppo.Optimizers(still, still))
    started = far_from_its_base(base)
    monkeypatch.setattr(words, "drawn", lambda family: started)
    words.TRAINERS[name]("llama").run(tmp_path)
    reports = read_metrics(tmp_path)
    found = [x[metric] for x in reports if metric in x]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found
    result = open_adapter(open_folder(words.result_of(name, tmp_path)))
    near = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(near, read_adapter(result, started.model), started.adapter)


def far_from_its_base(base) -> LoadedModel:
    """The model with an adapter that changes what it says by more than a nat."""
    started = DRAWN("llama").with_new_adapter(LORA, base)
    adapter = jax.tree.map(lambda x: x + 0.3, started.adapter)
    found = dataclasses.replace(
        started, adapter=adapter, params=attach(started.base.params, adapter)
    )
    pair = Realigned(found.model, (found.model,))
    prompts = Prompts(
        np.full((1, 3), 70, np.int32), np.full(1, 3, np.int32), np.ones((1, 1), np.float32)
    )
    keys = sequence_keys(0, np.arange(1, dtype=np.int32), np.arange(8))
    out = sample(pair, (started.base.params, found.params), prompts, keys, Sampling(8))
    assert np.sum(out.scores.kl, -1).mean() > 1
    return found


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_optimizer_and_checkpoints_hold_the_adapter_alone(base, tmp_path):
    origin = words.drawn("llama")
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    state = new_state(origin.trainable, words.RATE)
    assert size(state) < 4 * size(origin.adapter) < size(origin.base.params)
    words.sft("llama").run(tmp_path)
    files = [x for x in (tmp_path / "checkpoints").rglob("*") if x.is_file()]
    whole = DRAWN("llama")
    assert sum(x.stat().st_size for x in files) < 2 * size(new_state(whole.params, words.RATE)) / 3


SCRIPT = """
import dataclasses, sys
from pathlib import Path
from dera_jax.checkpoints.orbax import Saving
from dera_jax.models.lora import LoraConfig
from tests import words
drawn = words.drawn
words.drawn = lambda family: drawn(family).with_new_adapter(LoraConfig(2, 4.0), "base")
run = dataclasses.replace(words.sft("llama"), steps=40, saving=Saving(5, 3.0))
print("begin", flush=True)
run.run(Path(sys.argv[1]))
"""


@pytest.mark.evidence
def test_a_killed_training_of_an_adapter_ends_bit_identical(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    checkpoints = tmp_path / "killed" / "checkpoints"
    while not (checkpoints.exists() and any(x.name.isdigit() for x in checkpoints.iterdir())):
        assert process.poll() is None, "it ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment)
    file = "best/adapter_model.safetensors"
    assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
