"""Trainers read lengths and not ids: any id may pad, and id 0 may be an ordinary token."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dera_jax.models.heads import CriticHead, ValueHead
from dera_jax.models.language_model import Padded, Prompts
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.tokens import TokenOverlap
from dera_jax.training import distillation, optimizers, ppo, scorers
from dera_jax.training.train_state import TrainState, new_state
from dera_jax.training.train_step import Loss
from dera_jax.training.validation import token_losses
from tests import prompts
from tests.training import steps

EOS, B, K, S, T, VOCAB = 1, 4, 3, 9, 6, 12
MODEL = T5(T5Config(VOCAB, 16, 2, 1, 1, 8, 16, ("relu",), True, end_ids=(EOS,)))
RATE = optimizers.adamw(optimizers.constant(1e-2, 0), clip_norm=1.0, weight_decay=0.0)
RATES = ppo.Optimizers(RATE, RATE)
OBJECTIVE = ppo.AlignmentObjective(TokenOverlap(), max_length=T, beta=0.2)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What trainers read, and the model that they train."""

    documents: Prompts
    chosen: Padded
    rejected: Padded
    model: T5
    params: object


@functools.cache
def plain() -> Batch:
    """Ids from 2 on, padded with 0. OTHER is among them, and in all that is read."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(2, VOCAB, shape)
    documents, chosen, rejected = draw(B, S), draw(B, T), draw(B, T)
    documents[:, 1] = chosen[:, 1] = rejected[:, 1] = prompts.OTHER
    sizes = lambda most: rng.integers(3, most + 1, B)
    given = Prompts(documents, sizes(S)), Padded(chosen, sizes(T)), Padded(rejected, sizes(T))
    params = jax.tree.map(lambda x: x / 4, MODEL.init(jax.random.key(0)))
    return Batch(*[prompts.repadded(x, 0) for x in given], MODEL, params)


def with_padding(padding: int) -> Batch:
    given = plain()
    names = ("documents", "chosen", "rejected")
    changed = {name: prompts.repadded(getattr(given, name), padding) for name in names}
    return dataclasses.replace(given, **changed)


def renamed() -> Batch:
    """With id 0 as an ordinary token, padded with what was OTHER, and is padding no more."""
    given = plain()
    sequences = (_renamed(x) for x in (given.documents, given.chosen, given.rejected))
    return Batch(*sequences, *prompts.renamed_t5(given.model, given.params))


def _renamed(x):
    return prompts.repadded(x.replace(tokens=prompts.renamed(x.tokens)), prompts.OTHER)


VARIANTS = {
    "another id": lambda: with_padding(9),
    "an id within": lambda: with_padding(prompts.FIRST),
    "id 0 is a token": renamed,
}


@functools.cache
def sft_step(model: T5):
    return steps.sft(model, RATE, Loss(label_smoothing=0.1))


def sft(batch: Batch) -> dict:
    """Two steps, and the validation loss of each token after them."""
    state = new_state(batch.params, RATE)
    seen = []
    for _ in range(2):
        state, metrics = sft_step(batch.model)(state, batch.documents, batch.chosen)
        seen.append(metrics)
    return {
        "steps": seen,
        "tokens": token_losses(batch.model, state.params, batch.documents, batch.chosen),
    }


@functools.cache
def pairs_step(scorer):
    return steps.pairs(scorer, RATE)


def pairs(batch: Batch, scorer) -> dict:
    """Two steps, and the margins after them."""
    texts = batch.documents, batch.chosen, batch.rejected
    state = new_state(scorer.init(batch.params), RATE)
    fixed = scorer.fixed(batch.params)
    seen = []
    for _ in range(2):
        state, metrics = pairs_step(scorer)(state, fixed, *texts)
        seen.append(metrics)
    return {"steps": seen, "margins": scorers.margin_of(scorer, state.params, fixed, *texts)}


def dpo(batch: Batch) -> dict:
    return pairs(batch, scorers.LogRatio(batch.model, beta=0.5))


def reward_model(batch: Batch) -> dict:
    return pairs(batch, scorers.ScalarHead(ValueHead(batch.model)))


def ppo_setup(model: T5) -> ppo.PPOSetup:
    updates = ppo.Updates(rollouts=K, epochs=1, minibatches=2)
    return ppo.PPOSetup(ppo.Actors(model, ValueHead(model)), OBJECTIVE, updates, RATES)


def ppo_state(batch: Batch) -> TrainState:
    value = ValueHead(batch.model).init(batch.params)
    policy = jax.tree.map(lambda x: 1.1 * x, batch.params)
    return ppo.initial_state(RATES, policy, value)


@functools.cache
def halves(model: T5):
    critic = CriticHead(model, max_length=T)
    losses = distillation.CriticLoss(critic, OBJECTIVE), distillation.PolicyLoss(model, critic)
    learners = [distillation.make_step(loss, RATE) for loss in losses]
    return [jax.jit(x) for x in (*ppo.make_split_step(ppo_setup(model)), *learners)]


def written(batch: Batch, state: TrainState):
    """A rollout of this state's policy."""
    asked = {"inputs": batch.documents, "example_id": np.arange(B)}
    return halves(batch.model)[0](state, {"reference": batch.params}, asked, steps.KEY)


