"""Chat templates in the styles of published models, and a small byte-level tokenizer for them."""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SPECIAL = (
    "<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
)  # fmt: skip
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0].role == "system" %}
    {%- set system_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
    {%- endif %}
    {%- if message.role == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message.content + " [/INST]" }}
        {%- else %}
            {{- "[INST] " + message.content + " [/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message.content + eos_token}}
    {%- endif %}
{%- endfor %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
QWEN = """{%- if tools %}{{- raise_exception("no tools here") }}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- generation %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endgeneration %}
    {%- else %}{%- continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
QWEN_3 = """{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
TEMPLATES = {
    "chatml": CHATML, "llama_3": LLAMA_3, "mistral": MISTRAL, "zephyr": ZEPHYR, "qwen": QWEN,
    "qwen_3": QWEN_3,
}  # fmt: skip
ENDS = {  # eos_token and the token that ends an answer
    "chatml": ("<|im_end|>", "<|im_end|>"),
    "llama_3": ("<|endoftext|>", "<|eot_id|>"),
    "mistral": ("</s>", "</s>"),
    "zephyr": ("</s>", "</s>"),
    "qwen": ("<|endoftext|>", "<|im_end|>"),
    "qwen_3": ("<|im_end|>", "<|im_end|>"),
}
CORPUS = (
    "user assistant system You are a helpful AI assistant. Today Date: they're 12345 numbers",
    "the quick brown fox jumps over the lazy dog.\n\n It isn't   there;\tno: \n café 日本語",
    "<|user|>\n<|assistant|>\n [INST] say it [/INST] <think>\n\n</think>\n\n",
)


def byte_level(ignore_merges: bool = False) -> tokenizers.Tokenizer:
    """As Llama 3's and Qwen's: digits by themselves, words with the space before them."""
    built = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=470,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(CORPUS * 4, trainer)
    built.add_tokens(["<think>", "</think>"])
    return built


def write(folder: Path, style: str | None, adds_begin: bool = False, **config: object) -> Path:
    """Write the tokenizer's folder of a model whose chat template has a style; None for no template."""
    folder.mkdir(parents=True, exist_ok=True)
    built = byte_level()
    if adds_begin:
        built.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", built.token_to_id("<s>"))]
        )
    built.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "pad_token": "<|endoftext|>", "unk_token": None}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    if style:
        named |= {"chat_template": TEMPLATES[style], "eos_token": ENDS[style][0]}
    else:
        named |= {"eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def texts(number: int, seed: int = 0) -> list[str]:
    """Random texts with words, emoji, Chinese, control characters, digits, and spaces anywhere."""
    pieces = [
        *CORPUS[0].split(), *CORPUS[1].split(" "), " ", "  ", "\n", "\n\n", "\t", "\r\n", "\x00", "\x1b",
        "🙂", "👩‍👧", "日本", "語", "ﬁ", "é", "e\u0301", "1", "23", "4567", ".", "!=", "'s", "<", ">", "|",
        "▁", "\u200b", "\u3000", "</", "s>", "<|im", "_end|>", "[", "INST", "ب", "\ufffd",
    ]  # fmt: skip
    draw = random.Random(seed)
    return ["".join(draw.choices(pieces, k=draw.randint(0, 9))) for _ in range(number)]
