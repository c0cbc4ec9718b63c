"""One `load` for models and pairs, from every kind of checkpoint (see `recognise`)."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.traverse_util
import jax
from jax import Array

from dera_jax import checks, partitioning
from dera_jax.checkpoints import model_folder
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.recognise import Checkpoint, open_checkpoint
from dera_jax.checkpoints.storage import read_arrays
from dera_jax.checkpoints.tokenizer import EncodedPrompt, Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import (
    Vocabulary,
    agreed,
    check_end,
    check_room,
    check_same,
)
from dera_jax.decoding.realign import Realigned
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.registry import model_of
from dera_jax.prompts import Prompt


class Reads:
    """What models and pairs have in common: text to ids and back, see `tokenizer.Tokenizer`."""

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises ValueError where nobody says what the ids mean."""
        return tokenizer(self.vocabulary, self.model.ends_prompts)

    def encode_prompt(self, prompt: Prompt | str, max_tokens: int) -> EncodedPrompt:
        """See `Tokenizer.encode_prompt`."""
        return self.tokenizer.encode_prompt(prompt, max_tokens)

    def encode_completion(self, text: str) -> list[int]:
        """See `Tokenizer.encode_completion`."""
        return self.tokenizer.encode_completion(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self.tokenizer.decode(ids)


@dataclasses.dataclass(frozen=True)
class Loaded(Reads):
    """A model.

    Attributes:
        model: its architecture.
        params: of it.
        vocabulary: what its ids mean; None where the checkpoint does not say, and nobody else.
        card: how it was made, or where it is from.
        no_vocabulary: why no other vocabulary may be assumed, a sentence: the checkpoint is of a
            kind that holds its tokenizer, and has none. Empty for all others.
    """

    model: TrainableModel
    params: PyTree
    vocabulary: Vocabulary | None
    card: dict
    no_vocabulary: str = ""

    def agreeing_with(self, vocabulary: Vocabulary | None, name: str) -> "Loaded":
        """With this vocabulary, if its own is the same, or its kind of checkpoint holds none.

        Args:
            vocabulary: what the data's ids mean; None where the data are texts.
            name: of the data.

        Raises:
            ValueError: its own differs, naming the first piece; `no_vocabulary`; or as
                `over_vocabulary`.
        """
        if self.no_vocabulary:
            raise ValueError(self.no_vocabulary)
        if vocabulary is None:
            return self
        own = agreed(self.vocabulary, vocabulary, "the model", name)
        model = over_vocabulary(self.model, own, name)
        return dataclasses.replace(self, vocabulary=own, model=model)


MODEL = checks.either(checks.instance(Loaded), checks.FUNCTION)


def loaded(model: Loaded | Callable[[], Loaded]) -> Loaded:
    """The model, read now if it was not."""
    return model if isinstance(model, Loaded) else model()


def over_vocabulary(model: TrainableModel, vocabulary: Vocabulary, where: str) -> TrainableModel:
    """The model with the end token of its vocabulary, and without ids beyond it.

    Args:
        model: whose end tokens, if it says them, contain the vocabulary's.
        vocabulary: what the ids mean.
        where: the vocabulary is from, for messages.

    Raises:
        ValueError: no end token, or one that is none of the model's, or more ids than the model has
            rows.
    """
    check_end(vocabulary, where)
    rows, size = model.vocab_size, len(vocabulary.pieces)
    check_room(vocabulary, rows, where)
    end = vocabulary.end_id
    if model.end_ids and end not in model.end_ids:
        raise ValueError(
            f"{where}: the vocabulary ends sequences with id {end}, {vocabulary.pieces[end]!r}, the "
            f"model with id {', '.join(map(str, model.end_ids))} (its end_ids, or eos_token_id of a Hugging Face "
            "config.json); they must agree"
        )
    config = dataclasses.replace(model.config, end_ids=model.end_ids or (end,))
    return model_of(config, num_ids=size if size < rows else None)


@dataclasses.dataclass(frozen=True)
class Pair(Reads):
    """A realigned model with its parameters (reference's first) and the text around it."""

    model: Realigned
    params: tuple[PyTree, ...]
    vocabulary: Vocabulary | None
    cards: tuple[dict, ...]


def load(
    reference: str | Path,
    *aligned: str | Path,
    vocabulary: Vocabulary | None = None,
    dtype: str = "float32",
    task: str | None = None,
) -> Loaded | Pair:
    """Reads a model, or a reference and aligned models as one realigned model.

    Parameters are spread over the mesh in use, see `partitioning.use`; every process reads its part.

    Args:
        reference: path of a folder, or of a T5X checkpoint in one file; local, or a URL such as gs://...
        aligned: paths of aligned models, of whatever kinds.
        vocabulary: what the ids mean, where the checkpoints do not say.
        dtype: of the parameters in memory.
        task: of which the vocabulary is, if it was not named for these models: then it is that of
            T5X's checkpoints, which hold none, but not that of a folder that lacks its tokenizer.

    Returns:
        `Loaded` of one path, `Pair` of several.

    Raises:
        FileNotFoundError: no checkpoint there, or a file of it is missing.
        ValueError: paths that are none; a file that is damaged, an architecture that is not known,
            parameters that are not those of its sizes, a reward model, another vocabulary than the one
            given, or one that is not the model's (`over_vocabulary`); or as `load_models`.
    """
    checks.check("load.reference", reference, checks.PATH)
    if not aligned and task is None:
        return _load(reference, vocabulary, dtype)
    loaded = load_models([reference, *aligned], vocabulary, task, dtype)
    if not aligned:
        return loaded[0]
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
    task: str | None = None,
    dtype: str = "float32",
) -> list[Loaded]:
    """Loads models that are to share their ids.

    Args:
        paths: of checkpoints.
        vocabulary, task, dtype: see `load`.

    Raises:
        FileNotFoundError, ValueError: as `load` and `Loaded.agreeing_with`; paths that are
            none; or models whose vocabularies differ, naming the first piece that does; or whose
            tables differ in size, and nothing says by how much of padding.
    """
    checks.check("load_models.paths", paths, checks.PATHS)
    loaded = [_load(path, None, dtype) for path in paths]
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


