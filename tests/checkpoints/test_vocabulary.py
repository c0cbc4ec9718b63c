"""Text and ids as seqio and transformers have them, whoever wrote the vocabulary's file."""

import itertools

import numpy as np
import pytest
import seqio
import transformers
from sentencepiece import sentencepiece_model_pb2

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.checkpoints.vocabulary import is_sentinel, resolve_vocabulary
from dera_jax.tasks import vocabularies
from tests import golden

EXTRA = 7
TEXTS = (
    "some words to make pieces from",
    "Some WORDS, 1234 of them; größe λ",
    "<extra_id_0> words <extra_id_1> from <extra_id_6>",
    "to make <extra_id_0>",
    "<extra_id_7> is no sentinel",
    "words<extra_id_0>",
    "",
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    vocabularies.train([TEXTS[0], "and yet more of them, so that there are many"] * 9, path, 83)
    return str(path)


@pytest.fixture(scope="module")
def complete(file):
    """The same with its sentinels as pieces, as T5X's own file has them."""
    model = sentencepiece_model_pb2.ModelProto()
    with open(file, "rb") as content:
        model.ParseFromString(content.read())
    for i in reversed(range(EXTRA)):
        kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
        model.pieces.add(piece=f"<extra_id_{i}>", score=0.0, type=kind)
    path = file.replace("spiece", "complete")
    with open(path, "wb") as out:
        out.write(model.SerializeToString())
    return path


@pytest.mark.parametrize("extra_ids", [0, 1, EXTRA])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_seqio(file, extra_ids, text):
    ours = SentencePieceVocabulary(file, extra_ids)
    theirs = seqio.SentencePieceVocabulary(file, extra_ids)
    assert ours.encode(text) == theirs.encode(text)
    assert len(ours.pieces) == theirs.vocab_size


def test_sentinels_have_the_ids_that_transformers_gives_them(file, tmp_path):
    """From a folder of ours; the first sentinel has the highest id."""
    model, params, _ = golden.load("v1_1")
    save_hugging_face(
        tmp_path / "m", model.config, SentencePieceVocabulary(file, EXTRA), params, "float32"
    )
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path / "m")
    ours = SentencePieceVocabulary(file, EXTRA)
    size = len(ours.pieces)
    for i in range(EXTRA):
        number = theirs.convert_tokens_to_ids(f"<extra_id_{i}>")
        assert number == size - 1 - i and number in ours.encode(f"<extra_id_{i}>")
    for text in (TEXTS[0], TEXTS[2]):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_a_file_that_holds_its_sentinels_is_the_same_vocabulary(file, complete):
    with_pieces, without = SentencePieceVocabulary(complete), SentencePieceVocabulary(file, EXTRA)
    assert with_pieces.pieces == without.pieces
    expected = [f"<extra_id_{i}>" for i in reversed(range(EXTRA))]
    assert list(without.pieces[-EXTRA:]) == expected
    assert sum(map(is_sentinel, without.pieces)) == EXTRA
    theirs = seqio.SentencePieceVocabulary(complete)
    for text in TEXTS:
        assert with_pieces.encode(text) == theirs.encode(text)


def test_decoding_leaves_out_what_is_no_text(file, complete):
    for vocabulary in (SentencePieceVocabulary(file, EXTRA), SentencePieceVocabulary(complete)):
        text = tokenizer(vocabulary)
        ids, size = text.encode(TEXTS[0]), len(vocabulary.pieces)
        nothing = [-1, -(2**31), 0, 1, size - 1, size - EXTRA, size, size + 5, 2**31 - 1]
        mixed = [x for pair in zip(ids, nothing * len(ids), strict=False) for x in pair]
        assert text.decode(mixed) == text.decode(np.array(mixed)) == TEXTS[0]
        assert text.decode(nothing) == text.decode([]) == ""
        assert "⁇" in text.decode([2])
        assert text.decode([size - EXTRA - 1]) == vocabulary.pieces[size - EXTRA - 1].strip("▁")


@pytest.mark.parametrize("extra_ids", [0, 3])
@pytest.mark.parametrize("text", [*TEXTS, "λ € 𝄞 \x00"])
def test_bytes_are_those_of_seqio(extra_ids, text):
    ours, theirs = ByteVocabulary(extra_ids), seqio.ByteVocabulary(extra_ids)
    ids, size = ours.encode(text), len(ours.pieces)
    assert ids == ours.encode_text(text) == theirs.encode(text) and size == theirs.vocab_size
    nothing = [-1, 0, 1, 2, 259, size, 2**31 - 1]
    assert ours.decode([*nothing, *ids, *nothing]) == ours.decode(np.array(ids)) == text
    for cut in range(len(ids)):  # in the middle of a character too
        assert ours.decode(ids[:cut]) == theirs.decode(ids[:cut])


def test_sentinels_of_bytes_come_after_them():
    found = list(ByteVocabulary(3).pieces)
    assert found[2:4] == ["<special 2>", "<byte 0>"]
    assert found[258:] == ["<byte 255>", "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]


@pytest.mark.parametrize("content", [b"no pieces", b"", bytes(100), None])
def test_a_damaged_file_is_named(file, tmp_path, content):
    path = tmp_path / "damaged.model"
    with open(file, "rb") as whole:
        path.write_bytes(whole.read()[:500] if content is None else content)
    for use, extra in itertools.product((tokenizer, lambda x: x.pieces), (EXTRA, 0)):
        with pytest.raises(ValueError, match=f"{path} is no SentencePiece model"):
            use(SentencePieceVocabulary(path, extra))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path}/none.model"):
        tokenizer(SentencePieceVocabulary(tmp_path / "none.model"))


def test_without_a_vocabulary_the_error_says_what_to_do():
    with pytest.raises(ValueError, match=r"load\(path, vocabulary=.*checkpoints.convert"):
        tokenizer(None)


def test_the_vocabulary_given_is_taken_unless_the_checkpoint_has_another(file, complete):
    own, given, fewer = (
        SentencePieceVocabulary(file, EXTRA),
        SentencePieceVocabulary(complete),
        SentencePieceVocabulary(file, EXTRA - 1),
    )
    assert resolve_vocabulary(None, given, "c", "g") == given
    assert resolve_vocabulary(own, given, "c", "g") == own
    size = len(given.pieces)
    message = f"differ at id {size - EXTRA}: '<extra_id_6>' in c, '<extra_id_5>' in g"
    with pytest.raises(ValueError, match=message):
        resolve_vocabulary(own, fewer, "c", "g")
    plain = SentencePieceVocabulary(file)
    assert resolve_vocabulary(own, plain, "c", "g") == own  # the checkpoint knows its sentinels
    with pytest.raises(ValueError, match="c holds its own vocabulary, so leave VOCABULARY and EXT"):
        resolve_vocabulary(own, fewer, "c", "g")
    with pytest.raises(ValueError, match=r"'\(no such id\)' in c, '<extra_id_6>' in g"):
        resolve_vocabulary(plain, given, "c", "g")
