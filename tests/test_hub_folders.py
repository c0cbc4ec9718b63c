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
import scipy.special
import torch
import transformers

from dera_jax import main
from dera_jax.checkpoints.loading import read_config
from dera_jax.evaluation import record_store
from dera_jax.evaluation.method_tables import method_folder
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
pytestmark = pytest.mark.slow


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


@pytest.fixture(
    scope="module", params=("llama", pytest.param("mistral", marks=pytest.mark.evidence))
)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def dpo(family, folders, root, texts) -> Path:
    start = folders["mistral" if family == "mistral" else "base"]
    return run(root / f"{family} dpo", "runs/dpo", REFERENCE=start, **texts, **STEPS)


@pytest.fixture(scope="module")
def macros(family, folders, texts, request) -> dict[str, str]:
    """The paths of a pair and of the documents."""
    if family == "llama":
        pair = {"REFERENCE": folders["base"], "ALIGNED": folders["instruct"]}
    else:
        best = request.getfixturevalue("dpo") / "best"
        pair = {"REFERENCE": folders["mistral"], "ALIGNED": str(best)}
    return pair | {"TEST": texts["TEST"]}


@pytest.fixture(scope="module")
def tokenizer(family, folders):
    """The pair's tokenizer, read by transformers."""
    folder = folders["instruct" if family == "llama" else "mistral"]
    return transformers.AutoTokenizer.from_pretrained(folder)


def their_logits(folder: str, tokenizer, record: dict) -> list[np.ndarray]:
    """Logits [T, V] of transformers for each output of a record, of the tokenizer's V ids."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    message = {"role": "user", "content": f"summarize: {record['document']}"}
    options = {"add_generation_prompt": True, "return_dict": False}
    prompt = tokenizer.apply_chat_template([message], **options)
    assert len(prompt) > WINDOW
    found = []
    for sample in record["samples"]:
        with torch.no_grad():
            logits = network(torch.tensor([prompt + sample["tokens"]])).logits
        found.append(logits[0, len(prompt) - 1 : -1, : len(tokenizer)].double().numpy())
    return found


def at_tokens(values: np.ndarray, sample: dict) -> np.ndarray:
    return np.take_along_axis(values, np.array(sample["tokens"])[:, None], 1)[:, 0]


def check_texts(records: list[dict], tokenizer) -> None:
    samples = [sample for record in records for sample in record["samples"]]
    theirs = [
        tokenizer.decode(x["tokens"][: x["length"]], skip_special_tokens=True) for x in samples
    ]
    assert [sample["text"] for sample in samples] == theirs


def rows_of(out: Path, table: str) -> list[dict]:
    """A table of result.json, whose numbers are finite."""
    rows = json.loads((out / "result.json").read_text())[table]
    assert np.isfinite([x for row in rows for x in row.values() if not isinstance(x, str)]).all()
    return rows


def test_dpo(family, dpo):
    reports = metric_log.read(dpo)
    last = [x for x in reports if "training/loss" in x][-1]
    assert last["training/loss"] < 0.9 * math.log(2) and last["training/accuracy"] > 0.8
    result = json.loads((dpo / "result.json").read_text())
    assert result["best_loss"] < math.log(2) and math.isfinite(result["test"]["loss"])
    window = WINDOW if family == "mistral" else None
    assert set(read_config(dpo / "best").windows) == {window}


def test_sweep(macros, tokenizer, tmp_path):
    out = run(tmp_path / "sweep", "runs/sweep", REWARD, **macros)
    kl = {row["lam"]: row["kl"] for row in rows_of(out, "lambda")}
    assert kl[0] == 0 < kl[0.25] < kl[0.5] < kl[0.75] < kl[1]
    records = record_store.read(out)
    check_texts(records, tokenizer)
    theirs = their_logits(macros["REFERENCE"], tokenizer, records[0])
    for sample, logits in zip(records[0]["samples"], theirs, strict=True):
        log_prob = at_tokens(scipy.special.log_softmax(logits, -1), sample).sum()
        assert sample["part_log_probs"][0] == pytest.approx(log_prob, abs=1e-2)


def test_deal(family, macros, tokenizer, tmp_path):
    out = run(tmp_path / "deal", "runs/beam_search", REWARD, **macros)
    rows = {row["method"]: row for row in rows_of(out, "methods")}
    assert rows["DeAL"]["reward"] > rows["beam search"]["reward"]
    folders = [method_folder(out, name) for name in rows]
    for folder in folders:
        check_texts(record_store.read(folder), tokenizer)
    if family == "llama":  # the folder of the aligned model is one that transformers reads
        greedy = record_store.read(folders[0])[0]
        [logits] = their_logits(macros["ALIGNED"], tokenizer, greedy)
        assert (at_tokens(logits, greedy["samples"][0]) > logits.max(-1) - 1e-3).all()


def test_darwin(macros, tokenizer, tmp_path):
    out = run(tmp_path / "darwin", "runs/evolution", REWARD, **macros)
    assert [row["method"] for row in rows_of(out, "methods")] == ["greedy", "best of n", "DARWIN"]
    records = record_store.read(method_folder(out, "DARWIN"))
    check_texts(records, tokenizer)
    for record in records:
        history = record["evolution"]
        rewards = [x for generation in history["generations"] for x in generation["rewards"]]
        assert record["samples"][0]["reward"] == max(history["seed"]["reward"], *rewards)
