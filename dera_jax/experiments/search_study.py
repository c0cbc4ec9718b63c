"""Reward-guided search beside everything else one could do with the same reward and the same budget.

    SFT (unless a reference is given) → PPO on the reward (unless an aligned model is given) → every
    method answers the same held-out documents → tables and figures

What guides the search is measured on every answer, and beside it what it may cost: ROUGE, and rewards
that are only measured. `SearchStudy` is about one reward: each method of the table, and the search over
reward weights and lookaheads. `TradeOff` is about two, weighed in several ways.

Source: Huang et al. 2024 (arXiv 2402.06147), its experiments on keyword constraints, length constraints
and alignment objectives, on what data is there; the paper's own data where someone has it.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import data
from dera_jax.checkpoints.model_folder import Loaded, load_model
from dera_jax.checkpoints.resources import RunResources, ShapesOnly
from dera_jax.checkpoints.vocabulary import check_same, tokenizer
from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.realign import Realigned
from dera_jax.evaluation import methods, metrics, plots, sweep
from dera_jax.evaluation.jobs import Split
from dera_jax.evaluation.methods import Bench, Method, Sampled, Searched
from dera_jax.evaluation.pairs import load_pair
from dera_jax.evaluation.tables import in_columns, write_csv
from dera_jax.experiments.stages import Reference, Stage, records, run_all
from dera_jax.models.language_model import PyTree, streams
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import Reward, check_limit
from dera_jax.rewards.words import check_fit
from dera_jax.training.alignment import MODEL, Alignment
from dera_jax.training.dry_run import Need, need, shapes, source_shapes
from dera_jax.training.ppo import Objective

_PLAIN, _DEAL = "beam search", "DeAL"  # rows that others are compared with
_GAP = "gap_"
_GUIDE = "guide"  # the part that the reward itself is
_ANSWERS = 8  # samples of a document, for the mean of plain sampling


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both kinds of study have in common.

    Attributes:
        reference: the model to guide.
        aligned: folder of a model aligned to it.
        align: makes one, aligned to the reward: a PPO run of a loaded reference, `objective` and
            `seed`. Without either no method may ask for λ other than 0.
        beta: β of PPO.
        also: rewards that are only measured, on every answer.
        documents: held-out documents.
        max_length: tokens of a text at most.
        batch_size: documents at once.
        seed: of PPO and of all draws.

    Raises:
        ValueError: an aligned model, and a run that makes one.
    """

    reference: Reference
    documents: Split
    max_length: int
    batch_size: int
    seed: int
    aligned: str | None = None
    align: Callable[..., Alignment] | None = None
    beta: float | None = None
    also: tuple[Part, ...] = ()

    def __post_init__(self):
        if self.aligned is not None and self.align is not None:
            raise ValueError(
                f"Setting: the aligned model is in {self.aligned!r} or made by `align`, not both; "
                "set one of them to None"
            )

    def stages(self, folder: Path, reward: Reward) -> list[Stage]:
        """What is trained before anything is decoded."""
        if self.align is None:
            return self.reference.stages(folder)
        align = lambda where: self._align(folder, reward).run(where)
        return [*self.reference.stages(folder), Stage("PPO", folder / "ppo", align)]

    def _align(self, folder: Path, reward: Reward) -> Alignment:
        # By position: see experiments.reward_study.
        reference: Loaded = load_model(self.reference.path(folder))
        objective = Objective(reward, self.max_length, self.beta)
        return self.align(reference, objective=objective, seed=self.seed)

    def bench(self, folder: Path, reward: Reward) -> Bench:
        """Models and documents, read.

        Raises:
            FileNotFoundError, ValueError: what cannot be read, or does not fit.
        """
        check_limit(reward, self.max_length)
        reference = self.reference.path(folder)
        made = folder / "ppo" / MODEL if self.align else reference  # which is then never asked
        pair = load_pair(reference, [self.aligned or made])
        task = self.documents.task
        check_same(pair.vocabulary, data.vocabulary_of(task), "the models", f"task {task!r}")
        documents, text = self.documents.read(), tokenizer(pair.vocabulary)
        if documents.keywords is not None:
            check_fit(documents.keywords, text.encode, self.max_length)
        resources = RunResources(pair.vocabulary)
        judge = lambda reward: Judge(reward, reward.load(resources), text.decode)
        return Bench(
            pair=pair,
            tokenizer=text,
            documents=documents,
            judge=judge(reward),
            measured=judge(self._measured(reward)),
            max_length=self.max_length,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def _measured(self, reward: Reward) -> Combined:
        """The reward, whose value the sum is, and beside it without weight its parts and `also`."""
        parts = (reward.terms if isinstance(reward, Combined) else ()) + self.also
        beside = tuple(dataclasses.replace(part, weight=0.0) for part in parts)
        return Combined((Part(_GUIDE, reward), *beside))

    def needs(self, reward: Reward, search: Search) -> list[Need]:
        """What the stages' compiled steps take."""
        model = self.reference.model()
        params = jax.eval_shape(model.init, jax.random.key(0))
        like = Loaded(model, params, vocabulary=None, card={})
        objective = Objective(reward, self.max_length, self.beta)
        align = self.align and self.align(like, objective=objective, seed=self.seed)
        searching = self._search_need(model, params, reward, search)
        return [*self.reference.needs(), *(align.needs() if align else []), searching]

    def _search_need(self, model: T5, params: PyTree, reward: Reward, search: Search) -> Need:
        batch, size = self.batch_size, self.documents.inputs
        inputs = jax.ShapeDtypeStruct((batch, size), jnp.int32)
        stream = jax.eval_shape(lambda: streams(0, jnp.arange(batch), [0]))
        lam = jax.ShapeDtypeStruct(stream.shape, jnp.float32)
        pair, both = Realigned(model, (model,)), (params, params)
        judging = shapes(reward.load(ShapesOnly(model.vocab_size)))
        call = jax.jit(
            lambda params, inputs, lam, stream, judging, source: beam_search(
                pair, params, inputs, lam, stream, search, reward, judging, source
            )
        )
        networks = {"reference": params, "aligned": params, "reward": judging}
        tokens = batch * search.beams * self.max_length * (1 + search.top_k * search.lookahead)
        source = source_shapes(batch, size, size)
        return need(
            "search, a batch", networks, tokens, call, both, inputs, lam, stream, judging, source
        )


@dataclasses.dataclass(frozen=True)
class SearchStudy:
    """One reward, every method.

    Attributes:
        setting: models, documents, lengths.
        reward: what guides.
        search: DeAL's settings; the other methods get as many positions, as near as whole numbers
            of texts or beams allow.
        lam: λ of the rows on DeRa.
        prompt: an instruction to ask for what is rewarded, see `Bench.inputs`.
        weights, lookaheads: DeAL is run with every pair of them too.
        headline: the column of the figures.
        title: of the figures.
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
        if self.setting.aligned is None and self.setting.align is None:
            raise ValueError("SearchStudy needs an aligned model or `align`, for the rows on DeRa")

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves tables (JSON, CSV), two figures and samples.txt.

        Returns:
            The rows of both tables. gap_to_deal, gap_to_no_reward and gap_to_first_lookahead are
            differences of the headline column, see `paired_gap`.
        """
        run_all(self.setting.stages(folder, self.reward))
        bench = self.setting.bench(folder, self.reward)
        gap = functools.partial(paired_gap, folder, self.headline)
        rows = [row | gap("to_deal", row["method"], _DEAL) for row in self._methods(bench, folder)]
        grid = self._grid(bench, folder)
        _write(folder, "methods", rows)
        _write(folder, "grid", grid)
        plots.plot_methods(rows, self.headline, self.title, folder / "methods.png")
        plain = next(row for row in rows if row["method"] == _PLAIN)
        plots.plot_search_grid(grid, plain, self.headline, self.title, folder / "grid.png")
        names = [row["method"] for row in rows]
        (folder / "samples.txt").write_text(side_by_side(folder, names), encoding="utf-8")
        print(format_table(rows))
        print(format_table(grid))
        return {"methods": rows, "grid": grid}

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take."""
        return self.setting.needs(self.reward, self.search)

    def _methods(self, bench: Bench, folder: Path) -> list[dict]:
        search, lam, prompt = self.search, self.lam, self.prompt
        ask = functools.partial(answered, bench, folder)
        sampling = ask(Sampled("sampling", n=_ANSWERS))
        plain = dataclasses.replace(search, reward_weight=0.0, lookahead=0, period=1)
        plain = dataclasses.replace(plain, top_k=2 * search.beams)
        beams = ask(Searched(_PLAIN, plain, guided=False))
        deal = ask(Searched(_DEAL, search))
        budget = Budget.of(bench, deal, sampling)
        n, n_at_lam = budget.texts(1), budget.texts(2)
        wide = budget.beams(search.max_length)
        wider = dataclasses.replace(plain, beams=wide, top_k=2 * wide)
        blind = dataclasses.replace(search, beams=wide, lookahead=0, period=1)
        halved = dataclasses.replace(search, beams=max(1, search.beams // 2))
        one_beam = dataclasses.replace(search, beams=1, lookahead=0, period=1)
        at = f"at λ = {lam:g}"
        return [
            ask(Sampled("greedy", greedy=True)),
            sampling,
            beams,
            ask(Searched(f"beam search, {wide} beams", wider, guided=False)),
            ask(Sampled(f"best of {n}", n=n, best=True)),
            ask(Sampled("greedy, instructed", greedy=True, prompt=prompt)),
            ask(Sampled("sampling, instructed", n=_ANSWERS, prompt=prompt)),
            ask(Sampled(f"DeRa {at}", n=_ANSWERS, lam=lam)),
            ask(Sampled(f"best of {n_at_lam} {at}", n=n_at_lam, lam=lam, best=True)),
            ask(Sampled("aligned", n=_ANSWERS, lam=1.0)),
            ask(Sampled(f"best of {n}, aligned", n=n, lam=1.0, best=True)),
            ask(Searched("one beam, no lookahead", one_beam)),
            ask(Searched(f"DeAL without lookahead, {wide} beams", blind)),
            deal,
            ask(Searched("DeAL, instructed", search, prompt=prompt)),
            ask(Searched(f"DeAL {at}, {halved.beams} beams", halved, lam=lam)),
            ask(Searched("DeAL, aligned", search, lam=1.0)),
        ]

    def _grid(self, bench: Bench, folder: Path) -> list[dict]:
        gap = functools.partial(paired_gap, folder, self.headline)
        name = lambda weight, lookahead: f"DeAL, weight {weight:g}, lookahead {lookahead}"
        rows = []
        for lookahead, weight in itertools.product(self.lookaheads, self.weights):
            search = dataclasses.replace(self.search, lookahead=lookahead, reward_weight=weight)
            this = name(weight, lookahead)
            row = {"weight": weight, "lookahead": lookahead}
            row |= answered(bench, folder, Searched(this, search))
            row |= gap("to_no_reward", this, _PLAIN)
            rows.append(row | gap("to_first_lookahead", this, name(weight, self.lookaheads[0])))
        return rows


@dataclasses.dataclass(frozen=True)
class Budget:
    """Positions per document, and what they buy.

    Attributes:
        positions: to spend.
        read: of the input.
        text: of one sampled text.
        judged: what the reward's models read once, and again for each text.
    """

    positions: float
    read: float
    text: float
    judged: tuple[int, int]

    @classmethod
    def of(cls, bench: Bench, spender: Mapping, sampling: Mapping) -> "Budget":
        """What the method of the row `spender` spends; `sampling` is the reference's row."""
        read = float(np.mean(np.sum(bench.documents.inputs > 0, axis=1)))
        positions = functools.partial(bench.judge.reward.positions, round(read))
        one, two = positions(1, bench.max_length), positions(2, bench.max_length)
        judged = (2 * one - two, two - one)
        return cls(spender["positions"], read, sampling["positions"] - read, judged)

    def texts(self, num_models: int) -> int:
        """So many texts of so many models can be sampled and judged."""
        once, each = self.judged
        left = self.positions - num_models * self.read - once
        return max(1, round(left / (num_models * self.text + each)))

    def beams(self, max_length: int) -> int:
        """So many beams of a search without lookahead; a wide one runs on to the length limit."""
        return max(1, round((self.positions - self.read) / max_length))


@dataclasses.dataclass(frozen=True)
class Methods:
    """Any methods on the same documents.

    Attributes:
        setting: models, documents, lengths.
        reward: what guides, and is measured.
        methods: in the order of the table.
    """

    setting: Setting
    reward: Reward
    methods: tuple[Method, ...]

    def run(self, folder: Path) -> dict[str, object]:
        """Leaves methods.json, .csv, .png, samples.txt and a folder of records for each method."""
        bench = self.setting.bench(folder, self.reward)
        rows = [answered(bench, folder, method) for method in self.methods]
        _write(folder, "methods", rows)
        plots.plot_methods(rows, "reward", "Mean reward", folder / "methods.png")
        names = [row["method"] for row in rows]
        (folder / "samples.txt").write_text(side_by_side(folder, names), encoding="utf-8")
        print(format_table(rows))
        return {"methods": rows}


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """Two rewards, weighed in several ways: the search, and best-of-n with as many positions.

    Attributes:
        setting: models, documents, lengths. The aligned model is not asked.
        parts: the two rewards.
        mixes: weights of the second; the first has what is left of 1.
        search: DeAL's settings; its `reward_weight` is that of the weighed sum.
        title: of the figure.
    """

    setting: Setting
    parts: tuple[Part, Part]
    mixes: tuple[float, ...]
    search: Search
    title: str

    def run(self, folder: Path) -> dict[str, object]:
        """Runs what is not finished; leaves trade_off.json, .csv, .png and samples.txt."""
        run_all(self.setting.stages(folder, self.mixed(0.5)))
        rows = [row for mix in self.mixes for row in self._rows(folder, mix)]
        _write(folder, "trade_off", rows)
        names = [part.name for part in self.parts]
        plots.plot_trade_off(rows, names, self.title, folder / "trade_off.png")
        methods_ = [row["method"] for row in rows]
        (folder / "samples.txt").write_text(side_by_side(folder, methods_), encoding="utf-8")
        print(format_table(rows))
        return {"trade_off": rows}

    def mixed(self, mix: float) -> Combined:
        """The sum in which the second reward has the weight `mix`."""
        weights = (1 - mix, mix)
        parts = zip(self.parts, weights, strict=True)
        return Combined(tuple(dataclasses.replace(part, weight=w) for part, w in parts))

    def needs(self) -> list[Need]:
        """What the stages' compiled steps take."""
        return self.setting.needs(self.mixed(0.5), self.search)

    def _rows(self, folder: Path, mix: float) -> list[dict]:
        bench = self.setting.bench(folder, self.mixed(mix))
        ask = functools.partial(answered, bench, folder)
        sampling = ask(Sampled("sampling", n=_ANSWERS))
        deal = ask(Searched(f"DeAL, mix {mix:g}", self.search))
        n = Budget.of(bench, deal, sampling).texts(1)
        best = ask(Sampled(f"best of {n}, mix {mix:g}", n=n, best=True))
        return [{"mix": mix, "kind": "DeAL"} | deal, {"mix": mix, "kind": "best of n"} | best]


def answered(bench: Bench, folder: Path, method: Method) -> dict:
    """The row of a method that has answered every document."""
    records = methods.run(method, bench, methods_folder(folder, method.name))
    return {"method": method.name} | sweep.measure(records)


def paired_gap(folder: Path, key: str, name: str, method: str, other: str) -> dict[str, float]:
    """How much more of the column `key` a method has than another, paired by document.

    Returns:
        gap_<name>, and half its 95 % interval as gap_<name>_ci95.
    """
    read = lambda name: sweep.values(records(methods_folder(folder, name)))[key]
    pairs = zip(read(method), read(other), strict=True)
    gap, interval = metrics.mean_interval(
        [[np.mean(ours) - np.mean(others)] for ours, others in pairs]
    )
    return {_GAP + name: gap, f"{_GAP}{name}_ci95": interval}


def methods_folder(folder: Path, name: str) -> Path:
    """Where the records of the method of this name are."""
    return folder / "methods" / re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def side_by_side(folder: Path, names: Sequence[str], documents: int = 5) -> str:
    """The first documents with the first answer of each method."""
    found = {name: records(methods_folder(folder, name)) for name in names}
    lines = []
    for i, record in enumerate(found[names[0]][:documents]):
        lines += [f"document: {record['document']}", f"human: {record['summary']}"]
        if "keywords" in record:
            lines.append(f"keywords: {', '.join(record['keywords'])}")
        lines += [f"{name}: {found[name][i]['samples'][0]['text']}" for name in names]
        lines.append("")
    return "\n".join(lines)


_COLUMNS = {
    "method": "method",
    "covered": "covered",
    "coverage": "coverage",
    "within": "within",
    "reward": "reward",
    "faithful": "faithful",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "length": "length",
    "positions": "positions",
}


def format_table(rows: Sequence[Mapping]) -> str:
    """For a terminal, with ± half widths of 95 % intervals."""
    columns = {key: title for key, title in _COLUMNS.items() if key in rows[0]}
    more = [x for x in rows[0] if x.startswith((sweep.PART, _GAP)) and not x.endswith("_ci95")]
    columns |= {x: _title(x) for x in more if x != sweep.PART + _GUIDE}
    lines = [
        [row[key] if key == "method" else sweep.cell(row, key) for key in columns] for row in rows
    ]
    return in_columns([list(columns.values()), *lines])


def _title(column: str) -> str:
    return column.removeprefix(sweep.PART).replace("_", " ")


def _write(folder: Path, name: str, rows: Sequence[Mapping]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_csv(folder / f"{name}.csv", rows)
