"""Words found on token ids: those that `segmentation.words_of` finds in the decoded text."""

import functools
import io
import logging as python_logging
import re
import unicodedata
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from dera_jax import log
from dera_jax.models.language_model import Padded
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.protocol import Source, check_limit
from dera_jax.rewards.segmentation import words_of
from dera_jax.rewards.word_hashes import keyword_bytes, text_hashes, word_hashes, word_table
from dera_jax.rewards.words import (
    Faithfulness,
    KeywordCoverage,
    WordsInRange,
    check_fit,
    coverage,
    faithful_fraction,
    words_within,
)
from tests import prompts

SHIPPED = resources.files("dera_jax") / "assets" / "docstrings.model"
SOME_WORDS = """return the value of array axis_0 numpy.ndarray float64 is not 3 1e-5 shape don't self
x_y parameter Parameters computes gradient Gradient; (optional), isn't tensor's to a"""
LETTERS = (
    "aAzZ09_ -.,\n\0éÉßſKΣςσİıñ日本語ーカ\u3099中文ہندیहिन्दी한국\u1112\u1161ภาษาน้ำລາວပြည်ខ្មែរ٣²Ⓐᾳᾼệ—…😀𐐀𐐨𝔸𠀀"
    "\u0301\u0323\u0345\u200b\u200c\u200d\u00ad\ufe0f\U000e0101\ufffd\ud7ff"
)


def pieces_of(processor) -> list[bytes]:
    return [_piece(processor, i) for i in range(processor.vocab_size())]


def _piece(processor, i) -> bytes:
    if processor.is_unknown(i):
        return " \u2047 ".encode()
    if processor.is_control(i) or processor.is_unused(i):
        return b""
    if processor.is_byte(i):
        return bytes.fromhex(processor.id_to_piece(i)[3:5])
    return processor.id_to_piece(i).replace("▁", " ").encode()


@pytest.fixture(scope="module")
def shipped():
    return sentencepiece.SentencePieceProcessor(model_file=str(SHIPPED))


