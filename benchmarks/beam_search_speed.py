"""What reward-guided beam search costs: compiled, as a Python loop, and in memory.

    python benchmarks/beam_search_speed.py --write

The compiled search of dera_jax/decoding/beam_search.py on real test documents with the shipped
pair, over widths and lookaheads; for some of these settings the loop of naive_search.py beside it:
Python lists, and a jitted forward pass without a cache. Both must find the same best texts, or the
script stops; only where scores are equal up to rounding it goes on and says how many texts differ.
Memory is what XLA reports for the search of a T5 1.1 small, which is compiled and not run.
`--write` puts page and figure into docs/results; `--quick` tries the script with little of
everything.

Axes: B documents, N beams, k candidates of a beam, S prompt length, T output length.
"""

import argparse
import dataclasses
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import naive_search
import numpy as np

import dera_jax.tasks  # noqa: F401 (registers `docstrings`)
from dera_jax.checkpoints.loaded import ModelPair
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.data.documents import Documents
from dera_jax.data.splits import Split
from dera_jax.decoding.beam_search import NBest, Search, beam_search
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import Prompts, PyTree, sequence_keys
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import RewardScorer, score
from dera_jax.rewards.tokens import Repetition
from dera_jax.rewards.words import KeywordCoverage
from dera_jax.training.dry_run import program_cost

INPUTS, MAX_LENGTH, REWARD_WEIGHT, LAM = 80, 24, 4.0, 2.0
BATCH = 16  # documents of one compiled call
ONE_BY_ONE = 4  # documents, the first of these, that are searched one at a time
REWARD = KeywordCoverage()
NEAR = 1e-4  # between scores of texts that only rounding tells apart
SMALL = T5Config(32128, 512, 6, 8, 8, 64, 1024, ("gelu", "linear"))  # t5_1_1_small.gin, float32
SMALL_INPUTS, SMALL_LENGTH, SMALL_LOOKAHEAD = 512, 64, 8
MIB = 2**20
RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGE, FIGURE = RESULTS / "beam_search_speed.md", RESULTS / "beam_search_speed.png"

BATCHED, PAIRED, SINGLE, LOOP = "reference", "pair", "reference, one by one", "loop"
LABELS = {
    BATCHED: f"compiled, reference, {BATCH} documents at once",
    PAIRED: f"compiled, pair at λ = {LAM:g}, {BATCH} documents at once",
    SINGLE: "compiled, reference, one document at a time",
    LOOP: "Python loop, reference, one document at a time",
}

TEXT = """# Reward-guided beam search: time and memory

Written by `{command}`. Machine: {cores} CPU cores, no accelerator, jax {jax}. Load average at the
start: {load:.2f}.

![time and memory]({figure})

## Time

Held-out documents of the task `docstrings` ({inputs} tokens of input, at most {length} of output),
the shipped pair (2.9 million parameters each), keyword coverage as the reward with weight
{weight:g}, length penalty {penalty:g}, a greedy lookahead, scored at every token. The compiled
search is one call: encoder, search and reward. B is the number of documents of a call, N that of
beams, k that of candidates of a beam. Seconds are medians of {runs} runs, taken in turns, per
document: of {batch} documents at B = {batch}, of the first {documents} of them at B = 1. The widest
spread of a row's runs, (max − min) ÷ median, was {spread:.0%}. "First call" is the extra time of
the first call, compilation for the most part.

"Positions" are tokens fed to decoders, as the search itself counts them, per document: those of
texts that have ended and of documents whose search is decided do not count. The pair's are those of
both models. "Computed" is what the fixed shapes come to: N·(1 + k·lookahead) tokens at every
step, until the last document of a call is decided.

| model | B | N | k | lookahead | seconds | tokens processed | µs per token | computed | first call |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{grid}

## A Python loop

The same search as lists in Python over a jitted forward pass without a cache,
`benchmarks/naive_search.py`: the encoder runs once for each size of a pass; a pass reads whole
prefixes, padded to {length} tokens, and computes the logits of all {length} positions. There is one
size of a pass for the N beams and one for the N·k candidates. The reward is the same compiled one,
called once per step for all texts. {documents} documents, one at a time in both; seconds per
document, and how many times longer the loop takes. The last two columns set it beside the compiled
search of {batch} documents at once. {agreement}

| N | k | lookahead | computed: loop | compiled | s: loop | compiled | ratio | B = {batch} | ratio |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{loops}

## Memory

The search of a T5 1.1 small in float32: one document of {small_inputs} tokens, at most
{small_length} tokens of output, lookahead {small_lookahead}, a reward on tokens (`Repetition`). It
is compiled for this machine and not run. "Temporary" is what XLA allocates besides arguments and
results. Hypotheses are the N beams and their N·k candidates.

| N | k | hypotheses | temporary, MiB | with encoder states multiplied, MiB |
|---:|---:|---:|---:|---:|
{memory}

A hypothesis more takes {slope:.2f} MiB (least squares). Its self-attention cache of {positions}
positions is {cache:.2f} MiB, so this is {caches:.2f} caches. The keys and values of cross-attention
of {small_inputs} positions are {cross:.2f} MiB: a hypothesis with a copy of its own could not take
less. The last column adds such a copy for every hypothesis.
"""


