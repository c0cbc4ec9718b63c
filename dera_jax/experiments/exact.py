"""Measures the error of DeRa's approximation exactly, on models small enough to enumerate.

DeRa mixes the models token by token. It approximates the mixture over whole sequences, which for
an optimal aligned policy at β is the optimal policy at β/λ (Liu et al. 2024, arXiv 2402.02992).
Here the references are random tabular models, the reward is the length reward, and three policies
are compared at every λ and horizon:

    token      softmax(λ·h_aligned + (1 − λ)·h_ref), which DeRa samples from
    sequence   ∝ π_ref^(1−λ)·π_aligned^λ, normalised over whole sequences
    retrained  π*(β/λ), the KL-regularized optimal policy that retraining aims at

If the aligned policy is optimal, sequence and retrained are equal. If it comes from PPO, all three
differ, and the error of PPO is separated from that of DeRa.

Axes: P prefixes, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import checks
from dera_jax.evaluation.report_content import ReportContent, ReportTable, conclude
from dera_jax.evaluation.tables import write_csv
from dera_jax.experiments import plots, trees
from dera_jax.models.heads import TabularValue
from dera_jax.models.language_model import THREEFRY, Prompts
from dera_jax.models.tabular import TabularLM
from dera_jax.partitioning import mesh_in_use, partition
from dera_jax.progress_bar import ProgressBar
from dera_jax.rewards.length import LengthInRange
from dera_jax.training import ppo

TABLE = "exact.csv"
_TOLERANCE = 1e-9  # nats, for policies that must be equal


@dataclasses.dataclass(frozen=True)
class TabularAlignment:
    """Configures PPO on a tabular model.

    Attributes:
        updates: the settings of PPO's updates.
        optimizers: the optimizers of the policy's and the value function's tables.
        inputs: the batch size; all prompts of the batch are the same.
        steps: the number of PPO steps, with one batch of rollouts each.

    Raises:
        ValueError: a field is out of its range, or the batch cannot be split into the minibatches.
    """

    updates: ppo.Updates
    optimizers: ppo.Optimizers
    inputs: int
    steps: int

    def __post_init__(self):
        checks.check_fields(
            self,
            updates=checks.instance(ppo.Updates),
            optimizers=checks.instance(ppo.Optimizers),
            inputs=checks.integer(1),
            steps=checks.integer(1),
        )
        self.updates.check_batch(self.inputs)
        updates = self.steps * self.updates.epochs * self.updates.minibatches
        self.optimizers.check_warmup("TabularAlignment.steps × epochs × minibatches", updates)


@dataclasses.dataclass(frozen=True)
class ExactWorlds:
    """Compares the three policies on random references (worlds) at several horizons.

    The reward is 0 for outputs that end after `horizon` − 3 or `horizon` − 2 tokens (end token
    excluded), else −1, so that at every horizon all but the last decisions matter.

    Attributes:
        vocab_size: V, the end token included.
        horizons: the values of T, the maximum output length in tokens.
        lams: the values of λ.
        beta: the KL coefficient β of the aligned policy.
        scale: the standard deviation of the references' logits.
        worlds: the number of random references at each horizon; their seeds are 0, 1, ...
        alignment: the PPO run for the first `aligned_worlds` references of each horizon.
        aligned_worlds: the number of references per horizon that PPO is run on.

    Raises:
        ValueError: a field is out of its range.
    """

    vocab_size: int
    horizons: tuple[int, ...]
    lams: tuple[float, ...]
    beta: float
    scale: float
    worlds: int
    alignment: TabularAlignment
    aligned_worlds: int

    def __post_init__(self):
        positive = checks.number(above=0)
        checks.check_fields(
            self,
            vocab_size=checks.integer(2),
            horizons=checks.sequence(checks.integer(3), "(4, 6)"),
            lams=checks.sequence(positive, "(0.5, 2.0)"),
            beta=positive,
            scale=checks.number(least=0),
            worlds=checks.integer(1),
            alignment=checks.instance(TabularAlignment),
            aligned_worlds=checks.integer(0),
        )
        checks.check_distinct("ExactWorlds.horizons", self.horizons)
        checks.check_distinct("ExactWorlds.lams", self.lams)

    def run(self, folder: Path) -> dict[str, object]:
        """Writes exact.csv (a row per reference, horizon, aligned policy and λ), exact.png, report.json.

        Returns:
            The row of means over references with the largest KL(token ‖ sequence mixture).

        Raises:
            ArithmeticError: with the optimal policy as aligned policy, the sequence mixture differs
                from the optimal policy at β/λ.
        """
        worlds = [(horizon, seed) for horizon in self.horizons for seed in range(self.worlds)]
        rows = [row for world in ProgressBar(worlds, unit="world") for row in self.compare(*world)]
        write_csv(folder / TABLE, rows)
        means = mean_rows(rows)
        plots.plot_exact(means, folder / "exact.png")
        farthest = max(means, key=lambda row: row["kl_token_sequence"])
        table = ReportTable("Means over references", cells(means))
        title = "Token mixture, sequence mixture and retrained policy"
        conclude(ReportContent(title, [table], [_in_words(farthest)], []), folder)
        return {"farthest": farthest}

    def compare(self, horizon: int, seed: int) -> list[dict]:
        """Returns the rows of the random reference with this horizon and seed."""
        model = TabularLM(self.vocab_size, horizon)
        table = self.scale * model.init(jax.random.key(seed))
        reference = trees.policy_of(np.asarray(table)[0], horizon)
        low, high = horizon - 3, horizon - 2
        rewards = trees.length_rewards(low, high, self.vocab_size, horizon)
        aligned = {"optimum": trees.optimal_policy(reference, rewards, self.beta)}
        if seed < self.aligned_worlds:
            table_ppo = align(
                model, table, LengthInRange(low, high), self.beta, self.alignment, seed
            )
            aligned["PPO"] = trees.policy_of(table_ppo[0], horizon)
        return [
            {"horizon": horizon, "world": seed, "aligned": name, "lam": lam}
            | compare_policies(reference, policy, rewards, self.beta, lam, name == "optimum")
            for name, policy in aligned.items()
            for lam in self.lams
        ]


def align(
    model: TabularLM, table, reward: LengthInRange, beta: float, how: TabularAlignment, seed: int
) -> np.ndarray:
    """Runs PPO from the reference `table` [1, P, V] and returns the aligned table [1, P, V]."""
    actors = ppo.Actors(model, TabularValue(model))
    objective = ppo.AlignmentObjective(reward, model.horizon, beta)
    state = ppo.initial_state(how.optimizers, table, actors.value.init())
    setup = ppo.PPOSetup(actors, objective, how.updates, how.optimizers)
    step, key = (
        partition(ppo.make_step(setup), state, mesh_in_use()),
        jax.random.key(seed, impl=THREEFRY),
    )
    prompts = Prompts(jnp.zeros((how.inputs, 1), int), jnp.ones(how.inputs, int))
    batch = {"inputs": prompts, "example_id": jnp.arange(how.inputs)}
    for _ in range(how.steps):
        state, _ = step(state, {"reference": table, "reward": None}, batch, key)
    return np.asarray(state.params["policy"])


def compare_policies(
    reference: trees.Policy,
    aligned: trees.Policy,
    rewards: trees.Rewards,
    beta: float,
    lam: float,
    is_optimum: bool,
) -> dict[str, float]:
    """Computes the mean rewards of the three policies at λ and the KL between them in nats.

    Raises:
        ArithmeticError: `is_optimum`, and the sequence mixture differs from the policy π*(β/λ).
    """
    token = trees.token_mixture(reference, aligned, lam)
    sequence = trees.sequence_mixture(reference, aligned, lam)
    retrained = trees.optimal_policy(reference, rewards, beta / lam)
    row = {
        "reward_token": trees.mean_reward(token, rewards),
        "reward_sequence": trees.mean_reward(sequence, rewards),
        "reward_retrained": trees.mean_reward(retrained, rewards),
        "kl_token_sequence": trees.kl(token, sequence),
        "kl_sequence_retrained": trees.kl(sequence, retrained),
        "kl_token_retrained": trees.kl(token, retrained),
        "kl_retrained_reference": trees.kl(retrained, reference),
    }
    if is_optimum and row["kl_sequence_retrained"] > _TOLERANCE:
        raise ArithmeticError(
            f"at λ = {lam} the KL divergence of the sequence-level mixture from π*(β/λ) is "
            f"{row['kl_sequence_retrained']} nats, but the two policies must equal each other "
            f"(at most {_TOLERANCE} nats); beta or the aligned policy is wrong"
        )
    return row


def mean_rows(rows: Sequence[dict]) -> list[dict]:
    """Averages over references: returns one row per horizon, aligned policy and λ."""
    keys = ("horizon", "aligned", "lam")
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    values = [name for name in rows[0] if name not in (*keys, "world")]
    return [
        dict(zip(keys, key, strict=True))
        | {"worlds": len(group)}
        | {name: float(np.mean([row[name] for row in group])) for name in values}
        for key, group in groups.items()
    ]


def _in_words(row: Mapping) -> str:
    return (
        f"The largest mean KL of the token mixture to the sequence mixture is {row['kl_token_sequence']:.3g} "
        f"nats, at horizon {row['horizon']} and λ = {row['lam']:g} (aligned policy: {row['aligned']})."
    )


def cells(means: Sequence[dict]) -> list[list[str]]:
    """Returns the head and the lines of a table of the rows of `mean_rows`, as texts."""
    text = lambda x: f"{x:.5g}" if isinstance(x, float) else str(x)
    return [list(means[0]), *([text(x) for x in row.values()] for row in means)]
