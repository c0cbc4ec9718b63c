"""Runs DARWIN as a method of a comparison, and records a readable trace of every generation.

Source: Hung et al. 2024 (arXiv 2406.15193); see `decoding.archive` and `decoding.evolution`.

Axes: B documents of a batch, N individuals of a population, P replacement periods.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.decoding.archive import EvolutionInputs, Evolved, EvolvedGeneration, evolve
from dera_jax.decoding.evolution import Evolution, check_evolution
from dera_jax.decoding.mutation import MUTATOR, Mutator
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation.method_setup import MethodSetup, check_prompt
from dera_jax.evaluation.methods import MethodOutputs, num_models, scoring_tokens
from dera_jax.models.language_model import Prompts
from dera_jax.prompts import Prompt

TRACE = "evolution"  # key of the trace in a record


@dataclasses.dataclass(frozen=True)
class EvolutionMethod:
    """Evolves populations under mutated instructions (DARWIN) and returns the best sequence.

    Attributes:
        name: name of the method.
        evolution: settings of the evolution.
        mutator: mutator of instructions.
        lam: mixing coefficient λ.
        template: template of the seed instruction, see `MethodSetup.prompts`.
        room: tokens reserved for an instruction; where one is longer, the document is truncated.

    Raises:
        ValueError: a field has a wrong type or is out of its range, see `check_evolution`.
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
            room=checks.integer(0),
        )
        check_prompt(self.template, has_keywords=True)
        check_evolution(self.evolution)

    def answer(self, setup: MethodSetup, rows: np.ndarray) -> MethodOutputs:
        """See `Method`; records have `evolution`, see `trace`.

        Raises:
            ValueError, FloatingPointError: as `check_prompt`, `MethodSetup.at` and `evolve`.
        """
        check_prompt(self.template, setup.documents.keywords is not None)
        model, params = setup.at(self.lam)
        questions = EvolutionInputs(
            prompts=[setup.prompt(self.template, row) for row in rows],
            encode=functools.partial(self._encode, setup),
            example_ids=setup.documents.example_id[rows],
            guide=setup.guide(rows),
        )
        settings = setup.seed, self.evolution, self.mutator
        evolved = evolve(model, params, questions, *settings)
        best = evolved.best
        sequences = (x[:, None] for x in (best.tokens, best.lengths, best.finished))
        cost = self._cost(setup, rows, evolved, num_models(model))
        details = [
            {TRACE: trace(setup, row, b, evolved, self.evolution)} for b, row in enumerate(rows)
        ]
        return MethodOutputs(*sequences, cost[:, None], details)

    def _encode(self, setup: MethodSetup, prompts: Sequence[Sequence[Prompt]]) -> Prompts:
        """Encodes B x N prompts into leaves [B, N, ...], with room for the instruction."""
        size = setup.documents.prompts.tokens.shape[1] + self.room
        flat = list(itertools.chain.from_iterable(prompts))
        encoded = setup.encode(flat, size, setup.lam((len(flat), 1), self.lam))
        return jax.tree.map(lambda x: x.reshape(len(prompts), -1, *x.shape[1:]), encoded)

    def _cost(
        self, setup: MethodSetup, rows: np.ndarray, evolved: Evolved, models: int
    ) -> np.ndarray:
        """Returns int [B], tokens processed by the models, the mutator and reward models."""
        decoded_tokens = (
            evolved.read
            + evolved.seeds.lengths
            + sum(x.found.forward_tokens for x in evolved.generations)
        )
        mutator_tokens = sum(x.offspring.forward_tokens for x in evolved.generations)
        rounds = sum(x.found.rounds for x in evolved.generations)
        seed_scoring = scoring_tokens(setup, rows, texts=1)
        round_scoring = scoring_tokens(setup, rows, texts=self.evolution.population)
        return models * decoded_tokens + mutator_tokens + seed_scoring + rounds * round_scoring


def trace(setup: MethodSetup, row: int, b: int, found: Evolved, evolution: Evolution) -> dict:
    """Returns the history of input b, the document `row`, as `lineage.plot_lineage` draws it.

    A prompt is recorded by its template or, if the mutator changed its document, in full.
    """
    text = lambda outputs: _text(setup, outputs.tokens[b], outputs.lengths[b])
    about = lambda outputs: {"text": text(outputs), "reward": float(outputs.rewards[b])}
    document = setup.documents.texts[row]
    return {
        "document": document,
        "seed": {"prompt": found.generations[0].parents[b].template} | about(found.seeds),
        "best": about(found.best) | {"from": _winner(found, b)},
        "generations": [_generation(setup, b, document, x, evolution) for x in found.generations],
    }


