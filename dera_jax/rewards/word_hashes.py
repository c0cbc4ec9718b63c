r"""Finding whole words inside a compiled program, whatever the tokens they came as.

The bytes of a text's tokens are joined, read as UTF-8 and case-folded. A word is a maximal run of
word characters: those of `\w` in Python's `re`, letters and digits of any script and "_". So every
tokenization of a word counts, pieces of single bytes included, and "art" is not in "artist". Bytes
that are no UTF-8 separate words. Where a text was cut off, its last word may be the start of one.

Words are compared by hashes of 32 bits. Comparing U words with V others finds one that is not
there with a chance of about U·V / 2^32: one in 400,000 texts for 100 words and 100 others. (For
two words that differ in the order of their letters alone, the chance is up to 2^-26.)

Axes: T output length, V ids of a vocabulary, P bytes of a piece, N bytes of a text, M words of a
text, n documents, W keywords of a document, L bytes of a keyword, C code points.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

_BASE = 0x01000193  # of the polynomial; 3 mod 8, so that order counts in most bits
_CODE_POINTS = 0x40000  # Unicode has no word character at or above it


@struct.dataclass
class WordTable:
    """What finding words needs to know of a vocabulary and of Unicode.

    Attributes:
        pieces: uint8 [V, P], the text of each id in UTF-8, 0 after it; none for id 0, padding.
        sizes: int32 [V], its bytes.
        codes: uint32 [C], a mixed number of each code point's case folding; 0 if no word character.
        words_per_piece: no piece begins more words.
    """

    pieces: Array
    sizes: Array
    codes: Array
    words_per_piece: int = struct.field(pytree_node=False)


def word_table(pieces: Sequence[bytes]) -> WordTable:
    """The table of a vocabulary: pieces as of `Resources.pieces`.

    Raises:
        ValueError: no piece has text.
    """
    texts = [b"", *pieces[1:]]
    longest = max(map(len, texts))
    if not longest:
        raise ValueError(
            f"words need a vocabulary with text; all of its {len(pieces)} ids have b''"
        )
    return WordTable(
        pieces=jnp.asarray(_rows(texts, longest)),
        sizes=jnp.array([len(x) for x in texts], jnp.int32),
        codes=jnp.asarray(_codes()),
        words_per_piece=max(1, *map(_most_words, texts)),
    )


@jax.jit
def text_hashes(table: WordTable, tokens: Array, lengths: Array) -> Array:
    """The words of token ids [..., T], of which lengths [...] count: uint32 [..., M].

    As of `word_hashes`, with M the most words that T tokens can begin.
    """
    join = jnp.vectorize(functools.partial(_join_pieces, table), signature="(t),()->(n)")
    text = join(tokens, lengths)
    return word_hashes(table, text, tokens.shape[-1] * table.words_per_piece)


@functools.partial(jax.jit, static_argnames="most")
def word_hashes(table: WordTable, text: Array, most: int | None = None) -> Array:
    """The hashes of a text's words in order, then 0: uint32 [..., M]. No word's hash is 0.

    Args:
        table: of any vocabulary; its pieces are not used.
        text: uint8 [..., N], UTF-8; bytes 0 after it.
        most: the text has no more words; M = N // 2 + 1, or `most` if that is less.
    """
    codes, in_word = _read_utf8(table.codes, text)
    # A word's hash is the sum of code·BASE^(place in the word) mod 2^32: the difference of two
    # running sums over the whole text, divided by BASE^(word characters before the word).
    characters = jnp.cumsum(codes != 0, axis=-1)
    sums = jnp.cumsum(codes * _powers(_BASE, text.shape[-1])[characters], axis=-1)
    last = in_word & ~_after(in_word)
    most = text.shape[-1] // 2 + 1 if most is None else min(most, text.shape[-1] // 2 + 1)
    pack = jnp.vectorize(functools.partial(_pack, most), signature="(n),(n)->(m)")
    characters, sums = pack(characters, last), pack(sums, last)
    inverse = _powers(pow(_BASE, -1, 2**32), text.shape[-1])[_before(characters)]
    return jnp.where(characters != 0, jnp.maximum((sums - _before(sums)) * inverse, 1), 0)


def keyword_bytes(lists: Sequence[Sequence[str]]) -> np.ndarray:
    """`Source.keywords` of documents' keywords: uint8 [n, W, L], W and L the most there are, or 1.

    Raises:
        ValueError: a keyword without a word character.
    """
    texts = [[unicodedata.normalize("NFKC", x) for x in keywords] for keywords in lists]
    for document, keywords in enumerate(texts):
        for keyword, given in zip(keywords, lists[document], strict=True):
            if not words_of(keyword):
                raise ValueError(
                    f"keyword {given!r} of document {document} has no letter or digit, so no text "
                    "can have it; leave it out of the task's keywords"
                )
    most = max([1, *map(len, texts)])
    encoded = [x.encode() for keywords in texts for x in keywords + [""] * (most - len(keywords))]
    rows = _rows(encoded, max([1, *map(len, encoded)]))
    return rows.reshape(len(lists), most, rows.shape[-1])


def words_of(text: str) -> list[str]:
    """The words of a text, exactly; NFKC-normalised, which a program's are not."""
    return re.findall(r"\w+", _fold(unicodedata.normalize("NFKC", text)))