@pytest.fixture(scope="module")
def fallback():
    """A small vocabulary whose rarer characters are made of byte pieces."""
    model = io.BytesIO()
    lines = ["the artist made art of an elan", "a cafe of artisans; Art is x_1 or x_2"] * 9
    lines += ["a café", "日本 1984"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def byte_pieces():
    return [b""] * 3 + [bytes([i]) for i in range(256)]


class Vocabulary:
    def __init__(self, pieces):
        self._pieces = pieces

    def pieces(self):
        return self._pieces


def padded(text: bytes) -> np.ndarray:
    return np.frombuffer(text.ljust(400, b"\0"), np.uint8)


def hash_alone(table, word: str) -> int:
    found = np.asarray(word_hashes(table, padded(word.encode())))
    assert not found[1:].any()
    return int(found[0])


def assert_words(table, found: np.ndarray, texts: list[str]):
    """found [B, M] are the hashes of the words of texts, in order, and differ where words do."""
    expected = [words_of(text) for text in texts]
    names = sorted({word for row in expected for word in row})
    number = {name: hash_alone(table, name) for name in names}
    assert len(set(number.values())) == len(number) and 0 not in number.values()
    for row, words in zip(np.asarray(found).tolist(), expected, strict=True):
        assert row == [number[x] for x in words] + [0] * (len(row) - len(words))


@functools.cache
def stands_for_several(x: str) -> bool:
    """Whether a character stands for several words, or for a word and punctuation."""
    words = words_of(x)
    return len(words) > 1 or len("".join(words)) < len(unicodedata.normalize("NFKD", x)) * len(
        words
    )


def random_text(rng, size: int) -> bytes:
    """UTF-8 of LETTERS, of which now and then a byte is lost, doubled or changed."""
    while True:
        text = _random_text(rng, size)
        if not any(map(stands_for_several, bytes(text).decode(errors="replace"))):
            return text


def _random_text(rng, size: int) -> np.ndarray:
    data = "".join(rng.choice(list(LETTERS), size)).encode("utf-8", "surrogatepass")
    data = np.repeat(np.frombuffer(data, np.uint8), rng.choice([0, 1, 1, 1, 1, 1, 1, 2], len(data)))
    return np.where(rng.random(len(data)) < 0.03, rng.integers(0, 256, len(data)), data).astype(
        np.uint8
    )


def test_every_character_is_the_word_that_it_is_in_text():
    table = word_table([b"", b"a"])
    dense = [
        *range(0x3400),
        *range(0xA000, 0xAC00),
        *range(0xF900, 0x17000),
        *range(0x1A000, 0x20000),
    ]
    characters = [
        chr(c) for c in [*dense, *range(0x3400, 0xD800, 97), *range(0x20000, 0x40000, 997)]
    ]
    kept = [x for x in characters if not stands_for_several(x)]
    assert 300 < len(characters) - len(kept) < 400
    found = np.asarray(word_hashes(table, np.frombuffer(" ".join(kept).encode(), np.uint8)))
    expected = [word for x in kept for word in words_of(x)]
    assert np.count_nonzero(found) == len(expected) and not found[len(expected) :].any()
    pairs = set(zip(expected, found.tolist(), strict=False))
    assert len(pairs) == len(set(expected)) >= len({x for _, x in pairs}) >= len(pairs) - 2


def test_a_character_that_stands_for_several_words_is_one_letter_or_none():
    text = padded("a½b ℃ ໜ".encode())
    found = np.asarray(word_hashes(word_table([b"", b"a"]), text))
    assert np.count_nonzero(found) == 2  # a½b and ໜ; words_of: a1, 2b, c, ຫ, ນ


def test_words_of_bytes_some_of_which_are_no_utf8():
    rng, table = np.random.default_rng(0), word_table([b"", b"a"])
    rows = [random_text(rng, size) for size in rng.integers(1, 80, 200)]
    text = np.stack([padded(bytes(x)) for x in rows])
    found = word_hashes(table, text)
    assert found.shape == (200, 201) and found.dtype == jnp.uint32
    assert_words(table, found, [bytes(x).decode(errors="replace") for x in rows])


@pytest.mark.parametrize(
    "broken",
    ["c181", "e08181", "f0808181", "eda080", "f4908080", "c3", "e697", "f09d94", "80", "ff"],
)
def test_bytes_that_are_no_utf8_separate_words(broken):
    table = word_table([b"", b"a"])
    text = padded(b"a" + bytes.fromhex(broken) + b"b")
    assert_words(table, word_hashes(table, text)[None], ["a b"])


def test_words_of_any_pieces_a_text_is_cut_into():
    rng = np.random.default_rng(1)
    texts, pieces, tokens = [bytes(random_text(rng, 60)) for _ in range(30)], [b""], []
    for text in texts:
        cuts = np.sort(rng.integers(0, len(text), 20))
        first, parts = len(pieces), np.split(np.frombuffer(text, np.uint8), cuts)
        pieces += [bytes(x) for x in parts]
        # with an id that has no text, and one above the vocabulary
        tokens.append(np.insert(np.arange(first, len(pieces)), 5, [0, 10_000, 0]))
    table = word_table(pieces)
    found = text_hashes(table, np.stack(tokens), np.full(30, 24))
    assert_words(table, found, [x.decode(errors="replace") for x in texts])


def test_there_is_room_for_pieces_of_several_words():
    table = word_table([b"", b"a b-c", b"\xc3", b"\xa9 d"])
    tokens = np.array([1, 1, 2, 3, 1])
    assert_words(table, text_hashes(table, tokens, np.array(5))[None], ["a b-ca b-cé da b-c"])


@pytest.mark.parametrize("name", ["shipped", "fallback"])
def test_words_of_random_tokens_are_those_of_the_decoded_text(name, request):
    processor, rng = request.getfixturevalue(name), np.random.default_rng(2)
    table = word_table(pieces_of(processor))
    tokens = rng.integers(0, processor.vocab_size(), (5, 8, 30))
    tokens[:2] = rng.choice([i for i, x in enumerate(pieces_of(processor)) if len(x) < 3], (8, 30))
    lengths = rng.integers(0, 31, (5, 8))
    found = text_hashes(table, tokens, lengths).reshape(40, -1)
    rows = zip(tokens.reshape(40, 30).tolist(), lengths.flatten().tolist(), strict=True)
    texts = [processor.decode([x for x in row[:size] if x]) for row, size in rows]
    assert_words(table, found, texts)


def test_words_of_a_byte_vocabulary(byte_pieces):
    rng, table = np.random.default_rng(3), word_table(byte_pieces)
    rows = [random_text(rng, 20)[:30] for _ in range(20)]
    tokens = np.stack([np.pad(x + 3, (0, 30 - len(x))) for x in [r.astype(int) for r in rows]])
    found = text_hashes(table, tokens, np.array([len(x) for x in rows]))
    assert found.shape == (20, 16)
    assert_words(table, found, [bytes(x).decode(errors="replace") for x in rows])


def test_anagrams_and_repeated_letters_have_hashes_of_their_own():
    table = word_table([b"", b"a"])
    rng = np.random.default_rng(4)
    words = {"".join(rng.permutation(list("abcdefghijklmnopq"))) for _ in range(4000)}
    words |= {"a" * n for n in range(1, 18)} | {"0" * n + "1" for n in range(17)}
    hashes = word_hashes(table, keyword_bytes([sorted(words)])[0])[:, 0]
    assert len(set(np.asarray(hashes).tolist())) == len(words)


def test_a_vocabulary_without_text_is_refused():
    with pytest.raises(ValueError, match="all of its 2 ids"):
        word_table([b"", b""])


_compiled = jax.jit(lambda reward, *arguments: reward(*arguments), static_argnums=0)


def scored(reward, pieces, rows: list[list[int]], finished=False, **source) -> np.ndarray:
    """The reward of one document's hypotheses, padded with ids that do not count.

    Shapes are always the same, so that little is compiled.
    """
    params, last = reward.load(Vocabulary(pieces)), len(pieces) - 1
    size = [len(row) for row in rows] + [0] * (8 - len(rows))
    tokens = [row + [last] * (40 - len(row)) for row in rows] + [[last] * 40] * (8 - len(rows))
    if "keywords" in source:
        spare = np.subtract((1, 3, 20), source["keywords"].shape)
        source["keywords"] = np.pad(source["keywords"], [(0, x) for x in spare])
    source = Source(**{"prompts": prompts.whole(np.ones((1, 50)))} | source)
    arguments = (params, source, np.array([tokens]), np.array([size]), np.full((1, 8), finished))
    values, eagerly = _compiled(reward, *arguments), reward(*arguments)
    assert values.shape == (1, 8) and values.dtype == eagerly.dtype == jnp.float32
    np.testing.assert_allclose(values, eagerly, atol=1e-6)
    return np.asarray(values)[0, : len(rows)]


def bytes_as_ids(*texts: str) -> list[list[int]]:
    return [[x + 3 for x in text.encode()] for text in texts]


def document_of(text: str) -> Padded:
    """A document of 50 ids at most, padded with the id of a letter."""
    ids = bytes_as_ids(text)[0]
    padded = np.pad(ids, (0, 50 - len(ids)), constant_values=ord("c") + 3)
    return Padded(padded[None], np.array([len(ids)]))


def test_coverage_is_the_share_of_keywords_found_as_whole_words(byte_pieces):
    keywords = ["art", "New  York-city", "Élan"]
    texts = [
        "ART, in new york city; éLAN",
        "artist of york city new york; elan",
        "New York art",
        "",
    ]
    found = [3 / 3, 0, 1 / 3, 0]
    for hard in (False, True):
        reward = KeywordCoverage(hard)
        values = scored(
            reward, byte_pieces, bytes_as_ids(*texts), keywords=keyword_bytes([keywords])
        )
        np.testing.assert_allclose(values, np.floor(found) if hard else found, atol=1e-6)
    np.testing.assert_allclose([coverage(x, keywords) for x in texts], found)


def test_words_of_a_keyword_are_found_in_a_row_only(byte_pieces):
    keywords = keyword_bytes([["b a b c"]])
    texts = ["b a b a b c", "b a b", "b a b x c", "a b c", "b a b c", "b a bc", "c b a b"]
    values = scored(KeywordCoverage(), byte_pieces, bytes_as_ids(*texts), keywords=keywords)
    np.testing.assert_array_equal(values, [1, 0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("keywords", "soft", "hard"), [([], 1, 1), (["dog"], 0, 0), (["cat", "dog"], 0.5, 0)]
)
def test_a_document_without_keywords_asks_for_nothing(byte_pieces, keywords, soft, hard):
    keywords = keyword_bytes([keywords])
    for reward, expected in [(KeywordCoverage(), soft), (KeywordCoverage(hard=True), hard)]:
        values = scored(reward, byte_pieces, bytes_as_ids("cat"), keywords=keywords)
        np.testing.assert_array_equal(values, expected)


def test_every_tokenization_of_a_word_counts(fallback):
    pieces = pieces_of(fallback)
    first = next(i for i in range(len(pieces)) if fallback.is_byte(i))
    assert [pieces[first + i] for i in (0, 255)] == [b"\0", b"\xff"]
    spell = lambda text: [first + x for x in text.encode()]
    ways = {tuple(fallback.encode("the café")), tuple(fallback.encode("THE CAFÉ"))}
    for seed in range(60):
        sentencepiece.set_random_generator_seed(seed)
        ways.add(
            tuple(fallback.encode("the café", enable_sampling=True, alpha=0.01, nbest_size=-1))
        )
    ways |= {
        (*spell("the "), *spell("CAFÉ")),
        (*fallback.encode("the"), *spell(" caf"), *spell("É")),
    }
    assert len(ways) > 4
    keywords = keyword_bytes([["Café", "the"]])
    values = scored(KeywordCoverage(), pieces, [list(x) for x in ways], keywords=keywords)
    np.testing.assert_array_equal(values, 1)
    longer = [fallback.encode("artist"), fallback.encode("art") + spell("ist"), spell("artist")]
    values = scored(KeywordCoverage(), pieces, longer, keywords=keyword_bytes([["art"]]))
    np.testing.assert_array_equal(values, 0)


def test_the_end_token_and_what_follows_it_are_no_text(byte_pieces):
    keywords = keyword_bytes([["cat"]])
    rows = [[*bytes_as_ids("cat")[0], bytes_as_ids("s")[0][0]], bytes_as_ids("cat")[0]]
    for finished, expected in [(True, [1, 0]), (False, [0, 1])]:
        values = scored(KeywordCoverage(), byte_pieces, rows, finished, keywords=keywords)
        np.testing.assert_array_equal(values, expected)
        values = scored(Faithfulness(), byte_pieces, rows, finished, document=document_of("cat"))
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("text", "keywords", "expected"),
    [
        ("ये हिन्दी है", ["हिन्दी", "हिन्द", "है"], 2 / 3),
        ("ले", ["ले", "ल"], 1 / 2),
        ("un cafe\u0301 fort", ["café", "cafe"], 1 / 2),
        ("我爱中国JAX2", ["中国", "jax2", "国中"], 2 / 3),
        ("กินน้ํา", ["น้ำ", "นำ"], 1 / 2),  # SARA AM in two characters, and a tone mark
        ("STRASSE", ["straße"], 1),
        ("한국어 글", ["한국어", "한국"], 1 / 2),
        ("می\u200cخواهم", ["میخواهم"], 1),
    ],
)
def test_coverage_in_other_scripts_and_forms(text, keywords, expected, byte_pieces):
    assert coverage(text, keywords) == pytest.approx(expected)
    source = {"keywords": keyword_bytes([keywords])}
    values = scored(KeywordCoverage(), byte_pieces, bytes_as_ids(text), **source)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def said_of(reward, documents, caplog) -> list[str]:
    log.clear_logged_warnings()
    caplog.clear()
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        for _ in range(2):
            reward.check_documents(documents)
    return [x.getMessage() for x in caplog.records]


def test_rewards_say_once_where_they_measure_something_else(caplog):
    english, russian, thai = ["A text. Été."], ["Это текст, a"], ["ภาษาไทย a"]
    for reward in (Faithfulness(), Combined((Part("faithful", Faithfulness()),))):
        assert not said_of(reward, english, caplog)
        for other in (russian, thai):
            (message,) = said_of(reward, other, caplog)
            assert "documents' letters are not Latin" in message
    assert not said_of(WordsInRange(1, 3), english + russian, caplog)
    assert "counts characters, not words" in said_of(WordsInRange(1, 3), thai, caplog)[0]


def test_a_task_without_keywords_is_refused():
    with pytest.raises(ValueError, match="the documents have none"):
        KeywordCoverage()(None, Source(prompts.whole(np.ones((1, 1)))), *[np.ones((1, 1), int)] * 3)


def test_documents_whose_own_ids_are_not_known_are_refused(byte_pieces):
    params = Faithfulness().load(Vocabulary(byte_pieces))
    with pytest.raises(ValueError, match="Faithfulness needs the documents' own ids"):
        Faithfulness()(params, Source(document_of("cat")), *[np.ones((1, 1, 1), int)] * 3)


def test_keyword_bytes_are_normalised_utf8_in_rows():
    found = keyword_bytes([["e\u0301a", "x"], [], ["ﬁne"]])
    assert found.shape == (3, 2, 4) and found.dtype == np.uint8
    read = [[bytes(x).rstrip(b"\0").decode() for x in row] for row in found]
    assert read == [["éa", "x"], ["", ""], ["fine", ""]]
    assert keyword_bytes([[], []]).shape == (2, 1, 1) and keyword_bytes([]).shape == (0, 1, 1)


@pytest.mark.parametrize("keyword", ["", " ", "++"])
def test_a_keyword_without_a_letter_is_refused(keyword):
    with pytest.raises(ValueError, match=f"keyword '{re.escape(keyword)}' of document 1 "):
        keyword_bytes([["a"], ["b", keyword]])


def test_faithfulness_by_hand(byte_pieces):
    document = "Summarize: The x_1 of Zoë has 42 cats."
    texts = {
        "ZOË has the 42 CATS": 1,  # Zoë, 42 and cats; function words do not count
        "Zoë owns 43 cats": 2 / 4,
        "cats cats dogs": 2 / 3,  # each occurrence
        "cat x x_1 summarize": 2 / 4,
        "the of and": 0,
        "": 0,
    }
    expected = list(texts.values())
    values = scored(
        Faithfulness(), byte_pieces, bytes_as_ids(*texts), document=document_of(document)
    )
    np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_allclose([faithful_fraction(x, document) for x in texts], expected)


RANGES = [(0, 0), (0, 3), (4, None), (2, 5), (3, 3)]


def missed(words: int, low: int, high: int | None) -> int:
    """Steps to the nearest number of words in range."""
    allowed = range(low, 100 if high is None else high + 1)
    return min(abs(words - n) for n in allowed)


@pytest.mark.parametrize("limits", RANGES)
def test_words_in_range_counts_the_words_of_a_text(limits, byte_pieces):
    texts = ["", "a", "a b", "x_1, don't!", "a-b  c d", "é b c d e", "1 2 3 4 5 6", "...  "]
    values = scored(WordsInRange(*limits), byte_pieces, bytes_as_ids(*texts))
    expected = [-missed(n, *limits) for n in (0, 1, 2, 3, 4, 5, 6, 0)]
    np.testing.assert_array_equal(values, expected)
    assert [words_within(x, *limits) for x in texts] == [x == 0 for x in expected]


@pytest.mark.parametrize("limits", RANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_words_in_range_of_random_texts_cut_off_or_not(limits, finished, byte_pieces):
    """Cut anywhere, so in a word or a character; the last token of a text that ended is no text."""
    rng, seen = np.random.default_rng(6), set()
    for _ in range(20):
        drawn = ["".join(rng.choice(list(LETTERS + " é-" * 30), n)) for n in rng.integers(0, 40, 8)]
        data = [unicodedata.normalize("NFKC", x).encode("utf-8", "replace") for x in drawn]
        data = [x[: rng.integers(20, 39)] for x in data]
        texts = [x.decode(errors="replace") for x in data]
        end = [ord("x") + 3] if finished else []  # read by mistake, it would be a word
        rows = [[x + 3 for x in row] + end for row in data]
        values = scored(WordsInRange(*limits), byte_pieces, rows, finished)
        words = [len(words_of(x)) for x in texts]
        np.testing.assert_array_equal(values, [-missed(n, *limits) for n in words])
        assert [words_within(x, *limits) for x in texts] == (values == 0).tolist()
        seen |= set(words)
    assert seen >= set(range(8))  # below, in and above each range


@pytest.mark.parametrize(("finished", "expected"), [(True, [-1, 0, 0, -1]), (False, [-1] * 4)])
def test_hard_words_in_range_is_0_for_outputs_that_ended_in_range(finished, expected, byte_pieces):
    end = [ord("x") + 3] * finished
    rows = [row + end for row in bytes_as_ids("a", "a b", "a b c", "a b c d")]
    values = scored(WordsInRange(2, 3, hard=True), byte_pieces, rows, finished)
    np.testing.assert_array_equal(values, expected)


def test_words_in_range_of_tokens_of_several_words():
    pieces = [b"", b"a b-c", b" d", b""]
    values = scored(WordsInRange(4, 4), pieces, [[1], [1, 2], [1, 1], [1, 2, 2]])
    np.testing.assert_array_equal(values, [-1, 0, -1, -1])  # 3, 4, a b-ca b-c, 5


def test_words_within_composes_characters_first():
    assert words_within("cafe\u0301s", 1, 1) and not words_within("cafe s", 1, 1)
    assert words_within("one two", 2) and not words_within("one", 2) and words_within("")


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-1, 3, "WordsInRange.low must be an integer of at least 0; found -1"),
        (0, 2.5, "high must be an integer of at least 0, or None; found 2.5"),
        (4, 3, "0 <= low <= high, or None as high; found low 4, high 3"),
        (None, 3, "low must be an integer of at least 0; found None"),
        (0, None, "every output would score 0; set low"),
    ],
)
def test_a_range_of_words_that_is_none_is_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        WordsInRange(low, high)


