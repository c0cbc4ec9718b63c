"""Learned rewards from the folders of their models, for gin files."""

from dera_jax.checkpoints.loading import read_config, read_value
from dera_jax.models.registry import model_of
from dera_jax.rewards.learned import Entailment, RewardModel


def reward_model(folder: str) -> RewardModel:
    """A model that `training.preferences` made. Raises as `loading.read_value` does."""
    return RewardModel(read_value(folder), folder)


def entailment(folder: str, max_length: int, label: str = "entailment") -> Entailment:
    """A text-to-text model that answers with `label`; see `rewards.learned.Entailment`.

    Raises as `loading.load` does.
    """
    return Entailment(model_of(read_config(folder)), folder, max_length, label=label)
