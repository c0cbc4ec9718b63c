"""Our T5 is T5X's T5: parameter tree, logical axes, logits and decoded tokens."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import next_token_logits, score, sequence_keys
from dera_jax.models.layers import relative_position_bucket
from dera_jax.models.t5 import T5Config, Transformer, param_shapes
from dera_jax.models.t5_lm import T5
from tests import golden
from tests.compiled import compiled, start


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_parameter_tree_and_shapes_are_t5x(version):
    model, params, _ = golden.load(version)
    ours = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize(
    "changes",
    [{}, {"mlp_activations": ("relu",), "logits_via_embedding": True, "num_encoder_layers": 1}],
)
def test_shapes_are_known_without_tracing(changes):
    """Each size is another, so that no two can be exchanged."""
    config = T5Config(
        vocab_size=23, emb_dim=5, num_heads=3, num_encoder_layers=2, num_decoder_layers=1, head_dim=7,
        mlp_dim=11, mlp_activations=("gelu", "linear"),
    )  # fmt: skip
    config = dataclasses.replace(config, **changes)
    model = T5(config)
    traced = jax.eval_shape(ValueHead(model).random, jax.random.key(0))
    expected = {
        name: x.shape for name, x in flax.traverse_util.flatten_dict(traced, sep="/").items()
    }
    assert dict(ValueHead(model).param_shapes()) == expected
    trunk = {f"trunk/{name}": shape for name, shape in param_shapes(config)}
    assert trunk == {name: x for name, x in expected.items() if name.startswith("trunk/")}


def test_logical_axes_have_t5x_names():
    model, _, _ = golden.load("v1_1")
    tokens = jnp.ones((1, 2), jnp.int32)
    init = functools.partial(Transformer(model.config).init, method="teacher_forced")
    variables = jax.eval_shape(init, jax.random.key(0), tokens, tokens > 0, tokens[:, None])
    axes = variables["params_axes"]
    layer = axes["decoder"]["layers_0"]
    assert axes["token_embedder"]["embedding_axes"].names == ("vocab", "embed")
    assert axes["encoder"]["relpos_bias"]["rel_embedding_axes"].names == ("heads", "relpos_buckets")
    assert layer["self_attention"]["query"]["kernel_axes"].names == ("embed", "joined_kv")
    assert layer["encoder_decoder_attention"]["out"]["kernel_axes"].names == ("joined_kv", "embed")
    assert layer["mlp"]["wi_1"]["kernel_axes"].names == ("embed", "mlp")
    assert layer["mlp"]["wo"]["kernel_axes"].names == ("mlp", "embed")
    assert layer["pre_mlp_layer_norm"]["scale_axes"].names == ("embed",)
    assert axes["decoder"]["logits_dense"]["kernel_axes"].names == ("embed", "vocab")


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_teacher_forced_logits_and_scores_are_t5x(version):
    model, params, g = golden.load(version)
    targets = g["decoder_target_tokens"][:, None]
    state = start(model, params, golden.prompts(g))
    logits = compiled(model, "teacher_forced")(params, state, targets).logits[:, 0]
    real = g["decoder_target_tokens"] > 0
    np.testing.assert_allclose(logits[real], g["logits"][real], atol=1e-4)
    log_probs = jax.jit(score, static_argnums=0)(
        model, params, state, targets, real[:, None].sum(-1)
    )
    np.testing.assert_allclose(log_probs.sum((1, 2)), g["sequence_scores"], atol=1e-3)


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_encoder_output_is_t5x(version):
    model, params, g = golden.load(version)
    prompts, module = golden.prompts(g), Transformer(model.config)
    encode = jax.jit(lambda params, *x: module.apply({"params": params}, *x, method="encode"))
    encoded, real = encode(params, prompts.tokens, prompts.mask), np.asarray(prompts.mask)
    np.testing.assert_allclose(encoded[real], g["encoded"][real], atol=1e-4)


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_bfloat16_is_as_far_from_float32_as_t5x_in_bfloat16(version):
    model, params, g = golden.load(version, dtype="bfloat16")
    state = start(model, params, golden.prompts(g))
    targets = g["decoder_target_tokens"][:, None]
    logits = compiled(model, "teacher_forced")(params, state, targets).logits[:, 0]
    real = g["decoder_target_tokens"] > 0
    ours = np.abs(logits - g["logits"])[real]
    theirs = np.abs(g["logits_bfloat16_activations"] - g["logits"])[real]
    assert 0 < ours.mean() <= 1.1 * theirs.mean() and ours.max() <= 1.25 * theirs.max()


@pytest.mark.parametrize("version", golden.VERSIONS)
@pytest.mark.parametrize(("name", "length", "end_id"), [("16", 16, 1), ("40_noeos", 40, -1)])
def test_greedy_tokens_are_t5x(version, name, length, end_id):
    model, params, g = golden.load(version)
    keys = sequence_keys(0, np.arange(4), [0])
    sampling = Sampling(max_length=length, greedy=True, end_ids=(end_id,))
    out = sample(model, params, golden.prompts(g), keys, sampling)
    np.testing.assert_array_equal(out.tokens[:, 0], g[f"greedy{name}_tokens"])
    scores = out.scores.log_prob.sum((1, 2))
    np.testing.assert_allclose(scores, g[f"greedy{name}_scores"], atol=1e-3)


def t5x_samples(model, params, prompts) -> np.ndarray:
    """16 tokens [B, 16] by T5X's recipe over our step: one key for the batch, split at each step."""
    rows = len(prompts.tokens)
    state = start(model, params, prompts, max_len=16)
    key, token = jax.random.PRNGKey(5), jnp.zeros((rows, 1), jnp.int32)
    done, step, tokens = np.zeros((rows, 1), bool), compiled(model, "step"), []
    for _ in range(16):
        draw, key = jax.random.split(key)
        output, state = step(params, state, token)
        token = jnp.where(done, 0, jax.random.categorical(draw, output.logits[:, 0])[:, None])
        done = done | (token == 1)
        tokens.append(token[:, 0])
    return np.stack(tokens, 1)


