"""Reward models that transformers wrote, against transformers on the same conversations."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from dera_jax.checkpoints import text_reward
from dera_jax.checkpoints.learned_rewards import reward_model
from dera_jax.checkpoints.loading import load, read_value_head
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.resources import DryRunResources, RunResources
from dera_jax.log import clear_logged_warnings
from dera_jax.models.heads import LAST, Pooling, ValueHead
from dera_jax.models.language_model import Prompts, pad_sequences
from dera_jax.models.llama_lm import Llama
from dera_jax.models.lora import LoraConfig
from dera_jax.rewards.learned import RewardModel
from dera_jax.rewards.protocol import Source
from tests import tiny
from tests.checkpoints import chat
from tests.published import (
    CONFIG,
    END,
    FAMILIES,
    ROWS,
    conversation,
    policy,
    published,
    scores_of_transformers,
)

DOCUMENTS = ["How many foxes\n are there? 12345", "日本 🙂🙂, they're here", ""]
TEXTS = [
    ["one fox.", "the lazy dog isn't 3 foxes 🙂", "a"],
    ["", "日本語 dog", "no:  no"],
    ["it", "b", "over"],
]


def assert_scores(found, expected) -> None:
    found, expected = (np.asarray(x).reshape(-1) for x in (found, expected))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_reward_model_scores_as_transformers(family, tmp_path, capfd):
    """Of the policy's ids: its prompt, and an output with and without its end token."""
    folder = published(tmp_path / "reward", family)
    model = load(policy(tmp_path / "policy", FAMILIES[family][0]))
    reward = reward_model(str(folder), str(tmp_path / "policy"))
    assert isinstance(reward, RewardModel) and "in the compiled program" in capfd.readouterr().err
    params = reward.load(RunResources.of(model.tokenizer))
    prompts = [model.encode_prompt(x, 99).ids for x in DOCUMENTS]
    outputs = [[model.encode_completion(x) for x in texts] for texts in TEXTS]
    sequences = [
        conversation(folder, d, x) for d, row in zip(DOCUMENTS, TEXTS, strict=True) for x in row
    ]
    for row in outputs:
        row[2].pop()  # as if the length limit had cut off the output before its end token
    tokens, lengths = pad_sequences([x for row in outputs for x in row], 64)
    finished = np.arange(9).reshape(3, 3) % 3 != 2
    source = Source(Prompts(*pad_sequences(prompts, 128)))
    arguments = source, tokens.reshape(3, 3, -1), lengths.reshape(3, 3), finished
    found = jax.jit(reward.__call__)(params, *arguments)
    assert_scores(found, scores_of_transformers(folder, sequences))


@pytest.mark.parametrize(
    ("family", "style", "policy_style", "reason"),
    [
        ("llama", "zephyr", "chatml", "have different chat templates"),
        ("mistral", "mistral", None, "have different chat templates"),
        ("qwen2", "qwen", "zephyr", "have different chat templates"),
        ("qwen3", "qwen_3", "qwen_3", "does not continue a prompt|have other ids"),
    ],
)
def test_a_reward_model_that_reads_text_scores_as_transformers(
    family, style, policy_style, reason, tmp_path, capfd
):
    folder = published(tmp_path / "reward", family, style)
    reward = reward_model(str(folder), str(policy(tmp_path / "policy", policy_style)))
    said = capfd.readouterr().err
    assert "reads texts with its own tokenizer" in said
    assert any(x in said for x in reason.split("|"))
    reward.load(DryRunResources(ROWS))
    found = reward.score(DOCUMENTS, TEXTS)
    sequences = [
        conversation(folder, d, x) for d, row in zip(DOCUMENTS, TEXTS, strict=True) for x in row
    ]
    assert_scores(found, scores_of_transformers(folder, sequences))
    # Another order, number of texts and repeated documents: the same scores, and one more program.
    programs = text_reward._score._cache_size()
    order = [4, 3, 8, 0, 1, 1]
    flat = [(d, x) for d, row in zip(DOCUMENTS, TEXTS, strict=True) for x in row]
    again = reward.fn(*zip(*[flat[i] for i in order], strict=True))
    np.testing.assert_allclose(again, found.reshape(-1)[order], atol=1e-5)
    assert text_reward._score._cache_size() <= programs + 1
    reward.score([x + "!" for x in DOCUMENTS], [[x + "." for x in row] for row in TEXTS])
    assert text_reward._score._cache_size() <= programs + 1


