"""Loads the shipped vocabulary, and trains new ones of the same kind."""

import importlib.resources
import io
from collections.abc import Iterable

import sentencepiece
import seqio

EXTRA_IDS = 96  # sentinels; with 4,000 pieces they make 4,096 ids


def docstrings_vocabulary() -> seqio.SentencePieceVocabulary:
    """Return the shipped vocabulary of the tiny models, 4,000 pieces and 96 sentinels."""
    path = importlib.resources.files("dera_jax") / "assets" / "docstrings.model"
    return seqio.SentencePieceVocabulary(str(path), EXTRA_IDS)


def train(texts: Iterable[str], path: str, pieces: int = 4000) -> None:
    """Trains a unigram SentencePiece model on `texts` and writes it to `path`.

    Its special ids are T5's: padding 0, end token 1, unknown 2. Each digit is a piece. Text is
    converted to lower case, and no printable ASCII character is unknown.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=0.9998,
        required_chars="".join(c for c in map(chr, range(33, 127)) if not c.isupper()),
        split_digits=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=2,
        minloglevel=1,
    )
    with open(path, "wb") as out:
        out.write(model.getvalue())
