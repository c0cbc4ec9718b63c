"""What scoring a round costs: rewards inside the compiled decode, and the same ones through Python.

    python benchmarks/scoring_round.py --write

A round is best-of-n with the shipped reference on real test documents. Inside, decode, reward and
choice are one compiled call; through the host the compiled decode returns, ids become text, a Python
function scores the texts (for the networks: tokenizes them and calls the compiled network), and the
winners are picked. Both must choose the same texts, or the script says which share they do not.
`--write` puts the table into docs/results/scoring_round.md.

Axes: B documents, K texts of each, S prompt length, T output length.
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
import numpy as np

import dera_jax.tasks  # noqa: F401 (registers `docstrings`)
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data.documents import Documents, keyword_texts
from dera_jax.data.splits import Split
from dera_jax.decoding.best_of_n import best_of_n, winners
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.decoding.search import Guide
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import pad_sequences, sequence_keys
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.learned import Entailment, RewardModel
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import RewardScorer, score
from dera_jax.rewards.words import Faithfulness, KeywordCoverage, coverage, faithful_fraction

BATCH, SAMPLES, INPUTS, MAX_LENGTH = 16, 16, 80, 24
REPORT = Path(__file__).parents[1] / "docs" / "results" / "scoring_round.md"

TEXT = """# Scoring a round: inside the compiled decode, and through Python

Written by `{command}`. Machine: {cores} CPU cores, no accelerator. Load average at the start: {load:.2f}.

A round: {batch} test documents, {samples} texts of at most {length} tokens of each, by the shipped reference (2.9
million parameters), the best of {samples} kept. Milliseconds, medians of {runs} rounds. "Inside": decode, reward and
choice are one compiled call. "Host": the same reward as a Python function of texts, between compiled calls. The
decode alone, without any reward, takes {alone:.0f} ms. "Same choice": share of documents with the same winner in
both; texts are not always the tokens that wrote them once they are tokenized again.

| reward | inside | host | host ÷ inside | reward alone, inside | reward alone, host | same choice |
|---|---:|---:|---:|---:|---:|---:|
{rows}
"""


@dataclasses.dataclass(frozen=True)
class World:
    """A model, its parameters, documents, and the text around them."""

    model: object
    params: object
    documents: Documents
    text: Tokenizer
    resources: RunResources


def read_world() -> World:
    loaded = load("dera_jax/assets/reference")
    documents = Split("docstrings", "test", INPUTS, BATCH).read(loaded.tokenizer)
    resources = RunResources(loaded.vocabulary)
    params = jax.device_put(loaded.params)
    return World(loaded.model, params, documents, loaded.tokenizer, resources)


def inside(world: World, reward: Reward, params) -> np.ndarray:
    """int [B], the winners of one compiled call."""
    source, *begun = round_of(world)
    guide = Guide(RewardScorer(reward, params, world.text.decode), source)
    best = best_of_n(world.model, world.params, *begun, SAMPLES, guide)
    return np.asarray(best.index)[:, 0]


def outside(world: World, scorer: RewardScorer) -> np.ndarray:
    """int [B], the winners by way of text."""
    samples = decode(world)
    source = round_of(world)[0]
    texts = samples.tokens, samples.lengths, samples.finished
    rewards, _ = scorer(source, world.documents.texts, *texts)
    return np.asarray(winners(rewards, SAMPLES))[:, 0]


def decode(world: World):
    _, *begun = round_of(world)
    return jax.block_until_ready(sample(world.model, world.params, *begun))


def round_of(world: World):
    """Source, prompts, keys [B, K] and sampling."""
    source = world.documents.source(np.arange(BATCH))
    keys = sequence_keys(0, world.documents.example_id, np.arange(SAMPLES))
    return source, world.documents.prompts, keys, Sampling(MAX_LENGTH)


def pairs(world: World) -> list[tuple[str, Reward, object, Callable]]:
    """name, reward, its parameters, and the same reward as a function of texts."""
    trunk = ValueHead(world.model)
    head = trunk.init(world.params)["head"]
    kernel = 0.1 * jax.random.normal(jax.random.key(0), head["kernel"].shape)
    network = {"trunk": world.params, "head": head | {"kernel": kernel}}
    answers = Entailment(world.model, max_length=128)
    prompts = answers.load(_Given(world))
    lists = map(keyword_texts, world.documents.keywords)
    keywords = dict(zip(world.documents.texts, lists, strict=True))
    length = LengthInRange(12, 16)
    words = lambda reward: (reward, reward.load(world.resources))
    return [
        ("length in range", length, None, lambda d, t: in_range(world, length, t)),
        ("keyword coverage", *words(KeywordCoverage()),
         lambda d, t: [coverage(x, keywords[y]) for x, y in zip(t, d, strict=True)]),
        ("faithfulness", *words(Faithfulness()),
         lambda d, t: [faithful_fraction(x, y) for x, y in zip(t, d, strict=True)]),
        ("reward model", RewardModel(trunk), network,
         lambda d, t: through_text(world, RewardModel(trunk), network, t)),
        ("entailment", answers, prompts, lambda d, t: through_text(world, answers, prompts, t)),
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Given:
    """Resources whose only model is the world's own."""

    world: World

    @property
    def end_id(self) -> int:
        return self.world.text.end_id

    def encode(self, text: str) -> list[int]:
        return self.world.text.encode(text)

    def params(self, folder, init):
        return self.world.params


