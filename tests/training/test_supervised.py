"""The trainer on a copying task of a few bytes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.data.task_data import TaskData
from dera_jax.models.language_model import next_token_logits
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.tasks import jsonl
from dera_jax.training import metric_log, optimizers, supervised, validation
from dera_jax.training.train_state import make_step, new_state
from dera_jax.training.train_step import CrossEntropy, Loss
from tests import prompts
from tests.training import steps

CONFIG = T5Config(
    vocab_size=259,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=64,
    logits_via_embedding=True,
    dropout_rate=0.1,
)
TASK = "test_supervised_words"
ROWS = 96


def _words(split, shuffle_files, seed=None):
    del shuffle_files, seed
    rng = np.random.default_rng(["train", "validation"].index(split))
    words = [str(rng.choice(list("abcd"))) * 3 for _ in range(ROWS)]
    rows = {"inputs": [f"say: {word}" for word in words], "targets": words}
    return tf.data.Dataset.from_tensor_slices(rows)


@pytest.fixture(scope="module", autouse=True)
def task():
    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
    seqio.TaskRegistry.add(
        TASK,
        source=seqio.FunctionDataSource(_words, splits=["train", "validation"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
    )
    yield
    seqio.TaskRegistry.remove(TASK)


def training(**changes) -> supervised.Training:
    rate = optimizers.constant(1e-2, warmup_steps=2)
    default = supervised.Training(
        start=supervised.new_model(CONFIG, seed=0),
        data=TaskData(TASK, inputs=12, targets=6, batch_size=8),
        optimizer=optimizers.adamw(rate, clip_norm=1.0),
        steps=6,
        seed=3,
        validation=validation.Validation(period=2, examples=1024, decoded=5, shown=2),
        loss=Loss(),
        saving=Saving(1000, 3.0),
    )
    return dataclasses.replace(default, **changes)


def rows(folder) -> list[dict]:
    return metric_log.read(folder)


def test_a_run_leaves_its_best_model_metrics_and_samples(tmp_path):
    result = training().run(tmp_path)
    reports = rows(tmp_path)
    losses = {r["step"]: r["validation/loss"] for r in reports if "validation/loss" in r}
    assert list(losses) == [2, 4, 6]
    best_step = min(losses, key=losses.get)
    assert result == {"best_loss": pytest.approx(losses[best_step]), "best_step": best_step}
    best = load(tmp_path / "best")
    assert best.card["step"] == best_step and best.vocabulary == ByteVocabulary()
    assert sum("training/loss" in report for report in reports) == 3
    assert {"validation/rouge1", "validation/rougeL"} <= set(reports[-1])
    samples = (tmp_path / "samples" / "step_000006.txt").read_text()
    assert samples.count("document:") == 2 and "say: " in samples
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_validation_loss_is_the_mean_over_target_tokens(tmp_path):
    training(steps=2).run(tmp_path)
    best = load(tmp_path / "best")
    inputs, targets = np.zeros((ROWS, 12), np.int32), np.zeros((ROWS, 6), np.int32)
    for i, row in enumerate(_words("validation", False).as_numpy_iterator()):
        inputs[i, :9] = [*np.frombuffer(row["inputs"], np.uint8) + 3, 1, 0][:9]
        targets[i, :4] = [*np.frombuffer(row["targets"], np.uint8) + 3, 1]
    logits = next_token_logits(
        best.model, best.params, prompts.zero_padded(inputs), jnp.array(targets)[:, None]
    )[:, 0]
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    picked = np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    expected = -picked[targets > 0].mean()
    assert best.card["validation"]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_trainer_learns_what_the_input_says(tmp_path):
    """One of four words of 4 tokens: who does not read the input stays above ln(4) / 4 = 0.35."""
    training(steps=250, validation=validation.Validation(period=250, examples=1024)).run(tmp_path)
    assert rows(tmp_path)[-1]["validation/loss"] < 0.1


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    still = optimizers.adamw(lambda step: 0.0, clip_norm=1.0)
    check = validation.Validation(period=2, examples=1024, patience=2)
    result = training(optimizer=still, steps=20, validation=check).run(tmp_path)
    assert result["best_step"] == 2
    assert rows(tmp_path)[-1]["step"] == 6  # best at 2, not better at 4 and 6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_steps(tmp_path):
    wild = optimizers.adamw(lambda step: jnp.where(step == 3, jnp.nan, 1e-3), clip_norm=1.0)
    with pytest.raises(FloatingPointError, match=r"not finite at steps \[5, 6, 7, 8\]"):
        training(
            optimizer=wild, steps=10, validation=validation.Validation(period=8, examples=1024)
        ).run(tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_model_smaller_than_the_vocabulary_is_refused(tmp_path):
    small = supervised.new_model(dataclasses.replace(CONFIG, vocab_size=200), seed=0)
    with pytest.raises(
        ValueError, match=r"has 259 ids, the model's tables only 200.*raise vocab_size"
    ):
        training(start=small).run(tmp_path)


def test_data_without_summaries_are_refused(tmp_path):
    """A model of them would learn to write nothing."""
    rows = {"document": ["a", "b"], "summary": ["", ""]}
    jsonl.register_pairs(
        "test_documents", lambda split: rows, ["train", "validation"], "{document}"
    )
    data = TaskData("test_documents", inputs=12, targets=6, batch_size=2)
    start = supervised.new_model(CONFIG, seed=0, vocabulary=ByteVocabulary())
    with pytest.raises(ValueError, match="'test_documents' has no summaries in the split 'validat"):
        training(start=start, data=data).run(tmp_path)
    seqio.TaskRegistry.remove("test_documents")


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step_alone():
    still = optimizers.adamw(lambda step: 0.0, clip_norm=1.0)
    params = T5(CONFIG).init(jax.random.key(0))
    batch = prompts.whole(np.full((2, 4), 5)), prompts.zero_padded_targets(np.full((2, 3), 7))

    @functools.cache
    def compiled(config: T5Config):
        return jax.jit(make_step(CrossEntropy(T5(config), Loss()), still))

    def losses(config: T5Config, seed: int, at: list[int]) -> list[float]:
        step = compiled(config)
        states = [new_state(params, still).replace(step=jnp.int32(i)) for i in at]
        given = {}, steps.batch(*batch), jax.random.key(seed)
        return [float(step(state, *given)[1]["loss"]) for state in states]

    first, again, later = losses(CONFIG, 0, [4, 4, 5])
    (other,) = losses(CONFIG, 1, [4])
    assert first == again
    assert len({first, later, other}) == 3
    without = losses(dataclasses.replace(CONFIG, dropout_rate=0.0), 0, [4, 5])
    assert without[0] == without[1]


def test_a_model_to_start_from_has_the_sizes_that_were_said(tmp_path):
    with pytest.raises(ValueError, match="add --gin.INITIAL_MODEL"):
        supervised.finished_model_of(CONFIG, None).read()
    params = T5(CONFIG).init(jax.random.key(4))
    save_model(tmp_path / "m", CONFIG, ByteVocabulary(), params, {"step": 7})
    other = dataclasses.replace(CONFIG, mlp_dim=CONFIG.mlp_dim + 1)
    with pytest.raises(ValueError, match="other sizes"):
        supervised.finished_model_of(other, str(tmp_path / "m")).read()
    free = dataclasses.replace(CONFIG, dropout_rate=0.3, dtype="bfloat16")
    origin = supervised.finished_model_of(free, str(tmp_path / "m")).read()
    assert origin.card == {"step": 7}
    jax.tree.map(np.testing.assert_array_equal, origin.params, params)
