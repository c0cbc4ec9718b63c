"""GGUF files: the models of Hugging Face's folders, from files that the package `gguf` wrote."""

import dataclasses
import tracemalloc

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from dera_jax.checkpoints import gguf_file, recognise
from dera_jax.checkpoints.loading import load, read_config
from dera_jax.checkpoints.storage import Folder, read_arrays
from dera_jax.models.language_model import Prompts, next_token_logits, pad_sequences
from tests.checkpoints import gguf_models as files
from tests.checkpoints.gguf_models import KINDS

QUANTIZED_HERE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16")
K_QUANTS = {
    "Q2_K": 84,
    "Q3_K": 110,
    "Q4_K": 144,
    "Q5_K": 176,
    "Q6_K": 210,
}  # bytes of a block of 256
ROWS = [[7, 0, 63, 7, 0, 12, 40], [9], [5, 11, 2, 0]]
TOKENS = np.random.default_rng(0).integers(0, 64, (len(ROWS), 1, 5))


def folder_of(name, path):
    files.network(name).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", files.FAMILIES)
def test_a_file_holds_the_model_of_the_folder(name, tmp_path):
    file = files.write_model(tmp_path / "m.gguf", name)
    found, expected = load(file), load(folder_of(name, tmp_path / "theirs"))
    ours, theirs = found.model.config, expected.model.config
    assert ours.norm_epsilon == pytest.approx(theirs.norm_epsilon)  # float32 in the file
    assert dataclasses.replace(ours, norm_epsilon=theirs.norm_epsilon) == theirs
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.model.num_ids == files.NUM_TOKENS


def test_logits_are_those_of_transformers_from_the_same_file(tmp_path):
    """Its reader is a second reference where the head size is the usual one, the only one it reads."""
    files.write_model(tmp_path / "m.gguf", "smollm2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    found = load(tmp_path)
    prompts = Prompts(*pad_sequences(ROWS, 7))
    ours = jax.jit(lambda p: next_token_logits(found.model, p, prompts, TOKENS))(found.params)
    for row, tokens, logits in zip(ROWS, TOKENS[:, 0], np.asarray(ours[:, 0]), strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([[*row, *tokens]])).logits[0, len(row) - 1 : -1].numpy()
        size = found.model.num_ids
        np.testing.assert_allclose(logits[:, :size], expected[:, :size], atol=1e-4 * expected.std())


@pytest.mark.parametrize("kind", QUANTIZED_HERE)
def test_a_quantized_model_is_the_one_of_its_dequantized_matrices(kind, tmp_path):
    file = files.write_model(tmp_path / "m.gguf", "llama", KINDS[kind])
    folder = folder_of("llama", tmp_path / "theirs")
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, x in stored.items():
        if x.ndim == 2:
            stored[name] = gguf.dequantize(gguf.quantize(x, KINDS[kind]), KINDS[kind])
            assert (stored[name] != x).any()
    safetensors.numpy.save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, load(file).params, load(folder).params)


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")  # random scales
@pytest.mark.parametrize("kind", ["F32", *QUANTIZED_HERE, *K_QUANTS])
def test_any_part_of_a_tensor_is_read(kind, tmp_path):
    """The package's own reader and dequantizer are the reference; blocks are random bytes."""
    rng = np.random.default_rng(0)
    values, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    assert kind not in K_QUANTS or (values, size) == (256, K_QUANTS[kind])
    blocks = rng.integers(0, 256, (5, 3 * size), np.uint8)
    blocks = blocks.view(np.float32) if kind == "F32" else blocks
    stored = {"first": np.ones(3, np.float32), "x": (blocks, KINDS[kind])}
    path = files.write(tmp_path / "m.gguf", "llama", {}, stored, alignment=128)
    expected = gguf.dequantize(gguf.GGUFReader(path).tensors[1].data, KINDS[kind])
    array = gguf_file.open_gguf(path).tensors["x"]
    assert array.shape == expected.shape == (5, 3 * values)
    assert len(np.unique(expected)) > 10
    np.testing.assert_array_equal(gguf.GGUFReader(path).tensors[0].data, np.ones(3))
    for index in (
        (slice(None), slice(None)),
        (slice(1, 3), slice(None)),
        (slice(4, 5), slice(2, 3 * values)),
    ):
        np.testing.assert_array_equal(array.read(index), expected[index])
    np.testing.assert_array_equal(
        array.transposed().read((slice(1, 3), slice(2, 4))), expected[2:4, 1:3].T
    )


