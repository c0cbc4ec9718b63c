"""What folders of transformers say of their ids; transformers' own tokenizer is the reference."""

import dataclasses
import json
import shutil

import pytest
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2

from dera_jax.checkpoints import hugging_face_t5
from dera_jax.checkpoints import hugging_face_tokenizer as folders
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.storage import open_folder
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.checkpoints.vocabulary import check_same
from dera_jax.tasks import vocabularies

EXTRA = 7
TEXTS = (
    "some words to make pieces from",
    "Some WORDS, 1234 of them; größe λ ﬁ",
    "<extra_id_0> words <extra_id_1> from <extra_id_6>",
    "words<sep>and <sep> more<sep>",
    "some [EDIT]words <sep><sep>",
    "  two  spaces\n",
    "",
)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A folder as transformers 4 saves a T5's tokenizer."""
    folder = tmp_path_factory.mktemp("pieces")
    text = "some words to make pieces from, and yet more of them, so that there are many"
    vocabularies.train([text] * 9, str(folder / "spiece.model"), 83)
    described = {"tokenizer_class": "T5Tokenizer", "extra_ids": EXTRA, "eos_token": "</s>"}
    return write(folder, tokenizer_config=described, config={"model_type": "t5"})


@pytest.fixture(scope="module")
def saved(pieces, tmp_path_factory):
    """The same as transformers 5 saves it, with tokens added."""
    folder = tmp_path_factory.mktemp("saved")
    theirs = transformers.AutoTokenizer.from_pretrained(pieces)
    theirs.add_tokens(["<sep>", transformers.AddedToken("[EDIT]", special=True)])
    theirs.save_pretrained(folder)
    shutil.copy(pieces / "config.json", folder)
    assert not (folder / "spiece.model").exists()
    return folder


@pytest.fixture(params=["tokenizer_config.json", "added_tokens.json"])
def with_added(request, pieces, tmp_path):
    """A SentencePiece file with added tokens beside it, in either file."""
    folder = shutil.copytree(pieces, tmp_path / "added")
    if request.param == "added_tokens.json":
        return write(folder, added_tokens={"<extra_id_0>": 89, "<sep>": 90, "[EDIT]": 91})
    token = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described["added_tokens_decoder"] = {
        "0": token | {"content": "<pad>", "special": True},
        "89": token | {"content": "<extra_id_0>", "special": True},
        "90": token | {"content": "<sep>", "special": False},
        "91": token | {"content": "[EDIT]", "special": False},
    }
    return write(folder, tokenizer_config=described)


