"""The loader against a toy task whose every id is known: byte b of a text has the id b + 3."""

import itertools
import logging as python_logging

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from dera_jax import log
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import examples, seqio_tasks, task_data
from dera_jax.data.encoding import Sizes
from dera_jax.data.examples import eval_batches, train_batches
from dera_jax.tasks import jsonl, preferences
from tests.texts import BYTES, asked

SIZES = Sizes(12, 6)
WORDS = [
    "ant",
    "bee",
    "cat",
    "dog",
    "eel",
    "fox",
    "gnu",
    "hen",
    "ibis",
    "jay",
    "a very long animal",
]


def _dataset(split, shuffle_files, seed=None):
    del shuffle_files, seed
    texts = {"train": WORDS, "empty": WORDS[:0]}[split]
    columns = {
        "inputs": tf.constant([f"see {text}" for text in texts], tf.string),
        "targets": tf.constant(texts, tf.string),
        "example_id": tf.range(100, 100 + len(texts)),
        "facts": tf.constant([text.upper() for text in texts], tf.string),
    }
    return tf.data.Dataset.from_tensor_slices(columns)


@seqio.map_over_dataset(num_seeds=1)
def _random_first_token(example, seed):
    draw = tf.random.stateless_uniform([1], seed, 3, 200, tf.int32)
    return example | {"inputs": tf.concat([draw, example["inputs"][1:]], 0)}


def _drop_texts(dataset):
    return dataset.map(lambda row: {name: row[name] for name in ("inputs", "targets")})


def _register(name, *preprocessors, add_eos=True):
    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=add_eos)
    seqio.TaskRegistry.add(
        name,
        seqio.FunctionDataSource(_dataset, splits=["train", "empty"]),
        preprocessors=[seqio.preprocessors.tokenize, *preprocessors],
        output_features={"inputs": feature, "targets": feature},
    )


_register("toy", seqio.preprocessors.append_eos)
_register("toy_trimmed", seqio.preprocessors.append_eos_after_trim)
_register("toy_random", seqio.preprocessors.append_eos, _random_first_token)
_register("toy_no_texts", seqio.preprocessors.append_eos, _drop_texts)
seqio.MixtureRegistry.add("toy_mixture", [("toy", 1.0), ("toy_trimmed", 2.0)])


def ids(text, length):
    tokens = [byte + 3 for byte in text.encode()][: length - 1] + [1]
    return tokens + [0] * (length - len(tokens))


def assert_holds(found, texts, length):
    """Padded sequences of the ids of these texts, as `ids` has them."""
    expected = np.array([ids(text, length) for text in texts])
    np.testing.assert_array_equal(found.tokens, expected)
    np.testing.assert_array_equal(found.lengths, np.sum(expected > 0, axis=1))
    assert found.tokens.dtype == found.lengths.dtype == np.int32


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def joined(batches):
    return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def take(batches, count):
    return list(itertools.islice(batches, count))


def train(task="toy", batch_size=4, seed=7, start_step=0, **more):
    read = lambda seed: task_data.epoch(task, "train", BYTES, SIZES, seed)
    return train_batches(read, batch_size, seed, start_step, **more)


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("task", ["toy", "toy_trimmed"])
def test_epoch_holds_padded_ids_and_the_uncut_texts(task):
    examples = task_data.epoch(task, "train", BYTES, SIZES, seed=0)
    assert_holds(examples.inputs, [f"see {word}" for word in WORDS], 12)
    assert_holds(examples.targets, WORDS, 6)
    np.testing.assert_array_equal(examples.example_id, np.arange(100, 111))
    assert examples.documents == [f"see {word}" for word in WORDS]
    assert examples.summaries == WORDS
    assert examples.notes == {"facts": [word.upper() for word in WORDS]}


def test_task_without_texts_or_ids_gets_decoded_texts_and_positions():
    examples = task_data.epoch("toy_no_texts", "train", BYTES, Sizes(30, 30), seed=0)
    assert examples.summaries == WORDS
    assert examples.notes == {}
    np.testing.assert_array_equal(examples.example_id, np.arange(len(WORDS)))


