"""Texts as bytes: byte b of a text has the id b + 3, and 1 ends it."""

from importlib import resources

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.data.examples import Examples

ASSETS = resources.files("dera_jax") / "assets"

BYTES = Tokenizer(ByteVocabulary())
SHIPPED = Tokenizer(SentencePieceVocabulary(f"{ASSETS}/docstrings.model", extra_ids=96))


def read(task: str, split: str, inputs: int, targets: int, seed: int = 0) -> Examples:
    """The examples of a task as a model of bytes reads them."""
    return task_data.epoch(task, split, BYTES, Sizes(inputs, targets), seed)


def asked(examples: Examples) -> list[str]:
    """Prompts with their documents, uncut."""
    return [prompt.render() for prompt in examples.text_prompts]


def plain_ids(sequences) -> list[list[int]]:
    """The ids of padded sequences, without what pads them."""
    return [x[:n].tolist() for x, n in zip(sequences.tokens, sequences.lengths, strict=True)]
