"""Adapter folders are PEFT's, both ways, and name the base that they belong to."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers

from dera_jax.checkpoints import adapters
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.decoding.realign import RealignedAdapters
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
from tests import tiny
from tests.checkpoints import chat

ROWS = [[7, 3, 63, 7, 12], [9, 5]]
PROMPTS = Prompts(*pad_sequences(ROWS, 6))
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 1, 4))
SIZES = {
    "vocab_size": 64, "hidden_size": 36, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 4,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {
    "all linear layers": {"r": 4, "lora_alpha": 10, "target_modules": ALL},
    "some, by a pattern": {"r": 4, "lora_alpha": 4, "target_modules": r".*layers\.1.*\.(q|down)_proj"},
    "stabilized": {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "ranks of their own": {
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 3}, "alpha_pattern": {"down_proj": 5},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama in a folder of transformers, with a reader of fresh copies."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def theirs(base, name: str):
    """PEFT's model with random factors."""
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(network, peft.LoraConfig(**CONFIGS[name]))
    torch.manual_seed(1)
    with torch.no_grad():
        for key, x in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(x, std=0.3)
    return adapted.eval()


def their_logits(network) -> np.ndarray:
    found = []
    for row, (output,) in zip(ROWS, TOKENS, strict=True):
        with torch.no_grad():
            logits = network(torch.tensor([[*row, *output[:-1]]])).logits[:, len(row) - 1 :]
        found.append(logits.numpy())
    return np.stack(found)


def our_logits(found) -> np.ndarray:
    return np.asarray(next_token_logits(found.model, found.params, PROMPTS, TOKENS))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_pefts(base, tmp_path, name):
    """From its files, and from ours that PEFT reads again."""
    network = theirs(base, name)
    network.save_pretrained(tmp_path / "theirs")
    expected, found = their_logits(network), load(tmp_path / "theirs")
    np.testing.assert_allclose(our_logits(found), expected, atol=1e-4 * expected.std())
    assert np.abs(expected - our_logits(load(base))).max() > 0.1 * expected.std()

    adapters.save_adapter(tmp_path / "ours", found.model, found.adapter, str(base), {})
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()
    np.testing.assert_allclose(their_logits(again), expected, atol=1e-4 * expected.std())
    read = load(tmp_path / "ours")  # by the name of its base
    jax.tree.map(np.testing.assert_array_equal, read.adapter, found.adapter)


def changed(folder, target, **settings):
    """A copy of an adapter folder with other settings in adapter_config.json."""
    shutil.copytree(folder, target)
    content = json.loads((target / "adapter_config.json").read_text()) | settings
    (target / "adapter_config.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is True.*merge_and_unload"),
        ({"bias": "all"}, "bias is 'all'; only 'none'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changed the base"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
        ({"a_later_option": 1}, "a_later_option is 1, which is not supported"),
        ({"r": 5}, "expected .5, 56. for a rank of 5"),
        ({"rank_pattern": {"q_proj": 2}}, "expected .2, 36. for a rank of 2"),
        ({"target_modules": ["q_proj"]}, "has factors, which contradicts target_modules"),
        ({"target_modules": [*ALL, "lm_head"]}, None),  # no linear layer that can be adapted
    ],
)
def test_what_an_adapter_says_is_used_or_refused(base, tmp_path, settings, message):
    theirs(base, "all linear layers").save_pretrained(tmp_path / "theirs")
    folder = changed(tmp_path / "theirs", tmp_path / "changed", **settings)
    if message is None:
        load(folder)
        return
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x | {"base_model.model.lm_head.lora_A.weight": np.ones((4, 36), np.float32)}, "'base_model.model.lm_head.lora_A.weight' is no factor"),
        (lambda x: {k: v for k, v in x.items() if "0.self_attn.q_proj.lora_B" not in k}, "q_proj' has no lora_B.weight"),
        (lambda x: {k: v for k, v in x.items() if "0.self_attn.q_proj" not in k}, "q_proj has no factors, which contradicts"),
        (lambda x: x | {next(iter(x)): np.full_like(x[next(iter(x))], np.nan)}, "NaN or infinite"),
        (lambda x: {}, "there are no factors"),
        # what PEFT saves beside the factors where tokens were added to the base
        (lambda x: x | {"base_model.model.model.embed_tokens.weight": np.ones((65, 36), np.float32)}, "embed_tokens.weight' is no factor"),
    ],
)  # fmt: skip
def test_every_factor_has_its_place(base, tmp_path, change, message):
    theirs(base, "all linear layers").save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / adapters.FACTORS
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "theirs")


