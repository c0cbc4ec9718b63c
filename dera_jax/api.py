"""Decodes strings: the models that `dera_jax.load` returns have methods that take and return text.

    pair = dera_jax.load("reference", "aligned")
    rows = pair.sample(["a document", "another one"], lam=[0, 0.5, 1], num_samples=4)
    rows.to_pandas()

The methods encode the documents, pad them to few widths, decode them in batches with a progress bar, and return
one row for each output. The functions of arrays below them (`decoding`, `evaluation`) do the work.
"""

import dataclasses
import difflib
import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import report
from dera_jax.checkpoints import loading
from dera_jax.checkpoints.default_model import default_model, public_name
from dera_jax.checkpoints.loaded import LoadedModel, ModelPair
from dera_jax.checkpoints.resources import RunResources
from dera_jax.data.aclsum import INSTRUCTIONS
from dera_jax.data.documents import Documents
from dera_jax.data.own_files import trained_template
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.evolution import Evolution
from dera_jax.decoding.mutation import InputEdits, Mutator
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import methods, sweep_tables
from dera_jax.evaluation.method_setup import MethodSetup
from dera_jax.evaluation.populations import EvolutionMethod
from dera_jax.evaluation.sweep import Sweep, decode
from dera_jax.prompts import DOCUMENT
from dera_jax.rewards.protocol import Reward
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.shipped import ADAPTERS, name_of
from dera_jax.texts import (
    RewardLike,
    Rows,
    Texts,
    TextSettings,
    as_reward,
    rows_of,
)


