"""What ends the sequences of decoder-only models, and chat templates in models' folders."""

import dataclasses
import json

import pytest
import transformers

from dera_jax.checkpoints.convert import convert
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.checkpoints.sampling_fields import FIELDS, effective
from dera_jax.models.llama_lm import Llama
from dera_jax.prompts import Prompt
from tests.checkpoints import chat
from tests.tiny import LLAMA, params

NAMES = ("config.json", "generation_config.json")


def model(folder, style="qwen", rows=512, ends=(None, None), **generation):
    """A folder of transformers with random parameters and the end ids of config.json and generation_config.json."""
    config = dataclasses.replace(LLAMA, vocab_size=rows)
    save_hugging_face(folder, config, None, params(Llama(config)), "float32")
    described = [json.loads((folder / name).read_text()) for name in NAMES]
    chat.write(folder, style)
    for name, content, end in zip(NAMES, described, ends, strict=True):
        content["eos_token_id"] = end
        (folder / name).write_text(json.dumps(content))
    if generation:
        (folder / NAMES[1]).write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("style", "ends", "expected"),
    [
        ("qwen", (None, None), ("<|endoftext|>", "<|im_end|>")),  # a base model
        ("qwen", ("<|endoftext|>", None), ("<|endoftext|>", "<|im_end|>")),
        ("llama_3", (["</s>", "<|eot_id|>"], "</s>"), ("</s>", "<|eot_id|>", "<|endoftext|>")),
        ("zephyr", ("</s>", None), ("</s>",)),
        ("chatml", ("<|endoftext|>", ["<|im_end|>"]), ("<|endoftext|>", "<|im_end|>")),
        (None, ("<s>", None), ("<s>", "</s>")),
    ],
)
def test_end_ids_are_all_that_the_files_name(tmp_path, style, ends, expected):
    id_of = chat.byte_level().token_to_id
    as_ids = lambda x: x and ([*map(id_of, x)] if isinstance(x, list) else id_of(x))
    loaded = load(model(tmp_path / "m", style, ends=tuple(map(as_ids, ends))))
    assert loaded.model.end_ids == tuple(map(id_of, expected))
    assert loaded.encode_completion("a")[-1] == id_of(chat.ENDS[style][1] if style else "</s>")
    assert loaded.tokenizer.end_id in loaded.model.end_ids


def test_folders_keep_the_template(tmp_path):
    source = model(tmp_path / "m", "llama_3")
    prompt = Prompt("say it", "Please {document}", system="be brief")
    loaded = load(source)
    expected = loaded.encode_prompt(prompt, 999)
    convert(str(source), str(tmp_path / "ours"), "dera_jax")
    convert(str(tmp_path / "ours"), str(tmp_path / "theirs"), "hugging_face")
    pair = load(source, tmp_path / "ours")
    for found in (load(tmp_path / "ours"), load(tmp_path / "theirs"), pair):
        assert found.encode_prompt(prompt, 999) == expected
        assert found.model.end_ids == loaded.model.end_ids
        assert found.encode_completion("a") == loaded.encode_completion("a")
    saved = load(tmp_path / "theirs").tokenizer.chat_template
    assert saved.source == chat.LLAMA_3 and saved.begin == "<s>"
    (tmp_path / "ours" / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"ours/chat_template.jinja.*utf-8"):
        load(tmp_path / "ours")


def test_ids_beyond_the_model_are_refused_by_name(tmp_path):
    with pytest.raises(
        ValueError, match=r"need the ids 3 \('<\|im_start\|>'\), 4 .*model has 3 ids"
    ):
        load(model(tmp_path / "m", "qwen", rows=3))


def test_sampling_fields_of_a_checkpoint_are_named_and_not_applied(tmp_path, capsys):
    """Those that a run can set, and those that nothing here can apply."""
    fields = {"top_p": 0.8, "top_k": 20, "temperature": 1.0, "min_p": 0.1, "suppress_tokens": [1]}
    load(model(tmp_path / "m", repetition_penalty=1.05, **fields))
    printed = capsys.readouterr().err
    assert (
        "generation_config.json: top_k 20, top_p 0.8: not applied; set them in the run" in printed
    )
    unsupported = "min_p 0.1, repetition_penalty 1.05, suppress_tokens [1]"
    assert f"{unsupported}: not applied, and not supported" in printed
    load(model(tmp_path / "n", repetition_penalty=1.0, top_p=1.0, temperature=None, num_beams=1))
    assert "not applied" not in capsys.readouterr().err


def test_the_fields_are_those_of_transformers():
    """Each exists there, and has no effect by default."""
    default = transformers.GenerationConfig()
    unknown = {x for x in FIELDS if not hasattr(default, x)}
    assert not unknown & set(FIELDS) - {"top_h"}
    assert not effective(default.to_dict() | {"temperature": 1.0})


@pytest.mark.parametrize("config", [{"pad_token_id": -1}, {"pad_token_id": 0}])
def test_a_decoder_only_model_needs_no_padding_id(tmp_path, config):
    """Llama 1 has −1, and two files may disagree."""
    folder = model(tmp_path / "m", pad_token_id=3)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | config))
    assert load(folder).model.vocab_size


def test_rewards_know_what_ends_an_answer(tmp_path):
    loaded = load(model(tmp_path / "m", "qwen"))
    end = loaded.encode_completion("a")[-1]
    assert RunResources(loaded.vocabulary, loaded.chat_template).end_id == end
    assert RunResources.of(loaded.tokenizer).end_id == end
    assert RunResources(loaded.vocabulary).end_id == loaded.vocabulary.end_id != end
