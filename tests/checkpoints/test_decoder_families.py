"""Llama 3, Mistral, Qwen 2 and Qwen 3 are transformers': logits, greedy tokens, files in and out."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load, read_config
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models import llama
from dera_jax.models.language_model import Prompts, pad_sequences, sequence_keys
from dera_jax.models.llama_config import LlamaConfig, RopeScaling
from tests.compiled import compiled
from tests.greedy import check_greedy

ROWS = [[7, 0, 63, 7, 0, 12, 40, 41, 5, 5, 2], [9], [5, 11, 2, 0], [62, 1, 30, 31, 32]]
PROMPTS = Prompts(*pad_sequences(ROWS, 11))
B, K, T = len(ROWS), 2, 7
TOKENS = np.random.default_rng(0).integers(0, 64, (B, K, T))
SIZES = {
    "vocab_size": 64, "hidden_size": 36, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-3,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
WINDOWED = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"rope_theta": 500.0}),
    "llama 3": (transformers.LlamaConfig, {"rope_parameters": LLAMA_3}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 4}),
    "mistral without a window": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2 with a window": (transformers.Qwen2Config, WINDOWED),
    "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": True}),
    "qwen3 with a window": (transformers.Qwen3Config, WINDOWED),
}
WINDOWS = {"mistral": (4, 4), "qwen2 with a window": (None, 3), "qwen3 with a window": (None, 3)}


@functools.cache
def theirs(name: str) -> torch.nn.Module:
    """A random model whose norms are not 1 and whose biases are not 0."""
    kind, changes = FAMILIES[name]
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(kind(**SIZES, **changes)).eval()
    with torch.no_grad():
        for x in network.parameters():
            torch.nn.init.uniform_(x, 0.2, 2) if x.ndim == 1 else torch.nn.init.normal_(x, std=0.25)
    return network


@pytest.fixture(params=FAMILIES, scope="module")
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs(request.param).save_pretrained(folder)
    return request.param, load(folder)


def their_logits(network) -> np.ndarray:
    """Logits [B, K, T + 1, V] after t of TOKENS, of each sequence alone, unpadded."""
    found = []
    for row, outputs in zip(ROWS, TOKENS, strict=True):
        ids = torch.tensor([[*row, *output] for output in outputs])
        with torch.no_grad():
            found.append(network(ids).logits[:, len(row) - 1 :].numpy())
    return np.stack(found)


def test_logits_are_transformers(world):
    """Teacher-forced, and step by step with a cache, at prompts shorter and longer than windows."""
    name, found = world
    model, params = found.model, found.params
    expected = their_logits(theirs(name))
    spread = expected.std()
    assert model.config.layer_windows == WINDOWS.get(name, ())
    hidden = compiled(model, "hidden")(params, PROMPTS, TOKENS)
    np.testing.assert_allclose(model.logits(params, hidden) / spread, expected / spread, atol=1e-4)
    state = compiled(model, "start", 2, 3)(params, PROMPTS, K, T + 1)
    step, fed = compiled(model, "step"), jnp.broadcast_to(state.first_token[:, None], (B, K))
    for t in range(T + 1):
        output, state = step(params, state, fed)
        np.testing.assert_allclose(output.logits / spread, expected[:, :, t] / spread, atol=1e-4)
        fed = jnp.asarray(TOKENS[:, :, min(t, T - 1)])


def test_greedy_tokens_are_transformers(world):
    """64 tokens of each of 50 prompts of 1 to 40 tokens, in one padded batch."""
    name, found = world
    drawn = np.random.default_rng(1)
    rows = [drawn.integers(0, 64, size).tolist() for size in drawn.integers(1, 41, 50)]
    keys = sequence_keys(0, np.arange(50), [0])
    settings = Sampling(64, greedy=True, end_ids=(-1,))
    prompts = Prompts(*pad_sequences(rows, 40))
    ours = sample(found.model, found.params, prompts, keys, settings).tokens[:, 0]
    assert check_greedy(theirs(name), rows, np.asarray(ours)) < 10


def test_files_go_both_ways(world, tmp_path):
    name, found = world
    save_hugging_face(tmp_path / "again", found.model.config, None, found.params, "float32")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert type(again) is type(theirs(name)) or name == "mistral without a window"
    np.testing.assert_allclose(their_logits(again), their_logits(theirs(name)), atol=1e-5)
    save_model(tmp_path / "ours", found.model.config, None, found.params, {})
    ours = load(tmp_path / "ours")
    assert ours.model == found.model
    positions = theirs(name).config.max_position_embeddings
    assert again.config.max_position_embeddings == positions
    assert ours.model.config.max_positions == found.model.config.max_positions == positions
    jax.tree.map(np.testing.assert_array_equal, ours.params, found.params)


@pytest.mark.parametrize("prompt", [0, 2])
def test_a_window_of_three_holds_the_token_and_two_before_it(prompt):
    """Across the seam of prompt and output too; one token of the prompt is fed as the first."""
    config = LlamaConfig(64, 8, 2, 1, 1, 4, 8, layer_windows=(3,))
    slots = jnp.arange(5 - prompt)
    context = llama.context(config, slots, 5 - prompt, jnp.array([prompt]), prompt)
    (mask,) = context.masks
    assert mask.sum(-1).tolist() == [[1, 2, 3, 3, 3][prompt:]]
    expected = np.tril(np.ones((5, 5), bool)) & ~np.tril(np.ones((5, 5), bool), -3)
    np.testing.assert_array_equal(mask[0], expected[prompt:])


def test_the_wavelengths_of_llama_3():
    """Heads of 64, base 5·10⁵, factor 32: 15 pairs are as they were, 14 are slower by 32."""
    scaling = RopeScaling(factor=32.0, low=1.0, high=4.0, context=8192)
    config = LlamaConfig(64, 8, 1, 1, 1, 64, 8, rope_base=500_000.0, rope_scaling=scaling)
    plain = 500_000.0 ** -(np.arange(0, 64, 2) / 64)
    context = llama.context(config, jnp.arange(2), 2, jnp.zeros(1, jnp.int32), 0)
    found = np.arctan2(context.rotation[1][0, 0, 0, 1, 0], context.rotation[0][0, 0, 0, 1, 0])
    ratio = plain / found
    np.testing.assert_allclose(ratio[:15], 1, rtol=1e-4)
    assert (ratio[15:18] > 1.01).all() and (ratio[15:18] < 31.9).all()
    np.testing.assert_allclose(ratio[18:], 32, rtol=1e-4)


@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_rope_is_read_as_earlier_versions_of_transformers_wrote_it(kind, tmp_path):
    theirs("llama 3").save_pretrained(tmp_path)
    expected, file = read_config(tmp_path), tmp_path / "config.json"
    settings = json.loads(file.read_text())
    rope = settings.pop("rope_parameters")
    settings |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    rope[kind] = rope.pop("rope_type")
    file.write_text(json.dumps(settings))
    assert read_config(tmp_path) == expected
    assert (expected.rope_base, expected.rope_scaling.factor) == (500.0, 4.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama 3", {"rope_parameters": {"rope_type": "yarn"}}, "RoPE is scaled by 'yarn'"),
        ("llama 3", {"rope_parameters": {"rope_type": "llama3"}}, "'factor' is missing"),
        ("llama 3", {"rope_parameters": {**LLAMA_3, "high_freq_factor": 1.0}}, "high must be greater"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ("qwen2 with a window", {"layer_types": ["chunked_attention"] * 2}, "layer_types is"),
        ("qwen2 with a window", {"layer_types": ["full_attention"]}, "expected 2 times"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True; only False is supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported_stops(name, changes, message, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("mistral", {}, (4096, 4096)),  # as transformers' default
        ("mistral", {"sliding_window": 0}, ()),
        ("llama 3", {"sliding_window": 8}, ()),  # transformers does not read it
    ],
)
def test_windows_of_all_layers(name, changes, windows, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    settings.pop("sliding_window", None)
    file.write_text(json.dumps(settings | changes))
    assert read_config(tmp_path).layer_windows == windows


def test_a_window_that_is_switched_off_is_none(tmp_path):
    """As Qwen's config.json has it; a key that is absent means what it means in transformers."""
    theirs("qwen2").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    kept = {k: x for k, x in settings.items() if k not in ("layer_types", "max_window_layers")}
    for changes, windows in (
        ({"use_sliding_window": False, "sliding_window": 4096}, ()),
        ({"use_sliding_window": True, "sliding_window": 8}, ()),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, (8, 8)),
    ):
        file.write_text(json.dumps(kept | changes))
        assert read_config(tmp_path).layer_windows == windows