class Decoding:
    """Gives a loaded model or pair the methods on strings.

    `documents` are one string, or an iterable of strings or of dicts with `document` and, optionally,
    `summary` (a human text, for ROUGE) and `keywords` (a list). `lam` is λ, for a pair only. `reward` is a
    reward of `dera_jax.rewards`, its name (`rewards.named.named_reward`), or a Python function of two lists,
    documents and texts, that returns a number for each text. `settings` are fields of `TextSettings` and of the
    class that each method names.

    With `folder`, a method keeps its records there and writes report.html, a page with outputs, means
    and figures; a call that was stopped resumes.

    The methods raise ValueError or TypeError if an argument is invalid.
    """

    def sample(
        self,
        documents: Texts,
        lam: float | Sequence[float] | None = None,
        num_samples: int = 1,
        reward: RewardLike = None,
        max_length: int = 128,
        **settings,
    ) -> Rows:
        """Samples texts of every document at every λ; returns G·num_samples rows for each document.

        Args:
            documents: a string, or several; dicts may have a `summary` and `keywords` beside the `document`.
            lam: one λ or several, 1 if it is not given; None for a single model.
            num_samples: samples at each λ.
            reward: a reward of `dera_jax.rewards`, its name, or a function of the lists of documents and texts.
            max_length: maximum tokens of a text, the end token included.
            **settings: fields of `TextSettings` and `Sampling`, such as temperature, top_p, greedy.
        """
        return rows_of(self._records(documents, lam, num_samples, reward, max_length, settings))

    def sweep(
        self,
        documents: Texts,
        lam: Sequence[float],
        num_samples: int = 4,
        reward: RewardLike = None,
        max_length: int = 128,
        **settings,
    ) -> Rows:
        """Samples as `sample` does, with its arguments, and returns one row of means for each λ.

        Means are of reward, length in tokens, KL to the reference in nats, ROUGE where documents have a
        summary, and more, each with half its 95 % confidence interval (`<name>_ci95`), see
        `sweep_tables.table`.
        """
        records = self._records(documents, lam, num_samples, reward, max_length, settings)
        return Rows(sweep_tables.table(records))

    def best_of_n(
        self,
        documents: Texts,
        n: int,
        reward: RewardLike,
        lam: float | None = None,
        max_length: int = 128,
        **settings,
    ) -> Rows:
        """Returns the text with the highest reward among n samples of every document.

        Args:
            documents: a string, or several; dicts may have a `summary` and `keywords` beside the `document`.
            n: samples of each document.
            reward: a reward of `dera_jax.rewards`, its name, or a function of the lists of documents and texts.
            lam: one λ, 1 if it is not given; None for a single model.
            max_length: maximum tokens of a text, the end token included.
            **settings: fields of `TextSettings`, and `temperature` and `top_k` of `Sampling`.
        """
        text, options = _split("best_of_n", settings, TextSettings, ("temperature", "top_k"))
        at = self._one_lam(lam)
        method = methods.SamplingMethod("best of n", n=n, lam=at or 0.0, best=True, **options)
        return self._run(method, documents, reward, max_length, text)

    def search(
        self,
        documents: Texts,
        reward: RewardLike,
        lam: float | None = None,
        max_length: int = 128,
        **settings,
    ) -> Rows:
        """Runs reward-guided beam search (DeAL) and returns the best text of every document.

        Args:
            documents: a string, or several; dicts may have a `summary` and `keywords` beside the `document`.
            reward: a reward of `dera_jax.rewards`, its name, or a function of the lists of documents and texts.
            lam: one λ, 1 if it is not given; None for a single model.
            max_length: maximum tokens of a text, the end token included.
            **settings: fields of `TextSettings` and `Search`, such as beams, top_k, lookahead, reward_weight.
                The records in `folder` also have `n_best`, the final hypotheses of every document.
        """
        text, options = _split("search", settings, TextSettings, Search)
        settings = {"beams": 4, "top_k": 4, "length_penalty": 0.0, "reward_weight": 1.0} | options
        search = Search(max_length, **settings)
        method = methods.SearchMethod("search", search, lam=self._one_lam(lam) or 0.0)
        return self._run(method, documents, reward, max_length, text)

    def evolve(
        self,
        documents: Texts,
        reward: RewardLike,
        lam: float | None = None,
        max_length: int = 128,
        mutator: Mutator | None = None,
        **settings,
    ) -> Rows:
        """Runs evolutionary decoding (DARWIN) and returns the best text of every document.

        Args:
            documents: a string, or several; dicts may have a `summary` and `keywords` beside the `document`.
            reward: a reward of `dera_jax.rewards`, its name, or a function of the lists of documents and texts.
            lam: one λ, 1 if it is not given; None for a single model.
            max_length: maximum tokens of a text, the end token included.
            mutator: mutator of prompts (`decoding.mutation`); None for edits of the document.
            **settings: fields of `TextSettings`, `Evolution` and `Sampling`, such as population, period; temperature
                is 0.7 and top_k 40 if they are not given, as in the authors' release.
                The records in `folder` also have `evolution`, the history of every population.
        """
        text, options, sampling = _split("evolve", settings, TextSettings, Evolution, Sampling)
        sampling = {"temperature": 0.7, "top_k": 40} | sampling  # of the authors' release
        evolution = Evolution(Sampling(max_length, **sampling), **options)
        mutator = InputEdits() if mutator is None else mutator
        method = EvolutionMethod("evolution", evolution, mutator, lam=self._one_lam(lam) or 0.0)
        return self._run(method, documents, reward, max_length, text)

    def _records(self, documents, lam, num_samples, reward, max_length, settings) -> list[dict]:
        text, options = _split("sample", settings, TextSettings, Sampling)
        text = self._text_settings(text)
        lams = self._lams(lam)
        reward = as_reward(reward)
        sampling = Sampling(max_length, **options)
        sweep = Sweep(lams, num_samples, sampling, reward, text.batch_size, text.seed)
        read = self._read(documents, reward, text)
        params = reward and reward.load(RunResources.of(self.tokenizer))

        def run(folder: Path) -> list[dict]:
            return decode(self.model, self.params, read, sweep, self.decode, folder, None, params)

        records = _in_folder(text.folder, run)
        if text.folder is not None:
            sweep_tables.write_report(records, Path(text.folder))
            self._report(text, documents)
        return _with_costs(records, read.prompts.lengths, methods.num_models(self.model))

    def _run(self, method, documents, reward, max_length: int, text: Mapping) -> Rows:
        """Runs a method of `evaluation.methods` and returns its rows."""
        reward, text = as_reward(reward), self._text_settings(text)
        if reward is None:
            raise ValueError(f"{method.name} needs a reward, which guides it; found None")
        scorer = RewardScorer(
            reward, reward.load(RunResources.of(self.tokenizer)), self.tokenizer.decode
        )
        setup = MethodSetup(
            components=self._components(),
            tokenizer=self.tokenizer,
            documents=self._read(documents, reward, text),
            scorer=scorer,
            measured=scorer,
            max_length=max_length,
            batch_size=text.batch_size,
            seed=text.seed,
        )
        records = _in_folder(text.folder, lambda folder: methods.run(method, setup, folder))
        if text.folder is not None:
            self._report(text, documents)
        return rows_of(records, lam=method.lam if len(setup.components) > 1 else None)

    def _read(self, documents: Texts, reward: Reward | None, text: TextSettings) -> Documents:
        read = text.documents(documents, self.tokenizer)
        if reward is not None:
            reward.check_documents(read.texts)
        return read

    def _text_settings(self, settings: Mapping) -> TextSettings:
        text = TextSettings(**settings)
        if text.template is not None:
            return text
        template = self.template or trained_template([x.card for x in self._components()])
        return dataclasses.replace(text, template=template)

    def _report(self, text: TextSettings, documents: Texts) -> None:
        data = [getattr(documents, "path", "documents given as strings")]
        data += [f"prompts {text.template or DOCUMENT!r}"]
        report.record_about(Path(text.folder), [*data, f"seed {text.seed}"], self.names)
        report.write(Path(text.folder))

    def _one_lam(self, lam: float | None) -> float | None:
        if len(self._components()) > 2:
            raise ValueError(
                "this method takes a reference and one aligned model; sample and sweep take several; found "
                f"{', '.join(self.names)}"
            )
        lams = self._lams(lam)
        if len(lams) > 1:
            raise ValueError(f"lam must be one number here; found {lam!r}")
        return lams[0] if lams else None


