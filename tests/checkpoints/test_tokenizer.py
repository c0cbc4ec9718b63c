"""Prompts and completions as models read them; transformers' own tokenizer is the reference.

The pieces are letters and a few words, so that the ids of every text here can be told by hand.
"""

import dataclasses
import json
import string

import pytest
import seqio
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, processors

from dera_jax.checkpoints import hugging_face_tokenizer as folders
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.convert import convert
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.storage import open_folder
from dera_jax.checkpoints.tokenizer import Tokenizer, tokenizer
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.prompts import Prompt
from dera_jax.tasks import vocabularies
from tests.tiny import LLAMA, params

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|user|>")
LETTERS = string.ascii_lowercase + "<>/|_:.0Ġ"
BEGIN, END = 1, 2
SPELT = ("</s>", "a</s>b", "say <s> </s>", "<extra_id_0>", "a <extra_id_0> b", "<pad>", "<|user|>")
PLAIN = ("", "say it", "a: b.", " two  spaces ")


def byte_level(adds_begin: bool) -> tokenizers.Tokenizer:
    """As Llama's: special tokens, an added token <sep>, and letters, of which "say" has an id."""
    names = [*SPECIAL, *LETTERS, "sa", "say", "Ġsay"]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [("s", "a"), ("sa", "y"), ("Ġ", "say")]
    built = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(list(SPECIAL))
    built.add_tokens(["<sep>"])
    if adds_begin:
        built.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BEGIN)]
        )
    return built


