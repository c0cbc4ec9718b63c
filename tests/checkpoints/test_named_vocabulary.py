"""The vocabulary that somebody names, for checkpoints that do not say what their ids mean."""

import pytest
import sentencepiece
import tokenizers

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.named_vocabulary import named_vocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.models.llama_lm import Llama
from dera_jax.tasks import vocabularies
from tests.tiny import LLAMA, params


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("pieces") / "spiece.model")
    vocabularies.train(["some words to make pieces from, and yet more"] * 9, path, 76)
    return path


def words(path, *names: str) -> str:
    """A tokenizer.json of these words."""
    vocabulary = {name: i for i, name in enumerate(names)}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=names[0]))
    built.save(str(path / "tokenizer.json"))
    return str(path / "tokenizer.json")


def test_nothing_named_is_nothing():
    assert named_vocabulary(None) is None and named_vocabulary(None, 100) is None


def test_files_and_bytes(pieces, tmp_path):
    assert named_vocabulary("bytes") == ByteVocabulary()
    assert named_vocabulary("bytes", 125) == ByteVocabulary(125)
    assert named_vocabulary(pieces) == SentencePieceVocabulary(pieces)
    assert named_vocabulary(pieces, 100) == SentencePieceVocabulary(pieces, 100)
    file = words(tmp_path, "<unk>", "</s>")
    assert named_vocabulary(file) == JsonVocabulary(file)


def test_a_vocabulary_is_itself(pieces):
    given = SentencePieceVocabulary(pieces, 3)
    assert named_vocabulary(given) is given


def test_the_vocabulary_of_a_model_s_folder(pieces, tmp_path):
    vocabulary = ByteVocabulary()
    save_model(tmp_path / "m", LLAMA, vocabulary, params(Llama(LLAMA)), {})
    assert named_vocabulary(str(tmp_path / "m")) == vocabulary
    save_model(tmp_path / "silent", LLAMA, None, params(Llama(LLAMA)), {})
    with pytest.raises(ValueError, match="silent does not say what its ids mean"):
        named_vocabulary(str(tmp_path / "silent"))


def test_what_is_not_there_is_refused(tmp_path):
    for name in ("none.model", "none.json", "none"):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}/{name}"):
            named_vocabulary(str(tmp_path / name))


def test_what_is_in_a_file_is_seen_when_it_is_used(tmp_path):
    """Naming one reads nothing, lest a dry run fetches T5's from its bucket."""
    named_vocabulary("gs://t5-data/vocabs/cc_all.32000/sentencepiece.model", 100)
    (tmp_path / "damaged.model").write_bytes(b"no pieces")
    with pytest.raises(ValueError, match=r"damaged.model is no SentencePiece model"):
        tokenizer(named_vocabulary(str(tmp_path / "damaged.model")))
    for endless in (words(tmp_path, "<unk>"), _endless(tmp_path)):
        with pytest.raises(ValueError, match=f"{endless}: the vocabulary has no end-of-sequence"):
            tokenizer(named_vocabulary(endless), where=endless)


def _endless(folder) -> str:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words"] * 9),
        model_prefix=str(folder / "endless"),
        model_type="char",
        vocab_size=10,
        eos_id=-1,
        minloglevel=2,
    )
    return str(folder / "endless.model")


def test_sentinels_cannot_be_added_to_what_says_what_it_has(pieces, tmp_path):
    file = words(tmp_path, "<unk>", "</s>")
    for name in (file, str(tmp_path), ByteVocabulary(), SentencePieceVocabulary(pieces)):
        with pytest.raises(ValueError, match="EXTRA_IDS is 100: sentinels can be added to"):
            named_vocabulary(name, 100)
