"""Instructions: which one stands before an input, and that nothing else of an example changes."""

import itertools
import json
from collections import Counter

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import instruction_bank, task_data
from dera_jax.data.encoding import Sizes
from dera_jax.prompts import Prompt
from dera_jax.tasks import instructions, jsonl, newswire, xsum
from tests.texts import BYTES, asked

SIZES = Sizes(256, 64)
PLAIN = jsonl.SUMMARIZE
_names = (f"instructed_{i}" for i in itertools.count())


def instruction_of(phrased, plain):
    """What was put before a text, the text itself being whole."""
    assert phrased.endswith(plain)
    return phrased.removesuffix(plain)


def slotted(instruction):
    """A template of `instructions` without the task's."""
    return instruction + instruction_bank.SLOT


def group_of(instruction):
    groups = {"short": instruction_bank.SHORT, "long": instruction_bank.LONG}
    groups |= {"neutral": instruction_bank.NEUTRAL, "none": (instruction_bank.SLOT,)}
    (found,) = [name for name, members in groups.items() if slotted(instruction) in members]
    return found


def counts(instructions_seen):
    return Counter(group_of(instruction) for instruction in instructions_seen)


def most_of_short_and_fewest_of_long(instructions_seen, targets):
    """The most words of a target with a short instruction, the fewest of one with a long."""
    words = {"short": [], "long": [], "neutral": [], "none": []}
    for instruction, target in zip(instructions_seen, targets, strict=True):
        words[group_of(instruction)].append(len(target.split()))
    return max(words["short"]), min(words["long"])


def phrased(inputs, targets, ids, short=3, long=6):
    columns = {
        "document": inputs,
        "template": ["{document}"] * len(inputs),
        "targets": targets,
        "example_id": tf.constant(ids, tf.int32),
    }
    dataset = instructions.add_instructions(
        tf.data.Dataset.from_tensor_slices(columns), short, long
    )
    rows = list(dataset.as_numpy_iterator())
    texts = [row["inputs"].decode() for row in rows]
    rendered = [
        Prompt(x, row["template"].decode()).render() for x, row in zip(inputs, rows, strict=True)
    ]
    assert texts == rendered
    return texts


def rows_of(name, split):
    """The examples of a task."""
    task = seqio.TaskRegistry.get(name)
    return list(task.get_dataset(None, split, shuffle=False).as_numpy_iterator())


def check_only_inputs_differ(plain, instructed):
    """Returns the instructions of two lists of rows that are otherwise equal."""
    found = []
    for one, other in zip(plain, instructed, strict=True):
        found.append(instruction_of(other.pop("inputs").decode(), one.pop("inputs").decode()))
        template = slotted(found[-1]).replace(instruction_bank.SLOT, one.pop("template").decode())
        assert other.pop("template").decode() == template
        assert one == other
    return found


@pytest.fixture(scope="module", params=list(newswire.SIZES))
def two_readings(request):
    """An epoch of newswire, and of newswire_instructed."""
    names, text = ("newswire", "newswire_instructed"), Tokenizer(newswire.vocabulary())
    return [task_data.epoch(name, request.param, text, SIZES, seed=0) for name in names]


@pytest.mark.parametrize("template", instruction_bank.bank())
def test_a_template_is_lower_case_words_before_one_slot(template):
    words, slot, rest = template.partition(PLAIN)
    assert (slot, rest) == (PLAIN, "")
    assert not words or words.endswith(" ")  # else the task's prefix gets other tokens
    letters = words.replace(",", "").replace(" ", "")
    assert not letters or (letters.isascii() and letters.isalpha() and letters.islower())


def test_the_bank_has_every_template_once_and_none_first():
    groups = (instruction_bank.SHORT, instruction_bank.LONG, instruction_bank.NEUTRAL)
    assert all(len(group) >= 3 for group in groups)
    assert instruction_bank.bank()[0] == PLAIN
    every = [instruction_bank.SLOT, *itertools.chain(*groups)]
    assert sorted(instruction_bank.bank()) == sorted(
        x.replace(instruction_bank.SLOT, PLAIN) for x in every
    )
    assert len(set(instruction_bank.bank())) == len(instruction_bank.bank())
    assert instruction_bank.bank("say {document}")[0] == "say {document}"


@pytest.mark.parametrize(
    "words, fitting",
    [(0, "short"), (1, "short"), (3, "short"), (4, "neutral"), (5, "neutral"), (6, "long")]
    + [(40, "long")],
)
def test_thirds_are_left_neutral_and_fitting(words, fitting):
    size = 1200
    texts = [f"document {i}" for i in range(size)]
    found = phrased(texts, [" one\n" * words] * size, range(size))
    seen = counts(instruction_of(*pair) for pair in zip(found, texts, strict=True))
    thirds = Counter(["none", "neutral", fitting])
    assert seen.keys() == thirds.keys()
    for group, number in thirds.items():
        assert seen[group] / size == pytest.approx(number / 3, abs=0.04)


def test_templates_of_a_group_are_equally_frequent():
    size = 3000
    texts = ["."] * size
    found = phrased(texts, ["word"] * size, range(10**9, 10**9 + size))
    seen = Counter(instruction_of(*pair) for pair in zip(found, texts, strict=True))
    for group in (instruction_bank.NEUTRAL, instruction_bank.SHORT):
        for template in group:
            share = seen[template.removesuffix(instruction_bank.SLOT)] / size
            assert share == pytest.approx(1 / 3 / len(group), abs=0.02)