@pytest.mark.parametrize("version", golden.VERSIONS)
def test_sampled_tokens_are_t5x_with_its_key_recipe(version):
    model, params, g = golden.load(version)
    tokens = t5x_samples(model, params, golden.prompts(g))
    np.testing.assert_array_equal(tokens, g["sample16_tokens"])


def test_relative_position_buckets_are_t5x():
    table = np.load(golden.FOLDER / "relpos_buckets.npz")
    distance = -table["relative_position"]
    for name, bidirectional in (("bidirectional", True), ("causal", False)):
        np.testing.assert_array_equal(
            relative_position_bucket(distance, bidirectional), table[name]
        )


def test_dropout_changes_the_logits_and_keeps_their_mean():
    model, params, g = golden.load("v1_1")
    batch = golden.prompts(g, size=20), g["decoder_target_tokens"][:, None, :10]
    batch, params = jax.tree.map(jnp.asarray, (batch, params))
    logits = jax.jit(lambda key=None: next_token_logits(model, params, *batch, dropout_key=key))
    plain = logits()
    keys = jax.random.split(jax.random.key(0), 64)
    dropped = np.stack([logits(key) for key in keys])
    assert np.abs(dropped[0] - dropped[1]).max() > 0.1
    spread = np.std(dropped, axis=0).mean()
    assert np.abs(dropped.mean(0) - plain).mean() < spread


def test_wrong_dtype_is_refused():
    with pytest.raises(ValueError, match="'float32' or 'bfloat16'; found 'float16'"):
        T5Config(vocab_size=8, dtype="float16")


@pytest.mark.parametrize("ids", [{"start_token": 8}, {"end_ids": (8,)}, {"end_ids": (-1,)}])
def test_special_ids_have_rows_in_the_tables(ids):
    with pytest.raises(
        ValueError,
        match=r"(must be an id|must be ids) below vocab_size, 8; found (8|\(8,\)|\(-1,\))",
    ):
        T5Config(vocab_size=8, **ids)
