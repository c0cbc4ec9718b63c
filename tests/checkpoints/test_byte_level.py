"""Byte-level BPE and BPE with byte pieces in a tokenizer.json, as Llama 2 and 3, Qwen and SmolLM2 have."""

import json

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from dera_jax.checkpoints import hugging_face_tokenizer as folders
from dera_jax.checkpoints.storage import open_folder
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.rewards.segmentation import words_of
from dera_jax.rewards.word_hashes import text_hashes, word_hashes, word_table
from tests.checkpoints import chat


def llama_3() -> Backend:
    """A piece that no merges form is found as a whole word."""
    return _with_whole_word(ignore_merges=True)


def merges_only() -> Backend:
    return _with_whole_word(ignore_merges=False)


def _with_whole_word(ignore_merges: bool) -> Backend:
    described = json.loads(chat.byte_level().to_str())
    described["model"]["ignore_merges"] = ignore_merges
    described["model"]["vocab"]["ĠViá»ĩt"] = max(described["model"]["vocab"].values()) + 10
    return Backend.from_str(json.dumps(described))


def qwen() -> Backend:
    built = chat.byte_level()
    built.normalizer = normalizers.NFC()
    return built


def smollm() -> Backend:
    built = chat.byte_level()
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    built.pre_tokenizer = pre_tokenizers.Sequence(parts)
    built.enable_truncation(4)
    built.enable_padding(length=64)
    return built


def llama_2() -> Backend:
    """As published: ▁ before each text, and bytes for characters without a piece."""
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *"abefhirswt</>",
        "th",
        "▁th",
    ]
    merges = [("t", "h"), ("▁", "th")]
    vocabulary = {name: i for i, name in enumerate(names)}
    built = Backend(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    built.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    built.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    built.add_special_tokens(["<unk>", "<s>", "</s>"])
    return built


KINDS = [llama_3, merges_only, qwen, smollm, llama_2]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def both(request, tmp_path_factory):
    """The tokenizer of a folder here, and transformers'."""
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"add_bos_token": True, "clean_up_tokenization_spaces": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(folders.vocabulary_of(open_folder(folder)), False), theirs


def test_ids_and_texts_are_those_of_transformers(both):
    ours, theirs = both
    off = {"add_special_tokens": False, "truncation": False, "padding": False}
    for text in (" Việt", "12345", "they're", "Việt Việt", *chat.texts(1500, seed=5)):
        whole = theirs(text, **off).input_ids
        assert ours.vocabulary.encode(text) == whole, text
        plain = theirs(text, **off, split_special_tokens=True).input_ids
        assert ours.encode(text) == plain, text
        assert ours.encode_prompt(text, 999).ids == [theirs.bos_token_id, *plain]
        decoded = theirs.decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(whole) == decoded


def test_a_whole_word_is_one_piece_where_merges_are_ignored(both, request):
    ours, theirs = both
    kind = request.node.callspec.params["both"]
    whole = theirs.convert_tokens_to_ids("ĠViá»ĩt")
    assert (ours.encode(" Việt") == [whole]) == (kind is llama_3)


def test_spaces_before_punctuation_are_kept(both):
    """Although transformers removes them for checkpoints with `clean_up_tokenization_spaces`."""
    ours, _ = both
    text = "the : x != y , isn 't it ?"
    assert ours.decode(ours.encode(text)).strip() == text


def test_the_bytes_of_pieces_join_to_the_text(both):
    ours, _ = both
    table = ours.vocabulary.piece_bytes()
    for text in ("🙂🙂", "caf\u00e9 日本 👩‍👧", *chat.texts(200, seed=6)):
        ids = ours.encode(text)
        joined = b"".join(table[i] for i in ids).decode()
        assert joined.strip(" ") == ours.decode(ids).strip(" ")
    assert len(ours.encode("🙂")) > 1 and "\ufffd" in ours.decode(ours.encode("🙂")[:-1])


def test_words_are_found_though_pieces_split_characters(both):
    ours, _ = both
    table = word_table(ours.vocabulary.piece_bytes())
    texts = ["naïve 🙂🙂 café über", "🙂", "x🙂y the fox", ""]
    ids = [ours.encode(text) for text in texts]
    ids.append(ours.encode("the 🙂")[:-1])  # ends within a character
    texts.append("the")
    size = max(map(len, ids))
    tokens = np.array([row + [0] * (size - len(row)) for row in ids], np.int32)
    found = np.asarray(text_hashes(table, tokens, np.array([len(row) for row in ids])))
    alone = lambda word: int(
        np.asarray(word_hashes(table, np.frombuffer(word.encode().ljust(400, b"\0"), np.uint8)))[0]
    )
    for row, text in zip(found.tolist(), texts, strict=True):
        assert [x for x in row if x] == [alone(word) for word in words_of(text)]


@pytest.mark.parametrize("as_text", [True, False], ids=["merges are strings", "merges are pairs"])
def test_merges_do_not_form_control_tokens_that_a_text_spells(tmp_path, as_text):
    described = json.loads(llama_2().to_str())
    model = described["model"]
    for name in ("</", "s>"):
        model["vocab"][name] = len(model["vocab"])
    merges = [["<", "/"], ["s", ">"], ["</", "s>"]]
    model["merges"] = [" ".join(pair) for pair in merges] if as_text else merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ours = folders.vocabulary_of(open_folder(tmp_path))
    assert ours.encode("</s>") == [2]
    assert [ours.pieces[i] for i in ours.encode_text("</s>")] == ["▁", "</", "s>"]
