"""The papers' data in their published formats, read by a model of bytes."""

import gzip
import itertools
import json
import re

import pytest
import seqio
import tensorflow_datasets as tfds
from absl import logging

from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.tasks import arguments, commongen, hh_rlhf, tldr
from tests.texts import BYTES, asked

SPLITS = ("train", "validation", "test")
DEFAULTS = {
    "tldr": "DERA_JAX_TLDR",
    "tldr_pairs": "DERA_JAX_TLDR",
    "hh_rlhf": "DERA_JAX_HH_RLHF",
    "commongen": "DERA_JAX_COMMONGEN",
    "arguments": "DERA_JAX_ARGUMENTS",
}
_names = (f"paper_{i}" for i in itertools.count())


def post(number):
    return {
        "id": f"t3_{number}",
        "subreddit": "gardening",
        "title": f"Beans {number}",
        "post": f"I planted {number} beans.\n\nNone came up.",
        "summary": f" My {number} beans did not grow.",
    }


def comparison(number, choice):
    info = {key: value for key, value in post(number).items() if key != "summary"}
    texts = [f" First of {number}.", f" Second of {number}."]
    summaries = [{"text": text, "policy": "mine", "note": None} for text in texts]
    return {"info": info, "summaries": summaries, "choice": choice, "worker": "w", "split": "train"}


def dialogue(number, *answers):
    turns = [f"\n\nHuman: Question {number}?\n\nAssistant: Which one?", "\n\nHuman: The last."]
    return {
        key: "".join(turns) + f"\n\nAssistant: {answer}"
        for key, answer in zip(("chosen", "rejected"), answers, strict=True)
    }


DIALOGUES = [dialogue(i, f"Yes {i}.", f"No {i}.") for i in range(60)]
SETS = {
    "concept_set": "dog#catch_V#frisbee_N",
    "scene": ["A dog leaps to catch a frisbee.", "The dog can catch any frisbee."],
    "reason": ["Dogs play."],
}
ARGUMENTS = [
    {
        "topic": "Ban cars",
        "pro": ["Quiet streets."],
        "con": [" No trains. "],
        "text": "Quiet, but.",
    },
    {"topic": "Ban cars", "pro": ["Clean air.", "Room."], "text": "Clean air and room."},
    {"topic": "Free trains", "con": ["It is dear."], "text": "It is dear."},
]


def write(path, rows):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as out:
        out.write(text)
    return str(path)


def write_tldr(folder):
    """OpenAI's files, with other posts in every split."""
    for first, split in enumerate(SPLITS):
        write(folder / f"{split}.jsonl", [post(10 * first + i) for i in range(3)])
        write(folder / f"comparisons_{split}.jsonl", [comparison(i, i % 2) for i in range(4)])
    return str(folder)


def rows_of(name, split):
    """The rows as they come from the files."""
    source = seqio.TaskRegistry.get(name).source
    found = source.get_dataset(split, shuffle=False).as_numpy_iterator()
    return [{key: value.decode() for key, value in row.items()} for row in found]


def examples(name, split, length=300):
    return task_data.epoch(name, split, BYTES, Sizes(length, 60), seed=0)


def refused(function, path, rows, line, message):
    """Loading fails at a line with a message."""
    write(path, rows)
    expected = re.escape(f"{path}, line {line}: ") + ".*" + re.escape(message)
    with pytest.raises((ValueError, TypeError), match=expected):
        function()


@pytest.mark.parametrize("task", DEFAULTS)
def test_default_task_without_a_folder_says_what_to_set(task, monkeypatch):
    monkeypatch.delenv(DEFAULTS[task], raising=False)
    with pytest.raises(ValueError, match=f"task '{task}': set {DEFAULTS[task]} to a folder with "):
        rows_of(task, "train")


@pytest.mark.parametrize("task", DEFAULTS)
def test_default_task_reads_the_folder_of_the_environment(task, monkeypatch, tmp_path):
    content = {"hh_rlhf": DIALOGUES, "commongen": [SETS], "arguments": ARGUMENTS}
    write_tldr(tmp_path)
    for split in SPLITS if task in content else ():
        write(tmp_path / f"{split}.jsonl", content[task])
    monkeypatch.setenv(DEFAULTS[task], str(tmp_path))
    for split in SPLITS:
        assert {"document", "summary"} <= rows_of(task, split)[0].keys() or {
            "document",
            "chosen",
            "rejected",
        } <= rows_of(task, split)[0].keys()


