"""The sweep: what is written, that nothing is lost, and what the table says."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.data.documents import Documents
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import record_store
from dera_jax.evaluation import sweep as sweep_module
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.evaluation.sweep_tables import format_table, table, write_report
from dera_jax.prompts import Prompt
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward
from dera_jax.rewards.word_hashes import keyword_bytes
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
    model, params, prompts, _ = worlds.realigned_t5()
    prompts = prompts.replace(lam=None)
    fifth = prompts.replace(tokens=prompts.tokens[:1, ::-1], lengths=prompts.lengths[:1])
    prompts = jax.tree.map(lambda *x: np.concatenate(x), prompts, fifth)
    names = [f"document {i}" for i in range(5)]
    documents = Documents(prompts, np.arange(100, 105), list(map(Prompt, names)), ["3 4 5"] * 5)
    return model, params, documents, lambda ids: " ".join(str(int(i)) for i in ids)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The folder of the sweep."""
    model, params, documents, to_text = world
    folder = tmp_path_factory.mktemp("sweep")
    decode(model, params, documents, SWEEP, to_text, folder)
    return folder


@pytest.fixture(scope="module")
def records(finished):
    return record_store.read(finished)


def test_every_document_is_decoded_once_at_every_lambda(records):
    assert [r["example_id"] for r in records] == [100, 101, 102, 103, 104]
    for record in records:
        rows = [(s["lam"], s["sample"]) for s in record["samples"]]
        assert rows == [(lam, i) for lam in (0.0, 0.5, 1.0) for i in (0, 1)]


def test_a_stopped_sweep_goes_on_and_ends_the_same(world, records, tmp_path, monkeypatch):
    model, params, documents, to_text = world
    calls, inner = [], sweep_module._decode_batch

    def stopped(*args):
        calls.append(args[-1].tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(*args)

    monkeypatch.setattr(sweep_module, "_decode_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        decode(model, params, documents, SWEEP, to_text, tmp_path)
    assert decode(model, params, documents, SWEEP, to_text, tmp_path) == records
    assert calls == [[0, 1], [2, 3], [2, 3], [4, 4]]
    assert record_store.read(tmp_path) == records


OTHERS = {
    "lams": lambda a: a | {"sweep": dataclasses.replace(SWEEP, lams=(0.0, 0.5, 2.0))},
    "seed": lambda a: a | {"sweep": dataclasses.replace(SWEEP, seed=1)},
    "max_length": lambda a: a | {"sweep": dataclasses.replace(SWEEP, sampling=Sampling(5))},
    "reward": lambda a: a | {"sweep": dataclasses.replace(SWEEP, reward=LengthInRange(1, 3))},
    "parameters": lambda a: a | {"params": a["params"][::-1]},
    "documents": lambda a: a | {"documents": edited(a["documents"])},
}


def edited(documents: Documents) -> Documents:
    """One letter of the last human summary."""
    return dataclasses.replace(documents, summaries=[*documents.summaries[:-1], "3 4 6"])


@pytest.mark.parametrize("what", OTHERS)
def test_a_sweep_resumes_only_with_what_it_was_started_with(what, world, finished):
    names = ("model", "params", "documents", "to_text")
    arguments = dict(zip(names, world, strict=True)) | {"sweep": SWEEP}
    with pytest.raises(FileExistsError, match=rf"plan\.json: [^;]*{what}"):
        decode(**OTHERS[what](arguments), folder=finished)


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
        assert "in_range_rate" not in row  # OddLength is 0 or −1 too, and about no range
        assert row["kl"] == pytest.approx(np.mean([s["kl"] for s in samples]))
        assert row["length"] == pytest.approx(np.mean([s["length"] for s in samples]))


def test_report_writes_json_csv_and_a_picture(records, tmp_path):
    rows = write_report(records, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == rows
    header, *lines, end = (tmp_path / "metrics.csv").read_text().split("\n")
    assert (
        header.startswith("lam,documents,samples,reward,reward_ci95")
        and len(lines) == 3
        and not end
    )
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_a_reward_of_the_wrong_shape_is_refused(world, tmp_path):
    bad = dataclasses.replace(SWEEP, reward=ThreeNumbers())
    model, params, documents, to_text = world
    with pytest.raises(
        ValueError,
        match=r"reward ThreeNumbers\(\) must be an array \[B, K\] of rewards with B = 2, K = 6; found",
    ):
        decode(model, params, documents, bad, to_text, tmp_path)


def test_a_length_reward_s_table_has_the_optimal_in_range_rate(world, tmp_path):
    """Counted from the recorded lengths."""
    model, params, documents, to_text = world
    settings = dataclasses.replace(SWEEP, reward=LengthInRange(1, 3))
    records = decode(model, params, documents, settings, to_text, tmp_path)
    for row in table(records):
        samples = [s for r in records for s in r["samples"] if s["lam"] == row["lam"]]
        inside = [s["finished"] and 1 <= s["length"] <= 3 for s in samples]
        assert row["in_range_rate"] == pytest.approx(np.mean(inside))
    assert "in-range rate" in format_table(table(records))


def test_rewards_of_any_value_make_a_table(records, tmp_path):
    """At one λ all rewards are 0 or −1, at another they are not."""
    changed = [
        r | {"samples": [s | {"reward": s["reward"] - 3 * (s["lam"] == 1)} for s in r["samples"]]}
        for r in records
    ]
    rows = write_report(changed, tmp_path)
    assert len({frozenset(row) for row in rows}) == 1
    assert "in_range_rate" not in rows[0] and "faithful" in format_table(rows)


def test_parts_stand_beside_what_is_measured(records):
    """A part named like a column does not take its place."""
    named = [r | {"samples": [s | {"reward_length": -7.0} for s in r["samples"]]} for r in records]
    head, first, *_ = format_table(table(named)).splitlines()
    cells = dict(zip(re.split(r"  +", head.strip()), re.split(r"  +", first.strip()), strict=True))
    assert cells["reward length"].startswith("-7.00")
    assert not cells["length (tokens)"].startswith("-")


def test_python_sees_no_document_that_only_fills_a_batch(world, tmp_path):
    seen = []

    def remember(documents, texts):
        seen.extend(documents)
        return [0.0] * len(texts)

    model, params, documents, to_text = world
    settings = dataclasses.replace(SWEEP, reward=HostReward(remember))
    found = decode(model, params, documents, settings, to_text, tmp_path)
    rows = len(SWEEP.lams) * SWEEP.num_samples
    assert seen == [text for text in documents.texts for _ in range(rows)]
    assert len(found) == 5


def test_keywords_are_recorded_and_measured_on_the_text(world, tmp_path):
    model, params, documents, to_text = world
    words = [["3", "4"], ["x"], [], ["5"], ["1"]]
    given = dataclasses.replace(documents, keywords=keyword_bytes(words))
    records = decode(model, params, given, SWEEP, to_text, tmp_path)
    assert [r["keywords"] for r in records] == words
    (row, *_) = table(records)
    of = lambda r: [s["text"].split() for s in r["samples"] if s["lam"] == row["lam"]]
    shares = [
        np.mean([k in text for k in r["keywords"]]) if r["keywords"] else 1.0
        for r in records
        for text in of(r)
    ]
    assert row["coverage"] == pytest.approx(np.mean(shares))
    assert row["covered"] == pytest.approx(np.mean([s == 1 for s in shares]))
