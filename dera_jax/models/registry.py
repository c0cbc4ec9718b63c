"""The families of language models that can be loaded, trained and decoded.

A new family is a module with a configuration (a frozen dataclass of sizes) and a model of the contract
`language_model.TrainableModel`, an importer for the files in which such models are published (see
`checkpoints.importers`), and a line here.
"""

import dataclasses
from collections.abc import Callable

from dera_jax import checks
from dera_jax.models.language_model import TrainableModel
from dera_jax.models.llama import LlamaConfig
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        name: in the config.json of our model folders.
        config: the class of its sizes. All have the fields vocab_size, emb_dim, dtype and end_ids.
        model: the model of a configuration.
    """

    name: str
    config: type
    model: Callable[..., TrainableModel]


FAMILIES = (Family("t5", T5Config, T5), Family("llama", LlamaConfig, Llama))
CONFIG = checks.instance(*(family.config for family in FAMILIES))


def family_of(config: object) -> Family:
    """The family of a configuration; raises ValueError for what is none."""
    for family in FAMILIES:
        if isinstance(config, family.config):
            return family
    raise ValueError(f"a configuration must be {CONFIG.words}; found {config!r:.100}")


def family_named(name: object) -> Family:
    """The family of this name; raises ValueError for an unknown one."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"the architecture {name!r} is not known; known are {known}")


def model_of(config: object, num_ids: int | None = None) -> TrainableModel:
    """The model of a configuration, of whose ids the first `num_ids` may be produced (None: all).

    Raises:
        ValueError: what is no configuration.
    """
    return family_of(config).model(config, num_ids=num_ids)
