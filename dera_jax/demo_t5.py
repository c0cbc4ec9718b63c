"""Summarizes held-out docstrings at several λ with the shipped pair of small T5 models.

    python -m dera_jax.demo_t5

Prints mean reward, in-range rate, length, KL and ROUGE for every λ and a few documents with their
outputs, and writes all samples, the table and a plot. It needs no download and takes about a minute
on two CPU cores.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from dera_jax import command_line, demo_flags, log, report
from dera_jax.checkpoints.loaded import ModelPair
from dera_jax.checkpoints.loading import load
from dera_jax.data import demo_documents
from dera_jax.data.documents import Documents
from dera_jax.decoding.sampling import Sampling, sample, sweep_hypotheses
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.evaluation.sweep_tables import format_table, write_report
from dera_jax.evaluation.tables import printed_width, side_by_side
from dera_jax.files import run_folder
from dera_jax.files.destinations import output_folder
from dera_jax.flag_values import joined_lams
from dera_jax.models.language_model import sequence_keys
from dera_jax.rewards.length import LengthInRange
from dera_jax.shipped import ASSETS

INPUTS = 80  # maximum number of input tokens with which the shipped models were trained
BATCH_SIZE = 16


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; errors end the program with a message."""
    options = _parser().parse_args(joined_lams(sys.argv[1:] if argv is None else argv))
    command_line.run(lambda: run(options), lambda: options.output)


def run(options: argparse.Namespace) -> None:
    """Runs the demo; raises as `load`, `run_folder.claim` and `decode` do."""
    folder = output_folder(options.output)
    log.show()
    pair = load(options.reference, options.aligned)
    low, high = pair.cards[1]["length_range"]
    sampling = Sampling(max_length=pair.cards[1]["max_length"])
    reward = LengthInRange(low, high)
    sweep = Sweep(tuple(options.lam), options.samples, sampling, reward, BATCH_SIZE, options.seed)
    documents = demo_documents.docstrings(pair.tokenizer, INPUTS)
    print(
        f"{len(documents.texts)} held-out documents x {len(options.lam)} λ x {options.samples} "
        f"samples; reward 0 for {low} to {high} tokens, else -1; "
        f"aligned at KL coefficient β = {pair.cards[1]['beta']}"
    )
    with run_folder.claim(folder, demo_flags.configuration(options)):
        records = decode(pair.model, pair.params, documents, sweep, pair.decode, folder)
        rows = write_report(records, folder)
        names = [f"reference={options.reference}", f"aligned={options.aligned}"]
        report.record_about(folder, [f"{len(documents.texts)} held-out docstrings"], names)
        report.write(folder)
    print(format_table(rows, printed_width()))
    for record in records[: options.shown]:
        print(side_by_side(record, _label))
    check_endpoints(pair, documents, sweep)
    print(
        f"{folder} has records.jsonl, metrics.json, metrics.csv, sweep.png, and report.html, which shows "
        "every document with a slider for λ"
    )


def _label(sample: dict) -> str:
    return f"λ = {sample['lam']:g} ({sample['length']} tokens)"


def check_endpoints(pair: ModelPair, documents: Documents, sweep: Sweep) -> None:
    """Checks on one batch that λ = 0 and λ = 1 reproduce the samples of each model alone.

    Raises:
        AssertionError: a token differs.
    """
    ids = documents.example_id[:BATCH_SIZE]
    lam, numbers = sweep_hypotheses([0.0, 1.0], 1, len(ids))
    keys, prompts = sequence_keys(sweep.seed, ids, numbers), documents.prompts_of(slice(BATCH_SIZE))
    mixtures = sample(pair.model, pair.params, prompts.replace(lam=lam), keys, sweep.sampling)
    for k, name in enumerate(("reference", "aligned")):
        own_keys, component = keys[:, k : k + 1], pair.components[k]
        model, params = component.model, component.params
        alone = sample(model, params, prompts, own_keys, sweep.sampling)
        np.testing.assert_array_equal(mixtures.tokens[:, k : k + 1], alone.tokens)
        print(f"λ = {k} gives the {name} model's own samples, token for token")


def _parser() -> argparse.ArgumentParser:
    lam = (0, 0.25, 0.5, 1, 2)
    return demo_flags.parser(
        "python -m dera_jax.demo_t5", __doc__, ASSETS, "out/demo_t5", lam, samples=16, shown=3
    )


if __name__ == "__main__":
    main()
