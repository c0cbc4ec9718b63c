"""What experiments on reward-guided search have in common: models, documents, budgets."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dera_jax import checks
from dera_jax.checkpoints.loading import Loaded, load, load_models
from dera_jax.checkpoints.resources import RunResources, ShapesOnly
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.decoding.beam_search import Search, beam_search, check_search
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.search import Guide
from dera_jax.evaluation.bench import Bench, check_prompt
from dera_jax.evaluation.jobs import SPLIT, Split
from dera_jax.evaluation.method_tables import GUIDE
from dera_jax.evaluation.methods import Searched
from dera_jax.evaluation.sweep import PART, Documents, about, values
from dera_jax.experiments.stages import Reference, Stage
from dera_jax.models.language_model import sequence_keys
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import Reward, check_limit
from dera_jax.rewards.words import WordsInRange, check_fit
from dera_jax.training.alignment import MODEL, Alignment
from dera_jax.training.dry_run import Need, decodable, need, prompt_shapes, shapes, source_shapes
from dera_jax.training.ppo import Objective


@dataclasses.dataclass(frozen=True)
class Setting:
    """Models and documents.

    Attributes:
        reference: the model to guide.
        documents: held-out documents.
        max_length: tokens of a text at most.
        batch_size: documents at once.
        seed: of PPO and of all draws.
        aligned: folder of a model aligned to it.
        align: makes one, aligned to the reward: a PPO run of a loaded reference, `objective` and
            `seed`. Without either only λ = 0 can be asked for.
        beta: β of PPO.
        also: rewards that are only measured, on every answer.

    Raises:
        ValueError: a setting out of its range, or an aligned model and a run that makes one.
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
        checks.check_fields(
            self,
            reference=checks.instance(Reference),
            documents=SPLIT,
            max_length=checks.whole(1),
            batch_size=checks.whole(1),
            seed=checks.SEED,
            aligned=checks.optional(checks.PATH),
            align=checks.optional(checks.FUNCTION),
            also=checks.several(checks.instance(Part), "(Part(...),)", least=0),
        )
        positive = checks.number(above=0)
        checks.check_fields(
            self, beta=checks.optional(positive) if self.align is None else positive
        )
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
        return self._alignment(load(self.reference.path(folder)), reward)

    def _alignment(self, reference: Loaded, reward: Reward) -> Alignment:
        # By position: see experiments.reward_study.
        objective = Objective(reward, self.max_length, self.beta)
        return self.align(reference, objective=objective, seed=self.seed)

    def check(self, reward: Reward, headline: str | None = None, prompt: str | None = None) -> None:
        """Reads and makes what is needed after training, lest an error is found after hours of it.

        Args:
            reward: what guides.
            headline: a column that tables are to have; None for any.
            prompt: see `Bench.prompts`.

        Raises:
            FileNotFoundError, ValueError: what cannot be read, or does not fit.
        """
        text = self.reference.tokenizer(self.documents.known_vocabulary())
        documents = self._read(text, reward)
        check_prompt(prompt, documents.keywords is not None)
        resources = RunResources(text.vocabulary)
        for needed in (reward, *(part.reward for part in self.also)):
            needed.load(resources)
        if headline is not None:
            _check_column(headline, documents, _measured(reward, self.also))
        if self.align:
            self._alignment(self.reference.shapes(), reward)

    def check_lam(self, lam: float) -> None:
        """Raises ValueError for a λ other than 0 without an aligned model."""
        if lam and self.aligned is None and self.align is None:
            raise ValueError(f"λ = {lam:g} needs an aligned model, and none is given")

    def _read(self, text: Tokenizer, reward: Reward) -> Documents:
        check_limit(reward, self.max_length)
        documents = self.documents.read(text, reward)
        reward.check_documents(documents.texts)
        if documents.keywords is not None and reward.about_keywords:
            check_fit(documents.keywords, text.encode, self.max_length)
        return documents

    def bench(self, folder: Path, reward: Reward) -> Bench:
        """Models and documents, read.

        Raises:
            FileNotFoundError, ValueError: what cannot be read, or does not fit.
        """
        known, task = self.documents.known_vocabulary(), self.documents.task
        loaded = load_models(self._paths(folder), known, task=task)
        text = loaded[0].tokenizer
        documents, resources = self._read(text, reward), RunResources(text.vocabulary)
        params = reward.load(resources)
        also = [part.reward.load(resources) for part in self.also]
        bench = Bench(
            models=tuple(x.model for x in loaded),
            params=tuple(x.params for x in loaded),
            tokenizer=text,
            documents=documents,
            judge=Judge(reward, params, text.decode),
            measured=Judge(
                Combined((Part(GUIDE, reward), *self.also)), (params, *also), text.decode
            ),
            max_length=self.max_length,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return guided_by(bench, reward)

    def _paths(self, folder: Path) -> list[Path]:
        aligned = folder / "ppo" / MODEL if self.align else self.aligned
        return [self.reference.path(folder)] + ([epath.Path(aligned)] if aligned else [])

    def needs(self, reward: Reward, search: Search) -> list[Need]:
        """What the stages' compiled steps take; a search through Python is left out."""
        model = decodable(self.reference.model())
        params = jax.eval_shape(model.init, jax.random.key(0))
        found = self.reference.needs()
        if self.align:
            found += self._alignment(self.reference.shapes(), reward).needs()
        if reward.on_host:
            return found
        return [*found, self._search_need(model, params, reward, search)]

    def _search_need(self, model, params, reward: Reward, search: Search) -> Need:
        batch, size = self.batch_size, self.documents.inputs
        prompts = prompt_shapes(batch, size)
        keys = jax.eval_shape(lambda: sequence_keys(0, jnp.arange(batch), [0]))
        networks = {"reference": params}
        if len(self._paths(Path())) > 1:
            networks["aligned"] = params
            model, params = Realigned(model, (model,)), (params, params)
            prompts = prompts.replace(lam=jax.ShapeDtypeStruct((batch, 1), jnp.float32))
        judging = shapes(reward.load(ShapesOnly(model.vocab_size)))
        call = jax.jit(
            lambda params, prompts, keys, judging, source: beam_search(
                model, params, prompts, keys, search, Guide(Judge(reward, judging, str), source)
            )
        )
        ahead = search.top_k * search.lookahead / search.period
        tokens = round(batch * search.beams * self.max_length * (1 + ahead))
        arguments = params, prompts, keys, judging, source_shapes(batch, size, size)
        return need("search, a batch", networks | {"reward": judging}, tokens, call, *arguments)


def check_searches(searches: Mapping[object, Search], reward: Reward | None) -> None:
    """Raises ValueError for a search that cannot be run, before any other is."""
    for name, search in searches.items():
        try:
            check_search(search, None, reward)
        except ValueError as error:
            raise ValueError(f"search {name}: {error}") from error


def guided_by(bench: Bench, reward: Reward) -> Bench:
    """The bench with another reward of the same parameters: a sum with other weights.

    Measured are the reward, its parts by themselves, and what the bench measured beside them.
    """
    guide, *others = bench.measured.reward.terms
    params, *their_params = bench.measured.params
    parts = reward.terms if isinstance(reward, Combined) else ()
    own = {part.name for part in parts}
    also = [(x, p) for x, p in zip(others, their_params, strict=True) if x.name not in own]
    terms = [dataclasses.replace(x, weight=0.0) for x in (*parts, *(x for x, _ in also))]
    loaded = (params, *(params if parts else ()), *(p for _, p in also))
    measured = Combined((dataclasses.replace(guide, reward=reward), *terms))
    return dataclasses.replace(
        bench,
        judge=dataclasses.replace(bench.judge, reward=reward),
        measured=dataclasses.replace(bench.measured, reward=measured, params=loaded),
    )


def _measured(reward: Reward, also: tuple[Part, ...]) -> list[Part]:
    """What `guided_by` measures."""
    parts = reward.terms if isinstance(reward, Combined) else ()
    return [Part(GUIDE, reward), *parts, *also]


def _check_column(name: str, documents: Documents, measured: list[Part]) -> None:
    """Raises ValueError unless the tables of methods have this column: they are made of a record."""
    sample = {"text": "a", "length": 1, "positions": 1, "reward": 0.0}
    sample |= {f"{PART}{part.name}": 0.0 for part in measured}
    if any(isinstance(part.reward, WordsInRange) for part in measured):
        sample["within"] = True
    columns = sorted(values([about(documents, 0) | {"samples": [sample]}]))
    if name not in columns:
        raise ValueError(f"no column {name!r} to show; there are {columns}")


@dataclasses.dataclass(frozen=True)
class Budget:
    """Positions per document to spend, and what they buy.

    Attributes:
        positions: in all.
        read: tokens of an input, the mean.
        judged_once, judged_each: what a round of judging takes, and every text of it.
    """

    positions: float
    read: float
    judged_once: float
    judged_each: float

    @classmethod
    def of(cls, bench: Bench, spender: Mapping) -> "Budget":
        """What the method of this row spends."""
        read = float(np.mean(bench.documents.prompts.lengths))
        judging = lambda rows: bench.judge.reward.positions(round(read), rows, bench.max_length)
        each = judging(2) - judging(1)  # a network may read the document once for all texts
        return cls(spender["positions"], read, judging(1) - each, each)

    def texts(self, row: Mapping, num_models: int) -> int:
        """So many texts can be sampled from so many models and judged; `row` is that of sampling."""
        read = num_models * self.read
        text = row["positions"] - read + self.judged_each
        return max(1, round((self.positions - read - self.judged_once) / text))

    def beams(self, row: Mapping, num_beams: int) -> int:
        """So many beams of one model, in proportion to the row of a search with `num_beams`."""
        return max(
            1, round(num_beams * (self.positions - self.read) / (row["positions"] - self.read))
        )

    def individuals(self, row: Mapping, population: int) -> int:
        """A population of this size, in proportion to the row of a smaller or larger one."""
        return max(2, round(population * self.positions / row["positions"]))


def widened(
    ask: Callable, budget: Budget, name: str, search_of: Callable[[int], Search], guided: bool
) -> dict:
    """The row of a search with as many beams as the budget pays for.

    How long a search of so many beams goes on is not known before, so one is tried.
    """
    search = lambda n: Searched(f"{name}, {n} beams", search_of(n), guided=guided)
    one = search_of(1)
    each = 1 + guided * one.top_k * (one.lookahead + budget.judged_each) / one.period
    tried = max(1, round(budget.positions / (one.max_length * each)))
    return ask(search(budget.beams(ask(search(tried)), tried)))
