"""Training on comparisons. With the population's loss DPO has its optimum at π*(β), in closed form:
π*(β) ∝ π_ref·exp(r/β) over all texts (Rafailov et al. 2023)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.loading import load, load_params, read_value_head
from dera_jax.checkpoints.orbax import Saving
from dera_jax.data.own_files import OwnFiles
from dera_jax.data.task_data import TaskData
from dera_jax.models.language_model import score
from dera_jax.models.t5 import T5Config
from dera_jax.tasks import preferences as pairs_task
from dera_jax.training import metric_log, optimizers, preferences, scorers, supervised
from dera_jax.training.losses import bradley_terry
from tests import prompts
from tests.decoding import worlds

VOCAB, BETA = 3, 0.45


def exact(params) -> np.ndarray:
    """Probability of each text under a table of logits [1, P, V]."""
    table = np.asarray(params, np.float64)[0]
    texts = worlds.texts(VOCAB)
    return worlds.text_probabilities(
        lambda prefix: table[worlds.prefix_number(prefix, VOCAB)], texts
    )


def kl(p: np.ndarray, q: np.ndarray) -> float:
    with np.errstate(divide="ignore"):  # infinite where q has forgotten what p says
        return float(np.sum(p * np.log(p / q)))


@pytest.fixture(scope="module")
def world():
    """DPO's score, π_ref's table, all texts [1, K, T], their lengths, and a reward for each."""
    model, (reference,) = worlds.tabular_tower(1, VOCAB)
    texts = worlds.texts(VOCAB)
    tokens = np.zeros((1, len(texts), worlds.HORIZON), np.int32)
    for row, text in zip(tokens[0], texts, strict=True):
        row[: len(text)] = text
    lengths = np.array([[len(text) for text in texts]])
    rewards = np.random.default_rng(0).normal(size=len(texts))
    return scorers.LogRatio(model, BETA), reference, tokens, lengths, rewards


def train_on_population(world, probability: np.ndarray, steps: int):
    """π_ref's table after L-BFGS on the loss over all pairs of texts, each as likely as the other.

    probability: [K, K] that the first text of a pair is preferred.
    """
    scorer, reference, tokens, lengths, _ = world
    prompt = prompts.whole([[0]])

    def loss(table):
        s = scorer.scores(table, reference, prompt, tokens, lengths)[0]
        return jnp.mean(bradley_terry(s[:, None] - s[None, :], probability))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(carry, _):
        table, state = carry
        value, grad = value_and_grad(table, state=state)
        updates, state = solver.update(grad, state, table, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(table, updates), state), value

    start = (reference, solver.init(reference))
    (table, _), losses = jax.lax.scan(step, start, length=steps)
    return table, losses


def optimum(world, beta: float) -> np.ndarray:
    weights = exact(world[1]) * np.exp(world[-1] / beta)
    return weights / weights.sum()


def test_dpo_on_sampled_labels_finds_the_optimum(world):
    rewards = world[-1]
    target = optimum(world, BETA)
    assert kl(target, exact(world[1])) >= 0.5
    probability = 1 / (1 + np.exp(rewards[None, :] - rewards[:, None]))  # of the drawn label
    table, _ = train_on_population(world, probability, 300)
    distance = kl(exact(table), target)
    print(f"KL(π ‖ π*) = {distance:.2e} nats, KL(π* ‖ π_ref) = {kl(target, exact(world[1])):.2f}")
    assert distance <= 1e-4
    assert kl(exact(table), optimum(world, 1.1 * BETA)) > 1e-3  # the bound would catch another β


def test_dpo_on_hard_labels_does_not(world):
    """If the better text always wins, no finite score is enough: π runs past π*(β) to the best
    text, and the loss to 0."""
    rewards = world[-1]
    target = optimum(world, BETA)
    always = (rewards[:, None] > rewards[None, :]) + 0.5 * (rewards[:, None] == rewards[None, :])
    distances, losses = [], []
    for steps in (3, 10, 100):
        table, values = train_on_population(world, always, steps)
        distances.append(kl(target, exact(table)))
        losses.append(float(values[-1]) - np.log(2) / len(rewards))  # a text beside itself: log 2
    print(f"KL(π* ‖ π) after 3, 10, 100 steps: {distances}; losses {losses}")
    assert 0.5 < distances[0] < distances[1] < distances[2] and distances[2] > 10
    assert losses[2] < 0.01 < losses[0]


def test_dpo_s_score_is_beta_times_the_log_ratio(world):
    scorer, reference, tokens, lengths, _ = world
    policy = reference + np.random.default_rng(1).normal(size=reference.shape)
    found = scorer.scores(policy, reference, prompts.whole([[0]]), tokens, lengths)[0]
    expected = BETA * np.log(exact(policy) / exact(reference))
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --- runs on files of pairs

CONFIG = T5Config(
    vocab_size=259,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=64,
    logits_via_embedding=True,
)
TASK = "test_preferences_bytes"


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """Pairs in which the chosen text ends in `!`."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    paths = {}
    for split, size in (("train", 64), ("validation", 32), ("test", 40)):
        rows = []
        for i in range(size):
            good, bad = (f"{rng.choice(list('abcd'))}{end}" for end in "!?")
            rows.append({"document": f"{split} {i}", "chosen": good, "rejected": bad})
        paths[split] = str(folder / f"{split}.jsonl")
        with open(paths[split], "w") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    pairs_task.register(TASK, paths, "{document}")


