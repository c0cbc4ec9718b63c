"""How a model reads and writes text: prompts and completions to ids, and ids to text.

Nothing else in the package adds a control token to a text or cuts one.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from dera_jax.checkpoints.vocabulary import Vocabulary, check_end
from dera_jax.prompts import Prompt


class EncodedPrompt(NamedTuple):
    """A prompt as a model reads it.

    Attributes:
        ids: with the control tokens around it.
        cut: how many tokens of the document were left out.
    """

    ids: list[int]
    cut: int


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, without TensorFlow; ids as from the seqio vocabulary of the same file.

    Control tokens that a text spells are ordinary characters: only this class adds them.

    Attributes:
        vocabulary: has an end token.
        ends_prompts: whether an end token follows a prompt, as the encoder of a T5 was trained; a
            decoder reads the begin token, if there is one, and the text, which it goes on with.
    """

    vocabulary: Vocabulary
    ends_prompts: bool = True

    @property
    def end_id(self) -> int:
        """The id of the end of sequence."""
        return self.vocabulary.end_id

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone, without control tokens."""
        return self.vocabulary.encode_text(text)

    def encode_prompt(self, prompt: Prompt | str, max_tokens: int) -> EncodedPrompt:
        """Ids of a prompt, at most `max_tokens`; what is too long is cut in its document.

        A template that is too long by itself is cut too, and then nothing of the document is left.
        """
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        begin, end = self.control_tokens
        room = max(max_tokens - len(begin) - len(end), 0)
        whole = self.encode(prompt.render())
        if len(whole) <= room:
            return EncodedPrompt([*begin, *whole, *end], 0)
        # A token that joins template and document counts as the document's.
        before, after = prompt.around
        start = _common(self.encode(before), whole)
        tail = self._encode_behind(prompt.document[-1:], after)
        stop = max(len(whole) - _common(tail[::-1], whole[::-1]), start)
        cut = min(len(whole) - room, stop - start)
        kept = whole[start + cut : stop] if prompt.keep_end else whole[start : stop - cut]
        ids = [*whole[:start], *kept, *whole[stop:]][:room]
        return EncodedPrompt([*begin, *ids, *end], cut)

    def _encode_behind(self, before: str, text: str) -> list[int]:
        """Ids of a text as it is encoded behind another: its first piece may differ from that of a text."""
        joined = self.encode(before + text)
        return joined[_common(self.encode(before), joined) :]

    def encode_completion(self, text: str) -> list[int]:
        """Ids of what a model should write, the end token included."""
        return [*self.encode(text), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids.

        Left out are ids that stand for no text: padding, the end of sequence, sentinels, and those
        that a table padded to a round size has beyond the vocabulary.
        """
        return self.vocabulary.decode(ids)

    @property
    def control_tokens(self) -> tuple[list[int], list[int]]:
        """Those before and after the text of a prompt."""
        if self.ends_prompts:
            return [], [self.end_id]
        begin = self.vocabulary.begin_id
        return [] if begin is None else [begin], []


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginnings."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return sum(itertools.takewhile(bool, same))


def tokenizer(
    vocabulary: Vocabulary | None, ends_prompts: bool = True, where: str = "this checkpoint"
) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        vocabulary: of a checkpoint.
        ends_prompts: see `Tokenizer`.
        where: the checkpoint, for the message.

    Raises:
        ValueError: the vocabulary is not known, or `check_end` fails.
    """
    if vocabulary is None:
        raise ValueError(
            f"{where} does not say what its ids mean: looked for were a tokenizer.json, a "
            "spiece.model and a vocabulary in config.json, and T5X's checkpoints hold none. Name it: "
            "VOCABULARY and EXTRA_IDS in a run, "
            "load(path, vocabulary=SentencePieceVocabulary('spiece.model', extra_ids=100)) in "
            "Python, or once for all python -m dera_jax.checkpoints.convert --vocabulary"
        )
    check_end(vocabulary, where)
    return Tokenizer(vocabulary, ends_prompts)
