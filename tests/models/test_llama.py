"""Our Llama is transformers' Llama, and its decoding state is that of the contract."""

import copy
import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dera_jax import log
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models import llama, llama_lm
from dera_jax.models.language_model import (
    UNUSED_LOGIT,
    Prompts,
    next_token_logits,
    pad_sequences,
    sequence_keys,
)
from dera_jax.models.llama_config import LlamaConfig
from dera_jax.models.llama_lm import Llama
from tests import tiny
from tests.compiled import compiled

MODELS = {
    "untied": Llama(tiny.LLAMA),
    "tied": Llama(dataclasses.replace(tiny.LLAMA, logits_via_embedding=True)),
}
ROWS = [[7, 0, 63, 7, 0], [0], [5, 11, 2, 0, 0, 9, 33, 4, 8], [62, 1]]  # 0 is padding and a token
PROMPTS = Prompts(*pad_sequences(ROWS, 9))
B, K, T = len(ROWS), 3, 7
TOKENS = np.random.default_rng(0).integers(0, tiny.LLAMA.vocab_size, (B, K, T))


@pytest.fixture(params=MODELS, scope="module")
def world(request):
    model = MODELS[request.param]
    return model, tiny.params(model)


def state_dict(params) -> dict[str, torch.Tensor]:
    """Our parameters under transformers' names; its matrices are [outputs, inputs]."""
    names = {
        "token_embedder/embedding": "model.embed_tokens",
        "final_norm/scale": "model.norm",
        "logits/kernel": "lm_head",
        "pre_attention_norm/scale": "input_layernorm",
        "pre_mlp_norm/scale": "post_attention_layernorm",
        **{f"attention/{x}/kernel": f"self_attn.{x[0]}_proj" for x in ("query", "key", "value")},
        "attention/out/kernel": "self_attn.o_proj",
        **{f"mlp/{x}/kernel": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    found = {}
    for path, x in flax.traverse_util.flatten_dict(params, sep="/").items():
        x = np.array(x)
        if path.startswith("layers_"):
            layer, path = path.removeprefix("layers_").split("/", 1)
            prefix = f"model.layers.{layer}."
        else:
            prefix = ""
        if path.endswith("kernel"):
            x = (x.reshape(-1, x.shape[-1]) if "out" in path else x.reshape(len(x), -1)).T
        found[f"{prefix}{names[path]}.weight"] = torch.tensor(x)
    if "lm_head.weight" not in found:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


@functools.cache
def theirs(model: Llama) -> transformers.LlamaForCausalLM:
    """transformers' model with the same parameters."""
    ours = model.config
    config = transformers.LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.emb_dim,
        intermediate_size=ours.mlp_dim,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_kv_heads,
        head_dim=ours.head_dim,
        rms_norm_eps=ours.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_base},
        tie_word_embeddings=ours.logits_via_embedding,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    network = transformers.LlamaForCausalLM(config).eval()
    network.load_state_dict(state_dict(tiny.params(model)), strict=True)
    return network


@functools.cache
def expected_logits(model: Llama, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """transformers' logits [B, K, T + 1, V] after t of TOKENS, of each sequence alone, unpadded."""
    network = copy.deepcopy(theirs(model)).to(dtype)
    found = []
    for row, texts in zip(ROWS, TOKENS, strict=True):
        ids = torch.tensor([[*row, *text] for text in texts])
        with torch.no_grad():
            found.append(network(ids).logits[:, len(row) - 1 :].float().numpy())
    return np.stack(found)


def start(model, params, prompts=PROMPTS, num_hypotheses=K, max_len=T + 1):
    return compiled(model, "start", 2, 3)(params, prompts, num_hypotheses, max_len)


def feed(model, params, state, *blocks):
    """Feeds the first token, then blocks of tokens [B, K, N]: logits after each, and the state."""
    first = jnp.broadcast_to(state.first_token[:, None, None], (*blocks[0].shape[:2], 1))
    extend, logits = compiled(model, "extend"), []
    for block in (first, *blocks):
        output, state = extend(params, state, block)
        logits.append(output.logits)
    return np.stack(logits, axis=2), state


def test_teacher_forced_logits_are_transformers(world):
    model, params = world
    forced = compiled(model, "teacher_forced")(params, start(model, params), TOKENS).logits
    assert forced.dtype == jnp.float32
    np.testing.assert_allclose(forced, expected_logits(model)[:, :, :T], atol=1e-4)
    hidden = compiled(model, "hidden")(params, PROMPTS, TOKENS)
    assert hidden.shape == (B, K, T + 1, model.emb_dim)
    np.testing.assert_allclose(
        model.logits(params, hidden), expected_logits(model), atol=1e-4, rtol=0
    )


def test_cached_logits_are_transformers(world):
    """Token by token, and in blocks of 3, 1 and 3 tokens."""
    model, params = world
    expected, state = expected_logits(model), start(model, params)
    np.testing.assert_array_equal(state.first_token, [row[-1] for row in ROWS])
    logits, _ = feed(model, params, state, *np.split(TOKENS, T, axis=-1))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    logits, state = feed(model, params, state, *np.split(TOKENS, [3, 4], axis=-1))
    np.testing.assert_allclose(logits, expected[:, :, [0, 3, 4, 7]], atol=1e-4)
    assert state.position == T + 1


def test_a_prompt_of_one_token_alone():
    """Its array has no room for another, so there is no key of a prompt at all."""
    model = MODELS["untied"]
    params, prompts = tiny.params(model), Prompts(np.array([[0]]), np.array([1]))
    logits, _ = feed(
        model, params, start(model, params, prompts), *np.split(TOKENS[1:2], T, axis=-1)
    )
    np.testing.assert_allclose(logits, expected_logits(model)[1:2], atol=1e-4)


@pytest.mark.parametrize("padding", [0, 7, 63, -1, -(10**6), 10**6])
def test_nothing_after_a_prompt_changes_anything(padding):
    model = MODELS["untied"]
    params = tiny.params(model)

    def results(tokens):
        prompts = PROMPTS.replace(tokens=tokens)
        logits, _ = feed(model, params, start(model, params, prompts), TOKENS[..., :2])
        return logits, compiled(model, "hidden")(params, prompts, TOKENS)

    other = np.where(PROMPTS.mask, PROMPTS.tokens, padding)
    for found, expected in zip(results(other), results(PROMPTS.tokens), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(found, expected)


def test_every_token_of_a_prompt_and_of_a_sequence_is_read():
    """So the test before this one does not pass because little is read."""
    model = MODELS["untied"]
    params = tiny.params(model)
    hidden = compiled(model, "hidden")
    before = np.asarray(hidden(params, PROMPTS, TOKENS))
    for b, row in enumerate(ROWS):
        for s in range(len(row)):
            tokens = np.array(PROMPTS.tokens)
            tokens[b, s] = (tokens[b, s] + 5) % 64
            changed = np.any(hidden(params, PROMPTS.replace(tokens=tokens), TOKENS) != before, -1)
            np.testing.assert_array_equal(
                changed, np.arange(B)[:, None, None] == np.full((1, K, T + 1), b)
            )
    tokens = TOKENS.copy()
    tokens[2, 1, 3] += 1
    changed = np.any(hidden(params, PROMPTS, tokens) != before, axis=-1)
    assert changed.sum() == changed[2, 1, 4:].sum() == T - 3


@pytest.mark.parametrize("end_id", [-1, 0])
def test_greedy_tokens_are_transformers(world, end_id):
    """With id 0 as end token, which prompts contain, and which also pads them."""
    model, params = world
    sampling = Sampling(24, greedy=True, end_ids=(end_id,))
    found = sample(model, params, PROMPTS, sequence_keys(0, np.arange(B), [0]), sampling)
    for b, row in enumerate(ROWS):
        settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
        if end_id >= 0:
            settings["eos_token_id"] = end_id
        prompt = torch.tensor([row])
        # Without a mask it takes every 0 of a prompt for padding.
        settings["attention_mask"] = torch.ones_like(prompt)
        ids = theirs(model).generate(prompt, **settings)[0, len(row) :]
        length = int(found.lengths[b, 0])
        assert length == len(ids)
        np.testing.assert_array_equal(found.tokens[b, 0, :length], ids)
    if end_id == 0:
        assert found.finished.any() and not found.finished.all()


def test_keys_and_values_of_prompts_are_held_once():
    """However many hypotheses: in the state, and in the memory of a compiled step."""
    config = dataclasses.replace(tiny.LLAMA, head_dim=64)
    model, size = Llama(config), 512
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    memory, shared = {}, {}
    for K in (1, 64):
        prompts = Prompts(np.ones((2, size), np.int32), np.array([size, 3]))
        state = jax.eval_shape(lambda p, x: model.start(p, x, K, 8), shapes, prompts)  # noqa: B023
        tokens = jax.ShapeDtypeStruct((2, K), jnp.int32)
        step = jax.jit(model.step).lower(shapes, state, tokens).compile().memory_analysis()
        memory[K] = step.argument_size_in_bytes + step.temp_size_in_bytes
        bytes_of = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        shared[K] = bytes_of(state.shared)
        memory[K] -= bytes_of(state.cache)
    of_one_layer = 2 * 2 * config.num_kv_heads * size * config.head_dim * 4  # keys and values
    assert shared[1] == shared[64] == config.num_layers * of_one_layer + 2 * 4
    # Scores grow with the hypotheses; copies of one layer's keys alone would take 31 layers' worth.
    assert memory[64] - memory[1] < 5 * of_one_layer


def test_shapes_and_axes_are_those_of_the_parameters(world):
    model, _ = world
    traced = jax.eval_shape(model.init, jax.random.key(0))
    flat = flax.traverse_util.flatten_dict(traced, sep="/")
    assert dict(model.param_shapes()) == {name: x.shape for name, x in flat.items()}
    axes = model.param_axes()
    assert list(axes) == list(dict(model.param_shapes()))
    assert all(len(axes[name]) == x.ndim and x.dtype == jnp.float32 for name, x in flat.items())
    np.testing.assert_array_equal(
        model.embedding(tiny.params(model)),
        state_dict(tiny.params(model))["model.embed_tokens.weight"],
    )


def test_gradients_are_transformers(world):
    model, params = world

    def loss(params):
        logits = next_token_logits(model, params, PROMPTS, TOKENS)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], axis=-1)
        return -jnp.sum(picked)

    network = theirs(model)
    network.zero_grad()
    for row, texts in zip(ROWS, TOKENS, strict=True):
        ids = torch.tensor([[*row, *text] for text in texts])
        log_probs = network(ids).logits[:, len(row) - 1 : -1].log_softmax(-1)
        (-log_probs.gather(-1, torch.tensor(texts)[..., None]).sum()).backward()
    expected = {name: x.grad for name, x in network.named_parameters()}
    found = state_dict(jax.jit(jax.grad(loss))(params))
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0
        np.testing.assert_allclose(found[name] / scale, gradient / scale, atol=1e-4, err_msg=name)


def test_bfloat16_is_as_near_as_transformers_in_bfloat16():
    model = MODELS["untied"]
    low = Llama(dataclasses.replace(model.config, dtype="bfloat16"))
    params = tiny.params(model)
    state = start(low, params)
    kept = jax.tree.leaves((state.cache, state.shared[0]))
    assert {x.dtype for x in kept} == {jnp.dtype("bfloat16")}
    logits, _ = feed(low, params, state, *np.split(TOKENS, T, axis=-1))
    forced = compiled(low, "teacher_forced")(params, start(low, params), TOKENS).logits
    assert logits.dtype == forced.dtype == jnp.float32
    exact = expected_logits(model)
    limit = np.abs(expected_logits(model, torch.bfloat16) - exact)
    for found in (logits[:, :, :T], forced):
        error = np.abs(found - exact[:, :, :T])
        assert 0 < error.mean() < 1.1 * limit.mean() and error.max() < 1.25 * limit.max()
    loss = lambda params: jnp.sum(low.hidden(params, PROMPTS, TOKENS).astype(jnp.float32) ** 3)
    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params | {"logits": {}}))
    assert all(np.isfinite(x).all() and np.any(x) for x in gradients)


