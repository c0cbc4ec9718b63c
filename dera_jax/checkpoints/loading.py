"""Loads models and realigned models from every supported kind of checkpoint (see `recognise`)."""

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
    check_end,
    check_same,
    check_vocab_size,
    resolve_vocabulary,
)
from dera_jax.decoding.realign import Realigned
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.registry import model_of
from dera_jax.prompts import Prompt


class TextConversion:
    """Gives models and pairs the conversion between text and ids of `tokenizer.Tokenizer`."""

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises ValueError if the vocabulary is not known or has no end token."""
        return tokenizer(self.vocabulary, self.model.ends_prompts)

    def encode_prompt(self, prompt: Prompt | str, max_tokens: int) -> EncodedPrompt:
        """Encodes a prompt, see `Tokenizer.encode_prompt`."""
        return self.tokenizer.encode_prompt(prompt, max_tokens)

    def encode_completion(self, text: str) -> list[int]:
        """Encodes a completion, see `Tokenizer.encode_completion`."""
        return self.tokenizer.encode_completion(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, see `Tokenizer.decode`."""
        return self.tokenizer.decode(ids)


@dataclasses.dataclass(frozen=True)
class LoadedModel(TextConversion):
    """A model with its parameters and its vocabulary.

    Attributes:
        model: the architecture.
        params: the parameters of `model`.
        vocabulary: None if neither the checkpoint nor the caller defines it.
        card: how the model was trained, or where it was imported from.
        no_vocabulary: error message for a checkpoint that should hold its tokenizer and does not,
            so that no other vocabulary may be assumed. Empty for all other checkpoints.
    """

    model: TrainableModel
    params: PyTree
    vocabulary: Vocabulary | None
    card: dict
    no_vocabulary: str = ""

    def with_vocabulary(self, vocabulary: Vocabulary | None, name: str) -> "LoadedModel":
        """Returns the model over the vocabulary of the data, after checking that they agree.

        Args:
            vocabulary: vocabulary of the data; None if the data are text.
            name: name of the data, for error messages.

        Raises:
            ValueError: the checkpoint's own vocabulary differs, naming the first piece that does;
                `no_vocabulary` is not empty; or as in `restrict_to_vocabulary`.
        """
        if self.no_vocabulary:
            raise ValueError(self.no_vocabulary)
        if vocabulary is None:
            return self
        own = resolve_vocabulary(self.vocabulary, vocabulary, "the model", name)
        model = restrict_to_vocabulary(self.model, own, name)
        return dataclasses.replace(self, vocabulary=own, model=model)


MODEL = checks.either(checks.instance(LoadedModel), checks.FUNCTION)


def ensure_loaded(model: LoadedModel | Callable[[], LoadedModel]) -> LoadedModel:
    """Returns the model, loading it first if a function is given."""
    return model if isinstance(model, LoadedModel) else model()


