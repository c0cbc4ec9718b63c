"""Imports reward models that transformers stores as ...ForSequenceClassification.

Such a model is a decoder without output logits, and a linear map `score.weight` [1, E] of its last
hidden state. One label is the score.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from types import ModuleType

import numpy as np

from dera_jax.checkpoints.storage import StoredArray, in_memory
from dera_jax.models.heads import LAST, Pooling

_SUFFIX = "ForSequenceClassification"
_DEFAULT_LABELS = 2  # in transformers, where config.json does not say


def pooling_of(settings: Mapping, importer: ModuleType, where: str) -> Pooling | None:
    """Returns how the score of a reward model is read; None for a language model.

    Args:
        settings: content of config.json.
        importer: importer of the model's family.
        where: path of config.json, for error messages.

    Raises:
        ValueError: the classifier has more labels than one, or its architecture is not supported.
    """
    named = [x for x in settings.get("architectures") or () if str(x).endswith(_SUFFIX)]
    if not named:
        return None
    if named[0] not in importer.CLASSIFIERS:
        known = ", ".join(importer.CLASSIFIERS) or "none of this model_type"
        raise ValueError(
            f"{where}: architectures names {named[0]!r}, which is not supported for the model_type "
            f"{settings.get('model_type')!r}; supported reward models are {known}"
        )
    if (labels := _num_labels(settings, where)) != 1:
        raise ValueError(
            f"{where}: the classifier has {labels} labels (num_labels, or the entries of id2label; "
            f"{_DEFAULT_LABELS} if there are neither); a reward model has 1, whose value is the score"
        )
    padding = settings.get("pad_token_id")
    if padding is not None and (isinstance(padding, bool) or not isinstance(padding, int)):
        raise ValueError(f"{where}: pad_token_id is {padding!r}; it must be one id, or null")
    # Transformers skips a padding id at the end of a sequence. No token has a negative id.
    return Pooling(LAST, padding if padding is not None and padding >= 0 else None)


def without_logits(config: object) -> object:
    """Returns the configuration of a decoder that stores no kernel for its output logits."""
    return dataclasses.replace(config, logits_via_embedding=True)


def names_of(config: object, importer: ModuleType) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yields the names of a `ValueHead` whose trunk has this configuration; see `importers`."""
    for ours, theirs, inputs in importer.names_of(config):
        yield f"trunk/{ours}", theirs, inputs
    yield "head/kernel", ("score.weight",), -1


def bias(where: str) -> dict[str, StoredArray]:
    """Returns the bias of the head, which transformers does not have."""
    return {"head/bias": in_memory(np.zeros((), np.float32), f"{where}: the head's bias")}


def _num_labels(settings: Mapping, where: str) -> object:
    """Returns the number of labels; raises ValueError if two keys contradict each other."""
    names, number = settings.get("id2label"), settings.get("num_labels")
    if names is None:
        return _DEFAULT_LABELS if number is None else number
    if number is not None and number != len(names):
        raise ValueError(f"{where}: num_labels is {number}, but id2label has {len(names)} entries")
    return len(names)
