"""Runs the demo of SmolLM2, whose command line is `dera_jax.demo`."""

import argparse
import sys
import textwrap

from dera_jax import demo_t5, log, report
from dera_jax.checkpoints.default_model import default_model, public_name
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.data import demo_documents
from dera_jax.data.aclsum import INSTRUCTIONS
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.evaluation.sweep_tables import format_table, write_report
from dera_jax.files import run_folder
from dera_jax.files.destinations import output_folder
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.words import Faithfulness, WordsInRange
from dera_jax.shipped import name_of

INPUTS, MAX_LENGTH, BATCH_SIZE = 320, 48, 8  # tokens of a prompt and of a summary, documents
LOW, HIGH, PENALTY = 10, 22, 0.5  # of gin_configs/rewards/faithful_words.gin
WIDTH = 100  # characters of a printed line


def run(options: argparse.Namespace) -> None:
    """Runs the demo; raises as `load`, `run_folder.claim` and `decode` do."""
    log.show()
    print("Loading SmolLM2-135M-Instruct and two adapters ...", flush=True)
    try:
        base = default_model()
    except FileNotFoundError as error:
        print(f"{error}\nThe demo of two small T5 models follows instead.", file=sys.stderr)
        demo_t5.main(["--output", f"{options.output}_t5"])
        return
    folder = output_folder(options.output)
    pair = load(base, options.aligned, reference=options.reference)
    documents = demo_documents.abstracts(pair.tokenizer, INPUTS)
    words = Part("words", WordsInRange(LOW, HIGH, hard=True), PENALTY)
    reward = Combined((Part("faithful", Faithfulness()), words))
    sampling = Sampling(MAX_LENGTH)
    sweep = Sweep(tuple(options.lam), options.samples, sampling, reward, BATCH_SIZE, options.seed)
    facts = _facts(len(documents.texts), sweep, pair.cards[1]["beta"])
    print("\n".join(facts))
    config = "".join(f"{k} = {v!r}\n" for k, v in sorted(vars(options).items()))
    with run_folder.claim(folder, config):
        params = reward.load(RunResources.of(pair.tokenizer))
        records = decode(
            pair.model, pair.params, documents, sweep, pair.decode, folder, None, params
        )
        rows = write_report(records, folder)
        abstracts = f"{len(documents.texts)} abstracts of ACLSum's validation papers"
        asked = f"prompts {INSTRUCTIONS['outcome']!r}"
        data = [abstracts, asked, f"seed {options.seed}"]
        names = [f"base={public_name(base)}", f"reference={name_of(options.reference)}"]
        report.record_about(
            folder,
            data,
            [*names, f"aligned={name_of(options.aligned)} (β = {pair.cards[1]['beta']:g})"],
        )
        report.write(folder)
    for record in records[: options.shown]:
        print(side_by_side(record))
    print(f"\n{format_table(rows)}")
    print(
        f"\n{folder} has records.jsonl (all samples), metrics.json, metrics.csv, sweep.png, and "
        "report.html, which shows every abstract with a slider for λ."
    )


def _facts(num_documents: int, sweep: Sweep, beta: float) -> list[str]:
    """Returns sentences that say what is decoded, and by which reward."""
    lams = len(sweep.lams)
    samples = "one sample" if sweep.num_samples == 1 else f"{sweep.num_samples} samples"
    documents = f"{num_documents} abstracts of ACLSum's validation papers"
    reward = "Reward: the fraction of content words that occur in the abstract"
    models = "λ = 0 is the reference, λ = 1 the model that was aligned to this reward"
    return [
        f"{documents}, at {lams} λ {samples} of each at temperature 1.",
        f"{reward}, minus {PENALTY} unless the summary has {LOW} to {HIGH} words.",
        f"{models} at KL coefficient β = {beta:g}.",
        "The first of the batches takes longest, since programs are compiled for it.",
    ]


def side_by_side(record: dict) -> str:
    """Formats a document, its human summary and its first sample at every λ for a terminal."""
    lines = ["", textwrap.fill(record["document"], WIDTH)]
    first = [sample for sample in record["samples"] if sample["sample"] == 0]
    summaries = {"human": record["summary"]} | {f"λ = {s['lam']:g}": s["text"] for s in first}
    width = max(map(len, summaries))
    for name, text in summaries.items():
        indents = f"  {name:>{width}}  ", " " * (width + 4)
        lines.append(textwrap.fill(text, WIDTH, initial_indent=indents[0], subsequent_indent=indents[1]))  # fmt: skip
    return "\n".join(lines)
