"""Training and sampling from arrays, where TensorFlow, seqio, gin and clu are not installed."""

import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses
import sys
for name in ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "gin", "clu", "t5x"):
    sys.modules[name] = None  # as if it were not installed
from pathlib import Path
import numpy as np
from dera_jax.checkpoints.loading import load
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import sequence_keys
from dera_jax.training import preferences, supervised
from tests import words

folder, family = Path(sys.argv[1]), sys.argv[2]
sft = dataclasses.replace(words.sft(family), steps=6)
first = sft.run(folder / "sft")
finished = supervised.finished_model(str(folder / "sft" / "best"), 0.0)
dpo = dataclasses.replace(words.pairs(preferences.dpo(finished, 0.1)), steps=6)
found = dpo.run(folder / "dpo")
assert found["best_loss"] < np.log(2), found
pair = load(folder / "sft" / "best", folder / "dpo" / "best")
data = words.Words().encoded_by(pair.tokenizer)
prompts = data.read("test").inputs.replace(lam=np.full((8, 1), 0.5))
out = sample(pair.model, pair.params, prompts, sequence_keys(0, np.arange(8), [0]), Sampling(8))
assert out.tokens.shape == (8, 1, 8)
assert (folder / "sft" / "metrics.jsonl").exists() and list((folder / "sft").glob("events.*"))
print("done", first["best_loss"], found["best_loss"])
"""


@pytest.mark.parametrize("family", ["t5", pytest.param("llama", marks=pytest.mark.slow)])
def test_runs_from_arrays(family, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), family]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-3000:]
