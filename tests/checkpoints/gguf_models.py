"""GGUF files of small random models, written by the package `gguf` as llama.cpp's converter does."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

from tests.checkpoints import chat

KINDS = gguf.GGMLQuantizationType
ALL = slice(None)
END = chat.SPECIAL.index("<|im_end|>")
NUM_TOKENS, UNUSED = (
    chat.byte_level().get_vocab_size(),
    8,
)  # further rows of the table have no token
SIZES = {
    "vocab_size": NUM_TOKENS + UNUSED, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-3,
    "bos_token_id": 1, "eos_token_id": END, "pad_token_id": None,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
FAMILIES = {  # class and settings in transformers, general.architecture
    "llama": (transformers.LlamaConfig, {"rope_theta": 500.0}, "llama"),
    "llama with a head for each key": (
        transformers.LlamaConfig, {"head_dim": 16, "num_key_value_heads": 4}, "llama",
    ),
    "llama 3": (transformers.LlamaConfig, {"rope_parameters": LLAMA_3, "head_dim": 64}, "llama"),
    "smollm2": (
        transformers.LlamaConfig, {"rope_theta": 1e5, "head_dim": 16, "tie_word_embeddings": True}, "llama",
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": 4}, "llama"),
    "qwen2": (transformers.Qwen2Config, {}, "qwen2"),
    "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": True}, "qwen3"),
}  # fmt: skip


@functools.cache
def network(name: str) -> torch.nn.Module:
    """A random model whose norms are not 1 and whose biases are not 0."""
    kind, changes, _ = FAMILIES[name]
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(kind(**SIZES | changes)).eval()
    with torch.no_grad():
        for x in made.parameters():
            torch.nn.init.uniform_(x, 0.2, 2) if x.ndim == 1 else torch.nn.init.normal_(x, std=0.25)
    return made


def write_model(path: Path, name: str, quantized: KINDS | None = None, **changes: object) -> Path:
    """Write a model of a family with changes to its fields; `quantized` is the type of all matrices."""
    _, _, kind = FAMILIES[name]
    tensors = {
        key: _stored(array, quantized if array.ndim == 2 else None)
        for key, array in tensors_of(name).items()
    }
    return write(path, kind, fields_of(name) | tokenizer_fields() | changes, tensors)


def write(
    path: Path, kind: str, fields: Mapping, tensors: Mapping, alignment: int = 32, **options: object
) -> Path:
    """Write fields and tensors, each an array or bytes with their type; None leaves one out."""
    writer = gguf.GGUFWriter(path, kind, **options)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for key, value in tensors.items():
        if value is not None:
            array, stored_as = value if isinstance(value, tuple) else (value, None)
            writer.add_tensor(key, array, raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fields_of(name: str) -> dict[str, object]:
    """The metadata of a family's model, without those of the tokenizer."""
    _, _, kind = FAMILIES[name]
    config = network(name).config
    fields = {
        "context_length": 128,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    if config.num_key_value_heads != config.num_attention_heads:
        fields["attention.head_count_kv"] = config.num_key_value_heads
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        fields["attention.key_length"] = fields["attention.value_length"] = config.head_dim
    if name == "mistral":
        fields["attention.sliding_window"] = config.sliding_window
    return {f"{kind}.{key}": value for key, value in fields.items()}


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """The parameters of a family's model, as the converter names and permutes them."""
    _, _, kind = FAMILIES[name]
    model = network(name)
    architecture = {x: y for y, x in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    found = {}
    for key, x in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = x.numpy()
        if kind == "llama" and (".q_proj." in key or ".k_proj." in key):
            array = interleaved(array, model.config.head_dim)
        found[names.get_name(key, try_suffixes=(".weight", ".bias"))] = array
    if "factor" in model.config.rope_parameters:
        found["rope_freqs.weight"] = rope_divisors(model.config)
    return found


def interleaved(array: np.ndarray, head_dim: int) -> np.ndarray:
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    return array.reshape(-1, 2, head_dim // 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def rope_divisors(config: transformers.LlamaConfig) -> np.ndarray:
    """`generate_extra_tensors` of convert_hf_to_gguf.py."""
    rope, dim = config.rope_parameters, config.head_dim
    freqs = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context, factors = rope["original_max_position_embeddings"], []
    for freq in freqs:
        wavelen = 2 * np.pi / freq
        if wavelen < context / high:
            factors.append(1)
        elif wavelen > context / low:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelen - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def tokenizer_fields(pre: str = "qwen2") -> dict[str, object]:
    """The metadata of a byte-level BPE; <think> is a user-defined token, as in Qwen 3."""
    described = json.loads(chat.byte_level().to_str())
    pieces = dict(described["model"]["vocab"])
    types = dict.fromkeys(pieces, gguf.TokenType.NORMAL)
    for token in described["added_tokens"]:
        pieces[token["content"]] = token["id"]
        special = token["special"]
        types[token["content"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    padding = [f"[PAD{len(pieces) + i}]" for i in range(UNUSED)]
    order = sorted(pieces, key=pieces.get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": order + padding,
        "tokenizer.ggml.token_type": [int(types[x]) for x in order]
        + [int(gguf.TokenType.UNUSED)] * UNUSED,
        "tokenizer.ggml.merges": [" ".join(x) for x in described["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": chat.CHATML,
    }


def _stored(array: np.ndarray, kind: KINDS | None) -> np.ndarray | tuple[np.ndarray, KINDS]:
    return array if kind is None else (gguf.quantize(array, kind), kind)
