"""Finds whole words inside a compiled program, independently of how they are tokenized.

The bytes of a sequence's tokens are joined, decoded as UTF-8 and split into words as in
`segmentation`. Every tokenization of a word therefore counts, byte pieces included, and "artist"
does not contain the word "art". Invalid UTF-8 separates words. The last word of a truncated output
may be incomplete.

Words differ from those of `segmentation.words_of` for characters that stand for several words, such
as "½", "℃" or "㍿": here such a character is one letter (or none, if it is a symbol), while NFKC
decomposes it. The vocabularies of T5 and mT5 normalise text by NFKC and have no such character.

Words are compared by 32-bit hashes. Comparing U words with V other words gives a false match with
probability of about U·V / 2^32, which is one in 400,000 texts for 100 words and 100 others. For two
words that differ only in the order of their letters, the probability is up to 2^-26.

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

_BASE = 0x01000193  # base of the polynomial hash; 3 mod 8, so that order affects most bits
_INVERSE = pow(_BASE, -1, 2**32)
_IGNORED = 0xFE0F  # a variation selector, as an example of a character that is ignored


@struct.dataclass
class WordTable:
    """Holds the tables of a vocabulary and of Unicode that word finding reads.

    Attributes:
        pieces: uint8 [V, P], the UTF-8 text of each id, padded with 0.
        sizes: int32 [V], bytes of each id's text.
        codes: uint32 [C], the contribution of each code point to its word's hash.
        traits: uint8 [C], the kind of the folded code point, as in `segmentation.character_kinds`, plus four
            times the number of characters, without accents, to which it is folded.
        words_per_piece: maximum number of words that begin in one piece.
    """

    pieces: Array
    sizes: Array
    codes: Array
    traits: Array
    words_per_piece: int = struct.field(pytree_node=False)


def word_table(pieces: Sequence[bytes]) -> WordTable:
    """Builds the table of a vocabulary from its pieces, as returned by `Resources.pieces`.

    Raises:
        ValueError: no piece has text.
    """
    codes, traits = _characters()
    longest = max(map(len, pieces))
    if not longest:
        raise ValueError(
            "word rewards need a vocabulary with the text of its ids, but all of its "
            f"{len(pieces)} ids have b''; choose another reward, or a model with a tokenizer"
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
    """Returns the word hashes of sequences, uint32 [..., M], as `word_hashes` does.

    Args:
        table: of the vocabulary of `tokens`.
        tokens: int32 [..., T].
        lengths: int32 [...], tokens of each sequence to read. M is at most the number of words that
            can begin in T tokens.
    """
    join = jnp.vectorize(functools.partial(_join_pieces, table), signature="(t),()->(n)")
    text = join(tokens, lengths)
    return word_hashes(table, text, tokens.shape[-1] * table.words_per_piece)


@functools.partial(jax.jit, static_argnames="most")
def word_hashes(table: WordTable, text: Array, most: int | None = None) -> Array:
    """Returns the hashes of a text's words in order, padded with 0: uint32 [..., M].

    No word has the hash 0.

    Args:
        table: of any vocabulary; its pieces are not read.
        text: uint8 [..., N], UTF-8 padded with 0.
        most: upper bound of the number of words; M = N // 2 + 1, or `most` if that is less.
    """
    code, trait = _read_utf8(table, text)
    kind, number = trait & 3, trait >> 2
    word = _at_last_base(kind)
    in_word = word != DIVIDES
    # A word's hash is the sum of code·BASE^(position in the word) mod 2^32. It is computed as the
    # difference of two cumulative sums over the whole text, divided by BASE^(characters of the
    # words before). Accents share the position of their letter, so their order does not matter.
    size = text.shape[-1]
    characters = jnp.cumsum(number * in_word, axis=-1)
    power = _powers(_BASE, 2 * size)[characters]  # folding gives at most 2 characters per byte
    sums = jnp.cumsum(code * in_word * power, axis=-1)
    next_kind = _after(kind)
    separated = (next_kind == DIVIDES) | (next_kind == ALONE)
    last = in_word & (separated | ((next_kind == JOINS) & (word == ALONE)))
    most = size // 2 + 1 if most is None else min(most, size // 2 + 1)
    pack = jnp.vectorize(functools.partial(_pack, most), signature="(n),(n)->(m)")
    characters, sums = pack(characters, last), pack(sums, last)
    inverse = _powers(_INVERSE, 2 * size)[_before(characters)]
    return jnp.where(characters != 0, jnp.maximum((sums - _before(sums)) * inverse, 1), 0)


def keyword_bytes(lists: Sequence[Sequence[str]]) -> np.ndarray:
    """Encodes lists of keywords as `Source.keywords`, uint8 [n, W, L] with 0 as padding.

    W is the length of the longest list and L the bytes of the longest keyword; both are at least 1.

    Raises:
        ValueError: a keyword contains no word.
    """
    texts = [[unicodedata.normalize("NFKC", x) for x in keywords] for keywords in lists]
    for document, keywords in enumerate(texts):
        for keyword, given in zip(keywords, lists[document], strict=True):
            if not words_of(keyword):
                raise ValueError(
                    f"keyword {given!r} of document {document} has no letter or digit, so no "
                    "output can contain it; remove it from the task's keywords"
                )
    most = max([1, *map(len, texts)])
    encoded = [x.encode() for keywords in texts for x in keywords + [""] * (most - len(keywords))]
    rows = _rows(encoded, max([1, *map(len, encoded)]))
    return rows.reshape(len(lists), most, rows.shape[-1])


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """Computes `WordTable.codes` and `WordTable.traits`."""
    kinds = np.frombuffer(segmentation.character_kinds(), np.uint8).copy()
    mixed = _mix(np.arange(segmentation.CODE_POINTS, dtype=np.uint32))
    is_base = np.array([not unicodedata.combining(chr(x)) for x in range(len(kinds))])
    codes, bases = mixed.copy(), is_base.astype(np.uint8)
    for code, folded in segmentation.folding_table().items():
        if code >= len(kinds):
            continue  # `_read_utf8` handles these
        points = [ord(x) for x in folded]
        kinds[code] = kinds[points[0]] if points else CONTINUES
        positions = np.cumsum(is_base[points], dtype=int)
        bases[code] = positions[-1] if points else 0
        terms = (
            int(mixed[point]) * pow(_INVERSE, int(positions[-1] - position), 2**32)
            for point, position in zip(points, positions, strict=True)
        )
        codes[code] = sum(terms) % 2**32
    most = np.flatnonzero(kinds)[-1] + 1
    return codes[:most], (kinds + 4 * bases)[:most]


def _mix(x: np.ndarray) -> np.ndarray:
    """Applies MurmurHash3's fmix32 to uint32 [...]; it is a bijection and maps 0 to 0."""
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    return x ^ x >> 16


