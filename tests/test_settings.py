"""Every class of settings validates its fields when it is made, before a model is loaded."""

import dataclasses
import importlib
import math
import pkgutil
import re
import types
import typing
from collections.abc import Iterator

import flax.linen as nn
import pytest

import dera_jax
import dera_jax.tasks
from dera_jax.checkpoints.loading import load, load_models
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.text_reward import TextScorer
from dera_jax.data.encoding import Sizes
from dera_jax.data.splits import Split
from dera_jax.data.task_data import TaskData
from dera_jax.decoding.beam_search import Search, check_search
from dera_jax.decoding.evolution import Evolution, check_evolution
from dera_jax.decoding.mutation import Rewriter, Unchanged
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, check_sampling
from dera_jax.evaluation.best_of import BestOf
from dera_jax.evaluation.choose import Choice, Rule
from dera_jax.evaluation.lengths import LengthSurvey
from dera_jax.evaluation.method_setup import MethodSetup
from dera_jax.evaluation.methods import SamplingMethod, SearchMethod
from dera_jax.evaluation.pair_sweep import PairSweep
from dera_jax.evaluation.populations import EvolutionMethod
from dera_jax.evaluation.reward_statistics import RewardStatistics
from dera_jax.evaluation.sweep import Sweep
from dera_jax.experiments import exact
from dera_jax.experiments.length_reward import LengthReward
from dera_jax.experiments.population_study import PopulationStudy
from dera_jax.experiments.reward_study import GivenReward, LearnedReward, RewardStudy
from dera_jax.experiments.search_experiment import SearchExperiment
from dera_jax.experiments.search_study import SearchStudy, TradeOff
from dera_jax.experiments.stages import Reference
from dera_jax.experiments.two_rewards import TwoRewards
from dera_jax.models.heads import CriticHead, Pooling
from dera_jax.models.llama_config import RopeScaling
from dera_jax.models.lora import LoraConfig
from dera_jax.models.tabular import TabularLM
from dera_jax.prompts import Prompt
from dera_jax.rewards import learned, length, tokens, words
from dera_jax.rewards.combined import Combined, Part, Statistics
from dera_jax.rewards.protocol import Reward
from dera_jax.t5x.decoders import EvolutionDecoder, SampleDecoder, SearchDecoder
from dera_jax.texts import TextSettings
from dera_jax.training import distillation, loop, optimizers, ppo, preferences, scorers, supervised
from dera_jax.training.offline_training import (
    OfflineAlignment,
    OfflineValidation,
    SampleSizes,
)
from dera_jax.training.ppo_training import PPOTraining
from dera_jax.training.train_state import Memory
from dera_jax.training.train_step import Loss
from dera_jax.training.validation import Validation
from dera_jax.training.warm_start import WarmStart


def nothing(*_, **__):
    """Stands for what is only called once a run has begun."""
    raise AssertionError("called while settings were made")


