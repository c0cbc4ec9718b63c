"""Checkpoints that T5X wrote: read as T5X reads them, or refused in words."""

import dataclasses
import shutil

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization

from dera_jax.checkpoints.loading import load, read_config
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import score, sequence_keys
from dera_jax.models.t5_lm import T5
from tests import golden
from tests.compiled import compiled, start
from tests.models.test_t5 import t5x_samples

flat = lambda tree: flax.traverse_util.flatten_dict(tree, sep="/")
rounded = lambda x: np.asarray(np.asarray(x, ml_dtypes.bfloat16), np.float32)
SCALE = "target.decoder.decoder_norm.scale"


@pytest.fixture
def legacy(tmp_path):
    return golden.unpack("v1_1", "legacy", tmp_path)


@pytest.fixture
def orbax(tmp_path):
    return golden.unpack("v1_1", "orbax", tmp_path)


def silent(model):
    """Without its end token, of which T5X's checkpoints say nothing."""
    return T5(dataclasses.replace(model.config, end_ids=()))


@pytest.mark.parametrize(("version", "kind"), golden.CHECKPOINTS)
def test_arrays_and_sizes_are_those_of_t5x(version, kind, tmp_path):
    model, params, _ = golden.load(version)
    loaded = load(golden.unpack(version, kind, tmp_path))
    assert loaded.model == silent(model) and loaded.vocabulary is None
    found, expected = flat(loaded.params), flat(params)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], rounded(x) if kind.endswith("bf16") else x, name)


@pytest.mark.parametrize(("version", "kind"), golden.CHECKPOINTS)
def test_logits_and_tokens_are_those_of_t5x(version, kind, tmp_path):
    """Of the bfloat16 checkpoint too, whose rounding moves logits by 0.1 and no token of these."""
    loaded = load(golden.unpack(version, kind, tmp_path))
    model, params, (_, _, g) = loaded.model, loaded.params, golden.load(version)
    half = kind.endswith("bf16")
    prompts, targets = golden.prompts(g), g["decoder_target_tokens"][:, None]
    keys = sequence_keys(0, np.arange(4), [0])
    state = start(model, params, prompts)
    real = g["decoder_target_tokens"] > 0
    logits = compiled(model, "teacher_forced")(params, state, targets).logits[:, 0]
    np.testing.assert_allclose(logits[real], g["logits"][real], atol=0.2 if half else 1e-4)
    scored = jax.jit(score, static_argnums=0)
    log_probs = scored(model, params, state, targets, real[:, None].sum(-1)).sum((1, 2))
    np.testing.assert_allclose(log_probs, g["sequence_scores"], rtol=1e-2 if half else 1e-5)

    for name, length, end_id in (("16", 16, 1), ("40_noeos", 40, -1)):
        sampling = Sampling(max_length=length, greedy=True, end_ids=(end_id,))
        tokens = sample(model, params, prompts, keys, sampling).tokens[:, 0]
        np.testing.assert_array_equal(tokens, g[f"greedy{name}_tokens"])
    np.testing.assert_array_equal(t5x_samples(model, params, prompts), g["sample16_tokens"])
    for name, end_id in (("", 1), ("_noeos", -1)):
        search = Search(max_length=16, beams=4, top_k=8, end_ids=(end_id,))
        found = beam_search(model, params, prompts, keys, search)
        best_last = found.pool.tokens[:, 0, ::-1]
        np.testing.assert_array_equal(best_last, g[f"beam4{name}_tokens"])


def test_a_folder_of_checkpoints_stands_for_the_latest(legacy, capsys):
    older = legacy.with_name("checkpoint_900")
    shutil.copytree(legacy, older)
    (older / SCALE / "0").write_bytes(b"")
    assert flat(load(legacy.parent).params).keys()
    assert "checkpoint_1000: a T5X checkpoint, 88,800 parameters" in capsys.readouterr().err


def test_sizes_are_known_without_reading_an_array(legacy):
    for file in legacy.rglob("0*"):
        file.write_bytes(b"")
    assert read_config(legacy) == silent(golden.load("v1_1")[0]).config


