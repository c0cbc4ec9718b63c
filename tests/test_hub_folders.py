"""Folders as on the hub run through `sweep`, DeAL, DARWIN and DPO from the gin files that ship.

Two Llama folders, a base model and an instruct model, and one Mistral folder, which transformers
writes. Only paths change, apart from `STEPS`. The Mistral's aligned model is the one that DPO made.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from dera_jax import main
from dera_jax.evaluation import record_store
from dera_jax.training import metric_log
from tests.checkpoints import chat

SIZES = {
    "vocab_size": 512, "hidden_size": 36, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
WINDOW = 16  # of the Mistral, shorter than its prompts
STEPS = {"PAIRS_STEPS": 30, "PAIRS_EVAL_PERIOD": 10}
REWARD = "rewards/faithfulness"
FAMILIES = ("llama", "mistral")


def write(
    folder: Path, config: transformers.PretrainedConfig, style: str | None, ends: list[str]
) -> str:
    """Write a model with random weights in several files; `ends` are its end tokens."""
    chat.write(folder, style, adds_begin=True)
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    generator = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for x in network.parameters():
            drawn = torch.randn(x.shape, generator=generator) / 4
            x.copy_(1 + drawn if x.ndim == 1 else drawn)
    network.generation_config = transformers.GenerationConfig(
        eos_token_id=[chat.SPECIAL.index(x) for x in ends], **SAMPLING
    )
    network.save_pretrained(folder, max_shard_size="100kB")
    return str(folder)


def write_texts(folder: Path) -> dict[str, str]:
    """Write files of documents with preference pairs; returns the paths by TRAIN and so on."""
    draw = random.Random(0)
    sentences = lambda *sizes: " ".join(
        f"{' '.join(draw.choices(chat.CORPUS[0].split(), k=n))}." for n in sizes
    )
    written = {}
    for split, number in (("train", 16), ("validation", 8), ("test", 3)):
        rows = [
            {"document": sentences(4, 3, 4), "chosen": sentences(2), "rejected": sentences(8)}
            for _ in range(number)
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        written[split.upper()] = str(path)
    return written


def run(out: Path, *files: str, **macros: object) -> Path:
    arguments = [f"--gin_file=gin_configs/{file}.gin" for file in files]
    macros["MODEL_DIR"] = str(out)
    main.main([*arguments, *(f"--gin.{name}={value!r}" for name, value in macros.items())])
    return out


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def texts(root) -> dict[str, str]:
    return write_texts(root)


@pytest.fixture(scope="module")
def folders(root) -> dict[str, str]:
    llama = transformers.LlamaConfig(**SIZES, dtype="bfloat16")
    mistral = transformers.MistralConfig(**SIZES, sliding_window=WINDOW, dtype="float32")
    return {
        "base": write(root / "base", llama, None, ["<|endoftext|>"]),
        "instruct": write(root / "instruct", llama, "llama_3", ["<|endoftext|>", "<|eot_id|>"]),
        "mistral": write(root / "mistral", mistral, "mistral", ["</s>"]),
    }


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def dpo(family, folders, root, texts) -> Path:
    start = folders["mistral" if family == "mistral" else "base"]
    return run(root / f"{family} dpo", "runs/dpo", REFERENCE=start, **texts, **STEPS)


@pytest.fixture(scope="module")
def pair(family, folders, texts, request) -> dict[str, str]:
    if family == "llama":
        models = {"REFERENCE": folders["base"], "ALIGNED": folders["instruct"]}
    else:
        best = request.getfixturevalue("dpo") / "best"
        models = {"REFERENCE": folders["mistral"], "ALIGNED": str(best)}
    return models | {"TEST": texts["TEST"]}


def test_dpo(dpo):
    reports = metric_log.read(dpo)
    losses = [x["training/loss"] for x in reports if "training/loss" in x]
    assert losses[-1] < losses[0] and losses[-1] < 0.9 * math.log(2)
    assert 0 < result(dpo)["test"]["loss"] < math.inf



def templated(tokenizer, document: str) -> list[int]:
    """The prompt's ids as transformers makes them."""
    message = {"role": "user", "content": f"summarize: {document}"}
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    return tokenizer.apply_chat_template([message], **options)


def their_log_prob(network, tokenizer, document: str, tokens: list[int]) -> float:
    """The log-probability of an output under transformers' model, over the tokenizer's ids."""
    prompt = templated(tokenizer, document)
    assert len(prompt) > WINDOW
    with torch.no_grad():
        logits = network(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    log_probs = torch.log_softmax(logits[:, : len(tokenizer)].float(), -1)
    return log_probs[torch.arange(len(tokens)), tokens].sum().item()


def check_texts(records: list[dict], tokenizer) -> None:
    for record in records:
        for sample in record["samples"]:
            ids = sample["tokens"][: sample["length"]]
            assert sample["text"] == tokenizer.decode(ids, skip_special_tokens=True)


def theirs(folder: str):
    """Model and tokenizer of a folder in transformers, computing in float32."""
    read = transformers.AutoModelForCausalLM, transformers.AutoTokenizer
    network, tokenizer = (x.from_pretrained(folder) for x in read)
    return network.float(), tokenizer


def test_sweep(family, pair, folders, tmp_path):
    out = run(tmp_path / "sweep", "runs/sweep", REWARD, **pair)
    rows, records = result(out)["lambda"], record_store.read(out)
    assert np.isfinite([list(row.values()) for row in rows]).all()
    kl = {row["lam"]: row["kl"] for row in rows}
    assert kl[0] == 0 < kl[0.25] < kl[0.5] < kl[0.75] < kl[1]
    network, _ = theirs(pair["REFERENCE"])
    _, tokenizer = theirs(folders["instruct" if family == "llama" else "mistral"])
    check_texts(records, tokenizer)
    for record in records:
        for sample in record["samples"]:
            ref = their_log_prob(network, tokenizer, record["document"], sample["tokens"])
            print(sample["lam"], ref, sample["part_log_probs"])


def methods(out: Path) -> dict[str, dict]:
    rows = {row.pop("method"): row for row in result(out)["methods"]}
    assert np.isfinite([list(row.values()) for row in rows.values()]).all()
    return rows


def test_deal(family, pair, folders, tmp_path):
    out = run(tmp_path / "deal", "runs/beam_search", REWARD, **pair)
    rows = methods(out)
    assert rows["DeAL"]["reward"] > rows["beam search"]["reward"]
    tokenizer = theirs(folders["instruct" if family == "llama" else "mistral"])[1]
    for name in ("greedy", "beam_search", "deal"):
        check_texts(record_store.read(out / "methods" / name), tokenizer)


def test_darwin(family, pair, folders, tmp_path):
    out = run(tmp_path / "darwin", "runs/evolution", REWARD, **pair)
    methods(out)
    records = record_store.read(out / "methods" / "darwin")
    check_texts(records, theirs(folders["instruct" if family == "llama" else "mistral"])[1])
    for record in records:
        trace = record["evolution"]
        found = [x for generation in trace["generations"] for x in generation["rewards"]]
        assert record["samples"][0]["reward"] == max(trace["seed"]["reward"], *found)