def register_texts(name, **columns):
    """A user's own task of texts."""
    read = lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(columns)
    source = seqio.FunctionDataSource(read, splits=["train"])
    seqio.TaskRegistry.add(name, source, preprocessors=[], output_features=jsonl.features())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"document": ["one", "two"]},
        {"template": ["see {document}"] * 2},
        {"template": ["news"] * 2, "document": [1, 2]},
        {"document": ["one", "two"], "template": ["read {document}"] * 2},
        {"scores": [[0.5, 0.1], [0.2, 0.3]], "tags": [["a", "b"], ["c", "d"]]},
        {"keywords": [["a", "b"], ["c", "d"]]},  # one text with a keyword per line would be read
    ],
)
def test_inputs_are_what_is_asked_whatever_else_a_task_of_texts_has(fields, request):
    name = f"toy_texts_{request.node.callspec.indices['fields']}"
    register_texts(name, inputs=["see one", "see two"], targets=["a", "b"], **fields)
    first, second = (task_data.epoch(name, "train", BYTES, SIZES, seed) for seed in (0, 1))
    assert_holds(first.inputs, ["see one", "see two"], 12)
    assert first.documents == ["see one", "see two"] and first.summaries == ["a", "b"]
    for column in ("inputs", "targets", "example_id"):
        assert_equal(getattr(first, column), getattr(second, column))
    assert_equal(*(x.document[np.arange(2)] for x in (first, second)))
    assert first.keywords is second.keywords is None


def test_a_document_in_its_template_is_the_document():
    """Of a user's own task that says both."""
    fields = {"document": ["{document}", "two"], "template": ["see {document}!"] * 2}
    inputs = ["see {document}!", "see two!"]
    register_texts("toy_templates", inputs=inputs, targets=["a", "b"], **fields)
    found = task_data.epoch("toy_templates", "train", BYTES, Sizes(9, 6))
    assert_holds(found.inputs, ["see {do!", "see two!"], 9)
    assert found.documents == ["{document}", "two"] and asked(found) == inputs


def test_a_mixture_cuts_as_its_tasks_do():
    names = ("mixed_end", "mixed_start")
    for name in names:
        row = {"document": [f"{name}: a long dialogue"], "chosen": ["x"], "rejected": ["y"]}
        template = "say {document} ok"
        preferences.register_pairs(
            name,
            lambda split, row=row: row,
            ["train"],
            template,
            keep_end=name == "mixed_end",
        )
    seqio.MixtureRegistry.add("mixed", [(name, 1.0) for name in names])
    seqio.MixtureRegistry.add("mixed_one", [("mixed_end", 1.0)])
    sizes = Sizes(16, 6)
    alone = [
        BYTES.decode(task_data.epoch(name, "train", BYTES, sizes).inputs.tokens[0])
        for name in names
    ]
    assert alone == ["say dialogue ok", "say mixed_st ok"]
    (one,) = task_data.epoch("mixed_one", "train", BYTES, sizes).inputs.tokens
    assert BYTES.decode(one) == alone[0]
    found = task_data.epoch("mixed", "train", BYTES, sizes)
    assert {BYTES.decode(x) for x in found.inputs.tokens} <= {*alone}
    assert all(x.template == "say {document} ok" for x in found.text_prompts)


def test_a_mixture_of_tasks_with_different_fields_is_refused():
    register_texts("plain_texts", inputs=["one"], targets=["a"])
    fields = {"document": ["two"], "template": ["see {document}"]}
    register_texts("templated_texts", inputs=["see two"], targets=["b"], **fields)
    seqio.MixtureRegistry.add("mixed_fields", [("plain_texts", 1.0), ("templated_texts", 1.0)])
    with pytest.raises(ValueError, match="'mixed_fields' mixes.*plain_texts, templated_texts"):
        task_data.epoch("mixed_fields", "train", BYTES, SIZES)


