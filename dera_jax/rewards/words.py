"""Defines rewards on whole words: keyword coverage, faithfulness to the document, number of words.

All rewards read token ids inside a compiled program and compare words by hashes (`word_hashes`).
`coverage`, `faithful_fraction` and `words_within` compute the same exactly, on text in Python.

The rewards are defined for every script, with the words of `segmentation`. In scripts without
spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character with its combining marks is a
word.

Axes: B inputs, K hypotheses of each input, T output length, M words of a text, n documents, W
keywords of a document, L bytes of a keyword, Q words of a keyword, F function words.
"""

import dataclasses
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dera_jax import checks
from dera_jax.log import warn_once
from dera_jax.models.language_model import PyTree
from dera_jax.rewards.protocol import Resources, Reward, Source
from dera_jax.rewards.segmentation import is_unspaced, words_of, written_words
from dera_jax.rewards.word_hashes import (
    WordTable,
    keyword_bytes,
    text_hashes,
    word_hashes,
    word_table,
)

_ENGLISH = """
a about above after again against all also although am an and another any are aren around as at be
became because become been before being below between both but by can cannot could couldn d
despite did didn do does doesn doing don done down during each either else ever every few for from
further had hadn has hasn have haven having he hence her here hers herself him himself his how
however i if in into is isn it its itself just ll m many may me might more most much must my
myself neither no nor not of off on once one only onto or other others our ours ourselves out over
own per rather re s same shall she should shouldn since so some such t than that the their theirs
them themselves then there therefore these they this those though through thus to too toward
towards under until up upon us ve very via was wasn we were weren what when where whether which
while who whom whose why will with within without won would wouldn yet you your yours yourself
yourselves
"""
_FUNCTION_WORDS = frozenset(_ENGLISH.split())