@dataclasses.dataclass(frozen=True)
class World:
    """The shipped pair, its parameters on the device, documents, and the reward's parameters."""

    pair: ModelPair
    params: PyTree
    documents: Documents
    reward_params: PyTree

    def rows(self, first: int, number: int, lam: float | None):
        """Prompts at one λ, keys [B, 1] and guide of documents in a row."""
        rows = np.arange(first, first + number)
        keys = sequence_keys(0, self.documents.example_id[rows], [0])
        lams = None if lam is None else np.full((number, 1), lam, np.float32)
        prompts = self.documents.prompts_of(rows, lams)
        return prompts, keys, guide(REWARD, self.reward_params, self.documents.source(rows))


def guide(reward: Reward, params: PyTree, source: Source) -> Guide:
    """A reward that needs no text."""
    return Guide(RewardScorer(reward, params, str), source)


def load_world() -> World:
    pair = load("dera_jax/assets/reference", "dera_jax/assets/aligned")
    documents = Split("docstrings", "test", INPUTS, BATCH).read(pair.tokenizer)
    reward_params = REWARD.load(RunResources(pair.vocabulary))
    return World(pair, jax.device_put(pair.params), documents, reward_params)


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time: one of LABELS, N, k and the lookahead."""

    kind: str
    beams: int
    top_k: int
    lookahead: int

    @property
    def documents(self) -> int:
        return BATCH if self.kind in (BATCHED, PAIRED) else ONE_BY_ONE

    @property
    def at_once(self) -> int:
        return BATCH if self.kind in (BATCHED, PAIRED) else 1

    @property
    def search(self) -> Search:
        sizes = self.beams, self.top_k, self.lookahead
        return Search(MAX_LENGTH, *sizes, reward_weight=REWARD_WEIGHT, length_penalty=0.6)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        settings: N, k and lookahead by kind; LOOP's are those of SINGLE, which BATCHED has too.
        widths: N and k of SMALL's searches.
        runs: of each case.
    """

    settings: dict[str, tuple]
    widths: tuple
    runs: int

    @property
    def cases(self) -> list[Case]:
        settings = self.settings | {LOOP: self.settings[SINGLE]}
        return [Case(kind, *sizes) for kind, some in settings.items() for sizes in some]


FULL = Plan(
    settings={
        BATCHED: (
            (2, 4, 0), (4, 4, 0), (4, 8, 0), (8, 8, 0), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 4)
        ),
        PAIRED: ((4, 4, 0), (4, 4, 4)),
        SINGLE: ((4, 8, 0), (4, 4, 4), (4, 4, 8)),
    },
    widths=((4, 2), (4, 4), (8, 4), (8, 8), (16, 8)),
    runs=5,
)  # fmt: skip
QUICK = Plan(
    settings={
        BATCHED: ((2, 4, 0), (2, 2, 2)),
        PAIRED: ((2, 4, 0),),
        SINGLE: ((2, 4, 0), (2, 2, 2)),
    },
    widths=((1, 2), (2, 2), (2, 4)),
    runs=2,
)


@dataclasses.dataclass(frozen=True)
class Found:
    """The best text of a document, its score, and the tokens processed for it: counted and computed."""

    tokens: list[int]
    score: float
    forward_tokens: int
    computed: int


def compiled(world: World, case: Case) -> Callable[[], list[Found]]:
    """The compiled search of a case's documents."""
    model, params, lam = world.pair.model, world.params, LAM
    if case.kind != PAIRED:
        model, params, lam = model.reference, params[0], None
    firsts = range(0, case.documents, case.at_once)
    batches = [world.rows(first, case.at_once, lam) for first in firsts]

    def search(prompts, keys, guide) -> NBest:
        return beam_search(model, params, prompts, keys, case.search, guide)

    return lambda: [x for batch in batches for x in found(case, search(*batch))]


