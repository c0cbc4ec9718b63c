"""Writes docs/model_card.md: training, metrics and unselected samples of the shipped models.

python -m dera_jax.model_card
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from dera_jax import compilation_cache, demo_t5
from dera_jax.checkpoints.loaded import ModelPair
from dera_jax.checkpoints.loading import load
from dera_jax.data.documents import Documents
from dera_jax.data.splits import Split
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation.record_store import full_batches
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.evaluation.sweep_tables import format_table, table
from dera_jax.files import json_files
from dera_jax.metrics import intervals, ngrams, rouge
from dera_jax.models.language_model import sequence_keys
from dera_jax.rewards.length import LengthInRange, optimal_policy

SHOWN = 20  # documents whose outputs are listed
LEAD_WORDS = 12
BATCH_SIZE = 32
REFERENCE_SAMPLES = 64  # per document, to estimate its in-range rate

HEADER = """# Model card: the shipped pair

`python -m dera_jax.model_card` writes this page from the weights in `dera_jax/assets`, which
`make tiny` trains. The pair consists of two T5 1.0 models with one SentencePiece vocabulary. The
model `reference` generates the first paragraph of a docstring from its body; its logits are divided
by {temperature}, so that text sampled at temperature 1 reads well. The model `aligned` is the
reference after distillation of the KL-regularized optimal policy at β = {start_beta} and PPO at
β = {beta}, both with a reward for outputs of {low} to {high} tokens. The pair is intended for
experiments with decoding-time realignment on a CPU. Both models are small and were trained on
little data; do not rely on their outputs.

Data: docstrings of the installed, pinned packages (`tasks/docstring_corpus.py`); corpus hash
`{corpus_hash}`. Held-out documents have no near copy in training; their hashes are in
`dera_jax/assets/heldout.json`.

## The recipe, as recorded with the weights

```
{recipe}
```
"""


def greedy_texts(pair: ModelPair, which: int, documents: Documents) -> list[str]:
    """Decodes every document greedily with a model of the pair (0 reference, 1 aligned)."""
    sampling = Sampling(max_length=pair.cards[1]["max_length"], greedy=True)
    n, outputs = len(documents.texts), []
    for rows in full_batches(n, BATCH_SIZE):
        keys = sequence_keys(0, documents.example_id[rows], [0])
        model, params = pair.components[which].model, pair.components[which].params
        out = sample(model, params, documents.prompts_of(rows), keys, sampling)
        outputs += [pair.decode(tokens) for tokens in np.asarray(out.tokens[:, 0])]
    return outputs[:n]


def lead(document: str, words: int = LEAD_WORDS) -> str:
    """Returns the first words of a document's body, after the function's name and arguments."""
    return " ".join(document.partition("): ")[2].split()[:words])


def function_name(document: str) -> str:
    """Returns the described function's name: `flatten state` of `module.flatten state(x): ...`."""
    return document.partition("(")[0].rpartition(": ")[2].rpartition(".")[2]


