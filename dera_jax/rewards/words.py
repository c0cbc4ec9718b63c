"""Rewards about whole words: keyword coverage, faithfulness to the document, number of words.

All work on token ids inside a compiled program, by `word_hashes`. `coverage`, `faithful_share` and
`words_within` measure the same outside a program, on text and exactly.

They are defined for every script, with the words of `segmentation`: in scripts without spaces
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character with its combining marks is a word.

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
    """The share of a document's keywords that a text has as whole words, whatever their case.

    A keyword of several words must occur as these words in a row, whatever separates them; so must
    the characters of a keyword in a script without spaces. A document without keywords asks for
    nothing: 1.

    Attributes:
        hard: 1 if the text has all keywords, else 0.
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
        """The vocabulary's table. Raises ValueError where it has no text."""
        return word_table(resources.pieces())

    def __call__(
        self, params: WordTable, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`. Raises ValueError where the task has no keywords."""
        if source.keywords is None:
            raise ValueError(
                "KeywordCoverage needs the keywords of each document, and this task has no field "
                "`keywords`: add it to the task, or choose another reward"
            )
        wanted = word_hashes(params, source.keywords)
        found = _occurs(text_hashes(params, tokens, lengths - finished), wanted)
        asked = (wanted[:, None, :, 0] != 0).astype(jnp.float32)
        missing = jnp.sum(asked * ~found, axis=-1)
        if self.hard:
            return (missing == 0).astype(jnp.float32)
        return 1 - missing / jnp.maximum(jnp.sum(asked, axis=-1), 1)


@dataclasses.dataclass(frozen=True)
class Faithfulness(Reward):
    """The share of a text's content words, numbers and identifiers that its document has.

    Content words are all but a list of English function words ("the", "of", "is" ...), so in
    another language its function words count too: `check_documents` warns. Each occurrence counts.
    The document is all of `Source.document`, also what the model's limit cuts off. A text without a
    content word scores 0.
    """

    @property
    def highest(self) -> float:
        return 1.0

    def check_documents(self, documents: Sequence[str]) -> None:
        """Warns if most letters are not Latin."""
        other = _fraction_of_letters(documents, lambda x: "LATIN" not in unicodedata.name(x, ""))
        if other > 0.5:
            warn_once(
                f"Faithfulness: {other:.0%} of the documents' letters are not Latin. It leaves out "
                "the function words of English only: in other languages function words count as "
                "content words, and in scripts without spaces single characters are compared."
            )

    def load(self, resources: Resources) -> PyTree:
        """The vocabulary's table, and the function words' hashes, uint32 [F], in order.

        Raises:
            ValueError: the vocabulary has no text.
        """
        table = word_table(resources.pieces())
        words = keyword_bytes([sorted(_FUNCTION_WORDS)])[0]
        return {"table": table, "function_words": jnp.sort(word_hashes(table, words)[:, 0])}

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`."""
        given = source.document_for(self)
        document = text_hashes(params["table"], jnp.asarray(given.tokens), given.lengths)
        words = text_hashes(params["table"], tokens, lengths - finished)
        content = (words != 0) & ~_contains(params["function_words"], words)
        known = content & jax.vmap(_contains)(jnp.sort(document, axis=-1), words)
        return jnp.sum(known, axis=-1) / jnp.maximum(jnp.sum(content, axis=-1), 1)


@dataclasses.dataclass(frozen=True)
class WordsInRange(Reward):
    """Minus the number of words that a text has more than `high` or fewer than `low`; 0 in range.

    "At most n words" and "at least n words" are the length constraints of Huang et al. 2024 (arXiv
    2402.06147). A text cut off by the length limit counts the words it has, the start of one
    included. In scripts without spaces characters are counted: `check_documents` warns.

    Attributes:
        low: at least so many words.
        high: at most so many; None for no upper limit.

    Raises:
        ValueError: not 0 <= low <= high, or no limit at all.
    """

    low: int = 0
    high: int | None = None

    def __post_init__(self):
        checks.check_fields(self, low=checks.whole(0), high=checks.optional(checks.whole(0)))
        if self.high is not None and self.low > self.high:
            raise ValueError(
                "WordsInRange needs 0 <= low <= high, or None as high; found low "
                f"{self.low}, high {self.high}."
            )
        if self.low == 0 and self.high is None:
            raise ValueError(
                "WordsInRange has no limit, so every text would score 0; set low (AT_LEAST), high "
                "(AT_MOST) or both."
            )

    @property
    def min_limit(self) -> int:
        """Room for a word and the end token; more is not sure, as a token may begin many words."""
        return 2

    @property
    def highest(self) -> float:
        return 0.0

    def check_documents(self, documents: Sequence[str]) -> None:
        """Warns if most letters are of scripts without spaces."""
        unspaced = _fraction_of_letters(documents, is_unspaced)
        if unspaced > 0.5:
            warn_once(
                f"WordsInRange: {unspaced:.0%} of the documents' letters are of scripts that are "
                "written without spaces, where it counts characters, not words."
            )

    def load(self, resources: Resources) -> WordTable:
        """The vocabulary's table. Raises ValueError where it has no text."""
        return word_table(resources.pieces())

    def __call__(
        self, params: WordTable, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`."""
        del source
        words = jnp.sum(text_hashes(params, tokens, lengths - finished) != 0, axis=-1)
        missed = jnp.maximum(self.low - words, 0)
        if self.high is not None:
            missed += jnp.maximum(words - self.high, 0)
        return (-missed).astype(jnp.float32)


def check_fit(keywords: np.ndarray, encode: Callable[[str], list[int]], max_length: int) -> None:
    """Refuses a length limit into which the words of a document's keywords do not fit.

    What is measured is a text of nothing but these words, each once and as it was first written.

    Args:
        keywords: uint8 [n, W, L], as in `Source.keywords`.
        encode: token ids of a text, without the end token.
        max_length: tokens of an output, the end token included.

    Raises:
        ValueError: the words of a document's keywords take more than max_length - 1 tokens.
    """
    for document, rows in enumerate(keywords):
        texts = [bytes(row).rstrip(b"\0").decode() for row in rows if row.any()]
        needed = len(encode(_distinct_words(texts)))
        if needed > max_length - 1:
            raise ValueError(
                f"the keywords {texts} of document {document} take {needed} tokens and the end "
                f"token, and an output has {max_length}; raise MAX_LENGTH to at least "
                f"{needed + 1}, or leave the document out"
            )


def coverage(text: str, keywords: Sequence[str]) -> float:
    """`KeywordCoverage` of a text, exactly."""
    spaced = lambda x: f" {' '.join(words_of(x))} "
    asked = [spaced(x) for x in keywords if words_of(x)]
    return float(np.mean([x in spaced(text) for x in asked])) if asked else 1.0


def faithful_share(text: str, document: str) -> float:
    """`Faithfulness` of a text, exactly."""
    known = set(words_of(document))
    content = [x for x in words_of(text) if x not in _FUNCTION_WORDS]
    return float(np.mean([x in known for x in content])) if content else 0.0


def words_within(text: str, low: int = 0, high: int | None = None) -> bool:
    """Whether `WordsInRange` of a text is 0, exactly."""
    return low <= len(words_of(text)) <= (math.inf if high is None else high)


def _distinct_words(texts: Sequence[str]) -> str:
    """The words of texts in order, without those that were there before in any case."""
    first = {}
    for word in written_words(" ".join(texts)):
        first.setdefault(tuple(words_of(word)), word)
    joined, unspaced = "", True
    for word in first.values():
        before, unspaced = unspaced, is_unspaced(word[0])
        joined += word if before or unspaced else f" {word}"
    return joined


def _fraction_of_letters(texts: Sequence[str], chosen: Callable[[str], bool]) -> float:
    """The fraction of the letters of the first 1,000 texts that are chosen; 0 if they have none."""
    letters = [(x, n) for x, n in Counter("".join(texts[:1000])).items() if x.isalpha()]
    total = sum(n for _, n in letters)
    return sum(n for x, n in letters if chosen(x)) / max(total, 1)


@jax.jit
def _occurs(words: Array, wanted: Array) -> Array:
    """Whether the words of each of wanted [B, W, Q] stand in a row in words [B, K, M]: [B, K, W]."""
    size = words.shape[-1]
    padded = jnp.pad(words, ((0, 0), (0, 0), (0, wanted.shape[-1])))

    def and_next(i, match):
        here = lax.dynamic_slice_in_dim(padded, i, size, axis=-1)[:, :, None]
        word = lax.dynamic_index_in_dim(wanted, i, axis=-1)[:, None]
        return match & ((word == 0) | (here == word))

    longest = jnp.max(jnp.sum(wanted != 0, axis=-1))  # most have few words, whatever Q has room for
    match = jnp.ones((*words.shape[:2], wanted.shape[1], size), bool)
    return jnp.any(lax.fori_loop(0, longest, and_next, match), axis=-1)


@jax.jit
def _contains(ordered: Array, values: Array) -> Array:
    """Whether each value is in ordered [F]."""
    place = jnp.searchsorted(ordered, values)
    return ordered.at[place].get(mode="fill", fill_value=0) == values