TABLE = TabularLM(4, 3)
REWARD = length.LengthInRange(1, 2)
PART = Part("length", REWARD)
SAMPLING = Sampling(8)
SWEEP = Sweep((0.0, 1.0), 4, SAMPLING, REWARD, 2, 0)
DOCUMENTS = Split("newswire", "test", 16, 4)
DECODING = PairSweep("reference", "aligned", DOCUMENTS, SWEEP)
SEARCH = Search(8, 2, 4, 2, period=2, reward_weight=1.0)
EVOLUTION = Evolution(SAMPLING, period=4, lookahead=2)
OPTIMIZER = optimizers.adamw(optimizers.constant(1e-3, 2), 1.0)
BOTH = ppo.Optimizers(OPTIMIZER, OPTIMIZER)
OBJECTIVE = ppo.AlignmentObjective(REWARD, 8, 0.1)
UPDATES = ppo.Updates(2, 1, 2)
DATA = TaskData("newswire", 16, 16, 4)
REFERENCE = Reference("folder")
COMMON = {
    "reference": REFERENCE, "documents": DOCUMENTS, "max_length": 8, "batch_size": 2, "seed": 0,
    "beta": 0.1,
}  # fmt: skip
SETTING = SearchExperiment(aligned="aligned", **COMMON)
SWEEPS = COMMON | {"align": nothing, "num_samples": 1}
ON_TABLES = exact.TabularAlignment(UPDATES, BOTH, 4, 2)
FINISHED = supervised.InitialModel(None, nothing)
STUDY = (Unchanged(), SEARCH, 0.5, (2, 4), (2, 3), (1, 2), (0, 1), (1, 2), (2, 3), (1, 2))
MADE = [  # one of each class, whose fields are then changed one by one
    SAMPLING, SEARCH, EVOLUTION, SWEEP, DOCUMENTS, OBJECTIVE, UPDATES, DATA, SETTING, PART, REWARD,
    RopeScaling(32.0, 1.0, 4.0, 8192),
    BestOf(DECODING, (1, 2)),
    Rule(max_kl=1.0),
    Choice(DECODING, Rule(max_kl=1.0), 1),
    LengthSurvey(nothing, DOCUMENTS, 8, 0),
    RewardStatistics(nothing, DOCUMENTS, Combined((PART,)), 8, 8, 0),
    Sizes(16, 16),
    Prompt("a"),
    Pooling("last"),
    TextScorer("folder", 8),
    TextSettings(),
    MethodSetup((), None, None, None, None, 8, 2, 0),
    SamplingMethod("sampling"),
    SearchMethod("DeAL", SEARCH),
    EvolutionMethod("DARWIN", EVOLUTION, Unchanged()),
    Saving(1000, 3.0),
    Validation(1, 1024),
    Loss(),
    Statistics("length", 0.0, 1.0),
    TABLE,
    CriticHead(None, 3),
    Rewriter(TabularLM(50, 3), None, nothing, nothing, 8),
    learned.Entailment(None),
    tokens.LengthNear(3),
    tokens.Repetition(),
    tokens.TokenOverlap(),
    words.KeywordCoverage(),
    words.WordsInRange(1, 3),
    loop.ValidationLoop(2, None, nothing, nothing),
    Memory(),
    preferences.PreferenceValidation(1, 1024, 3),
    scorers.LogRatio(None, 0.1),
    preferences.PreferenceTraining(
        preferences.PreferenceStart(None, FINISHED), TaskData("newswire_pairs", 16, 16, 4), OPTIMIZER,
        4, 0, preferences.PreferenceValidation(1, 1024, 3), Saving(1000, 3.0),
    ),
    supervised.Training(FINISHED, DATA, OPTIMIZER, 4, 0, Validation(1, 1024), Loss(), Saving(1000, 3.0)),
    PPOTraining(nothing, DATA, OBJECTIVE, UPDATES, BOTH, 2, 0, Saving(1000, 3.0)),
    distillation.DistillationSetup(None, OBJECTIVE, 2),
    WarmStart(nothing, DATA, OBJECTIVE, 2, BOTH, 2, 2, 0, Saving(1000, 3.0)),
    LoraConfig(2, 4.0),
    SampleSizes(4, 2, 8),
    OfflineValidation(1, 4, 3),
    OfflineAlignment(
        nothing, DATA, OBJECTIVE, SampleSizes(4, 2, 8), OPTIMIZER, 4, 0, OfflineValidation(1, 4, 3),
        Saving(1000, 3.0),
    ),
    ON_TABLES,
    exact.ExactWorlds(3, (3, 4), (0.5, 1.0), 0.1, 1.0, 2, ON_TABLES, 1),
    LengthReward(
        reward=REWARD, seeds=(0, 1), lams=(0.5, 1.0), retrained=(0.5,), reference_samples=1, **SWEEPS
    ),
    TwoRewards(parts=(PART, PART), grid=(0.0, 1.0), trained=(), **SWEEPS),
    GivenReward("length", REWARD),
    LearnedReward("preferred", nothing),
    RewardStudy(criteria=(GivenReward("a", REWARD),), lams=(0.0,), title="", **SWEEPS),
    SearchStudy(SETTING, REWARD, SEARCH, 0.5, "{document}", (1.0, 2.0), (0, 2), "reward", "title"),
    TradeOff(SETTING, (PART, Part("other", REWARD)), (0.0, 1.0), SEARCH, "title"),
    PopulationStudy(SETTING, REWARD, EVOLUTION, *STUDY, "reward", "title"),
    SampleDecoder(),
    SearchDecoder(),
    EvolutionDecoder(REWARD, ("one ",)),
]  # fmt: skip
# Pytrees, which JAX makes anew with leaves of any kind, are checked by functions; see `checks`.
CHECKED_BY = {
    Sampling: check_sampling,
    Search: lambda search: check_search(search, None, Reward()),
    Evolution: check_evolution,
}
NOT_SETTINGS = {
    "OutputSource": "made by what writes a report",
    "Adoption": "made by a search from its settings",
    "EncodedExamples": "encoded from texts",
    "Call": "found in a gin configuration",
    "Param": "likewise",
    "Tokenizer": "made from a model and its vocabulary",
    "Llama": "its id is a constant",
    "LlamaConfig": "read from config.json too; tests/models/test_llama.py",
    "Budget": "computed from rows of tables",
    "CrossEntropy": "made by a training from its settings",
    "LogVariance": "made by a training from its settings",
    "PPOLoss": "made by a training from its settings",
    "ProgramCost": "what a dry run found",
    "AlignmentExperiment": "the fields of experiments, each of which is in the list",
    "SweepExperiment": "likewise",
    "DryRunResources": "made by dry runs from a model",
    "StoredArray": "read from a checkpoint, whose shapes are compared",
    "T5": "its id is a constant",
    "T5Config": "read from config.json too; tests/models/test_t5.py",
    "Validator": "made by a training from its settings",
    "WarmedUp": "made by schedules, which check their arguments",
    "ByteVocabulary": "as SentencePieceVocabulary",
    "SentencePieceVocabulary": "read from files; tests/checkpoints/test_vocabulary.py",
    "Plan": "made by runs from their settings",
    "Owner": "of a lock; tests/files/test_store.py",
    "_Sheet": "of a drawing",
    "PairSweep": "its number names a component; tests/checkpoints/test_pairs_that_differ.py",
    "AspectExample": "read from a data set",
    "JsonVocabulary": "read from files; tests/checkpoints/test_byte_level.py",
    "_Kind": "of tokenizers in GGUF files",
    "_Tensor": "read from a file",
}
SIGNED = {"lam", "lams", "weight", "mean", "grid"}  # may be negative
NEGATIVE = {"end_ids": -7}  # -1 means none
MAY_BE_NONE = {"end_ids"}
MAY_BE_EMPTY = {
    "trained", "retrained", "periods", "populations", "survivors", "lookaheads", "generations",
    "texts", "beams", "end_ids", "unused_ids",
}  # fmt: skip


