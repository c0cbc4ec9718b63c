"""Models of Hugging Face's transformers: the torch models are the reference, both ways."""

import dataclasses
import functools
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load, read_config
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import check_same
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import next_token_logits, sequence_keys
from dera_jax.models.t5 import T5Config, Transformer
from dera_jax.models.t5_lm import T5
from dera_jax.tasks import vocabularies
from tests import golden, prompts

SIZES = {
    "d_model": 32, "d_kv": 12, "d_ff": 48, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2,
}  # fmt: skip
FAMILIES = {
    "T5": {"vocab_size": 100, "feed_forward_proj": "relu"},
    "T5 1.1": {"vocab_size": 100, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "Flan-T5": {"vocab_size": 128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mT5": {"vocab_size": 160, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "ByT5": {"vocab_size": 384, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
PROMPTS = (150, 40, 9, 2)  # lengths; beyond 128 the last bucket of positions is used
STEPS = 24
KERNELS, TABLES = 1.2, 0.3  # standard deviations


def torch_model(family: str, untied: bool = True):
    """Random parameters, of sizes that give greedy texts of several tokens."""
    config_class, model_class = (
        (transformers.MT5Config, transformers.MT5ForConditionalGeneration)
        if family == "mT5"
        else (transformers.T5Config, transformers.T5ForConditionalGeneration)
    )
    torch.manual_seed(3)
    config = config_class(**SIZES, **FAMILIES[family], decoder_start_token_id=0)
    model = model_class(config).eval()
    if untied and family != "T5":  # transformers 5 ties what it makes; the public models are not
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "layer_norm" in name:
                x.copy_(0.5 + torch.rand(x.shape, generator=generator))
            elif "relative" in name or "shared" in name:
                x.copy_(TABLES * torch.randn(x.shape, generator=generator))
            else:
                gentle = name.endswith((".q.weight", ".k.weight")) or "lm_head" in name
                scale = 1.0 if gentle else KERNELS
                x.copy_(torch.randn(x.shape, generator=generator) * scale / x.shape[-1] ** 0.5)
    return model


def batch(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Padded inputs [B, S] and targets [B, T]."""
    rng = np.random.default_rng(0)
    inputs = np.zeros((len(PROMPTS), max(PROMPTS)), np.int32)
    for row, length in zip(inputs, PROMPTS, strict=True):
        row[:length] = rng.integers(2, vocab_size, length)
    return inputs, rng.integers(2, vocab_size, (len(PROMPTS), STEPS)).astype(np.int32)


def teacher_forced(model, params, inputs, targets):
    targets = jnp.asarray(targets)[:, None]
    return next_token_logits(model, params, prompts.zero_padded(inputs), targets)[:, 0]


def compare(loaded, reference) -> None:
    """Encoder outputs, teacher-forced logits and greedy tokens of our model with torch's."""
    model, params = loaded.model, loaded.params
    inputs, targets = batch(model.vocab_size)
    ids, mask = torch.tensor(inputs).long(), torch.tensor(inputs > 0).long()
    with torch.no_grad():
        encoded = reference.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = reference(
            input_ids=ids, attention_mask=mask, labels=torch.tensor(targets).long()
        ).logits
        # Without its cache, which fails where the decoder has more layers than the encoder.
        greedy = reference.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=STEPS,
            do_sample=False,
            use_cache=False,
        )
    encode = functools.partial(Transformer(model.config).apply, method="encode")
    ours = jax.jit(encode)({"params": params}, inputs, inputs > 0)
    np.testing.assert_allclose(ours[inputs > 0], encoded.numpy()[inputs > 0], atol=1e-4)
    ours = jax.jit(lambda params: teacher_forced(model, params, inputs, targets))(params)
    assert np.std(ours) > 0.2
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4)
    keys = sequence_keys(0, np.arange(len(inputs)), [0])
    sampling = Sampling(max_length=STEPS, greedy=True)
    out = sample(model, params, prompts.zero_padded(inputs), keys, sampling)
    theirs = greedy[:, 1:].numpy()
    assert len(np.unique(theirs)) >= 3
    np.testing.assert_array_equal(out.tokens[:, 0, : theirs.shape[1]], theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_computes_what_torch_computes(family, tmp_path):
    reference = torch_model(family)
    reference.save_pretrained(tmp_path / "m")
    stored = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    assert ("lm_head.weight" in stored) == (family != "T5")
    compare(load(tmp_path / "m"), reference)


@pytest.mark.parametrize("family", ["T5 1.1", "mT5"])
def test_models_that_transformers_5_ties_without_scaling(family, tmp_path):
    reference = torch_model(family, untied=False)
    reference.save_pretrained(tmp_path / "m")
    compare(load(tmp_path / "m"), reference)


def test_shards_and_bfloat16(tmp_path):
    reference = torch_model("T5 1.1").to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "m", max_shard_size="30KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    loaded = load(tmp_path / "m")
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}
    compare(loaded, reference.to(torch.float32))


@pytest.mark.slow
def test_what_is_exported_computes_the_same_in_torch_and_comes_back(tmp_path):
    for version in golden.VERSIONS:
        model, params, _ = golden.load(version)
        save_hugging_face(tmp_path / version, model.config, None, params, "float32")
        reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / version)
        loaded = load(tmp_path / version)
        compare(loaded, reference.eval())
        assert loaded.model == model
        same = jax.tree.map(np.array_equal, loaded.params, params)
        assert all(jax.tree.leaves(same))


def test_round_trips_are_exact_in_bfloat16_too(tmp_path):
    model, params, _ = golden.load("v1_1")
    half = jax.tree.map(lambda x: np.asarray(jnp.bfloat16(x), np.float32), params)
    save_hugging_face(tmp_path / "theirs", model.config, None, half, "bfloat16")
    save_model(
        tmp_path / "ours", model.config, None, load(tmp_path / "theirs").params, {}, "bfloat16"
    )
    found = flax.traverse_util.flatten_dict(load(tmp_path / "ours").params)
    for name, x in flax.traverse_util.flatten_dict(half).items():
        np.testing.assert_array_equal(found[name], x, str(name))


def test_tied_tables_stored_twice_are_fine_unless_they_differ(tmp_path):
    """Old files hold the tied table under several names."""
    torch_model("T5").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    arrays = safetensors.torch.load_file(file)
    table = arrays.pop("shared.weight")
    arrays |= {"encoder.embed_tokens.weight": table, "lm_head.weight": table.clone()}
    safetensors.torch.save_file(arrays, file)
    np.testing.assert_array_equal(load(tmp_path).params["token_embedder"]["embedding"], table)
    arrays["lm_head.weight"] = table + 1
    safetensors.torch.save_file(arrays, file)
    with pytest.raises(ValueError, match=r"lm_head.weight.*tie_word_embeddings.*another table"):
        load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    torch_model("T5 1.1").save_pretrained(tmp_path / "m", max_shard_size="30KB")
    return tmp_path / "m"


def edit(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "umt5"}, "config.json: unknown architecture 'umt5'"),
        ({"model_type": "bert"}, "config.json: unknown architecture 'bert'"),
        ({"feed_forward_proj": "gated-silu"}, "config.json: feed_forward_proj is 'gated-silu'"),
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64; only 32"),
        (
            {"decoder_start_token_id": 100},
            "decoder_start_token_id is 100 in config.json and 0 in gener",
        ),
        ({"pad_token_id": 2}, "pad_token_id is 2 in config.json and 0 in generation_config.json"),
        ({"d_ff": None}, "config.json: d_ff is None; it must be an integer of at least 1"),
        (
            {"d_ff": 64},
            r"encoder/layers_0/mlp/wi_0/kernel has shape \(32, 48\) in the .* \(32, 64\) in",
        ),
        ({"num_layers": 4}, "lack 'encoder.block.3.layer.0.layer_norm.weight'"),
    ],
)
def test_a_config_of_another_model_is_refused(folder, settings, message):
    edit(folder, **settings)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_layer_that_the_config_does_not_count_is_not_dropped(folder):
    edit(folder, num_layers=2)
    with pytest.raises(ValueError, match=r"no place for 'encoder.block.2"):
        load(folder)


