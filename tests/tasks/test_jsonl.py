"""A user's own files: what is read, and how each bad line is reported."""

import gzip
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from dera_jax.data import task_data, text_columns
from dera_jax.data.encoding import Sizes
from dera_jax.tasks import jsonl
from tests.texts import BYTES, asked

SIZES = Sizes(40, 20)
PAIRS = [{"document": f"Report {i} is here.", "summary": f"Report {i}."} for i in range(5)]
_names = (f"jsonl_{i}" for i in itertools.count())


def write(path, lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


def dump(rows):
    return [json.dumps(row) + "\n" for row in rows]


def register(path, split="train", template="summarize: {document}"):
    name = next(_names)
    jsonl.register(name, {split: path}, template)
    return name


def test_a_file_becomes_examples(tmp_path):
    rows = [row | {"source": "ignored"} for row in PAIRS]
    name = register(write(tmp_path / "a.jsonl", dump(rows)), template="tl;dr: {document}")
    examples = task_data.epoch(name, "train", BYTES, SIZES, seed=0)
    assert examples.documents == [row["document"] for row in PAIRS]
    assert asked(examples) == [f"tl;dr: {row['document']}" for row in PAIRS]
    assert examples.summaries == [row["summary"] for row in PAIRS]
    for *ids, row in zip(examples.inputs.tokens, examples.inputs.lengths, PAIRS, strict=True):
        text = f"tl;dr: {row['document']}".encode()
        assert ids[0].tolist() == [b + 3 for b in text] + [1] + [0] * (39 - len(text))
        assert ids[1] == len(text) + 1


def test_example_ids_follow_the_document_not_the_line(tmp_path):
    forward = register(write(tmp_path / "a.jsonl", dump(PAIRS)))
    backward = register(write(tmp_path / "b.jsonl", dump(PAIRS[::-1])))
    first, second = (
        task_data.epoch(n, "train", BYTES, SIZES, 0).example_id for n in (forward, backward)
    )
    np.testing.assert_array_equal(first, second[::-1])
    assert len(set(first.tolist())) == len(PAIRS)
    assert first.min() >= 0


def test_long_documents_are_cut_and_keep_their_end(tmp_path):
    name = register(
        write(tmp_path / "a.jsonl", dump([{"document": "x" * 99, "summary": "y" * 99}]))
    )
    examples = task_data.epoch(name, "train", BYTES, SIZES, 0)
    for found, size in ((examples.inputs, 40), (examples.targets, 20)):
        assert found.tokens.shape == (1, size) and found.tokens[0, -1] == 1
        assert found.lengths.tolist() == [size]


@pytest.mark.parametrize(
    "bad, message",
    [
        ("{'document': 1}\n", "not valid JSON"),
        ('{"document": "cut off\n', "not valid JSON"),
        ("\n", "the line is blank, but other lines follow"),
        (b'{"document": "\xff", "summary": "b"}\n', "not UTF-8 (byte 0xff at column 15)"),
        ('{"document": "a", "summary": {"b": 1, "b": 2}}\n', "the key 'b' occurs more than"),
        ('{"document": "a" "summary": "b"}\n', "at column 18: Expecting ',' delimiter; expected"),
        ('{"a": ' + "[" * 9999 + "\n", "not valid JSON: lists or objects nested too deeply"),
        ('["a", "b"]\n', "expected one JSON object per line (JSON Lines), found list"),
        ('{"summary": "b"}\n', "key 'document' is missing, found ['summary']"),
        ('{"document": "a", "sumary": "b"}\n', "key 'summary' is missing, found"),
        ('{"document": 3, "summary": "b"}\n', "'document' must be a string, found int"),
        ('{"document": "a", "summary": null}\n', "'summary' must be a string, found NoneType"),
        ('{"document": " \\n", "summary": "b"}\n', "'document' is empty"),
        ('{"document": "a", "summary": ""}\n', "'summary' is empty"),
        ('{"document": "\\ud83d", "summary": "b"}\n', "'document' is not valid Unicode"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    path = write(tmp_path / "bad.jsonl", [*dump(PAIRS[:2]), bad, *dump(PAIRS[2:])])
    name = register(path)
    expected = re.escape(f"{path}, line 3: ") + ".*" + re.escape(message)
    with pytest.raises((ValueError, TypeError), match=expected):
        task_data.epoch(name, "train", BYTES, SIZES, 0)


def test_a_file_without_summaries_can_be_read_for_sampling(tmp_path):
    path = write(tmp_path / "a.jsonl", dump({"document": row["document"]} for row in PAIRS))
    examples = task_data.epoch(register(path, split="test"), "test", BYTES, SIZES, 0)
    assert examples.summaries == [""] * len(PAIRS)
    np.testing.assert_array_equal(examples.targets.tokens, [[1] + [0] * 19] * len(PAIRS))
    np.testing.assert_array_equal(examples.targets.lengths, 1)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_splits_that_are_learnt_from_need_summaries(tmp_path, split):
    path = write(tmp_path / "a.jsonl", dump({"document": row["document"]} for row in PAIRS))
    with pytest.raises(ValueError, match="line 1: key 'summary' is missing"):
        task_data.epoch(register(path, split), split, BYTES, SIZES, 0)


@pytest.mark.parametrize("first, second", [("a", "no"), ("no", "a")])
def test_summaries_in_some_lines_only(tmp_path, first, second):
    with_summary, without = PAIRS[0], {"document": "Another."}
    rows = [with_summary, without] if first == "a" else [without, with_summary]
    path = write(tmp_path / "a.jsonl", dump(rows))
    with pytest.raises(ValueError, match=f"line 2: {second} 'summary', unlike the lines before"):
        task_data.epoch(register(path, "test"), "test", BYTES, SIZES, 0)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl: no such file"):
        task_data.epoch(register(str(tmp_path / "nowhere.jsonl")), "train", BYTES, SIZES, 0)
    for empty in ([], ["\n", " \r\n"], ["\ufeff"]):
        path = write(tmp_path / "empty.jsonl", empty)
        with pytest.raises(ValueError, match="empty.jsonl: the file is empty"):
            task_data.epoch(register(path), "train", BYTES, SIZES, 0)
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        task_data.epoch(register(str(tmp_path)), "train", BYTES, SIZES, 0)


def test_no_split():
    with pytest.raises(ValueError, match="task 'nothing': `paths` has no split"):
        jsonl.register("nothing", {})


def test_keywords_of_a_user_s_lines_reach_the_loader(tmp_path):
    lists = [["solar power", "Rome"], [], ["a"], ["b"], ["c"]]
    rows = [row | {"keywords": words} for row, words in zip(PAIRS, lists, strict=True)]
    found = task_data.epoch(
        register(write(tmp_path / "a.jsonl", dump(rows))), "train", BYTES, SIZES, seed=0
    )
    assert found.keywords.shape == (5, 2, 11)
    assert bytes(found.keywords[0, 0]).rstrip(b"\0") == b"solar power"
    assert not found.keywords[1].any()


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ("Rome", TypeError, "line 2: 'keywords' must be a list of strings, found 'Rome'"),
        ([3], TypeError, "line 2: 'keywords' must be a list of strings"),
        (["--"], ValueError, "line 2: the keyword '--' has no letter or digit"),
    ],
)
def test_bad_keywords_are_named_with_their_line(tmp_path, keywords, error, message):
    rows = [PAIRS[0] | {"keywords": ["a"]}, PAIRS[1] | {"keywords": keywords}]
    path = write(tmp_path / "a.jsonl", dump(rows))
    with pytest.raises(error, match=re.escape(message)):
        text_columns.read_summaries(path, need_summaries=True)


CASES = Path(__file__).parents[1] / "data" / "jsonl"
RIVERS = [f"document number {i} about rivers." for i in range(3)]
ACCEPTED = {
    "blank_end": RIVERS,
    "bom": RIVERS,
    "crlf": RIVERS,
    "emoji": [
        "family 👨\u200d👩\u200d👧\u200d👦 flag 🇩🇪 skin 👍🏽",
        "العربية נכתבת right to left",
        "\u200b\u200b",
    ],
    "no_newline": RIVERS[:1],
    "separators": [
        "one\u2028two\u2029three\x85four",
        "tab\tnul\0end",
        "line one\nline two\r\nline three",
    ],
}
REFUSED = {
    "array": "array.jsonl, line 1: not valid JSON: the line begins a list",
    "cr_only": "cr_only.jsonl, line 1: not valid JSON: more than one value on the line",
    "duplicate_key": "duplicate_key.jsonl, line 1: the key 'document' occurs more than once",
    "latin1": "latin1.jsonl, line 1: not UTF-8 (byte 0xe9 at column 18), perhaps Latin-1",
    "nan": "nan.jsonl, line 1: not valid JSON: NaN is not a JSON value",
    "pretty": "pretty.jsonl, line 1: not valid JSON: the object does not end on its line",
    "utf16": "utf16.jsonl: the file is in UTF-16 or UTF-32, expected UTF-8",
}


def documents_of(path) -> list[str]:
    found = task_data.epoch(
        register(str(path), "test", template="{document}"), "test", BYTES, SIZES, seed=0
    )
    return found.documents


def packed(name, tmp_path):
    path = tmp_path / f"{name}.jsonl.gz"
    path.write_bytes(gzip.compress((CASES / f"{name}.jsonl").read_bytes()))
    return path


@pytest.mark.parametrize("name", ACCEPTED)
def test_forms_of_a_file_that_are_read(name, tmp_path):
    expected = ACCEPTED[name]
    for path in (CASES / f"{name}.jsonl", packed(name, tmp_path)):
        assert documents_of(path) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_forms_of_a_file_that_are_refused_in_a_sentence(name, tmp_path):
    for path in (CASES / f"{name}.jsonl", packed(name, tmp_path)):
        message = REFUSED[name].replace(".jsonl", path.name.removeprefix(name), 1)
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            documents_of(path)
        assert " line 2 column" not in str(error.value) and "\n" not in str(error.value)


def test_every_case_is_tested():
    assert {path.stem for path in CASES.iterdir()} == {*ACCEPTED, *REFUSED}


def test_a_packed_file_without_its_name(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(packed("crlf", tmp_path).read_bytes())
    with pytest.raises(ValueError, match="compressed by gzip; give it a name that ends in .gz"):
        documents_of(tmp_path / "a.jsonl")