def test_a_text_of_control_tokens_is_a_text(tmp_path):
    """As the prompts of policies are: transformers would close the turn."""
    folder = published(tmp_path / "reward", "qwen2")
    scorer = text_reward.TextScorer(str(folder), 999)
    ids = scorer._conversation("say <|im_end|> now", "<|im_end|> now")
    end = chat.byte_level().token_to_id("<|im_end|>")
    assert ids.count(end) < conversation(folder, "say <|im_end|> now", "<|im_end|> now").count(end)


def test_a_long_document_is_cut_inside_and_an_answer_is_not(tmp_path, caplog):
    folder = published(tmp_path / "reward", "qwen2")
    clear_logged_warnings()
    text = text_reward.TextScorer(str(folder), 999).tokenizer
    document, answer = "the quick brown fox " * 30, "jumps over the lazy dog."
    whole = text.encode_conversation(document, answer, 999).ids
    short = text.encode_conversation(document, answer, 90)
    assert len(short.ids) == 90 and short.cut == len(whole) - 90 > 0
    start = next(i for i, (a, b) in enumerate(zip(whole, short.ids, strict=False)) if a != b)
    assert whole[-(90 - start) :] == short.ids[start:]
    assert answer in text.decode(short.ids) and "You are Qwen" in text.decode(short.ids)
    with pytest.raises(
        ValueError, match="tokens without its document, and may have 20; the answer beg"
    ):
        text.encode_conversation(document, answer, 20)
    assert len(text_reward.TextScorer(str(folder), 90)([document], [answer])) == 1
    assert "documents are truncated for the reward model, the first by" in caplog.text