def _winner(evolved: Evolved, b: int) -> tuple[int, int] | None:
    """Returns generation and individual of the best sequence; None if it is the seed's."""
    reward, winner = evolved.seeds.rewards[b], None
    for g, generation in enumerate(evolved.generations):
        i = int(np.argmax(generation.found.rewards[b]))
        if generation.found.rewards[b, i] > reward:
            reward, winner = generation.found.rewards[b, i], (g, i)
    return winner


def _generation(
    setup: MethodSetup, b: int, document: str, generation: EvolvedGeneration, evolution: Evolution
) -> dict:
    population = jax.tree.map(lambda x: x[b], generation.found)
    sequences = zip(population.texts.tokens, population.texts.lengths, strict=True)
    recorded = lambda prompt: prompt.template if prompt.document == document else prompt.render()
    entry = lambda prompt, reward: {"template": recorded(prompt), "reward": reward}
    return {
        "parent": entry(generation.parents[b], generation.parent_rewards[b]),
        "templates": [recorded(prompt) for prompt in generation.offspring.children[b]],
        "fallbacks": int(generation.offspring.fallbacks[b]),
        "texts": [_text(setup, *sequence) for sequence in sequences],
        "rewards": population.rewards.tolist(),
        "periods": [_period(setup, population, p, evolution) for p in range(population.rounds)],
        "offered": list(generation.offered[b]),
        "archive": [entry(*item) for item in generation.archives[b].items()],
    }


def _period(setup: MethodSetup, population, p: int, evolution: Evolution) -> dict:
    history = jax.tree.map(lambda x: x[:, p].tolist(), population.history)
    start = p * evolution.period
    written = population.written[:, start : start + evolution.period]
    segments = zip(written, history.written, strict=True)
    return {
        "rewards": history.rewards,
        "survived": history.survived,
        "ended": history.ended,
        "donors": history.donors,
        "written": [_text(setup, tokens, length) for tokens, length in segments],
    }


def _text(setup: MethodSetup, tokens: np.ndarray, length: int) -> str:
    return setup.tokenizer.decode(tokens[:length].tolist())


def replacement_statistics(records: Sequence[dict]) -> dict[str, float]:
    """Returns statistics of replacement and diversity over all generations of a method's records.

    Periods in which all sequences had ended are left out.

    Returns:
        tied: fraction of periods in which a survivor and an individual that is none have equal
            rewards, so that the index decides which survives.
        tied_at_first: the same fraction of first periods only.
        adopted: number of adoptions per individual and generation.
        no_better: fraction of adoptions whose reward is not above that of the replaced sequence.
        copies: fraction of individuals whose prompt is their parent's.
        prompts: number of distinct prompts of a population, as a fraction of its individuals.
        different: number of distinct final sequences of a population, as the same fraction.
        population_reward: mean reward of all final sequences.
    """
    generations = [x for record in records for x in record[TRACE]["generations"]]
    periods = [[p for p in x["periods"] if not all(p["ended"])] for x in generations]
    all_periods = [period for generation in periods for period in generation]
    gains = [
        period["rewards"][donor] - period["rewards"][i]
        for period in all_periods
        for i, donor in enumerate(period["donors"])
        if donor != i
    ]
    mean = lambda values: float(np.mean(values)) if len(values) else 0.0
    distinct = lambda values: len(set(values)) / len(values)
    return {
        "tied": mean([_tied(period) for period in all_periods]),
        "tied_at_first": mean([_tied(generation[0]) for generation in periods if generation]),
        "adopted": len(gains) / sum(len(x["texts"]) for x in generations),
        "no_better": mean([gain <= 0 for gain in gains]),
        "copies": mean([y == x["parent"]["template"] for x in generations for y in x["templates"]]),
        "prompts": mean([distinct(x["templates"]) for x in generations]),
        "different": mean([distinct(x["texts"]) for x in generations]),
        "population_reward": mean([reward for x in generations for reward in x["rewards"]]),
    }


def _tied(period: Mapping) -> bool:
    """Returns whether a survivor and a non-survivor have the same reward."""
    pairs = list(zip(period["rewards"], period["survived"], strict=True))
    survivors, others = ([r for r, survived in pairs if survived == x] for x in (True, False))
    return min(survivors) == max(others)