@functools.cache
def rollout():
    """Samples of the plain batch's policy, in which OTHER occurs."""
    batch = plain()
    samples = written(batch, ppo_state(batch))
    tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
    inside = tokens[np.asarray(Padded(tokens, lengths).mask)]
    assert (inside == prompts.OTHER).any() and len(np.unique(lengths)) > 1
    return samples


def samples_of(batch: Batch):
    """The same texts as ids of the batch's vocabulary, padded as the batch is."""
    samples = rollout()
    tokens = Padded(np.asarray(samples.tokens), np.asarray(samples.lengths))
    if batch.model != MODEL:
        return samples.replace(tokens=_renamed(tokens).tokens)
    padding = int(np.asarray(batch.chosen.tokens)[~np.asarray(batch.chosen.mask)][0])
    return samples.replace(tokens=prompts.repadded(tokens, padding).tokens)


def reward_of(batch: Batch, samples):
    source = Source(batch.documents, batch.chosen)
    return TokenOverlap()(EOS, source, samples.tokens, samples.lengths, samples.finished)


def ppo_updates(batch: Batch) -> dict:
    """The updates on a rollout."""
    samples = samples_of(batch)
    _, learn, *_ = halves(batch.model)
    rewards = reward_of(batch, samples)
    rollout = batch.documents, samples, (rewards, {})
    state, metrics = learn(ppo_state(batch), {}, rollout, steps.KEY)
    value = state.params["value"]["head"]
    return {"metrics": metrics, "value": value, "rewards": rewards}


def distilled(batch: Batch) -> dict:
    """An update of the critic and one of the policy."""
    samples = samples_of(batch)
    *_, learn_critic, learn_policy = halves(batch.model)
    rewards = reward_of(batch, samples)
    rollout = distillation.Rollout(batch.documents, samples.tokens, samples.lengths, rewards)
    first = new_state(CriticHead(batch.model, max_length=T).init(batch.params), RATE)
    state, critic = learn_critic(first, {}, rollout, steps.KEY)
    frozen = {"reference": batch.params, "critic": state.params}
    _, policy = learn_policy(new_state(batch.params, RATE), frozen, rollout, steps.KEY)
    return {"critic": critic, "policy": policy, "head": state.params["head"]["c"]}


@functools.cache
def expected_of(train):
    return train(plain())


@pytest.mark.parametrize(
    "variant",
    [
        "an id within",
        pytest.param("id 0 is a token", marks=pytest.mark.evidence),
        pytest.param("another id", marks=pytest.mark.evidence),
    ],
)
@pytest.mark.parametrize("train", [sft, dpo, reward_model, ppo_updates, distilled])
def test_padding_is_told_by_lengths_alone(train, variant):
    expected, found = expected_of(train), train(VARIANTS[variant]())
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("padding", [9, prompts.FIRST])
def test_rollouts_of_ppo_are_the_same_whatever_pads_the_prompts(padding):
    batch = with_padding(padding)
    found = written(batch, ppo_state(batch))
    jax.tree.map(np.testing.assert_array_equal, found, rollout())


@pytest.mark.slow
def test_lengths_are_read():
    """Else the tests above would not fail either."""
    batch = plain()
    longer = batch.chosen.replace(lengths=np.full(B, T, np.int32))
    shorter = batch.documents.replace(lengths=np.full(B, 2, np.int32))
    for change in ({"chosen": longer}, {"documents": shorter}):
        other = dataclasses.replace(batch, **change)
        assert np.abs(sft(other)["tokens"] - expected_of(sft)["tokens"]).max() > 1e-3
        assert np.abs(dpo(other)["margins"] - expected_of(dpo)["margins"]).max() > 1e-3