def test_a_vector_is_one_row_of_blocks(tmp_path):
    vector = np.arange(64, dtype=np.float32)
    stored = {"x": (gguf.quantize(vector, KINDS.Q8_0), KINDS.Q8_0)}
    path = files.write(tmp_path / "m.gguf", "llama", {}, stored)
    expected = gguf.dequantize(gguf.quantize(vector, KINDS.Q8_0), KINDS.Q8_0)
    array = gguf_file.open_gguf(path).tensors["x"]
    np.testing.assert_array_equal(array.read((slice(3, 40),)), expected[3:40])


def test_one_tensor_at_a_time_is_dequantized_in_memory(tmp_path):
    """Of sixteen tensors one takes 1 MiB as float32 and half of it as bfloat16.

    NumPy's memory is counted. JAX keeps a NumPy array that happens to be aligned in place of a copy,
    so that between none and all of the results are in the count.
    """
    kind, size, count = KINDS["Q8_0"], 2**20, 16
    blocks = gguf.quantize(np.ones((512, 512), np.float32), kind)
    stored = {f"x{i}": (blocks, kind) for i in range(count)}
    tensors = gguf_file.open_gguf(files.write(tmp_path / "m.gguf", "llama", {}, stored)).tensors
    tracemalloc.start()
    try:
        found = read_arrays(tensors, None, "bfloat16")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == count and size < peak < (count // 2 + 4) * size
    assert all((x == 1).all() for x in found.values())


def test_metadata_are_those_that_the_package_reads(tmp_path):
    fields = files.fields_of("llama") | files.tokenizer_fields()
    values = [
        ("u8", 200, "UINT8"),
        ("i8", -3, "INT8"),
        ("u16", 65000, "UINT16"),
        ("i16", -300, "INT16"),
    ]
    values += [("i32", -7, "INT32"), ("u64", 2**63, "UINT64"), ("i64", -(2**40), "INT64")]
    values += [
        ("f64", 0.1, "FLOAT64"),
        ("yes", True, "BOOL"),
        ("no", False, "BOOL"),
        ("é", "日本 🙂", "STRING"),
    ]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value, kind in values:
        writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    for key, value in (("floats", [0.5, 1.5]), ("flags", [True, False]), ("empty", [""])):
        writer.add_array(key, value)
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf_file.open_gguf(tmp_path / "m.gguf").fields
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    theirs = {k: x.contents() for k, x in reader.fields.items() if not k.startswith("GGUF.")}
    assert found == theirs and len(found) == 1 + len(values) + 3 + 3


def test_a_folder_with_one_file_is_that_file(tmp_path):
    file = files.write_model(tmp_path / "a.gguf", "qwen3")
    assert read_config(tmp_path) == read_config(file)
    (tmp_path / "b.gguf").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"holds 2 GGUF files; .*a.gguf, b.gguf"):
        load(tmp_path)


def test_a_file_in_a_bucket_has_to_be_copied_first():
    place = Folder("gs://bucket/m.gguf", {"driver": "gcs", "bucket": "bucket", "path": "m.gguf/"})
    with pytest.raises(ValueError, match="gs://bucket/m.gguf must be a local file; copy it"):
        recognise._open_gguf(place)