def test_a_weight_counts_and_is_no_note(tmp_path):
    path = tmp_path / "weighted.jsonl"
    path.write_text('{"document": "one", "summary": "a", "weight": 0.25}\n'
                    '{"document": "two", "summary": "b", "weight": 3}\n')  # fmt: skip
    jsonl.register("weighted", {"train": str(path)}, template="{document}")
    examples = task_data.epoch("weighted", "train", BYTES, Sizes(20, 6))
    np.testing.assert_array_equal(examples.weight, np.float32([0.25, 3]))
    assert "weight" not in examples.notes
    (batch,) = take(train("weighted", batch_size=2), 1)
    assert sorted(batch["weight"].tolist()) == [0.25, 3]
    (plain,) = take(train(batch_size=2), 1)
    np.testing.assert_array_equal(plain["weight"], np.ones(2, np.float32))
    for wrong, said in (("-1", "finite number of at least 0"), ('"1"', "must be a number")):
        path.write_text(f'{{"document": "one", "summary": "a", "weight": {wrong}}}\n')
        with pytest.raises((TypeError, ValueError), match=f"line 1: 'weight' .*{said}"):
            task_data.epoch("weighted", "train", BYTES, Sizes(20, 6))


def test_a_template_that_asks_for_keywords_needs_them():
    template = "use {keywords} for {document}"
    fields = {"document": ["one"], "template": [template]}
    inputs = {"inputs": [template.replace("{document}", "one")], "targets": ["a"]}
    register_texts("no_keywords", **inputs, **fields)
    with pytest.raises(ValueError, match="has a slot {keywords}.*no field 'keywords'"):
        task_data.epoch("no_keywords", "train", BYTES, Sizes(40, 6))
    register_texts("some_keywords", **inputs, **fields, keywords=["tax\nrent"])
    (found,) = task_data.epoch("some_keywords", "train", BYTES, Sizes(40, 6)).text_prompts
    assert found.render() == "use tax, rent for one"


@pytest.mark.parametrize("ends_prompts", [True, False])
def test_prompts_of_ids_that_do_not_end_as_the_models_do_are_said(ends_prompts, caplog):
    """The ids are used as they are."""
    log.clear_logged_warnings()
    tokenizer = Tokenizer(BYTES.vocabulary, ends_prompts)
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        found = task_data.epoch("toy", "train", tokenizer, SIZES)
    assert_holds(found.inputs, [f"see {word}" for word in WORDS], 12)
    said = "'toy' yields ids, and its prompts end with the end token" in caplog.text
    assert said is not ends_prompts


@pytest.mark.parametrize("task", ["docstrings", "newswire", "docstrings_instructed", "tldr"])
def test_our_tasks_of_texts_can_be_mixed(task):
    """They have the same fields of prompts."""
    steps = seqio.TaskRegistry.get(task).preprocessors
    columns = {"document": ["one"], "summary": ["x"], "targets": ["x"]}
    columns["example_id"] = [3] if task.startswith("docstrings") else ["3"]
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    for step in steps:
        dataset = step(dataset)
    assert {"document", "template", "keep_end"} <= dataset.element_spec.keys()


@pytest.mark.parametrize("task", ["toy", "toy_trimmed"])
def test_cut_examples_are_counted_and_said_once(task, caplog):
    log.clear_logged_warnings()
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        for seed in range(3):
            task_data.epoch(task, "train", BYTES, SIZES, seed)
    said = [r.getMessage() for r in caplog.records if "were cut" in r.getMessage()]
    # "see " + 8 letters would make 13 tokens, a word of 6 letters 7: only the long animal is cut.
    assert said == [
        f"{task}, train: 1 of 11 inputs are longer than 12 tokens and were cut",
        f"{task}, train: 1 of 11 targets are longer than 6 tokens and were cut",
    ]


