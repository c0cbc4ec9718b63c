"""Scores texts with a reward model that has its own tokenizer, between compiled rounds.

Axes: B documents at once, K completions of each, S prompt length, T length of the rest.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.conversations import tokenizer_of
from dera_jax.checkpoints.loading import load_params, value_head
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.log import warn_once
from dera_jax.models.heads import LAST, ValueHead, value_of_sequences
from dera_jax.models.language_model import Prompts, PyTree, pad_sequences
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.protocol import Resources

_SEQUENCES_AT_ONCE = 64
_SMALLEST_WIDTH = 16  # tokens


@dataclasses.dataclass(frozen=True)
class TextScorer:
    """Computes the scores of texts by a reward model, as the function of a `HostReward`.

    A model that reads whole conversations gets each completion as the answer to its document, in its
    own chat template. A model that was trained here gets prompts and completions as in its training.

    Attributes:
        folder: path or name of the reward model.
        max_length: maximum tokens of a document and its completion; a longer document is truncated,
            with a warning.

    Raises:
        ValueError: a field is not valid.
    """

    folder: str
    max_length: int

    def __post_init__(self):
        checks.check_fields(self, folder=checks.PATH, max_length=checks.integer(1))

    @functools.cached_property
    def model(self) -> ValueHead:
        """The architecture; raises as `loading.read_value_head`."""
        return value_head(open_checkpoint(self.folder), self.folder)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer; raises ValueError if the folder holds none."""
        return tokenizer_of(open_checkpoint(self.folder))

    @functools.cached_property
    def params(self) -> PyTree:
        """The parameters, read at first use.

        Raises:
            FileNotFoundError, ValueError: as in `loading.load_params`; or there are several
                processes, which would have to score the same texts.
        """
        if jax.process_count() > 1:
            raise ValueError(
                f"{self.folder} is a reward model that reads text, which is supported on one process; "
                f"found {jax.process_count()}. Use a reward model with the policy's tokenizer and chat "
                "template, or fewer processes"
            )
        vocabulary = self.tokenizer.vocabulary
        return load_params(self.folder, self.model.random, vocabulary, self.folder)

    def __call__(self, documents: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Returns the score of each text, the completion of the document at the same index.

        Raises:
            ValueError: a completion is longer than `max_length` tokens even without its document, or
                as in `params` and `ChatTemplate.parts`.
        """
        groups = [self._encoded(*group) for group in _by_document(documents, texts)]
        size = max(len(completions) for _, completions in groups)
        at_once = min(_SEQUENCES_AT_ONCE // size, len(groups))
        scores = []
        for start in range(0, len(groups), at_once):
            scores += self._scores(groups[start : start + at_once], at_once, size)
        return scores

    def _encoded(self, document: str, texts: list[str]) -> tuple[list[int], list[list[int]]]:
        """Return the ids of a prompt, and the ids that follow it in each sequence."""
        if self.model.pooling.kind == LAST:
            return _split([self._conversation(document, text) for text in texts])
        completions = [self.tokenizer.encode_completion(text) for text in texts]
        room = self.max_length - max(map(len, completions))
        if room < 1:
            raise ValueError(
                f"{self.folder}: a completion has {self.max_length - room} tokens, and with its document "
                f"it may have {self.max_length}; raise max_length"
            )
        prompt = self.tokenizer.encode_prompt(document, room)
        self._warn(prompt.cut)
        return prompt.ids, completions

    def _conversation(self, document: str, text: str) -> list[int]:
        """Return the ids of a conversation, up to the token at which the score is read."""
        found = self.tokenizer.encode_conversation(document, text, self.max_length)
        self._warn(found.cut)
        ids, padding = list(found.ids), self.model.pooling.padding_id
        while len(ids) > 1 and ids[-1] == padding:
            ids.pop()
        return ids

    def _warn(self, cut: int) -> None:
        if cut:
            warn_once(
                f"{self.folder}: documents are truncated for the reward model, the first by {cut} tokens, "
                f"so that a document and its completion have at most {self.max_length} tokens; raise "
                "max_length if the reward model was trained on longer ones",
                about=(self.folder, "truncated"),
            )

    def _scores(self, groups: list[tuple], at_once: int, size: int) -> list[float]:
        """Return the scores of all completions of at most B = `at_once` groups, K = `size` each."""
        padded = [*groups, *groups[:1] * (at_once - len(groups))]
        prompts = Prompts(*_padded([prompt for prompt, _ in padded]))
        rows = [row for _, rest in padded for row in [*rest, *rest[:1] * (size - len(rest))]]
        tokens, lengths = (x.reshape(at_once, size, *x.shape[1:]) for x in _padded(rows))
        found = np.asarray(_score(self.model, self.params, prompts, tokens, lengths))
        return [
            float(x)
            for row, (_, rest) in zip(found, groups, strict=False)
            for x in row[: len(rest)]
        ]


@dataclasses.dataclass(frozen=True, repr=False)
class TextRewardModel(HostReward):
    """Scores outputs by a reward model that reads their text, see `TextScorer`."""

    fn: TextScorer

    def forward_tokens(self, inputs: int, rows: int, tokens: int) -> int:
        """Counts the document once and each output, in tokens of the policy."""
        return inputs + rows * tokens

    def load(self, resources: Resources) -> PyTree:
        """Returns the parameters, so that they are read before the run and are a part of its records."""
        del resources
        return self.fn.params


_score = jax.jit(value_of_sequences, static_argnums=0)


def _by_document(documents: Sequence[str], texts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the documents with their texts; the order of all texts is kept."""
    groups = []
    pairs = zip(documents, texts, strict=True)
    for document, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        completions = [text for _, text in group]
        for start in range(0, len(completions), _SEQUENCES_AT_ONCE):
            groups.append((document, completions[start : start + _SEQUENCES_AT_ONCE]))
    return groups


def _split(sequences: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Return the common beginning of sequences, and the rest of each.

    A decoder computes the same for every such division, and the common part only once.
    """
    same = (len(set(ids)) == 1 for ids in zip(*sequences, strict=False))
    common = sum(itertools.takewhile(bool, same))
    return sequences[0][:common], [ids[common:] for ids in sequences]


def _padded(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad sequences to a power of two, so that few programs are compiled; return the lengths too."""
    longest = max(_SMALLEST_WIDTH, *map(len, sequences))
    return pad_sequences(sequences, 1 << (longest - 1).bit_length())
