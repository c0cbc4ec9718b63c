"""Tasks of pairs: what is read, how each bad line is reported, and how one file is divided."""

import itertools
import json
import re

import pytest
import seqio

from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.tasks import preferences
from tests.texts import BYTES

PAIRS = [
    {"document": f"Report {i // 2} is here.", "chosen": f"Good {i}.", "rejected": f"Bad {i}."}
    for i in range(6)  # two pairs for each document
]
_names = (f"pairs_{i}" for i in itertools.count())


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines))
    return str(path)


def register(path, split="train", template="summarize: {document}"):
    name = next(_names)
    preferences.register(name, {split: path}, template)
    return name


def examples(name, split="train"):
    task = seqio.get_mixture_or_task(name)
    return list(task.get_dataset(None, split, shuffle=False).as_numpy_iterator())


def test_a_file_becomes_pairs_of_texts(tmp_path):
    found = examples(register(write(tmp_path / "a.jsonl", PAIRS), template="tl;dr: {document}"))
    assert len(found) == len(PAIRS)
    for row, pair in zip(found, PAIRS, strict=True):
        texts = {
            "inputs": "tl;dr: " + pair["document"],
            "targets": pair["chosen"],
            "rejected": pair["rejected"],
        }
        for feature, text in texts.items():
            assert row[feature].decode() == text


def test_the_loader_takes_chosen_as_targets(tmp_path):
    name = register(write(tmp_path / "a.jsonl", PAIRS))
    found = task_data.epoch(name, "train", BYTES, Sizes(40, 20), seed=0)
    assert found.summaries == [pair["chosen"] for pair in PAIRS]
    assert [BYTES.decode(ids.tolist()) for ids in found.rejected.tokens] == [
        p["rejected"] for p in PAIRS
    ]


def test_every_pair_of_a_document_has_an_id_of_its_own(tmp_path):
    same_chosen = [PAIRS[0], PAIRS[0] | {"rejected": "Other."}]
    same_rejected = [PAIRS[0], PAIRS[0] | {"chosen": "Other."}]
    border = [{"document": "a", "chosen": c, "rejected": r} for c, r in (("bc", "d"), ("b", "cd"))]
    for rows in (PAIRS, same_chosen, same_rejected, border):
        found = examples(register(write(tmp_path / "a.jsonl", rows)))
        assert len({int(row["example_id"]) for row in found}) == len(rows)
        assert min(row["example_id"] for row in found) >= 0


def test_further_texts_are_kept_and_other_values_ignored(tmp_path):
    rows = [pair | {"source": "paper", "corruption": "", "score": 3} for pair in PAIRS]
    for row in examples(register(write(tmp_path / "a.jsonl", rows))):
        assert (row["source"], row["corruption"]) == (b"paper", b"")
        assert "score" not in row


