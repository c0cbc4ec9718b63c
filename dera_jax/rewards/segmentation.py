"""Splits Unicode text into words, in every script.

One definition serves ROUGE, the word metrics and the word rewards: `words_of` applies it to text,
and `word_hashes` applies the same tables to UTF-8 bytes inside a compiled program.

- A word begins with a letter, a digit or "_" and extends over letters, digits, "_" and combining
  marks, so that Hindi vowel signs and decomposed accents stay within their word. A combining mark
  that follows no word is ignored.
- Han, kana, Thai, Lao, Khmer, Burmese and a few related scripts are written without spaces. There
  each character with its combining marks is a word (in Thai, Lao, Khmer and Burmese roughly a
  grapheme cluster); Latin words and numbers among them stay whole. Hangul is divided at spaces.
- Format characters (joiners of width zero, soft hyphens, marks of direction, variation selectors)
  are ignored. A space of width zero divides.
- Words are equal whatever their case (full case folding: "ß" is "ss"), whether their accents are
  composed or not, and whatever the order of the marks on one letter.

Unicode's own rules (UAX #29) differ in keeping "don't", "3.5" and runs of katakana whole.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

# Blocks of scripts that are written without spaces. Their digits form numbers all the same.
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
# Variation selectors and the like; from 0xE0000 on there are only these and format characters.
_IGNORED = (0x34F, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000))
# Vowels that always follow their consonant, though Unicode calls them letters. As marks, SARA AM is
# equal to the two characters that NFKC makes of it.
_VOWELS_AS_MARKS = (0xE32, 0xE33, 0xEB2, 0xEB3)
_ZERO_WIDTH_SPACE = 0x200B

# What a character does: divide words, continue one, begin or continue one, or be one by itself.
DIVIDES, CONTINUES, JOINS, ALONE = range(4)
_ASCII_WORD = re.compile(r"[a-z0-9_]+")
CODE_POINTS = 0x40000  # Unicode has no word character at or above it


def words_of(text: str) -> list[str]:
    """The words of a text in order, in the form in which they are compared.

    The text is NFKC-normalised, so that "ﬁne" is "fine", then case-folded and decomposed.
    """
    if text.isascii():  # the same, without the tables
        return _ASCII_WORD.findall(text.lower())
    text = unicodedata.normalize("NFKC", text).translate(folds())
    return _word().findall(_accents().sub(lambda run: "".join(sorted(run[0])), text))


def written_words(text: str) -> list[str]:
    """The words of a text as they are written."""
    return _word().findall(text)


def is_unspaced(character: str) -> bool:
    """Whether it is a letter of a script that is written without spaces."""
    return kinds()[ord(character)] == ALONE


def split_at_spaces(text: str) -> list[str]:
    """`str.split`, but each character of a script without spaces by itself."""
    return _chunk().findall(text)


@functools.cache
def kinds() -> bytes:
    """What each code point does: DIVIDES, CONTINUES, JOINS or ALONE."""
    kind_of = {"M": CONTINUES, "L": JOINS, "N": JOINS}
    category = [unicodedata.category(chr(x)) for x in range(CODE_POINTS)]
    found = bytearray(kind_of.get(x[0], DIVIDES) for x in category)
    for low, high in _UNSPACED:
        for code in range(low, high + 1):
            if found[code] == JOINS and category[code] != "Nd":
                found[code] = ALONE
    for code in (*_VOWELS_AS_MARKS, *(i for i, x in enumerate(category) if x == "Cf")):
        found[code] = CONTINUES
    found[ord("_")], found[_ZERO_WIDTH_SPACE] = JOINS, DIVIDES
    return bytes(found)


@functools.cache
def folds() -> dict[int, str]:
    """What code points are compared as, where that is not as themselves; "" for ignored ones.

    A character that stands for several words, or for a word and punctuation ("½", "℃"), is compared
    as itself; one that stands for accented space or punctuation is a space.
    """
    changed = dict.fromkeys(_IGNORED, "")
    for code, x in enumerate(map(chr, range(CODE_POINTS))):
        if kinds()[code] == CONTINUES and unicodedata.category(x) == "Cf":
            changed[code] = ""
        elif code not in changed and not (
            x.casefold() == x and unicodedata.is_normalized("NFKD", x)
        ):
            changed[code] = _fold(x)
    return changed


def _fold(x: str) -> str:
    # U+0345 would become a letter and take over the marks that follow it.
    folded = "".join(
        y if unicodedata.combining(y) else y.casefold() for y in unicodedata.normalize("NFKD", x)
    )
    folded = unicodedata.normalize("NFKD", folded)
    found = {kinds()[ord(y)] for y in folded}
    if _word().fullmatch(folded) or found == {CONTINUES}:
        return folded
    return x if found & {JOINS, ALONE} else " "


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
    """Marks in a row of which the order says nothing about the text."""
    marks = (x for x in range(CODE_POINTS) if unicodedata.combining(chr(x)))
    return re.compile(f"[{_ranges(marks)}]{{2,}}")


def _class_of(kind: int) -> str:
    return _ranges(code for code, found in enumerate(kinds()) if found == kind)


def _ranges(codes: Iterable[int]) -> str:
    """The inside of a character class of `re` for ascending code points."""
    ends: list[list[int]] = []
    for code in codes:
        if ends and code == ends[-1][1] + 1:
            ends[-1][1] = code
        else:
            ends.append([code, code])
    return "".join(rf"\U{low:08x}-\U{high:08x}" for low, high in ends)
