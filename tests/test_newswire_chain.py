"""The whole chain on the generated corpus: SFT, PPO and the λ sweep, each from its gin file."""

import json
from pathlib import Path

import numpy as np
import pytest

from dera_jax import main
from dera_jax.files import json_files
from dera_jax.tasks import newswire, newswire_corpus

CONFIGS = "gin_configs/experiments/newswire"


def run(name: str, folder: Path, **macros: object) -> dict:
    """Runs a gin file of the experiment in `folder`; returns its result."""
    bindings = [f"--gin.{key}={value!r}" for key, value in macros.items()]
    main.main([f"--gin_file={CONFIGS}/{name}.gin", f"--gin.MODEL_DIR={str(folder)!r}", *bindings])
    return json.loads((folder / "result.json").read_text())


def faithful_fraction(records: Path, lam: float) -> float:
    """Share of the sampled summaries at λ that state facts, and only their document's."""
    facts = {r.document: r.facts for r in newswire.reports("test")}
    rows = json_files.from_lines(records.read_bytes(), str(records))
    checks = [
        newswire_corpus.check(sample["text"], facts[row["document"]]).faithful
        for row in rows
        for sample in row["samples"]
        if sample["lam"] == lam
    ]
    return float(np.mean(checks))


def chain(folder: Path, sft: dict, ppo: dict, documents: int) -> tuple[dict, list[dict]]:
    """SFT's result, and the sweep's row of each λ."""
    learned = run("sft", folder / "sft", **sft)
    reference = str(folder / "sft" / "best")
    run("ppo", folder / "ppo", REFERENCE=reference, **ppo)
    pair = {"REFERENCE": reference, "ALIGNED": str(folder / "ppo" / "aligned")}
    return learned, run("sweep", folder / "sweep", **pair, DOCUMENTS=documents)["lambda"]


def kl_grows_from_0(rows: list[dict]) -> bool:
    kl = {row["lam"]: row["kl"] for row in rows}
    return abs(kl[0.0]) < 1e-6 and 1e-5 < kl[0.25] < kl[0.5] < kl[1.0] < kl[2.0]


@pytest.mark.evidence
def test_each_run_goes_on_from_the_last(tmp_path):
    """As long as it takes to learn how often each piece occurs, and to move a policy."""
    sft = {"STEPS": 80, "WARMUP_STEPS": 20, "EVAL_PERIOD": 80, "EVAL_EXAMPLES": 50}
    ppo = {"PPO_STEPS": 6, "PPO_BATCH_SIZE": 8, "POLICY_LEARNING_RATE": 1e-3}
    ppo |= {"POLICY_WARMUP_STEPS": 1, "VALUE_WARMUP_STEPS": 2}
    learned, rows = chain(tmp_path, sft | {"DECODED_EXAMPLES": 20}, ppo, documents=20)
    assert learned["best_loss"] < 4  # log(1024) = 6.9 before
    assert kl_grows_from_0(rows)


@pytest.mark.evidence
def test_from_nothing_to_a_lambda_sweep(tmp_path):
    ppo = {"PPO_STEPS": 60}
    _, rows = chain(tmp_path, {"STEPS": 1000}, ppo, documents=120)

    # In less than half its steps the T5 has learnt most of the corpus: what it samples, at temperature 1, is
    # true more often than not. A text of no known phrase does not count as true.
    assert faithful_fraction(tmp_path / "sweep" / "records.jsonl", 0.0) > 0.5
    assert faithful_fraction(tmp_path / "sweep" / "records.jsonl", 1.0) > 0.5
    # λ moves the length, more λ moves it more, and costs KL; λ = 0 is the reference itself.
    share = {row["lam"]: row["in_range_rate"] for row in rows}
    assert share[0.0] + 0.05 < share[1.0]
    assert share[0.0] <= share[0.25] <= share[0.5] <= share[1.0]
    assert kl_grows_from_0(rows)
