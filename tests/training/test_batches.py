"""Batches and examples of a user's own: arrays that do not fit are named before anything is trained."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dera_jax import partitioning
from dera_jax.data.examples import Examples, unweighted
from dera_jax.models.language_model import Padded, Prompts
from dera_jax.models.tabular import TabularLM
from dera_jax.prompts import Prompt
from dera_jax.training import optimizers, scorers
from dera_jax.training.train_state import new_state
from tests.training import steps

B, S, T = 3, 4, 5
PROMPTS = Prompts(np.ones((B, S), np.int32), np.array([4, 1, 2]))
SEQUENCES = Padded(np.ones((B, T), np.int64), np.array([5, 0, 2]))
TEXTS = ["a", "b", "c"]
ASKED = [Prompt(text) for text in TEXTS]
NOTES = {"note": TEXTS}
EXAMPLES = Examples(PROMPTS, SEQUENCES, np.arange(B), ASKED, TEXTS, NOTES, rejected=SEQUENCES)

MODEL = TabularLM(4, T)
RATE = optimizers.adamw(lambda step: 1e-3, clip_norm=1.0, weight_decay=0.0)

WRONG = [
    ({"tokens": np.ones((B, T))}, "tokens must be an array .* of token ids.*; found float"),
    (
        {"tokens": np.ones((1, T), int)},
        r"tokens must be an array .* = 3.*; found int\d+ of shape \(1",
    ),
    ({"tokens": np.ones((B, 1, T), int)}, "tokens must be an array .*; found int"),
    ({"lengths": np.ones((B, 1), int)}, "lengths must be an array .*; found int"),
    ({"lengths": np.ones(1, int)}, r"lengths must be an array .* = 3.*; found int\d+ of shape \(1"),
    ({"lengths": np.ones(B)}, "lengths must be an array .*; found float"),
]
WRONG_LENGTHS = [
    ({"lengths": np.array([6, 0, 2])}, r"lengths must be in \[0, 5\], .*; found 6 at \[0\]"),
    ({"lengths": np.array([5, 0, -2])}, r"lengths must be in \[0, 5\], .*; found -2 at \[2\]"),
]


def test_right_examples_are_those_that_are_picked():
    assert len(EXAMPLES.at(slice(2))) == 2 and EXAMPLES.at(np.array([2])).documents == ["c"]
    assert len(EXAMPLES.at(slice(0))) == 0


@pytest.mark.parametrize("name", ["targets", "rejected"])
@pytest.mark.parametrize(("change", "message"), WRONG + WRONG_LENGTHS)
def test_sequences_of_examples_fit(name, change, message):
    with pytest.raises(ValueError, match=f"Examples.{name}.{message}"):
        dataclasses.replace(EXAMPLES, **{name: SEQUENCES.replace(**change)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": PROMPTS.replace(lengths=np.array([4, 0, 1]))}, r"\.inputs.lengths .* \[1, 4\]"),
        ({"inputs": PROMPTS.replace(tokens=np.ones((B, S)))}, r"\.inputs.tokens .*; found float64"),
        ({"rejected": Padded(np.ones((B, 2), int), np.ones(B, int))}, r"\.rejected.* T = 5; found"),
        ({"example_id": np.arange(2)}, r"\.example_id must be an array \[n\] of ids with n = 3"),
        ({"example_id": np.ones(B)}, r"\.example_id must be .*; found float64"),
        ({"keywords": np.zeros((B, 2), np.uint8)}, r"\.keywords must be an array \[n, W, L\]"),
        ({"weight": np.ones(B, int)}, r"\.weight must be an array \[n\] of numbers.*; found int"),
        ({"weight": np.array([1, -1, 0.5])}, r"\.weight must hold finite.*found -1.0 .* id 1"),
        ({"weight": np.array([1, 1, np.nan])}, r"\.weight must hold finite.*found nan .* id 2"),
        ({"text_prompts": ASKED[:2]}, ": text_prompts must hold n = 3 values, one for each"),
        ({"summaries": "abc"}, ": summaries must hold n = 3 values"),
        ({"notes": {"topic": TEXTS * 2}}, ": topic must hold n = 3 values"),
    ],
)
def test_columns_of_examples_fit(change, message):
    with pytest.raises(ValueError, match=f"Examples{message}"):
        dataclasses.replace(EXAMPLES, **change)


def supervised_step(prompts, targets):
    state = new_state(MODEL.init(jax.random.key(0)), RATE)
    return steps.sft(MODEL, RATE)(state, prompts, targets)


def preference_step(prompts, chosen, rejected=SEQUENCES):
    params = MODEL.init(jax.random.key(0))
    step = steps.pairs(scorers.LogRatio(MODEL, 0.1), RATE)
    return step(new_state(params, RATE), params, prompts, chosen, rejected)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_batches_fit(change, message):
    wrong = SEQUENCES.replace(**change)
    with pytest.raises(ValueError, match=f"targets.{message}"):
        supervised_step(PROMPTS, wrong)
    with pytest.raises(ValueError, match=f"rejected.{message}"):
        preference_step(PROMPTS, SEQUENCES, wrong)


def test_both_sequences_of_a_pair_have_the_same_room():
    shorter = Padded(np.ones((B, 2), int), np.ones(B, int))
    with pytest.raises(ValueError, match="rejected.tokens .* with B = 3, T = 5; found"):
        preference_step(PROMPTS, SEQUENCES, shorter)


@pytest.mark.parametrize(("change", "message"), WRONG[:1] + WRONG[3:])
def test_prompts_of_a_batch_fit(change, message):
    for step in (supervised_step, preference_step):
        with pytest.raises(ValueError, match=f"prompts.{message}"):
            step(PROMPTS.replace(**change), SEQUENCES)


def test_weights_are_refused_where_nothing_reads_them():
    batches = [{"weight": np.ones(B, np.float32)}, {"weight": np.float32([1, 0.5, 1])}]
    stream = unweighted(iter(batches))
    assert next(stream) == {}
    with pytest.raises(ValueError, match="weights, which PPO and distillation do not support"):
        next(stream)


@pytest.mark.parametrize(("data", "fits"), [(4, True), (2, True), (1, False)])
def test_batches_are_made_of_equal_parts_of_the_processes(data, fits, monkeypatch):
    """Four devices, two of each process."""
    devices = np.array([SimpleNamespace(process_index=i // 2) for i in range(4)])
    mesh = SimpleNamespace(devices=devices.reshape(data, -1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    if fits:
        return partitioning._check_processes(mesh)
    with pytest.raises(ValueError, match=r"1 devices along 'data', of the processes \[\[0, 1\]\]"):
        partitioning._check_processes(mesh)
