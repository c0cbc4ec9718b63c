"""DARWIN as a method of a comparison, and a trace of what happened for people to read."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.decoding.archive import Evolved, Lived, Questions, evolve
from dera_jax.decoding.evolution import Evolution, check_evolution
from dera_jax.decoding.mutation import MUTATOR, Mutator
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation.bench import Bench, check_prompt
from dera_jax.evaluation.methods import Answers, judging, num_models
from dera_jax.models.language_model import Prompts
from dera_jax.prompts import Prompt

TRACE = "evolution"  # of a record


@dataclasses.dataclass(frozen=True)
class Bred:
    """Populations under mutated instructions; the best text found is the answer.

    Attributes:
        name: of the method.
        evolution: how.
        mutator: of instructions.
        lam: λ.
        template: the seed instruction, see `Bench.prompts`.
        room: tokens that an instruction may have; beyond, the document is cut.

    Raises:
        ValueError: a setting out of its range, see `check_evolution`.
    """

    name: str
    evolution: Evolution
    mutator: Mutator
    lam: float = 0.0
    template: str | None = None
    room: int = 24

    def __post_init__(self):
        checks.check_fields(
            self,
            name=checks.TEXT,
            evolution=checks.instance(Evolution),
            mutator=MUTATOR,
            lam=LAMBDA,
            room=checks.whole(0),
        )
        check_prompt(self.template, has_keywords=True)
        check_evolution(self.evolution)

    def answer(self, bench: Bench, rows: np.ndarray) -> Answers:
        """See `Method`; the record holds `evolution`, see `trace`."""
        check_prompt(self.template, bench.documents.keywords is not None)
        model, params = bench.at(self.lam)
        questions = Questions(
            prompts=[bench.prompt(self.template, row) for row in rows],
            encode=functools.partial(self._encode, bench),
            example_ids=bench.documents.example_id[rows],
            guide=bench.guide(rows),
        )
        settings = bench.seed, self.evolution, self.mutator
        found = evolve(model, params, questions, *settings)
        best = found.best
        texts = (x[:, None] for x in (best.tokens, best.lengths, best.finished))
        cost = self._cost(bench, rows, found, num_models(model))
        details = [
            {TRACE: trace(bench, row, b, found, self.evolution)} for b, row in enumerate(rows)
        ]
        return Answers(*texts, cost[:, None], details)

    def _encode(self, bench: Bench, prompts: Sequence[Sequence[Prompt]]) -> Prompts:
        """[B, N, ...]: B x N prompts, with room for the instruction."""
        size = bench.documents.prompts.tokens.shape[1] + self.room
        flat = list(itertools.chain.from_iterable(prompts))
        found = bench.encode(flat, size, bench.lam((len(flat), 1), self.lam))
        return jax.tree.map(lambda x: x.reshape(len(prompts), -1, *x.shape[1:]), found)

    def _cost(self, bench: Bench, rows: np.ndarray, found: Evolved, models: int) -> np.ndarray:
        fed = found.read + found.seeds.lengths + sum(x.found.positions for x in found.generations)
        mutated = sum(x.offspring.positions for x in found.generations)
        rounds = sum(x.found.rounds for x in found.generations)
        each = judging(bench, rows, texts=self.evolution.population)
        return models * fed + mutated + judging(bench, rows, texts=1) + rounds * each


def trace(bench: Bench, row: int, b: int, found: Evolved, evolution: Evolution) -> dict:
    """What happened to input b, the document `row`, as `lineage.plot_lineage` shows it.

    Of a prompt its template, or where its text is not the document, all of it.
    """
    text = lambda answers: _text(bench, answers.tokens[b], answers.lengths[b])
    about = lambda answers: {"text": text(answers), "reward": float(answers.rewards[b])}
    document = bench.documents.texts[row]
    return {
        "document": document,
        "seed": {"prompt": found.generations[0].parents[b].template} | about(found.seeds),
        "best": about(found.best) | {"from": _winner(found, b)},
        "generations": [_generation(bench, b, document, x, evolution) for x in found.generations],
    }


def _winner(found: Evolved, b: int) -> tuple[int, int] | None:
    """Generation and individual of the best text; None if the seed's is."""
    reward, winner = found.seeds.rewards[b], None
    for g, lived in enumerate(found.generations):
        i = int(np.argmax(lived.found.rewards[b]))
        if lived.found.rewards[b, i] > reward:
            reward, winner = lived.found.rewards[b, i], (g, i)
    return winner


