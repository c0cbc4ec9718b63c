"""Eight words as training data, from arrays alone, and every trainer on them: without TensorFlow."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data.examples import Batch, Examples, train_batches
from dera_jax.models.language_model import Padded, Prompts, pad_sequences
from dera_jax.models.llama_config import LlamaConfig
from dera_jax.models.registry import model_of
from dera_jax.models.t5 import T5Config
from dera_jax.prompts import Prompt
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.tokens import LengthNear
from dera_jax.training import optimizers, ppo, preferences, supervised
from dera_jax.training.offline_training import (
    OfflineAlignment,
    OfflineValidation,
    SampleSizes,
)
from dera_jax.training.ppo_training import PPOTraining
from dera_jax.training.train_state import Memory  # noqa: F401 (of scripts that run these)
from dera_jax.training.train_step import Loss
from dera_jax.training.validation import Validation
from dera_jax.training.warm_start import WarmStart
from tests import tiny

WORDS = ["kiwi", "plum", "fig", "lime", "pear", "date", "peach", "melon"]
CONFIGS = {
    "t5": T5Config(260, 16, 2, 1, 1, 8, 16, ("relu",), True, dropout_rate=0.0),
    "llama": LlamaConfig(260, 36, 9, 3, 1, 8, 56),
}


@dataclasses.dataclass(frozen=True)
class Words:
    """Each word is to be written after itself; written backwards it is the worse text."""

    name: str = "words"
    split: str = "train"
    inputs: int = 8
    targets: int = 8
    batch_size: int = 8

    def check(self, *splits, pairs=False, summaries=False):
        assert set(splits) <= {"train", "validation", "test"}

    def known_vocabulary(self):
        return ByteVocabulary()

    def described(self):
        return {"words": WORDS}

    def encoded_by(self, tokenizer):
        return EncodedWords(self, tokenizer)


@dataclasses.dataclass(frozen=True)
class EncodedWords:
    data: Words
    tokenizer: Tokenizer

    def left_out(self):
        return {}

    def read(self, split, seed=0) -> Examples:
        text = self.tokenizer
        column = lambda words: Padded(*pad_sequences([text.encode_completion(x) for x in words], 8))
        return Examples(
            inputs=Prompts(*pad_sequences([text.encode_prompt(x, 8).ids for x in WORDS], 8)),
            targets=column(WORDS),
            rejected=column([x[::-1] for x in WORDS]),
            example_id=np.arange(len(WORDS)),
            text_prompts=[Prompt(x) for x in WORDS],
            summaries=WORDS,
            notes={},
        )

    def batches(
        self, seed, start_step, with_documents=False, check_documents=None
    ) -> Iterator[Batch]:
        read = lambda s: self.read("train", s)
        return train_batches(read, self.data.batch_size, seed, start_step, with_documents)


RATE = optimizers.adamw(optimizers.constant(3e-3, 1), clip_norm=1.0, weight_decay=0.0)
RATES = ppo.Optimizers(RATE, RATE)
SAVING = Saving(100, 3.0)
NEAR = LengthNear(3)
STEPS = 3


def drawn(family: str) -> LoadedModel:
    """A random model over bytes."""
    model = model_of(CONFIGS[family])
    found = LoadedModel(model, tiny.params(model), None, {})
    return found.with_vocabulary(ByteVocabulary(), "these tests")


def start(family: str) -> supervised.InitialModel:
    reference = drawn(family)
    return supervised.InitialModel(reference.model, lambda: reference, ByteVocabulary())


def sft(family: str, **more) -> supervised.Training:
    validation, loss = Validation(2, 1024, decoded=2), Loss(0.1, 1e-4)
    return supervised.Training(
        start(family), Words(), RATE, STEPS, 0, validation, loss, SAVING, **more
    )


def sft_with_dropout(family: str, **more) -> supervised.Training:
    """Of a T5."""
    training = sft(family, **more)
    model = training.start.model
    config = dataclasses.replace(model.config, dropout_rate=0.2)
    begin = dataclasses.replace(training.start, model=dataclasses.replace(model, config=config))
    return dataclasses.replace(training, start=begin)


def pairs(what: preferences.PreferenceStart, **more) -> preferences.PreferenceTraining:
    validation = preferences.PreferenceValidation(2, 1024, 3)
    return preferences.PreferenceTraining(what, Words(), RATE, STEPS, 0, validation, SAVING, **more)


def dpo(family: str, **more) -> preferences.PreferenceTraining:
    return pairs(preferences.dpo(start(family), 0.1), **more)


def reward_model(family: str, **more) -> preferences.PreferenceTraining:
    return pairs(preferences.reward_model(start(family)), **more)


def aligned(family: str, reward=NEAR, **more) -> PPOTraining:
    objective = ppo.AlignmentObjective(reward, max_length=8, beta=0.1)
    updates = ppo.Updates(rollouts=2, epochs=1, minibatches=2)
    return PPOTraining(drawn(family), Words(), objective, updates, RATES, STEPS, 0, SAVING, **more)


def aligned_in_python(family: str, **more) -> PPOTraining:
    """The same reward, of texts."""

    def reward(documents: list[str], texts: list[str]) -> list[float]:
        return [float(-abs(len(text) - 2)) for text in texts]

    return aligned(family, HostReward(reward), **more)


def distilled(family: str, **more) -> WarmStart:
    objective = ppo.AlignmentObjective(NEAR, max_length=8, beta=0.1)
    return WarmStart(drawn(family), Words(), objective, 2, RATES, 2, 2, 0, SAVING, **more)


def offline(family: str, **more) -> OfflineAlignment:
    objective = ppo.AlignmentObjective(NEAR, max_length=8, beta=0.1)
    sizes, validation = SampleSizes(6, 4, 8), OfflineValidation(2, 4, None)
    return OfflineAlignment(
        drawn(family), Words(), objective, sizes, RATE, STEPS, 0, validation, SAVING, **more
    )


TRAINERS: dict[str, Callable] = {
    "sft": sft,
    "sft with dropout": sft_with_dropout,
    "dpo": dpo,
    "reward model": reward_model,
    "ppo": aligned,
    "ppo, reward in Python": aligned_in_python,
    "distillation": distilled,
    "offline": offline,
}
RESULT = {
    "sft": "best",
    "sft with dropout": "best",
    "dpo": "best",
    "reward model": "best",
    "distillation": "distilled",
}


def result_of(name: str, folder: Path) -> Path:
    """Where a trainer leaves its model."""
    return folder / RESULT.get(name, "aligned")