def test_repeated_documents_get_ids_of_their_own_and_are_said_once(tmp_path, caplog):
    """The first of them keeps its id: what was drawn for it before, is drawn again."""
    log.clear_logged_warnings()
    read = lambda seed: (
        task_data.epoch("toy_repeated", "train", BYTES, Sizes(40, 6), seed).example_id
    )
    texts = ["an ant", "a bee", "an ant", "a cat", "an ant", "a bee"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"document": "{x}", "summary": "y"}}\n' for x in texts))
    jsonl.register("toy_repeated", {"train": str(file)})
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        found = [read(seed) for seed in (0, 1)]
    said = [r.getMessage() for r in caplog.records if "repeat the id" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith("toy_repeated, train: 3 of 6 examples repeat")
    np.testing.assert_array_equal(*found)
    assert len(set(found[0])) == 6 and found[0].min() >= 0
    file.write_text("".join(f'{{"document": "{x}", "summary": "y"}}\n' for x in sorted({*texts})))
    alone = read(0)
    np.testing.assert_array_equal(alone, found[0][[1, 3, 0]])


def test_rows_that_just_fit_are_not_counted_as_cut(caplog):
    log.clear_logged_warnings()
    longest = max(len(word) for word in WORDS)
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        for task in ("toy", "toy_trimmed"):
            task_data.epoch(task, "train", BYTES, Sizes(longest + 5, longest + 1), 0)
    assert not [r for r in caplog.records if "were cut" in r.getMessage()]


@pytest.mark.parametrize("batch_size", [1, 4, 11, 25])
def test_every_example_comes_once_per_epoch(batch_size):
    epochs = 3
    batches = take(train(batch_size=batch_size), -(-epochs * len(WORDS) // batch_size))
    seen = np.concatenate([batch["example_id"] for batch in batches])[: epochs * len(WORDS)]
    for one_epoch in seen.reshape(epochs, len(WORDS)):
        np.testing.assert_array_equal(np.sort(one_epoch), np.arange(100, 111))
    assert len({tuple(order) for order in seen.reshape(epochs, -1)}) == epochs


def test_rows_of_a_batch_belong_together():
    for batch in take(train(), 6):
        words = [WORDS[example_id - 100] for example_id in batch["example_id"]]
        assert_holds(batch["inputs"], [f"see {word}" for word in words], 12)
        assert_holds(batch["targets"], words, 6)


@pytest.mark.parametrize("task", ["toy", "toy_random", "toy_mixture"])
@pytest.mark.parametrize("start", [3, 9])
def test_starting_at_a_step_continues_the_sequence(task, start):
    whole = take(train(task), 12)
    assert_same(take(train(task, start_step=start), 12 - start), whole[start:])


@pytest.mark.parametrize("task", ["toy", "toy_random"])
def test_rows_of_the_processes_make_up_the_batch(task):
    whole = take(train(task), 7)
    parts = [take(train(task, process=(i, 2)), 7) for i in range(2)]
    assert_same([joined(pair) for pair in zip(*parts, strict=True)], whole)


def test_another_seed_gives_another_order():
    first, second = (next(train(batch_size=11, seed=seed))["example_id"] for seed in (7, 8))
    assert (first != second).any()


def test_random_preprocessors_draw_anew_in_each_epoch():
    def first_tokens(batch):
        return batch["inputs"].tokens[np.argsort(batch["example_id"]), 0]

    one, two = take(train("toy_random", batch_size=11), 2)
    assert (first_tokens(one) != first_tokens(two)).sum() > 6


def test_order_is_pinned():
    """Seeds must not change their order with a new numpy: these numbers are on record."""
    np.testing.assert_array_equal(examples._order(8, seed=3, number=2), ORDER_OF_SEED_3_EPOCH_2)


ORDER_OF_SEED_3_EPOCH_2 = [2, 3, 6, 4, 1, 7, 5, 0]


@pytest.mark.parametrize(
    "batch_size, processes", [(1, 1), (4, 1), (11, 1), (4, 2), (16, 2), (6, 3)]
)
def test_evaluation_sees_each_example_once_and_in_order(batch_size, processes):
    read = task_data.epoch("toy", "train", BYTES, SIZES, seed=0)
    parts = [list(eval_batches(read, batch_size, (i, processes))) for i in range(processes)]
    seen = []
    for batches in zip(*parts, strict=True):
        batch = joined(batches)
        assert {len(array) for array in jax.tree.leaves(batch)} == {batch_size}
        assert (np.diff(batch["valid"].astype(int)) <= 0).all()  # the filling comes last
        for name in ("inputs", "targets", "example_id"):  # and is the last example
            for row in np.flatnonzero(~batch["valid"]):
                filling = jax.tree.map(lambda x, row=row: x[row], batch[name])
                assert_equal(filling, jax.tree.map(lambda x: x[-1], getattr(read, name)))
        seen += batch["example_id"][batch["valid"]].tolist()
    assert seen == list(range(100, 111))


def test_unknown_task_names_the_near_ones():
    with pytest.raises(ValueError, match="unknown task 'toi'.*toy"):
        task_data.epoch("toi", "train", BYTES, SIZES, 0)


def test_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match="no split 'tain'.*'empty', 'train'"):
        task_data.epoch("toy", "tain", BYTES, SIZES, 0)


def test_empty_split_is_an_error():
    with pytest.raises(ValueError, match="'toy' has no example in split 'empty'"):
        task_data.epoch("toy", "empty", BYTES, SIZES, 0)


def test_impossible_sizes_are_errors():
    with pytest.raises(ValueError, match=r"Sizes.inputs must be .*found 0"):
        Sizes(0, 4)


def test_batch_size_must_divide_among_processes():
    message = "batch_size 5 cannot be divided among 2 processes"
    with pytest.raises(ValueError, match=message):
        train(batch_size=5, process=(0, 2))
    with pytest.raises(ValueError, match=message):
        eval_batches(task_data.epoch("toy", "train", BYTES, SIZES, 0), 5, (0, 2))


@pytest.fixture(scope="module")
def pairs_task():
    """The toy's words as pairs, with keywords: the words of each text."""

    def rows(split):
        return {
            "document": [f"see {text}" for text in WORDS],
            "chosen": WORDS,
            "rejected": [f"{text} or not at all" for text in WORDS],
            "keywords": ["\n".join(text.split()) for text in WORDS],
        }

    preferences.register_pairs("toy_pairs", rows, ["train"], "{document}")


def test_rejected_texts_are_cut_as_targets_are(pairs_task):
    examples = task_data.epoch("toy_pairs", "train", BYTES, SIZES, 0)
    # Of "a very long animal" both texts are cut to "a ver": it is left out.
    assert examples.rejected.tokens.shape == (len(WORDS) - 1, 6)
    assert examples.targets.tokens.shape == (len(WORDS) - 1, 6)
    for row, text in zip(examples.rejected.tokens, WORDS[:-1], strict=True):
        assert row.tolist() == [b + 3 for b in f"{text} or not"[:5].encode()] + [1]
    assert examples.rejected.lengths.tolist() == [6] * (len(WORDS) - 1)
    seqio_tasks.check_pairs("toy_pairs", "train")
    with pytest.raises(
        ValueError, match="task 'toy' has no preference pairs: expected a feature 'rejected'"
    ):
        seqio_tasks.check_pairs("toy", "train")
    assert task_data.epoch("toy", "train", BYTES, SIZES, 0).rejected is None


def test_keywords_are_bytes(pairs_task):
    keywords = task_data.epoch("toy_pairs", "train", BYTES, Sizes(40, 40)).keywords
    assert keywords.shape == (len(WORDS), 4, 6) and keywords.dtype == np.uint8
    last = [bytes(x).rstrip(b"\0").decode() for x in keywords[-1]]
    assert last == ["a", "very", "long", "animal"]
    assert not keywords[0, 1:].any()
    assert task_data.epoch("toy", "train", BYTES, SIZES, 0).keywords is None


def test_batches_keep_what_belongs_together(pairs_task):
    """Rows of every array, and the texts if they are wanted, are of one example."""
    pairs = task_data.epoch("toy_pairs", "train", BYTES, SIZES, 0)
    row_of = {int(x): i for i, x in enumerate(pairs.example_id)}
    batches = train("toy_pairs", seed=1, with_documents=True)
    for batch in itertools.islice(batches, 6):  # two epochs
        rows = [row_of[int(x)] for x in batch["example_id"]]
        assert list(batch["documents"]) == [pairs.documents[i] for i in rows]
        for name in ("inputs", "targets", "rejected", "keywords"):
            of_rows = jax.tree.map(lambda x, rows=rows: x[rows], getattr(pairs, name))
            assert_equal(batch[name], of_rows)
    plain = next(train("toy", seed=1))
    assert set(plain) == {"inputs", "targets", "example_id", "document", "weight"}