def _fold(text: str) -> str:
    """Case folding, only where it is one character for one."""
    options = ((x.casefold(), x.lower(), x) for x in text)
    return "".join(next(y for y in option if len(y) == 1) for option in options)


@functools.cache
def _codes() -> np.ndarray:
    """`WordTable.codes`: murmur's fmix32 of the folding. Not 0 for what is not 0: it is 1 to 1."""
    folded = _fold("".join(map(chr, range(_CODE_POINTS))))
    x = np.array([ord(c) if re.match(r"\w", c) else 0 for c in folded], np.uint32)
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    x = x ^ x >> 16
    return x[: np.flatnonzero(x)[-1] + 1]


def _most_words(piece: bytes) -> int:
    """No fewer words than begin in a piece; bytes that are no character may each begin one."""
    text = _fold(piece.decode(errors="surrogateescape"))
    return len(re.findall("[\udc80-\udcff]|\\w+", text))


def _rows(texts: Sequence[bytes], size: int) -> np.ndarray:
    """uint8 [len(texts), size], 0 after each."""
    joined = b"".join(x.ljust(size, b"\0") for x in texts)
    return np.frombuffer(joined, np.uint8).reshape(len(texts), size)


def _join_pieces(table: WordTable, tokens: Array, length: Array) -> Array:
    """uint8 [T·P], then 0: the text of the first `length` of tokens [T]. Ids from V on have none."""
    kept = jnp.arange(tokens.shape[0]) < length
    sizes = kept * table.sizes.at[tokens].get(mode="fill", fill_value=0)
    pieces = table.pieces.at[tokens].get(mode="fill", fill_value=0)
    column = jnp.arange(pieces.shape[1])
    place = (jnp.cumsum(sizes) - sizes)[:, None] + column
    place = jnp.where(column < sizes[:, None], place, pieces.size)
    return jnp.zeros(pieces.size, jnp.uint8).at[place].set(pieces, mode="drop")


def _read_utf8(codes: Array, text: Array) -> tuple[Array, Array]:
    """The code of the word character that begins at each byte, or 0; which bytes are of one."""
    byte = after = bits = text.astype(jnp.int32)
    point, complete = jnp.where(byte < 0x80, byte, 0), True
    for more in (1, 2, 3):  # bytes after the first: 110xxxxx 10xxxxxx, 1110xxxx 10xxxxxx ...
        after = _after(after)
        complete &= after >> 6 == 0b10
        bits = bits << 6 | after & 0x3F
        value = bits & 2 ** (5 * more + 6) - 1
        found = complete & (byte >> 6 - more == 2 ** (more + 2) - 2)
        point = jnp.where(found & (value >= (0x80, 0x800, 0x10000)[more - 1]), value, point)
    code = codes.at[point].get(mode="fill", fill_value=0)
    size = (code != 0) * (1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000))
    in_word = size >= 1
    for back in (2, 3, 4):
        size = _before(size)
        in_word |= size >= back
    return code, in_word


def _powers(base: int, most: int) -> Array:
    """base^0 to base^most, mod 2^32: uint32 [most + 1]."""
    return jnp.asarray(np.cumprod([1] + [base] * most, dtype=np.uint32))


def _after(x: Array) -> Array:
    """What stands one place later, 0 at the end."""
    return jnp.concatenate([x[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1)


def _before(x: Array) -> Array:
    """What stands one place earlier, 0 at the start."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def _pack(most: int, values: Array, chosen: Array) -> Array:
    """The chosen of values [N] in order, then 0: [most]."""
    place = jnp.where(chosen, jnp.cumsum(chosen) - 1, most)
    return jnp.zeros(most, values.dtype).at[place].set(values, mode="drop")
