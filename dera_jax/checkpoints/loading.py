"""Loads models and realigned models from every supported kind of checkpoint (see `recognise`)."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import flax.traverse_util
import jax
from jax import Array

from dera_jax import checks, partitioning
from dera_jax.checkpoints import adapters
from dera_jax.checkpoints.default_model import public_name
from dera_jax.checkpoints.loaded import Base, LoadedModel, ModelPair, restrict_to_vocabulary
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.recognise import (
    Checkpoint,
    open_adapter,
    open_checkpoint,
    with_adapter,
)
from dera_jax.checkpoints.shared_tokenizer import (
    share_tokenizer,
    source_index,
    with_known_vocabulary,
)
from dera_jax.checkpoints.storage import open_folder, read_arrays
from dera_jax.checkpoints.tokenizer import Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import (
    Vocabulary,
    check_known,
    check_vocab_size,
    resolve_vocabulary,
)
from dera_jax.decoding.realign import Realigned, RealignedAdapters
from dera_jax.models.heads import LAST, ValueHead
from dera_jax.models.language_model import PyTree
from dera_jax.models.lora import LoraConfig, attach
from dera_jax.models.registry import model_of

DTYPE = checks.Check("'float32', 'bfloat16' or None", lambda x: x in ("float32", "bfloat16", None))


def load(
    model: str | Path,
    *aligned: str | Path,
    reference: str | Path | None = None,
    vocabulary: Vocabulary | None = None,
    dtype: str | None = None,
    task: str | None = None,
    lora: LoraConfig | None = None,
    template_from: str | int | None = None,
) -> LoadedModel | ModelPair:
    """Loads a model, or a reference and aligned models as one realigned model.

    Parameters are sharded over the mesh in use (`partitioning.use_mesh`); each process reads its part.

    Args:
        model: the only model, or the reference: path or URL of a folder, or of a checkpoint in one
            file; or the name of a model on the Hugging Face hub, see `hub`.
        aligned: paths or names of the aligned models, whose kinds of checkpoint may differ. A LoRA
            adapter behind a model without an adapter is used with that model as its base. With
            `reference`, they are adapters of `model`, or its path for the model itself.
        reference: a LoRA adapter of `model` that is the reference in its place; None for `model`.
        vocabulary: vocabulary of the models; needed where the checkpoints hold none.
        dtype: dtype of the parameters in memory and of activations, 'float32' or 'bfloat16', see
            `LlamaConfig.dtype`; None for float32 parameters, and the activations that the
            checkpoint's configuration names (float32 if it names none).
        task: name of the task that `vocabulary` comes from; None if the caller names the vocabulary
            for these models. A task's vocabulary applies to T5X checkpoints, which hold none, but
            not to a Hugging Face folder without its tokenizer.
        lora: configuration of a new adapter for a single model; None for none.
        template_from: the model whose tokenizer, chat template and end ids are used:
            'reference', its number (0 for the reference) or its path; None for the first aligned model.

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
    checks.check("load.model", model, checks.PATH)
    checks.check("load.dtype", dtype, DTYPE)
    if aligned:
        if lora:
            raise ValueError("load.lora is for a single model; found aligned models too")
        base = None if reference is None else model
        paths = [model if reference is None else reference, *aligned]
        loaded = load_models(paths, vocabulary, task, dtype, template_from, base)
        return ModelPair(*realigned(loaded), tuple(loaded))
    if reference is not None:
        raise ValueError(
            "load.reference is for a pair; found no aligned model: load(model, adapter)"
        )
    source_index(template_from, [str(model)])
    if task is None:
        loaded = _load(open_checkpoint(model), vocabulary, dtype, {})
    else:
        (loaded,) = load_models([model], vocabulary, task, dtype)
    return loaded if lora is None else loaded.with_new_adapter(lora, model)


def load_models(
    paths: Sequence[str | Path],
    vocabulary: Vocabulary | None = None,
    task: str | None = None,
    dtype: str | None = None,
    template_from: str | int | None = None,
    base: str | Path | None = None,
) -> list[LoadedModel]:
    """Loads models that are decoded together, with one tokenizer, see `shared_tokenizer`.

    Args:
        paths: paths of the checkpoints.
        vocabulary, task, dtype, template_from: see `load`.
        base: path of the base of all models, which are LoRA adapters then; None for the bases that
            adapters name, or for the first model if it has no adapter.

    Raises:
        FileNotFoundError, ValueError: as in `load`, `LoadedModel.with_vocabulary` and
            `share_tokenizer`.
        ValueError: `template_from` names no model; or the embedding tables differ in size and no
            vocabulary says which rows are padding.
    """
    checks.check("load_models.paths", paths, checks.PATHS)
    checks.check("load_models.dtype", dtype, DTYPE)
    names, read = list(map(str, paths)), {}
    source = source_index(template_from, names)
    loaded = [_load(checkpoint, None, dtype, read) for checkpoint in _open_all(paths, base)]
    if vocabulary and not task:
        loaded = [replace(x, no_vocabulary="") for x in loaded]
    name = f"task {task!r}" if task else "the vocabulary given"
    loaded = with_known_vocabulary(loaded, names, source, vocabulary, name)
    if loaded[source].vocabulary is not None:
        return share_tokenizer(loaded, names, source)
    _check_sizes(loaded, names)
    return loaded


