"""Sets up experiments on reward-guided decoding: models, documents, and token budgets."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dera_jax import checks
from dera_jax.checkpoints.loading import DTYPE, load_models, read_tokenizer
from dera_jax.checkpoints.resources import DryRunResources, RunResources
from dera_jax.checkpoints.shared_tokenizer import source_index
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data.documents import Documents, document_record
from dera_jax.decoding.beam_search import Search, beam_search, check_search
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.search import Guide
from dera_jax.evaluation.method_setup import MethodSetup, check_prompt
from dera_jax.evaluation.method_tables import GUIDE
from dera_jax.evaluation.methods import SearchMethod
from dera_jax.evaluation.sweep import PART
from dera_jax.evaluation.sweep_tables import column_values
from dera_jax.experiments.alignment_experiment import AlignmentExperiment
from dera_jax.experiments.stages import Stage
from dera_jax.models.language_model import sequence_keys
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.protocol import Reward, check_limit
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.rewards.words import check_fit
from dera_jax.training.dry_run import (
    ProgramCost,
    decodable,
    program_cost,
    prompt_shapes,
    shapes,
    source_shapes,
)
from dera_jax.training.ppo_training import MODEL, PPOTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchExperiment(AlignmentExperiment):
    """Holds the models and documents of an experiment; λ ≠ 0 needs `aligned` or `align`.

    Attributes:
        align: returns a PPO run, given a loaded reference, `objective` and `seed`; None to run no
            PPO.
        beta: the KL coefficient β of PPO; required with `align`.
        aligned: the folder of a model that was aligned from the reference before.
        template_from: the model whose tokenizer, chat template and end ids are used, see
            `loading.load`.
        dtype: of parameters and activations while decoding, see `loading.load`.
        measured: rewards that are measured on every output and guide nothing.

    Raises:
        ValueError: a field is out of its range, both `aligned` and `align` are given, or
            `template_from` names no model.
    """

    align: Callable[..., PPOTraining] | None = None
    beta: float | None = None
    aligned: str | None = None
    template_from: str | int | None = None
    dtype: str | None = None
    measured: tuple[Part, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        positive = checks.number(above=0)
        checks.check_fields(
            self,
            align=checks.optional(checks.FUNCTION),
            beta=checks.optional(positive) if self.align is None else positive,
            aligned=checks.optional(checks.PATH),
            dtype=DTYPE,
            measured=checks.sequence(checks.instance(Part), "(Part(...),)", least=0),
        )
        if self.aligned is not None and self.align is not None:
            raise ValueError(
                f"SearchExperiment: the aligned model is in the folder {self.aligned!r} or made by "
                "`align`, not both; set `aligned` or `align` to None"
            )
        source_index(self.template_from, list(map(str, self._paths(Path()))))

    def stages(self, folder: Path, reward: Reward) -> list[Stage]:
        """Returns the stages that train models before decoding: SFT and PPO, where needed."""
        if self.align is None:
            return self.reference.stages(folder)
        ppo = self.ppo_stage("PPO", folder, folder / "ppo", lambda: reward, self.beta, self.seed)
        return [*self.reference.stages(folder), ppo]

    def _ppo_of_shapes(self, reward: Reward) -> PPOTraining:
        return self.ppo(self.reference.shapes(), reward, self.beta, self.seed)

    def check(self, reward: Reward, headline: str | None = None, prompt: str | None = None) -> None:
        """Validates the inputs of all stages, so that no error appears after hours of training.

        Args:
            reward: the reward that guides decoding.
            headline: a column that the tables must have; None to check no column.
            prompt: a prompt template, see `MethodSetup.prompts`.

        Raises:
            FileNotFoundError: a file of a reward or of the data is missing.
            ValueError: the documents, prompt, rewards or headline do not fit each other.
        """
        tokenizer = self._tokenizer()
        documents = self._read(tokenizer, reward)
        check_prompt(prompt, documents.keywords is not None)
        resources = RunResources.of(tokenizer)
        for measured in (reward, *(part.reward for part in self.measured)):
            measured.load(resources)
        if headline is not None:
            _check_column(headline, documents, _measured_parts(reward, self.measured))
        if self.align:
            self._ppo_of_shapes(reward)

    def _tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of all models, which is known before any is trained."""
        known, folder = self.documents.known_vocabulary(), self.reference.folder
        if self.aligned is None or folder is None:
            return self.reference.tokenizer(known)
        return read_tokenizer([folder, self.aligned], known, self.template_from)

    def check_lam(self, name: str, lam: float) -> None:
        """Raises ValueError, with the field's name, for a λ other than 0 without an aligned model."""
        if lam and self.aligned is None and self.align is None:
            raise ValueError(
                f"{name} = {lam:g} needs an aligned model, and none is given; set "
                "SearchExperiment.aligned or SearchExperiment.align, or use λ = 0"
            )

    def _read(self, tokenizer: Tokenizer, reward: Reward) -> Documents:
        check_limit(reward, self.max_length)
        documents = self.documents.read(tokenizer, reward)
        reward.check_documents(documents.texts)
        if documents.keywords is not None and reward.about_keywords:
            check_fit(documents.keywords, tokenizer.encode, self.max_length)
        return documents

    def setup(self, folder: Path, reward: Reward) -> MethodSetup:
        """Loads the models, documents and rewards.

        Args:
            folder: the folder of the experiment, whose stages have finished.
            reward: the reward that guides decoding.

        Raises:
            FileNotFoundError: a model or a file of a reward is missing.
            ValueError: models, documents and rewards do not fit each other.
        """
        known, task = self.documents.known_vocabulary(), self.documents.label
        options = {"task": task, "template_from": self.template_from, "dtype": self.dtype}
        loaded = load_models(self._paths(folder), known, **options)
        tokenizer = loaded[0].tokenizer
        documents = self._read(tokenizer, reward)
        resources = RunResources.of(tokenizer)
        params = reward.load(resources)
        also = [part.reward.load(resources) for part in self.measured]
        setup = MethodSetup(
            components=tuple(loaded),
            tokenizer=tokenizer,
            documents=documents,
            scorer=RewardScorer(reward, params, tokenizer.decode),
            measured=RewardScorer(
                Combined((Part(GUIDE, reward), *self.measured)), (params, *also), tokenizer.decode
            ),
            max_length=self.max_length,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return with_reward(setup, reward)

    def _paths(self, folder: Path) -> list[Path]:
        aligned = folder / "ppo" / MODEL if self.align else self.aligned
        return [self.reference.path(folder)] + ([epath.Path(aligned)] if aligned else [])

    def program_costs(self, reward: Reward, search: Search) -> list[ProgramCost]:
        """Returns the costs of the stages and, for a compiled reward, of a batch of the search."""
        model = decodable(self.reference.model())
        params = jax.eval_shape(model.init, jax.random.key(0))
        costs = self.reference.program_costs()
        if self.align:
            costs += self._ppo_of_shapes(reward).program_costs()
        if reward.on_host:
            return costs
        return [*costs, self._search_cost(model, params, reward, search)]

    def _search_cost(self, model, params, reward: Reward, search: Search) -> ProgramCost:
        batch, size = self.batch_size, self.documents.inputs
        prompts = prompt_shapes(batch, size)
        keys = jax.eval_shape(lambda: sequence_keys(0, jnp.arange(batch), [0]))
        networks = {"reference": params}
        if len(self._paths(Path())) > 1:
            networks["aligned"] = params
            model, params = Realigned(model, (model,)), (params, params)
            prompts = prompts.replace(lam=jax.ShapeDtypeStruct((batch, 1), jnp.float32))
        reward_params = shapes(reward.load(DryRunResources(model.vocab_size)))
        call = jax.jit(
            lambda params, prompts, keys, reward_params, source: beam_search(
                model,
                params,
                prompts,
                keys,
                search,
                Guide(RewardScorer(reward, reward_params, str), source),
            )
        )
        ahead = search.top_k * search.lookahead / search.period
        tokens = round(batch * search.beams * self.max_length * (1 + ahead))
        arguments = params, prompts, keys, reward_params, source_shapes(batch, size, size)
        return program_cost(
            "search, a batch", networks | {"reward": reward_params}, tokens, call, *arguments
        )


def check_searches(searches: Mapping[object, Search], reward: Reward | None) -> None:
    """Raises ValueError, before any search is run, if the settings of one of them are invalid."""
    for name, search in searches.items():
        try:
            check_search(search, None, reward)
        except ValueError as error:
            raise ValueError(f"search {name}: {error}") from error


def with_reward(setup: MethodSetup, reward: Reward) -> MethodSetup:
    """Returns the setup with a reward of the same parameters, such as a sum with other weights.

    Measured are the reward, each of its parts, and the other rewards that the setup measured.
    """
    guide, *others = setup.measured.reward.terms
    params, *other_params = setup.measured.params
    parts = reward.summands
    own = {part.name for part in parts}
    also = [(x, p) for x, p in zip(others, other_params, strict=True) if x.name not in own]
    terms = [dataclasses.replace(x, weight=0.0) for x in (*parts, *(x for x, _ in also))]
    loaded = (params, *(params if parts else ()), *(p for _, p in also))
    measured = Combined((dataclasses.replace(guide, reward=reward), *terms))
    return dataclasses.replace(
        setup,
        scorer=dataclasses.replace(setup.scorer, reward=reward),
        measured=dataclasses.replace(setup.measured, reward=measured, params=loaded),
    )


def _measured_parts(reward: Reward, also: tuple[Part, ...]) -> list[Part]:
    """Returns the parts that `with_reward` measures."""
    return [Part(GUIDE, reward), *reward.summands, *also]


def _check_column(name: str, documents: Documents, measured: list[Part]) -> None:
    """Raises ValueError unless tables computed from records of methods have this column."""
    sample = {"text": "a", "length": 1, "forward_tokens": 1, "reward": 0.0}
    sample |= {f"{PART}{part.name}": 0.0 for part in measured}
    sample |= Combined(tuple(measured)).text_metrics("a", finished=True)
    columns = sorted(column_values([document_record(documents, 0) | {"samples": [sample]}]))
    if name not in columns:
        raise ValueError(f"no column {name!r} to show as the headline; choose one of {columns}")


@dataclasses.dataclass(frozen=True)
class Budget:
    """The tokens that a method may process per document, and the sizes of methods that they allow.

    Attributes:
        forward_tokens: the budget, in tokens processed per document.
        read: the mean number of tokens of a prompt.
        scored_once: tokens that scoring processes once per round, whatever the number of sequences.
        scored_each: tokens that scoring processes for each sequence of a round.
    """

    forward_tokens: float
    read: float
    scored_once: float
    scored_each: float

    @classmethod
    def of(cls, setup: MethodSetup, spender: Mapping) -> "Budget":
        """Returns the budget that the method of the row `spender` used."""
        read = float(np.mean(setup.documents.prompts.lengths))
        scoring = lambda rows: setup.scorer.reward.forward_tokens(
            round(read), rows, setup.max_length
        )
        each = scoring(2) - scoring(1)  # a network may encode the document once for all sequences
        return cls(spender["forward_tokens"], read, scoring(1) - each, each)

    def texts(self, row: Mapping, num_models: int) -> int:
        """Returns how many scored samples the budget allows; `row` is that of plain sampling."""
        read = num_models * self.read
        sample = row["forward_tokens"] - read + self.scored_each
        return max(1, round((self.forward_tokens - read - self.scored_once) / sample))

    def beams(self, row: Mapping, num_beams: int) -> int:
        """Returns how many beams of one model the budget allows; `row` is of `num_beams` beams."""
        return max(
            1,
            round(
                num_beams * (self.forward_tokens - self.read) / (row["forward_tokens"] - self.read)
            ),
        )

    def individuals(self, row: Mapping, population: int) -> int:
        """Returns the population size that the budget allows; `row` is of size `population`."""
        return max(2, round(population * self.forward_tokens / row["forward_tokens"]))


def budget_matched_search(
    ask: Callable, budget: Budget, name: str, search_of: Callable[[int], Search], guided: bool
) -> dict:
    """Returns the row of a search with as many beams as the budget allows.

    The cost per beam depends on when the search ends, so a trial run measures it first.

    Args:
        ask: returns the row of a method, after it has decoded all documents.
        budget: the tokens to spend.
        name: the name of the row, without its number of beams.
        search_of: returns the search settings for a number of beams.
        guided: whether the reward guides the search.
    """
    search = lambda n: SearchMethod(f"{name}, {n} beams", search_of(n), guided=guided)
    one = search_of(1)
    each = 1 + guided * one.top_k * (one.lookahead + budget.scored_each) / one.period
    trial_beams = max(1, round(budget.forward_tokens / (one.max_length * each)))
    return ask(search(budget.beams(ask(search(trial_beams)), trial_beams)))