@pytest.mark.parametrize(
    "bad, message",
    [
        ("nothing\n", "not valid JSON"),
        (["a"], "expected one JSON object per line (JSON Lines), found list"),
        ({"document": "a", "chosen": "b"}, "key 'rejected' is missing, found"),
        ({"document": "a", "chosen": 3, "rejected": "c"}, "'chosen' must be a string, found int"),
        ({"document": " ", "chosen": "b", "rejected": "c"}, "'document' is empty"),
        ({"document": "a", "chosen": "b c", "rejected": "b  c "}, "are the same"),
        (PAIRS[0] | {"source": "b"}, "a 'source', unlike the lines before"),
        (PAIRS[0] | {"targets": "b"}, "key 'targets' is reserved for a field of the task"),
        (
            PAIRS[0] | {"a_pretokenized": "b"},
            "key 'a_pretokenized' is reserved for a field of the task",
        ),
        (PAIRS[0] | {"source": "\ud83d"}, "'source' is not valid Unicode"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    path = write(tmp_path / "bad.jsonl", [*PAIRS[:2], bad, *PAIRS[2:]])
    expected = re.escape(f"{path}, line 3: ") + ".*" + re.escape(message)
    with pytest.raises((ValueError, TypeError), match=expected):
        examples(register(path))


def test_no_split():
    with pytest.raises(ValueError, match="task 'nothing': `paths` has no split"):
        preferences.register("nothing", {})


def test_rows_are_split_by_document():
    fractions = {"train": 0.7, "validation": 0.2, "test": 0.1}
    documents = [f"document {i // 2}" for i in range(4000)]
    rows = {"document": documents, "chosen": [str(i) for i in range(4000)]}
    found = preferences.split_rows(rows, fractions)
    for split, share in fractions.items():
        assert len(found[split]["document"]) == pytest.approx(share * 4000, abs=150)
    kept = [set(found[split]["document"]) for split in fractions]
    assert not kept[0] & kept[1] | kept[0] & kept[2] | kept[1] & kept[2]
    assert set.union(*kept) == set(documents)
    for columns in found.values():
        for document, chosen in zip(columns["document"], columns["chosen"], strict=True):
            assert document == documents[int(chosen)]
    fewer = preferences.split_rows({"document": documents[:100]}, fractions)
    assert set(fewer["test"]["document"]) == set(documents[:100]) & kept[2]


def test_a_part_of_the_document_can_decide():
    rows = {"document": [f"{i % 40} turn {i}" for i in range(400)]}
    found = preferences.split_rows(
        rows, {"train": 0.5, "test": 0.5}, key=lambda text: text.split()[0]
    )
    first = [{text.split()[0] for text in found[split]["document"]} for split in found]
    assert first[0] and first[1] and not first[0] & first[1]


def test_one_file_gives_all_splits(tmp_path):
    path = write(tmp_path / "a.jsonl", [p | {"document": f"{i}"} for i in range(40) for p in PAIRS])
    name = next(_names)
    preferences.register_one_file(name, path, {"train": 0.5, "dev": 0.5})
    found = {split: {row["inputs"] for row in examples(name, split)} for split in ("train", "dev")}
    assert found["train"] and found["dev"] and not found["train"] & found["dev"]
    assert len(found["train"] | found["dev"]) == 40


@pytest.mark.parametrize(
    "fractions, message",
    [
        ({}, "add up to 1"),
        ({"train": 0.9, "test": 0.2}, "add up to 1, found {'train': 0.9, 'test': 0.2}"),
        ({"train": 1.0, "test": 0.0}, "fractions['test']: expected a positive number, found 0.0"),
        ({"train": float("nan")}, "fractions['train']: expected a positive number"),
    ],
)
def test_bad_fractions(fractions, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        preferences.register_one_file("bad_shares", "nowhere.jsonl", fractions)


def test_the_halves_of_train_share_no_document(tmp_path):
    rows = [
        {"document": f"report {i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(40)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = register(str(path))
    whole, first, second = (examples(name, split) for split in ("train", "train_a", "train_b"))
    texts = [{x["inputs"] for x in found} for found in (whole, first, second)]
    assert not texts[1] & texts[2] and texts[1] | texts[2] == texts[0]
    assert len(first) + len(second) == len(whole) == 40 and min(len(first), len(second)) > 8


def test_pairs_may_have_keywords(tmp_path):
    row = {"document": "d", "chosen": "a", "rejected": "b", "keywords": ["solar  power", "Rome"]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = examples(register(str(path)))
    assert found["keywords"] == b"solar power\nRome"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_halves_of_a_share_are_halves(tmp_path, share):
    """Though a hash of the document has already decided that it is in `train`."""
    rows = [{"document": f"report {i}", "chosen": "a", "rejected": "b"} for i in range(400)]
    path, name = write(tmp_path / "a.jsonl", rows), next(_names)
    preferences.register_one_file(name, path, {"train": share, "test": 1 - share})
    sizes = [len(examples(name, split)) for split in ("train", "train_a", "train_b")]
    assert sizes[0] == sizes[1] + sizes[2]
    assert 0.35 * sizes[0] < sizes[1] < 0.65 * sizes[0]