@dataclasses.dataclass(frozen=True)
class TextModel(Decoding, LoadedModel):
    """A model whose methods take and return strings.

    Attributes:
        names: what it was loaded from.
        template: the prompt template of calls that name none; None for the one of its training.
    """

    names: tuple[str, ...] = ()
    template: str | None = None

    def __repr__(self) -> str:
        return f"TextModel({', '.join(self.names)})"

    def _components(self) -> tuple[LoadedModel, ...]:
        return (self,)

    def _lams(self, lam: float | Sequence[float] | None) -> tuple[float, ...]:
        if lam is not None:
            raise ValueError(f"lam is for a pair of models; this is one model; found lam = {lam!r}")
        return ()


@dataclasses.dataclass(frozen=True)
class TextPair(Decoding, ModelPair):
    """A reference and aligned models whose methods take and return strings; attributes as of TextModel."""

    names: tuple[str, ...] = ()
    template: str | None = None

    def __repr__(self) -> str:
        return f"TextPair({', '.join(self.names)})"

    def _components(self) -> tuple[LoadedModel, ...]:
        return self.components

    def _lams(self, lam: float | Sequence[float] | None) -> tuple[float, ...]:
        aligned = len(self.components) - 1
        if aligned > 1 and (lam is None or np.ndim(lam) < 2):
            raise ValueError(
                f"with {aligned} aligned models each λ has {aligned} numbers, such as "
                f"lam=[{(round(1 / aligned, 2),) * aligned}]; found {lam!r}"
            )
        if lam is None:
            return (1.0,)
        if np.size(lam) == 0:
            raise ValueError(f"lam must be a number or several; found {lam!r}")
        return (lam,) if np.ndim(lam) == 0 else tuple(lam)


def load(*models: str | Path, **options) -> TextModel | TextPair:
    """Loads a model, or a reference and aligned models; arguments and errors are those of `loading.load`.

    A path is a folder, a GGUF file, a T5X checkpoint, a LoRA adapter, or a name on the Hugging Face hub.
    Without a path the models are SmolLM2 and the shipped adapters (`ADAPTERS`), with the prompt template of
    their training, which asks for the outcome of a paper in one sentence.

    Raises:
        FileNotFoundError: SmolLM2 is to be loaded and is not to be had, see `default_model`.
        TypeError: `aligned` is given by name.
    """
    if "aligned" in options:
        raise TypeError(
            "aligned models follow the reference without a name: load('my_reference', 'my_aligned'); "
            f"found aligned={options['aligned']!r}"
        )
    template = None
    if not models:
        template = INSTRUCTIONS["outcome"]
        models = default_model(), ADAPTERS / "aligned"
        options = {"reference": ADAPTERS / "reference"} | options
    loaded = loading.load(*models, **options)
    kind = TextModel if isinstance(loaded, LoadedModel) else TextPair
    fields = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)}
    return kind(**fields, names=_names(models, options.get("reference")), template=template)


def _names(models: Sequence[str | Path], reference: str | Path | None) -> tuple[str, ...]:
    """Returns what was loaded, each with its role, for reports."""
    first, *aligned = map(_name, models)
    roles = [f"reference={first}" if aligned else f"model={first}"]
    if reference is not None:
        roles = [f"base={first}", f"reference={name_of(reference)}"]
    return (*roles, *(f"aligned={name}" for name in aligned))


def _name(model: str | Path) -> str:
    """Returns the path as given, or the public name of a model that a package holds."""
    known = public_name(model)
    return name_of(model) if known == str(Path(model).absolute()) else known


def _in_folder(folder: str | Path | None, run: Callable[[Path], list[dict]]) -> list[dict]:
    if folder is not None:
        return run(Path(folder))
    with tempfile.TemporaryDirectory() as temporary:
        return run(Path(temporary))


def _with_costs(records: list[dict], prompts: Sequence[int], models: int) -> list[dict]:
    """Returns the records with forward_tokens for each sample, as `methods.run` counts them.

    Args:
        records: of `sweep.decode`.
        prompts: number of tokens of each record's prompt.
        models: number of models that process each token.
    """
    cost = lambda x, prompt: models * (int(prompt) + x["length"] + x["finished"])
    return [
        record | {"samples": [x | {"forward_tokens": cost(x, n)} for x in record["samples"]]}
        for record, n in zip(records, prompts, strict=True)
    ]


def _split(
    method: str, settings: Mapping[str, object], *owners: type | tuple[str, ...]
) -> list[dict]:
    """Distributes settings to their owners: classes with a field of this name, or the names themselves."""
    fields = [x if isinstance(x, tuple) else _fields(x) for x in owners]
    known = sorted(name for names in fields for name in names)
    arguments = list(inspect.signature(getattr(Decoding, method)).parameters)[1:-1]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, [*arguments, *known], 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise TypeError(
                f"{method}() has no setting {name!r}{hint} Its settings: {', '.join([*arguments, *known])}"
            )
    return [{x: settings[x] for x in names if x in settings} for names in fields]


def _fields(kind: type) -> tuple[str, ...]:
    """Returns the names of the fields that are not arguments of the methods themselves."""
    names = (field.name for field in dataclasses.fields(kind))
    return tuple(x for x in names if x not in ("max_length", "sampling"))