def test_inline_arrays_and_a_checkpoint_in_one_file(tmp_path):
    model, params, _ = golden.load("v1_0")
    content = {"version": 3, "optimizer": {"target": params, "state": {"step": np.int32(7)}}}
    file = tmp_path / "checkpoint_7"
    file.write_bytes(serialization.msgpack_serialize(content))
    loaded = load(file)
    assert loaded.model == silent(model)
    assert all(np.array_equal(x, flat(params)[name]) for name, x in flat(loaded.params).items())


def test_bfloat16_numbers_kept_as_integers_by_version_2(tmp_path):
    _, params, _ = golden.load("v1_0")
    bits = jax.tree.map(lambda x: np.asarray(x, ml_dtypes.bfloat16).view(np.uint16), params)
    specs = {
        name: _write_zarr(tmp_path, name.replace("/", "."), x) if x.ndim == 2 else x
        for name, x in flat(bits).items()
    }
    tree = flax.traverse_util.unflatten_dict(specs, sep="/")
    content = {"version": 2, "optimizer": {"target": tree}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    found = flat(load(tmp_path).params)
    for name, x in flat(params).items():
        np.testing.assert_array_equal(found[name], rounded(x), name)


def _write_zarr(folder, name: str, x: np.ndarray) -> dict:
    """A zarr array, and its spec with a path at the top level, as old checkpoints have it."""
    kvstore = {"driver": "file", "path": str(folder / name)}
    metadata = {"shape": list(x.shape), "chunks": list(x.shape), "dtype": "<u2"}
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
    ts.open(spec, create=True).result().write(x).result()
    return {**spec, "kvstore": {"driver": "gfile"}, "path": f"/elsewhere/long/ago/{name}/"}


def test_version_0_is_refused(tmp_path):
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize({"target": {}}))
    with pytest.raises(ValueError, match=r"checkpoint: no T5X checkpoint of version 2 or later"):
        load(tmp_path)


def test_a_truncated_chunk_is_named(legacy):
    chunk = legacy / SCALE / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"decoder/decoder_norm/scale.*damaged.*norm.scale/"):
        load(legacy)


def test_a_missing_chunk_is_not_taken_for_zeros(legacy):
    (legacy / SCALE / "0").unlink()
    with pytest.raises(ValueError, match=r"decoder/decoder_norm/scale.*damaged.*missing"):
        load(legacy)


def test_a_missing_array_is_named(legacy):
    shutil.rmtree(legacy / SCALE)
    with pytest.raises(ValueError, match=r"decoder/decoder_norm/scale.*damaged"):
        open_checkpoint(legacy)


def test_a_truncated_tree_is_named(legacy):
    file = legacy / "checkpoint"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint_1000/checkpoint: half written or damaged"):
        load(legacy)


def test_damage_in_an_orbax_checkpoint_is_named(orbax):
    for file in (orbax / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"checkpoint_1000/state: array .*damaged"):
        load(orbax)
    (orbax / "state" / "_METADATA").write_text("{}")
    with pytest.raises(ValueError, match=r"state/_METADATA: no description of a tree"):
        load(orbax)
    (orbax / "state" / "_METADATA").write_text('{"tree_meta')
    with pytest.raises(ValueError, match=r"state/_METADATA: half written or damaged"):
        load(orbax)


def test_another_network_is_refused(legacy):
    """Stacked layers, as T5X's scalable_t5 has them."""
    _, params, _ = golden.load("v1_1")
    stacked = {**params, "decoder": {"decoder": params["decoder"]["layers_0"]}}
    content = {"version": 3, "optimizer": {"target": stacked}}
    (legacy / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    with pytest.raises(ValueError, match=r"unknown architecture: it has no array 'decoder/relpos"):
        load(legacy)


def test_a_missing_layer_is_named(legacy):
    _, params, _ = golden.load("v1_1")
    del params["decoder"]["layers_1"]["mlp"]["wo"]
    content = {"version": 3, "optimizer": {"target": params}}
    (legacy / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    with pytest.raises(ValueError, match=r"decoder/layers_1/mlp/wo/kernel is missing"):
        load(legacy)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("spiece.model", "a SentencePiece model"),
        ("model.safetensors", "a file of parameters without its config.json"),
        ("pytorch_model.bin", "a pickle, which is never read"),
        ("config.json", "a JSON file"),
        ("notes", "if this file is not meant as one of T5X"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, name, what):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ValueError, match=f"{name}.*{what}.* give the folder of a checkpoint"):
        load(tmp_path / name)