def our_adapter(model, seed: int) -> lora.Adapter:
    adapter = lora.new_adapter(model, lora.LoraConfig(2 + seed, 4.0, seed=seed))
    return jax.tree.map(lambda x: x + 0.05 * (seed + 1), adapter)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base over bytes, another of the same sizes, and two adapters of the first."""
    root = tmp_path_factory.mktemp("ours")
    model = Llama(LlamaConfig(260, 36, 9, 3, 2, 4, 56))
    for seed, name in enumerate(("base", "other")):
        save_model(
            root / name, model.config, ByteVocabulary(), model.init(jax.random.key(seed)), {}
        )
    found = load(root / "base")
    for seed, name in ((0, "reference"), (1, "aligned")):
        adapter = our_adapter(found.model, seed)
        started = load(root / "base", lora=lora.LoraConfig(2, 4.0))
        started.save(root / name, adapter, {"made": name})
    return root


def test_a_pair_on_one_base_is_the_pair_of_merged_models(folders, tmp_path):
    """Each way to name it; the base's parameters are in memory once."""
    base, names = load(folders / "base"), ("reference", "aligned")
    for name in names:
        merged = lora.merge(base.params, load(folders / name).adapter)
        save_model(tmp_path / name, base.model.config, ByteVocabulary(), merged, {})
    expected = load(*(tmp_path / name for name in names))
    prompts = PROMPTS.replace(lam=np.full((2, 1), 0.7, np.float32))
    keys = sequence_keys(0, np.arange(2, dtype=np.int32), np.arange(3))
    tokens = lambda pair: sample(pair.model, pair.params, prompts, keys, Sampling(6)).tokens
    for pair in (
        load(*(folders / name for name in names)),
        load(folders / "base", folders / "aligned", reference=folders / "reference"),
    ):
        assert isinstance(pair.model, RealignedAdapters)
        assert [x.card["made"] for x in pair.components] == list(names)
        np.testing.assert_array_equal(tokens(pair), tokens(expected))
        table = pair.params["token_embedder"]["embedding"]
        assert all(x.base.params["token_embedder"]["embedding"] is table for x in pair.components)


@pytest.mark.slow
def test_no_adapter_means_the_base_itself(folders):
    pair = load(folders / "base", folders / "aligned")
    assert isinstance(pair.model, RealignedAdapters)
    state = pair.model.start(pair.params, PROMPTS.replace(lam=np.ones((2, 1), np.float32)), 1, 4)
    parts = pair.model.teacher_forced(pair.params, state, TOKENS).parts
    for component, logits in zip(pair.components, parts, strict=True):
        expected = our_logits(component)
        np.testing.assert_allclose(logits, expected, atol=1e-5 * expected.std())


def test_another_base_is_said(folders, capsys):
    load(folders / "other", folders / "aligned")
    said = capsys.readouterr().err
    assert "was trained on" in said and "the numbers of its card do not apply" in said
    assert str(folders / "base") in said and str(folders / "other") in said
    for dtype in ("float32", "bfloat16"):
        load(folders / "base", folders / "aligned", dtype=dtype)
    assert "do not apply" not in capsys.readouterr().err
    load(folders / "other", folders / "aligned", dtype="bfloat16")
    assert "do not apply" in capsys.readouterr().err


def test_prompts_are_those_that_the_adapter_was_trained_with(tmp_path, capsys):
    """PEFT's folders often hold a tokenizer; a base seldom has the chat template of its adapters."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    config = dataclasses.replace(tiny.LLAMA, vocab_size=512)
    save_hugging_face(base, config, None, tiny.params(Llama(config)), "float32")
    settings = (base / "config.json").read_text()
    (chat.write(base, None) / "config.json").write_text(settings)
    plain = load(base, lora=lora.LoraConfig(2, 4.0))
    plain.save(adapter, plain.adapter, {})
    assert load(adapter).encode_prompt("a", 99) == plain.encode_prompt("a", 99)
    assert "chat template" not in capsys.readouterr().err
    chat.write(adapter, "chatml")
    (adapter / "config.json").unlink()
    found = load(adapter)
    assert "the adapter's own chat template, not the base's" in capsys.readouterr().err
    expected = found.encode_prompt("a", 99)
    assert found.chat_template == chat.CHATML and expected != plain.encode_prompt("a", 99)
    assert found.tokenizer.end_id in found.model.end_ids
    assert load(base, adapter).encode_prompt("a", 99) == expected
    found.save(tmp_path / "further", found.adapter, {})
    assert load(tmp_path / "further").encode_prompt("a", 99) == expected

    tokenizer = tokenizers.Tokenizer.from_file(str(adapter / "tokenizer.json"))
    tokenizer.add_tokens(["<added>"])
    tokenizer.save(str(adapter / "tokenizer.json"))
    with pytest.raises(ValueError, match="differ at id .*'<added>' in .*adapter, no such id in"):
        load(adapter)


@pytest.mark.parametrize("order", [("base", "reference"), ("reference", "base")])
def test_a_component_may_be_the_base_itself(folders, order):
    reference, aligned = order
    pair = load(folders / "base", folders / aligned, reference=folders / reference)
    assert isinstance(pair.model, RealignedAdapters)
    assert [x.adapter is None for x in pair.components] == [x == "base" for x in order]


def test_a_reference_that_is_no_adapter_is_refused(folders):
    with pytest.raises(ValueError, match="other is no LoRA adapter: it has no adapter_config.json"):
        load(folders / "base", folders / "aligned", reference=folders / "other")
    with pytest.raises(ValueError, match="load.reference is for a pair"):
        load(folders / "base", reference=folders / "aligned")
    with pytest.raises(ValueError, match="which is trained further: set LORA = None"):
        load(folders / "aligned", lora=lora.LoraConfig(2, 4.0))