def _generation(bench: Bench, b: int, document: str, lived: Lived, evolution: Evolution) -> dict:
    found = jax.tree.map(lambda x: x[b], lived.found)
    texts = zip(found.texts.tokens, found.texts.lengths, strict=True)
    asked = lambda prompt: prompt.template if prompt.document == document else prompt.render()
    entry = lambda prompt, reward: {"template": asked(prompt), "reward": reward}
    return {
        "parent": entry(lived.parents[b], lived.bars[b]),
        "templates": [asked(prompt) for prompt in lived.offspring.children[b]],
        "fallbacks": int(lived.offspring.fallbacks[b]),
        "texts": [_text(bench, *each) for each in texts],
        "rewards": found.rewards.tolist(),
        "periods": [_period(bench, found, p, evolution) for p in range(found.rounds)],
        "offered": list(lived.offered[b]),
        "archive": [entry(*each) for each in lived.archives[b].items()],
    }


def _period(bench: Bench, found, p: int, evolution: Evolution) -> dict:
    history = jax.tree.map(lambda x: x[:, p].tolist(), found.history)
    start = p * evolution.period
    written = found.written[:, start : start + evolution.period]
    texts = zip(written, history.written, strict=True)
    return {
        "rewards": history.rewards,
        "survived": history.survived,
        "ended": history.ended,
        "donors": history.donors,
        "written": [_text(bench, tokens, length) for tokens, length in texts],
    }


def _text(bench: Bench, tokens: np.ndarray, length: int) -> str:
    return bench.tokenizer.decode(tokens[:length].tolist())


def replacements(records: Sequence[dict]) -> dict[str, float]:
    """What replacement did, in all generations of a method's records.

    Returns:
        tied: share of periods in which the last survivor's reward is that of the first who is none.
        tied_at_first: likewise, of first periods.
        adopted: adopted texts of an individual and generation.
        no_better: share of these whose reward is not above that of the text given up.
        copies: share of individuals whose prompt is their parent's.
        prompts: different prompts of a population, as a share of its individuals.
        different: different texts of a population at the end, likewise.
        population_reward: mean reward of all texts at the end.
    """
    generations = [x for record in records for x in record[TRACE]["generations"]]
    periods = [[p for p in x["periods"] if not all(p["ended"])] for x in generations]
    every = [period for some in periods for period in some]
    gains = [
        period["rewards"][donor] - period["rewards"][i]
        for period in every
        for i, donor in enumerate(period["donors"])
        if donor != i
    ]
    mean = lambda values: float(np.mean(values)) if len(values) else 0.0
    share = lambda values: len(set(values)) / len(values)
    return {
        "tied": mean([_tied(period) for period in every]),
        "tied_at_first": mean([_tied(some[0]) for some in periods if some]),
        "adopted": len(gains) / sum(len(x["texts"]) for x in generations),
        "no_better": mean([gain <= 0 for gain in gains]),
        "copies": mean([y == x["parent"]["template"] for x in generations for y in x["templates"]]),
        "prompts": mean([share(x["templates"]) for x in generations]),
        "different": mean([share(x["texts"]) for x in generations]),
        "population_reward": mean([reward for x in generations for reward in x["rewards"]]),
    }


def _tied(period: Mapping) -> bool:
    """Whether a survivor and one who is none have the same reward."""
    pairs = list(zip(period["rewards"], period["survived"], strict=True))
    kept, others = ([r for r, survived in pairs if survived == x] for x in (True, False))
    return min(kept) == max(others)