def read_tokenizer(
    paths: Sequence[str | Path],
    vocabulary: Vocabulary | None = None,
    template_from: str | int | None = None,
) -> Tokenizer:
    """Returns the tokenizer that `load_models` gives these models, without reading parameters.

    Args:
        paths, vocabulary, template_from: see `load_models`.

    Raises:
        FileNotFoundError, ValueError: as in `load_models`; or no vocabulary is known.
    """
    source = source_index(template_from, list(map(str, paths)))
    checkpoints = _open_all(paths, None)
    chosen = checkpoints[source]
    known = (x.vocabulary for x in (chosen, *checkpoints) if x.vocabulary)
    ends_prompts = model_of(chosen.config).ends_prompts
    return tokenizer(next(known, vocabulary), ends_prompts, chosen.where, chosen.chat_template)


def _load(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    dtype: str | None,
    read: dict[str, PyTree],
) -> LoadedModel:
    """Load one model; arguments and errors are those of `load`.

    `read` holds the parameters that were read already, by their place: adapters share their base.
    """
    if checkpoint.head:
        where = checkpoint.adapter.where if checkpoint.adapter else checkpoint.where
        raise ValueError(f"{where} holds a reward model (with a scalar head), not a language model")
    if vocabulary is not None:
        known, where = checkpoint.vocabulary, checkpoint.where
        vocabulary = resolve_vocabulary(known, vocabulary, where, "the vocabulary given")
    vocabulary, template = vocabulary or checkpoint.vocabulary, checkpoint.chat_template
    config = checkpoint.config if dtype is None else replace(checkpoint.config, dtype=dtype)
    model, notes = model_of(config), checkpoint.notes
    if vocabulary is not None:
        model = restrict_to_vocabulary(model, vocabulary, checkpoint.where, template)
        notes += tokenizer(vocabulary, model.ends_prompts, checkpoint.where, template).notes
    for note in notes:
        print(note, file=sys.stderr)
    if checkpoint.where not in read:
        read[checkpoint.where] = _read(checkpoint, model, dtype or "float32")
    params = read[checkpoint.where]
    no_vocabulary = "" if vocabulary else checkpoint.no_vocabulary
    loaded = LoadedModel(model, params, vocabulary, checkpoint.card, no_vocabulary, template)
    if checkpoint.adapter:
        loaded = _adapted(loaded, checkpoint)
    if vocabulary is not None:
        return loaded
    problem = (
        f"{checkpoint.where}: this {checkpoint.kind} checkpoint does not say what its ids mean; "
    )
    remedy = "the task's vocabulary is needed, or load(path, vocabulary=...)"
    print(checkpoint.no_vocabulary or problem + remedy, file=sys.stderr)
    return loaded


def _open_all(paths: Sequence[str | Path], base: str | Path | None) -> list[Checkpoint]:
    """Open checkpoints and attach adapters to their bases, see `load_models`."""
    if base is not None:
        found, itself = open_checkpoint(base), str(base)
        return [found if str(x) == itself else with_adapter(open_adapter(x), found) for x in paths]
    first = open_checkpoint(paths[0])
    shared = None if first.adapter or first.head else first
    return [first, *(open_checkpoint(path, shared) for path in paths[1:])]


def _adapted(loaded: LoadedModel, checkpoint: Checkpoint) -> LoadedModel:
    """Attach the checkpoint's adapter; print to stderr that it was trained on another base."""
    stored, base = checkpoint.adapter, Base(public_name(checkpoint.where), loaded.params)
    adapter = adapters.read_adapter(stored, loaded.model)
    known = stored.card.get("base", {})
    if known and known["sha256"] != base.sha256:
        print(
            f"{stored.where}: the adapter was trained on {known['name']} (SHA-256 of its parameters "
            f"{known['sha256'][:12]}…), and is used with {base.name} ({base.sha256[:12]}…): the numbers of "
            "its card do not apply",
            file=sys.stderr,
        )
    params = attach(base.params, adapter)
    return replace(loaded, params=params, base=base, adapter=adapter)


