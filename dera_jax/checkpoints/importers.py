"""Selects the importer of a checkpoint by its config.json or T5X parameter tree.

An importer is a module for one family of models. It has

CLASSES         the class of transformers that loads such a model, by model_type
CLASSIFIERS     the classes of transformers that are supported as reward models
MODEL_TYPES     the values of model_type in Hugging Face's config.json
token_ids       folder -> the special token ids of its files, as arguments of `config_of`
config_of       (settings, where, token ids) -> configuration, from a config.json
names_of        config -> (dera_jax name, transformers names, number of input axes) per parameter;
                of several transformers names the first is written. The leading input axes of the
                dera_jax parameter are the columns of a matrix that transformers stores as
                [out, in]; 0 means that the parameter is stored as it is, −1 that its
                axes are stored as one
described       (config, dtype) -> content of config.json, without the special token ids
special_ids     config -> special token ids, by their keys in config.json
UNUSED          names of further arrays that a checkpoint may hold and that are not imported
"""

from collections.abc import Mapping
from types import ModuleType

from dera_jax.checkpoints import hugging_face_llama, hugging_face_t5, t5x
from dera_jax.checkpoints.mismatch import Shape
from dera_jax.models.registry import family_of

IMPORTERS = {"t5": hugging_face_t5, "llama": hugging_face_llama}  # by family name


def importer_of(config: object) -> ModuleType:
    """Returns the importer of a configuration's family."""
    return IMPORTERS[family_of(config).name]


def by_model_type(name: object, where: str) -> ModuleType:
    """Returns the importer for a model_type; raises ValueError for an unknown one."""
    for importer in IMPORTERS.values():
        if name in importer.MODEL_TYPES:
            return importer
    known = ", ".join(x for importer in IMPORTERS.values() for x in importer.MODEL_TYPES)
    raise ValueError(f"{where}: unknown architecture {name!r}; model_type must be one of {known}")


def transformers_class(settings: Mapping, where: str) -> str:
    """Returns the transformers class for a config.json; raises as `by_model_type`."""
    name = settings.get("model_type")
    importer = by_model_type(name, where)
    classifiers = (x for x in settings.get("architectures") or () if x in importer.CLASSIFIERS)
    return next(classifiers, importer.CLASSES[name])


def config_from_shapes(shapes: Mapping[str, Shape], where: str) -> object:
    """Infers the configuration of a T5X checkpoint from the shapes of its parameters.

    Raises:
        ValueError: no supported family has such parameters.
    """
    return t5x.config_of(shapes, where)  # T5X's own networks are T5 models
