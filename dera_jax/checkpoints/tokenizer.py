"""Converts prompts and completions to token ids, and token ids to text.

No other module adds control tokens to a sequence or truncates a prompt.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from dera_jax.checkpoints.vocabulary import Vocabulary, check_end
from dera_jax.prompts import Prompt


class EncodedPrompt(NamedTuple):
    """The token ids of a prompt.

    Attributes:
        ids: token ids, including the control tokens before and after the text.
        cut: number of tokens by which the document was truncated.
    """

    ids: list[int]
    cut: int


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes and decodes text, with the same ids as seqio for the same file but no TensorFlow.

    Control tokens that a text spells are encoded as ordinary characters; only this class adds
    control tokens.

    Attributes:
        vocabulary: a vocabulary with an end token.
        ends_prompts: whether an end token follows a prompt, as T5 encoders were trained. A prompt
            of a decoder-only model begins with the begin token, if any, and has no end token.
    """

    vocabulary: Vocabulary
    ends_prompts: bool = True

    @property
    def end_id(self) -> int:
        """The end-of-sequence id."""
        return self.vocabulary.end_id

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without control tokens."""
        return self.vocabulary.encode_text(text)

    def encode_prompt(self, prompt: Prompt | str, max_tokens: int) -> EncodedPrompt:
        """Returns at most `max_tokens` ids of a prompt; a longer prompt's document is truncated.

        If the template alone is too long, the document is dropped and the template is truncated.
        """
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        begin, end = self.control_tokens
        budget = max(max_tokens - len(begin) - len(end), 0)
        whole = self.encode(prompt.render())
        if len(whole) <= budget:
            return EncodedPrompt([*begin, *whole, *end], 0)
        # A token that spans template and document belongs to the document.
        before, after = prompt.around
        start = _common(self.encode(before), whole)
        tail = self._encode_behind(prompt.document[-1:], after)
        stop = max(len(whole) - _common(tail[::-1], whole[::-1]), start)
        cut = min(len(whole) - budget, stop - start)
        kept = whole[start + cut : stop] if prompt.keep_end else whole[start : stop - cut]
        ids = [*whole[:start], *kept, *whole[stop:]][:budget]
        return EncodedPrompt([*begin, *ids, *end], cut)

    def _encode_behind(self, before: str, text: str) -> list[int]:
        """Return the ids of `text` after `before`, which may differ from those of `text` alone."""
        joined = self.encode(before + text)
        return joined[_common(self.encode(before), joined) :]

    def encode_completion(self, text: str) -> list[int]:
        """Returns the ids of a target completion, including the end token."""
        return [*self.encode(text), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids.

        Ids without text are skipped: padding, begin and end of sequence, sentinels, and ids of a
        padded embedding table beyond the vocabulary.
        """
        return self.vocabulary.decode(ids)

    @property
    def control_tokens(self) -> tuple[list[int], list[int]]:
        """The control token ids before and after the text of a prompt."""
        if self.ends_prompts:
            return [], [self.end_id]
        begin = self.vocabulary.begin_id
        return [] if begin is None else [begin], []


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return sum(itertools.takewhile(bool, same))


def tokenizer(
    vocabulary: Vocabulary | None, ends_prompts: bool = True, where: str = "this checkpoint"
) -> Tokenizer:
    """Returns the tokenizer for a model's vocabulary.

    Args:
        vocabulary: vocabulary of the model; None if it is not known.
        ends_prompts: see `Tokenizer`.
        where: the checkpoint, for error messages.

    Raises:
        ValueError: the vocabulary is None or has no end token.
    """
    if vocabulary is None:
        raise ValueError(
            f"{where} does not say what its ids mean: it has no tokenizer.json, no spiece.model and no "
            "vocabulary in config.json (T5X checkpoints never have one). Name it: "
            "VOCABULARY and EXTRA_IDS in a run, "
            "load(path, vocabulary=SentencePieceVocabulary('spiece.model', extra_ids=100)) in "
            "Python, or once for all python -m dera_jax.checkpoints.convert --vocabulary"
        )
    check_end(vocabulary, where)
    return Tokenizer(vocabulary, ends_prompts)
