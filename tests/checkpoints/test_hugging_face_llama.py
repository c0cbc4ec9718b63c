"""Llama checkpoints: what transformers wrote is read, and what is written here transformers reads."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load, read_config
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.models.language_model import Prompts, next_token_logits
from dera_jax.models.registry import model_of
from tests import tiny

TOKENS = np.array([[[5, 0, 9, 3, 7]], [[2, 2, 40, 0, 1]]])
PROMPTS = Prompts(np.array([[7, 3, 0, 9], [4, 9, 9, 9]], np.int32), np.array([4, 1], np.int32))


def theirs(tied: bool, **more) -> transformers.LlamaForCausalLM:
    config = tiny.LLAMA
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.emb_dim, head_dim=config.head_dim,
            num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            num_hidden_layers=config.num_layers, intermediate_size=config.mlp_dim,
            rope_theta=500.0, rms_norm_eps=1e-3, tie_word_embeddings=tied,
            bos_token_id=1, eos_token_id=[0, 2], pad_token_id=3, **more,
        )
    )  # fmt: skip


def logits_of(model, params) -> np.ndarray:
    """Those that predict TOKENS after PROMPTS."""
    forward = jax.jit(lambda p: next_token_logits(model, p, PROMPTS, TOKENS))
    return np.asarray(forward(params)[:, 0])


def their_logits(model) -> np.ndarray:
    found = []
    for tokens, length, text in zip(PROMPTS.tokens, PROMPTS.lengths, TOKENS[:, 0], strict=True):
        ids = torch.tensor([[*tokens[:length].tolist(), *text.tolist()]])
        with torch.no_grad():
            found.append(model(ids).logits[0, length - 1 : -1].numpy())
    return np.stack(found)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers_and_back(tied, tmp_path):
    model = theirs(tied).eval()
    model.save_pretrained(tmp_path / "theirs")
    found = load(tmp_path / "theirs")
    assert found.model.end_ids == (0, 2) and found.model.start_token is None
    expected = their_logits(model)
    np.testing.assert_allclose(logits_of(found.model, found.params), expected, atol=1e-4)

    save_hugging_face(tmp_path / "again", found.model.config, None, found.params, "float32")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "again").eval()
    np.testing.assert_array_equal(their_logits(again), expected)
    assert again.generation_config.eos_token_id == [0, 2]


def edit(folder, change=None, **settings):
    """Change settings of config.json, and the arrays of model.safetensors by a function."""
    described = folder / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | settings))
    if change is not None:
        path = folder / "model.safetensors"
        safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)


def test_a_tied_output_kernel_may_be_stored_if_it_is_the_embedding(tmp_path):
    """Qwen3-0.6B stores a copy; another table would be dropped in silence."""
    theirs(True).save_pretrained(tmp_path)
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    edit(tmp_path, lambda arrays: arrays | {head: arrays[table].clone()})
    assert load(tmp_path).model.config.logits_via_embedding
    edit(tmp_path, lambda arrays: arrays | {head: arrays[table] + 1})
    with pytest.raises(ValueError, match="lm_head.weight'.* set tie_word_embeddings to false"):
        load(tmp_path)
    edit(tmp_path, tie_word_embeddings=False)
    found = load(tmp_path)
    kernel, table = found.params["logits"]["kernel"], found.params["token_embedder"]["embedding"]
    np.testing.assert_array_equal(kernel, table.T + 1)
    edit(tmp_path, lambda arrays: {name: x for name, x in arrays.items() if name != head})
    with pytest.raises(ValueError, match="the parameters lack 'lm_head.weight'"):
        load(tmp_path)


def test_frequencies_of_rope_that_old_checkpoints_store_are_left_out(tmp_path):
    """As Llama 2's; an array that no model has is an error."""
    theirs(False).save_pretrained(tmp_path)
    expected, layer = load(tmp_path), "model.layers.0.self_attn."
    edit(tmp_path, lambda arrays: arrays | {f"{layer}rotary_emb.inv_freq": torch.ones(2)})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, expected.params)
    edit(tmp_path, lambda arrays: arrays | {f"{layer}inv_freq": torch.ones(2)})
    with pytest.raises(ValueError, match=f"no place for '{layer}inv_freq'"):
        load(tmp_path)


def test_the_index_says_which_files_are_the_model(tmp_path):
    """Folders also hold the weights in another layout, and shards of earlier uploads."""
    theirs(False).save_pretrained(tmp_path)
    expected = load(tmp_path)
    arrays = safetensors.torch.load_file(tmp_path / "model.safetensors")
    places = {}
    for i, part in enumerate((list(arrays)[::2], list(arrays)[1::2])):
        file = f"model-0000{i}-of-2.safetensors"
        stale = {name: torch.zeros_like(x) for name, x in arrays.items() if name not in part}
        safetensors.torch.save_file(stale | {name: arrays[name] for name in part}, tmp_path / file)
        places |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    zeros = {name: torch.zeros_like(x) for name, x in arrays.items()}
    for file in ("model.safetensors", "consolidated.safetensors", "model-00009-of-9.safetensors"):
        safetensors.torch.save_file(zeros, tmp_path / file)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, expected.params)


def test_a_folder_of_ours_names_its_architecture(tmp_path):
    config = dataclasses.replace(tiny.LLAMA, end_ids=(0,))
    model = model_of(config)
    save_model(tmp_path / "m", config, None, tiny.params(model), {})
    found = load(tmp_path / "m")
    assert found.model == model
    jax.tree.map(np.testing.assert_array_equal, found.params, tiny.params(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "RoPE is scaled by 'llama3'",
        ),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; it must be one object"),
        ({"rope_parameters": {"full_attention": {}}}, "must be one object for all layers"),
        ({"rope_scaling": {"type": "linear"}}, "and {'type': 'linear'}; keep one of them"),
        ({"attention_bias": True}, "attention_bias is True; only False is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0; it must be an integer"),
        ({"num_key_value_heads": 2}, "num_heads must be a multiple of num_kv_heads, 2"),
        ({"model_type": "mistral3"}, "unknown architecture 'mistral3'; model_type must be .*llama"),
    ],
)
def test_what_is_not_supported_is_refused(changes, message, tmp_path):
    theirs(False).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)