def test_norms_are_rounded_before_the_scale_as_in_transformers():
    """The other order would round differently at half of the numbers."""
    x, scale = np.random.default_rng(0).normal(size=(9, 256)), np.linspace(0.2, 2, 256)
    config = dataclasses.replace(tiny.LLAMA, dtype="bfloat16")
    found = llama._norm(config, {"scale": jnp.asarray(scale)}, jnp.asarray(x, jnp.bfloat16))
    norm = LlamaRMSNorm(256, config.norm_epsilon).bfloat16()
    norm.weight.data = torch.tensor(scale).bfloat16()
    with torch.no_grad():
        expected = norm(torch.tensor(x).bfloat16()).float().numpy()
    assert np.mean(np.asarray(found, np.float32) != expected) < 0.01


def test_attention_scores_and_softmax_are_float32_in_bfloat16():
    """Scores of 30, rounded to bfloat16, would be off by 0.1, and the weights by a tenth."""
    shapes, rng = [(1, 1, 1, 16, 8), (1, 1, 1, 64, 8), (1, 1, 1, 64, 8)], np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    queries, keys, values = drawn[0] * 10, *drawn[1:]
    config = dataclasses.replace(tiny.LLAMA, dtype="bfloat16")
    found = llama._attend(config, queries, [(keys, values)], np.ones((1, 16, 64), bool))
    q, k, v = (np.asarray(x, np.float64)[0, 0, 0] for x in (queries, keys, values))
    weights = np.exp(q @ k.T / np.sqrt(8))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(np.asarray(found, np.float64)[0, 0, 0], expected, atol=0.02)


