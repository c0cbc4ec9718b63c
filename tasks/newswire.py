"""The seqio task `newswire`: generated reports, and the vocabulary trained on them.

Fields besides the texts: `facts` (a JSON object, value by role) and `keywords` (one per line);
`newswire_corpus.check` compares a summary with the facts.
"""

import functools
import io
import json
import re
from collections.abc import Sequence

import sentencepiece

from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.prompts import DOCUMENT
from tasks import cache, jsonl, newswire_corpus, newswire_words

SIZES = {"train": 8000, "validation": 400, "test": 400}
_SEED = 0
_MOST_PIECES = 1000
_PREFIX = jsonl.SUMMARIZE.replace(DOCUMENT, "")


@functools.cache
def vocabulary() -> SentencePieceVocabulary:
    """Some 650 pieces: every word of the corpus, and the 256 bytes for all other text.

    0 pads, 1 ends, 2 is unknown. Made when first called, then kept in the cache folder.
    """
    key = {"kinds": repr(newswire_words.KINDS), "seed": _SEED, "size": SIZES["train"]}
    target = cache.path("newswire", key, ".model")
    if not target.exists():
        model = _train()
        cache.write_atomically(target, lambda temporary: temporary.write_bytes(model))
    return SentencePieceVocabulary(str(target))


@functools.cache
def reports(split: str) -> list[newswire_corpus.Report]:
    """The reports of a split, in the task's order."""
    return newswire_corpus.reports(split, SIZES[split], _SEED)


def _train() -> bytes:
    """Whole words by decree: SentencePiece left to itself splits rare numbers and names."""
    texts = [_PREFIX] + [
        t for report in reports("train") for t in (report.document, report.summary)
    ]
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=_MOST_PIECES,
        hard_vocab_limit=False,  # fewer, if there are fewer
        user_defined_symbols=["▁", ":"] + [f"▁{word}" for word in words],
        byte_fallback=True,
        num_threads=1,  # the same pieces in every run
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def _columns(split: str) -> dict[str, list[str]]:
    return {
        "document": [report.document for report in reports(split)],
        "summary": [report.summary for report in reports(split)],
        "facts": [json.dumps(report.facts) for report in reports(split)],
        "keywords": ["\n".join(report.keywords) for report in reports(split)],
    }


def truth(documents: Sequence[str], texts: Sequence[str]) -> list[float]:
    """A reward in Python, for `rewards.host`: 1 for a text that states facts, and only those of its
    document, else 0; see `newswire_corpus.check`.

    Raises:
        KeyError: a document that is no report of the task.
    """
    facts = _facts()
    pairs = zip(documents, texts, strict=True)
    return [
        float(newswire_corpus.check(text, facts[document]).faithful) for document, text in pairs
    ]


@functools.cache
def _facts() -> dict[str, dict[str, str]]:
    """The facts by document."""
    return {r.document: r.facts for split in SIZES for r in reports(split)}


jsonl.register_pairs("newswire", _columns, SIZES, jsonl.SUMMARIZE)
