"""Compares reward-guided beam search (DeAL) with budget-matched baselines that use the same reward.

    SFT (unless a reference is given) → PPO on the reward (unless an aligned model is given) → every
    method decodes the same held-out documents → tables and figures

The guiding reward is measured on every output, together with ROUGE and further rewards that show
what the guidance costs. `SearchStudy` compares many methods under one reward and varies DeAL's
reward weight and lookahead. `TradeOff` varies the weights of two rewards. `MethodComparison` compares the
methods that it is given.

Source: Huang et al. 2024 (arXiv 2402.06147), its experiments on keyword constraints, length
constraints and alignment objectives, on the data that is available here or given by the user.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

from dera_jax import checks
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation.method_setup import MethodSetup, check_prompt
from dera_jax.evaluation.method_tables import (
    check_names,
    content,
    paired_difference,
    run_method,
    write,
    write_samples,
)
from dera_jax.evaluation.methods import Method, SamplingMethod, SearchMethod, num_models
from dera_jax.evaluation.report_content import conclude
from dera_jax.evaluation.sweep import PART
from dera_jax.experiments import plots
from dera_jax.experiments.search_experiment import (
    Budget,
    SearchExperiment,
    budget_matched_search,
    check_searches,
    with_reward,
)
from dera_jax.experiments.stages import run_all
from dera_jax.rewards.combined import Combined, Part, Statistics
from dera_jax.rewards.protocol import REWARD, Reward
from dera_jax.training.dry_run import ProgramCost

_PLAIN, _DEAL = "beam search", "DeAL"  # rows that all others are compared with
_NUM_SAMPLES = 8  # per document, for the means of plain sampling


@dataclasses.dataclass(frozen=True)
class SearchStudy:
    """Compares DeAL with the other decoding methods under one reward.

    Attributes:
        setting: the models, documents and length limit.
        reward: the reward that guides decoding.
        search: DeAL's settings; its tokens processed are the budget of best-of-n and of wider
            searches, up to rounding to whole samples or beams.
        lam: λ of the DeRa rows.
        prompt: an instruction that asks for what the reward measures, see `MethodSetup.prompts`.
        weights, lookaheads: reward weights and lookaheads (tokens); DeAL is run with every pair.
        headline: the column that figures and gaps show.
        title: the title of the figures.

    Raises:
        ValueError: there is no aligned model, the prompt has no slot for the document, or a field
            is out of its range.
    """

    setting: SearchExperiment
    reward: Reward
    search: Search
    lam: float
    prompt: str
    weights: tuple[float, ...]
    lookaheads: tuple[int, ...]
    headline: str
    title: str

    def __post_init__(self):
        checks.check_fields(
            self,
            setting=checks.instance(SearchExperiment),
            reward=REWARD,
            search=checks.instance(Search),
            lam=LAMBDA,
            weights=checks.sequence(checks.number(least=0), "(1.0, 4.0)"),
            lookaheads=checks.sequence(checks.integer(0), "(0, 4)"),
            headline=checks.TEXT,
            title=checks.STRING,
        )
        for name in ("weights", "lookaheads"):
            checks.check_distinct(f"SearchStudy.{name}", getattr(self, name))
        if self.setting.aligned is None and self.setting.align is None:
            raise ValueError(
                "SearchStudy needs an aligned model or `align` for the DeRa rows: set "
                "SearchExperiment.aligned or SearchExperiment.align"
            )
        check_prompt(self.prompt, has_keywords=True)
        check_searches(self._searches(), self.reward)

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is unfinished and writes tables (JSON, CSV), figures, samples.txt and report.json.

        Returns:
            The rows of both tables. gap_to_deal, gap_to_no_reward and gap_to_first_lookahead are
            differences in the headline column, see `method_tables.paired_difference`.

        Raises:
            FileNotFoundError, ValueError: see `SearchExperiment.check`.
        """
        self.setting.check(self.reward, self.headline, self.prompt)
        run_all(self.setting.stages(folder, self.reward))
        setup = self.setting.setup(folder, self.reward)
        gap = functools.partial(paired_difference, folder, self.headline)
        rows = [row | gap("to_deal", row["method"], _DEAL) for row in self._methods(setup, folder)]
        grid = self._grid(setup, folder)
        write(folder, "methods", rows)
        write(folder, "grid", grid)
        plots.plot_methods(rows, self.headline, self.title, folder / "methods.png")
        plain = next(row for row in rows if row["method"] == _PLAIN)
        plots.plot_search_grid(grid, plain, self.headline, self.title, folder / "grid.png")
        write_samples(folder, [row["method"] for row in rows])
        tables = {"Methods": rows, "DeAL: reward weights and lookaheads": grid}
        conclude(content(self.title, tables, [self.headline]), folder)
        return {"methods": rows, "grid": grid}

    def program_costs(self) -> list[ProgramCost]:
        """Returns the costs of the stages' compiled steps and of a batch of the search."""
        return self.setting.program_costs(self.reward, self.search)

    def _methods(self, setup: MethodSetup, folder: Path) -> list[dict]:
        search, lam, prompt = self.search, self.lam, self.prompt
        at, evaluate = f"at λ = {lam:g}", functools.partial(run_method, setup, folder)
        sampling = evaluate(SamplingMethod("sampling", n=_NUM_SAMPLES))
        dera = evaluate(SamplingMethod(f"DeRa {at}", n=_NUM_SAMPLES, lam=lam))
        aligned = evaluate(SamplingMethod("aligned", n=_NUM_SAMPLES, lam=1.0))
        deal = evaluate(SearchMethod(_DEAL, search))
        budget = Budget.of(setup, deal)
        n, n_aligned = budget.texts(sampling, 1), budget.texts(aligned, 1)
        models = num_models(setup.at(lam)[0])
        n_dera = budget.texts(dera, models)
        plain = dataclasses.replace(search, reward_weight=0.0, lookahead=0, period=1)
        no_lookahead = dataclasses.replace(search, lookahead=0, period=1)
        one_beam = dataclasses.replace(no_lookahead, beams=1, length_penalty=0.0)
        fewer = dataclasses.replace(search, beams=max(1, search.beams // models))
        plain_of = lambda beams: dataclasses.replace(plain, beams=beams, top_k=2 * beams)
        no_lookahead_of = lambda beams: dataclasses.replace(no_lookahead, beams=beams)
        return [
            evaluate(SamplingMethod("greedy", greedy=True)),
            sampling,
            evaluate(SearchMethod(_PLAIN, plain_of(search.beams), guided=False)),
            budget_matched_search(evaluate, budget, _PLAIN, plain_of, guided=False),
            evaluate(SamplingMethod(f"best of {n}", n=n, best=True)),
            evaluate(SamplingMethod("greedy, instructed", greedy=True, prompt=prompt)),
            evaluate(SamplingMethod("sampling, instructed", n=_NUM_SAMPLES, prompt=prompt)),
            dera,
            evaluate(SamplingMethod(f"best of {n_dera} {at}", n=n_dera, lam=lam, best=True)),
            aligned,
            evaluate(
                SamplingMethod(f"best of {n_aligned}, aligned", n=n_aligned, lam=1.0, best=True)
            ),
            evaluate(SearchMethod("one beam, no lookahead", one_beam)),
            budget_matched_search(
                evaluate, budget, "DeAL without lookahead", no_lookahead_of, guided=True
            ),
            deal,
            evaluate(SearchMethod("DeAL, instructed", search, prompt=prompt)),
            evaluate(SearchMethod(f"DeAL {at}, {fewer.beams} beams", fewer, lam=lam)),
            evaluate(SearchMethod("DeAL, aligned", search, lam=1.0)),
        ]

    def _searches(self) -> dict[tuple[int, float], Search]:
        """Returns DeAL's settings for every pair of lookahead and reward weight."""
        change = functools.partial(dataclasses.replace, self.search)
        pairs = itertools.product(self.lookaheads, self.weights)
        return {pair: change(lookahead=pair[0], reward_weight=pair[1]) for pair in pairs}

    def _grid(self, setup: MethodSetup, folder: Path) -> list[dict]:
        gap = functools.partial(paired_difference, folder, self.headline)
        name = lambda weight, lookahead: f"DeAL, weight {weight:g}, lookahead {lookahead}"
        rows = []
        for (lookahead, weight), search in self._searches().items():
            method = name(weight, lookahead)
            row = {"weight": weight, "lookahead": lookahead}
            row |= run_method(setup, folder, SearchMethod(method, search))
            row |= gap("to_no_reward", method, _PLAIN)
            rows.append(row | gap("to_first_lookahead", method, name(weight, self.lookaheads[0])))
        return rows


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """Compares DeAL with budget-matched best-of-n for several weightings of two rewards.

    Attributes:
        setting: the models, documents and length limit. An aligned model is not used.
        parts: the two rewards with their weights.
        mixes: values m in [0, 1]; the parts' weights are multiplied by 1 − m and m.
        search: DeAL's settings; `reward_weight` multiplies the weighted sum.
        title: the title of the figure.
        statistics: means and standard deviations to standardise the parts by; None not to.

    Raises:
        ValueError: a mix is outside [0, 1], or another field is out of its range.
    """

    setting: SearchExperiment
    parts: tuple[Part, Part]
    mixes: tuple[float, ...]
    search: Search
    title: str
    statistics: tuple[Statistics, ...] | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            setting=checks.instance(SearchExperiment),
            parts=checks.sequence(checks.instance(Part), "(Part(...), Part(...))", least=2),
            mixes=checks.sequence(checks.number(least=0, most=1), "(0.0, 0.5, 1.0)"),
            search=checks.instance(Search),
            title=checks.STRING,
        )
        checks.check_distinct("TradeOff.mixes", self.mixes)
        check_searches({"DeAL": self.search}, self.mixed(0.5))

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is unfinished; writes trade_off.json, .csv, .png, samples.txt and report.json."""
        reward = self.mixed(0.5)
        self.setting.check(reward)
        run_all(self.setting.stages(folder, reward))
        setup = self.setting.setup(folder, reward)
        sampling = run_method(setup, folder, SamplingMethod("sampling", n=_NUM_SAMPLES))
        rows = []
        for mix in self.mixes:
            evaluate = functools.partial(run_method, with_reward(setup, self.mixed(mix)), folder)
            deal = evaluate(SearchMethod(f"DeAL, mix {mix:g}", self.search))
            n = Budget.of(setup, deal).texts(sampling, 1)
            best = evaluate(SamplingMethod(f"best of {n}, mix {mix:g}", n=n, best=True))
            rows += [{"mix": mix, "kind": "DeAL"} | deal, {"mix": mix, "kind": "best of n"} | best]
        write(folder, "trade_off", rows)
        names = [part.name for part in self.parts]
        plots.plot_trade_off(rows, names, self.title, folder / "trade_off.png")
        write_samples(folder, [row["method"] for row in rows])
        columns = [f"{PART}{name}" for name in names]
        conclude(content(self.title, {"Trade-off of two rewards": rows}, columns), folder)
        return {"trade_off": rows}

    def mixed(self, mix: float) -> Combined:
        """Returns the sum with the first part's weight times 1 − mix and the second's times mix."""
        factors = zip(self.parts, (1 - mix, mix), strict=True)
        weighted = (dataclasses.replace(part, weight=part.weight * x) for part, x in factors)
        return Combined(tuple(weighted), self.statistics)

    def program_costs(self) -> list[ProgramCost]:
        """Returns the costs of the stages' compiled steps and of a batch of the search."""
        return self.setting.program_costs(self.mixed(0.5), self.search)


@dataclasses.dataclass(frozen=True)
class MethodComparison:
    """Compares the given methods on the same documents.

    Attributes:
        setting: the models, documents and length limit.
        reward: the reward that guides the methods and is measured.
        methods: the methods, in the order of the table.

    Raises:
        ValueError: two methods' names give the same folder, or a method cannot be run (invalid
            search settings, λ ≠ 0 without an aligned model).
    """

    setting: SearchExperiment
    reward: Reward
    methods: tuple[Method, ...]

    def __post_init__(self):
        methods = checks.sequence(checks.with_attribute("answer"), "(SamplingMethod('sampling'),)")
        checks.check_fields(
            self, setting=checks.instance(SearchExperiment), reward=REWARD, methods=methods
        )
        check_names([method.name for method in self.methods])
        for method in self.methods:
            if isinstance(method, SearchMethod):
                check_searches({method.name: method.search}, self.reward if method.guided else None)
            self.setting.check_lam(f"{type(method).__name__}.lam", getattr(method, "lam", 0.0))

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is unfinished; writes records, methods.json, .csv, .png, samples.txt, report.json."""
        self.setting.check(self.reward)
        run_all(self.setting.stages(folder, self.reward))
        setup = self.setting.setup(folder, self.reward)
        rows = [run_method(setup, folder, method) for method in self.methods]
        write(folder, "methods", rows)
        plots.plot_methods(rows, "reward", "Mean reward", folder / "methods.png")
        write_samples(folder, [row["method"] for row in rows])
        conclude(content("Comparison of decoding methods", {"Methods": rows}), folder)
        return {"methods": rows}