def test_angles_of_rope_are_exact_at_late_positions_in_bfloat16():
    config, positions = dataclasses.replace(tiny.LLAMA, dtype="bfloat16"), np.array([4095, 32_767])
    context = llama.context(config, positions, 2, jnp.zeros(1, jnp.int32), 0)
    angles = positions[:, None] * config.rope_base ** -(
        np.arange(0, config.head_dim, 2) / config.head_dim
    )
    for found, expected in zip(context.rotation, (np.cos(angles), np.sin(angles)), strict=True):
        np.testing.assert_allclose(found[0, 0, 0, :, 0], expected, atol=5e-3)


def test_ids_beyond_the_vocabulary_are_not_produced():
    model = MODELS["tied"]
    params = tiny.params(model)
    limited = dataclasses.replace(model, num_ids=50)
    logits = limited.logits(params, jnp.ones((2, model.emb_dim)))
    np.testing.assert_array_equal(logits[:, 50:], UNUSED_LOGIT)
    whole = model.logits(params, jnp.ones((2, model.emb_dim)))
    np.testing.assert_array_equal(logits[:, :50], whole[:, :50])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_heads", 8, "num_heads must be a multiple of num_kv_heads, 3; found 8"),
        ("head_dim", 7, "head_dim must be an even integer of at least 2; found 7"),
        ("num_layers", 0, r"num_layers must be an integer in \[1, 2147483647\]; found 0"),
        ("norm_epsilon", 0.0, "norm_epsilon must be a finite number above 0; found 0.0"),
        ("dtype", "float16", "dtype must be 'float32' or 'bfloat16'; found 'float16'"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(field, value, words):
    with pytest.raises(ValueError, match=f"LlamaConfig.{words}"):
        LlamaConfig(**{**dataclasses.asdict(tiny.LLAMA), field: value})


def test_sequences_longer_than_the_model_is_meant_for_are_said(caplog):
    model = Llama(dataclasses.replace(tiny.LLAMA, max_positions=12))
    assert model == Llama(tiny.LLAMA)  # no part of the architecture
    for num_tokens, warned in ((3, False), (4, True)):
        log.clear_logged_warnings()
        jax.eval_shape(lambda n=num_tokens: model.start(tiny.params(model), PROMPTS, 1, n))
        text = "prompts of up to 9 tokens and 4 further ones exceed the 12 positions"
        assert (text in caplog.text) == warned


@pytest.mark.parametrize("windows", [(), (None, 3)])
def test_long_prompts_are_prefilled_in_chunks(monkeypatch, windows):
    """Chunks of four tokens leave logits as they are, across their borders and with windows."""
    config = dataclasses.replace(tiny.LLAMA, num_layers=2, layer_windows=windows)
    model = Llama(config)
    params = tiny.params(model)

    def logits():
        state = model.start(params, PROMPTS, K, T)
        return model.teacher_forced(params, state, TOKENS).logits

    expected = logits()
    monkeypatch.setattr(llama_lm, "PREFILL_CHUNK", 4)
    np.testing.assert_allclose(logits(), expected, atol=1e-5)
    monkeypatch.setattr(llama_lm, "PREFILL_CHUNK", 9)  # the prompts' width: one chunk
    np.testing.assert_array_equal(logits(), expected)
