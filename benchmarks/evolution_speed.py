"""What a generation of DARWIN costs: compiled, and as a Python loop.

    python benchmarks/evolution_speed.py --write

The compiled populations of dera_jax/decoding/evolution.py on real test documents with the shipped
reference, over sizes of a population and periods; for some of these settings the loop of
naive_evolution.py beside them, which encodes and reads all texts anew in every period. Both make the
same draws and must find the same texts, or the script stops; only where two tokens' scores are equal
up to rounding it goes on and says how many populations differ. `--write` puts page and figure into
docs/results; `--quick` tries the script with little of everything.

Axes: B documents, N individuals, m tokens of a period, S prompt length, T output length.
"""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import naive_evolution
import numpy as np
from beam_search_speed import (
    BATCH,
    INPUTS,
    MAX_LENGTH,
    ONE_BY_ONE,
    RESULTS,
    REWARD,
    Timed,
    World,
    guide,
    load,
    table_row,
    timed,
)

from dera_jax.decoding.evolution import Evolution, Generation, generation
from dera_jax.decoding.mutation import RELEASED, InputEdits
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import Prompts, pad_sequences, sequence_keys
from dera_jax.rewards.scoring import score

MUTATOR = InputEdits()
NEAR = 1e-4  # between scores of tokens that only rounding tells apart
PAGE, FIGURE = RESULTS / "evolution_speed.md", RESULTS / "evolution_speed.png"

BATCHED, SINGLE, LOOP = f"compiled, {BATCH} documents at once", "compiled", "Python loop"