def leaves(kind: object) -> set[object]:
    """The types that a type is made of, `tuple` among them."""
    of = typing.get_origin(kind)
    if of not in (types.UnionType, typing.Union, tuple):
        return {of or kind}
    inner = set().union(*map(leaves, typing.get_args(kind)))
    return {tuple} | inner if of is tuple else inner


def wrong_values(field: dataclasses.Field) -> Iterator[object]:
    """Invalid values for a field of numbers."""
    kinds = leaves(field.type)
    least = NEGATIVE.get(field.name, -1)
    negative = [] if field.name in SIGNED else [least]
    if bool in kinds:
        wrong = ["no", 1, None]
    elif int in kinds:
        wrong = ["3", True, 2.5, math.nan, *negative]
    else:
        wrong = ["0.5", True, math.nan, math.inf, *negative]
    if tuple not in kinds:
        yield from wrong if type(None) in kinds else [*wrong, *([] if bool in kinds else [None])]
        yield (1, 2)
        return
    yield from (1,) if field.name in MAY_BE_NONE else (1, None)
    yield from ((x,) for x in wrong)
    if field.name not in MAY_BE_EMPTY:
        yield ()


def number_fields(kind: type) -> list[dataclasses.Field]:
    return [x for x in dataclasses.fields(kind) if leaves(x.type) & {int, float, bool}]