def vocabulary_of(folder):
    return folders.vocabulary_of(open_folder(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_a_tokenizer_json_gives_the_ids_and_texts_of_transformers(saved, text):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(saved), vocabulary_of(saved)
    ids = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    beyond = [len(theirs), 319, -1]
    assert ours.decode([*beyond, *ids, 1, 0, *beyond]) == ours.decode(ids)


def test_special_ids_and_pieces_are_those_of_transformers(saved):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(saved), vocabulary_of(saved)
    assert (ours.end_id, ours.padding_id, ours.unknown_id) == (1, 0, 2)
    assert list(ours.pieces) == theirs.convert_ids_to_tokens(range(len(theirs)))
    assert ours.pieces[90:] == ("<sep>", "[EDIT]")
    assert tokenizer(ours).end_id == 1


def test_two_kinds_of_files_with_the_same_pieces_are_the_same_vocabulary(pieces, saved, tmp_path):
    check_same(
        vocabulary_of(pieces),
        JsonVocabulary(_plain(pieces, tmp_path) / "tokenizer.json"),
        "spiece.model",
        "tokenizer.json",
    )
    with pytest.raises(ValueError, match=r"differ at id 90: '\(no such id\)' in a, '<sep>' in b"):
        check_same(vocabulary_of(pieces), vocabulary_of(saved), "a", "b")


def _plain(pieces, folder):
    transformers.AutoTokenizer.from_pretrained(pieces).save_pretrained(folder / "plain")
    return folder / "plain"


@pytest.mark.parametrize("text", TEXTS)
def test_added_tokens_beside_a_sentencepiece_file(with_added, text):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(with_added), vocabulary_of(with_added)
    assert isinstance(ours, SentencePieceVocabulary) and ours.added == ("<sep>", "[EDIT]")
    ids = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == ids
    if 2 not in ids:  # SentencePiece writes ⁇ for what it does not know
        kept = [i for i in ids if not theirs.convert_ids_to_tokens(i).startswith("<extra")]
        # Of added_tokens.json, transformers puts texts in the normalizer's lower case.
        assert ours.decode(ids).lower() == theirs.decode(kept).lower()
        assert ours.decode([91]) == "[EDIT]"


@pytest.mark.parametrize(("inside", "expected"), [(0, 183), (EXTRA, 90)])
def test_sentinels_are_a_hundred_unless_the_file_holds_them(pieces, tmp_path, inside, expected):
    model = sentencepiece_model_pb2.ModelProto.FromString((pieces / "spiece.model").read_bytes())
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    for i in reversed(range(inside)):
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=kind)
    folder = write(tmp_path / "m", tokenizer_config={"tokenizer_class": "T5Tokenizer"})
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    assert len(vocabulary_of(folder).pieces) == expected


def test_a_folder_may_hold_both_files_if_they_agree(saved, with_added, tmp_path):
    both = shutil.copytree(with_added, tmp_path / "both")
    shutil.copy(saved / "tokenizer.json", both)
    assert isinstance(vocabulary_of(both), JsonVocabulary)
    write(both, tokenizer_config={"extra_ids": EXTRA}, added_tokens={"<sep>": 90, "[OTHER]": 91})
    with pytest.raises(
        ValueError, match=r"id 91 is '\[OTHER\]' among the added tokens .*'\[EDIT\]'"
    ):
        vocabulary_of(both)
    (both / "added_tokens.json").unlink()
    with pytest.raises(ValueError, match=r"id 90: '\(no such id\)' in .*spiece.model, '<sep>' in"):
        vocabulary_of(both)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<sep>": 92}}, r"have the ids \[92\]; they must follow the 90 ids"),
        ({"added_tokens": {"x": 5}}, r"id 5 is 'x' among the added tokens .* in spiece.model"),
        ({"special_tokens_map": {"eos_token": "<unk>"}}, "eos_token is '</s>' in .* '<unk>' in"),
        ({"tokenizer_config": {"eos_token": "<unk>"}}, "eos_token is '<unk>', but .* with id 1"),
        ({"tokenizer_config": {"extra_ids": -1}}, "extra_ids is -1; it must be"),
        (
            {
                "tokenizer_config": {
                    "added_tokens_decoder": {"183": {"content": "x", "single_word": True}}
                }
            },
            "'x' has single_word",
        ),
    ],
)
def test_what_contradicts_or_is_not_supported_is_refused(pieces, tmp_path, files, message):
    folder = write(shutil.copytree(pieces, tmp_path / "m"), **files)
    with pytest.raises(ValueError, match=message):
        vocabulary_of(folder)


def test_a_byte_vocabulary_has_no_added_tokens(tmp_path):
    folder = write(tmp_path, tokenizer_config={"tokenizer_class": "ByT5Tokenizer"})
    assert vocabulary_of(folder) == ByteVocabulary()
    write(folder, added_tokens={"<extra_id_0>": 259, "<sep>": 384})
    with pytest.raises(ValueError, match="'<sep>' with id 384; a byte vocabulary"):
        vocabulary_of(folder)


def test_nothing_says_what_the_ids_mean(tmp_path):
    folder = open_folder(write(tmp_path, tokenizer_config={"tokenizer_class": None}))
    assert folders.vocabulary_of(folder) is None
    message = folders.no_vocabulary(folder)
    assert all(name in message for name in ("tokenizer.json", "spiece.model", "--vocabulary"))