def restrict_to_vocabulary(
    model: TrainableModel, vocabulary: Vocabulary, where: str
) -> TrainableModel:
    """Returns the model with the vocabulary's end token and restricted to the vocabulary's ids.

    Args:
        model: its end tokens, if it has any, must contain the vocabulary's.
        vocabulary: vocabulary of the model.
        where: source of the vocabulary, for error messages.

    Raises:
        ValueError: the vocabulary has no end token, or one that the model does not have, or more
            ids than the model's embedding table has rows.
    """
    check_end(vocabulary, where)
    rows, size = model.vocab_size, len(vocabulary.pieces)
    check_vocab_size(vocabulary, rows, where)
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
class ModelPair(TextConversion):
    """A realigned model with its parameters and its vocabulary.

    Attributes:
        model: the realigned (mixture) model.
        params: parameters of the component models, the reference's first.
        vocabulary: the vocabulary that all components share; None if it is not known.
        cards: the components' cards, the reference's first.
    """

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
) -> LoadedModel | ModelPair:
    """Loads a model, or a reference and aligned models as one realigned model.

    Parameters are sharded over the mesh in use (`partitioning.use_mesh`); each process reads its part.

    Args:
        reference: path or URL of a folder, or of a T5X checkpoint in one file; or the name of a model
            on the Hugging Face hub, see `hub`.
        aligned: paths or names of the aligned models, whose kinds of checkpoint may differ.
        vocabulary: vocabulary of the models; needed where the checkpoints hold none.
        dtype: dtype of the parameters in memory.
        task: name of the task that `vocabulary` comes from; None if the caller names the vocabulary
            for these models. A task's vocabulary applies to T5X checkpoints, which hold none, but
            not to a Hugging Face folder without its tokenizer.

    Returns:
        `LoadedModel` for one path, `ModelPair` for several.

    Raises:
        FileNotFoundError: there is no checkpoint at a path, or a file of it is missing.
        PermissionError, ConnectionError, OSError: a download failed, see `hub.download`.
        ValueError: a path is not valid; a file is damaged; the architecture is not supported; the
            parameters do not have the shapes of the configuration; the checkpoint holds a reward
            model; the vocabulary given differs from the checkpoint's or does not fit the model
            (`restrict_to_vocabulary`); or as in `load_models`.
    """
    checks.check("load.reference", reference, checks.PATH)
    if not aligned and task is None:
        return _load(reference, vocabulary, dtype)
    loaded = load_models([reference, *aligned], vocabulary, task, dtype)
    if not aligned:
        return loaded[0]
    models = [x.model for x in loaded]
    return ModelPair(
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
) -> list[LoadedModel]:
    """Loads models that must share one vocabulary.

    Args:
        paths: paths of the checkpoints.
        vocabulary, task, dtype: see `load`.

    Raises:
        FileNotFoundError, ValueError: as in `load` and `LoadedModel.with_vocabulary`.
        ValueError: the vocabularies differ, naming the first piece that does; or the embedding
            tables differ in size and no vocabulary says which rows are padding.
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
        loaded = [x.with_vocabulary(vocabulary, name) for x in loaded]
    _check_sizes(loaded, paths, vocabulary)
    return loaded


def _load(path: str | Path, vocabulary: Vocabulary | None, dtype: str) -> LoadedModel:
    """Load one model; arguments and errors are those of `load`."""
    checkpoint = open_checkpoint(path)
    if checkpoint.head:
        raise ValueError(f"{path} holds a reward model (with a scalar head), not a language model")
    if vocabulary is not None:
        known, where = checkpoint.vocabulary, checkpoint.where
        vocabulary = resolve_vocabulary(known, vocabulary, where, "the vocabulary given")
    vocabulary = vocabulary or checkpoint.vocabulary
    model = model_of(checkpoint.config)
    if vocabulary is not None:
        model = restrict_to_vocabulary(model, vocabulary, checkpoint.where)
    params = _read(checkpoint, model, dtype)
    if vocabulary is not None:
        return LoadedModel(model, params, vocabulary, checkpoint.card)
    problem = (
        f"{checkpoint.where}: this {checkpoint.kind} checkpoint does not say what its ids mean; "
    )
    remedy = "the task's vocabulary is needed, or load(path, vocabulary=...)"
    print(checkpoint.no_vocabulary or problem + remedy, file=sys.stderr)
    return LoadedModel(model, params, None, checkpoint.card, checkpoint.no_vocabulary)


def _check_sizes(
    loaded: Sequence[LoadedModel], paths: Sequence[str | Path], vocabulary: Vocabulary | None
) -> None:
    """Print that embedding tables differ in size; raise ValueError if the vocabulary is unknown."""
    sizes = [x.model.vocab_size for x in loaded]
    if min(sizes) == max(sizes):
        return
    listed = ", ".join(f"{path} {size:,}" for path, size in zip(paths, sizes, strict=True))
    if vocabulary is None:
        raise ValueError(
            f"embedding tables differ in size ({listed}), and no checkpoint says which ids are "
            "padding: pass vocabulary="
        )
    print(
        f"embedding tables differ in size ({listed}); ids from {len(vocabulary.pieces):,} on are "
        "padding, since the vocabulary has no more ids, and are never generated",
        file=sys.stderr,
    )


def load_params(
    path: str | Path, init: Callable[[Array], PyTree], vocabulary: Vocabulary, name: str
) -> PyTree:
    """Loads parameters, in float32, whose names and shapes must be those of `init(key)`.

    Args:
        path: see `load`.
        init: function from a PRNG key to parameters of the expected shapes; it is only traced.
        vocabulary: vocabulary of the run that uses the parameters.
        name: name of that run, for error messages.

    Raises:
        FileNotFoundError, ValueError: as in `load`.
        ValueError: the shapes differ, or the checkpoint has another vocabulary.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.no_vocabulary:
        raise ValueError(checkpoint.no_vocabulary)
    resolve_vocabulary(checkpoint.vocabulary, vocabulary, checkpoint.where, name)
    check_vocab_size(vocabulary, checkpoint.config.vocab_size, name)
    expected = flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    needed = ((key, x.shape) for key, x in expected.items())
    check_shapes(checkpoint.shapes, needed, checkpoint.where)
    model = model_of(checkpoint.config)
    return _read(checkpoint, ValueHead(model) if checkpoint.head else model, "float32")


def read_config(path: str | Path) -> object:
    """Reads the configuration of a checkpoint's model without its parameters; raises as `load`."""
    return open_checkpoint(path).config


def read_value_head(path: str | Path) -> ValueHead:
    """Returns the architecture of a reward model, without reading its parameters.

    Raises:
        FileNotFoundError, ValueError: as in `load`; or the model has no scalar head.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.head != model_folder.SCALAR:
        raise ValueError(f"{path} is no reward model: its config.json names no scalar head")
    return ValueHead(model_of(checkpoint.config))


def _read(checkpoint: Checkpoint, network: partitioning.Network, dtype: str) -> PyTree:
    """Read the parameters of this network onto the mesh in use."""
    is_sharded = partitioning.mesh_in_use().size > 1
    shardings = partitioning.param_shardings(network, checkpoint.shapes) if is_sharded else None
    size = sum(math.prod(x.shape) for x in checkpoint.arrays.values())
    where, kind = checkpoint.where, checkpoint.kind
    print(f"{where}: a {kind} checkpoint, {size:,} parameters", file=sys.stderr)
    flat = read_arrays(checkpoint.arrays, shardings, dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
