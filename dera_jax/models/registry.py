"""Registry of the model families that can be loaded, trained and decoded.

A new family needs a module with a configuration (a frozen dataclass of sizes) and a model that
implements `FamilyModel`, an entry in `FAMILIES`, and an importer for the files in which such models
are published, with an entry of its own in `checkpoints.importers`. docs/contributing.md lists every
file to touch.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

from dera_jax import checks
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.llama_config import LlamaConfig
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5


class FamilyModel(TrainableModel, Protocol):
    """Interface of a model that is read from checkpoints and written to them."""

    def param_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields name and shape of each parameter, with which the arrays of a file are compared."""

    def with_temperature(self, params: PyTree, temperature: float) -> PyTree:
        """Returns parameters of which all logits are divided by `temperature`."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family: models with the same architecture.

    Attributes:
        name: its name in the config.json of this package's model folders.
        config: the class of its configurations, with fields vocab_size, emb_dim, dtype and end_ids.
        model: the class of its models, called with a configuration, `num_ids` and `unused_ids`.
    """

    name: str
    config: type
    model: Callable[..., FamilyModel]


FAMILIES = (Family("t5", T5Config, T5), Family("llama", LlamaConfig, Llama))
CONFIG = checks.instance(*(family.config for family in FAMILIES))


def family_of(config: object) -> Family:
    """Returns the family of a configuration; raises ValueError for any other object."""
    for family in FAMILIES:
        if isinstance(config, family.config):
            return family
    raise ValueError(f"a model configuration must be {CONFIG.words}; found {config!r:.100}")


def family_named(name: object) -> Family:
    """Returns the family with this name; raises ValueError for an unknown name."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"unknown architecture {name!r}; it must be one of {known}")


def model_of(
    config: object, num_ids: int | None = None, unused_ids: tuple[int, ...] = ()
) -> FamilyModel:
    """Returns the model of a configuration that produces the first `num_ids` ids (None: all).

    It does not produce `unused_ids` among them.

    Raises:
        ValueError: `config` is not a configuration of a family.
    """
    return family_of(config).model(config, num_ids=num_ids, unused_ids=unused_ids)
