"""PPO reaches the optimum of E[r] − β·KL(π ‖ π_ref), known in closed form for a table:
π*(β) ∝ π_ref·exp(r/β) over all texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.heads import TabularValue, ValueHead
from dera_jax.models.language_model import score, sequence_keys
from dera_jax.rewards.length import LengthInRange, optimal_in_range_rate
from dera_jax.rewards.protocol import Source
from dera_jax.training import optimizers, ppo
from tests import golden, prompts
from tests.decoding import worlds
from tests.training import steps

VOCAB = 3
TEXTS = worlds.texts(VOCAB)
DOCUMENTS = 16  # copies of the one input: rows of the batch
STEPS = 100


def exact(params) -> np.ndarray:
    """Probability of each text under a table of logits [1, P, V]."""
    table = np.asarray(params, np.float64)[0]
    return worlds.text_probabilities(
        lambda prefix: table[worlds.prefix_number(prefix, VOCAB)], TEXTS
    )


def optimum(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    weights = reference * np.exp(rewards / beta)
    return weights / weights.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * np.log(p / q)))


def constant_optimizers(policy_rate: float, value_rate: float) -> ppo.Optimizers:
    return ppo.Optimizers(
        optimizers.adamw(lambda step: policy_rate, clip_norm=1.0, weight_decay=0.0),
        optimizers.adamw(lambda step: value_rate, clip_norm=1.0, weight_decay=0.0),
    )


def tabular_ppo(reference, reward, reward_params, beta: float):
    """The policy's table after PPO, and the last step's metrics."""
    model, _ = worlds.tabular_tower(1, VOCAB)
    actors = ppo.Actors(model, TabularValue(model))
    updates = ppo.Updates(rollouts=64, epochs=2, minibatches=2)
    schedule = optimizers.cosine(0.05, warmup_steps=1, total_steps=STEPS * 4)
    policy = optimizers.adamw(schedule, clip_norm=1.0, weight_decay=0.0)
    optimizers_of = ppo.Optimizers(policy, constant_optimizers(0.0, 0.05).value)
    objective = ppo.AlignmentObjective(reward, worlds.HORIZON, beta)
    step = steps.ppo_step(ppo.PPOSetup(actors, objective, updates, optimizers_of))
    state = ppo.initial_state(optimizers_of, reference, actors.value.init())
    batch = asked(prompts.whole(np.zeros((DOCUMENTS, 1))), jnp.arange(DOCUMENTS))
    for _ in range(STEPS):
        state, metrics = step(state, reference, batch, reward_params)
    return state.params["policy"], metrics


def asked(documents, ids) -> dict:
    """A batch for PPO."""
    return {"inputs": documents, "example_id": ids}


@pytest.mark.slow
def test_ppo_finds_the_optimum():
    beta = 0.45
    _, (reference,) = worlds.tabular_tower(1, VOCAB)
    table = np.random.default_rng(0).normal(size=40).astype(np.float32)
    rewards = np.array([table[worlds.prefix_number(text, VOCAB)] for text in TEXTS])
    target = optimum(exact(reference), rewards, beta)
    assert kl(target, exact(reference)) >= 0.5

    policy, metrics = tabular_ppo(reference, worlds.TextReward(VOCAB), jnp.asarray(table), beta)
    distance = kl(exact(policy), target)
    print(f"KL(π ‖ π*) = {distance:.5f}, KL(π* ‖ π_ref) = {kl(target, exact(reference)):.3f}")
    assert distance <= 0.01
    for wrong in (0.5 * beta, 2 * beta):  # the bound would catch another β
        assert kl(exact(policy), optimum(exact(reference), rewards, wrong)) > 0.03
    found = exact(policy)
    assert float(metrics["reward"]) == pytest.approx(found @ rewards, abs=0.1)
    assert float(metrics["kl"]) == pytest.approx(kl(found, exact(reference)), abs=0.1)
    assert float(metrics["full_kl"]) == pytest.approx(kl(found, exact(reference)), abs=0.05)
    assert float(metrics["value_loss"]) < 0.01


@pytest.mark.slow
def test_ppo_on_the_length_reward_gives_the_share_in_closed_form():
    beta = 0.3
    _, (reference,) = worlds.tabular_tower(1, VOCAB)
    good = np.array([text[-1] == worlds.EOS and len(text) == 2 for text in TEXTS])
    # min_limit is high + 2 = 3, the horizon.
    policy, metrics = tabular_ppo(reference, LengthInRange(1, 1), None, beta)
    p, share = exact(reference)[good].sum(), exact(policy)[good].sum()
    target = optimum(exact(reference), np.where(good, 0.0, -1.0), beta)
    assert kl(target, exact(reference)) >= 0.5
    assert kl(exact(policy), target) <= 0.01
    assert share == pytest.approx(optimal_in_range_rate(p, beta), abs=0.03)
    assert abs(optimal_in_range_rate(p, beta) - optimal_in_range_rate(p, 2 * beta)) > 0.1
    assert float(metrics["in_range_rate"]) == pytest.approx(share, abs=0.05)


@pytest.fixture(scope="module")
def t5():
    """A small T5 world: actors, objective, updates, params, prompts [4, S], ids [4]."""
    model, params, g = golden.load("v1_1")
    model, params = worlds.one_layer(model, params)
    actors = ppo.Actors(model, ValueHead(model))
    objective = ppo.AlignmentObjective(LengthInRange(2, 4), max_length=6, beta=0.1)
    updates = ppo.Updates(rollouts=3, epochs=2, minibatches=2)
    documents = prompts.zero_padded(g["encoder_input_tokens"][:4, :20])
    return actors, objective, updates, params, documents, np.arange(4)


def first_rollout(t5, policy):
    actors, objective, updates, params, documents, ids = t5
    rates = constant_optimizers(1e-3, 1e-3)
    setup = ppo.PPOSetup(actors, objective, updates, rates)
    state = ppo.initial_state(rates, policy, actors.value.init(params))
    frozen = {"reference": params}
    samples = ppo.roll_out(setup, state, frozen, asked(documents, ids), steps.KEY)
    texts = samples.tokens, samples.lengths, samples.finished
    reward = objective.reward(None, Source(documents), *texts)
    experience = ppo.experience_of(setup, state.params["value"], documents, samples, reward)
    return experience, ppo.rollout_metrics(objective.reward, samples, reward, {})


def test_a_rollout_is_what_the_policy_alone_samples_and_scores(t5):
    actors, objective, updates, params, documents, ids = t5
    policy = jax.tree.map(lambda x: 1.05 * x, params)
    experience, metrics = first_rollout(t5, policy)
    keys = sequence_keys(0, ids, np.arange(updates.rollouts))
    alone = sample(actors.model, policy, documents, keys, Sampling(objective.max_length))
    np.testing.assert_array_equal(experience.tokens, alone.tokens)

    model = actors.model
    state = model.start(policy, documents, updates.rollouts, 1)
    log_prob = score(model, policy, state, alone.tokens, alone.lengths)
    np.testing.assert_allclose(experience.old_log_prob, log_prob, atol=1e-4)
    state = model.start(params, documents, updates.rollouts, 1)
    reference = score(model, params, state, alone.tokens, alone.lengths)
    log_ratio = np.asarray(log_prob - reference, np.float64)
    assert float(metrics["kl"]) == pytest.approx(log_ratio.sum(-1).mean(), abs=1e-3)
    # The value network starts at 0, so the targets are the rewards still to come, decayed.
    returns = expected_targets(alone, log_ratio, objective, updates.decay)
    np.testing.assert_allclose(experience.targets, returns, atol=1e-3)


def expected_targets(samples, log_ratio, objective, decay) -> np.ndarray:
    lengths, finished = np.asarray(samples.lengths), np.asarray(samples.finished)
    targets = np.zeros(log_ratio.shape)
    for b, k in np.ndindex(lengths.shape):
        text = lengths[b, k] - finished[b, k]
        good = finished[b, k] and 2 <= text <= 4
        carried = 0.0
        for t in reversed(range(lengths[b, k])):
            reward = 0.0 if good or t < lengths[b, k] - 1 else -1.0
            carried = reward - objective.beta * log_ratio[b, k, t] + decay * carried
            targets[b, k, t] = carried
    return targets


def losses(t5, policy, experience) -> dict:
    """Means over a minibatch."""
    actors, _, updates, params, *_ = t5
    loss = ppo.PPOLoss(actors, updates.clip)
    both = {"policy": policy, "value": actors.value.init(params)}
    _, sums = jax.jit(loss)(both, None, experience, steps.KEY)
    return {name: x / loss.weight(experience) for name, x in sums.items()}


def test_the_first_update_starts_at_ratio_one(t5):
    actors, params = t5[0], t5[3]
    experience, _ = first_rollout(t5, params)
    metrics = losses(t5, params, experience)
    loss = metrics["policy_loss"]
    assert float(metrics["clip_fraction"]) == 0
    # At ratio 1 the loss is minus the mean advantage, which whitening makes 0.
    assert float(loss) == pytest.approx(0, abs=1e-4)
    assert 0 < float(metrics["entropy"]) < np.log(actors.model.vocab_size)


@pytest.mark.slow
def test_minibatches_add_up_to_the_batch(t5):
    params = t5[3]
    experience, _ = first_rollout(t5, params)
    policy = jax.tree.map(lambda x: 1.01 * x, params)
    halves = [jax.tree.map(lambda x, at=at: x[at : at + 2], experience) for at in (0, 2)]
    whole = losses(t5, policy, experience)
    for name, expected in whole.items():
        parts = [float(losses(t5, policy, half)[name]) for half in halves]
        assert np.mean(parts) == pytest.approx(float(expected), abs=1e-5)
    assert float(whole["value_loss"]) > 0


def test_every_epoch_sees_every_document_once():
    updates = ppo.Updates(rollouts=4, epochs=3, minibatches=2)
    order = np.asarray(ppo.minibatch_order(jax.random.key(0), 6, updates))
    assert order.shape == (6, 3)
    epochs = order.reshape(3, 6)
    np.testing.assert_array_equal(np.sort(epochs, axis=-1), np.tile(np.arange(6), (3, 1)))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.slow
def test_a_step_repeats_itself_and_moves_on(t5):
    """The first two steps change nothing, and draw anew; the third leaves the reference."""
    actors, objective, updates, params, documents, ids = t5
    late = optimizers.adamw(
        lambda step: jnp.where(step < 2 * updates.epochs * updates.minibatches, 0.0, 1e-3),
        clip_norm=1.0,
        weight_decay=0.0,
    )
    setup = ppo.PPOSetup(actors, objective, updates, ppo.Optimizers(late, late))
    step = steps.ppo_step(setup, seed=3)

    def run() -> list[dict]:
        state = ppo.initial_state(setup.optimizers, params, actors.value.init(params))
        seen = []
        for _ in range(4):
            state, metrics = step(state, params, asked(documents, ids))
            seen.append({name: float(x) for name, x in metrics.items()} | {"step": int(state.step)})
        return seen

    first = run()
    assert first == run()
    assert [row["step"] for row in first] == [1, 2, 3, 4]
    assert first[0]["entropy"] != first[1]["entropy"]
    for row in first[:3]:
        assert row["kl"] == pytest.approx(0, abs=1e-4)
    assert first[3]["full_kl"] > 1e-4


def test_a_batch_that_minibatches_do_not_divide_is_refused(t5):
    actors, objective, _, params, documents, ids = t5
    rates = constant_optimizers(1e-3, 1e-3)
    setup = ppo.PPOSetup(actors, objective, ppo.Updates(rollouts=4, epochs=4, minibatches=3), rates)
    step = steps.ppo_step(setup)
    state = ppo.initial_state(rates, params, actors.value.init(params))
    with pytest.raises(ValueError, match=r"4 documents .* Updates.minibatches \(3\)"):
        step(state, params, asked(documents, ids))


def test_bad_objectives_are_refused():
    with pytest.raises(ValueError, match="beta must be a finite number above 0; found 0"):
        ppo.AlignmentObjective(LengthInRange(2, 4), max_length=6, beta=0)
    with pytest.raises(ValueError, match="max_length must be at least 6"):
        ppo.AlignmentObjective(LengthInRange(2, 4), max_length=5, beta=0.1)
