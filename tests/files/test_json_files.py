"""JSON that any reader of lines can read, and no number that is not JSON."""

import json

import pytest

from dera_jax.files import json_files

# Everything at which str.splitlines ends a line, half a character, and a text beyond the first plane.
HOSTILE = "a\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b \ud83d \N{GRINNING FACE} год"


def test_lines_survive_every_separator():
    rows = [{"text": HOSTILE}, {HOSTILE: [HOSTILE]}]
    content = json_files.to_lines(rows, "x")
    assert json_files.from_lines(content, "x") == rows
    assert [json.loads(line) for line in content.decode().splitlines()] == rows
    assert "год" in content.decode()  # for people to read


def test_lines_of_other_writers_end_at_newlines_only():
    row = {"text": "a\u2028b\x85c"}
    content = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    assert json_files.from_lines(content, "x") == [row]


def test_a_line_without_its_end_is_left_out_and_a_broken_one_named():
    assert json_files.from_lines(b'{"a": 1}\n{"a": 2', "f.jsonl") == [{"a": 1}]
    with pytest.raises(ValueError, match=r"f\.jsonl, line 2: not valid JSON"):
        json_files.from_lines(b'{"a": 1}\n{"a": 2\n', "f.jsonl")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_named_and_not_written(number, tmp_path):
    value = {"rows": [{"kl": 1.0}, {"kl": number}]}
    with pytest.raises(FloatingPointError, match=rf"rows\[1\]\.kl is {number}"):
        json_files.write(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())