def found(case: Case, n_best: NBest) -> list[Found]:
    """What the search of each document of a call came to."""
    best = jax.tree.map(np.asarray, n_best)
    models = 2 if case.kind == PAIRED else 1
    step = case.beams * (1 + case.top_k * case.lookahead)
    return [
        Found(
            tokens=best.pool.tokens[b, 0, 0, : best.pool.lengths[b, 0, 0]].tolist(),
            score=float(best.scores[b, 0, 0]),
            forward_tokens=models * int(best.forward_tokens[b, 0]),
            computed=models * int(best.steps) * step,
        )
        for b in range(case.at_once)
    ]


def loop(world: World, case: Case) -> Callable[[], list[Found]]:
    """The search of a case's documents as a Python loop."""
    search = case.search
    settings = naive_search.Settings(
        MAX_LENGTH,
        case.beams,
        case.top_k,
        end_ids=world.pair.model.end_ids,
        lookahead=case.lookahead,
        reward_weight=search.reward_weight,
        length_penalty=search.length_penalty,
        highest_reward=REWARD.highest,
    )

    def one(row: int) -> Found:
        passes = Passes(world, case, row)
        best = naive_search.search(passes, rewards(world, case, row), settings)
        return Found(
            best.tokens[0], float(best.scores[0]), best.forward_tokens, passes.forward_tokens
        )

    return lambda: [one(row) for row in range(case.documents)]


class Passes:
    """`next_log_probs` of a document, by the smallest pass that holds the prefixes.

    Attributes:
        forward_tokens: computed so far.
    """

    def __init__(self, world: World, case: Case, row: int):
        model, prompt = world.pair.model.reference, world.documents.prompts_of(np.array([row]))
        sizes = [case.beams, case.beams * case.top_k][: 1 + (case.lookahead > 0)]
        args = model, world.params[0], prompt, MAX_LENGTH
        self._passes = {rows: naive_search.forward_of(*args, rows) for rows in sizes}
        self.forward_tokens = 0

    def __call__(self, prefixes: list[naive_search.Text]) -> np.ndarray:
        rows = min(rows for rows in self._passes if rows >= len(prefixes))
        self.forward_tokens += rows * MAX_LENGTH
        return self._passes[rows](prefixes)


def rewards(world: World, case: Case, row: int) -> naive_search.TextRewards:
    """The compiled reward of a document's texts, padded to as many as a step has."""
    source, num = world.documents.source(np.array([row])), case.beams * case.top_k

    def texts_rewards(texts: list[naive_search.Text], ended: list[bool]) -> np.ndarray:
        tokens, lengths = np.zeros((1, num, MAX_LENGTH), np.int32), np.zeros((1, num), np.int32)
        finished = np.zeros((1, num), bool)
        for i, text in enumerate(texts):
            tokens[0, i, : len(text)], lengths[0, i] = text, len(text)
        finished[0, : len(ended)] = ended
        found = score(REWARD, world.reward_params, source, tokens, lengths, finished)[0]
        return np.asarray(found)[0, : len(texts)]

    return texts_rewards


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of a case's first call and of the later ones; what it found."""

    first: float
    later: list[float]
    found: list[Found]

    @property
    def median(self) -> float:
        return statistics.median(self.later)

    @property
    def per_document(self) -> float:
        return self.median / len(self.found)

    @property
    def spread(self) -> float:
        return (max(self.later) - min(self.later)) / self.median

    def mean(self, name: str) -> float:
        """Of a field of what was found."""
        return statistics.mean(getattr(x, name) for x in self.found)


def measure(world: World, plan: Plan) -> dict[Case, Timed]:
    """All cases; they take turns, so a disturbance falls on all."""
    calls, first, texts = {}, {}, {}
    for case in plan.cases:
        calls[case] = (loop if case.kind == LOOP else compiled)(world, case)
        first[case], texts[case] = timed(calls[case])
        print(f"first call {first[case]:.1f} s: {case}", flush=True)
    later = [{case: timed(call)[0] for case, call in calls.items()} for _ in range(plan.runs)]
    return {case: Timed(first[case], [x[case] for x in later], texts[case]) for case in calls}


