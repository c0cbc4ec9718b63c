"""Splits Unicode text into words, in every script.

ROUGE, the word metrics and the word rewards share one definition of a word: `words_of` applies it
to text, and `word_hashes` applies the same tables to UTF-8 bytes inside a compiled program.

- A word begins with a letter, a digit or "_" and extends over letters, digits, "_" and combining
  marks, so that Hindi vowel signs and decomposed accents stay within their word. A combining mark
  that follows no word is ignored.
- Han, kana, Thai, Lao, Khmer, Burmese and a few related scripts are written without spaces. There
  each character with its combining marks is a word (in Thai, Lao, Khmer and Burmese roughly a
  grapheme cluster), while Latin words and numbers between them are not split. Hangul is split at
  spaces.
- Format characters (zero-width joiners, soft hyphens, directional marks, variation selectors) are
  ignored. A zero-width space separates words.
- Comparison ignores case (full case folding: "ß" is "ss"), whether accents are composed or
  decomposed, and the order of the combining marks on one letter.

The word boundaries of Unicode (UAX #29) differ: they do not split "don't", "3.5" and runs of
katakana.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

# Blocks of scripts that are written without spaces. Their digits still form numbers.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x3007),  # iteration mark, closing mark and zero
    (0x3021, 0x312F),  # Hangzhou numerals, hiragana, katakana, bopomofo
    (0x31A0, 0x31FF),  # bopomofo, katakana
    (0x3400, 0x4DBF),  # CJK ideographs
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # CJK ideographs
    (0x16FE0, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # kana, Nushu
    (0x20000, 0x3FFFF),  # CJK ideographs
)
# Variation selectors and similar characters; from 0xE0000 on all are these or format characters.
_IGNORED = (0x34F, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000))
# Vowels that always follow their consonant but have the category of letters. Treating them as marks
# makes SARA AM equal to the two characters into which NFKC decomposes it.
_VOWELS_AS_MARKS = (0xE32, 0xE33, 0xEB2, 0xEB3)
_ZERO_WIDTH_SPACE = 0x200B

# Kinds of characters: separates words; continues a word; begins or continues one; is a word alone.
DIVIDES, CONTINUES, JOINS, ALONE = range(4)
_ASCII_WORD = re.compile(r"[a-z0-9_]+")
CODE_POINTS = 0x40000  # Unicode has no word character at or above this code point


def words_of(text: str) -> list[str]:
    """Returns the words of a text in order, in the normalised form in which they are compared.

    The text is NFKC-normalised, so that "ﬁne" is "fine", then case-folded and decomposed.
    """
    if text.isascii():  # a fast path with the same result
        return _ASCII_WORD.findall(text.lower())
    text = unicodedata.normalize("NFKC", text).translate(folding_table())
    return _word().findall(_accents().sub(lambda run: "".join(sorted(run[0])), text))


def written_words(text: str) -> list[str]:
    """Returns the words of a text in order, without normalisation."""
    return _word().findall(text)


def is_unspaced(character: str) -> bool:
    """Returns whether a character is a letter of a script that is written without spaces."""
    return character_kinds()[ord(character)] == ALONE


def split_at_spaces(text: str) -> list[str]:
    """Splits a text at white space and around each character of a script without spaces."""
    return _chunk().findall(text)


@functools.cache
def character_kinds() -> bytes:
    """Returns the kind of each code point: DIVIDES, CONTINUES, JOINS or ALONE."""
    kind_of = {"M": CONTINUES, "L": JOINS, "N": JOINS}
    category = [unicodedata.category(chr(x)) for x in range(CODE_POINTS)]
    table = bytearray(kind_of.get(x[0], DIVIDES) for x in category)
    for low, high in _UNSPACED:
        for code in range(low, high + 1):
            if table[code] == JOINS and category[code] != "Nd":
                table[code] = ALONE
    for code in (*_VOWELS_AS_MARKS, *(i for i, x in enumerate(category) if x == "Cf")):
        table[code] = CONTINUES
    table[ord("_")], table[_ZERO_WIDTH_SPACE] = JOINS, DIVIDES
    return bytes(table)


@functools.cache
def folding_table() -> dict[int, str]:
    """Returns the folded form of each code point that changes; "" for ignored ones.

    A character that decomposes into several words, or into a word and punctuation ("½", "℃"), is
    not folded. One that decomposes into space or punctuation with accents is folded to a space.
    """
    changed = dict.fromkeys(_IGNORED, "")
    for code, x in enumerate(map(chr, range(CODE_POINTS))):
        if character_kinds()[code] == CONTINUES and unicodedata.category(x) == "Cf":
            changed[code] = ""
        elif code not in changed and not (
            x.casefold() == x and unicodedata.is_normalized("NFKD", x)
        ):
            changed[code] = _fold(x)
    return changed


def _fold(x: str) -> str:
    """Folds one character; see `folding_table`."""
    # Combining marks are not case-folded: U+0345 would become a letter, to which the marks after it
    # would then belong.
    folded = "".join(
        y if unicodedata.combining(y) else y.casefold() for y in unicodedata.normalize("NFKD", x)
    )
    folded = unicodedata.normalize("NFKD", folded)
    folded_kinds = {character_kinds()[ord(y)] for y in folded}
    if _word().fullmatch(folded) or folded_kinds == {CONTINUES}:
        return folded
    return x if folded_kinds & {JOINS, ALONE} else " "


@functools.cache
def _word() -> re.Pattern[str]:
    alone, joins, continues = map(_class_of, (ALONE, JOINS, CONTINUES))
    return re.compile(f"[{alone}][{continues}]*|[{joins}][{joins}{continues}]*")


@functools.cache
def _chunk() -> re.Pattern[str]:
    alone, continues = map(_class_of, (ALONE, CONTINUES))
    return re.compile(rf"[{alone}][{continues}]*|[^\s{alone}]+")


@functools.cache
def _accents() -> re.Pattern[str]:
    """Matches runs of combining marks, whose order does not distinguish words."""
    marks = (x for x in range(CODE_POINTS) if unicodedata.combining(chr(x)))
    return re.compile(f"[{_ranges(marks)}]{{2,}}")


def _class_of(kind: int) -> str:
    return _ranges(code for code, x in enumerate(character_kinds()) if x == kind)


def _ranges(codes: Iterable[int]) -> str:
    """Returns ascending code points as the inside of a character class of `re`."""
    ends: list[list[int]] = []
    for code in codes:
        if ends and code == ends[-1][1] + 1:
            ends[-1][1] = code
        else:
            ends.append([code, code])
    return "".join(rf"\U{low:08x}-\U{high:08x}" for low, high in ends)
