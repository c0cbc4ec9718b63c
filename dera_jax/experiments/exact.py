"""How good DeRa's approximation is, without sampling noise: a world where every sum is carried out.

DeRa mixes the models token by token. What it stands for is the mixture of whole texts, which for a
model aligned perfectly at β is the optimum at β/λ. Here references are random tables, the reward is
that of the length, and three policies are compared at every λ and horizon:

    token      softmax(λ·h_aligned + (1 − λ)·h_ref), what DeRa samples
    sequence   ∝ π_ref^(1−λ)·π_aligned^λ, normalised over whole texts
    retrained  π*(β/λ), the optimum that training again would aim at

With the optimum as aligned model, sequence and retrained are the same; with a policy found by PPO,
the three differ, and PPO's own error is told apart from DeRa's.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dera_jax import checks
from dera_jax.evaluation import plots, trees
from dera_jax.evaluation.tables import in_columns, write_csv
from dera_jax.models.heads import TabularValue
from dera_jax.models.language_model import THREEFRY, Prompts
from dera_jax.models.tabular import TabularLM
from dera_jax.partitioning import mesh_in_use, partition
from dera_jax.rewards.length import LengthInRange
from dera_jax.training import ppo

TABLE = "exact.csv"
_SAME = 1e-9  # nats


@dataclasses.dataclass(frozen=True)
class Alignment:
    """PPO on a table.

    Attributes:
        updates: how a rollout is used.
        optimizers: of policy and value table.
        inputs: rows of the batch, all the same input.
        steps: rollouts.
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
            inputs=checks.whole(1),
            steps=checks.whole(1),
        )
        self.updates.check_batch(self.inputs)
        updates = self.steps * self.updates.epochs * self.updates.minibatches
        self.optimizers.check_warmup("Alignment.steps × epochs × minibatches", updates)


@dataclasses.dataclass(frozen=True)
class ExactWorlds:
    """Random references at several horizons.

    The reward is 0 for texts that end after `horizon` − 3 or `horizon` − 2 tokens, else −1, so that
    at every horizon all but the last decisions matter.

    Attributes:
        vocab_size: V, the end token included.
        horizons: T, tokens at most.
        lams: λ.
        beta: β of the aligned model.
        scale: standard deviation of the references' logits.
        worlds: random references at each horizon, with seeds 0, 1, ...
        alignment: how PPO aligns; done in the first `aligned_worlds` worlds of each horizon.
        aligned_worlds: how many.

    Raises:
        ValueError: a setting out of its range.
    """

    vocab_size: int
    horizons: tuple[int, ...]
    lams: tuple[float, ...]
    beta: float
    scale: float
    worlds: int
    alignment: Alignment
    aligned_worlds: int

    def __post_init__(self):
        positive = checks.number(above=0)
        checks.check_fields(
            self,
            vocab_size=checks.whole(2),
            horizons=checks.several(checks.whole(3), "(4, 6)"),
            lams=checks.several(positive, "(0.5, 2.0)"),
            beta=positive,
            scale=checks.number(least=0),
            worlds=checks.whole(1),
            alignment=checks.instance(Alignment),
            aligned_worlds=checks.whole(0),
        )
        checks.check_distinct("ExactWorlds.horizons", self.horizons)
        checks.check_distinct("ExactWorlds.lams", self.lams)

    def run(self, folder: Path) -> dict[str, object]:
        """Writes exact.csv (a row per world, horizon, aligned model and λ) and exact.png.

        Returns:
            The row, of the means over worlds, where DeRa is farthest from the sequence mixture.

        Raises:
            ArithmeticError: the sequence mixture of the optimum was not the optimum at β/λ.
        """
        worlds = [(horizon, seed) for horizon in self.horizons for seed in range(self.worlds)]
        rows = [row for world in tqdm(worlds, unit="world") for row in self.compare(*world)]
        write_csv(folder / TABLE, rows)
        means = mean_rows(rows)
        plots.plot_exact(means, folder / "exact.png")
        print(format_rows(means))
        return {"farthest": max(means, key=lambda row: row["kl_token_sequence"])}

    def compare(self, horizon: int, seed: int) -> list[dict]:
        """The rows of one world."""
        model = TabularLM(self.vocab_size, horizon)
        table = self.scale * model.init(jax.random.key(seed))
        reference = trees.policy_of(np.asarray(table)[0], horizon)
        low, high = horizon - 3, horizon - 2
        rewards = trees.length_rewards(low, high, self.vocab_size, horizon)
        aligned = {"optimum": trees.optimum(reference, rewards, self.beta)}
        if seed < self.aligned_worlds:
            found = align(model, table, LengthInRange(low, high), self.beta, self.alignment, seed)
            aligned["PPO"] = trees.policy_of(found[0], horizon)
        return [
            {"horizon": horizon, "world": seed, "aligned": name, "lam": lam}
            | compare_policies(reference, policy, rewards, self.beta, lam, name == "optimum")
            for name, policy in aligned.items()
            for lam in self.lams
        ]


def align(
    model: TabularLM, table, reward: LengthInRange, beta: float, how: Alignment, seed: int
) -> np.ndarray:
    """The table after PPO from `table`[1, P, V]."""
    actors = ppo.Actors(model, TabularValue(model))
    objective = ppo.Objective(reward, model.horizon, beta)
    state = ppo.initial_state(how.optimizers, table, actors.value.init())
    setup = ppo.Setup(actors, objective, how.updates, how.optimizers)
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
    """Rewards of the three policies at λ, and the KL divergences between them in nats."""
    token = trees.token_mixture(reference, aligned, lam)
    sequence = trees.sequence_mixture(reference, aligned, lam)
    retrained = trees.optimum(reference, rewards, beta / lam)
    row = {
        "reward_token": trees.mean_reward(token, rewards),
        "reward_sequence": trees.mean_reward(sequence, rewards),
        "reward_retrained": trees.mean_reward(retrained, rewards),
        "kl_token_sequence": trees.kl(token, sequence),
        "kl_sequence_retrained": trees.kl(sequence, retrained),
        "kl_token_retrained": trees.kl(token, retrained),
        "kl_retrained_reference": trees.kl(retrained, reference),
    }
    if is_optimum and row["kl_sequence_retrained"] > _SAME:
        raise ArithmeticError(
            f"at λ = {lam} the sequence-level mixture is {row['kl_sequence_retrained']} nats from "
            "π*(β/λ), which it must equal"
        )
    return row


def mean_rows(rows: Sequence[dict]) -> list[dict]:
    """Means over worlds, a row per horizon, aligned model and λ."""
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


def format_rows(means: Sequence[dict]) -> str:
    """The means as a table for a terminal."""
    lines = [list(means[0])]
    lines += [[f"{x:.5g}" if isinstance(x, float) else str(x) for x in m.values()] for m in means]
    return in_columns(lines)