A, T = "llama.attention.", "tokenizer.ggml."
ONLY = "is {}; only {} is supported"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.type": "adapter"}, "general.type is 'adapter'; only 'model'"),
        ({"general.quantization_version": 1}, "quantization_version is 1; only 2"),
        ({"general.alignment": 0}, "general.alignment is 0"),
        ({"split.count": 3}, "one of 3 parts of a model; join them"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type " + ONLY.format("'yarn'", "'none'")),
        ({"llama.rope.scaling.factor": 4.0}, "rope.scaling.factor " + ONLY.format("4.0", "1.0")),
        ({"llama.rope.scale_linear": 4.0}, "rope.scale_linear " + ONLY.format("4.0", "1.0")),
        ({"llama.expert_count": 8}, "expert_count " + ONLY.format(8, 0)),
        ({"llama.pooling_type": 1}, "pooling_type " + ONLY.format(1, 0)),
        ({A + "value_length": 32}, "value_length " + ONLY.format(32, 24)),
        ({"llama.rope.dimension_count": 12}, "rope.dimension_count " + ONLY.format(12, 24)),
        ({"llama.logit_scale": 0.5}, r"the key 'llama.logit_scale' \(0.5\) is not known"),
        ({A + "head_count": [4, 4]}, r"head_count is \[4, 4\]; it must be an integer"),
        ({A + "head_count_kv": 3}, "num_heads must be a multiple of num_kv_heads, 3"),
        ({A + "layer_norm_rms_epsilon": None}, "lack 'llama.attention.layer_norm_rms_epsilon'"),
        ({"llama.rope.freq_base": "x"}, "rope_base must be a finite number"),
        ({"llama.block_count": 2**31 - 1}, "lacks the tensor 'blk.2.attn_norm.weight'"),
        ({"llama.block_count": 1}, "no place for 'blk.1.attn_k.weight'"),
        ({A + "key_length": 12, A + "value_length": 12}, r"layers_0/attention/query/kernel has shape \(64, 96\)"),
        ({A + "key_length": None, A + "value_length": None}, r"has shape \(64, 96\) .* \(64, 4, 16\)"),
        ({T + "eot_token_id": 9999}, "end_ids"),
    ],
)  # fmt: skip
def test_what_is_not_supported_stops(changes, message, tmp_path):
    file = files.write_model(tmp_path / "m.gguf", "llama", **changes)
    with pytest.raises(ValueError, match=f"^{file}: .*{message}"):
        read_config(file)


def test_architectures_that_are_not_known_are_named(tmp_path):
    file = files.write(tmp_path / "m.gguf", "gemma3", files.tokenizer_fields(), {})
    with pytest.raises(ValueError, match="'gemma3'; .* must be one of llama, qwen2, qwen3"):
        load(file)


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_window_of_some_layers_is_not_guessed(name, tmp_path):
    changes = {f"{name}.attention.sliding_window": 8}
    file = files.write_model(tmp_path / "m.gguf", name, **changes)
    with pytest.raises(ValueError, match="does not say in which layers"):
        load(file)


