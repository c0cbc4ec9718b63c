"""Which importer reads which published files: by config.json, by GGUF metadata, by a T5X tree.

An importer is a module about one family of models, with

CLASS           the class of transformers that loads such a model
MODEL_TYPES     its names as model_type in Hugging Face's config.json
GGUF            its names as general.architecture in GGUF files
config_of       (settings, where, start_token, end_ids) -> the configuration of a config.json
names_of        of a configuration's parameters our name, theirs (the first is written), and how many
                of our first axes are inputs of a matrix that is stored [out, in]; 0 where it is stored
                as it is
described       (config, dtype) -> config.json;   special_ids: the ids in it
check, UNUSED   what else may be stored
"""

from collections.abc import Mapping
from types import ModuleType

from dera_jax.checkpoints import hugging_face_llama, hugging_face_t5, t5x
from dera_jax.checkpoints.mismatch import Shape
from dera_jax.models.registry import family_of

IMPORTERS = {"t5": hugging_face_t5, "llama": hugging_face_llama}  # by the family's name


def of(config: object) -> ModuleType:
    """The importer of a configuration's family."""
    return IMPORTERS[family_of(config).name]


def by_model_type(name: object, where: str) -> ModuleType:
    """The importer of a model_type; raises ValueError for an unknown one."""
    for importer in IMPORTERS.values():
        if name in importer.MODEL_TYPES:
            return importer
    known = ", ".join(x for importer in IMPORTERS.values() for x in importer.MODEL_TYPES)
    raise ValueError(f"{where}: unknown architecture {name!r}; model_type must be one of {known}")


def transformers_class(settings: Mapping, where: str) -> str:
    """The class of transformers that loads what a config.json describes."""
    importer = by_model_type(settings.get("model_type"), where)
    return importer.CLASS


def by_tree(shapes: Mapping[str, Shape], where: str) -> object:
    """The configuration of the model whose parameters in a T5X checkpoint have these shapes.

    Raises:
        ValueError: no family has such parameters.
    """
    return t5x.config_of(shapes, where)  # T5X's own networks are T5s
