"""The log-variance loss is 0 at the optimum of E[r] − β·KL alone, which training from samples reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import Padded, pad_sequences
from dera_jax.training import distillation, optimizers
from dera_jax.training.offline import LogVariance
from dera_jax.training.train_state import make_step, new_state
from tests import prompts
from tests.decoding import worlds
from tests.training import steps
from tests.training.test_distillation import BETA, GOOD, TEXTS, VOCAB, exact_log_odds
from tests.training.test_ppo import exact, kl, optimum

MODEL, (REFERENCE,) = worlds.tabular_tower(1, VOCAB)


def of_texts(texts, reward) -> dict:
    """One prompt with these texts as its samples."""
    tokens, lengths = pad_sequences([list(x) for x in texts], worlds.HORIZON)
    known = dict(zip(TEXTS, exact(REFERENCE), strict=True))
    log_prob = np.log([known[tuple(x)] for x in texts])
    return {
        "inputs": prompts.whole([[0]]),
        "samples": Padded(tokens[None], lengths[None]),
        "reference_log_prob": log_prob.astype(np.float32)[None],
        "reward": np.asarray(reward, np.float32)[None],
    }


def value(params, batch: dict, beta: float = BETA) -> tuple[float, dict]:
    loss = LogVariance(MODEL, beta)
    total, metrics = loss(params, {}, batch, None)
    size = float(loss.weight(batch))
    return float(total) / size, {name: float(x) / size for name, x in metrics.items()}


def test_the_loss_is_zero_at_the_optimum_alone():
    """Over all texts of a table, whose optimum is known in closed form."""
    optimal = distillation.optimal_policy_logits(
        REFERENCE, jnp.asarray(exact_log_odds(REFERENCE), jnp.float32)
    )
    batch = of_texts(TEXTS, np.where(GOOD, 0.0, -1.0))
    at_optimum, metrics = value(optimal, batch)
    assert at_optimum < 1e-6 and metrics["explained"] == pytest.approx(1, abs=1e-4)
    at_reference, metrics = value(REFERENCE, batch)
    assert at_reference == pytest.approx(np.var(np.where(GOOD, 0.0, -1.0)), rel=1e-4)
    assert metrics["explained"] == pytest.approx(0, abs=1e-4)
    assert metrics["log_ratio"] == pytest.approx(0, abs=1e-4)
    for wrong in (0.8 * BETA, 1.2 * BETA):  # the optimum of another β
        assert value(optimal, batch, wrong)[0] > 1e-3


def test_what_is_behind_a_text_does_not_count():
    batch = of_texts(TEXTS, np.where(GOOD, 0.0, -1.0))
    samples = batch["samples"]
    other = batch | {"samples": samples.replace(tokens=np.where(samples.mask, samples.tokens, 2))}
    assert value(REFERENCE, other)[0] == value(REFERENCE, batch)[0]


def test_a_policy_becomes_the_optimum_by_samples_of_the_reference():
    """KL(π ‖ π*) ≤ 0.01 nats where KL(π* ‖ π_ref) > 0.5, and the optimum of another β is far."""
    rows, keys = worlds.rows(512)
    drawn = sample(MODEL, REFERENCE, rows, keys, Sampling(worlds.HORIZON))
    texts = [
        tuple(x[:n]) for x, n in zip(np.asarray(drawn.tokens[0]).tolist(), drawn.lengths[0], strict=True)
    ]  # fmt: skip
    good = dict(zip(TEXTS, GOOD, strict=True))
    batch = of_texts(texts, [0.0 if good[x] else -1.0 for x in texts])
    schedule = optimizers.cosine(0.1, warmup_steps=1, total_steps=150)
    optimizer = optimizers.adamw(schedule, clip_norm=1.0, weight_decay=0.0)
    step = jax.jit(make_step(LogVariance(MODEL, BETA), optimizer))
    state = new_state(REFERENCE, optimizer)
    for _ in range(150):
        state, metrics = step(state, {}, batch, steps.KEY)
    found, reward = exact(state.params), np.where(GOOD, 0.0, -1.0)
    assert kl(optimum(exact(REFERENCE), reward, BETA), exact(REFERENCE)) > 0.5
    assert kl(found, optimum(exact(REFERENCE), reward, BETA)) <= 0.01
    for wrong in (0.5 * BETA, 2 * BETA):
        assert kl(found, optimum(exact(REFERENCE), reward, wrong)) > 0.03
    assert float(metrics["explained"]) > 0.99
