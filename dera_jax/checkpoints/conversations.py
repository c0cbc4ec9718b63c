"""Compares how two models write a prompt and its answer as token ids."""

from dera_jax.checkpoints.recognise import Checkpoint
from dera_jax.checkpoints.tokenizer import Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import check_known
from dera_jax.models.registry import model_of

# They find different merges, splits of digits and spaces, and byte fallback.
_PROBES = ("they're 12345 of 67", "日本語 🙂🙂 café", "x != y  and\n\n  no.")
_LONGEST = 10_000  # more tokens than a probe has


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """Returns a checkpoint's tokenizer; raises ValueError if it does not say what its ids mean."""
    if checkpoint.no_vocabulary:
        raise ValueError(checkpoint.no_vocabulary)
    ends_prompts = model_of(checkpoint.config).ends_prompts
    return tokenizer(
        checkpoint.vocabulary, ends_prompts, checkpoint.where, checkpoint.chat_template
    )


def difference(own: Tokenizer, other: Tokenizer, name: str, other_name: str) -> str:
    """Returns why a model cannot read another's prompts and outputs as their ids; "" if it can.

    It can if all ids of the other have the same pieces, and the other's prompt, output and `ending`
    are together the conversation as the model's own chat template and tokenizer write it. This is
    computed for a few texts.

    Args:
        own: tokenizer of the model that reads.
        other: tokenizer of the model that writes.
        name, other_name: the models, for the result.
    """
    try:
        check_known(other.vocabulary, own.vocabulary, other_name, name)
    except ValueError as error:
        return str(error)
    if _source(own) != _source(other):
        return f"{name} and {other_name} have different chat templates"
    try:
        different = [text for text in _PROBES if not _reads(own, other, text)]
    except ValueError as error:
        return f"the chat template does not continue a prompt with its answer ({error})"
    if different:
        return (
            f"prompt and answer {different[0]!r} have other ids in the conversation of {name} than in a "
            f"prompt and an output of {other_name}"
        )
    return ""


def _source(text: Tokenizer) -> str | None:
    return text.chat_template and text.chat_template.source


def _reads(own: Tokenizer, other: Tokenizer, text: str) -> bool:
    """Return whether a prompt and an output of `other` are a conversation of `own`."""
    output = other.encode_completion(text)[:-1]  # without its end token
    written = [*other.encode_prompt(text, _LONGEST).ids, *output, *other.ending]
    return own.encode_conversation(text, text, _LONGEST).ids == written
