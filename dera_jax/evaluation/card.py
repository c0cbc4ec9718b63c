"""Writes docs/model_card.md: what the shipped pair is and scores, with unselected samples.

python -m dera_jax.evaluation.card
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from dera_jax import compilation_cache, demo, json_files
from dera_jax.checkpoints.loading import Pair, load
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation import metrics
from dera_jax.evaluation.jobs import Split
from dera_jax.evaluation.shards import full_batches
from dera_jax.evaluation.sweep import (
    Documents,
    Sweep,
    decode,
    format_table,
    table,
)
from dera_jax.models.language_model import sequence_keys
from dera_jax.rewards.length import LengthInRange, optimal_policy

SHOWN = 20
LEAD_WORDS = 12
BATCH_SIZE = 32
REFERENCE_SAMPLES = 64  # of each document, for its in-range rate

HEADER = """# Model card: the shipped pair

Made by `python -m dera_jax.evaluation.card` from the weights in `dera_jax/assets`; the models
themselves by `make tiny`. Two T5 1.0 models over one SentencePiece vocabulary: `reference` writes the
first paragraph of a docstring from its body (all its logits are divided by {temperature}, so that text sampled
at temperature 1 reads well), `aligned` is the reference after distillation of the optimum at β = {start_beta} and PPO at
β = {beta}, both with a reward for outputs of {low} to {high} tokens. For trying out decoding-time realignment on a CPU; the models
are small and were trained on little, and what they write should not be relied on.

Data: docstrings of the installed, pinned packages (`tasks/docstring_corpus.py`); corpus hash
`{corpus_hash}`. Held-out documents have no near copy in training; their hashes are in
`dera_jax/assets/heldout.json`.

## The recipe, as recorded with the weights

```
{recipe}
```
"""


def greedy_texts(pair: Pair, which: int, documents: Documents) -> list[str]:
    """The greedy output of one of the pair's models (0 the reference) for every document."""
    sampling = Sampling(max_length=pair.cards[1]["max_length"], greedy=True)
    n, texts = len(documents.texts), []
    for rows in full_batches(n, BATCH_SIZE):
        keys = sequence_keys(0, documents.example_id[rows], [0])
        model, params = pair.model.models[which], pair.params[which]
        out = sample(model, params, documents.prompts_of(rows), keys, sampling)
        texts += [pair.decode(row) for row in np.asarray(out.tokens[:, 0])]
    return texts[:n]


def lead(document: str, words: int = LEAD_WORDS) -> str:
    """The first words of a document's body, after its name and arguments."""
    return " ".join(document.partition("): ")[2].split()[:words])


def name_of(document: str) -> str:
    """The words of what a document describes: `flatten state` of `module.flatten state(x): ...`."""
    return document.partition("(")[0].rpartition(": ")[2].rpartition(".")[2]


def rouge_table(outputs: dict[str, list[str]], summaries: Sequence[str]) -> str:
    """Markdown: ROUGE with 95 % intervals, words, distinct-2 and repetition of each system."""
    lines = [
        "| greedy output of | ROUGE-1 | ROUGE-2 | ROUGE-L | words | distinct-2 | repetition |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, texts in outputs.items():
        scores = metrics.rouge(summaries, texts)
        intervals = [metrics.mean_interval([[x] for x in scores[key]]) for key in metrics.ROUGE]
        cells = [f"{mean:.1f} ±{half:.1f}" for mean, half in intervals]
        cells.append(f"{np.mean([len(t.split()) for t in texts]):.1f}")
        cells.append(f"{metrics.distinct(texts):.2f}")
        cells.append(f"{np.mean([metrics.repetition(t) for t in texts]):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def samples_of_the_pair(pair: Pair, documents: Documents) -> list[dict]:
    """Records of 4 samples of every document at λ = 0 and 1."""
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


def in_range_rates(pair: Pair, documents: Documents, reward: LengthInRange) -> np.ndarray:
    """The reference policy's in-range rate for every document, float [n]."""
    n, rates = len(documents.texts), []
    for rows in full_batches(n, BATCH_SIZE):
        keys = sequence_keys(0, documents.example_id[rows], np.arange(REFERENCE_SAMPLES))
        prompts, sampling = documents.prompts_of(rows), Sampling(pair.cards[1]["max_length"])
        out = sample(pair.model.reference, pair.params[0], prompts, keys, sampling)
        rates += np.mean(reward.contains(out.lengths, out.finished), axis=-1).tolist()
    return np.array(rates[:n])


def objective_table(rows: Sequence[dict], rates: np.ndarray, beta: float) -> str:
    """Markdown: E[r], KL and the objective E[r] − β·KL of both models and of the optimal policy."""
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


def card(pair: Pair, documents: Documents, corpus_hash: str) -> str:
    """The whole page."""
    low, high = pair.cards[1]["length_range"]
    beta = pair.cards[1]["beta"]
    cards = {"reference": pair.cards[0], "aligned": pair.cards[1]}
    recipe = json_files.dumps(cards, "the cards", indent=1)
    outputs = {
        "reference": greedy_texts(pair, 0, documents),
        "aligned": greedy_texts(pair, 1, documents),
        f"lead-{LEAD_WORDS} (the first words of the body)": [lead(t) for t in documents.texts],
        "the name of the function or class": [name_of(t) for t in documents.texts],
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
        "\n4 samples of each document at temperature 1, λ = 0 the reference, λ = 1 the aligned model:",
        f"\n```\n{format_table(table(records))}\n```\n",
        (
            f"The objective that alignment maximises, E[r] − β·KL at β = {beta}; the optimal policy's from "
            f"{REFERENCE_SAMPLES} samples of the reference for each document:\n"
        ),
        objective_table(
            table(records), in_range_rates(pair, documents, LengthInRange(low, high)), beta
        )
        + "\n",
        f"## {SHOWN} unselected documents\n\nThose with the lowest example ids, a hash.\n",
    ]
    for i in range(SHOWN):
        by_lam = {s["lam"]: s["text"] for s in records[i]["samples"] if s["stream"] == 0}
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
    import tasks  # registers `docstrings`

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", default=str(demo.ASSETS / "reference"))
    parser.add_argument("--aligned", default=str(demo.ASSETS / "aligned"))
    parser.add_argument("--output", default="docs/model_card.md")
    options = parser.parse_args()
    compilation_cache.switch_on()
    logging.set_verbosity(logging.ERROR)
    pair = load(options.reference, options.aligned)
    documents = Split("docstrings", "test", demo.INPUTS).read(pair.tokenizer)
    corpus_hash = tasks.docstrings.docstring_corpus.shipped()["corpus_hash"]
    Path(options.output).write_text(card(pair, documents, corpus_hash), encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
