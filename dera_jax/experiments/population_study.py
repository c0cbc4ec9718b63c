"""Compares DARWIN with budget-matched baselines that use the same reward.

    SFT (unless a reference is given) → PPO on the reward (unless an aligned model is given) →
    every method decodes the same held-out documents → tables, figures, lineages

The guided methods of the first table process about as many tokens as DARWIN, up to rounding to
whole samples, beams and individuals: best-of-n, DeAL, the two ablations of DARWIN (mutation without
replacement, replacement without mutation), DARWIN itself, and best-of-n and DARWIN on the realigned
policy (DeRa). Greedy decoding and plain sampling are shown for comparison. The second table varies
one setting of DARWIN at a time.

Source: Hung et al. 2024 (arXiv 2406.15193), its comparisons and its ablation, on the data that is
available here.

Axes: B documents, N individuals, S prompt length.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from dera_jax import checks
from dera_jax.checkpoints.resources import DryRunResources
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.evolution import Evolution, check_evolution, generation
from dera_jax.decoding.mutation import MUTATOR, Mutator, Unchanged
from dera_jax.decoding.realign import LAMBDA
from dera_jax.decoding.search import Guide
from dera_jax.evaluation import record_store
from dera_jax.evaluation.method_setup import MethodSetup
from dera_jax.evaluation.method_tables import (
    content,
    method_folder,
    paired_difference,
    run_method,
    write,
    write_samples,
)
from dera_jax.evaluation.methods import SamplingMethod, SearchMethod, num_models
from dera_jax.evaluation.populations import TRACE, EvolutionMethod, replacement_statistics
from dera_jax.evaluation.report_content import conclude
from dera_jax.experiments import lineage, plots, population_plots
from dera_jax.experiments.search_experiment import (
    Budget,
    SearchExperiment,
    budget_matched_search,
    check_searches,
)
from dera_jax.experiments.stages import run_all
from dera_jax.models.language_model import Prompts, sequence_keys
from dera_jax.rewards.protocol import REWARD, Reward
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.training.dry_run import ProgramCost, decodable, program_cost, shapes, source_shapes

_DARWIN = "DARWIN"  # the row that all others are compared with
_MUTATED, _BEST, _DEAL = "mutation only", "best of n", "DeAL"
_NUM_SAMPLES = 8  # per document, for the means of plain sampling


@dataclasses.dataclass(frozen=True)
class PopulationStudy:
    """Compares DARWIN with the other decoding methods under one reward.

    Attributes:
        setting: the models, documents and length limit.
        reward: the reward that guides decoding.
        evolution: DARWIN's settings; all sampling methods use its temperature and top-k.
        mutator: the mutator of DARWIN's instructions.
        search: DeAL's settings; the number of beams is set by the budget.
        lam: λ of the DeRa rows.
        periods, populations, survivors, lookaheads, generations: values of DARWIN's settings that
            are varied one at a time.
        texts, beams: numbers of samples (best-of-n) and of beams (DeAL) for the figure of costs.
        headline: the column that figures and gaps show.
        title: the title of the figures.
        lineages: the number of documents whose lineage is drawn.

    Raises:
        ValueError: there is no aligned model, or a field is out of its range.
    """

    setting: SearchExperiment
    reward: Reward
    evolution: Evolution
    mutator: Mutator
    search: Search
    lam: float
    periods: tuple[int, ...]
    populations: tuple[int, ...]
    survivors: tuple[int, ...]
    lookaheads: tuple[int, ...]
    generations: tuple[int, ...]
    texts: tuple[int, ...]
    beams: tuple[int, ...]
    headline: str
    title: str
    lineages: int = 3

    def __post_init__(self):
        varied = ("periods", "populations", "survivors", "lookaheads", "generations")
        # `check_evolution` below checks the lower bound of each setting.
        varied_values = checks.sequence(checks.integer(0), "(2, 4)", least=0)
        counts = checks.sequence(checks.integer(1), "(2, 4)", least=0)
        checks.check_fields(
            self,
            setting=checks.instance(SearchExperiment),
            reward=REWARD,
            evolution=checks.instance(Evolution),
            mutator=MUTATOR,
            search=checks.instance(Search),
            lam=LAMBDA,
            texts=counts,
            beams=counts,
            headline=checks.TEXT,
            title=checks.STRING,
            lineages=checks.integer(0),
            **dict.fromkeys(varied, varied_values),
        )
        for name in (*varied, "texts", "beams"):
            checks.check_distinct(f"PopulationStudy.{name}", getattr(self, name))
        if self.setting.aligned is None and self.setting.align is None:
            raise ValueError(
                "PopulationStudy needs an aligned model or `align` for the DeRa rows: set "
                "SearchExperiment.aligned or SearchExperiment.align"
            )
        for evolution in (self.evolution, *self._varied().values()):
            check_evolution(evolution, None, self.reward)  # before hours of training
        check_searches({f"{n} beams": self._search(n) for n in (1, *self.beams)}, self.reward)

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is unfinished; writes tables (JSON, CSV), figures, lineages, samples.txt, report.json.

        Returns:
            The rows of both tables. gap_to_darwin and gap_to_mutation_only are differences in the
            headline column, see `method_tables.paired_difference`; `populations.replacement_statistics` explains the columns about
            replacement.

        Raises:
            FileNotFoundError, ValueError: see `SearchExperiment.check`.
        """
        self.setting.check(self.reward, self.headline)
        run_all(self.setting.stages(folder, self.reward))
        setup = self.setting.setup(folder, self.reward)
        evaluate = functools.partial(run_method, setup, folder)
        gap = functools.partial(
            paired_difference, folder, self.headline, "to_darwin", other=_DARWIN
        )
        rows = [row | gap(method=row["method"]) for row in self._methods(setup, evaluate)]
        effects = self._effects(evaluate, folder)
        costs = [*effects, *self._costs(evaluate), *({"kind": row["method"]} | row for row in rows)]
        write(folder, "methods", rows)
        write(folder, "effects", effects)
        plots.plot_methods(rows, self.headline, self.title, folder / "methods.png")
        population_plots.plot_effects(effects, self.headline, self.title, folder / "effects.png")
        population_plots.plot_cost(costs, self.headline, self.title, folder / "cost.png")
        write_samples(folder, [row["method"] for row in rows])
        self._write_lineages(folder)
        tables = {"Methods": rows, "DARWIN: one setting varied": effects}
        conclude(content(self.title, tables, [self.headline]), folder)
        return {"methods": rows, "effects": effects}

    def program_costs(self) -> list[ProgramCost]:
        """Returns the costs of the stages, of a batch of DeAL and of one generation of DARWIN.

        The last two are left out if the reward runs in Python.
        """
        costs = self.setting.program_costs(self.reward, self.search)
        return costs if self.reward.on_host else [*costs, self._generation_cost()]

    def _generation_cost(self) -> ProgramCost:
        setting, evolution, reward = self.setting, self.evolution, self.reward
        model, batch, n = (
            decodable(setting.reference.model()),
            setting.batch_size,
            evolution.population,
        )
        source = setting.documents.inputs
        size = source + EvolutionMethod.room
        params = jax.eval_shape(model.init, jax.random.key(0))
        reward_params = shapes(reward.load(DryRunResources(model.vocab_size)))
        call = jax.jit(
            lambda params, prompts, keys, reward_params, source: generation(
                model,
                params,
                prompts,
                keys,
                evolution,
                Guide(RewardScorer(reward, reward_params, str), source),
            )
        )
        length, m = evolution.sampling.max_length, evolution.period
        adopted = (n - evolution.survivors) * sum(range(m, length, m))
        return program_cost(
            "population, a batch",
            {"reference": params, "reward": reward_params},
            batch * (n * (size + length) + adopted),
            call,
            params,
            Prompts(
                jax.ShapeDtypeStruct((batch, n, size), jnp.int32),
                jax.ShapeDtypeStruct((batch, n), jnp.int32),
            ),
            jax.eval_shape(lambda: sequence_keys(0, jnp.arange(batch), jnp.arange(n))),
            reward_params,
            source_shapes(batch, source, source),
        )

    def _methods(self, setup: MethodSetup, evaluate: Callable) -> list[dict]:
        evolution, lam = self.evolution, self.lam
        at, size = f"at λ = {lam:g}", evolution.population
        darwin = evaluate(EvolutionMethod(_DARWIN, evolution, self.mutator))
        budget = Budget.of(setup, darwin)
        sampling = evaluate(self._sampled("sampling", n=_NUM_SAMPLES))
        dera = evaluate(self._sampled(f"DeRa {at}", n=_NUM_SAMPLES, lam=lam))
        models = num_models(setup.at(lam)[0])
        n, n_dera = budget.texts(sampling, 1), budget.texts(dera, models)
        no_replacement = dataclasses.replace(evolution, period=evolution.sampling.max_length)
        matched = functools.partial(self._budget_matched, evaluate, budget)
        return [
            evaluate(SamplingMethod("greedy", greedy=True)),
            sampling,
            evaluate(self._sampled(f"best of {n}", n=n, best=True)),
            budget_matched_search(evaluate, budget, _DEAL, self._search, guided=True),
            matched(_MUTATED, size, no_replacement, self.mutator),
            matched("replacement only", size, evolution, Unchanged()),
            darwin,
            dera,
            evaluate(self._sampled(f"best of {n_dera} {at}", n=n_dera, lam=lam, best=True)),
            matched(f"{_DARWIN} {at}", max(2, size // models), evolution, self.mutator, lam),
        ]

    def _budget_matched(
        self, evaluate: Callable, budget: Budget, name: str, trial_size: int, *settings: object
    ) -> dict:
        """Returns a method's row with the population size that the budget allows.

        A trial run with `trial_size` individuals measures the cost of one.
        """
        evolution, *others = settings
        method = lambda n: EvolutionMethod(
            f"{name}, {n} individuals", _with_population(evolution, n), *others
        )
        return evaluate(method(budget.individuals(evaluate(method(trial_size)), trial_size)))

    def _varied(self) -> dict[tuple[str, int], Evolution]:
        """Returns DARWIN's settings with one of them changed, by its name and value."""
        change = functools.partial(dataclasses.replace, self.evolution)
        sized = {("population", n): _with_population(self.evolution, n) for n in self.populations}
        return (
            {("period", x): change(period=x) for x in self.periods}
            | sized
            | {("survivors", x): change(survivors=x) for x in self.survivors}
            | {("lookahead", x): change(lookahead=x) for x in self.lookaheads}
            | {("generations", x): change(generations=x) for x in self.generations}
        )

    def _effects(self, evaluate: Callable, folder: Path) -> list[dict]:
        mutated = f"{_MUTATED}, {self.evolution.population} individuals"
        rows = []
        for (setting, value), evolution in self._varied().items():
            name = f"{_DARWIN}, {setting} {value}"
            row = {"varied": setting, "value": value, "kind": f"{_DARWIN}, {setting}"}
            row |= evaluate(EvolutionMethod(name, evolution, self.mutator)) | {
                "survivors": evolution.survivors
            }
            row |= replacement_statistics(record_store.read(method_folder(folder, name)))
            rows.append(
                row | paired_difference(folder, self.headline, "to_mutation_only", name, mutated)
            )
        return rows

    def _costs(self, evaluate: Callable) -> list[dict]:
        best = [self._sampled(f"best of {n}, cost", n=n, best=True) for n in self.texts]
        deal = [SearchMethod(f"{_DEAL}, {n} beams, cost", self._search(n)) for n in self.beams]
        return [{"kind": _BEST} | evaluate(x) for x in best] + [
            {"kind": _DEAL} | evaluate(x) for x in deal
        ]

    def _sampled(self, name: str, **settings) -> SamplingMethod:
        sampling = self.evolution.sampling
        return SamplingMethod(
            name, temperature=sampling.temperature, top_k=sampling.top_k, **settings
        )

    def _search(self, beams: int) -> Search:
        return dataclasses.replace(self.search, beams=beams)

    def _write_lineages(self, folder: Path) -> None:
        records = record_store.read(method_folder(folder, _DARWIN))
        for i, record in enumerate(records[: self.lineages]):
            lineage.plot_lineage(record[TRACE], folder / f"lineage_{i + 1}.png")


def _with_population(evolution: Evolution, population: int) -> Evolution:
    """Returns the settings with this population size and at most population − 1 survivors."""
    survivors = max(1, min(evolution.survivors, population - 1))
    return dataclasses.replace(evolution, population=population, survivors=survivors)