def test_tldr_posts(tmp_path):
    name = next(_names)
    tldr.register(name, write_tldr(tmp_path))
    for first, split in enumerate(SPLITS):
        found = examples(name, split)
        numbers = range(10 * first, 10 * first + 3)
        assert found.documents == [
            f"SUBREDDIT: r/gardening\n\nTITLE: Beans {i}\n\n"
            f"POST: I planted {i} beans.\n\nNone came up."
            for i in numbers
        ]
        assert found.summaries == [f"My {i} beans did not grow." for i in numbers]
        assert BYTES.decode(found.inputs.tokens[0].tolist()) == f"{found.documents[0]}\n\nTL;DR:"
    cut = BYTES.decode(examples(name, split, length=60).inputs.tokens[0].tolist())
    assert len(cut) == 59 and cut.startswith("SUBREDDIT: r/") and cut.endswith("\n\nTL;DR:")


def test_tldr_comparisons(tmp_path):
    name = next(_names)
    tldr.register_comparisons(name, write_tldr(tmp_path))
    for split in SPLITS:
        found = examples(name, split)
        chosen = [("First", "Second")[i % 2] for i in range(4)]
        assert found.summaries == [f"{place} of {i}." for i, place in enumerate(chosen)]
        rejected = [BYTES.decode(ids.tolist()) for ids in found.rejected.tokens]
        assert rejected == [f"{('Second', 'First')[i % 2]} of {i}." for i in range(4)]
        assert found.documents[0] == tldr.prompt(post(0), "")


@pytest.mark.parametrize("missing", ["subreddit", "title", "post", "summary"])
def test_tldr_bad_post(tmp_path, missing):
    bad = {key: value for key, value in post(1).items() if key != missing}
    name = next(_names)
    tldr.register(name, str(tmp_path))
    rows = [post(0), bad]
    refused(
        lambda: rows_of(name, "train"), tmp_path / "train.jsonl", rows, 2, f"{missing!r} is missing"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"choice": 2}, "'choice' must be 0 or 1, found 2"),
        ({"choice": True}, "'choice' must be 0 or 1, found True"),
        ({"choice": "0"}, "'choice' must be 0 or 1, found '0'"),
        ({"choice": 1.0}, "'choice' must be 0 or 1, found 1.0"),
        ({"info": None}, "'info' must be an object"),
        ({"info": {"article": "News.", "title": "a"}}, "key 'subreddit' is missing"),
        ({"summaries": [{"text": "a"}]}, "'summaries' must be a list of two objects"),
        ({"summaries": ["a", "b"]}, "'summaries' must be a list of two objects"),
        ({"summaries": [{"text": "a"}, {"text": " a"}]}, "'chosen' and 'rejected' are the same"),
        ({"summaries": [{"text": "a"}, {"text": ""}]}, "'text' is empty"),
    ],
)
def test_tldr_bad_comparison(tmp_path, change, message):
    name = next(_names)
    tldr.register_comparisons(name, str(tmp_path))
    rows = [comparison(0, 0), comparison(1, 1) | change]
    path = tmp_path / "comparisons_validation.jsonl"
    refused(lambda: rows_of(name, "validation"), path, rows, 2, message)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_hh_rlhf(tmp_path, suffix):
    write(tmp_path / f"train.jsonl{suffix}", DIALOGUES)
    write(tmp_path / f"test.jsonl{suffix}", DIALOGUES[:2])
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path), validation_fraction=0.3)
    found = examples(name, "test")
    assert found.documents == [
        f"Human: Question {i}?\n\nAssistant: Which one?\n\nHuman: The last.\n\nAssistant:"
        for i in range(2)
    ]
    assert found.summaries == ["Yes 0.", "Yes 1."]
    assert [BYTES.decode(ids.tolist()) for ids in found.rejected.tokens] == ["No 0.", "No 1."]
    parts = [{row["document"] for row in rows_of(name, split)} for split in ("train", "validation")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 60
    assert 8 <= len(parts[1]) <= 28


def test_hh_rlhf_keeps_a_conversation_on_one_side(tmp_path):
    short = [
        {key: f"\n\nHuman: Question {i}?\n\nAssistant: {key}" for key in ("chosen", "rejected")}
        for i in range(60)
    ]
    write(tmp_path / "train.jsonl", DIALOGUES + short)
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path), validation_fraction=0.3)
    for split in ("train", "validation"):
        found = [re.search(r"Question \d+", row["document"])[0] for row in rows_of(name, split)]
        assert sorted(found) == sorted([*set(found)] * 2)