def realigned(loaded: Sequence[LoadedModel]) -> tuple[Realigned | RealignedAdapters, PyTree]:
    """Returns the mixture of a reference and aligned models, and its parameters.

    Adapters of one base, and the base itself, are run as one batch (`RealignedAdapters`).
    """
    models = [x.model for x in loaded]
    base = next((x.base.params for x in loaded if x.base), None)
    on_base = all(x.params is base or (x.base and x.base.params is base) for x in loaded)
    if base is None or not on_base or not hasattr(models[0], "components"):
        return Realigned(models[0], tuple(models[1:])), tuple(x.params for x in loaded)
    together = replace(models[0], components=len(models))
    return RealignedAdapters(together), attach(base, *(x.adapter for x in loaded))


def _check_sizes(loaded: Sequence[LoadedModel], names: Sequence[str]) -> None:
    """Raise ValueError if the embedding tables of models without a vocabulary differ in size."""
    sizes = [x.model.vocab_size for x in loaded]
    if min(sizes) < max(sizes):
        listed = ", ".join(f"{name} {size:,}" for name, size in zip(names, sizes, strict=True))
        raise ValueError(
            f"embedding tables differ in size ({listed}), and no checkpoint says which ids are "
            "padding: pass vocabulary="
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
    if checkpoint.head and checkpoint.head.kind == LAST and checkpoint.vocabulary:
        # A published reward model often has an added padding token.
        check_known(vocabulary, checkpoint.vocabulary, name, checkpoint.where)
    else:
        resolve_vocabulary(checkpoint.vocabulary, vocabulary, checkpoint.where, name)
    check_vocab_size(vocabulary, checkpoint.config.vocab_size, name)
    if checkpoint.adapter:
        return _adapted_params(checkpoint)
    expected = flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    needed = ((key, x.shape) for key, x in expected.items())
    check_shapes(checkpoint.shapes, needed, checkpoint.where)
    model = model_of(checkpoint.config)
    network = ValueHead(model, checkpoint.head) if checkpoint.head else model
    return _read(checkpoint, network, "float32")


def load_trained(
    folder: Path, origin: LoadedModel, init: Callable[[Array], PyTree], name: str
) -> PyTree:
    """Reads what `origin.save` saved.

    Args:
        folder: folder that was saved.
        origin: the model from which training started.
        init, name: see `load_params`.

    Raises:
        FileNotFoundError, ValueError: as in `load_params`.
    """
    if origin.adapter is None:
        return load_params(folder, init, origin.vocabulary, name)
    stored = adapters.open_adapter(open_folder(folder))
    adapter = adapters.read_adapter(stored, origin.model)
    return {"trunk": adapter, "head": adapters.read_head(stored)} if stored.has_head else adapter


def _adapted_params(checkpoint: Checkpoint) -> PyTree:
    """Read the parameters of a base with its adapter, and with the head of a reward model."""
    model = model_of(checkpoint.config)
    base = _read(replace(checkpoint, head=None), model, "float32")
    trunk = attach(base, adapters.read_adapter(checkpoint.adapter, model))
    if not checkpoint.head:
        return trunk
    return {"trunk": trunk, "head": adapters.read_head(checkpoint.adapter)}


def read_config(path: str | Path) -> object:
    """Reads the configuration of a checkpoint's model without its parameters; raises as `load`."""
    return open_checkpoint(path).config


def read_value_head(path: str | Path) -> ValueHead:
    """Returns the architecture of a reward model, without reading its parameters.

    Raises:
        FileNotFoundError, ValueError: as in `load`; or the model has no scalar head.
    """
    checkpoint = open_checkpoint(path)
    return value_head(checkpoint, path)


def value_head(checkpoint: Checkpoint, path: str | Path) -> ValueHead:
    """Returns the architecture of a reward model; raises ValueError if there is no scalar head."""
    if checkpoint.head is None:
        raise ValueError(f"{path} is no reward model: its config.json names no scalar head")
    return ValueHead(model_of(checkpoint.config), checkpoint.head)


def _read(checkpoint: Checkpoint, network: partitioning.Network, dtype: str) -> PyTree:
    """Read the parameters of this network onto the mesh in use."""
    is_sharded = partitioning.mesh_in_use().size > 1
    shardings = partitioning.param_shardings(network, checkpoint.shapes) if is_sharded else None
    size = sum(math.prod(x.shape) for x in checkpoint.arrays.values())
    where, kind = checkpoint.where, checkpoint.kind
    print(f"{where}: a {kind} checkpoint, {size:,} parameters", file=sys.stderr)
    flat = read_arrays(checkpoint.arrays, shardings, dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