def refusal(made: object, field: str, wrong: object) -> str:
    """What is said of an object with this field; '' if nothing."""
    try:
        changed = dataclasses.replace(made, **{field: wrong})
        CHECKED_BY[type(made)](changed)
    except ValueError as error:
        return str(error)
    except KeyError:
        pass
    return ""


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
def test_invalid_numbers_are_refused_by_name(made):
    for field in number_fields(type(made)):
        for wrong in wrong_values(field):
            if (type(made), field.name, wrong) == (Sweep, "lams", ()):
                continue  # of a single model, see PairSweep
            said = refusal(made, field.name, wrong)
            named = re.search(rf"{field.name}\b.* must be .*; found {re.escape(repr(wrong))}", said)
            assert named and "\n" not in said, (field.name, wrong, said)


def test_every_class_of_settings_is_in_the_list():
    known = {type(made) for made in MADE}
    missing = []
    for found in pkgutil.walk_packages(dera_jax.__path__, "dera_jax."):
        if found.name.startswith("dera_jax.t5x.") and found.name != "dera_jax.t5x.decoders":
            continue  # needs T5X
        if found.name.startswith("dera_jax.tasks"):
            continue
        module = importlib.import_module(found.name)
        for kind in vars(module).values():
            if not (isinstance(kind, type) and kind.__module__ == found.name):
                continue
            if not dataclasses.is_dataclass(kind) or issubclass(kind, nn.Module):
                continue
            is_pytree = hasattr(kind, "_flax_dataclass") and kind not in CHECKED_BY  # arrays
            if number_fields(kind) and not is_pytree and kind not in known:
                missing.append(kind.__name__)
    assert sorted(missing) == sorted(NOT_SETTINGS)