def test_a_missing_shard_is_named_by_the_index(folder):
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"00002-of-.*safetensors, a shard that .*index.json"
    ):
        load(folder)


def test_a_damaged_config_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"m/config.json: half written or damaged"):
        read_config(folder)


def test_a_pickle_is_not_read(folder):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    message = r"no model.safetensors, but pytorch_model.bin, which is not read .*from_pretrained\('"
    with pytest.raises(FileNotFoundError, match=message):
        load(folder)


def test_the_command_for_pickles_works(folder, tmp_path, monkeypatch):
    """The sentence's own command, on what torch.save wrote; the tokenizer is kept."""
    pieces = folder / "spiece.model"
    vocabularies.train(["some words to make pieces from, and yet more"] * 9, str(pieces), 76)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T5Tokenizer", "extra_ids": 9}'
    )
    arrays = torch_model("T5 1.1").state_dict()
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(arrays, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError) as found:
        load(folder)
    command = str(found.value).partition('python -c "')[2].rstrip('"')
    monkeypatch.chdir(tmp_path)
    exec(command, {})  # noqa: S102 (our own sentence)
    converted = load(tmp_path / "converted")
    np.testing.assert_array_equal(
        converted.params["token_embedder"]["embedding"], arrays["shared.weight"]
    )
    check_same(converted.vocabulary, SentencePieceVocabulary(pieces, 9), "converted", "source")


def test_the_start_token_of_a_config_is_fed_first(tmp_path):
    reference = torch_model("T5")
    for config in (reference.config, reference.generation_config):
        config.decoder_start_token_id, config.eos_token_id = 7, 5
    reference.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.model.start_token, loaded.model.end_ids) == (7, (5,))
    compare(loaded, reference)


def test_activations_that_transformers_does_not_have_are_refused(tmp_path):
    config = dataclasses.replace(golden.load("v1_1")[0].config, mlp_activations=("relu", "linear"))
    params = T5(T5Config(**dataclasses.asdict(config))).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"no T5 with the activations \('relu', 'linear'\)"):
        save_hugging_face(tmp_path / "m", config, None, params, "float32")
    assert not (tmp_path / "m").exists()
