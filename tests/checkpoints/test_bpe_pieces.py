"""SentencePiece files of decoder-only models; transformers' LlamaTokenizer is the reference."""

import io
import itertools
import json

import pytest
import sentencepiece
import transformers
from sentencepiece import sentencepiece_model_pb2

from dera_jax.checkpoints import hugging_face_tokenizer as folders
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.storage import open_folder
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.checkpoints.vocabulary import TextPart
from tests.checkpoints import chat

OPTIONS = {
    "model_type": "bpe", "vocab_size": 430, "byte_fallback": True, "character_coverage": 0.98,
    "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True,
    "allow_whitespace_only_pieces": True, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1,
    "minloglevel": 2,
}  # fmt: skip
TEXTS = (
    "Hey",
    "<s>Hey",
    "</s>I",
    "</s> I",
    "a</s>b",
    "a </s> b",
    "<s></s>",
    "",
    " ",
    "  Hey",
    "\nx",
)


def trained(**changed) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*chat.CORPUS, "</s> <s> Hey I"] * 20), model_writer=model, **OPTIONS | changed
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def content():
    return trained()


def write(folder, content, added=None, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    described = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def vocabulary_of(folder) -> JsonVocabulary:
    return folders.vocabulary_of(open_folder(folder))


@pytest.mark.parametrize(
    "config",
    [{}, {"legacy": True}, {"legacy": False}, {"add_prefix_space": False}, {"legacy": None}],
    ids=str,
)
def test_ids_and_texts_are_those_of_transformers(tmp_path, content, config):
    folder = write(tmp_path / "m", content, **config)
    ours, theirs = vocabulary_of(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "LlamaTokenizer"
    for text in (*TEXTS, *chat.texts(1500)):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == ids, text
        assert ours.encode_parts([TextPart(text, has_control=True)]) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.encode_text(text) == plain
        prompt = tokenizer(ours, ends_prompts=False).encode_prompt(text, 999).ids
        assert prompt == [theirs.bos_token_id, *plain]


def test_ids_are_those_of_sentencepiece_unless_a_text_begins_with_a_space(tmp_path, content):
    ours = vocabulary_of(write(tmp_path / "m", content))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in chat.texts(1000, seed=3):
        spaced = text.startswith((" ", "▁"))
        assert ours.encode_text(" " * spaced + text) == theirs.encode(text), text
    assert list(ours.pieces) == [theirs.id_to_piece(i) for i in range(len(theirs))]


def test_legacy_puts_a_space_behind_control_tokens(tmp_path, content):
    pieces = {}
    for legacy in (True, False):
        found = vocabulary_of(write(tmp_path / str(legacy), content, legacy=legacy))
        pieces[legacy] = [found.pieces[i] for i in found.encode("<s>Hey")]
    assert pieces[True][:2] == ["<s>", "▁Hey"] and pieces[False][:2] == ["<s>", "Hey"]


def test_prompts_begin_with_the_begin_token_unless_told_otherwise(tmp_path, content):
    assert vocabulary_of(write(tmp_path / "a", content, add_bos_token=False)).begin_id is None
    folder = write(tmp_path / "b", content)
    (folder / "tokenizer_config.json").unlink()
    found = vocabulary_of(folder)
    assert (found.begin_id, found.end_id, found.unknown_id, found.padding_id) == (1, 2, 0, None)
    assert found.special_tokens == ("<s>", "</s>", None, "<unk>")


def test_added_tokens_follow_the_pieces(tmp_path, content):
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    token = lambda text, special: flags | {"content": text, "special": special}
    decoder = {"430": token("<|im_end|>", True), "431": token("<sep>", False)}
    folder = write(
        tmp_path / "m", content, added_tokens_decoder=decoder, eos_token="<|im_end|>", chat_template=chat.CHATML
    )  # fmt: skip
    ours, theirs = vocabulary_of(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.end_id == theirs.eos_token_id == 430 and ours.pieces[431] == "<sep>"
    text = "Hey<sep>I <|im_end|>\nHey"
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert 430 not in ours.encode_text(text) and 431 in ours.encode_text(text)
    found = tokenizer(ours, False, chat_template=chat.CHATML)
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": "Hey"}], add_generation_prompt=True
    )
    assert found.encode_prompt("Hey", 999).ids == expected.input_ids
    assert found.encode_completion("Hey")[-1] == 430
    named = {
        "added": {"<|im_end|>": 430, "<sep>": 431},
        "additional_special_tokens": ["<|im_end|>"],
    }
    found = vocabulary_of(write(tmp_path / "o", content, **named))
    assert 430 not in found.encode_text(text) and 431 in found.encode_text(text)
    gap = write(tmp_path / "n", content, added={"<x>": 435})
    with pytest.raises(ValueError, match=r"tokenizer.model: the added token '<x>' has the id 435"):
        vocabulary_of(gap)


def test_other_files_are_refused(tmp_path, content):
    cases = {
        "unigram": (trained(model_type="unigram", vocab_size=330), {}, "a Unigram model"),
        "normalizes": (trained(normalization_rule_name="nmt_nfkc"), {}, "it normalizes texts"),
        "spaces": (trained(remove_extra_whitespaces=True), {}, "it normalizes texts"),
        "suffix": (trained(treat_whitespace_as_suffix=True), {}, "spaces at the ends of words"),
        "damaged": (b"IQ== 0\nIg== 1\n", {}, "is no SentencePiece model"),
        "empty": (b"", {}, "it has no pieces"),
        "class": (content, {"tokenizer_class": "GemmaTokenizer"}, "must be 'LlamaTokenizer'"),
    }
    for name, (file, config, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            vocabulary_of(write(tmp_path / name, file, **config))


def test_a_file_without_prefix_space_is_as_it_says(tmp_path, content):
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    model.normalizer_spec.add_dummy_prefix = False
    ours = vocabulary_of(write(tmp_path / "m", model.SerializeToString()))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in (*TEXTS, *chat.texts(200)):
        assert ours.encode_text(text) == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == text.replace("▁", " ")


def test_a_tokenizer_json_beside_it_must_have_the_same_pieces(tmp_path, content):
    folder = write(tmp_path / "m", content, bos_token="<s>")
    saved = tmp_path / "saved"
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    (folder / "tokenizer.json").write_bytes((saved / "tokenizer.json").read_bytes())
    found = vocabulary_of(folder)
    assert found.file.endswith("tokenizer.json") and found.converted is None
    assert found.begin_id == 1 and found.encode("</s>I")[0] == 2
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # as Llama 3's
    assert vocabulary_of(folder) == found
    (folder / "tokenizer.model").write_bytes(trained(vocab_size=425))
    with pytest.raises(
        ValueError, match=r"id \d+ is '.*' in tokenizer.model, but '.*' in tokenizer.json"
    ):
        vocabulary_of(folder)


def test_the_text_of_pieces_joins_to_the_text(tmp_path, content):
    ours = vocabulary_of(write(tmp_path / "m", content))
    texts = ours.piece_bytes()
    for text in itertools.islice(chat.texts(400, seed=9), 300):
        ids = ours.encode_text(text)
        joined = b"".join(texts[i] for i in ids).decode()
        assert joined.removeprefix(" ") == text.replace("▁", " ").removeprefix(" ")