def _most_words(piece: bytes) -> int:
    """Bounds the number of words that begin in a piece; each invalid UTF-8 byte may begin one."""
    text = piece.decode(errors="surrogateescape")
    invalid = sum("\udc80" <= x <= "\udcff" for x in text)
    return invalid + len(segmentation.written_words(text.translate(segmentation.folding_table())))


def _rows(texts: Sequence[bytes], size: int) -> np.ndarray:
    """Returns texts as uint8 [len(texts), size], padded with 0."""
    joined = b"".join(x.ljust(size, b"\0") for x in texts)
    return np.frombuffer(joined, np.uint8).reshape(len(texts), size)


def _join_pieces(table: WordTable, tokens: Array, length: Array) -> Array:
    """Returns the text of the first `length` of tokens [T], uint8 [T·P] padded with 0.

    Ids from V on have no text.
    """
    in_sequence = jnp.arange(tokens.shape[0]) < length
    sizes = in_sequence * table.sizes.at[tokens].get(mode="fill", fill_value=0)
    pieces = table.pieces.at[tokens].get(mode="fill", fill_value=0)
    column = jnp.arange(pieces.shape[1])
    index = (jnp.cumsum(sizes) - sizes)[:, None] + column
    index = jnp.where(column < sizes[:, None], index, pieces.size)
    return jnp.zeros(pieces.size, jnp.uint8).at[index].set(pieces, mode="drop")


def _read_utf8(table: WordTable, text: Array) -> tuple[Array, Array]:
    """Returns code and traits of the character that begins at each byte of text [..., N].

    The other bytes of a character have code 0 and the kind CONTINUES.
    """
    byte = after = bits = text.astype(jnp.int32)
    point, complete = jnp.where(byte < 0x80, byte, 0), True
    for more in (1, 2, 3):  # bytes after the first: 110xxxxx 10xxxxxx, 1110xxxx 10xxxxxx ...
        after = _after(after)
        complete &= after >> 6 == 0b10
        bits = bits << 6 | after & 0x3F
        value = bits & 2 ** (5 * more + 6) - 1
        matches = complete & (byte >> 6 - more == 2 ** (more + 2) - 2)
        point = jnp.where(matches & (value >= (0x80, 0x800, 0x10000)[more - 1]), value, point)
    size = 1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000)
    within = jnp.zeros(text.shape, bool)
    for back in (2, 3, 4):
        size = _before(size)
        within |= size >= back
    point = jnp.where(point >> 12 == 0xE0, _IGNORED, point)  # U+E0000 to U+E0FFF are all ignored
    read = lambda column: column.at[point].get(mode="fill", fill_value=0)
    code, trait = read(table.codes), read(table.traits).astype(jnp.int32)
    return jnp.where(within, 0, code), jnp.where(within, CONTINUES, trait)


def _at_last_base(kind: Array) -> Array:
    """Returns, at each position of [..., N], the last kind up to it other than CONTINUES, or 0."""
    order = 4 * jnp.arange(kind.shape[-1]) + kind
    return lax.cummax(jnp.where(kind == CONTINUES, 0, order), axis=kind.ndim - 1) & 3


def _powers(base: int, most: int) -> Array:
    """Returns base^0 to base^most mod 2^32, uint32 [most + 1]."""
    return jnp.asarray(np.cumprod([1] + [base] * most, dtype=np.uint32))


def _after(x: Array) -> Array:
    """Shifts the last axis left by one position, with 0 at the end."""
    return jnp.concatenate([x[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1)


def _before(x: Array) -> Array:
    """Shifts the last axis right by one position, with 0 at the start."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def _pack(most: int, values: Array, chosen: Array) -> Array:
    """Returns the chosen of values [N] in order, padded with 0: [most]."""
    index = jnp.where(chosen, jnp.cumsum(chosen) - 1, most)
    return jnp.zeros(most, values.dtype).at[index].set(values, mode="drop")
