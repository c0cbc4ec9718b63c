"""Adapters change kernels by what LoRA says, train alone, and share one run of their base."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.realign import Realigned, RealignedAdapters
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models import lora
from dera_jax.models.language_model import (
    Prompts,
    next_token_logits,
    pad_sequences,
    sequence_keys,
)
from dera_jax.models.llama_config import LlamaConfig
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from tests import tiny

MODELS = {
    "llama": Llama(dataclasses.replace(tiny.LLAMA, num_layers=2)),
    # Three key heads for nine queries, as in SmolLM2; biases and windows.
    "qwen": Llama(LlamaConfig(64, 36, 9, 3, 2, 8, 56, qkv_bias=True, head_norms=True, layer_windows=(4, None))),
    "t5": T5(T5Config(64, 16, 2, 2, 2, 8, 32, ("gelu", "linear"), False, dropout_rate=0.0)),
}  # fmt: skip
ROWS = [[7, 3, 63, 7, 5], [9], [5, 11, 2, 6, 13, 9, 33, 4, 8], [62, 1]]
B, K, T = len(ROWS), 3, 6
PROMPTS = Prompts(*pad_sequences(ROWS, 9))
TOKENS = np.random.default_rng(0).integers(2, 64, (B, K, T)).astype(np.int32)


def adapter_of(model, seed: int, rank: int = 3, **options) -> lora.Adapter:
    """An adapter whose factors are all random and large enough to matter."""
    config = lora.LoraConfig(rank, 4.0, seed=seed, **options)
    adapter = lora.new_adapter(model, config)
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noise)


@pytest.fixture(params=MODELS, scope="module")
def world(request):
    model = MODELS[request.param]
    return model, tiny.params(model)


def close(ours, theirs, tolerance=1e-5):
    spread = float(np.std(np.asarray(theirs)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(spread, 1.0))


def tolerance_of(model) -> float:
    """Of the spread of logits; T5's attention does not scale its logits."""
    return 4e-5 if isinstance(model, T5) else 1e-5


def test_attached_is_merged(world):
    """Also with a stabilized scale and other targets; a new adapter changes nothing."""
    model, base = world
    logits = jax.jit(lambda p: next_token_logits(model, p, PROMPTS, TOKENS))
    plain = logits(base)
    tolerance = tolerance_of(model)
    some = ("query", "wo" if isinstance(model, T5) else "down")
    for adapter in (
        adapter_of(model, 1),
        adapter_of(model, 2, rank=5, rank_stabilized=True, targets=some),
    ):
        merged = logits(lora.merge(base, adapter))
        close(logits(lora.attach(base, adapter)), merged, tolerance)
        assert float(jnp.abs(merged - plain).max()) > 0.03
    new = lora.new_adapter(model, lora.LoraConfig(4, 8.0))
    close(logits(lora.attach(base, new)), plain, tolerance)


def test_the_scale_is_alpha_over_rank_or_its_root():
    """By hand, from the equation of the paper."""
    model = MODELS["llama"]
    base = tiny.params(model)
    for stabilized, scale in ((False, 4.0 / 3), (True, 4.0 / np.sqrt(3))):
        adapter = adapter_of(model, 1, rank_stabilized=stabilized)
        a, b = (adapter.factors["layers_0/mlp/up"][x] for x in ("lora_a", "lora_b"))
        kernel = lora.merge(base, adapter)["layers_0"]["mlp"]["up"]["kernel"]
        expected = base["layers_0"]["mlp"]["up"]["kernel"] + scale * np.asarray(a) @ np.asarray(b)
        np.testing.assert_allclose(kernel, expected, atol=1e-5)


def pairs(model, base):
    """One base with its own parameters and two adapters of different ranks; and the merged models."""
    adapters = [None, adapter_of(model, 1, rank=2), adapter_of(model, 2, rank=5)]
    merged = [base if x is None else lora.merge(base, x) for x in adapters]
    one_base = RealignedAdapters(dataclasses.replace(model, components=3))
    separate = Realigned(model, (model, model))
    return (one_base, lora.attach(base, *adapters)), (separate, tuple(merged))