def edited(folder: Path, arrays=lambda x: x, **settings) -> str:
    file = folder / "config.json"
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({k: x for k, x in content.items() if x is not None}))
    file = folder / "model.safetensors"
    stored = arrays(safetensors.torch.load_file(file))
    safetensors.torch.save_file(stored, file, {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        (None, {"id2label": {"0": "a", "1": "b"}}, "config.json: the classifier has 2 labels"),
        (
            None,
            {"id2label": None},
            "config.json: the classifier has 2 labels .* if there are neither",
        ),
        (None, {"num_labels": 3}, "config.json: num_labels is 3, but id2label has 1 entries"),
        (None, {"pad_token_id": [3]}, r"config.json: pad_token_id is \[3\]; it must be one id"),
        (
            None,
            {"architectures": ["T5ForSequenceClassification"]},
            "T5For.* supported reward models are Ll",
        ),
        (None, {"architectures": ["LlamaForCausalLM"]}, "the parameters lack 'lm_head.weight'"),
        ({"score.bias": torch.ones(1)}, {}, "no place for 'score.bias'"),
        ({"lm_head.weight": torch.ones(ROWS, 36)}, {}, "no place for 'lm_head.weight'"),
        ({"score.weight": torch.ones(2, 36)}, {}, "head/kernel"),
        ({"score.weight": None}, {}, "the parameters lack 'score.weight'"),
    ],
)
def test_what_is_no_reward_model_is_refused(arrays, settings, message, tmp_path):
    folder = published(tmp_path, "llama")
    change = lambda x: {k: v for k, v in (x | (arrays or {})).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        read_value_head(edited(folder, change, **settings))


def test_a_reward_model_is_no_policy_and_needs_its_pooling(tmp_path):
    folder = published(tmp_path / "reward", "mistral")
    with pytest.raises(ValueError, match="holds a reward model"):
        load(folder)
    model = load(policy(tmp_path / "policy", "mistral"))
    head = read_value_head(folder)
    assert head.pooling == Pooling(LAST, END)
    mean = RewardModel(ValueHead(head.trunk), str(folder))
    with pytest.raises(
        ValueError, match="reward model with Pooling.*'last'.* is used with .*'mean'"
    ):
        mean.load(RunResources.of(model.tokenizer))
    # Without a policy the difference is found when the run loads the reward.
    other = load(policy(tmp_path / "other", "zephyr"))
    with pytest.raises(ValueError, match="different chat templates; name the policy"):
        reward_model(str(folder)).load(RunResources.of(other.tokenizer))


def test_an_added_padding_token_is_no_other_vocabulary(tmp_path, capfd):
    folder = published(tmp_path / "reward", "llama")
    built = chat.byte_level()
    built.add_special_tokens(["[PAD]"])
    built.save(str(folder / "tokenizer.json"))
    path = policy(tmp_path / "policy", "llama_3")
    reward = reward_model(str(folder), str(path))
    assert isinstance(reward, RewardModel)
    reward.load(RunResources.of(load(path).tokenizer))
    # A policy that has it can produce an id that the reward model does not know.
    built.save(str(path / "tokenizer.json"))
    (published(tmp_path / "again", "llama"), capfd.readouterr())
    assert isinstance(reward_model(str(tmp_path / "again"), str(path)), text_reward.TextRewardModel)
    assert "'[PAD]' in" in capfd.readouterr().err


@pytest.mark.parametrize("pooling", [Pooling(), Pooling(LAST, 2)])
def test_a_folder_of_ours_keeps_the_pooling(pooling, tmp_path):
    path = policy(tmp_path / "base", "chatml")
    model, adapted = load(path), load(path, lora=LoraConfig(1, 2.0, ("query",)))
    for i, origin in enumerate((model, adapted)):
        params = ValueHead(origin.model).init(origin.trainable)
        origin.save(tmp_path / f"{i}", params, {}, pooling=pooling)
        assert read_value_head(tmp_path / f"{i}").pooling == pooling
        reward = reward_model(str(tmp_path / f"{i}"), str(path))
        assert isinstance(reward, RewardModel)
        reward.load(RunResources.of(model.tokenizer))


def test_earlier_folders_of_ours_are_means(tmp_path):
    head = ValueHead(Llama(CONFIG))
    save_model(tmp_path / "m", CONFIG, None, head.init(tiny.params(head.trunk)), {})
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"head": "scalar"}))
    assert read_value_head(tmp_path / "m").pooling == Pooling("mean")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"head": {"kind": "last"}}))
    with pytest.raises(ValueError, match="'head' has no key 'padding_id'"):
        read_value_head(tmp_path / "m")


def test_a_model_that_was_trained_here_reads_prompts_and_completions(tmp_path):
    """As text too: the mean over the prefixes of the completion, its end token included."""
    path = policy(tmp_path / "base", "chatml")
    base = load(path)
    head = ValueHead(base.model)
    params = head.init(base.params)
    params["head"]["kernel"] = jnp.linspace(-1, 1, CONFIG.emb_dim)
    base.save(tmp_path / "m", params, {})
    reward = reward_model(str(tmp_path / "m"), str(policy(tmp_path / "other", "zephyr")))
    reward.load(DryRunResources(ROWS))
    found = reward.score(DOCUMENTS[:2], TEXTS[:2])
    prompts = Prompts(*pad_sequences([base.encode_prompt(x, 99).ids for x in DOCUMENTS[:2]], 99))
    completions = [base.encode_completion(x) for row in TEXTS[:2] for x in row]
    tokens = pad_sequences(completions, 32)[0].reshape(2, 3, -1)
    values = np.asarray(jax.jit(head.values)(params, prompts, tokens)).reshape(6, -1)
    expected = [x[: len(ids) + 1].mean() for x, ids in zip(values, completions, strict=True)]
    np.testing.assert_allclose(found.reshape(-1), expected, atol=1e-4)
