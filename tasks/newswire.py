"""Registers the seqio task `newswire` of generated reports, and trains a vocabulary on them.

Besides document and summary, an example has the fields `facts` (a JSON object from role to value)
and `keywords` (one per line). `newswire_corpus.check` compares a summary with the facts.
"""

import functools
import io
import json
import re
from collections.abc import Sequence

import sentencepiece

from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.prompts import DOCUMENT
from dera_jax.tasks import cache, jsonl, newswire_corpus, newswire_words

SIZES = {"train": 8000, "validation": 400, "test": 400}
_SEED = 0
_MAX_PIECES = 1000
_PREFIX = jsonl.SUMMARIZE.replace(DOCUMENT, "")


@functools.cache
def vocabulary() -> SentencePieceVocabulary:
    """Return the vocabulary: about 650 pieces, all words of the corpus and the 256 bytes.

    Id 0 is padding, 1 the end token, 2 unknown. It is trained at the first call and then cached.
    """
    key = {"kinds": repr(newswire_words.KINDS), "seed": _SEED, "size": SIZES["train"]}
    target = cache.path("newswire", key, ".model")
    if not target.exists():
        model = _train()
        cache.write_atomically(target, lambda temporary: temporary.write_bytes(model))
    return SentencePieceVocabulary(str(target))


@functools.cache
def reports(split: str) -> list[newswire_corpus.Report]:
    """Return the reports of a split, in the task's order."""
    return newswire_corpus.reports(split, SIZES[split], _SEED)


def _train() -> bytes:
    """Train the vocabulary, with all words as user-defined pieces.

    Otherwise SentencePiece would split rare numbers and names.
    """
    texts = [_PREFIX] + [
        t for report in reports("train") for t in (report.document, report.summary)
    ]
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=_MAX_PIECES,
        hard_vocab_limit=False,  # allow fewer pieces
        user_defined_symbols=["▁", ":"] + [f"▁{word}" for word in words],
        byte_fallback=True,
        num_threads=1,  # so that every run gives the same pieces
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
    """Computes a reward on the host (see `rewards.host`): 1 for an output that states at least one
    fact and only facts of its document, else 0; see `newswire_corpus.check`.

    Raises:
        KeyError: a document is not a report of the task.
    """
    facts = _facts()
    pairs = zip(documents, texts, strict=True)
    return [
        float(newswire_corpus.check(text, facts[document]).faithful) for document, text in pairs
    ]


@functools.cache
def _facts() -> dict[str, dict[str, str]]:
    """Return the facts of every document."""
    return {r.document: r.facts for split in SIZES for r in reports(split)}


jsonl.register_pairs("newswire", _columns, SIZES, jsonl.SUMMARIZE)
