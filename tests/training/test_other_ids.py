"""A vocabulary with other special ids than T5's: padding 0, begin 1, end 2, unknown 3."""

import dataclasses

import numpy as np
import pytest
import sentencepiece
import seqio

from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.named_vocabulary import named_vocabulary
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.data import seqio_tasks, task_data
from dera_jax.data.encoding import Sizes
from dera_jax.data.examples import Examples
from dera_jax.data.task_data import TaskData
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import sequence_keys
from dera_jax.models.t5 import T5Config
from dera_jax.rewards.length import LengthInRange
from dera_jax.tasks import jsonl
from dera_jax.training import optimizers, ppo, ppo_training, supervised, validation
from dera_jax.training.train_step import Loss

TASK = "test_other_ids"
COLOURS = ("red", "green", "blue")
SIZES = Sizes(inputs=6, targets=4)
LENGTHS = dataclasses.asdict(SIZES)
CONFIG = T5Config(
    vocab_size=16, emb_dim=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=16,
    mlp_dim=32, logits_via_embedding=True, dropout_rate=0.0,
)  # fmt: skip
END = 2


def trained(path, specials: int, **ids) -> str:
    """A SentencePiece file of eight words and so many special pieces."""
    texts = [f"say {x} {i}" for x in COLOURS for i in range(4)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(path),
        model_type="word",
        vocab_size=8 + specials,
        normalization_rule_name="identity",
        minloglevel=2,
        **ids,
    )
    return f"{path}.model"


def rows(split: str) -> dict[str, list[str]]:
    texts = [COLOURS[i % 3] for i in range(12)]
    return {"document": [f"{x} {i // 3}" for i, x in enumerate(texts)], "summary": texts}


@pytest.fixture(scope="module", autouse=True)
def registered():
    jsonl.register_pairs(TASK, rows, ("train", "validation"), "say {document}")
    yield
    seqio.TaskRegistry.remove(TASK)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> SentencePieceVocabulary:
    path = tmp_path_factory.mktemp("pieces") / "other"
    return named_vocabulary(trained(path, 4, pad_id=0, bos_id=1, eos_id=END, unk_id=3))


def examples_of(vocabulary: SentencePieceVocabulary) -> Examples:
    return task_data.epoch(TASK, "train", tokenizer(vocabulary), SIZES)


def constant(rate: float, warmup: int = 2) -> optimizers.Optimizer:
    return optimizers.adamw(optimizers.constant(rate, warmup), clip_norm=1.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory, vocabulary):
    folder = tmp_path_factory.mktemp("sft")
    supervised.Training(
        start=supervised.new_model(CONFIG, seed=0),
        data=TaskData(TASK, **LENGTHS, batch_size=12, vocabulary=vocabulary),
        optimizer=constant(1e-2),
        steps=60,
        seed=0,
        validation=validation.Validation(period=60, examples=1024, decoded=6),
        loss=Loss(),
        saving=Saving(steps=1000, minutes=1e9),
    ).run(folder)
    return load(folder / "best")


def test_targets_end_with_the_vocabulary_s_end_token(vocabulary):
    examples = examples_of(vocabulary)
    for x in (examples.targets, examples.inputs):
        assert (np.sum(x.tokens == END, axis=1) == 1).all()
        assert (x.tokens[np.arange(len(examples)), x.lengths - 1] == END).all()
    assert vocabulary.end_id == END


@pytest.mark.slow
def test_a_model_learns_to_end_with_it(model):
    assert model.model.end_ids == (END,) and model.model.num_ids == 12
    examples = examples_of(model.vocabulary)
    keys = sequence_keys(0, examples.example_id, [0])
    out = sample(model.model, model.params, examples.inputs, keys, Sampling(4, greedy=True))
    assert out.finished.all()
    np.testing.assert_array_equal(out.tokens[:, 0], examples.targets.tokens)
    np.testing.assert_array_equal(out.lengths[:, 0], examples.targets.lengths)
    words = LengthInRange(1, 2)(None, None, out.tokens, out.lengths, out.finished)
    np.testing.assert_array_equal(words, 0)


@pytest.mark.slow
def test_rewards_of_ppo_count(model, tmp_path):
    rate = constant(1e-4, warmup=1)
    scores = ppo_training.PPOTraining(
        reference=model,
        data=TaskData(TASK, **LENGTHS, batch_size=4),
        objective=ppo.AlignmentObjective(LengthInRange(1, 2), max_length=4, beta=0.1),
        updates=ppo.Updates(rollouts=2, epochs=1, minibatches=1),
        optimizers=ppo.Optimizers(rate, rate),
        steps=1,
        seed=0,
        saving=Saving(steps=1000, minutes=1e9),
    ).run(tmp_path)
    assert scores["reward"] > -0.5
    assert load(tmp_path / ppo_training.MODEL).model == model.model


def test_a_model_with_another_end_token_is_refused(vocabulary):
    config = dataclasses.replace(CONFIG, end_ids=(1,))
    message = r"ends sequences with id 2, '</s>', the model with id 1"
    task = TaskData(TASK, **LENGTHS, batch_size=1, vocabulary=vocabulary)
    with pytest.raises(ValueError, match=f"task '{TASK}'.*{message}"):
        supervised.read_for_data(supervised.new_model(config, seed=0), task)
    start = supervised.new_model(config, seed=0, vocabulary=vocabulary)
    with pytest.raises(ValueError, match=f"new_model.vocabulary.*{message}"):
        start.read()


def test_texts_need_a_vocabulary():
    task = TaskData(TASK, **LENGTHS, batch_size=1)
    origin = supervised.read_for_data(supervised.new_model(CONFIG, seed=0), task)
    with pytest.raises(ValueError, match="does not say what its ids mean.*VOCABULARY"):
        task.encoded_by(origin.tokenizer)


def test_a_vocabulary_whose_id_0_is_no_padding_is_read_with_lengths(tmp_path):
    """SentencePiece's default ids: 0 is the unknown piece, 1 begins, 2 ends; none pads."""
    default = named_vocabulary(trained(tmp_path / "default", 3))
    assert (default.unknown_id, default.end_id, default.padding_id) == (0, 2, None)
    found = examples_of(default)
    for padded in (found.inputs, found.targets):
        last = np.take_along_axis(padded.tokens, padded.lengths[:, None] - 1, axis=1)
        np.testing.assert_array_equal(last, 2)
        assert not padded.tokens[~np.asarray(padded.mask)].any()


def test_a_vocabulary_without_end_of_sequence_is_refused(tmp_path):
    file = trained(tmp_path / "endless", 2, pad_id=0, bos_id=-1, eos_id=-1, unk_id=1)
    with pytest.raises(ValueError, match="has no end-of-sequence piece"):
        supervised.new_model(CONFIG, seed=0, vocabulary=named_vocabulary(file)).read()


def test_ids_without_text_have_no_vocabulary():
    with pytest.raises(ValueError, match="type PassThroughVocabulary are not supported"):
        seqio_tasks.as_stored(seqio.PassThroughVocabulary(10))
