"""Distillation reaches the optimum of E[r] − β·KL(π ‖ π_ref), known in closed form for a table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.models.heads import TabularCritic
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.training import distillation, optimizers, ppo
from tests import prompts
from tests.decoding import worlds
from tests.training.test_ppo import exact, kl, optimum

VOCAB, BETA = 3, 0.3
TEXTS = worlds.texts(VOCAB)
REWARD = LengthInRange(1, 1)
GOOD = np.array([text[-1] == worlds.EOS and len(text) == 2 for text in TEXTS])
OBJECTIVE = ppo.Objective(REWARD, worlds.HORIZON, BETA)


def to_text(ids):
    return str(ids)


def rate(peak: float, steps: int) -> optimizers.Optimizer:
    schedule = optimizers.cosine(peak, warmup_steps=1, total_steps=steps)
    return optimizers.adamw(schedule, clip_norm=1.0, weight_decay=0.0)


def setup_of(model, critic, objective=OBJECTIVE, critic_steps=200, policy_steps=100):
    rates = ppo.Optimizers(policy=rate(0.1, policy_steps), value=rate(0.1, critic_steps))
    return distillation.Setup(model, critic, objective, 4, critic_steps, rates, seed=0)


def exact_log_odds(reference: np.ndarray) -> np.ndarray:
    """q of every prefix and token, from all texts: σ(q) = E[exp(r/β) | prefix, token]."""
    probability, weight = exact(reference), np.where(GOOD, 1.0, np.exp(-1 / BETA))
    odds = np.zeros(np.shape(reference))
    for prefix in {text[:t] for text in TEXTS for t in range(worlds.HORIZON)}:
        for v in range(VOCAB):
            child = (*prefix, v)
            below = np.array([text[: len(child)] == child for text in TEXTS])
            if below.any():
                mean = probability[below] @ weight[below] / probability[below].sum()
                odds[0, worlds.prefix_number(prefix, VOCAB), v] = np.log(mean / (1 - mean + 1e-12))
    return odds


def test_with_the_exact_critic_the_target_is_the_optimum():
    _, (reference,) = worlds.tabular_tower(1, VOCAB)
    found = exact(distillation.optimum_logits(reference, jnp.asarray(exact_log_odds(reference))))
    target = optimum(exact(reference), np.where(GOOD, 0.0, -1.0), BETA)
    assert kl(target, exact(reference)) > 0.5
    np.testing.assert_allclose(found, target, atol=1e-5)


@pytest.mark.slow
def test_the_policy_becomes_the_optimum():
    model, (reference,) = worlds.tabular_tower(1, VOCAB)
    setup = setup_of(model, TabularCritic(model))
    step = distillation.make_step(setup, Judge(REWARD, None, to_text))
    state = distillation.initial_state(setup.optimizers, reference, setup.critic.init())
    source, ids = Source(prompts.whole(np.zeros((64, 1)))), np.arange(64)
    for _ in range(300):
        state, metrics = step(state, reference, source, ids)
    target = optimum(exact(reference), np.where(GOOD, 0.0, -1.0), BETA)
    found = exact(state.policy.params)
    print(f"KL(π ‖ π*) = {kl(found, target):.5f}")
    assert kl(found, target) <= 0.01
    for wrong in (0.5 * BETA, 2 * BETA):  # the bound would catch another β
        assert kl(found, optimum(exact(reference), np.where(GOOD, 0.0, -1.0), wrong)) > 0.03
    assert float(metrics["reward"]) == pytest.approx(found[GOOD].sum() - 1, abs=0.15)


def test_the_critic_learns_first_and_then_the_policy_alone():
    model, (reference,) = worlds.tabular_tower(1, VOCAB)
    setup = setup_of(model, TabularCritic(model), critic_steps=2)
    at_once = optimizers.adamw(optimizers.constant(0.1, 0), clip_norm=1.0, weight_decay=0.0)
    setup = dataclasses.replace(setup, optimizers=ppo.Optimizers(at_once, at_once))
    step = distillation.make_step(setup, Judge(REWARD, None, to_text))
    state = distillation.initial_state(setup.optimizers, reference, setup.critic.init())
    source, changed = Source(prompts.whole(np.zeros((64, 1)))), []
    for _ in range(4):
        before = [np.array(x.params) for x in (state.critic, state.policy)]
        state, metrics = step(state, reference, source, np.arange(64))
        after = [np.array(x.params) for x in (state.critic, state.policy)]
        changed.append([np.any(x != y) for x, y in zip(before, after, strict=True)])
        if int(state.step) <= 3:  # these texts are the reference's own
            assert float(metrics["kl"]) == pytest.approx(0, abs=1e-6)
    assert changed == [[True, False], [True, False], [False, True], [False, True]]
    assert float(metrics["kl"]) > 0


def test_the_critic_learns_from_written_tokens_alone():
    """What stands after the end of a text has no worth."""
    model, (reference,) = worlds.tabular_tower(1, VOCAB)
    setup = setup_of(model, TabularCritic(model))
    at_once = optimizers.adamw(optimizers.constant(0.1, 0), clip_norm=1.0, weight_decay=0.0)
    setup = dataclasses.replace(setup, optimizers=ppo.Optimizers(at_once, at_once))
    state = distillation.initial_state(setup.optimizers, reference, setup.critic.init())
    prompt = prompts.whole([[0]])
    samples = distillation.roll_out(setup, state, reference, prompt, jnp.arange(1))
    short = samples.replace(
        tokens=jnp.full((1, 4, worlds.HORIZON), worlds.EOS), lengths=jnp.ones((1, 4), int)
    )
    learnt, _ = distillation.learn_critic(setup, state, prompt, short, jnp.zeros((1, 4)))
    changed = np.argwhere(np.asarray(learnt.critic.params) != 0)
    np.testing.assert_array_equal(changed, [[0, 0, worlds.EOS]])


def test_the_critic_loss_is_least_at_the_mean():
    odds = jnp.linspace(-3, 3, 601)[:, None, None]
    goodness = jnp.array([0.9, 0.2])
    loss = jax.vmap(lambda q: distillation.critic_loss(
        jnp.broadcast_to(q, (1, 2, 1)), goodness[None], jnp.ones((1, 2, 1)))[0])(odds[:, 0, 0])  # fmt: skip
    assert float(jax.nn.sigmoid(odds[jnp.argmin(loss), 0, 0])) == pytest.approx(0.55, abs=0.01)


def test_the_policy_loss_of_a_text_is_its_kl_from_the_optimum():
    """From all prefixes, each as often as the policy comes there."""
    _, (reference, policy) = worlds.tabular_tower(2, VOCAB)
    prefixes = [text[:t] for text in TEXTS for t in range(len(text))]
    visits = np.repeat(exact(policy), [len(text) for text in TEXTS])
    rows = np.array([worlds.prefix_number(prefix, VOCAB) for prefix in prefixes])
    loss, _ = distillation.policy_loss(policy[0, rows], reference[0, rows], jnp.asarray(visits))
    assert float(loss) * visits.sum() == pytest.approx(
        kl(exact(policy), exact(reference)), rel=1e-4
    )


def test_what_cannot_be_distilled_is_refused():
    model, _ = worlds.tabular_tower(1, VOCAB)
    boundless = ppo.Objective(Reward(), worlds.HORIZON, BETA)
    with pytest.raises(ValueError, match="a reward with a bound"):
        setup_of(model, TabularCritic(model), boundless)