def rouge_table(outputs: dict[str, list[str]], summaries: Sequence[str]) -> str:
    """Formats ROUGE, number of words, distinct-2 and repetition of each system as Markdown."""
    lines = [
        "| greedy output of | ROUGE-1 | ROUGE-2 | ROUGE-L | words | distinct-2 | repetition |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, texts in outputs.items():
        scores = rouge.rouge(summaries, texts)
        means = [intervals.mean_interval([[x] for x in scores[key]]) for key in rouge.ROUGE]
        cells = [f"{mean:.1f} ±{half:.1f}" for mean, half in means]
        cells.append(f"{np.mean([len(t.split()) for t in texts]):.1f}")
        cells.append(f"{ngrams.distinct_n(texts):.2f}")
        cells.append(f"{np.mean([ngrams.repetition(t) for t in texts]):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def samples_of_the_pair(pair: ModelPair, documents: Documents) -> list[dict]:
    """Samples every document 4 times at λ = 0 and λ = 1, and returns the records."""
    card = pair.cards[1]
    sweep = Sweep(
        lams=(0.0, 1.0),
        num_samples=4,
        sampling=Sampling(max_length=card["max_length"]),
        reward=LengthInRange(*card["length_range"]),
        batch_size=BATCH_SIZE,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        return decode(pair.model, pair.params, documents, sweep, pair.decode, Path(folder))


def in_range_rates(pair: ModelPair, documents: Documents, reward: LengthInRange) -> np.ndarray:
    """Estimates the reference policy's in-range rate for every document, float [n]."""
    n, rates = len(documents.texts), []
    for rows in full_batches(n, BATCH_SIZE):
        keys = sequence_keys(0, documents.example_id[rows], np.arange(REFERENCE_SAMPLES))
        prompts, sampling = documents.prompts_of(rows), Sampling(pair.cards[1]["max_length"])
        reference = pair.components[0]
        out = sample(reference.model, reference.params, prompts, keys, sampling)
        rates += np.mean(reward.contains(out.lengths, out.finished), axis=-1).tolist()
    return np.array(rates[:n])


def objective_table(rows: Sequence[dict], rates: np.ndarray, beta: float) -> str:
    """Formats E[r], KL and E[r] − β·KL of both models and the optimal policy as Markdown.

    Args:
        rows: rows of `sweep_tables.table` for λ = 0 and λ = 1.
        rates: float [n], see `in_range_rates`.
        beta: KL coefficient β.
    """
    measured = {
        name: {
            "reward": row["reward"],
            "kl": row["kl"],
            "objective": row["reward"] - beta * row["kl"],
        }
        for name, row in zip(("reference (λ = 0)", "aligned (λ = 1)"), rows, strict=True)
    }
    lines = ["| policy | mean reward | KL, nats | objective |", "|---|---:|---:|---:|"]
    for name, x in {
        **measured,
        "optimal policy (closed form)": optimal_policy(rates, beta),
    }.items():
        lines.append(f"| {name} | {x['reward']:.3f} | {x['kl']:.2f} | {x['objective']:.3f} |")
    return "\n".join(lines)


def card(pair: ModelPair, documents: Documents, corpus_hash: str) -> str:
    """Returns the whole page as Markdown."""
    low, high = pair.cards[1]["length_range"]
    beta = pair.cards[1]["beta"]
    cards = {"reference": pair.cards[0], "aligned": pair.cards[1]}
    recipe = json_files.dumps(cards, "the cards", indent=1)
    outputs = {
        "reference": greedy_texts(pair, 0, documents),
        "aligned": greedy_texts(pair, 1, documents),
        f"lead-{LEAD_WORDS} (the first words of the body)": [lead(t) for t in documents.texts],
        "the name of the function or class": [function_name(t) for t in documents.texts],
    }
    records = samples_of_the_pair(pair, documents)
    page = [
        HEADER.format(
            temperature=pair.cards[0]["temperature"],
            low=low,
            high=high,
            beta=beta,
            start_beta=pair.cards[1]["start"]["beta"],
            corpus_hash=corpus_hash,
            recipe=recipe,
        ),
        f"## On all {len(documents.texts)} held-out test documents\n",
        rouge_table(outputs, documents.summaries),
        "\n4 samples of each document at temperature 1 (λ = 0: reference, λ = 1: aligned model):",
        f"\n```\n{format_table(table(records))}\n```\n",
        (
            f"Alignment maximises the objective E[r] − β·KL at β = {beta}. The optimal policy's "
            f"row is computed from {REFERENCE_SAMPLES} samples of the reference per document.\n"
        ),
        objective_table(
            table(records), in_range_rates(pair, documents, LengthInRange(low, high)), beta
        )
        + "\n",
        f"## {SHOWN} unselected documents\n\nThey have the lowest example ids, which are hashes.\n",
    ]
    for i in range(SHOWN):
        by_lam = {s["lam"]: s["text"] for s in records[i]["samples"] if s["sample"] == 0}
        page.append(
            f"{i + 1}. {_quoted(documents.texts[i])}\n"
            f"   - human: {_quoted(documents.summaries[i])}\n"
            f"   - reference, greedy: {_quoted(outputs['reference'][i])}\n"
            f"   - reference, sampled: {_quoted(by_lam[0.0])}\n"
            f"   - aligned, sampled: {_quoted(by_lam[1.0])}"
        )
    return "\n".join(page) + "\n"


def _quoted(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def main() -> None:
    """Writes the page for the models that the command line names."""
    from dera_jax.tasks import docstring_corpus  # its package registers `docstrings`

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--reference", default=str(demo_t5.ASSETS / "reference"), help="model folder"
    )
    parser.add_argument("--aligned", default=str(demo_t5.ASSETS / "aligned"), help="model folder")
    parser.add_argument("--output", default="docs/model_card.md", help="path of the page")
    options = parser.parse_args()
    compilation_cache.enable()
    logging.set_verbosity(logging.ERROR)
    pair = load(options.reference, options.aligned)
    documents = Split("docstrings", "test", demo_t5.INPUTS).read(pair.tokenizer)
    corpus_hash = docstring_corpus.shipped()["corpus_hash"]
    Path(options.output).write_text(card(pair, documents, corpus_hash), encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
