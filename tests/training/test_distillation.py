"""Distillation reaches the optimum of E[r] − β·KL(π ‖ π_ref), known in closed form for a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.models.heads import TabularCritic
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward, Source
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.training import distillation, optimizers, ppo
from dera_jax.training.train_state import new_state
from tests import prompts
from tests.decoding import worlds
from tests.training import steps
from tests.training.test_ppo import exact, kl, optimum

VOCAB, BETA = 3, 0.3
TEXTS = worlds.texts(VOCAB)
REWARD = LengthInRange(1, 1)
GOOD = np.array([text[-1] == worlds.EOS and len(text) == 2 for text in TEXTS])
OBJECTIVE = ppo.AlignmentObjective(REWARD, worlds.HORIZON, BETA)


def rate(peak: float, steps: int) -> optimizers.Optimizer:
    schedule = optimizers.cosine(peak, warmup_steps=1, total_steps=steps)
    return optimizers.adamw(schedule, clip_norm=1.0, weight_decay=0.0)


def setup_of(model, objective=OBJECTIVE) -> distillation.DistillationSetup:
    return distillation.DistillationSetup(model, objective, rollouts=4)


def trained(loss, state, frozen, optimizer, num_steps, policy=None):
    """The state after some steps, and the metrics of the last; the policy writes unless another is given."""
    setup = setup_of(loss.model if policy is None else policy[0])
    step = jax.jit(distillation.make_step(loss, optimizer))
    batch = {"inputs": prompts.whole(np.zeros((64, 1))), "example_id": np.arange(64)}
    write = jax.jit(functools.partial(distillation.roll_out, setup))
    scorer = RewardScorer(REWARD, None, str)
    for _ in range(num_steps):
        writer = state.params if policy is None else policy[1]
        samples = write(writer, frozen, batch, state.step, steps.KEY)
        rewards, _ = scorer(
            Source(batch["inputs"]), None, samples.tokens, samples.lengths, samples.finished
        )
        rollout = distillation.Rollout(batch["inputs"], samples.tokens, samples.lengths, rewards)
        state, metrics = step(state, frozen, rollout, steps.KEY)
        metrics |= distillation.rollout_metrics(samples, rewards)
    return state, metrics


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
    found = exact(
        distillation.optimal_policy_logits(reference, jnp.asarray(exact_log_odds(reference)))
    )
    target = optimum(exact(reference), np.where(GOOD, 0.0, -1.0), BETA)
    assert kl(target, exact(reference)) > 0.5
    np.testing.assert_allclose(found, target, atol=1e-5)


@pytest.mark.slow
def test_the_policy_becomes_the_optimum():
    model, (reference,) = worlds.tabular_tower(1, VOCAB)
    critic = TabularCritic(model)
    frozen, optimizer = {"reference": reference}, rate(0.1, 200)
    state = new_state(critic.init(), optimizer)
    loss = distillation.CriticLoss(critic, OBJECTIVE)
    learned, metrics = trained(loss, state, frozen, optimizer, 200, policy=(model, reference))
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-6)  # texts of the reference

    frozen, optimizer = frozen | {"critic": learned.params}, rate(0.1, 100)
    state = new_state(reference, optimizer).replace(step=learned.step)
    state, metrics = trained(distillation.PolicyLoss(model, critic), state, frozen, optimizer, 100)
    target = optimum(exact(reference), np.where(GOOD, 0.0, -1.0), BETA)
    found = exact(state.params)
    print(f"KL(π ‖ π*) = {kl(found, target):.5f}")
    assert kl(found, target) <= 0.01
    for wrong in (0.5 * BETA, 2 * BETA):  # the bound would catch another β
        assert kl(found, optimum(exact(reference), np.where(GOOD, 0.0, -1.0), wrong)) > 0.03
    assert float(metrics["reward"]) == pytest.approx(found[GOOD].sum() - 1, abs=0.15)


def test_the_critic_learns_from_written_tokens_alone():
    """What stands after the end of a text has no worth."""
    model, _ = worlds.tabular_tower(1, VOCAB)
    critic = TabularCritic(model)
    at_once = optimizers.adamw(optimizers.constant(0.1, 0), clip_norm=1.0, weight_decay=0.0)
    tokens = jnp.full((1, 4, worlds.HORIZON), worlds.EOS)
    rollout = distillation.Rollout(
        prompts.whole([[0]]), tokens, jnp.ones((1, 4), int), jnp.zeros((1, 4))
    )
    step = distillation.make_step(distillation.CriticLoss(critic, OBJECTIVE), at_once)
    learnt, _ = step(new_state(critic.init(), at_once), {}, rollout, steps.KEY)
    changed = np.argwhere(np.asarray(learnt.params) != 0)
    np.testing.assert_array_equal(changed, [[0, 0, worlds.EOS]])


def test_the_critic_loss_is_least_at_the_mean():
    odds = jnp.linspace(-3, 3, 601)[:, None, None]
    targets = jnp.array([0.9, 0.2])
    each = lambda q: distillation.critic_loss(jnp.broadcast_to(q, (1, 2, 1)), targets[None])
    loss = jax.vmap(lambda q: jnp.mean(each(q)))(odds[:, 0, 0])
    assert float(jax.nn.sigmoid(odds[jnp.argmin(loss), 0, 0])) == pytest.approx(0.55, abs=0.01)


def test_the_policy_loss_of_a_text_is_its_kl_from_the_optimum():
    """From all prefixes, each as often as the policy comes there."""
    _, (reference, policy) = worlds.tabular_tower(2, VOCAB)
    prefixes = [text[:t] for text in TEXTS for t in range(len(text))]
    visits = np.repeat(exact(policy), [len(text) for text in TEXTS])
    rows = np.array([worlds.prefix_number(prefix, VOCAB) for prefix in prefixes])
    losses = np.asarray(distillation.policy_loss(policy[0, rows], reference[0, rows]))
    assert losses @ visits == pytest.approx(kl(exact(policy), exact(reference)), rel=1e-4)


def test_what_cannot_be_distilled_is_refused():
    model, _ = worlds.tabular_tower(1, VOCAB)
    boundless = ppo.AlignmentObjective(Reward(), worlds.HORIZON, BETA)
    with pytest.raises(ValueError, match="a reward with a known upper bound"):
        setup_of(model, boundless)
