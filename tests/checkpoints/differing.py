"""Folders of small decoder-only models whose tokenizers, templates, end ids and tables differ."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.models.llama_lm import Llama
from tests import tiny
from tests.checkpoints import chat

IDS = 300  # of the base
SPECIAL = ("<pad>", "<s>", "</s>", "<tool>")
END, TOOL = SPECIAL.index("</s>"), SPECIAL.index("<tool>")
CHAT = ("<|im_start|>", "<|im_end|>")  # ids 300 and 301 of instruct models
CONFIG = dataclasses.replace(tiny.LLAMA, num_layers=1)

Edit = Callable[[dict], None]  # of the content of a tokenizer.json


def base_tokenizer() -> tokenizers.Tokenizer:
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=IDS,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(chat.CORPUS * 4, trainer)
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return built


def write(
    folder: Path,
    added: tuple[str, ...] = (),
    rows: int = IDS,
    template: str | None = None,
    ends: int | list[int] = END,
    edit: Edit = lambda content: None,
    **named: object,
) -> Path:
    """Write a model's folder; the rows of its output table from `IDS` on give by far the largest logits.

    Args:
        folder: folder to create.
        added: special tokens that are added to the base's.
        rows: of the tables.
        template: chat template.
        ends: eos_token_id of config.json.
        edit: a change of tokenizer.json.
        named: entries of tokenizer_config.json.
    """
    config = dataclasses.replace(CONFIG, vocab_size=rows)
    params = tiny.params(Llama(config), seed=len(folder.name))
    kernel = params["logits"]["kernel"]
    params = params | {"logits": {"kernel": kernel.at[:, IDS:].multiply(30.0)}}
    save_hugging_face(folder, config, None, params, "float32")
    built = base_tokenizer()
    built.add_special_tokens(list(added))
    content = json.loads(built.to_str())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>", "unk_token": None}
    names |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    names |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | named))
    for name in ("config.json", "generation_config.json"):
        described = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(described | {"eos_token_id": ends}))
    return folder


def without_tool(content: dict) -> None:
    """Remove a token, whose id no other token gets."""
    del content["model"]["vocab"]["<tool>"]
    content["added_tokens"] = [x for x in content["added_tokens"] if x["content"] != "<tool>"]


def with_tool_elsewhere(content: dict) -> None:
    """Give a token another id."""
    content["model"]["vocab"]["<tool>"] = IDS + 5
    next(x for x in content["added_tokens"] if x["content"] == "<tool>")["id"] = IDS + 5


def with_fewer_merges(content: dict) -> None:
    content["model"]["merges"] = content["model"]["merges"][:5]


def with_normalizer(content: dict) -> None:
    content["normalizer"] = {"type": "NFC"}
