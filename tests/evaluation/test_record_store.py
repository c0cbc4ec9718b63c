"""Shards of records: a stopped run resumes, and nothing that another run wrote is taken for its own."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from dera_jax.evaluation import record_store
from dera_jax.evaluation.record_store import MANIFEST, PLAN, RECORDS, Plan
from dera_jax.files.store import Store

IDS = np.array([7, 3, 9, 11, 5])
PLAN_5 = Plan({"seed": 0, "lams": [0.0, 0.5]}, "hash", IDS, 2, samples=[(0.0, 0), (0.5, 0)])


def decode(rows: np.ndarray) -> list[dict]:
    return [
        {
            "example_id": IDS[row].item(),
            "document": f"line\u2028separators\x85 {row}",
            "samples": [{"lam": lam, "sample": 0, "text": f"{row} {lam}"} for lam in (0.0, 0.5)],
        }
        for row in np.unique(rows)
    ]


def write(folder, plan=PLAN_5, decode=decode):
    return record_store.write(plan, decode, folder, "test")


def never(rows):
    raise AssertionError(f"decoded {rows} again")


class Killed(BaseException):
    pass


@pytest.fixture
def whole(tmp_path):
    write(tmp_path / "whole")
    return tmp_path / "whole"


def files(folder) -> dict[str, bytes]:
    return {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def test_records_are_for_people_and_the_shards_are_read(whole):
    expected = decode(np.arange(5))
    lines = (whole / RECORDS).read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == expected
    (whole / RECORDS).write_text("edited")
    assert record_store.read(whole) == expected
    assert write(whole, decode=never) == expected
    assert files(whole)[RECORDS] != b"edited"


WRITES = 7  # the plan, three shards, the manifest, the records, and the end


@pytest.mark.parametrize("survived", range(WRITES))
def test_a_run_killed_at_any_write_ends_as_one_left_alone(survived, whole, tmp_path, monkeypatch):
    """Also where the write that was under way leaves its draft."""
    left, inner = [survived], Store._write

    def dying(store, key, value, generation):
        if not left[0]:
            (tmp_path / "run/shards").mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / f"{key}.__lock").write_bytes(value[: len(value) // 2])
            raise Killed
        left[0] -= 1
        return inner(store, key, value, generation)

    monkeypatch.setattr(Store, "_write", dying)
    if survived < WRITES - 1:
        with pytest.raises(Killed):
            write(tmp_path / "run")
    left[0] = 100
    write(tmp_path / "run")
    found = {name: x for name, x in files(tmp_path / "run").items() if ".__lock" not in name}
    assert found == files(whole)


def test_only_several_batches_are_padded(monkeypatch):
    batches = [rows.tolist() for rows in record_store.full_batches(5, 3)]
    assert batches == [[0, 1, 2], [3, 4, 4]]
    assert [rows.tolist() for rows in record_store.full_batches(1, 8)] == [[0]]
    assert [rows.tolist() for rows in record_store.full_batches(3, 8)] == [[0, 1, 2]]
    monkeypatch.setattr(record_store, "mesh_in_use", lambda: SimpleNamespace(shape={"data": 2}))
    assert [rows.tolist() for rows in record_store.full_batches(3, 8)] == [[0, 1, 2, 2]]
    assert [rows.tolist() for rows in record_store.full_batches(7, 8)] == [[0, 1, 2, 3, 4, 5, 6, 6]]


def test_only_missing_shards_are_decoded(whole):
    (whole / "shards/00001.jsonl").unlink()
    with pytest.raises(ValueError, match=r"00001\.jsonl is missing"):
        record_store.read(whole)
    seen = []
    write(whole, decode=lambda rows: seen.append(rows.tolist()) or decode(rows))
    assert seen == [[2, 3]]


def swap(folder):
    (folder / "shards/00000.jsonl").rename(folder / "x")
    (folder / "shards/00001.jsonl").rename(folder / "shards/00000.jsonl")
    (folder / "x").rename(folder / "shards/00001.jsonl")


def edit(change):
    def damage(folder):
        path = folder / "shards/00000.jsonl"
        header, *lines = path.read_bytes().split(b"\n")[:-1]
        path.write_bytes(b"".join(line + b"\n" for line in change(header, lines)))

    return damage


def forge(change):
    """Records that belong to the header, checksum included."""

    def damage(folder):
        records = change(decode(np.arange(2)))
        path = folder / "shards/00000.jsonl"
        path.write_bytes(record_store._shard(PLAN_5, 0, records, "x"))

    return damage


DAMAGES = {
    "swapped": (swap, "the shard of another number"),
    "tripled": (edit(lambda h, x: [h, *x, *x, *x]), "changed after it was written"),
    "reordered": (edit(lambda h, x: [h, *x[::-1]]), "changed after it was written"),
    "objects": (edit(lambda h, x: [b'{"a": 1}'] * 3), "not the header of a shard"),
    "lists": (edit(lambda h, x: [b"[]"] * 3), "not the header of a shard"),
    "no records": (edit(lambda h, x: [h, b"[]"]), "changed after it was written"),
    "empty": (edit(lambda h, x: []), "line 1: not valid JSON"),
    "no JSON": (edit(lambda h, x: [h[:9], *x]), "line 1: not valid JSON"),
    "forged ids": (forge(lambda x: x[::-1]), r"example ids \[3, 7\], expected \[7, 3\]"),
    "forged keys": (forge(lambda x: [{"a": 1}]), "not the records of a run"),
    "forged lists": (forge(lambda x: [[], []]), "not the records of a run"),
    "forged λ": (forge(lambda x: [r | {"samples": r["samples"][::-1]} for r in x]), "other λ"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_shard_that_is_not_the_runs_own_is_refused_by_name(name, whole):
    damage, message = DAMAGES[name]
    damage(whole)
    with pytest.raises(ValueError, match=rf"shards/0000\d\.jsonl.*{message}"):
        write(whole, decode=never)
    with pytest.raises(ValueError, match=r"0000\d\.jsonl .*is not what .*manifest\.json lists"):
        record_store.read(whole)


OTHERS = {
    "settings": ({"settings": {"seed": 1, "lams": [0.0, 0.5]}}, "seed is 0 there, 1 now"),
    "longer": ({"settings": {"seed": 0, "lams": [0.0]}}, r"lams\[1\] is 0.5 there"),
    "documents": ({"documents": "other"}, "documents is '5, SHA-256 hash' there"),
    "batch size": ({"batch_size": 3}, "batch_size is 2 there, 3 now"),
    "samples": ({"samples": [(0.0, 1), (0.5, 1)]}, r"samples\[0\]\[1\] is 0 there, 1 now"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("ended", [True, False])
def test_a_folder_of_another_plan_is_refused_by_what_differs(name, ended, whole):
    change, message = OTHERS[name]
    if not ended:
        (whole / MANIFEST).unlink()
        (whole / "shards/00002.jsonl").unlink()
    with pytest.raises(FileExistsError, match=rf"shards/plan\.json: {message}"):
        write(whole, dataclasses.replace(PLAN_5, **change), decode=never)


def test_a_shard_of_another_run_is_refused(whole, tmp_path):
    """Two runs in one folder: the shard's own header tells, whatever the plan says."""
    other = dataclasses.replace(PLAN_5, settings={"seed": 1})
    write(tmp_path / "other", other)
    shutil.copy(tmp_path / "other/shards/00001.jsonl", whole / "shards/00001.jsonl")
    with pytest.raises(ValueError, match=r"00001\.jsonl: written by a run of other settings"):
        write(whole, decode=never)


def test_two_writers_never_share_a_folder_in_silence(tmp_path):
    """Should the lock have failed: no shard is overwritten."""

    def decode_late(rows):
        if rows[0] == 2:
            write(tmp_path)  # the other one, meanwhile
        return decode(rows)

    with pytest.raises(FileExistsError, match=r"00001\.jsonl was written by another process"):
        write(tmp_path, decode=decode_late)
    assert record_store.read(tmp_path) == decode(np.arange(5))


@pytest.mark.parametrize("name", [PLAN, MANIFEST])
@pytest.mark.parametrize("content", ["{", "", "[]", '{"a": 1}'])
def test_a_broken_plan_or_manifest_is_named(name, content, whole):
    (whole / name).write_text(content)
    with pytest.raises((ValueError, FileExistsError), match=name):
        write(whole, decode=never)
        record_store.read(whole)


def test_records_of_unknown_origin_are_not_overwritten(tmp_path):
    (tmp_path / RECORDS).write_text('{"example_id": -1}\n')
    with pytest.raises(FileExistsError, match=r"records\.jsonl is there without shards/plan\.json"):
        write(tmp_path)


def test_a_run_that_has_not_ended_is_not_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished records"):
        record_store.read(tmp_path)