@dataclasses.dataclass(frozen=True)
class KeywordCoverage(Reward):
    """Scores the fraction of a document's keywords that an output contains as whole words.

    Case is ignored. A keyword of several words must occur as consecutive words, with any
    separators. The same holds for the characters of a keyword in a script without spaces. A
    document without keywords gives the reward 1.

    Attributes:
        hard: if True, the reward is 1 for an output with all keywords, else 0.
    """

    hard: bool = False

    def __post_init__(self):
        checks.check_fields(self, hard=checks.FLAG)

    @property
    def highest(self) -> float:
        return 1.0

    @property
    def about_keywords(self) -> bool:
        return True

    def load(self, resources: Resources) -> WordTable:
        """Returns the vocabulary's table; raises ValueError if the vocabulary has no text."""
        return word_table(resources.pieces())

    def __call__(
        self, params: WordTable, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Implements `protocol.Reward`; raises ValueError if the task has no keywords."""
        if source.keywords is None:
            raise ValueError(
                "KeywordCoverage needs keywords, and the documents have none: add the field `keywords` to the task, the "
                "column of a file or the key of a dict, or choose another reward"
            )
        keywords = word_hashes(params, source.keywords)
        covered = _occurs(text_hashes(params, tokens, lengths - finished), keywords)
        is_keyword = (keywords[:, None, :, 0] != 0).astype(jnp.float32)
        missing = jnp.sum(is_keyword * ~covered, axis=-1)
        if self.hard:
            return (missing == 0).astype(jnp.float32)
        return 1 - missing / jnp.maximum(jnp.sum(is_keyword, axis=-1), 1)


@dataclasses.dataclass(frozen=True)
class Faithfulness(Reward):
    """Scores the fraction of an output's content words and numbers that occur in its document.

    Content words are all words except a list of English function words ("the", "of", "is" ...). In
    other languages function words are counted too, of which `check_documents` warns. Each
    occurrence counts. The document is `Source.document`, including what exceeds the model's input
    limit. An output without content words scores 0.
    """

    @property
    def highest(self) -> float:
        return 1.0

    def check_documents(self, documents: Sequence[str]) -> None:
        """Logs a warning if more than half of the letters are not Latin."""
        other = _fraction_of_letters(documents, lambda x: "LATIN" not in unicodedata.name(x, ""))
        if other > 0.5:
            warn_once(
                f"Faithfulness: {other:.0%} of the documents' letters are not Latin. The reward "
                "excludes only English function words: in other languages function words count as "
                "content words, and in scripts without spaces single characters are compared."
            )

    def load(self, resources: Resources) -> PyTree:
        """Returns the vocabulary's table and the sorted hashes of function words, uint32 [F].

        Raises:
            ValueError: the vocabulary has no text.
        """
        table = word_table(resources.pieces())
        words = keyword_bytes([sorted(_FUNCTION_WORDS)])[0]
        return {"table": table, "function_words": jnp.sort(word_hashes(table, words)[:, 0])}

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Implements `protocol.Reward`."""
        document = source.document_for(self)
        source_words = text_hashes(params["table"], jnp.asarray(document.tokens), document.lengths)
        words = text_hashes(params["table"], tokens, lengths - finished)
        content = (words != 0) & ~_contains(params["function_words"], words)
        faithful = content & jax.vmap(_contains)(jnp.sort(source_words, axis=-1), words)
        return jnp.sum(faithful, axis=-1) / jnp.maximum(jnp.sum(content, axis=-1), 1)


@dataclasses.dataclass(frozen=True)
class WordsInRange(Reward):
    """Scores minus the number of words above `high` or below `low`; 0 for an output in range.

    "At most n words" and "at least n words" are the length constraints of Huang et al. 2024 (arXiv
    2402.06147). An output that the length limit truncated is scored by the words it has, including
    an incomplete last word. In scripts without spaces characters are counted, of which
    `check_documents` warns.

    Attributes:
        low: minimum number of words.
        high: maximum number of words; None for no maximum.
        hard: if True, the reward is -1 for an output that is not in range or that the length limit
            truncated, else 0.

    Raises:
        ValueError: 0 <= low <= high does not hold, or neither limit is set.
    """

    low: int = 0
    high: int | None = None
    hard: bool = False

    def __post_init__(self):
        high = checks.optional(checks.integer(0))
        checks.check_fields(self, low=checks.integer(0), high=high, hard=checks.FLAG)
        if self.high is not None and self.low > self.high:
            raise ValueError(
                "WordsInRange needs 0 <= low <= high, or None as high; found low "
                f"{self.low}, high {self.high}."
            )
        if self.low == 0 and self.high is None:
            raise ValueError(
                "WordsInRange has no limit, so every output would score 0; set low (AT_LEAST), "
                "high (AT_MOST) or both."
            )

    @property
    def min_limit(self) -> int:
        """Leaves room for one token, which may contain several words, and the end token."""
        return 2

    @property
    def highest(self) -> float:
        return 0.0

    def text_metrics(self, text: str, finished: bool) -> dict[str, bool]:
        return {"in_range": finished and words_within(text, self.low, self.high)}

    def check_documents(self, documents: Sequence[str]) -> None:
        """Logs a warning if more than half of the letters belong to scripts without spaces."""
        unspaced = _fraction_of_letters(documents, is_unspaced)
        if unspaced > 0.5:
            warn_once(
                f"WordsInRange: {unspaced:.0%} of the documents' letters belong to scripts that "
                "are written without spaces, where the reward counts characters, not words."
            )

    def load(self, resources: Resources) -> WordTable:
        """Returns the vocabulary's table; raises ValueError if it has no text."""
        return word_table(resources.pieces())

    def __call__(
        self, params: WordTable, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Implements `protocol.Reward`."""
        del source
        words = jnp.sum(text_hashes(params, tokens, lengths - finished) != 0, axis=-1)
        distance = jnp.maximum(self.low - words, 0)
        if self.high is not None:
            distance += jnp.maximum(words - self.high, 0)
        if self.hard:
            return jnp.where(finished & (distance == 0), 0.0, -1.0)
        return (-distance).astype(jnp.float32)


def check_fit(keywords: np.ndarray, encode: Callable[[str], list[int]], max_length: int) -> None:
    """Checks that an output within the length limit can contain all keywords of its document.

    The output that is measured consists of the distinct words of the keywords only, each as it is
    first written.

    Args:
        keywords: uint8 [n, W, L], as in `Source.keywords`.
        encode: returns the token ids of a text, without the end token.
        max_length: maximum tokens of an output, the end token included.

    Raises:
        ValueError: the words of a document's keywords take more than max_length - 1 tokens.
    """
    for document, encoded in enumerate(keywords):
        texts = [bytes(keyword).rstrip(b"\0").decode() for keyword in encoded if keyword.any()]
        needed = len(encode(_distinct_words(texts)))
        if needed > max_length - 1:
            raise ValueError(
                f"the keywords {texts} of document {document} take {needed} tokens and the end "
                f"token, but the length limit of outputs is {max_length}; raise MAX_LENGTH to at "
                f"least {needed + 1}, or leave the document out"
            )


def coverage(text: str, keywords: Sequence[str]) -> float:
    """Computes `KeywordCoverage` of an output text exactly, without hashes."""
    spaced = lambda x: f" {' '.join(words_of(x))} "
    phrases = [spaced(x) for x in keywords if words_of(x)]
    return float(np.mean([x in spaced(text) for x in phrases])) if phrases else 1.0


def faithful_fraction(text: str, document: str) -> float:
    """Computes `Faithfulness` of an output text exactly, without hashes."""
    document_words = set(words_of(document))
    content = [x for x in words_of(text) if x not in _FUNCTION_WORDS]
    return float(np.mean([x in document_words for x in content])) if content else 0.0


def words_within(text: str, low: int = 0, high: int | None = None) -> bool:
    """Returns whether `WordsInRange` of an output text is 0, exactly, without hashes."""
    return low <= len(words_of(text)) <= (math.inf if high is None else high)


def _distinct_words(texts: Sequence[str]) -> str:
    """Joins the words of texts in order, each once; words that differ in case only are equal."""
    first = {}
    for word in written_words(" ".join(texts)):
        first.setdefault(tuple(words_of(word)), word)
    joined, unspaced = "", True
    for word in first.values():
        before, unspaced = unspaced, is_unspaced(word[0])
        joined += word if before or unspaced else f" {word}"
    return joined


def _fraction_of_letters(texts: Sequence[str], chosen: Callable[[str], bool]) -> float:
    """Returns the fraction of letters in the first 1,000 texts that are chosen; 0 without any."""
    letters = [(x, n) for x, n in Counter("".join(texts[:1000])).items() if x.isalpha()]
    total = sum(n for _, n in letters)
    return sum(n for x, n in letters if chosen(x)) / max(total, 1)


@jax.jit
def _occurs(words: Array, keywords: Array) -> Array:
    """Returns whether keywords [B, W, Q] occur consecutively in words [B, K, M]: bool [B, K, W]."""
    size = words.shape[-1]
    padded = jnp.pad(words, ((0, 0), (0, 0), (0, keywords.shape[-1])))

    def and_next(i, match):
        shifted = lax.dynamic_slice_in_dim(padded, i, size, axis=-1)[:, :, None]
        word = lax.dynamic_index_in_dim(keywords, i, axis=-1)[:, None]
        return match & ((word == 0) | (shifted == word))

    longest = jnp.max(jnp.sum(keywords != 0, axis=-1))  # usually much less than Q
    match = jnp.ones((*words.shape[:2], keywords.shape[1], size), bool)
    return jnp.any(lax.fori_loop(0, longest, and_next, match), axis=-1)


@jax.jit
def _contains(ordered: Array, values: Array) -> Array:
    """Returns whether each value is in `ordered`, which is sorted; of the shape of values."""
    index = jnp.searchsorted(ordered, values)
    return ordered.at[index].get(mode="fill", fill_value=0) == values