@pytest.mark.parametrize("reward", [WordsInRange(3), WordsInRange(high=0), WordsInRange(2, 9)])
def test_words_in_range_needs_room_for_a_word_and_the_end(reward):
    check_limit(reward, 2)
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        check_limit(reward, 1)


def test_keywords_fit_where_their_distinct_words_and_the_end_do():
    """One token a letter: "New York art" has 12 with its blanks, "a b" 3."""
    found = []

    def encode(text):
        found.append(text)
        return [7] * len(text)

    keywords = keyword_bytes([["a", "b a"], [], ["New York", "new-YORK art", "York"]])
    check_fit(keywords, encode, 13)
    assert found == ["a b", "", "New York art"]
    message = (
        r"keywords \['New York', 'new-YORK art', 'York'\] of document 2 take 12 tokens and the end "
        "token, but the length limit of outputs is 12; raise MAX_LENGTH to at least 13, or leave the "
        "document out"
    )
    with pytest.raises(ValueError, match=message):
        check_fit(keywords, encode, 12)


def test_keywords_without_spaces_are_measured_without_spaces():
    found = []
    check_fit(keyword_bytes([["中国", "国人 JAX", "x"]]), lambda x: found.append(x) or [0], 2)
    assert found == ["中国人JAX x"]


def test_a_limit_that_is_not_refused_has_room_for_a_text_with_all_keywords(shipped):
    lists, text = [["gradient", "the value", "float64"], ["axis"]], "gradient the value float64"
    assert coverage(text, lists[0]) == 1
    output = [*shipped.encode(text), 1]
    check_fit(keyword_bytes(lists), shipped.encode, len(output))
    with pytest.raises(ValueError, match="of document 0 take"):
        check_fit(keyword_bytes(lists), shipped.encode, len(output) - 1)


