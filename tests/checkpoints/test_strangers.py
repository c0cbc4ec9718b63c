"""Checkpoints of strangers: what they claim is compared with what they hold before any of it is built."""

import json
import shutil

import flax.traverse_util
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import tensorstore as ts
from flax import serialization

from dera_jax.checkpoints import storage
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load, load_params, read_config, read_value_head
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.models import t5, t5_lm
from dera_jax.models.heads import ValueHead
from dera_jax.models.t5 import T5Config, param_shapes
from tests import golden

CONFIG = T5Config(
    vocab_size=300, emb_dim=8, num_heads=2, head_dim=4, num_encoder_layers=2, num_decoder_layers=1,
    mlp_dim=12, mlp_activations=("gelu", "linear"), end_ids=(1,),
)  # fmt: skip
SCALE = "encoder/encoder_norm/scale"


def parameters(shapes=None, **changed):
    """Of these shapes, drawn at random without a model; some of them given."""
    rng = np.random.default_rng(0)
    shapes = shapes or param_shapes(CONFIG)
    flat = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes}
    return flax.traverse_util.unflatten_dict(flat | changed, sep="/")


PARAMS = parameters()


@pytest.fixture
def ours(tmp_path):
    save_model(tmp_path / "ours", CONFIG, ByteVocabulary(), PARAMS, {})
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path):
    save_hugging_face(tmp_path / "theirs", CONFIG, None, PARAMS, "float32")
    return tmp_path / "theirs"


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Tracing a model of the sizes that some of these files claim takes minutes and gigabytes."""

    def never(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.setattr(t5_lm.Transformer, "init", never)
    monkeypatch.setattr(t5.Transformer, "setup", never)


def write_config(folder, edit) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))


def test_a_model_is_read_without_building_it(ours, theirs, nothing_is_built):
    for folder in (ours, theirs):
        found = flax.traverse_util.flatten_dict(load(folder).params)
        for name, x in flax.traverse_util.flatten_dict(PARAMS).items():
            np.testing.assert_array_equal(found[name], x)


SIZE = r"config.json: T5Config.{} must be an integer from {} to 2147483647; found {}"
OTHER = "does not match the model: array {}"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_encoder_layers": 10_000}, OTHER.format("encoder/layers_2/.* is missing")),
        ({"num_encoder_layers": 2**31 - 1}, OTHER.format("encoder/layers_2/.* is missing")),
        ({"num_decoder_layers": 10_000}, OTHER.format("decoder/layers_1/.* is missing")),
        ({"vocab_size": 2**31 - 1}, OTHER.format("token_embedder/embedding")),
        ({"emb_dim": 2**31 - 1}, OTHER.format("token_embedder/embedding")),
        ({"num_heads": 2**30, "head_dim": 2**30}, OTHER.format("encoder/relpos_bias")),
        ({"mlp_activations": ["gelu"] * 10_000}, OTHER.format("encoder/layers_0/mlp/wi_2/kernel")),
        ({"num_encoder_layers": 1}, OTHER.format("encoder/layers_1/.*") + ".* is missing in"),
        ({"vocab_size": 10**12}, SIZE.format("vocab_size", 1, 10**12)),
        ({"num_heads": 4.0}, SIZE.format("num_heads", 1, "4.0")),
        ({"emb_dim": 0}, SIZE.format("emb_dim", 1, 0)),
        ({"emb_dim": -192}, SIZE.format("emb_dim", 1, -192)),
        ({"emb_dim": "192"}, SIZE.format("emb_dim", 1, "'192'")),
        ({"mlp_dim": None}, SIZE.format("mlp_dim", 1, None)),
        ({"num_heads": True}, SIZE.format("num_heads", 1, True)),
        ({"num_decoder_layers": 0}, SIZE.format("num_decoder_layers", 1, 0)),
        ({"num_encoder_layers": [2]}, SIZE.format("num_encoder_layers", 0, r"\[2\]")),
        ({"mlp_activations": ["nope"]}, r"T5Config.mlp_activations must be .*relu.*; found \['nope'"),
        ({"mlp_activations": "relu"}, "T5Config.mlp_activations must be .*; found 'relu'"),
        ({"mlp_activations": []}, r"T5Config.mlp_activations must be .*; found \[\]"),
        ({"mlp_activations": [[]]}, r"T5Config.mlp_activations must be .*; found \[\[\]\]"),
        ({"dropout_rate": 1.5}, "T5Config.dropout_rate must be .* below 1; found 1.5"),
        ({"dropout_rate": float("nan")}, "config.json: .*NaN is not a JSON value"),
        ({"dropout_rate": "0.1"}, "T5Config.dropout_rate must be .*; found '0.1'"),
        ({"logits_via_embedding": 1}, "T5Config.logits_via_embedding must be True or False; found 1"),
        ({"dtype": ["float32"]}, r"T5Config.dtype must be .*; found \['float32'\]"),
        ({"d_model": 8}, "config.json: 'model' has the unknown key 'd_model'; known are dropout_rate"),
    ],
)  # fmt: skip
def test_sizes_that_are_not_those_of_the_arrays_are_refused(ours, nothing_is_built, sizes, message):
    write_config(ours, lambda config: config["model"].update(sizes))
    with pytest.raises(ValueError, match=message):
        load(ours)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(layers=3), "config.json: it has the unknown key 'layers'"),
        (lambda c: c["model"].pop("vocab_size"), "config.json: 'model' has no key 'vocab_size'"),
        (lambda c: c.pop("vocabulary"), "config.json: it has no key 'vocabulary'"),
        (lambda c: c.update(model=[1]), r"config.json: 'model' is \[1\]; it must be an object"),
        (lambda c: c.update(head="vector"), "config.json: the head is 'vector'"),
        (
            lambda c: c["vocabulary"].update(extra_ids=3_000_000),
            "config.json: extra_ids is 3000000; .* from 0 to vocab_size, 300",
        ),
        (lambda c: c["vocabulary"].update(extra_ids="3"), "config.json: extra_ids is '3'"),
    ],
)
def test_a_config_of_ours_is_read_strictly(ours, nothing_is_built, edit, message):
    write_config(ours, edit)
    with pytest.raises(ValueError, match=message):
        read_config(ours)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 4.0}, "config.json: num_heads is 4.0; it must be an integer of at least 1"),
        ({"num_layers": True}, "config.json: num_layers is True; it must be an integer"),
        ({"d_kv": "4"}, "config.json: d_kv is '4'; it must be an integer"),
        ({"vocab_size": 0}, "config.json: vocab_size is 0; it must be an integer"),
        ({"num_decoder_layers": 0}, "config.json: num_decoder_layers is 0; it must be an integer"),
        ({"d_model": -8}, "config.json: d_model is -8; it must be an integer"),
        ({"dropout_rate": "a"}, "config.json: T5Config.dropout_rate must be"),
        ({"feed_forward_proj": ["relu"]}, r"config.json: feed_forward_proj is \['relu'\]"),
        ({"tie_word_embeddings": "no"}, "config.json: tie_word_embeddings is 'no'"),
        ({"num_layers": 10_000}, "lack 'encoder.block.2.layer.0.layer_norm.weight'"),
        ({"num_decoder_layers": 10_000}, "lack 'decoder.block.1.layer.0.layer_norm.weight'"),
        ({"vocab_size": 2**31 - 1}, OTHER.format("token_embedder/embedding")),
    ],
)
def test_a_config_of_hugging_face_is_read_strictly(theirs, nothing_is_built, settings, message):
    write_config(theirs, lambda config: config.update(settings))
    with pytest.raises(ValueError, match=message):
        load(theirs)


def test_as_many_decoder_layers_as_encoder_layers_where_nothing_is_said(tmp_path):
    """transformers writes null, or no key."""
    even = T5Config(**{**CONFIG.__dict__, "num_decoder_layers": 2})
    save_hugging_face(tmp_path / "m", even, None, parameters(param_shapes(even)), "float32")
    write_config(tmp_path / "m", lambda config: config.update(num_decoder_layers=None))
    assert load(tmp_path / "m").model.config.num_decoder_layers == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "half written or damaged .*recursion"),
        (b'{"a": ' * 100_000, "half written or damaged .*recursion"),
        (b'{"model": ' + b"1" * 5000 + b"}", "half written or damaged .*4300 digits"),
        (
            b'{"model": {}, "model": {}}',
            "half written or damaged .*'model' occurs more than once",
        ),
        (b'{"model": {"a": 1, "a": 1}}', "half written or damaged .*'a' occurs more than once"),
        (b"[]", "half written or damaged .*no JSON object"),
        (b"\xff{}", "half written or damaged"),
    ],
)
def test_json_that_no_program_of_ours_has_written_is_named(ours, content, message):
    (ours / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{ours}/config.json: {message}"):
        load(ours)


def test_a_json_file_without_end_is_not_parsed(ours, monkeypatch):
    monkeypatch.setattr(storage, "_LONGEST_JSON", 100)
    with pytest.raises(ValueError, match=r"config.json: \d+ bytes; a JSON file .* may have 100"):
        load(ours)


OUTSIDE = "'{}', which is not a file inside that folder; absolute paths and '..' are not followed"


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../b", ".", ""])
def test_files_that_a_checkpoint_names_are_in_its_folder(theirs, ours, name):
    shutil.copy(theirs / "model.safetensors", theirs.parent / "other.safetensors")
    index = {"weight_map": {"shared.weight": name}}
    (theirs / "model.safetensors.index.json").write_text(json.dumps(index))
    (ours.parent / "b").write_bytes(b"")
    write_config(ours, lambda c: c["vocabulary"].update(file=name, sha256="0"))
    for folder in (theirs, ours):
        with pytest.raises(ValueError, match=f"{folder}: a file .* names {OUTSIDE.format(name)}"):
            load(folder)


@pytest.mark.parametrize("index", [{"shared.weight": 3}, {"shared.weight": ["a"]}, {}, [1], None])
def test_an_index_that_names_no_files_is_refused(theirs, index):
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match="index.json: no weight_map from names of arrays to files"):
        load(theirs)


def test_the_user_s_own_path_may_go_up(ours, monkeypatch):
    monkeypatch.chdir(ours)
    for path in ("../ours", f"{ours}/../ours/", "."):
        assert load(path).model.config == CONFIG
    monkeypatch.chdir(ours.parent)
    with pytest.raises(FileNotFoundError, match="holds no supported checkpoint"):
        load(".")
    with pytest.raises(FileNotFoundError, match=f"no model folder {ours.parent}/nowhere"):
        load("ours/../nowhere")
    for path, message in (
        ("", "load.model must be a path"),
        ("/", "no folder of a checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path)


def change(file, edit) -> None:
    """Rewrites a safetensors file with some of its arrays changed."""
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(arrays | edit(arrays), file)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_quantized_weights_are_named_by_their_type(ours, theirs, dtype):
    for folder, name in ((ours, SCALE), (theirs, "shared.weight")):
        file = folder / "model.safetensors"
        change(file, lambda arrays, name=name: {name: arrays[name].astype(dtype)})
        message = f"{file}: array '{name}' is of type {dtype}; .*float32.* dequantized first"
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_buffers_of_integers_beside_the_parameters_are_left_out(theirs):
    change(theirs / "model.safetensors", lambda arrays: {"position_ids": np.arange(9)})
    assert load(theirs).model.config.emb_dim == 8


def spoilt(value: float, count: int, dtype: str = "float32"):
    scale = np.ones(8, dtype)
    scale[:count] = value
    return scale


@pytest.mark.parametrize(
    ("array", "count"),
    [
        (spoilt(np.nan, 1), 1),
        (spoilt(-np.inf, 3), 3),
        (spoilt(np.inf, 8, "float16"), 8),
        (spoilt(1e300, 2, "float64"), 2),  # beyond float32
    ],
)
def test_parameters_that_are_not_finite_are_refused(ours, theirs, array, count):
    for folder, name in ((ours, SCALE), (theirs, "encoder.final_layer_norm.weight")):
        change(folder / "model.safetensors", lambda _, name=name: {name: array})
        message = f"{folder}/model.safetensors: array '{name}': {count} of 8 values are NaN or inf"
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_a_transposed_array_is_looked_at_too(theirs):
    name = "lm_head.weight"
    change(theirs / "model.safetensors", lambda x: {name: np.where(x[name] > 2, np.nan, x[name])})
    with pytest.raises(ValueError, match=rf"'{name}': \d+ of 2,400 values are NaN"):
        load(theirs)


def test_reward_models_are_looked_at_too(tmp_path):
    name, value = "head/kernel", ValueHead(t5_lm.T5(CONFIG))
    params = parameters(value.param_shapes())
    save_model(tmp_path / "m", CONFIG, ByteVocabulary(), params, {})
    assert read_value_head(tmp_path / "m") == value
    file = tmp_path / "m" / "model.safetensors"
    change(file, lambda arrays: {name: np.full_like(arrays[name], np.nan)})
    with pytest.raises(ValueError, match=f"array '{name}': .* values are NaN"):
        load_params(tmp_path / "m", value.random, ByteVocabulary(), "this run")


def test_a_model_that_would_not_be_read_is_not_written(tmp_path):
    bad = parameters(**{SCALE: spoilt(np.nan, 2)})
    for save in (
        lambda folder: save_model(folder, CONFIG, None, bad, {}),
        lambda folder: save_hugging_face(folder, CONFIG, None, bad, "float32"),
    ):
        with pytest.raises(FloatingPointError, match=r"2 of 8 values of enc.*NaN or infinite"):
            save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_memory_is_given_back_once_per_model(ours, monkeypatch):
    """Each time takes long where a process holds much."""
    calls = []
    monkeypatch.setattr(storage, "_give_back_memory", lambda: calls.append(1))
    load(ours)
    assert len(calls) == 1


def write_legacy(folder, **changed) -> None:
    """A T5X checkpoint with its arrays in the file, or as specs of zarr arrays."""
    content = {"version": 3, "optimizer": {"target": parameters(**changed)}}
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (spoilt(np.nan, 2), "array encoder/encoder_norm/scale: 2 of 8 values are NaN or infinite"),
        (np.ones(8, np.int8), "array encoder/encoder_norm/scale is of type int8"),
        (np.ones(8, np.complex64), "array encoder/encoder_norm/scale is of type complex64"),
        (np.ones(9, np.float32), r"scale has shape \(9,\) in the checkpoint and has shape \(8,\)"),
    ],
)
def test_arrays_of_t5x_are_checked_alike(tmp_path, array, message):
    write_legacy(tmp_path / "c", **{SCALE: array})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "c")


@pytest.mark.parametrize("rows", [10**12, 2**31 - 1])
def test_a_zarr_array_larger_than_memory_is_refused(tmp_path, nothing_is_built, rows):
    """One chunk is there, whatever the shape says. tensorstore would end the process."""
    place = {"driver": "file", "path": f"{tmp_path / 'table'}/"}
    spec = {"driver": "zarr", "kvstore": place, "metadata": {"shape": [3, 8], "dtype": "<f4"}}
    ts.open(spec, create=True).result().write(np.ones((3, 8), np.float32)).result()
    described = tmp_path / "table" / ".zarray"
    settings = json.loads(described.read_text()) | {"shape": [rows, 8]}
    described.write_text(json.dumps(settings))
    shapes = [(name, shape) for name, shape in param_shapes(CONFIG) if "logits" not in name]
    tree = parameters(shapes, **{"token_embedder/embedding": spec})
    content = {"version": 3, "optimizer": {"target": tree}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    with pytest.raises(ValueError, match=f"{tmp_path}: .*(vocab_size|embedding)"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"version": "3", "optimizer": {"target": {}}},
        {"version": 3, "optimizer": [1]},
        {"version": 3, "optimizer": {"target": [1, 2]}},
        {"version": 3, "optimizer": {"target": {"a": {"driver": 1, "kvstore": 2, "metadata": 3}}}},
        [1, 2],
    ],
)
def test_a_msgpack_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(msgpack.packb(content))
    with pytest.raises(ValueError, match=f"{tmp_path}(/checkpoint)?: "):
        load(tmp_path)


def test_an_orbax_description_of_something_else_is_named(tmp_path):
    orbax = golden.unpack("v1_1", "orbax", tmp_path)
    for tree in ([1], {"a": 3}, {"a": {"key_metadata": []}}, {"a": {"key_metadata": [{"key": 1}]}}):
        (orbax / "state" / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))
        with pytest.raises(ValueError, match="state/_METADATA: no (description|parameters)"):
            load(orbax)