def test_an_instruction_depends_on_the_id_and_the_target_s_length_alone():
    texts = [f"text {i}" for i in range(200)]
    ids = [7 * i for i in range(200)]
    first = phrased(texts, ["a b"] * 200, ids)
    other = phrased(texts[::-1], ["c"] * 200, ids[::-1])[::-1]
    assert first == other
    renamed = phrased(texts, ["a b"] * 200, range(200))
    assert first != renamed


@pytest.mark.parametrize("text", [r"a \1 \\ \0", "{document} {0} %s", "", "Zürich\n\n 時 "])
def test_a_text_is_kept_to_the_letter(text):
    found = phrased([text] * 60, ["word"] * 60, range(60))
    assert counts(instruction_of(row, text) for row in found).keys() == {"none", "neutral", "short"}


def test_newswire_differs_in_its_inputs_alone(two_readings):
    plain, instructed = two_readings
    np.testing.assert_array_equal(plain.example_id, instructed.example_id)
    jax.tree.map(np.testing.assert_array_equal, plain.targets, instructed.targets)
    np.testing.assert_array_equal(plain.keywords, instructed.keywords)
    assert plain.summaries == instructed.summaries
    assert plain.notes == instructed.notes
    assert plain.documents == instructed.documents


def test_newswire_s_instructions_fit_its_summaries(two_readings):
    plain, instructed = two_readings
    texts = zip(asked(instructed), asked(plain), strict=True)
    found = [instruction_of(*pair) for pair in texts]
    assert most_of_short_and_fewest_of_long(found, plain.summaries) == (8, 16)
    shares = {group: count / len(found) for group, count in counts(found).items()}
    expected = {"none": 3 / 9, "neutral": 4 / 9, "short": 1 / 9, "long": 1 / 9}
    assert shares == pytest.approx(expected, abs=0.06)


def test_newswire_s_tokens_are_the_instruction_s_and_the_plain_input_s(two_readings):
    plain, instructed = two_readings
    vocabulary = newswire.vocabulary()
    ids = lambda found: [x[:n].tolist() for x, n in zip(found.tokens, found.lengths, strict=True)]
    for one, other, document, text in zip(
        ids(plain.inputs),
        ids(instructed.inputs),
        asked(plain),
        asked(instructed),
        strict=True,
    ):
        assert other == vocabulary.encode(instruction_of(text, document)) + one


def test_another_reading_is_the_same():
    first, second = (
        task_data.epoch("newswire_instructed", "test", BYTES, SIZES, seed=s) for s in (0, 1)
    )
    assert first.text_prompts == second.text_prompts
    jax.tree.map(np.testing.assert_array_equal, first.inputs, second.inputs)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_docstrings_differ_in_their_inputs_alone(split):
    rows = [rows_of(name, split) for name in ("docstrings", "docstrings_instructed")]
    targets = [row["targets"].decode() for row in rows[0]]
    found = check_only_inputs_differ(*rows)
    assert most_of_short_and_fewest_of_long(found, targets) == (6, 10)


def test_xsum_differs_in_its_inputs_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DERA_JAX_XSUM", str(tmp_path))
    for split in xsum.SPLITS:
        rows = [{"document": f"{split} {i}", "summary": "word " * (1 + i % 50)} for i in range(300)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
        plain, instructed = (rows_of(name, split) for name in ("xsum", "xsum_instructed"))
        targets = [row["targets"].decode() for row in plain]
        found = check_only_inputs_differ(plain, instructed)
        assert most_of_short_and_fewest_of_long(found, targets) == (20, 26)


@pytest.mark.parametrize("name", ["newswire", "docstrings", "xsum"])
def test_an_instructed_task_has_the_splits_and_features_of_the_plain_one(name):
    plain, other = (seqio.TaskRegistry.get(n) for n in (name, f"{name}_instructed"))
    assert set(other.splits) == set(plain.splits)
    assert {"train", "validation", "test"} <= set(other.splits)
    assert other.output_features == plain.output_features


def test_a_user_s_own_task(tmp_path):
    rows = [{"document": f"Report {i}.", "summary": "A b c."} for i in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain, name = next(_names), next(_names)
    jsonl.register(plain, {"train": str(path)})
    instructions.register(name, plain, short=1, long=3)
    examples = task_data.epoch(name, "train", BYTES, SIZES, seed=0)
    texts = [f"summarize: {row['document']}" for row in rows]
    found = counts(instruction_of(*p) for p in zip(asked(examples), texts, strict=True))
    assert found.keys() == {"none", "neutral", "long"}
    ids = task_data.epoch(plain, "train", BYTES, SIZES, seed=0).example_id
    np.testing.assert_array_equal(examples.example_id, ids)


@pytest.mark.parametrize("short, long", [(0, 5), (-1, 5), (5, 5), (6, 5)])
def test_limits_have_an_order(short, long):
    message = f"expected 0 < short < long, numbers of words; found short={short}, long={long}"
    with pytest.raises(ValueError, match=message):
        phrased(["a"], ["b"], [1], short, long)
    with pytest.raises(ValueError, match=message):
        instructions.register(next(_names), "newswire", short, long)


def test_tasks_that_cannot_have_instructions():
    with pytest.raises(ValueError, match="task 'prose' yields ids, into which no instruction"):
        instructions.register(next(_names), "prose", 1, 2)
    with pytest.raises(ValueError, match="not registered: nowhere"):
        instructions.register(next(_names), "nowhere", 1, 2)
    texts = tf.data.Dataset.from_tensor_slices({"inputs": ["a"], "targets": ["b"]})
    message = "the examples have no template, document, example_id, only inputs, targets"
    with pytest.raises(ValueError, match=message):
        instructions.add_instructions(texts, 1, 2)