def test_rewards_of_sentences_are_their_counterparts_on_text(shipped):
    rng, pieces = np.random.default_rng(5), pieces_of(shipped)
    sentences = [" ".join(rng.choice(SOME_WORDS.split(), n)) for n in rng.integers(0, 25, 36)]
    documents, texts = sentences[:4], [sentences[4 + 8 * i :][:8] for i in range(4)]
    lists = [
        ["float64", "the value"],
        ["PARAMETERS", "x_y", "1e-5"],
        [],
        ["to a", "to", "a", "don't"],
    ]
    pad = lambda rows: np.stack([np.pad(r, (0, 120 - len(r))) for r in map(np.int32, rows)])
    ids = [[[*shipped.encode(x), 1] for x in row] for row in texts]
    arguments = (
        Source(
            prompts.whole(np.ones((4, 1))),
            keywords=keyword_bytes(lists),
            document=prompts.zero_padded_targets(pad([shipped.encode(x) for x in documents])),
        ),
        np.stack([pad(row) for row in ids]),
        np.array([[len(x) for x in row] for row in ids]),
        np.ones((4, 8), bool),
    )
    expected = {
        KeywordCoverage(): [[coverage(x, k) for x in t] for k, t in zip(lists, texts, strict=True)],
        WordsInRange(8, 12): [[-missed(len(words_of(x)), 8, 12) for x in row] for row in texts],
        Faithfulness(): [
            [faithful_fraction(x, d) for x in t] for d, t in zip(documents, texts, strict=True)
        ],
    }
    for reward, values in expected.items():
        assert len(np.unique(values)) > 4
        params = reward.load(Vocabulary(pieces))
        np.testing.assert_allclose(reward(params, *arguments), values, atol=1e-6)


def test_the_counterparts_on_text():
    assert coverage("anything", []) == 1 and coverage("", ["a"]) == 0
    assert coverage("The ﬁne cafe\u0301", ["FINE", "café", "fine café", "caf"]) == 0.75
    assert faithful_fraction("", "a cat") == faithful_fraction("the", "the") == 0
    assert faithful_fraction("Ｃats ran", "the cats") == 0.5