def changed(name, path, **tensors):
    _, _, kind = files.FAMILIES[name]
    fields = files.fields_of(name) | files.tokenizer_fields()
    return files.write(path, kind, fields, files.tensors_of(name) | tensors)


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("llama", {"blk.1.attn_q.weight": None}, "lacks the tensor 'blk.1.attn_q.weight'"),
        ("llama", {"token_embd.weight": None}, "lacks the tensor 'token_embd.weight'"),
        ("llama", {"blk.0.attn_q.bias": np.ones(96, np.float32)}, "no place for 'blk.0.attn_q.bias'"),
        ("qwen2", {"blk.0.attn_q.bias": None}, "lacks the tensor 'blk.0.attn_q.bias'"),
        ("qwen3", {"blk.0.attn_k_norm.weight": None}, "lacks the tensor 'blk.0.attn_k_norm.weight'"),
        ("llama", {"rope_freqs.weight": np.linspace(1, 8, 12, dtype=np.float32)}, "does not scale RoPE"),
        ("llama 3", {"rope_freqs.weight": np.ones(4, np.float32)}, "does not scale RoPE"),
        ("llama", {"output_norm.weight": np.full(64, np.nan, np.float32)}, "'output_norm.weight': 64 of 64 .* NaN"),
        ("llama", {"output_norm.weight": np.zeros(64, np.int32)}, "'output_norm.weight' is of type I32; supported"),
        ("llama", {"output_norm.weight": np.ones(63, np.float32)}, r"final_norm/scale has shape \(63,\)"),
        ("llama", {"output.weight": (np.zeros((files.NUM_TOKENS + 8, 68), np.uint8), KINDS.Q8_0)}, None),
    ],
)  # fmt: skip
def test_tensors_are_all_and_only_those_of_the_model(name, tensors, message, tmp_path):
    file = changed(name, tmp_path / "m.gguf", **tensors)
    if message is None:  # a matrix of another type than the others is fine
        assert not load(file).params["logits"]["kernel"].any()
        return
    with pytest.raises(ValueError, match=f"{file}: .*{message}"):
        load(file)


def test_an_output_matrix_that_is_absent_is_the_embedding(tmp_path):
    file = changed("llama", tmp_path / "m.gguf", **{"output.weight": None})
    assert read_config(file).logits_via_embedding and "logits" not in load(file).params


def test_defaults_are_those_of_llama_cpp(tmp_path):
    file = files.write_model(tmp_path / "m.gguf", "llama", **{"llama.rope.freq_base": None})
    assert read_config(file).rope_base == 10_000


def test_damaged_files_are_named(tmp_path):
    """Wherever it ends, nothing is read in place of what is missing, and nothing hangs."""
    whole = files.write_model(tmp_path / "whole.gguf", "llama", KINDS.Q8_0).read_bytes()
    file = tmp_path / "m.gguf"
    for size in [0, 3, 4, 8, 20, 24, 30, *range(40, len(whole) - 100, len(whole) // 60)]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{file}: (half written or damaged|this is no GGUF)"):
            load(file)
    count = whole.index(b"tokenizer.ggml.tokens") + 21 + 4 + 4
    endless = whole[:count] + (2**62).to_bytes(8, "little") + whole[count + 8 :]
    for content, message in (
        (b"GGUX" + whole[4:], "this is no GGUF file"),
        (whole[:4] + (1).to_bytes(4, "little") + whole[8:], "version of the format is 1"),
        (endless, "m.gguf: "),
        (whole.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "two entries 'blk.0.attn_q.weight'"),
        (whole.replace(b"tokenizer.ggml.bos", b"tokenizer.ggml.eos"), "two entries 'tokenizer.ggml.eos_token_id'"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(file)


def test_a_file_that_is_cut_after_it_was_opened_is_named(tmp_path):
    file = files.write_model(tmp_path / "m.gguf", "llama")
    opened = gguf_file.open_gguf(file).tensors["output.weight"]
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match=f"{file}: tensor 'output.weight': half written or damaged"
    ):
        opened.read((slice(None), slice(None)))


def test_big_endian_files_are_not_read_as_little_endian(tmp_path):
    fields = {"llama.block_count": 2}
    options = {"endianess": gguf.GGUFEndian.BIG}
    file = files.write(tmp_path / "m.gguf", "llama", fields, {}, **options)
    with pytest.raises(ValueError, match="supported are 2 and 3, little-endian"):
        load(file)


def test_sampling_settings_of_a_file_are_printed_and_not_applied(tmp_path, capsys):
    changes = {"general.sampling.temp": 0.5}
    load(files.write_model(tmp_path / "m.gguf", "llama", **changes))
    assert "general.sampling.temp 0.5: not applied; set" in capsys.readouterr().err
