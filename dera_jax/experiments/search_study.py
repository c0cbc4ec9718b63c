"""Reward-guided search beside everything else one could do with the same reward and budget.

    SFT (unless a reference is given) → PPO on the reward (unless an aligned model is given) → every
    method answers the same held-out documents → tables and figures

What guides the search is measured on every answer, and beside it what it may cost: ROUGE, and
rewards that are only measured. `SearchStudy` is about one reward: each method of the table, and the
search over reward weights and lookaheads. `TradeOff` is about two, weighed in several ways.
`Methods` asks whatever methods it is given.

Source: Huang et al. 2024 (arXiv 2402.06147), its experiments on keyword constraints, length
constraints and alignment objectives, on what data is there; the paper's own where someone has it.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

from dera_jax import checks
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.realign import LAMBDA
from dera_jax.evaluation import plots
from dera_jax.evaluation.bench import Bench, check_prompt
from dera_jax.evaluation.method_tables import (
    answered,
    check_names,
    paired_gap,
    write,
    write_samples,
)
from dera_jax.evaluation.methods import Method, Sampled, Searched, num_models
from dera_jax.experiments.search_setting import (
    Budget,
    Setting,
    check_searches,
    guided_by,
    widened,
)
from dera_jax.experiments.stages import run_all
from dera_jax.rewards.combined import Combined, Part, Statistics
from dera_jax.rewards.protocol import REWARD, Reward
from dera_jax.training.dry_run import Need

_PLAIN, _DEAL = "beam search", "DeAL"  # rows that others are compared with
_ANSWERS = 8  # samples of a document, for the mean of plain sampling


@dataclasses.dataclass(frozen=True)
class SearchStudy:
    """One reward, every method.

    Attributes:
        setting: models, documents, lengths.
        reward: what guides.
        search: DeAL's settings; best-of-n and wider searches get as many positions, as near as
            whole numbers of texts or beams allow.
        lam: λ of the rows on DeRa.
        prompt: an instruction to ask for what is rewarded, see `Bench.prompts`.
        weights, lookaheads: DeAL is run with every pair of them too.
        headline: the column of the figures and of the gaps.
        title: of the figures.

    Raises:
        ValueError: no aligned model, or a prompt without a slot for the document.
    """

    setting: Setting
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
            setting=checks.instance(Setting),
            reward=REWARD,
            search=checks.instance(Search),
            lam=LAMBDA,
            weights=checks.several(checks.number(least=0), "(1.0, 4.0)"),
            lookaheads=checks.several(checks.whole(0), "(0, 4)"),
            headline=checks.TEXT,
            title=checks.STRING,
        )
        for name in ("weights", "lookaheads"):
            checks.check_distinct(f"SearchStudy.{name}", getattr(self, name))
        if self.setting.aligned is None and self.setting.align is None:
            raise ValueError("SearchStudy needs an aligned model or `align`, for the rows on DeRa")
        check_prompt(self.prompt, has_keywords=True)
        check_searches(self._searches(), self.reward)

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves tables (JSON, CSV), two figures and samples.txt.

        Returns:
            The rows of both tables. gap_to_deal, gap_to_no_reward and gap_to_first_lookahead are
            differences of the headline column, see `paired_gap`.

        Raises:
            ValueError: the tables have no column of the headline's name.
        """
        self.setting.check(self.reward, self.headline, self.prompt)
        run_all(self.setting.stages(folder, self.reward))
        bench = self.setting.bench(folder, self.reward)
        gap = functools.partial(paired_gap, folder, self.headline)
        rows = [row | gap("to_deal", row["method"], _DEAL) for row in self._methods(bench, folder)]
        grid = self._grid(bench, folder)
        write(folder, "methods", rows)
        write(folder, "grid", grid)
        plots.plot_methods(rows, self.headline, self.title, folder / "methods.png")
        plain = next(row for row in rows if row["method"] == _PLAIN)
        plots.plot_search_grid(grid, plain, self.headline, self.title, folder / "grid.png")
        write_samples(folder, [row["method"] for row in rows])
        return {"methods": rows, "grid": grid}

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take."""
        return self.setting.needs(self.reward, self.search)

    def _methods(self, bench: Bench, folder: Path) -> list[dict]:
        search, lam, prompt = self.search, self.lam, self.prompt
        at, ask = f"at λ = {lam:g}", functools.partial(answered, bench, folder)
        sampling = ask(Sampled("sampling", n=_ANSWERS))
        dera = ask(Sampled(f"DeRa {at}", n=_ANSWERS, lam=lam))
        aligned = ask(Sampled("aligned", n=_ANSWERS, lam=1.0))
        deal = ask(Searched(_DEAL, search))
        budget = Budget.of(bench, deal)
        n, n_aligned = budget.texts(sampling, 1), budget.texts(aligned, 1)
        models = num_models(bench.at(lam)[0])
        n_dera = budget.texts(dera, models)
        plain = dataclasses.replace(search, reward_weight=0.0, lookahead=0, period=1)
        blind = dataclasses.replace(search, lookahead=0, period=1)
        one_beam = dataclasses.replace(blind, beams=1, length_penalty=0.0)
        fewer = dataclasses.replace(search, beams=max(1, search.beams // models))
        plain_of = lambda beams: dataclasses.replace(plain, beams=beams, top_k=2 * beams)
        blind_of = lambda beams: dataclasses.replace(blind, beams=beams)
        return [
            ask(Sampled("greedy", greedy=True)),
            sampling,
            ask(Searched(_PLAIN, plain_of(search.beams), guided=False)),
            widened(ask, budget, _PLAIN, plain_of, guided=False),
            ask(Sampled(f"best of {n}", n=n, best=True)),
            ask(Sampled("greedy, instructed", greedy=True, prompt=prompt)),
            ask(Sampled("sampling, instructed", n=_ANSWERS, prompt=prompt)),
            dera,
            ask(Sampled(f"best of {n_dera} {at}", n=n_dera, lam=lam, best=True)),
            aligned,
            ask(Sampled(f"best of {n_aligned}, aligned", n=n_aligned, lam=1.0, best=True)),
            ask(Searched("one beam, no lookahead", one_beam)),
            widened(ask, budget, "DeAL without lookahead", blind_of, guided=True),
            deal,
            ask(Searched("DeAL, instructed", search, prompt=prompt)),
            ask(Searched(f"DeAL {at}, {fewer.beams} beams", fewer, lam=lam)),
            ask(Searched("DeAL, aligned", search, lam=1.0)),
        ]

    def _searches(self) -> dict[tuple[int, float], Search]:
        """DeAL with every lookahead and weight."""
        change = functools.partial(dataclasses.replace, self.search)
        pairs = itertools.product(self.lookaheads, self.weights)
        return {pair: change(lookahead=pair[0], reward_weight=pair[1]) for pair in pairs}

    def _grid(self, bench: Bench, folder: Path) -> list[dict]:
        gap = functools.partial(paired_gap, folder, self.headline)
        name = lambda weight, lookahead: f"DeAL, weight {weight:g}, lookahead {lookahead}"
        rows = []
        for (lookahead, weight), search in self._searches().items():
            this = name(weight, lookahead)
            row = {"weight": weight, "lookahead": lookahead}
            row |= answered(bench, folder, Searched(this, search))
            row |= gap("to_no_reward", this, _PLAIN)
            rows.append(row | gap("to_first_lookahead", this, name(weight, self.lookaheads[0])))
        return rows


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """Two rewards, weighed in several ways: the search, and best-of-n with as many positions.

    Attributes:
        setting: models, documents, lengths. An aligned model is not asked.
        parts: the two rewards, with weights of their own.
        mixes: the share of the second part's weight; of the first's the rest counts.
        search: DeAL's settings; its `reward_weight` is that of the weighed sum.
        title: of the figure.
        statistics: of the parts, to standardise them by; None not to.

    Raises:
        ValueError: a mix outside of [0, 1].
    """

    setting: Setting
    parts: tuple[Part, Part]
    mixes: tuple[float, ...]
    search: Search
    title: str
    statistics: tuple[Statistics, ...] | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            setting=checks.instance(Setting),
            parts=checks.several(checks.instance(Part), "(Part(...), Part(...))", least=2),
            mixes=checks.several(checks.number(least=0, most=1), "(0.0, 0.5, 1.0)"),
            search=checks.instance(Search),
            title=checks.STRING,
        )
        checks.check_distinct("TradeOff.mixes", self.mixes)
        check_searches({"DeAL": self.search}, self.mixed(0.5))

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves trade_off.json, .csv, .png and samples.txt."""
        reward = self.mixed(0.5)
        self.setting.check(reward)
        run_all(self.setting.stages(folder, reward))
        bench = self.setting.bench(folder, reward)
        sampling = answered(bench, folder, Sampled("sampling", n=_ANSWERS))
        rows = []
        for mix in self.mixes:
            ask = functools.partial(answered, guided_by(bench, self.mixed(mix)), folder)
            deal = ask(Searched(f"DeAL, mix {mix:g}", self.search))
            n = Budget.of(bench, deal).texts(sampling, 1)
            best = ask(Sampled(f"best of {n}, mix {mix:g}", n=n, best=True))
            rows += [{"mix": mix, "kind": "DeAL"} | deal, {"mix": mix, "kind": "best of n"} | best]
        write(folder, "trade_off", rows)
        names = [part.name for part in self.parts]
        plots.plot_trade_off(rows, names, self.title, folder / "trade_off.png")
        write_samples(folder, [row["method"] for row in rows])
        return {"trade_off": rows}

    def mixed(self, mix: float) -> Combined:
        """The sum in which the second reward's weight counts by `mix`, the first's by the rest."""
        shares = zip(self.parts, (1 - mix, mix), strict=True)
        weighed = (dataclasses.replace(part, weight=part.weight * x) for part, x in shares)
        return Combined(tuple(weighed), self.statistics)

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take."""
        return self.setting.needs(self.mixed(0.5), self.search)


@dataclasses.dataclass(frozen=True)
class Methods:
    """Any methods on the same documents.

    Attributes:
        setting: models, documents, lengths.
        reward: what guides, and is measured.
        methods: in the order of the table.

    Raises:
        ValueError: methods without names of their own.
    """

    setting: Setting
    reward: Reward
    methods: tuple[Method, ...]

    def __post_init__(self):
        methods = checks.several(checks.having("answer"), "(Sampled('sampling'),)")
        checks.check_fields(self, setting=checks.instance(Setting), reward=REWARD, methods=methods)
        check_names([method.name for method in self.methods])
        for method in self.methods:
            if isinstance(method, Searched):
                check_searches({method.name: method.search}, self.reward if method.guided else None)
            self.setting.check_lam(getattr(method, "lam", 0.0))

    def run(self, folder: Path) -> dict[str, object]:
        """Leaves methods.json, .csv, .png, samples.txt and a folder of records for each method."""
        self.setting.check(self.reward)
        run_all(self.setting.stages(folder, self.reward))
        bench = self.setting.bench(folder, self.reward)
        rows = [answered(bench, folder, method) for method in self.methods]
        write(folder, "methods", rows)
        plots.plot_methods(rows, "reward", "Mean reward", folder / "methods.png")
        write_samples(folder, [row["method"] for row in rows])
        return {"methods": rows}
