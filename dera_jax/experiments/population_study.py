"""DARWIN beside everything else one could do with the same reward and budget.

    SFT (unless a reference is given) → PPO on the reward (unless an aligned model is given) →
    every method answers the same held-out documents → tables, figures, lineages

The table of methods is at equal model token-positions, as near as whole texts, beams and
individuals allow: sampling and its best of n, DeAL, both halves of DARWIN by themselves (mutation
without replacement, replacement without mutation), DARWIN, and it all on DeRa. The second table
varies one setting of DARWIN at a time.

Source: Hung et al. 2024 (arXiv 2406.15193), its comparisons and its ablation, on what data is there.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from dera_jax import checks
from dera_jax.checkpoints.resources import ShapesOnly
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.evolution import Evolution, check_evolution, generation
from dera_jax.decoding.mutation import MUTATOR, Mutator, Unchanged
from dera_jax.decoding.realign import LAMBDA
from dera_jax.decoding.search import Guide
from dera_jax.evaluation import lineage, plots, population_plots, shards
from dera_jax.evaluation.bench import Bench
from dera_jax.evaluation.method_tables import (
    answered,
    folder_of,
    paired_gap,
    write,
    write_samples,
)
from dera_jax.evaluation.methods import Sampled, Searched, num_models
from dera_jax.evaluation.populations import TRACE, Bred, replacements
from dera_jax.experiments.search_setting import Budget, Setting, check_searches, widened
from dera_jax.experiments.stages import run_all
from dera_jax.models.language_model import Prompts, sequence_keys
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import REWARD, Reward
from dera_jax.training.dry_run import Need, decodable, need, shapes, source_shapes

_DARWIN = "DARWIN"  # the row that others are compared with
_MUTATED, _BEST, _DEAL = "mutation only", "best of n", "DeAL"
_ANSWERS = 8  # samples of a document, for the mean of plain sampling


@dataclasses.dataclass(frozen=True)
class PopulationStudy:
    """One reward, every method.

    Attributes:
        setting: models, documents, lengths.
        reward: what guides.
        evolution: DARWIN's settings; all texts that are sampled, are so by its `sampling`.
        mutator: of its instructions.
        search: DeAL's settings but for the beams, of which there are as many as the budget buys.
        lam: λ of the rows on DeRa.
        periods, populations, survivors, lookaheads, generations: DARWIN is run with each too.
        texts, beams: best-of-n and DeAL are run with so many too, for the figure of costs.
        headline: the column of the figures and of the gaps.
        title: of the figures.
        lineages: so many documents get a picture of what happened.

    Raises:
        ValueError: no aligned model, or invalid settings.
    """

    setting: Setting
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
        some = checks.several(checks.whole(0), "(2, 4)", least=0)  # `check_evolution` knows more
        several = checks.several(checks.whole(1), "(2, 4)", least=0)
        checks.check_fields(
            self,
            setting=checks.instance(Setting),
            reward=REWARD,
            evolution=checks.instance(Evolution),
            mutator=MUTATOR,
            search=checks.instance(Search),
            lam=LAMBDA,
            texts=several,
            beams=several,
            headline=checks.TEXT,
            title=checks.STRING,
            lineages=checks.whole(0),
            **dict.fromkeys(varied, some),
        )
        for name in (*varied, "texts", "beams"):
            checks.check_distinct(f"PopulationStudy.{name}", getattr(self, name))
        if self.setting.aligned is None and self.setting.align is None:
            raise ValueError(
                "PopulationStudy needs an aligned model or `align`, for the rows on DeRa"
            )
        for evolution in (self.evolution, *self._varied().values()):
            check_evolution(evolution, None, self.reward)  # before hours of training
        check_searches({f"{n} beams": self._search(n) for n in (1, *self.beams)}, self.reward)

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves tables (JSON, CSV), figures, lineages and samples.txt.

        Returns:
            The rows of both tables; gap_to_darwin and gap_to_mutation_only are differences of the
            headline column, see `paired_gap`, and for the columns about replacement
            `populations.replacements`.

        Raises:
            ValueError: the tables have no column of the headline's name.
        """
        self.setting.check(self.reward, self.headline)
        run_all(self.setting.stages(folder, self.reward))
        bench = self.setting.bench(folder, self.reward)
        ask = functools.partial(answered, bench, folder)
        gap = functools.partial(paired_gap, folder, self.headline, "to_darwin", other=_DARWIN)
        rows = [row | gap(method=row["method"]) for row in self._methods(bench, ask)]
        effects = self._effects(ask, folder)
        costs = [*effects, *self._costs(ask), *({"kind": row["method"]} | row for row in rows)]
        write(folder, "methods", rows)
        write(folder, "effects", effects)
        plots.plot_methods(rows, self.headline, self.title, folder / "methods.png")
        population_plots.plot_effects(effects, self.headline, self.title, folder / "effects.png")
        population_plots.plot_cost(costs, self.headline, self.title, folder / "cost.png")
        write_samples(folder, [row["method"] for row in rows])
        self._write_lineages(folder)
        return {"methods": rows, "effects": effects}

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take, a batch of DeAL, and one of DARWIN's generations.

        What goes through Python is left out.
        """
        needs = self.setting.needs(self.reward, self.search)
        return needs if self.reward.on_host else [*needs, self._generation_need()]

    def _generation_need(self) -> Need:
        setting, evolution, reward = self.setting, self.evolution, self.reward
        model, batch, n = (
            decodable(setting.reference.model()),
            setting.batch_size,
            evolution.population,
        )
        size, source = setting.documents.inputs + Bred.room, setting.documents.inputs
        params = jax.eval_shape(model.init, jax.random.key(0))
        judging = shapes(reward.load(ShapesOnly(model.vocab_size)))
        call = jax.jit(
            lambda params, prompts, keys, judging, source: generation(
                model, params, prompts, keys, evolution, Guide(Judge(reward, judging, str), source)
            )
        )
        length, m = evolution.sampling.max_length, evolution.period
        adopted = (n - evolution.survivors) * sum(range(m, length, m))
        return need(
            "population, a batch",
            {"reference": params, "reward": judging},
            batch * (n * (size + length) + adopted),
            call,
            params,
            Prompts(
                jax.ShapeDtypeStruct((batch, n, size), jnp.int32),
                jax.ShapeDtypeStruct((batch, n), jnp.int32),
            ),
            jax.eval_shape(lambda: sequence_keys(0, jnp.arange(batch), jnp.arange(n))),
            judging,
            source_shapes(batch, source, source),
        )

    def _methods(self, bench: Bench, ask: Callable) -> list[dict]:
        evolution, lam = self.evolution, self.lam
        at, size = f"at λ = {lam:g}", evolution.population
        darwin = ask(Bred(_DARWIN, evolution, self.mutator))
        budget = Budget.of(bench, darwin)
        sampling = ask(self._sampled("sampling", n=_ANSWERS))
        dera = ask(self._sampled(f"DeRa {at}", n=_ANSWERS, lam=lam))
        models = num_models(bench.at(lam)[0])
        n, n_dera = budget.texts(sampling, 1), budget.texts(dera, models)
        never = dataclasses.replace(evolution, period=evolution.sampling.max_length)
        bred = functools.partial(self._as_many, ask, budget)
        return [
            ask(Sampled("greedy", greedy=True)),
            sampling,
            ask(self._sampled(f"best of {n}", n=n, best=True)),
            widened(ask, budget, _DEAL, self._search, guided=True),
            bred(_MUTATED, size, never, self.mutator),
            bred("replacement only", size, evolution, Unchanged()),
            darwin,
            dera,
            ask(self._sampled(f"best of {n_dera} {at}", n=n_dera, lam=lam, best=True)),
            bred(f"{_DARWIN} {at}", max(2, size // models), evolution, self.mutator, lam),
        ]

    def _as_many(
        self, ask: Callable, budget: Budget, name: str, tried: int, *settings: object
    ) -> dict:
        """The row of a method with as many individuals as the budget pays for; a try tells."""
        evolution, *others = settings
        named = lambda n: Bred(f"{name}, {n} individuals", _of_size(evolution, n), *others)
        return ask(named(budget.individuals(ask(named(tried)), tried)))

    def _varied(self) -> dict[tuple[str, int], Evolution]:
        """DARWIN with one setting changed, by the setting's name and value."""
        change = functools.partial(dataclasses.replace, self.evolution)
        sized = {("population", n): _of_size(self.evolution, n) for n in self.populations}
        return (
            {("period", x): change(period=x) for x in self.periods}
            | sized
            | {("survivors", x): change(survivors=x) for x in self.survivors}
            | {("lookahead", x): change(lookahead=x) for x in self.lookaheads}
            | {("generations", x): change(generations=x) for x in self.generations}
        )

    def _effects(self, ask: Callable, folder: Path) -> list[dict]:
        mutated = f"{_MUTATED}, {self.evolution.population} individuals"
        rows = []
        for (setting, value), evolution in self._varied().items():
            name = f"{_DARWIN}, {setting} {value}"
            row = {"varied": setting, "value": value, "kind": f"{_DARWIN}, {setting}"}
            row |= ask(Bred(name, evolution, self.mutator)) | {"survivors": evolution.survivors}
            row |= replacements(shards.read(folder_of(folder, name)))
            rows.append(row | paired_gap(folder, self.headline, "to_mutation_only", name, mutated))
        return rows

    def _costs(self, ask: Callable) -> list[dict]:
        best = [self._sampled(f"best of {n}, cost", n=n, best=True) for n in self.texts]
        deal = [Searched(f"{_DEAL}, {n} beams, cost", self._search(n)) for n in self.beams]
        return [{"kind": _BEST} | ask(x) for x in best] + [{"kind": _DEAL} | ask(x) for x in deal]

    def _sampled(self, name: str, **settings) -> Sampled:
        sampling = self.evolution.sampling
        return Sampled(name, temperature=sampling.temperature, top_k=sampling.top_k, **settings)

    def _search(self, beams: int) -> Search:
        return dataclasses.replace(self.search, beams=beams)

    def _write_lineages(self, folder: Path) -> None:
        records = shards.read(folder_of(folder, _DARWIN))
        for i, record in enumerate(records[: self.lineages]):
            lineage.plot_lineage(record[TRACE], folder / f"lineage_{i + 1}.png")


def _of_size(evolution: Evolution, population: int) -> Evolution:
    """With so many individuals, of whom fewer survive where all would."""
    survivors = max(1, min(evolution.survivors, population - 1))
    return dataclasses.replace(evolution, population=population, survivors=survivors)
