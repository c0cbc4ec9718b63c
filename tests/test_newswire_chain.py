"""The whole chain on the generated corpus: SFT, PPO and the λ sweep, each from its gin file."""

import json
from pathlib import Path

import numpy as np
import pytest

from dera_jax import json_files, main
from tasks import newswire, newswire_corpus

CONFIGS = "gin_configs/experiments/newswire"


def run(name: str, folder: Path, **macros: object) -> dict:
    """Runs a gin file of the experiment in `folder`; returns its result."""
    bindings = [f"--gin.{key}={value!r}" for key, value in macros.items()]
    main.main([f"--gin_file={CONFIGS}/{name}.gin", f"--gin.MODEL_DIR={str(folder)!r}", *bindings])
    return json.loads((folder / "result.json").read_text())


def faithful_share(records: Path, lam: float) -> float:
    """Share of the sampled summaries at λ that state facts, and only their document's."""
    facts = {newswire.PREFIX + r.document: r.facts for r in newswire.reports("test")}
    rows = json_files.from_lines(records.read_bytes(), str(records))
    checks = [
        newswire_corpus.check(sample["text"], facts[row["document"]]).faithful
        for row in rows
        for sample in row["samples"]
        if sample["lam"] == lam
    ]
    return float(np.mean(checks))


@pytest.mark.slow
def test_from_nothing_to_a_lambda_sweep(tmp_path):
    sft, ppo, sweep = (tmp_path / name for name in ("sft", "ppo", "sweep"))
    run("sft", sft, STEPS=1000)
    run("ppo", ppo, REFERENCE=str(sft / "best"), PPO_STEPS=60, UPDATES=60)
    pair = {"REFERENCE": str(sft / "best"), "ALIGNED": str(ppo / "aligned")}
    rows = run("sweep", sweep, **pair, DOCUMENTS=120)["lambda"]

    # In less than half its steps the T5 has learnt most of the corpus: what it samples, at temperature 1, is
    # true more often than not. A text of no known phrase does not count as true.
    assert faithful_share(sweep / "records.jsonl", 0.0) > 0.5
    assert faithful_share(sweep / "records.jsonl", 1.0) > 0.5
    # λ moves the length, more λ moves it more, and costs KL; λ = 0 is the reference itself.
    share = {row["lam"]: row["share_in_range"] for row in rows}
    kl = {row["lam"]: row["kl"] for row in rows}
    assert share[0.0] + 0.05 < share[1.0]
    assert share[0.0] <= share[0.25] <= share[0.5] <= share[1.0]
    assert kl[0.0] == pytest.approx(0, abs=1e-6)
    assert kl[0.25] < kl[0.5] < kl[1.0] < kl[2.0]
