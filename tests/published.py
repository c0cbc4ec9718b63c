"""Small random reward models in folders of transformers, policies, and the scores of transformers."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import transformers

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.models.llama_lm import Llama
from tests import tiny
from tests.checkpoints import chat

ROWS = 512  # of the embedding, more than the tokenizer has ids
CONFIG = dataclasses.replace(tiny.LLAMA, vocab_size=ROWS)
END = chat.byte_level().token_to_id("</s>")
SIZES = {
    "vocab_size": ROWS, "hidden_size": 36, "head_dim": 8, "num_attention_heads": 9,
    "num_key_value_heads": 3, "num_hidden_layers": 2, "intermediate_size": 56, "num_labels": 1,
}  # fmt: skip
# Model type, style of the chat template, and further entries of config.json. In all but the first,
# batches are padded with a token that occurs in conversations too.
FAMILIES = {
    "llama": ("llama_3", {"pad_token_id": 0}),
    "mistral": ("mistral", {"pad_token_id": END, "sliding_window": 9}),
    "qwen2": ("qwen", {"pad_token_id": chat.byte_level().token_to_id("<|im_end|>")}),
    "qwen3": ("chatml", {"pad_token_id": chat.byte_level().token_to_id("a")}),
}


def published(folder: Path, family: str, style: str | None = None, **changed) -> Path:
    """A folder with random parameters; the norms are not 1."""
    its_style, more = FAMILIES[family]
    chat.write(folder, style or its_style)
    kind = type(transformers.AutoConfig.for_model(family))
    config = kind(**SIZES | more | changed, rope_theta=100.0, rms_norm_eps=1e-3)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(0.2, 2) if weight.ndim == 1 else weight.normal_(0, 0.25)
    model.save_pretrained(folder)
    return folder


def policy(folder: Path, style: str | None) -> Path:
    save_hugging_face(folder, CONFIG, None, tiny.params(Llama(CONFIG)), "float32")
    content = (folder / "config.json").read_text()
    chat.write(folder, style)
    (folder / "config.json").write_text(content)
    return folder


def conversation(folder: Path, document: str, text: str) -> list[int]:
    """The ids of transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": document}, {"role": "assistant", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def scores_of_transformers(folder: Path, sequences: list[list[int]]) -> np.ndarray:
    """In one batch with padding on the right, which transformers finds by its id."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    padding = model.config.pad_token_id
    longest = max(map(len, sequences))
    ids = torch.tensor([x + [padding] * (longest - len(x)) for x in sequences])
    mask = torch.tensor([[1] * len(x) + [0] * (longest - len(x)) for x in sequences])
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits[:, 0].numpy()