TEXT = """# Populations: time

Written by `{command}`. Machine: {cores} CPU cores, no accelerator, jax {jax}. Load average at the
start: {load:.2f}.

![time and tokens]({figure})

One generation of DARWIN: held-out documents of the task `docstrings` ({inputs} tokens of input, at
most {length} of output), the shipped reference (2.9 million parameters), keyword coverage as the
reward, edits of the document as mutations (made before the timing), temperature {temperature:g},
top-k {top_k}, no lookahead. N individuals live on a document, half of them survive each period of
m tokens; m = {length} replaces nothing. Seconds are medians of {runs} runs, taken in turns, per
document. The widest spread of a row's runs, (max − min) ÷ median, was {spread:.0%}.

## The compiled populations

{batch} documents in one call: encoder, populations and reward. "Rounds" and "tokens processed" are means
over the documents: how often a population was scored, and tokens fed to the decoder as the
populations count them, of which those of adopted texts, read again under another instruction, are
"adopted". "First call" is the extra time of the first call, compilation for the most part.

| N | m | seconds | rounds | tokens processed | adopted | µs per token | first call |
|---:|---:|---:|---:|---:|---:|---:|---:|
{grid}

## A Python loop

The same populations as lists in Python, `benchmarks/naive_evolution.py`: in every period the
instructions of all texts that have not ended are encoded again, and these texts are fed again from
their start token; then a jitted step for each token, with a cache within the period. The reward is
the same compiled one, called once per period. {documents} documents, one at a time in both; seconds
per document, and how many times longer the loop takes. The last two columns set it beside the
compiled populations of {batch} documents at once. {agreement} The longer the period, the less the
loop reads again and the less there is to gain: with m = {length} nothing is read twice, and what is
left is a call for each token, little beside the work of N rows on this machine.

"Fed" are tokens fed to the decoder, "encoded" those of instructions, per document, without padding.

| N | m | fed: loop | compiled | encoded: loop | compiled | s: loop | compiled | ratio | B = {batch} | ratio |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{loops}
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time: one of BATCHED, SINGLE and LOOP, N and m."""

    kind: str
    population: int
    period: int

    @property
    def documents(self) -> int:
        return BATCH if self.kind == BATCHED else ONE_BY_ONE

    @property
    def at_once(self) -> int:
        return BATCH if self.kind == BATCHED else 1

    @property
    def evolution(self) -> Evolution:
        sampling = RELEASED.replace(max_length=MAX_LENGTH)
        return Evolution(sampling, self.population, self.period, survivors=self.population // 2)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure: N and m of BATCHED's cases; those of SINGLE and LOOP, which it has too; and
    runs of each."""

    grid: tuple
    beside: tuple
    runs: int

    @property
    def cases(self) -> list[Case]:
        kinds = {BATCHED: self.grid, SINGLE: self.beside, LOOP: self.beside}
        return [Case(kind, *sizes) for kind, some in kinds.items() for sizes in some]


FULL = Plan(
    grid=tuple((n, m) for n in (4, 8, 16) for m in (2, 4, 8, 24)),
    beside=((4, 4), (8, 2), (8, 4), (8, 8), (8, 24), (16, 4)),
    runs=5,
)
QUICK = Plan(grid=((4, 4), (4, 24)), beside=((4, 4),), runs=2)


@dataclasses.dataclass(frozen=True)
class Found:
    """What became of a population.

    Attributes:
        texts: N.
        written: int [N, T], what each individual wrote itself.
        rounds: how often it was scored.
        fed: tokens fed to the decoder.
        encoded: tokens of instructions, for the encoder.
    """

    texts: list[list[int]]
    written: np.ndarray
    rounds: int
    fed: int
    encoded: int

    @property
    def adopted(self) -> int:
        """Of the tokens fed to compiled populations, those of adopted texts."""
        return self.fed - int(np.count_nonzero(self.written))


def instructions(world: World, population: int) -> Prompts:
    """[BATCH, N, INPUTS]: the mutated documents."""
    documents = world.documents
    ids, prompts = documents.example_id[:BATCH], documents.text_prompts[:BATCH]
    mutated = MUTATOR(prompts, population, sequence_keys(0, ids, [-1])[:, 0]).children
    read = [world.pair.encode_prompt(x, INPUTS).ids for row in mutated for x in row]
    tokens, lengths = pad_sequences(read, INPUTS)
    return Prompts(tokens.reshape(BATCH, population, -1), lengths.reshape(BATCH, population))


def compiled(world: World, case: Case) -> Callable[[], list[Found]]:
    """The compiled populations of a case's documents."""
    prompts = instructions(world, case.population)

    def live(first: int) -> list[Found]:
        rows = np.arange(first, first + case.at_once)
        own = jax.tree.map(lambda x: x[rows], prompts)
        model, scorer = world.pair.model.reference, scoring(world, rows)
        arguments = own, keys(world, rows, case), case.evolution, scorer
        return found(generation(model, world.params[0], *arguments), own)

    firsts = range(0, case.documents, case.at_once)
    return lambda: [x for first in firsts for x in live(first)]


def keys(world: World, rows: np.ndarray, case: Case) -> jax.Array:
    return sequence_keys(0, world.documents.example_id[rows], np.arange(case.population))


def scoring(world: World, rows: np.ndarray) -> Guide:
    return guide(REWARD, world.reward_params, world.documents.source(rows))


def found(population: Generation, prompts: Prompts) -> list[Found]:
    """Of each document."""
    population = jax.tree.map(np.asarray, population)
    texts = population.texts
    return [
        Found(
            texts=[x[:n].tolist() for x, n in zip(texts.tokens[b], texts.lengths[b], strict=True)],
            written=population.written[b],
            rounds=int(population.rounds[b]),
            fed=int(population.forward_tokens[b]),
            encoded=int(np.sum(prompts.lengths[b])),
        )
        for b in range(len(prompts.tokens))
    ]


def loop(world: World, case: Case) -> Callable[[], list[Found]]:
    """The populations of a case's documents as a Python loop."""
    writers = [writer(world, case, row) for row in range(case.documents)]

    def live(row: int) -> Found:
        own = keys(world, np.array([row]), case)[0]
        arguments = writers[row], rewards(world, case, row), own, case.evolution
        population = naive_evolution.generation(*arguments)
        lengths = writers[row].prompts.lengths
        return Found(
            texts=population.texts,
            written=written(population),
            rounds=len(population.rounds),
            fed=population.fed,
            encoded=int(np.dot(lengths, population.encoded)),
        )

    return lambda: [live(row) for row in range(case.documents)]


def writer(world: World, case: Case, row: int) -> naive_evolution.Writer:
    prompts = jax.tree.map(lambda x: x[row], instructions(world, case.population))
    model, sampling = world.pair.model.reference, case.evolution.sampling
    return naive_evolution.Writer(model, world.params[0], prompts, sampling)


def written(population: naive_evolution.Population) -> np.ndarray:
    """As `Found` has it."""
    rows = np.zeros((len(population.texts), MAX_LENGTH), np.int32)
    for one in population.rounds:
        for row, before, after in zip(rows, one.before, one.written, strict=True):
            row[len(before) : len(after)] = after[len(before) :]
    return rows


def rewards(world: World, case: Case, row: int) -> naive_evolution.TextRewards:
    """The compiled reward of a document's texts."""
    source = world.documents.source(np.array([row]))

    def texts_rewards(texts: list[naive_evolution.Text], finished: list[bool]) -> np.ndarray:
        tokens = np.zeros((1, case.population, MAX_LENGTH), np.int32)
        for i, text in enumerate(texts):
            tokens[0, i, : len(text)] = text
        lengths = np.array([[len(text) for text in texts]])
        found, _ = score(REWARD, world.reward_params, source, tokens, lengths, np.array([finished]))
        return np.asarray(found)[0]

    return texts_rewards


def measure(world: World, plan: Plan) -> dict[Case, Timed]:
    """All cases; they take turns, so a disturbance falls on all."""
    calls, first, populations = {}, {}, {}
    for case in plan.cases:
        calls[case] = (loop if case.kind == LOOP else compiled)(world, case)
        first[case], populations[case] = timed(calls[case])
        print(f"first call {first[case]:.1f} s: {case}", flush=True)
    later = [{case: timed(call)[0] for case, call in calls.items()} for _ in range(plan.runs)]
    return {case: Timed(first[case], [x[case] for x in later], populations[case]) for case in calls}


def agreement(world: World, times: dict[Case, Timed]) -> str:
    """A sentence on the texts of loop and compiled populations.

    Raises:
        RuntimeError: texts that differ by more than rounding.
    """
    pairs = [
        (case, row, *both)
        for case in times
        if case.kind == LOOP
        for row, both in enumerate(
            zip(times[case].found, times[beside(case, SINGLE)].found, strict=True)
        )
    ]
    different = [(case, row, x, y) for case, row, x, y in pairs if x.texts != y.texts]
    for case, row, x, y in different:
        if not rounded(world, case, row, x.written, y.written):
            raise RuntimeError(f"loop and compiled must write the same: {case}, document {row}")
    if not different:
        return f"Both wrote the same texts in all {len(pairs)} populations."
    return (
        f"Of {len(pairs)} populations {len(different)} differ between the two: at the first token "
        f"that does, the scores of both tokens differ by less than {NEAR:g}. All others are the "
        "same."
    )


def rounded(world: World, case: Case, row: int, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the first difference between tokens [N, T] of loop and compiled populations is between
    tokens that only rounding tells apart."""
    places = np.argwhere((ours != theirs).T)
    if not len(places):
        return False
    at, who = places[0]
    write, own = writer(world, case, row), keys(world, np.array([row]), case)[0]
    population = naive_evolution.generation(write, rewards(world, case, row), own, case.evolution)
    texts = [text[:at] for text in population.rounds[at // case.period].written]
    scores, _ = write.read(texts, own)
    return abs(scores[who, ours[who, at]] - scores[who, theirs[who, at]]) < NEAR


def beside(case: Case, kind: str) -> Case:
    """The same populations, in another way."""
    return dataclasses.replace(case, kind=kind)


def grid_row(case: Case, x: Timed) -> str:
    seconds, fed = x.per_document, x.mean("fed")
    cells = [case.population, case.period, f"{seconds:.4f}", f"{x.mean('rounds'):.1f}",
             f"{fed:.0f}", f"{x.mean('adopted'):.0f}", f"{1e6 * seconds / fed:.0f}",
             f"{x.first - x.median:.1f} s"]  # fmt: skip
    return table_row(cells)


def loop_row(case: Case, times: dict[Case, Timed]) -> str:
    x, one, many = (times[beside(case, kind)] for kind in (LOOP, SINGLE, BATCHED))
    seconds = [y.per_document for y in (x, one, many)]
    counts = [f"{y.mean(name):.0f}" for name in ("fed", "encoded") for y in (x, one)]
    cells = [case.population, case.period, *counts,
             f"{seconds[0]:.3f}", f"{seconds[1]:.4f}", f"{seconds[0] / seconds[1]:.1f}",
             f"{seconds[2]:.4f}", f"{seconds[0] / seconds[2]:.1f}"]  # fmt: skip
    return table_row(cells)


def page(world: World, times: dict[Case, Timed], plan: Plan, load_average: float) -> str:
    """The report."""
    sampling = Case(BATCHED, 2, 1).evolution.sampling
    return TEXT.format(
        command=shlex.join(["python", *sys.argv]),
        cores=os.cpu_count(),
        jax=jax.__version__,
        load=load_average,
        figure=FIGURE.name,
        inputs=INPUTS,
        length=MAX_LENGTH,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        runs=plan.runs,
        spread=max(x.spread for x in times.values()),
        batch=BATCH,
        grid="\n".join(grid_row(case, x) for case, x in times.items() if case.kind == BATCHED),
        documents=ONE_BY_ONE,
        agreement=agreement(world, times),
        loops="\n".join(loop_row(case, times) for case in times if case.kind == LOOP),
    )


def plot(times: dict[Case, Timed], path: Path) -> None:
    """Time and tokens fed against the period, as a PNG."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    lines = sorted({(case.kind, case.population) for case in times})
    colours = {n: f"C{i}" for i, n in enumerate(sorted({n for _, n in lines}))}
    style = {BATCHED: "o-", SINGLE: "s--", LOOP: "x:"}
    for kind, n in lines:
        cases = [case for case in times if (case.kind, case.population) == (kind, n)]
        periods = [case.period for case in cases]
        label = f"{kind}, N = {n}"
        for axis, value in zip(
            axes, (lambda x: x.per_document, lambda x: x.mean("fed")), strict=True
        ):
            y = [value(times[case]) for case in cases]
            axis.loglog(periods, y, style[kind], color=colours[n], label=label)
    for axis, name in zip(axes, ("seconds per document", "tokens fed per document"), strict=True):
        shown = sorted({case.period for case in times})
        axis.set_xticks(shown, labels=map(str, shown), minor=False)
        axis.set_xticks([], minor=True)
        axis.set_xlabel("tokens of a period")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=as_written
    )
    parser.add_argument("--runs", type=int, help=f"of each case; {FULL.runs}")
    parser.add_argument("--quick", action="store_true", help="few settings, small ones, two runs")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and {FIGURE.name}")
    options = parser.parse_args(argv)
    if options.quick and options.write:
        parser.error("--quick is to try the script: its numbers are not to be written")
    load_average, plan = os.getloadavg()[0], QUICK if options.quick else FULL
    plan = dataclasses.replace(plan, runs=options.runs or plan.runs)
    world = load()
    times = measure(world, plan)
    text = page(world, times, plan, load_average)
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
        plot(times, FIGURE)


if __name__ == "__main__":
    main()
