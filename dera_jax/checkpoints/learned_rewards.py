"""Builds learned rewards from model folders, for gin files."""

from dera_jax.checkpoints.loading import read_config, read_value_head
from dera_jax.models.registry import model_of
from dera_jax.rewards.learned import Entailment, RewardModel


def reward_model(folder: str) -> RewardModel:
    """Returns the reward of a model of `training.preferences`; raises as `loading.read_value_head`."""
    return RewardModel(read_value_head(folder), folder)


def entailment(folder: str, max_length: int, label: str = "entailment") -> Entailment:
    """Returns the reward of a text-to-text entailment model; see `rewards.learned.Entailment`.

    Args:
        folder: model folder.
        max_length: as in `Entailment`.
        label: the output that means entailment.

    Raises:
        FileNotFoundError, ValueError: as in `loading.read_config`.
    """
    return Entailment(model_of(read_config(folder)), folder, max_length, label=label)
