"""Finding whole words inside a compiled program, whatever the tokens they came as.

The bytes of a text's tokens are joined, read as UTF-8 and divided into words as in `segmentation`,
so every tokenization of a word counts, pieces of single bytes included, and "art" is not in
"artist". Bytes that are no UTF-8 divide words. Where a text was cut off, its last word may be the
start of one.

What differs from `segmentation.words_of`: a character that stands for several words, such as "½",
"℃" or "㍿", is one letter here (or none, if it is a symbol), where NFKC takes it apart. The
vocabularies of T5 and mT5 normalise their text by NFKC and have no such character.

Words are compared by hashes of 32 bits. Comparing U words with V others finds one that is not
there with a chance of about U·V / 2^32: one in 400,000 texts for 100 words and 100 others. (For
two words that differ in the order of their letters alone, the chance is up to 2^-26.)

Axes: T output length, V ids of a vocabulary, P bytes of a piece, N bytes of a text, M words of a
text, n documents, W keywords of a document, L bytes of a keyword, C code points.
"""

import functools
import unicodedata
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dera_jax.rewards import segmentation
from dera_jax.rewards.segmentation import ALONE, CONTINUES, DIVIDES, JOINS, words_of

_BASE = 0x01000193  # of the polynomial; 3 mod 8, so that order counts in most bits
_INVERSE = pow(_BASE, -1, 2**32)
_IGNORED = 0xFE0F  # a variation selector


@struct.dataclass
class WordTable:
    """What finding words needs to know of a vocabulary and of Unicode.

    Attributes:
        pieces: uint8 [V, P], the text of each id in UTF-8, 0 after it.
        sizes: int32 [V], its bytes.
        codes: uint32 [C], what each code point adds to its word's hash.
        traits: uint8 [C], its kind, as of `segmentation.kinds` once it is folded, and four times
            the number of characters, without accents, that it is folded to.
        words_per_piece: no piece begins more words.
    """

    pieces: Array
    sizes: Array
    codes: Array
    traits: Array
    words_per_piece: int = struct.field(pytree_node=False)


def word_table(pieces: Sequence[bytes]) -> WordTable:
    """The table of a vocabulary: pieces as of `Resources.pieces`.

    Raises:
        ValueError: no piece has text.
    """
    codes, traits = _characters()
    longest = max(map(len, pieces))
    if not longest:
        raise ValueError(
            f"words need a vocabulary with text; all of its {len(pieces)} ids have b''"
        )
    return WordTable(
        pieces=jnp.asarray(_rows(pieces, longest)),
        sizes=jnp.array([len(x) for x in pieces], jnp.int32),
        codes=jnp.asarray(codes),
        traits=jnp.asarray(traits),
        words_per_piece=max(1, *map(_most_words, pieces)),
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
    code, trait = _read_utf8(table, text)
    kind, number = trait & 3, trait >> 2
    word = _at_last_base(kind)
    in_word = word != DIVIDES
    # A word's hash is the sum of code·BASE^(place in the word) mod 2^32: the difference of two
    # running sums over the whole text, divided by BASE^(characters of the words before). Accents
    # share the place of their letter, so their order does not count.
    size = text.shape[-1]
    characters = jnp.cumsum(number * in_word, axis=-1)
    power = _powers(_BASE, 2 * size)[characters]  # no byte is folded to more than 2 characters
    sums = jnp.cumsum(code * in_word * power, axis=-1)
    following = _after(kind)
    divided = (following == DIVIDES) | (following == ALONE)
    last = in_word & (divided | ((following == JOINS) & (word == ALONE)))
    most = size // 2 + 1 if most is None else min(most, size // 2 + 1)
    pack = jnp.vectorize(functools.partial(_pack, most), signature="(n),(n)->(m)")
    characters, sums = pack(characters, last), pack(sums, last)
    inverse = _powers(_INVERSE, 2 * size)[_before(characters)]
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


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """`WordTable.codes` and `WordTable.traits`."""
    kinds = np.frombuffer(segmentation.kinds(), np.uint8).copy()
    mixed = _mix(np.arange(segmentation.CODE_POINTS, dtype=np.uint32))
    is_base = np.array([not unicodedata.combining(chr(x)) for x in range(len(kinds))])
    codes, bases = mixed.copy(), is_base.astype(np.uint8)
    for code, folded in segmentation.folds().items():
        if code >= len(kinds):
            continue  # `_read_utf8` knows these
        points = [ord(x) for x in folded]
        kinds[code] = kinds[points[0]] if points else CONTINUES
        places = np.cumsum(is_base[points], dtype=int)
        bases[code] = places[-1] if points else 0
        terms = (
            int(mixed[point]) * pow(_INVERSE, int(places[-1] - place), 2**32)
            for point, place in zip(points, places, strict=True)
        )
        codes[code] = sum(terms) % 2**32
    most = np.flatnonzero(kinds)[-1] + 1
    return codes[:most], (kinds + 4 * bases)[:most]


def _mix(x: np.ndarray) -> np.ndarray:
    """Murmur's fmix32 of uint32 [...]: one to one, and 0 at 0."""
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    return x ^ x >> 16


def _most_words(piece: bytes) -> int:
    """No fewer words than begin in a piece; bytes that are no character may each begin one."""
    text = piece.decode(errors="surrogateescape")
    broken = sum("\udc80" <= x <= "\udcff" for x in text)
    return broken + len(segmentation.written_words(text.translate(segmentation.folds())))


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


def _read_utf8(table: WordTable, text: Array) -> tuple[Array, Array]:
    """The code and the traits of the character that begins at each byte of text [..., N].

    Bytes within a character continue it: they have code 0.
    """
    byte = after = bits = text.astype(jnp.int32)
    point, complete = jnp.where(byte < 0x80, byte, 0), True
    for more in (1, 2, 3):  # bytes after the first: 110xxxxx 10xxxxxx, 1110xxxx 10xxxxxx ...
        after = _after(after)
        complete &= after >> 6 == 0b10
        bits = bits << 6 | after & 0x3F
        value = bits & 2 ** (5 * more + 6) - 1
        found = complete & (byte >> 6 - more == 2 ** (more + 2) - 2)
        point = jnp.where(found & (value >= (0x80, 0x800, 0x10000)[more - 1]), value, point)
    size = 1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000)
    within = jnp.zeros(text.shape, bool)
    for back in (2, 3, 4):
        size = _before(size)
        within |= size >= back
    point = jnp.where(point >> 12 == 0xE0, _IGNORED, point)  # as all of these are
    read = lambda column: column.at[point].get(mode="fill", fill_value=0)
    code, trait = read(table.codes), read(table.traits).astype(jnp.int32)
    return jnp.where(within, 0, code), jnp.where(within, CONTINUES, trait)


def _at_last_base(kind: Array) -> Array:
    """The kind of the last character up to each place of [..., N] that continues none, or 0."""
    place = 4 * jnp.arange(kind.shape[-1]) + kind
    return lax.cummax(jnp.where(kind == CONTINUES, 0, place), axis=kind.ndim - 1) & 3


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
