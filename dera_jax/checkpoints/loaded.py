"""Holds loaded models and pairs: architecture, parameters, vocabulary and, of adapters, their base."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import EncodedPrompt, Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import (
    Vocabulary,
    check_end,
    check_vocab_size,
    resolve_vocabulary,
)
from dera_jax.decoding.realign import Realigned, RealignedAdapters
from dera_jax.files import fingerprints
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.lora import Adapter, LoraConfig, attach, new_adapter
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
class Base:
    """The model that a LoRA adapter was trained on, or is used with.

    Attributes:
        name: the path, URL or hub name from which `load` reads it.
        params: its parameters.
    """

    name: str
    params: PyTree

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of its parameters in float32."""
        return fingerprints.hash_arrays(jax.tree.map(lambda x: x.astype("float32"), self.params))


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
        base: the base of a LoRA adapter, whose parameters `params` contain; None without an adapter.
        adapter: the adapter, in float32.
    """

    model: TrainableModel
    params: PyTree
    vocabulary: Vocabulary | None
    card: dict
    no_vocabulary: str = ""
    base: Base | None = None
    adapter: Adapter | None = None

    @property
    def trainable(self) -> PyTree:
        """The parameters that training changes: those of the adapter if there is one, else all."""
        return self.params if self.adapter is None else self.adapter

    @property
    def frozen(self) -> dict[str, PyTree]:
        """The frozen parameters that belong to `trainable`, see `training.train_state`."""
        return {"base": self.base and self.base.params}

    def with_new_adapter(self, config: LoraConfig, name: str | Path) -> "LoadedModel":
        """Returns the model with a new adapter, with which it computes the same as before.

        Args:
            config: configuration of the adapter.
            name: name of this model, see `Base`; a local path is made absolute.

        Raises:
            ValueError: the model has an adapter already, or as in `lora.new_adapter`.
        """
        if self.adapter is not None:
            raise ValueError(
                f"the model is an adapter of {self.base.name} already, which is trained further: set LORA = None; "
                "or give the folder of a model without an adapter"
            )
        adapter, is_local = new_adapter(self.model, config), Path(name).exists()
        base = Base(str(Path(name).absolute() if is_local else name), self.params)
        params = attach(self.params, adapter)
        return dataclasses.replace(self, params=params, base=base, adapter=adapter)

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
    """A realigned model with its parameters and its component models.

    Attributes:
        model: the realigned (mixture) model.
        params: its parameters.
        components: the component models, the reference first.
    """

    model: Realigned | RealignedAdapters
    params: PyTree
    components: tuple[LoadedModel, ...]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary that all components share; None if it is not known."""
        return self.components[0].vocabulary

    @property
    def cards(self) -> tuple[dict, ...]:
        """The components' cards."""
        return tuple(x.card for x in self.components)