def test_hh_rlhf_halves_keep_conversations_together(tmp_path):
    short = [
        {key: f"\n\nHuman: Question {i}?\n\nAssistant: {key}" for key in ("chosen", "rejected")}
        for i in range(60)
    ]
    write(tmp_path / "train.jsonl", DIALOGUES + short)
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path))
    halves = [
        {re.search(rb"Question \d+", row["inputs"])[0] for row in raw(name, split)}
        for split in ("train_a", "train_b")
    ]
    assert halves[0] and halves[1] and not halves[0] & halves[1]


def raw(name, split, **lengths):
    task = seqio.get_mixture_or_task(name)
    return list(task.get_dataset(lengths or None, split, shuffle=False).as_numpy_iterator())


def test_hh_rlhf_cuts_the_beginning_of_a_long_dialogue(tmp_path):
    write(tmp_path / "train.jsonl", DIALOGUES)
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path))
    examples = task_data.epoch(name, "train", BYTES, Sizes(30, 8), seed=0)
    for ids, document in zip(examples.inputs.tokens, examples.documents, strict=True):
        assert BYTES.decode(ids.tolist()) == document[-29:]
        assert ids[-1] == 1


@pytest.mark.parametrize(
    "bad, message",
    [
        (
            {
                "chosen": dialogue(1, "a", "b")["chosen"],
                "rejected": dialogue(2, "a", "b")["rejected"],
            },
            "differ before their last response, from '1?",
        ),
        (dialogue(1, "a", "a"), "'chosen' and 'rejected' are the same"),
        (dialogue(1, "", "a"), "the last response of 'chosen' is empty"),
        (
            dialogue(1, "a", "a\n\nHuman: Thanks."),
            "'rejected' must end with the assistant's response",
        ),
        ({"chosen": "Hello.", "rejected": "Hi."}, "'chosen' must start with"),
        ({"chosen": "\n\nHuman: Hello.", "rejected": "Hi."}, "'chosen' must start with"),
        ({"chosen": dialogue(1, "a", "b")["chosen"]}, "key 'rejected' is missing"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_hh_rlhf_bad_line(tmp_path, bad, message, suffix):
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path))
    path = tmp_path / f"test.jsonl{suffix}"
    refused(lambda: rows_of(name, "test"), path, [*DIALOGUES[:3], bad], 4, message)


def test_bad_lines_can_be_left_out_but_not_silently(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    rows = [DIALOGUES[0], dialogue(1, "a", "a"), "no JSON\n", DIALOGUES[1]]
    path = write(tmp_path / "test.jsonl", rows)
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path), leave_out_bad=True)
    assert [row["chosen"] for row in rows_of(name, "test")] == ["Yes 0.", "Yes 1."]
    rows_of(name, "test")  # again: it has been said
    (text,) = said
    assert f"{path}: skipped 2 invalid lines" in text
    assert f"{path}, line 2: " in text and f"{path}, line 3: not valid JSON" in text


def test_posts_and_comparisons_can_leave_bad_lines_out_too(tmp_path):
    write(tmp_path / "train.jsonl", [post(0), {}])
    write(tmp_path / "comparisons_train.jsonl", [{}, comparison(0, 0)])
    for register in (tldr.register, tldr.register_comparisons):
        name = next(_names)
        register(name, str(tmp_path), leave_out_bad=True)
        assert len(rows_of(name, "train")) == 1


def test_a_gzip_file_cut_short_is_named(tmp_path):
    path = tmp_path / "test.jsonl.gz"
    write(path, DIALOGUES)
    path.write_bytes(path.read_bytes()[:-20])
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path), leave_out_bad=True)
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a complete gzip file")):
        rows_of(name, "test")
    path.write_text("plain")
    with pytest.raises(ValueError, match="not a complete gzip file, 0 lines could be read"):
        rows_of(name, "test")


def test_hh_rlhf_bad_share_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match="fractions\\['validation'\\]: expected a positive number"):
        hh_rlhf.register("hh_bad", str(tmp_path), validation_fraction=0.0)
    name = next(_names)
    hh_rlhf.register(name, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="train.jsonl.gz: no such file"):
        rows_of(name, "train")


