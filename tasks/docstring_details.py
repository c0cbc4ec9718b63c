"""Docstring pairs whose summary says more: the first paragraph, then a sentence of the body.

People write such summaries as they write terse ones. A model that has seen both has a choice to
make at the end of its first sentence, which a reward for length can move; with one sentence for
every document there is little to move (docs/design.md, "What PPO does not reach").
"""

import dataclasses
import re

from tasks import text
from tasks.docstring_corpus import Pair, is_sentence

_WORDS = (4, 14)  # of the sentence that is added
_REACH = 40  # words of the body before it: what a model sees of a long document
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
# Argument lists, boilerplate, a sentence cut short.
_NO_SENTENCE = re.compile(r":|implementation of|\b(i\.e|e\.g|etc|vs)\.$")


def detailed(pair: Pair) -> Pair | None:
    """The pair with the longer summary; None for a quarter of the documents (by their hash, so that
    about a quarter of all examples are detailed) and where the body has no short, plain sentence.
    """
    if int(pair.hash[-1], 16) % 4 == 0:
        return None
    sentence = _first_plain_sentence(pair.document.partition("): ")[2])
    if sentence is None or not pair.summary.endswith("."):
        return None
    return dataclasses.replace(pair, summary=f"{pair.summary} {sentence}")


def _first_plain_sentence(body: str) -> str | None:
    before = 0
    for sentence in _SENTENCE_END.split(body):
        count = len(text.words(sentence))
        if before + count > _REACH:
            return None
        if _WORDS[0] <= count <= _WORDS[1] and _is_plain(sentence):
            return sentence
        before += count
    return None


def _is_plain(sentence: str) -> bool:
    plain = sentence.endswith(".") and not _NO_SENTENCE.search(sentence)
    return plain and is_sentence(sentence.removesuffix("."))
