"""The main job: SmolLM2 with the shipped adapters, or the T5 pair where SmolLM2 cannot be had."""

import json

import pytest

from dera_jax import demo, demo_smollm2, demo_t5
from dera_jax.checkpoints import default_model
from dera_jax.checkpoints.adapters import CARD, FACTORS
from dera_jax.shipped import ADAPTERS, ASSETS


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
    monkeypatch.setattr(demo_t5, "main", calls.append)
    demo.main(["--output", str(tmp_path / "out"), "--lam", "0", "1", "--seed", "3"])
    options = demo_t5._parser().parse_args(calls[0])
    assert options.output == str(tmp_path / "out_t5") and options.lam == (0, 1)
    assert options.seed == 3 and options.aligned == str(ASSETS / "aligned")
    assert default_model.COMMAND in capsys.readouterr().err
