"""A reference and aligned models from their checkpoints, made to fit each other."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from dera_jax import checks
from dera_jax.checkpoints.loading import Loaded, load
from dera_jax.checkpoints.vocabulary import Vocabulary, check_same
from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import PyTree


@dataclasses.dataclass(frozen=True)
class Pair:
    """A realigned model with its parameters (reference's first) and the text around it."""

    model: Realigned
    params: tuple[PyTree, ...]
    vocabulary: Vocabulary | None
    cards: tuple[dict, ...]


def load_pair(
    reference: str | Path,
    aligned: Sequence[str | Path],
    vocabulary: Vocabulary | None = None,
    mesh: Mesh | None = None,
    task: str | None = None,
) -> Pair:
    """Loads checkpoints, of whatever kinds, as one realigned model.

    Args:
        reference: path of the reference.
        aligned: paths of one or more aligned models.
        vocabulary, mesh, task: see `load_models`.

    Raises:
        FileNotFoundError, ValueError: as `load_models`.
    """
    checks.check("load_pair.reference", reference, checks.PATH)
    checks.check("load_pair.aligned", aligned, checks.PATHS)
    loaded = load_models([reference, *aligned], vocabulary, mesh, task)
    models = [x.model for x in loaded]
    return Pair(
        model=Realigned(models[0], tuple(models[1:])),
        params=tuple(x.params for x in loaded),
        vocabulary=loaded[0].vocabulary,
        cards=tuple(x.card for x in loaded),
    )


def load_models(
    paths: Sequence[str | Path],
    vocabulary: Vocabulary | None = None,
    mesh: Mesh | None = None,
    task: str | None = None,
) -> list[Loaded]:
    """Loads models that are to share their ids.

    Args:
        paths: of checkpoints, see `loading.load`.
        vocabulary: what the ids mean; that of models that do not say.
        mesh: see `loading.load`.
        task: of which the vocabulary is, if it was not named for these models: then it is that of
            T5X's checkpoints, which hold none, but not that of a folder that lacks its tokenizer.

    Raises:
        FileNotFoundError, ValueError: as `loading.load` and `Loaded.agreeing_with`; paths that are
            none; or models whose vocabularies differ, naming the first piece that does; or whose
            tables differ in size, and nothing says by how much of padding.
    """
    checks.check("load_models.paths", paths, checks.PATHS)
    loaded = [load(path, mesh=mesh) for path in paths]
    known = [(str(p), x.vocabulary) for p, x in zip(paths, loaded, strict=True) if x.vocabulary]
    for name, theirs in known[1:]:
        check_same(known[0][1], theirs, known[0][0], name)
    if vocabulary and not task:
        loaded = [dataclasses.replace(x, no_vocabulary="") for x in loaded]
    name = f"task {task!r}" if task else "the vocabulary given"
    if known and not vocabulary:
        name, vocabulary = known[0]
    if vocabulary:
        loaded = [x.agreeing_with(vocabulary, name) for x in loaded]
    _check_sizes(loaded, paths, vocabulary)
    return loaded


def _check_sizes(
    loaded: Sequence[Loaded], paths: Sequence[str | Path], vocabulary: Vocabulary | None
) -> None:
    """Says that tables differ in size; raises ValueError where nothing says which ids mean something."""
    sizes = [x.model.vocab_size for x in loaded]
    if min(sizes) == max(sizes):
        return
    listed = ", ".join(f"{path} {size:,}" for path, size in zip(paths, sizes, strict=True))
    if vocabulary is None:
        raise ValueError(
            f"embeddings differ in size ({listed}), and no checkpoint says how many ids mean "
            "something: give vocabulary="
        )
    print(
        f"embeddings differ in size ({listed}); ids from {len(vocabulary.pieces):,} on are padding, "
        "since the vocabulary has no more, and are not produced",
        file=sys.stderr,
    )