def _load(path: str | Path, vocabulary: Vocabulary | None, dtype: str) -> Loaded:
    """One model; arguments and errors as `load`."""
    found = open_checkpoint(path)
    if found.head:
        raise ValueError(f"{path} holds a reward model (with a scalar head), not a language model")
    if vocabulary is not None:
        vocabulary = agreed(found.vocabulary, vocabulary, found.where, "the vocabulary given")
    vocabulary = vocabulary or found.vocabulary
    model = model_of(found.config)
    if vocabulary is not None:
        model = over_vocabulary(model, vocabulary, found.where)
    params = _read(found, model, dtype)
    if vocabulary is not None:
        return Loaded(model, params, vocabulary, found.card)
    silent = f"{found.where}: a {found.kind} checkpoint that does not say what its ids mean; "
    remedy = "its task has to, or load(path, vocabulary=...)"
    print(found.no_vocabulary or silent + remedy, file=sys.stderr)
    return Loaded(model, params, None, found.card, found.no_vocabulary)


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


def load_params(
    path: str | Path, init: Callable[[Array], PyTree], vocabulary: Vocabulary, name: str
) -> PyTree:
    """Parameters of the shapes that init(key) gives, for ids of a vocabulary.

    Args:
        path: see `load`.
        init: gives parameters of the shapes that are expected.
        vocabulary: of the run `name` that they are for.

    Raises:
        FileNotFoundError, ValueError: as `load`, or the checkpoint is over another vocabulary.
    """
    found = open_checkpoint(path)
    if found.no_vocabulary:
        raise ValueError(found.no_vocabulary)
    agreed(found.vocabulary, vocabulary, found.where, name)
    check_room(vocabulary, found.config.vocab_size, name)
    expected = flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    needed = ((name, x.shape) for name, x in expected.items())
    check_shapes(found.shapes, needed, found.where)
    model = model_of(found.config)
    return _read(found, ValueHead(model) if found.head else model, "float32")


def read_config(path: str | Path) -> object:
    """The configuration of a checkpoint's model alone; raises as `load`."""
    return open_checkpoint(path).config


def read_value(path: str | Path) -> ValueHead:
    """The architecture of a reward model's folder; raises as `load`."""
    found = open_checkpoint(path)
    if found.head != model_folder.SCALAR:
        raise ValueError(f"{path} is no reward model: no scalar head is named there")
    return ValueHead(model_of(found.config))


def _read(found: Checkpoint, network: partitioning.Network, dtype: str) -> PyTree:
    """The parameters of this network, on the mesh in use."""
    spread = partitioning.mesh_in_use().size > 1
    shardings = partitioning.param_shardings(network, found.shapes) if spread else None
    size = sum(math.prod(x.shape) for x in found.arrays.values())
    print(f"{found.where}: a {found.kind} checkpoint, {size:,} parameters", file=sys.stderr)
    flat = read_arrays(found.arrays, shardings, dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
