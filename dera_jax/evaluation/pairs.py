"""A reference and aligned models from their folders, checked to fit each other."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.vocabulary import Vocabulary, check_same
from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import PyTree


@dataclasses.dataclass(frozen=True)
class Pair:
    """A realigned model with its parameters (reference's first) and the text around it."""

    model: Realigned
    params: tuple[PyTree, ...]
    vocabulary: Vocabulary
    cards: tuple[dict, ...]


def load_pair(reference: str | Path, aligned: Sequence[str | Path]) -> Pair:
    """Loads model folders as one realigned model.

    Raises:
        FileNotFoundError, ValueError: a folder that is no complete model, or models whose
            vocabularies differ, naming the first piece that does.
    """
    loaded = [load(folder) for folder in (reference, *aligned)]
    for folder, model in zip(aligned, loaded[1:], strict=True):
        check_same(loaded[0].vocabulary, model.vocabulary, str(reference), str(folder))
    models = [x.model for x in loaded]
    return Pair(
        model=Realigned(models[0], tuple(models[1:])),
        params=tuple(x.params for x in loaded),
        vocabulary=loaded[0].vocabulary,
        cards=tuple(x.card for x in loaded),
    )