def in_range(world: World, reward: LengthInRange, texts: Sequence[str]) -> list[float]:
    counts = (len(world.text.encode(text)) for text in texts)
    return [0.0 if reward.low <= n <= reward.high else -1.0 for n in counts]


def through_text(world: World, reward: Reward, params, texts: Sequence[str]) -> np.ndarray:
    """A network's reward of texts, K for each of the round's documents in order."""
    end = world.text.end_id
    tokens, lengths = pad_sequences(
        [[*world.text.encode(text), end][:MAX_LENGTH] for text in texts], MAX_LENGTH
    )
    tokens, lengths = tokens.reshape(BATCH, -1, MAX_LENGTH), lengths.reshape(BATCH, -1)
    finished = np.any(tokens == end, axis=-1)  # 0, the padding, ends no text
    source = Source(world.documents.prompts)
    return np.asarray(score(reward, params, source, tokens, lengths, finished)[0]).ravel()


def measure(calls: dict[str, Callable], runs: int) -> dict[str, float]:
    """Median milliseconds of each call; they take turns, so a disturbance falls on all."""
    for call in calls.values():
        call()
    seconds = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(x) for name, x in seconds.items()}


def row(world: World, name: str, reward: Reward, params, function: Callable, runs: int):
    """A line of the table, and the decode's own milliseconds."""
    scorer = RewardScorer(HostReward(function), None, world.text.decode)
    samples, source = decode(world), round_of(world)[0]
    texts = samples.tokens, samples.lengths, samples.finished
    found = measure(
        {
            "inside": lambda: inside(world, reward, params),
            "host": lambda: outside(world, scorer),
            "decode": lambda: decode(world),
            "reward": lambda: jax.block_until_ready(score(reward, params, source, *texts)),
            "text": lambda: scorer(source, world.documents.texts, *texts),
        },
        runs,
    )
    same = np.mean(inside(world, reward, params) == outside(world, scorer))
    line = (
        f"| {name} | {found['inside']:.0f} | {found['host']:.0f} | "
        f"{found['host'] / found['inside']:.2f} | {found['reward']:.1f} | "
        f"{found['text']:.1f} | {same:.0%} |"
    )
    print(line)
    return line, found["decode"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    options = parser.parse_args(argv)
    load_average, world = os.getloadavg()[0], read_world()
    rows, alone = zip(*(row(world, *pair, options.runs) for pair in pairs(world)), strict=True)
    if options.write:
        text = TEXT.format(
            command=shlex.join(["python", *sys.argv]),
            cores=os.cpu_count(),
            load=load_average,
            batch=BATCH,
            samples=SAMPLES,
            length=MAX_LENGTH,
            runs=options.runs,
            alone=statistics.median(alone),
            rows="\n".join(rows),
        )
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