@pytest.mark.parametrize("kind", ["pieces", "saved", "added"])
def test_what_is_written_transformers_reads(kind, request, tmp_path):
    ours = vocabulary_of(request.getfixturevalue("saved" if kind == "saved" else "pieces"))
    if kind == "added":
        ours = dataclasses.replace(ours, added=("<sep>", "[EDIT]"))
    folders.save_tokenizer(write(tmp_path / "m", config={"model_type": "t5"}), ours)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in TEXTS:
        assert again(text, add_special_tokens=False).input_ids == ours.encode(text)
    assert (again.eos_token_id, again.pad_token_id, again.unk_token_id) == (1, 0, 2)
    check_same(ours, vocabulary_of(tmp_path / "m"), "a", "b")


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, {}, (0, ())),
        ({"eos_token_id": 2, "pad_token_id": 0}, {}, (0, (2,))),
        ({"decoder_start_token_id": 5}, {"eos_token_id": [4]}, (5, (4,))),
        ({"eos_token_id": 1}, {"eos_token_id": 1, "decoder_start_token_id": 0}, (0, (1,))),
        ({"eos_token_id": None}, {}, (0, ())),
        ({"eos_token_id": [1, 2]}, {"eos_token_id": [2, 1]}, (0, (1, 2))),
        ({"eos_token_id": 0}, {}, (0, (0,))),
        ({}, {"pad_token_id": 3}, (3, ())),
        ({"eos_token_id": 1}, {"eos_token_id": 2}, "eos_token_id is 1 in config.json and 2 in gen"),
        (
            {"eos_token_id": [1, 2]},
            {"eos_token_id": 1},
            "eos_token_id is 1, 2 in config.json and 1",
        ),
        ({"pad_token_id": [0, 1]}, {}, r"pad_token_id lists the ids \[0, 1\]; it must be one"),
        ({"eos_token_id": "1"}, {}, "eos_token_id is '1'; it must be a token id"),
        ({"eos_token_id": True}, {}, "eos_token_id is True; it must be a token id"),
        ({"decoder_start_token_id": -1}, {}, "decoder_start_token_id is -1; it must be"),
    ],
)
def test_ids_of_config_and_generation_config(tmp_path, config, generation, expected):
    folder = open_folder(write(tmp_path, config=config, generation_config=generation))
    if not isinstance(expected, str):
        assert tuple(hugging_face_t5.token_ids(folder).values()) == expected
        return
    with pytest.raises(ValueError, match=expected):
        hugging_face_t5.token_ids(folder)


def _built(decoder, vocabulary):
    model = tokenizers.models.BPE(dict(zip(vocabulary, range(99), strict=False)), [], unk_token="u")
    found = tokenizers.Tokenizer(model)
    found.decoder = decoder
    return found


@pytest.mark.parametrize(
    ("decoder", "vocabulary"),
    [
        (tokenizers.decoders.Metaspace(), ["u", "▁a", "b", "▁é"]),
        (tokenizers.decoders.ByteLevel(), ["u", "Ġa", "b", "ĠÃ©", "Ċ", "Ã", "©"]),
        (
            tokenizers.decoders.Sequence(
                [
                    tokenizers.decoders.Replace("▁", " "),
                    tokenizers.decoders.ByteFallback(),
                    tokenizers.decoders.Fuse(),
                    tokenizers.decoders.Strip(" ", 1, 0),
                ]
            ),
            ["u", "▁a", "b", "<0xC3>", "<0xA9>"],
        ),
    ],
)
def test_bytes_of_the_pieces_are_the_text(tmp_path, decoder, vocabulary):
    _built(decoder, vocabulary).save(str(tmp_path / "tokenizer.json"))
    ours = JsonVocabulary(tmp_path / "tokenizer.json", None, None, "u")
    ids = list(range(1, len(vocabulary)))
    assert b"".join(ours.piece_bytes()[1:]).decode().strip(" ") == ours.decode(ids).strip(" ")


def test_bytes_of_the_shared_pieces_are_alike(pieces, saved):
    ours, theirs = vocabulary_of(pieces).piece_bytes(), vocabulary_of(saved).piece_bytes()
    assert theirs[3:90] == ours[3:90] and theirs[90:] == [b"<sep>", b""]


@pytest.mark.parametrize("decoder", [tokenizers.decoders.WordPiece(), None])
def test_a_decoder_that_cannot_be_inverted_is_refused(tmp_path, decoder):
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel({"u": 0}, unk_token="u"))
    if decoder:
        built.decoder = decoder
    built.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer.json: rewards need the text of every piece"):
        JsonVocabulary(tmp_path / "tokenizer.json", None, None, "u").piece_bytes()


def test_a_damaged_tokenizer_json_is_named(saved, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_bytes((saved / "tokenizer.json").read_bytes()[:500])
    with pytest.raises(ValueError, match=f"{file} is no file of tokenizers"):
        JsonVocabulary(file).encode("a")