def written(folder, adds_begin=True, **config):
    """A tokenizer's folder as transformers saves it."""
    folder.mkdir()
    byte_level(adds_begin).save(str(folder / "tokenizer.json"))
    named = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>"}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def vocabulary_of(folder) -> JsonVocabulary:
    return folders.vocabulary_of(open_folder(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tokenizer") / "llama")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> SentencePieceVocabulary:
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    texts = ["say it: some words to make pieces from </s> <extra_id_0> <pad>, and yet more of them"]
    vocabularies.train(texts * 9, str(path), 76)
    return SentencePieceVocabulary(path, 3)


@pytest.fixture(scope="module")
def with_sentinels(pieces, tmp_path_factory) -> SentencePieceVocabulary:
    """The same pieces in a file that holds its sentinels."""
    model = sentencepiece_model_pb2.ModelProto.FromString(pieces.content())
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    for i in reversed(range(3)):
        model.pieces.add(piece=f"<extra_id_{i}>", score=0.0, type=kind)
    path = tmp_path_factory.mktemp("complete") / "spiece.model"
    path.write_bytes(model.SerializeToString())
    return SentencePieceVocabulary(path)


@pytest.fixture(scope="module")
def unigram(pieces, tmp_path_factory) -> JsonVocabulary:
    """The same pieces as transformers 5 saves them: control tokens are pieces of its model."""
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
    folders.save_tokenizer(ours, pieces)
    transformers.T5Tokenizer.from_pretrained(ours).save_pretrained(theirs)
    return vocabulary_of(theirs)


@pytest.fixture(scope="module")
def word_level(tmp_path_factory) -> JsonVocabulary:
    built = tokenizers.Tokenizer(
        models.WordLevel(dict(zip([*SPECIAL, "say"], range(9), strict=False)), unk_token="<unk>")
    )
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.add_special_tokens(list(SPECIAL))
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    built.save(str(path))
    return JsonVocabulary(path)


@pytest.fixture
def vocabulary(request, llama):
    return (
        vocabulary_of(llama) if request.param == "llama" else request.getfixturevalue(request.param)
    )


ALL = ["llama", "pieces", "with_sentinels", "unigram", "word_level"]


# What surrounds a text


def test_a_prompt_of_an_encoder_ends(pieces):
    text = tokenizer(pieces)
    found = text.encode_prompt("say it", 99)
    assert found == ([*pieces.encode("say it"), pieces.end_id], 0)
    assert text.encode_completion("it") == [*pieces.encode("it"), pieces.end_id]


def test_a_prompt_of_a_decoder_begins_and_does_not_end(llama):
    vocabulary = vocabulary_of(llama)
    text = tokenizer(vocabulary, ends_prompts=False)
    theirs = transformers.AutoTokenizer.from_pretrained(llama)
    for prompt in ("say it", "a <sep> b", ""):
        assert text.encode_prompt(prompt, 99) == (theirs(prompt).input_ids, 0)
        assert text.encode_completion(prompt) == [
            *theirs(prompt, add_special_tokens=False).input_ids,
            theirs.eos_token_id,
        ]
    assert text.encode_prompt("say", 99).ids[0] == BEGIN
    silent = tokenizer(dataclasses.replace(vocabulary, begin=None), ends_prompts=False)
    assert silent.encode_prompt("say", 99) == (vocabulary.encode("say"), 0)
    ends = tokenizer(vocabulary, ends_prompts=True)
    assert ends.encode_prompt("say", 99) == ([*vocabulary.encode("say"), END], 0)


def test_bytes_have_no_begin_token():
    text = tokenizer(ByteVocabulary(), ends_prompts=False)
    assert text.encode_prompt("ab", 9) == ([ord("a") + 3, ord("b") + 3], 0)


# What is too long


@pytest.mark.parametrize("ends_prompts", [True, False])
@pytest.mark.parametrize("keep_end", [False, True])
@pytest.mark.parametrize("vocabulary", ["llama", "pieces", "unigram"], indirect=True)
def test_a_long_prompt_is_cut_within_its_document(vocabulary, keep_end, ends_prompts):
    text = Tokenizer(vocabulary, ends_prompts)
    prompt = Prompt("say a b say c d", "it: {document} in some:", keep_end=keep_end)
    before, after = text.encode("it:"), text.encode(" in some:")
    whole = text.encode(prompt.render())
    document = whole[len(before) : len(whole) - len(after)]
    assert whole == [*before, *document, *after]
    assert text.decode(document).strip() == prompt.document
    begin, end = text.control_tokens
    around = len(whole) - len(document) + len(begin) + len(end)
    for room in range(len(document) + 1):
        kept = document[len(document) - room :] if keep_end else document[:room]
        expected = [*begin, *before, *kept, *after, *end], len(document) - room
        assert text.encode_prompt(prompt, around + room) == expected
    assert text.encode_prompt(prompt, around + len(document) + 7) == expected


@pytest.mark.parametrize("ends_prompts", [True, False])
def test_a_template_that_is_too_long_by_itself_leaves_nothing_of_the_document(llama, ends_prompts):
    text = Tokenizer(vocabulary_of(llama), ends_prompts)
    begin, end = text.control_tokens
    prompt = Prompt("say a b", "it: {document} in short:")
    template = [*text.encode("it:"), *text.encode(" in short:")]
    document = len(text.encode(prompt.render())) - len(template)
    for size in range(2, len(template) + 1):
        expected = [*begin, *template[: size - 1], *end]
        assert text.encode_prompt(prompt, size) == (expected, document)


def test_a_token_that_joins_template_and_document_is_the_document_s(llama):
    """ "Ġsay" alone has both the template's space and the document's first word."""
    text = Tokenizer(vocabulary_of(llama), ends_prompts=True)
    prompt = Prompt("say", "it: {document}")
    before, joined = text.encode("it:"), text.vocabulary.pieces.index("Ġsay")
    assert text.encode_prompt(prompt, 5) == ([*before, joined, END], 0)
    assert text.encode_prompt(prompt, 4) == ([*before, END], 1)


# Control tokens that a text spells


@pytest.mark.parametrize("vocabulary", ALL, indirect=True)
@pytest.mark.parametrize("spelt", SPELT)
def test_control_tokens_that_a_text_spells_are_characters(vocabulary, spelt):
    control = {vocabulary.end_id, vocabulary.padding_id, vocabulary.begin_id} - {None}
    names = (*SPECIAL, *(f"<extra_id_{i}>" for i in range(3)))
    control |= {i for i, name in enumerate(vocabulary.pieces) if name in names}
    control -= {vocabulary.unknown_id}  # what has no piece
    for ends_prompts in (True, False):
        text = Tokenizer(vocabulary, ends_prompts)
        begin, end = text.control_tokens
        prompt = text.encode_prompt(Prompt(spelt, "say {document}"), 99).ids
        assert not control & set(prompt[len(begin) : len(prompt) - len(end)])
        completion = text.encode_completion(spelt)
        assert not control & set(completion[:-1]) and completion[-1] == vocabulary.end_id
        if vocabulary.unknown_id not in completion and vocabulary.file.endswith(".json"):
            assert text.decode(completion).strip() == spelt


@pytest.mark.parametrize("text", [*SPELT, *PLAIN, "a <sep> b"])
def test_encode_is_still_that_of_transformers(llama, text):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(llama), vocabulary_of(llama)
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    spelt = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ours.encode_text(text) == spelt


@pytest.mark.parametrize("text", [*SPELT, *PLAIN])
def test_encode_is_still_that_of_transformers_t5_and_of_seqio(pieces, unigram, text, tmp_path):
    folders.save_tokenizer(tmp_path, unigram)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert unigram.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert pieces.encode(text) == seqio.SentencePieceVocabulary(pieces.file, 3).encode(text)
    plain = unigram.encode(text) == pieces.encode(text) and "<" not in text
    assert plain == (text in PLAIN)
    for vocabulary in (unigram, pieces):
        assert (vocabulary.encode_text(text) == vocabulary.encode(text)) or not plain


# The begin token


@pytest.mark.parametrize(
    ("adds_begin", "config", "expected"),
    [
        (True, {}, BEGIN),
        (True, {"bos_token": None}, BEGIN),  # what the file adds, named or not
        (False, {}, None),
        (True, {"add_bos_token": True}, BEGIN),
        (False, {"add_bos_token": True}, BEGIN),
        (True, {"add_bos_token": False}, None),
        (False, {"add_bos_token": False}, None),
    ],
)
def test_the_begin_token_of_a_folder(tmp_path, adds_begin, config, expected):
    folder = written(tmp_path / "m", adds_begin, **config)
    found = vocabulary_of(folder)
    assert found.begin_id == expected
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    if config.get("add_bos_token", adds_begin) == adds_begin:  # transformers 5 asks the file alone
        prompt = Tokenizer(found, ends_prompts=False).encode_prompt("say it", 99)
        assert prompt.ids == theirs("say it").input_ids


@pytest.mark.parametrize("name", [None, "<none>"])
def test_a_begin_token_that_is_no_token_is_refused(tmp_path, name):
    folder = written(tmp_path / "m", add_bos_token=True, bos_token=name)
    message = f"tokenizer_config.json: add_bos_token is true, but bos_token is {name!r}"
    with pytest.raises(ValueError, match=message):
        vocabulary_of(folder)


def test_a_tokenizer_that_adds_an_end_has_no_begin(unigram):
    assert unigram.begin is None and unigram.end_id == 1


@pytest.mark.parametrize("adds_begin", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_the_begin_token_survives_folders_and_conversion_both_ways(tmp_path, adds_begin, said):
    vocabulary = vocabulary_of(written(tmp_path / "m", adds_begin, add_bos_token=said))
    expected = ([BEGIN] * said + vocabulary.encode("say it"), 0)
    config = dataclasses.replace(LLAMA, end_ids=(END,))
    save_model(tmp_path / "ours", config, vocabulary, params(Llama(LLAMA)), {})
    convert(str(tmp_path / "ours"), str(tmp_path / "theirs"), "hugging_face")
    convert(str(tmp_path / "theirs"), str(tmp_path / "again"), "dera_jax")
    for name in ("ours", "theirs", "again"):
        assert load(tmp_path / name).encode_prompt("say it", 99) == expected, name


# Models and pairs


@pytest.mark.parametrize("family", [Llama, T5])
def test_models_and_pairs_read_text(tmp_path, llama, family):
    vocabulary = vocabulary_of(llama)
    t5 = T5Config(64, 8, 2, 1, 1, 4, 8, ("relu",), True)
    config = dataclasses.replace(LLAMA if family is Llama else t5, end_ids=(END,))
    save_model(tmp_path / "m", config, vocabulary, params(family(config)), {})
    model, pair = load(tmp_path / "m"), load(tmp_path / "m", tmp_path / "m")
    alone = vocabulary.encode("say it")
    for found in (model, pair):
        expected = [BEGIN, *alone] if family is Llama else [*alone, END]
        assert found.encode_prompt("say it", 99) == (expected, 0)
        assert found.encode_completion("say it") == [*alone, END]
        assert found.decode([BEGIN, *alone, END, 63]) == "say it"


def test_a_model_that_does_not_say_its_ids_reads_no_text(tmp_path):
    save_model(tmp_path / "m", LLAMA, None, params(Llama(LLAMA)), {})
    with pytest.raises(ValueError, match="does not say what its ids mean.*Name it: VOCABULARY"):
        load(tmp_path / "m").encode_prompt("say it", 9)