@pytest.mark.parametrize("name", MODELS)
def test_adapters_on_one_base_are_the_merged_models(name):
    model = MODELS[name]
    ours, theirs = pairs(model, tiny.params(model))
    lam = np.random.default_rng(1).normal(size=(B, K, 2)).astype(np.float32)
    prompts = PROMPTS.replace(lam=lam)

    def forced_and_stepped(model):
        def run(params):
            state = model.start(params, prompts, K, T)
            outputs = [model.teacher_forced(params, state, TOKENS)]
            first = jnp.broadcast_to(state.first_token[:, None], (B, K))
            fed = jnp.concatenate([first[..., None], TOKENS[..., :-1]], axis=-1)
            for t in range(2):
                output, state = model.step(params, state, fed[..., t])
                outputs.append(output)
            output, state = model.extend(params, state, fed[..., 2:5])
            return [*outputs, output]

        return jax.jit(run)

    for mine, other in zip(
        forced_and_stepped(ours[0])(ours[1]), forced_and_stepped(theirs[0])(theirs[1]), strict=True
    ):
        close(mine.logits, other.logits, tolerance_of(model))
        close(mine.parts, other.parts, tolerance_of(model))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "llama" else pytest.mark.evidence)
        for name in MODELS
    ],
)
def test_adapters_on_one_base_decode_the_same_tokens(name):
    """Samples with their scores, and a beam search, which reorders the state."""
    model = MODELS[name]
    ours, theirs = pairs(model, tiny.params(model))
    prompts = PROMPTS.replace(lam=np.tile(np.float32([[0.5, 0.3]]), (B, 1, 1)))
    keys = sequence_keys(0, np.arange(B, dtype=np.int32), np.arange(K))
    mine, other = (sample(*x, prompts, keys, Sampling(T, end_ids=(1,))) for x in (ours, theirs))
    np.testing.assert_array_equal(mine.tokens, other.tokens)
    close(mine.scores.kl, other.scores.kl)
    mine, other = (
        beam_search(*x, prompts, keys[:, :1], Search(T, beams=3, end_ids=(1,)))
        for x in (ours, theirs)
    )
    np.testing.assert_array_equal(mine.pool.tokens, other.pool.tokens)


@pytest.mark.slow
def test_at_zero_and_one_the_mixture_is_the_component():
    """Bit for bit, as the definition of λ promises."""
    model = MODELS["llama"]
    (one_base, params), _ = pairs(model, tiny.params(model))
    lam = np.float32([[[0, 0], [1, 0], [0, 1]]] * B)
    prompts = PROMPTS.replace(lam=lam)
    state = one_base.start(params, prompts, K, T)
    output, _ = one_base.step(params, state, TOKENS[..., 0])
    for k in range(K):
        np.testing.assert_array_equal(output.logits[:, k], output.parts[k][:, k])


@pytest.mark.slow
def test_gradients_are_of_adapters_only():
    model = MODELS["llama"]
    base, adapter = tiny.params(model), adapter_of(MODELS["llama"], 1)
    tree = {"policy": adapter, "value": {"trunk": adapter, "head": jnp.ones(3)}}

    def loss(tree):
        full = lora.with_base(tree, base)
        logits = next_token_logits(model, full["policy"], PROMPTS, TOKENS)
        return jnp.sum(logits**2) + jnp.sum(full["value"]["head"])

    grads = jax.grad(loss)(tree)
    assert jax.tree.structure(grads) == jax.tree.structure(tree)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(grads["policy"]))
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(grads["value"]["trunk"]))


def test_what_cannot_be_adapted_is_named():
    with pytest.raises(ValueError, match="'q_proj'.*down, gate, key"):
        lora.new_adapter(MODELS["llama"], lora.LoraConfig(2, 4.0, ("q_proj",)))
    with pytest.raises(ValueError, match="LoraConfig.rank"):
        lora.LoraConfig(0, 4.0)
    with pytest.raises(ValueError, match="components = 2 or more"):
        RealignedAdapters(MODELS["llama"])