def timed(call: Callable[[], list[Found]]) -> tuple[float, list[Found]]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def agreement(times: dict[Case, Timed]) -> str:
    """A sentence on the best texts of loop and compiled search.

    Raises:
        RuntimeError: texts that differ by more than rounding.
    """
    pairs = [
        (case, *both)
        for case in times
        if case.kind == LOOP
        for both in zip(times[case].found, times[beside(case, SINGLE)].found, strict=True)
    ]
    different = [(case, x, y) for case, x, y in pairs if x.tokens != y.tokens]
    for case, x, y in different:
        if abs(x.score - y.score) > NEAR:
            raise RuntimeError(f"loop and compiled search must find the same: {case}, {x}, {y}")
    if not different:
        return f"Both found the same best text in all {len(pairs)} searches."
    return (
        f"Of {len(pairs)} best texts {len(different)} differ between the two, at scores that "
        f"differ by less than {NEAR:g}; the others are the same."
    )


def beside(case: Case, kind: str) -> Case:
    """The same search, done in another way."""
    return dataclasses.replace(case, kind=kind)


def grid_row(case: Case, x: Timed) -> str:
    model = "pair" if case.kind == PAIRED else "reference"
    seconds, forward_tokens = x.per_document, x.mean("forward_tokens")
    cells = [model, case.at_once, case.beams, case.top_k, case.lookahead, f"{seconds:.4f}",
             f"{forward_tokens:.0f}", f"{1e6 * seconds / forward_tokens:.0f}", f"{x.mean('computed'):.0f}",
             f"{x.first - x.median:.1f} s"]  # fmt: skip
    return table_row(cells)


def loop_row(case: Case, times: dict[Case, Timed]) -> str:
    x, one, many = (times[beside(case, kind)] for kind in (LOOP, SINGLE, BATCHED))
    seconds = [y.per_document for y in (x, one, many)]
    cells = [case.beams, case.top_k, case.lookahead,
             f"{x.mean('computed'):.0f}", f"{one.mean('computed'):.0f}",
             f"{seconds[0]:.3f}", f"{seconds[1]:.4f}", f"{seconds[0] / seconds[1]:.1f}",
             f"{seconds[2]:.4f}", f"{seconds[0] / seconds[2]:.1f}"]  # fmt: skip
    return table_row(cells)


def table_row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Temporary bytes of SMALL's search for each N and k, and a line through them."""

    widths: tuple
    temporary: list[int]

    @property
    def hypotheses(self) -> np.ndarray:
        return np.array([beams * (1 + top_k) for beams, top_k in self.widths])

    @property
    def line(self) -> tuple[float, float]:
        """Bytes of a hypothesis more, and of none."""
        return tuple(np.polyfit(self.hypotheses, self.temporary, 1))


def keys_values(positions: int) -> int:
    """Bytes of SMALL's keys and values, in float32, of so many positions in all layers."""
    heads = SMALL.num_heads * SMALL.head_dim
    return 2 * SMALL.num_decoder_layers * heads * positions * 4


CACHE = keys_values(SMALL_LENGTH + SMALL_LOOKAHEAD)  # of a hypothesis
CROSS = keys_values(SMALL_INPUTS)  # of a document


def memory(widths: tuple) -> Memory:
    """Compiles the searches.

    Raises:
        RuntimeError: a hypothesis takes as much as a copy of the encoder's states.
    """
    measured = Memory(widths, [temporary(*sizes) for sizes in widths])
    if measured.line[0] >= CROSS:
        raise RuntimeError(
            f"{measured.line[0] / MIB:.1f} MiB of a hypothesis, {CROSS / MIB} of a copy"
        )
    return measured


def temporary(beams: int, top_k: int) -> int:
    """Bytes of one compiled search."""
    model, array = T5(SMALL), jax.ShapeDtypeStruct
    params = jax.eval_shape(model.init, jax.random.key(0))
    keys = jax.eval_shape(lambda: sequence_keys(0, jnp.arange(1), [0]))
    sizes = beams, top_k, SMALL_LOOKAHEAD
    search = Search(
        SMALL_LENGTH, *sizes, reward_weight=REWARD_WEIGHT, length_penalty=0.6, end_ids=(1,)
    )
    call = jax.jit(
        lambda params, prompts, keys: beam_search(
            model, params, prompts, keys, search, guide(Repetition(), None, Source(prompts))
        )
    )
    tokens = beams * SMALL_LENGTH * (1 + top_k * SMALL_LOOKAHEAD)
    prompts = Prompts(array((1, SMALL_INPUTS), jnp.int32), array((1,), jnp.int32))
    found = program_cost("search", {"model": params}, tokens, call, params, prompts, keys)
    print(f"N = {beams}, k = {top_k}: {found.temporary / MIB:.1f} MiB", flush=True)
    return found.temporary