@pytest.mark.parametrize(
    ("made", "change", "message"),
    [
        (SWEEP, {"lams": 0.5}, r"Sweep.lams must be a non-empty tuple or list such as \(0.5,\)"),
        (SWEEP, {"lams": (0.5, 1, 0.5)}, "Sweep.lams must be different values; found 0.5 twice"),
        (SWEEP, {"reward": "length"}, "gin_configs/rewards sets, or None; found 'length'"),
        (SWEEP, {"sampling": Sampling(8, temperature="0.5")}, "Sampling.temperature .*'0.5'"),
        (SWEEP, {"sampling": Sampling(8, greedy="no")}, "Sampling.greedy must be True or False"),
        (SWEEP, {"sampling": Sampling(3)}, "max_length must be at least 4 for the reward"),
        (SWEEP, {"sampling": Sampling(8, min_length=9)}, r"min_length .* in \[0, 8\]; found 9"),
        (DOCUMENTS, {"task": "newswir"}, "unknown task 'newswir'; registered tasks: .*newswire"),
        (DOCUMENTS, {"split": "tests"}, "'newswire' has no split 'tests', only"),
        (DATA, {"task": "newswir"}, "unknown task 'newswir'; registered tasks: .*newswire"),
        (DATA, {"split": "tests"}, "'newswire' has no split 'tests', only"),
        (REWARD, {"low": 3}, "0 <= low <= high; found low 3, high 2"),
        (DECODING, {"aligned": ("a", "b")}, "PairSweep.aligned must be a path"),
        (
            DECODING,
            {"aligned": None},
            r"PairSweep.aligned must be a path, since .*found None and \(0",
        ),
        (
            DECODING,
            {"sweep": dataclasses.replace(SWEEP, lams=())},
            r"Sweep.lams must be a non-empty tuple or list .*; found \(\)",
        ),
        (
            SETTING,
            {"align": nothing, "aligned": None, "beta": None},
            "SearchExperiment.beta .*above 0",
        ),
    ],
)
def test_other_invalid_settings(made, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(made, **change)


def job(kind: type):
    return next(made for made in MADE if type(made) is kind)


LATE = optimizers.adamw(optimizers.rsqrt(1e-3, 5), 1.0)


@pytest.mark.parametrize(
    ("made", "change"),
    [
        (job(supervised.Training), {"optimizer": LATE}),
        (job(preferences.PreferenceTraining), {"optimizer": LATE}),
        (job(PPOTraining), {"optimizers": ppo.Optimizers(OPTIMIZER, LATE)}),
        (job(WarmStart), {"optimizers": ppo.Optimizers(LATE, OPTIMIZER)}),
        (job(WarmStart), {"optimizers": ppo.Optimizers(OPTIMIZER, LATE)}),
        (ON_TABLES, {"optimizers": ppo.Optimizers(LATE, OPTIMIZER)}),
    ],
)
def test_a_warm_up_longer_than_the_run_is_refused(made, change):
    with pytest.raises(ValueError, match=r"warm-up of the learning rate has 5 steps, but .* gives"):
        dataclasses.replace(made, **change)


def test_a_batch_that_minibatches_do_not_divide_is_refused():
    three = dataclasses.replace(UPDATES, minibatches=3)
    for made in (job(PPOTraining), ON_TABLES):
        with pytest.raises(ValueError, match=r"batch of 4 documents .* Updates.minibatches \(3\)"):
            dataclasses.replace(made, updates=three)


def test_a_method_checks_its_search():
    """When it is made, not after the methods that come before it."""
    with pytest.raises(ValueError, match=r"Search.top_k must be"):
        SearchMethod("DeAL", SEARCH.replace(top_k=1))
    with pytest.raises(ValueError, match="need a reward, and none"):
        SearchMethod("plain", SEARCH, guided=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.constant(-1.0, 0), r"constant.peak .*above 0; found -1.0"),
        (lambda: optimizers.rsqrt(0.0, 0), "rsqrt.peak .*above 0; found 0.0"),
        (lambda: optimizers.cosine(math.nan, 0, 5), "cosine.peak .*above 0; found nan"),
        (lambda: optimizers.cosine(1.0, 0.5, 5), "cosine.warmup_steps must be an integer"),
        (lambda: optimizers.cosine(1.0, 0, 5.0), "cosine.total_steps must be an integer"),
        (lambda: optimizers.cosine(1.0, 0, 5, -0.1), "cosine.final .*at least 0; found -0.1"),
        (lambda: optimizers.adamw(1e-3, 1.0), "adamw.learning_rate must be a schedule.*0.001"),
        (lambda: optimizers.adamw(abs, 0.0), "adamw.clip_norm .*above 0; found 0.0"),
        (lambda: optimizers.adamw(abs, 1.0, b1=1.0), r"adamw.b1 .*\[0, 1\); found 1.0"),
        (lambda: optimizers.adamw(abs, 1.0, weight_decay=-1), "adamw.weight_decay .*at least 0"),
        (lambda: optimizers.adafactor(abs, -1.0), "adafactor.clip_norm .*above 0"),
        (lambda: optimizers.adafactor(abs, 1.0, 2.0), r"adafactor.decay_rate .*\(0, 1\]"),
        (lambda: load(["a"], "b"), r"load.model must be a path.*found \['a'\]"),
        (lambda: load("a", ["b"]), r"load_models.paths must be .*\['a/folder'\].*; found"),
        (lambda: load("a", ""), r"load_models.paths must be .*\['a/folder'\].*; found"),
        (lambda: load_models("ab"), r"load_models.paths must be .*\['a/folder'\].*found 'ab'"),
        (lambda: Realigned(TABLE, TABLE), "Realigned.aligned must be a tuple or list such as"),
        (lambda: supervised.new_model(None, "a"), "new_model.seed must be an integer"),
        (lambda: supervised.finished_model("x", 1.5), r"finished_model.dropout_rate .*\[0, 1\)"),
    ],
)
def test_functions_check_their_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
