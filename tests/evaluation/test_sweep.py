"""The sweep: what is written, that nothing is lost, and what the table says."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import sweep as sweep_module
from dera_jax.evaluation.sweep import RECORDS, Documents, Sweep, decode, table, write_report
from dera_jax.rewards.protocol import Reward
from tests.decoding import worlds


@dataclasses.dataclass(frozen=True)
class OddLength(Reward):
    def __call__(self, params, source, tokens, lengths, finished):
        return jnp.where(lengths % 2, 0.0, -1.0)


@dataclasses.dataclass(frozen=True)
class ThreeNumbers(Reward):
    def __call__(self, *_):
        return jnp.zeros(3)


SWEEP = Sweep((0.0, 0.5, 1.0), 2, Sampling(max_length=6), OddLength(), batch_size=2, seed=0)


@pytest.fixture(scope="module")
def world():
    """model, params, five documents, ids to text."""
    model, params, inputs, _, _ = worlds.realigned_t5()
    inputs = np.concatenate([inputs, inputs[:1, ::-1]])
    names = [f"document {i}" for i in range(5)]
    documents = Documents(inputs, np.arange(100, 105), names, ["3 4 5"] * 5)
    return model, params, documents, lambda ids: " ".join(str(int(i)) for i in ids)


@pytest.fixture(scope="module")
def records(world, tmp_path_factory):
    model, params, documents, to_text = world
    return decode(model, params, documents, SWEEP, to_text, tmp_path_factory.mktemp("sweep"))


def test_every_document_is_decoded_once_at_every_lambda(records):
    assert [r["example_id"] for r in records] == [100, 101, 102, 103, 104]
    for record in records:
        rows = [(s["lam"], s["stream"]) for s in record["samples"]]
        assert rows == [(lam, i) for lam in (0.0, 0.5, 1.0) for i in (0, 1)]


def test_a_stopped_sweep_goes_on_and_ends_the_same(world, records, tmp_path, monkeypatch):
    model, params, documents, to_text = world
    with open(tmp_path / RECORDS, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records[:2])
        out.write('{"example_id": 102, "docu')  # killed while writing
    calls = []
    inner = sweep_module._decode_batch
    monkeypatch.setattr(
        sweep_module, "_decode_batch", lambda *args: calls.append(args[-1]) or inner(*args)
    )
    again = decode(model, params, documents, SWEEP, to_text, tmp_path)
    assert again == records and len(calls) == 2
    lines = (tmp_path / RECORDS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_scores_belong_to_their_texts(world, records):
    """At λ = 1 the mixture's log-probability is the aligned model's, at λ = 0 the reference's."""
    for record in records:
        for s in record["samples"]:
            if s["lam"] in (0.0, 1.0):
                assert s["log_prob"] == pytest.approx(s["part_log_probs"][int(s["lam"])], abs=1e-4)
            assert s["length"] == len(s["tokens"]) - s["finished"]
            assert s["reward"] == (0 if len(s["tokens"]) % 2 else -1)
            assert (s["kl"] < 1e-5) == (s["lam"] == 0)


def test_table_is_the_mean_over_the_records(records):
    rows = table(records)
    assert [row["lam"] for row in rows] == [0.0, 0.5, 1.0]
    for row in rows:
        samples = [s for r in records for s in r["samples"] if s["lam"] == row["lam"]]
        assert row["reward"] == pytest.approx(np.mean([s["reward"] for s in samples]))
        assert row["share_in_range"] == pytest.approx(1 + row["reward"])
        assert row["kl"] == pytest.approx(np.mean([s["kl"] for s in samples]))
        assert row["length"] == pytest.approx(np.mean([s["length"] for s in samples]))


def test_report_writes_json_csv_and_a_picture(records, tmp_path):
    rows = write_report(records, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == rows
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.startswith("lam,documents,samples,reward,reward_ci95") and len(lines) == 3
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_a_reward_of_the_wrong_shape_is_refused(world, tmp_path):
    bad = dataclasses.replace(SWEEP, reward=ThreeNumbers())
    model, params, documents, to_text = world
    with pytest.raises(
        ValueError, match=r"ThreeNumbers\(\) gave rewards of shape \(3,\).*of shape \(2, 6\)"
    ):
        decode(model, params, documents, bad, to_text, tmp_path)
