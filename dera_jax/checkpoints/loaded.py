"""Holds loaded models and pairs: architecture, parameters, vocabulary and, of adapters, their base."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from dera_jax import checks
from dera_jax.checkpoints.adapters import save_adapter
from dera_jax.checkpoints.default_model import public_name
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.tokenizer import (
    EncodedPrompt,
    Tokenizer,
    check_template_ids,
    tokenizer,
)
from dera_jax.checkpoints.vocabulary import (
    NO_PIECE,
    Vocabulary,
    check_vocab_size,
    resolve_vocabulary,
)
from dera_jax.decoding.realign import Realigned, RealignedAdapters
from dera_jax.files import fingerprints
from dera_jax.models.heads import MEAN_OF_PREFIXES, Pooling
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.lora import Adapter, LoraConfig, attach, new_adapter
from dera_jax.models.registry import model_of
from dera_jax.prompts import Prompt


class TextConversion:
    """Gives models and pairs the conversion between text and ids of `tokenizer.Tokenizer`."""

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises ValueError if the vocabulary is not known or has no end token."""
        ends_prompts = self.model.ends_prompts
        return tokenizer(self.vocabulary, ends_prompts, chat_template=self.chat_template)

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
        """The hash of its parameters in bfloat16, which is the same in whatever dtype they were loaded."""
        return fingerprints.hash_arrays(jax.tree.map(lambda x: x.astype("bfloat16"), self.params))


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
        chat_template: source of the model's chat template; None for a model without one.
        base: the base of a LoRA adapter, whose parameters `params` contain; None without an adapter.
        adapter: the adapter, in float32.
    """

    model: TrainableModel
    params: PyTree
    vocabulary: Vocabulary | None
    card: dict
    no_vocabulary: str = ""
    chat_template: str | None = None
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

    def save(
        self,
        folder: Path,
        params: PyTree,
        card: Mapping[str, object],
        dtype: str = "float32",
        pooling: Pooling = MEAN_OF_PREFIXES,
    ) -> None:
        """Writes a folder of this model with other parameters; an existing folder is replaced.

        Args:
            folder: folder to create.
            params: parameters in place of `trainable`, or those of a `ValueHead` on it.
            card: how they were trained, as JSON values. Of an adapter, it gets name and hash of the base.
            dtype: dtype of the stored parameters, 'float32' or 'bfloat16'.
            pooling: that of the `ValueHead`; not used for a language model.

        Raises:
            FloatingPointError: a parameter is NaN or infinite.
        """
        if self.adapter is not None:
            base = {"name": self.base.name, "sha256": self.base.sha256}
            card = {**card, "base": base}
            if not isinstance(params, Adapter):
                card["head"] = dataclasses.asdict(pooling)
            written = params, base["name"], card, dtype, self.chat_template
            save_adapter(folder, self.model, *written)
            return
        text = self.vocabulary, params, card, dtype, self.chat_template
        save_model(folder, self.model.config, *text, pooling)

    def with_new_adapter(self, config: LoraConfig, name: str | Path) -> "LoadedModel":
        """Returns the model with a new adapter, with which it computes the same as before.

        Args:
            config: configuration of the adapter.
            name: path or name of this model.

        Raises:
            ValueError: the model has an adapter already, or as in `lora.new_adapter`.
        """
        if self.adapter is not None:
            raise ValueError(
                f"the model is an adapter of {self.base.name} already, which is trained further: set LORA = None; "
                "or give the folder of a model without an adapter"
            )
        adapter, base = new_adapter(self.model, config), Base(public_name(name), self.params)
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
        model = restrict_to_vocabulary(self.model, own, name, self.chat_template)
        return dataclasses.replace(self, vocabulary=own, model=model)


MODEL = checks.either(checks.instance(LoadedModel), checks.FUNCTION)


def ensure_loaded(model: LoadedModel | Callable[[], LoadedModel]) -> LoadedModel:
    """Returns the model, loading it first if a function is given."""
    return model if isinstance(model, LoadedModel) else model()


def restrict_to_vocabulary(
    model: TrainableModel,
    vocabulary: Vocabulary,
    where: str,
    chat_template: str | None = None,
) -> TrainableModel:
    """Returns the model with the vocabulary's end token and restricted to the vocabulary's ids.

    The end tokens of a decoder-only model are all that its files name: its own, the vocabulary's,
    and the one with which its chat template ends an answer.

    Args:
        model: its end tokens, if it is an encoder-decoder and has any, must contain the
            vocabulary's.
        vocabulary: vocabulary of the model.
        where: source of the vocabulary, for error messages.
        chat_template: source of the model's chat template; None for a model without one.

    Raises:
        ValueError: the vocabulary has no end token, or one that the encoder-decoder does not have;
            the model's embedding table has fewer rows than the vocabulary has ids, or lacks an id
            that prompts need; or as in `tokenizer.tokenizer`.
    """
    text = tokenizer(vocabulary, model.ends_prompts, where, chat_template)
    rows, size = model.vocab_size, len(vocabulary.pieces)
    check_template_ids(text, rows, where)
    check_vocab_size(vocabulary, rows, where)
    unused = tuple(i for i, piece in enumerate(vocabulary.pieces) if piece == NO_PIECE)
    used = {"num_ids": size if size < rows else None, "unused_ids": unused}
    end = vocabulary.end_id
    if not model.ends_prompts:
        ends = tuple(dict.fromkeys([*model.end_ids, *text.end_ids]))
        return model_of(dataclasses.replace(model.config, end_ids=ends), **used)
    if model.end_ids and end not in model.end_ids:
        raise ValueError(
            f"{where}: the vocabulary ends sequences with id {end}, {vocabulary.pieces[end]!r}, the "
            f"model with id {', '.join(map(str, model.end_ids))} (its end_ids, or eos_token_id of a Hugging Face "
            "config.json); they must agree"
        )
    config = dataclasses.replace(model.config, end_ids=model.end_ids or (end,))
    return model_of(config, **used)


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
        """The vocabulary of the texts, see `shared_tokenizer`; None if it is not known."""
        return self.components[0].vocabulary

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template, see `shared_tokenizer`; None if there is none."""
        return self.components[0].chat_template

    @property
    def cards(self) -> tuple[dict, ...]:
        """The components' cards."""
        return tuple(x.card for x in self.components)