def memory_rows(measured: Memory) -> str:
    rows = zip(measured.widths, measured.hypotheses, measured.temporary, strict=True)
    return "\n".join(
        table_row([*sizes, num, f"{size / MIB:.0f}", f"{(size + num * CROSS) / MIB:.0f}"])
        for sizes, num, size in rows
    )


def page(times: dict[Case, Timed], measured: Memory, plan: Plan, load_average: float) -> str:
    """The report."""
    compiled_cases = [case for case in times if case.kind != LOOP]
    loops = [case for case in times if case.kind == LOOP]
    slope = measured.line[0]
    return TEXT.format(
        command=shlex.join(["python", *sys.argv]),
        cores=os.cpu_count(),
        jax=jax.__version__,
        load=load_average,
        figure=FIGURE.name,
        inputs=INPUTS,
        length=MAX_LENGTH,
        weight=REWARD_WEIGHT,
        penalty=compiled_cases[0].search.length_penalty,
        runs=plan.runs,
        spread=max(x.spread for x in times.values()),
        grid="\n".join(grid_row(case, times[case]) for case in compiled_cases),
        documents=ONE_BY_ONE,
        batch=BATCH,
        agreement=agreement(times),
        loops="\n".join(loop_row(case, times) for case in loops),
        small_inputs=SMALL_INPUTS,
        small_length=SMALL_LENGTH,
        small_lookahead=SMALL_LOOKAHEAD,
        memory=memory_rows(measured),
        slope=slope / MIB,
        positions=SMALL_LENGTH + SMALL_LOOKAHEAD,
        cache=CACHE / MIB,
        caches=slope / CACHE,
        cross=CROSS / MIB,
    )


def plot(times: dict[Case, Timed], measured: Memory, path: Path) -> None:
    """Time on the left, memory on the right, as a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for kind, marker in zip(LABELS, "osDx", strict=True):
        left.loglog(*points(times, kind), marker, label=LABELS[kind])
    left.set_xlabel("tokens processed per document")
    left.set_ylabel("seconds per document")
    plot_memory(measured, right)
    for axis, place in ((left, "lower right"), (right, "upper left")):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc=place)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def points(times: dict[Case, Timed], kind: str) -> tuple[list[float], list[float]]:
    """Tokens processed and seconds per document; the loop over the tokens of the search beside it."""
    cases = [case for case in times if case.kind == kind]
    counted = [beside(case, SINGLE) if kind == LOOP else case for case in cases]
    forward_tokens = [times[case].mean("forward_tokens") for case in counted]
    return forward_tokens, [times[case].per_document for case in cases]


def plot_memory(measured: Memory, axis: plt.Axes) -> None:
    slope, start = measured.line
    ends = np.array([0, max(measured.hypotheses)])
    line = lambda per_hypothesis: (start + per_hypothesis * ends) / MIB
    axis.plot(measured.hypotheses, np.array(measured.temporary) / MIB, "o", label="compiled search")
    axis.plot(ends, line(slope), color="C0", label=f"{slope / MIB:.1f} MiB a hypothesis")
    label = f"with encoder states multiplied: {CROSS / MIB:.0f} MiB more"
    axis.plot(ends, line(slope + CROSS), color="grey", linestyle="--", label=label)
    axis.set_xlabel("hypotheses: N beams and N·k candidates")
    axis.set_ylabel("temporary memory, MiB")


def main(argv: Sequence[str] | None = None) -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=as_written
    )
    parser.add_argument("--runs", type=int, help=f"of each search; {FULL.runs}")
    parser.add_argument("--quick", action="store_true", help="few settings, small ones, two runs")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and {FIGURE.name}")
    options = parser.parse_args(argv)
    if options.quick and options.write:
        parser.error("--quick is to try the script: its numbers are not to be written")
    load_average, plan = os.getloadavg()[0], QUICK if options.quick else FULL
    plan = dataclasses.replace(plan, runs=options.runs or plan.runs)
    times, measured = measure(load_world(), plan), memory(plan.widths)
    text = page(times, measured, plan, load_average)
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
        plot(times, measured, FIGURE)


if __name__ == "__main__":
    main()
