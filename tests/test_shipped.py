"""The pair that ships with the package, on held-out documents: the main job as a newcomer runs it."""

import json
import os
import resource
import subprocess
import sys

import jax
import pytest

import dera_jax.tasks  # noqa: F401 (registers `docstrings`)
from dera_jax import demo_t5
from dera_jax.checkpoints.loading import load
from dera_jax.data.splits import Split
from dera_jax.evaluation.sweep_tables import table
from dera_jax.model_card import samples_of_the_pair
from dera_jax.rewards.length import optimal_in_range_rate

QUICK = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # of tests, see conftest.py


@pytest.mark.parametrize("name", ["reference", "aligned"])
def test_a_shipped_model_is_small(name):
    model = load(demo_t5.ASSETS / name)
    assert sum(x.size for x in jax.tree.leaves(model.params)) <= 4_000_000


def test_the_cards_say_how_the_models_were_made():
    reference, aligned = (load(demo_t5.ASSETS / name).card for name in ("reference", "aligned"))
    fine_tuned = reference["from"]  # before its logits were with_temperature
    assert reference["temperature"] < 1
    assert fine_tuned["data"]["task"] == aligned["data"]["task"] == "docstrings"
    assert fine_tuned["from"]["data"]["task"] == "prose"
    assert aligned["from"] == reference
    assert 0 < aligned["start"]["beta"] < aligned["beta"]  # PPO is held closer
    assert len(aligned["length_range"]) == 2


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.evidence
def test_the_main_job_shows_realignment(tmp_path):
    """As users run it: without the flags by which the tests compile quickly."""
    command = [sys.executable, "-m", "dera_jax.demo_t5", "--output", str(tmp_path)]
    environment = {k: x for k, x in os.environ.items() if k not in QUICK}
    began = cpu_seconds_of_children()
    ended = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    seconds = cpu_seconds_of_children() - began
    assert ended.returncode == 0, ended.stderr
    assert "token for token" in ended.stdout  # λ = 0 and 1 are the two models
    rows = {row["lam"]: row for row in json.loads((tmp_path / "metrics.json").read_text())}
    share = [rows[lam]["in_range_rate"] for lam in (0, 0.25, 0.5, 1)]
    assert share == sorted(share) and share[-1] > 2 * share[0]
    print(f"main job: {seconds:.0f} CPU seconds, share in range {share}")
    assert seconds < 180


@pytest.mark.evidence
def test_the_aligned_model_is_in_range_on_held_out_documents():
    pair = load(demo_t5.ASSETS / "reference", demo_t5.ASSETS / "aligned")
    documents = Split("docstrings", "test", demo_t5.INPUTS, documents=112).read(pair.tokenizer)
    rows = {row["lam"]: row for row in table(samples_of_the_pair(pair, documents))}
    assert rows[1]["in_range_rate"] >= 0.6 > 2 * rows[0]["in_range_rate"]
    assert rows[1]["rougeL"] >= 0.85 * rows[0]["rougeL"]
    optimum = optimal_in_range_rate(rows[0]["in_range_rate"], pair.cards[1]["beta"])
    assert 0.6 <= optimum <= 0.8  # a sweep over λ shows something
