"""Words of text in many scripts, by hand."""

import unicodedata

import pytest

from dera_jax.rewards import segmentation
from dera_jax.rewards.segmentation import split_at_spaces, words_of, written_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop: x_1, 3.5 (Art)", "don t stop x_1 3 5 art"),
        ("Naïve Ärger, CAFE\u0301 Straße", "naïve ärger café strasse"),
        ("Съешь ещё Йод", "съешь ещё йод"),
        ("हिन्दी में लिखा।", "हिन्दी में लिखा"),
        ("العَرَبِيَّة، لغة", "العَرَبِيَّة لغة"),
        ("한국어, 문장.", "한국어 문장"),
        ("我爱JAX的2024年。", "我 爱 jax 的 2024 年"),
        ("ｶﾞと漢字ー", "ガ と 漢 字 ー"),
        ("ภาษา ๑๒ น้ำ", "ภา ษา ๑๒ น้ํา"),
        ("ລາວ", "ລາ ວ"),
        ("ភាសា", "ភា សា"),
        ("မြန်မာ", "မြ န် မာ"),
        ("བོད་སྐད་", "བོད སྐད"),
        ("co\u00adoperate می\u200cخواهم a\u200bb", "cooperate میخواهم a b"),
        ("ﬁne Ａ１ ½ x²", "fine a1 1 2 x2"),
        ("👨\u200d👩\u200d👧 👍🏽 … \u0301", ""),
    ],
)
def test_words_by_hand(text, words):
    for form in ("NFC", "NFD"):
        found = words_of(unicodedata.normalize(form, text))
        assert found == [unicodedata.normalize("NFKD", x) for x in words.split()]


def test_the_order_of_accents_and_case_do_not_count():
    assert words_of("ê\u0323") == words_of("ẹ\u0302") == words_of("Ệ")
    assert words_of("ᾼ") == words_of("α\u0345") != words_of("α")
    assert words_of("ñ") != words_of("n")


def test_folding_is_done_once():
    folds = segmentation.folding_table()
    assert all(folded.translate(folds) == folded for folded in folds.values())


def test_words_as_written_and_what_spaces_divide():
    assert written_words("Straße, 中国 CAFÉ!") == ["Straße", "中", "国", "CAFÉ"]
    english = "  Don't  stop:\tx_1, (Art)…\n"
    assert split_at_spaces(english) == english.split()
    assert split_at_spaces("我爱JAX。 ok") == ["我", "爱", "JAX。", "ok"]