def training(kind, **changes) -> preferences.PreferenceTraining:
    default = preferences.PreferenceTraining(
        start=kind(supervised.new_model(CONFIG, seed=0, vocabulary=ByteVocabulary())),
        data=TaskData(TASK, inputs=16, targets=4, batch_size=16),
        optimizer=optimizers.adamw(optimizers.constant(1e-2, 2), clip_norm=1.0),
        steps=40,
        seed=0,
        validation=preferences.PreferenceValidation(period=10, examples=1024, patience=3),
        saving=Saving(1000, 3.0),
    )
    return dataclasses.replace(default, **changes)


def dpo(start):
    return preferences.dpo(start, beta=0.5)


@pytest.mark.slow
def test_a_reward_model_learns_what_was_chosen_for(tmp_path):
    result = training(preferences.reward_model).run(tmp_path)
    assert result["test"]["accuracy"] == 1 and result["test"]["pairs"] == 40
    assert result["test"]["loss"] < 0.1 < np.log(2)
    assert (tmp_path / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    model = read_value_head(tmp_path / "best")
    params = load_params(tmp_path / "best", model.random, ByteVocabulary(), "this test")
    texts = np.array([[[ord("b") + 3, ord(c) + 3, 1] for c in "!?"]])
    scorer = scorers.ScalarHead(model)
    prompt, lengths = prompts.whole(np.full((1, 16), 5)), np.full((1, 2), 3)
    good, bad = scorer.scores(params, None, prompt, texts, lengths)[0]
    assert good > bad + 1
    with pytest.raises(ValueError, match="holds a reward model"):
        load(tmp_path / "best")


def test_without_a_test_file_nothing_is_tested_and_a_line_says_so(tmp_path, capsys):
    for split, rows in (("train", 64), ("validation", 16)):
        lines = [{"document": f"a{i:04}", "chosen": "b!", "rejected": "b?"} for i in range(rows)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    files = OwnFiles(f"{tmp_path}/train.jsonl", f"{tmp_path}/validation.jsonl")
    data = TaskData(None, inputs=24, targets=4, batch_size=16, files=files)
    result = training(preferences.reward_model, data=data, steps=2).run(tmp_path / "out")
    assert result.keys() == {"best_loss", "best_step", "left_out"}
    assert "the split 'test' (TEST): the best model is not tested" in capsys.readouterr().out
    assert not (tmp_path / "out" / "test.json").exists()
    summaries = tmp_path / "summaries.jsonl"
    summaries.write_text('{"document": "a", "summary": "b"}\n')
    data = dataclasses.replace(data, files=dataclasses.replace(files, test=str(summaries)))
    with pytest.raises(ValueError, match="summaries.jsonl, line 1: no 'chosen'"):
        training(preferences.reward_model, data=data)


@pytest.mark.slow
def test_dpo_raises_the_chosen_texts(tmp_path):
    result = training(dpo).run(tmp_path)
    assert result["test"]["accuracy"] == 1
    found = load(tmp_path / "best")
    first = supervised.new_model(CONFIG, seed=0).read().params
    texts = np.array([[[ord("b") + 3, ord(c) + 3, 1] for c in "!?"]])
    prompt, lengths = prompts.whole(np.full((1, 16), 5)), np.full((1, 2), 3)
    scorer = scorers.LogRatio(found.model, 1.0)
    good, bad = scorer.scores(found.params, first, prompt, texts, lengths)[0]
    assert good > bad + 1
    assert found.card["beta"] == 0.5


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(preferences.reward_model, marks=pytest.mark.evidence),
        pytest.param(dpo, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(kind, tmp_path):
    short = {
        "steps": 6,
        "validation": preferences.PreferenceValidation(period=2, examples=1024, patience=3),
        "saving": Saving(steps=2, minutes=3.0),
    }
    training(kind, **short).run(tmp_path / "whole")
    training(kind, **short | {"steps": 4}).run(tmp_path / "cut")
    training(kind, **short).run(tmp_path / "cut")
    for name in ("best/model.safetensors",):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "cut"))
        assert first == second
    last = [
        metric_log.read(tmp_path / folder)[-1]["validation/loss"] for folder in ("whole", "cut")
    ]
    assert last[0] == last[1]


def test_the_first_loss_is_that_of_no_knowledge(tmp_path):
    still = optimizers.adamw(lambda step: 0.0, clip_norm=1.0)
    for kind in (preferences.reward_model, dpo):
        result = training(kind, optimizer=still, steps=1).run(tmp_path / kind.__name__)
        assert result["best_loss"] == pytest.approx(np.log(2), abs=1e-6)
        assert result["test"]["accuracy"] == 0.5


def test_a_task_without_pairs_is_refused(tmp_path):
    import dera_jax.tasks  # noqa: F401 (registers newswire)

    data = TaskData("newswire", inputs=16, targets=4, batch_size=16)
    with pytest.raises(
        ValueError, match=r"'newswire' has no preference pairs: expected a feature 'rejected'"
    ):
        training(preferences.reward_model, data=data).run(tmp_path)


def test_bad_beta_is_refused():
    with pytest.raises(ValueError, match="beta must be a finite number above 0; found 0"):
        preferences.dpo(supervised.new_model(CONFIG, seed=0), beta=0)


def test_log_probability_of_whole_texts_is_summed(world):
    """`score` leaves out what is behind a text."""
    scorer, reference, tokens, lengths, _ = world
    state = scorer.model.start(reference, prompts.whole([[0]]), lengths.shape[1], 1)
    total = score(scorer.model, reference, state, tokens, lengths).sum(-1)[0]
    np.testing.assert_allclose(np.exp(total), exact(reference), rtol=1e-4)
