"""Runs the demo of SmolLM2, whose command line is `dera_jax.demo`."""

import argparse
import sys

from dera_jax import demo_flags, log, report
from dera_jax.checkpoints.default_model import default_model, public_name
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.data import demo_documents
from dera_jax.data.aclsum import INSTRUCTIONS
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.evaluation.sweep_tables import format_table, write_report
from dera_jax.evaluation.tables import printed_width, side_by_side
from dera_jax.files import run_folder
from dera_jax.files.destinations import output_folder
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.words import Faithfulness, WordsInRange
from dera_jax.shipped import name_of

INPUTS, MAX_LENGTH, BATCH_SIZE = 320, 48, 8  # tokens of a prompt and of a summary, documents
LOW, HIGH, PENALTY = 10, 22, 0.5  # of gin_configs/rewards/faithful_words.gin


def run(options: argparse.Namespace) -> bool:
    """Runs the demo; returns False, with a message, if SmolLM2 cannot be had.

    Raises as `load`, `run_folder.claim` and `decode` do.
    """
    log.show()
    print("Loading SmolLM2-135M-Instruct and two adapters ...", flush=True)
    try:
        base = default_model()
    except FileNotFoundError as error:
        print(f"{error}\nThe demo of two small T5 models follows instead.", file=sys.stderr)
        return False
    folder = output_folder(options.output)
    pair = load(base, options.aligned, reference=options.reference)
    documents = demo_documents.abstracts(pair.tokenizer, INPUTS)
    words = Part("words", WordsInRange(LOW, HIGH, hard=True), PENALTY)
    reward = Combined((Part("faithful", Faithfulness()), words))
    sampling = Sampling(MAX_LENGTH)
    sweep = Sweep(tuple(options.lam), options.samples, sampling, reward, BATCH_SIZE, options.seed)
    facts = _facts(len(documents.texts), sweep, pair.cards[1]["beta"])
    print("\n".join(facts))
    with run_folder.claim(folder, demo_flags.configuration(options)):
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
        print(side_by_side(record, lambda sample: f"λ = {sample['lam']:g}"))
    print(f"\n{format_table(rows, printed_width())}")
    print(
        f"\n{folder} has records.jsonl (all samples), metrics.json, metrics.csv, sweep.png, and "
        "report.html, which shows every abstract with a slider for λ."
    )
    return True


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