def test_commongen(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.jsonl", [SETS])
    name = next(_names)
    commongen.register(name, str(tmp_path))
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        found = examples(name, split)
        assert found.documents == ["dog, catch, frisbee"] * count
        assert found.summaries == SETS["scene"][:count]
        assert asked(found) == ["generate a sentence with: dog, catch, frisbee"] * count
        assert found.notes["keywords"] == ["dog\ncatch\nfrisbee"] * count
        assert len(set(found.example_id.tolist())) == count


def test_commongen_test_without_scenes(tmp_path):
    write(
        tmp_path / "test.jsonl", [{"concept_set": "dog#run"}, {"concept_set": "a#b", "scene": []}]
    )
    name = next(_names)
    commongen.register(name, str(tmp_path))
    assert examples(name, "test").summaries == ["", ""]
    mixed = [SETS, {"concept_set": "dog#run"}]
    refused(
        lambda: rows_of(name, "test"), tmp_path / "test.jsonl", mixed, 2, "no 'summary', unlike"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"concept_set": "dog##run"}, "'concept_set' has a concept without a letter or digit"),
        ({"concept_set": "dog#++"}, "'concept_set' has a concept without a letter or digit"),
        ({"concept_set": ["dog"]}, "'concept_set' must be a string, found list"),
        ({"scene": []}, "'scene' is missing or empty"),
        ({"scene": "A dog."}, "'scene' must be a list of strings, found str"),
        ({"scene": ["A dog.", " "]}, "'scene' is empty"),
    ],
)
def test_commongen_bad_line(tmp_path, change, message):
    name = next(_names)
    commongen.register(name, str(tmp_path))
    rows = [SETS, SETS | change]
    refused(lambda: rows_of(name, "train"), tmp_path / "train.jsonl", rows, 2, message)


def test_commongen_of_tfds_on_mock_data():
    name = "commongen_tfds"
    with tfds.testing.mock_data(num_examples=3):
        found = examples(name, "validation", length=2000)
        raw = list(tfds.as_numpy(tfds.load("gem/common_gen:1.1.0", split="validation")))
    assert len(found) == 3
    for i, row in enumerate(raw):
        concepts = [concept.decode() for concept in row["concepts"]]
        assert found.documents[i] == ", ".join(concepts)
        assert found.notes["keywords"][i] == "\n".join(concepts)
        assert found.summaries[i] == row["target"].decode()


def test_arguments(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.jsonl", ARGUMENTS)
    name = next(_names)
    arguments.register(name, str(tmp_path))
    for split in SPLITS:
        found = examples(name, split)
        assert found.documents == [
            "topic: Ban cars pro: Quiet streets. con: No trains.",
            "topic: Ban cars pro: Clean air. pro: Room.",
            "topic: Free trains con: It is dear.",
        ]
        assert asked(found)[0] == f"rewrite: {found.documents[0]}"
        assert found.summaries == [row["text"] for row in ARGUMENTS]
        assert len(set(found.example_id.tolist())) == 3


def test_arguments_of_one_file_are_split_by_the_shares_given(tmp_path):
    rows = [ARGUMENTS[0] | {"topic": f"topic {i}"} for i in range(60)]
    path = write(tmp_path / "all.jsonl", rows)
    name = next(_names)
    arguments.register_one_file(name, path, {"train": 0.5, "dev": 0.3, "test": 0.2})
    found = {split: rows_of(name, split) for split in ("train", "dev", "test")}
    sizes = {split: len(rows) for split, rows in found.items()}
    assert sum(sizes.values()) == 60 and sizes["train"] > sizes["dev"] > sizes["test"] > 0
    documents = [row["document"] for rows in found.values() for row in rows]
    assert len(set(documents)) == 60
    with pytest.raises(ValueError, match="add up to 1"):
        arguments.register_one_file(next(_names), path, {"train": 0.5})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pro": "for"}, "'pro' must be a list of strings, found 'for'"),
        ({"con": [1]}, "'con' must be a string, found int"),
        ({"topic": ""}, "'topic' is empty"),
        ({"text": None}, "'text' must be a string, found NoneType"),
        ({"pro": []}, "'pro' and 'con' are empty"),
    ],
)
def test_arguments_bad_line(tmp_path, change, message):
    name = next(_names)
    arguments.register(name, str(tmp_path))
    rows = [ARGUMENTS[0], ARGUMENTS[1] | change]
    refused(lambda: rows_of(name, "train"), tmp_path / "train.jsonl", rows, 2, message)
